"""Choosing a region by a contrast, and remembering on which contents it was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Design
from neurollm.designs.table import trials_digest
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.roi.contents import item_keys, text_keys, trials
from neurollm.roi.region import ROI
from neurollm.validation import several

if TYPE_CHECKING:
    import pandas as pd

CORRECTIONS = ("p_fwer", "q")


def select_roi(
    result: ContrastResult,
    obs: pd.DataFrame,
    name: str,
    *,
    n_features: int | None = None,
    alpha: float | None = None,
    by: str = "p_fwer",
) -> ROI:
    """Choose the features of a region from a contrast.

    Parameters
    ----------
    result : ContrastResult
        Features are taken in the direction of its alternative; for two-sided ones the sign is kept, so that
        opposite features do not cancel in the region's mean.
    obs : DataFrame
        The trial table that was fitted, with a column ``text``. *All* its items and texts count as used, those that
        the contrast weighs by zero too.
    name : str
    n_features : int, optional
        The features with the largest statistics.
    alpha : float, optional
        All features with `by` ≤ `alpha`. Give exactly one of the two.
    by : {"p_fwer", "q"}

    Returns
    -------
    ROI

    Raises
    ------
    InvalidInput
        The rule is incomplete or chooses nothing, or the table has no texts.
    DataMismatch
        The table has fewer items than the result.
    """
    size = {"two-sided": np.abs(result.stat), "greater": result.stat, "less": -result.stat}[result.alternative]
    positions = _chosen(result, size, (n_features, alpha, by))
    item, items = _items(result, obs)
    direction = {"two-sided": "either direction", "greater": "positive direction", "less": "negative direction"}
    rule = f"the {n_features} largest {result.stat_kind}" if alpha is None else f"all with {by} ≤ {alpha:g}"
    how = "F" if result.is_f else direction[result.alternative]
    signs = np.ones(len(positions)) if result.is_f else np.sign(result.stat[positions])
    return ROI(
        name,
        tuple(result.feature[positions].tolist()),
        tuple(int(sign) or 1 for sign in signs),
        f"{rule} of {result.n_tests:,} tested features ({how}) in the contrast '{result.contrast.expression}', "
        f"{result.n_items} {several(result.exchange.unit)}.",
        result.contrast,
        item,
        items,
        tuple(sorted(set(text_keys(obs)))),
    )


def localize(
    design: Design,
    contrast: Any,
    X: Any,
    obs: pd.DataFrame | None = None,
    *,
    name: str,
    features: Any = None,
    n_features: int | None = None,
    alpha: float | None = None,
    by: str = "p_fwer",
    **options: Any,
) -> ROI:
    """Run a localizer: a design and a contrast on stimuli of its own, then `select_roi`.

    Parameters
    ----------
    design : Design
    contrast : str, mapping, sequence or Contrast
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
        The localizer's trial table, with a column ``text``.
    name, n_features, alpha, by
        See `select_roi`.
    features : sequence, optional
        Feature ids; default 0 … V−1.
    **options
        Of `FeatureGLM`: ``alternative``, ``n_perm``, ``random_state`` …

    Returns
    -------
    ROI

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"kind": ["word", "nonword"] * 10, "item": np.repeat(np.arange(10), 2)})
    >>> obs["text"] = obs["kind"] + obs["item"].astype(str)
    >>> X = np.random.default_rng(0).normal(size=(20, 30)) + 4 * np.outer(obs["kind"] == "word", np.arange(30) == 5)
    >>> localize(CategoricalDesign("kind"), "word - nonword", X, obs, name="words", n_features=1, n_perm=500).feature
    (5,)
    """
    X, obs, features = trials(X, obs, features)
    text_keys(obs)  # refuse a table without texts before the work, not after
    result = FeatureGLM(design, **options).fit(X, obs, features=features).compute_contrast(contrast)
    return select_roi(result, obs, name, n_features=n_features, alpha=alpha, by=by)


def _chosen(result: ContrastResult, size: np.ndarray, rule: tuple) -> np.ndarray:
    """Positions of the chosen features, the largest statistic first."""
    n_features, alpha, by = rule
    where = f"select_roi: contrast '{result.name}'"
    if (n_features is None) == (alpha is None):
        raise InvalidInput("select_roi: give either n_features or alpha, which says how features are chosen.")
    if by not in CORRECTIONS:
        raise InvalidInput(f"select_roi: by is {by!r}; it must be 'p_fwer' or 'q'.")
    directed = result.valid & (size > 0)
    order = np.lexsort((np.arange(len(size)), -np.where(directed, size, -np.inf)))[: int(directed.sum())]
    if n_features is not None:
        if isinstance(n_features, bool) or not isinstance(n_features, (int, np.integer)) or n_features < 1:
            raise InvalidInput(f"select_roi: n_features must be a whole number of at least 1, found {n_features!r}.")
        if len(order) < n_features:
            raise InvalidInput(
                f"{where}: {len(order)} tested features lie in the direction of the alternative "
                f"({result.alternative}), fewer than n_features = {n_features}."
            )
        return order[:n_features]
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise InvalidInput(f"select_roi: alpha must lie between 0 and 1, found {alpha!r}.")
    values = getattr(result, by)
    if not np.isfinite(values[order]).any():
        raise InvalidInput(f"{where}: has no {by} (n_perm was 0); choose by 'q', or by n_features.")
    chosen = order[values[order] <= alpha]
    if not chosen.size:
        raise InvalidInput(f"{where}: no feature has {by} ≤ {alpha:g}; the smallest is {np.nanmin(values[order]):.3g}.")
    return chosen


def _items(result: ContrastResult, obs: pd.DataFrame) -> tuple[str | None, tuple[str, ...]]:
    """The item column and its values; a design without items leaves the texts alone to tell contents apart."""
    unit = result.exchange.unit
    text_keys(obs)
    item = None if unit == "trial" and "trial" not in obs else unit
    labels = () if item is None else tuple(sorted(set(item_keys(obs, item))))
    if trials_digest(obs, item) != result.trials:
        raise DataMismatch(
            f"select_roi: the trial table ({len(obs)} trials) is not the one that contrast '{result.name}' was "
            f"computed from ({result.n_items + result.n_items_dropped} {several(unit)}); give the whole table that was "
            "fitted, because all of it counts as used."
        )
    return item, labels
