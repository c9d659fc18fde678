"""Choosing a region by a contrast or by RSA, and remembering on which contents it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Contrast, Design
from neurollm.designs.table import trials_digest
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.roi.contents import item_keys, text_keys
from neurollm.roi.region import ROI
from neurollm.rsa.result import RSAMap, RSAResult
from neurollm.rsa.rows import read_trials
from neurollm.rsa.searchlight import SearchlightMap
from neurollm.validation import listed, several

if TYPE_CHECKING:
    import pandas as pd

CORRECTIONS = ("p_fwer", "q")


def select_roi(
    result: ContrastResult | RSAResult | SearchlightMap,
    obs: pd.DataFrame,
    name: str,
    *,
    n_features: int | None = None,
    alpha: float | None = None,
    by: str = "p_fwer",
    model: str | None = None,
) -> ROI:
    """Choose the features of a region from a contrast, from RSA, or from a searchlight.

    Parameters
    ----------
    result : ContrastResult, RSAResult or SearchlightMap
        Features are taken in the direction of its alternative; for two-sided contrasts the sign is kept, so that
        opposite features do not cancel in the region's mean. RSA has no such sign, but a direction: features that
        follow the model are taken, also of a two-sided test, and with the alternative "less" those that run against
        it. Of a searchlight the centres are taken.
    obs : DataFrame
        The trial table that was fitted, with a column ``text``. *All* its items and texts count as used, those that
        the contrast weighs by zero too.
    name : str
    n_features : int, optional
        The features with the largest statistics.
    alpha : float, optional
        All features with `by` ≤ `alpha`. Give exactly one of the two.
    by : {"p_fwer", "q"}
    model : str, optional
        Which model of an RSA; needed if there are several.

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
    found = _ranking(result, model)
    positions = _chosen(found, (n_features, alpha, by))
    contents = _items(found, obs)
    rule = f"the {n_features} largest {found.kind}" if alpha is None else f"all with {by} ≤ {alpha:g}"
    return ROI(
        name,
        tuple(found.feature[positions].tolist()),
        tuple(int(sign) or 1 for sign in found.signs[positions]),
        f"{rule} of {found.told}.",
        found.contrast,
        *contents,
        found.method,
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
    X, obs, features = read_trials(X, obs, features, "localize")
    text_keys(obs)  # refuse a table without texts before the work, not after
    result = FeatureGLM(design, **options).fit(X, obs, features=features).compute_contrast(contrast)
    return select_roi(result, obs, name, n_features=n_features, alpha=alpha, by=by)


@dataclass(frozen=True)
class _Ranking:
    """What a selection needs of any result."""

    method: str
    where: str
    kind: str  # of the statistic
    told: str
    feature: np.ndarray
    size: np.ndarray  # larger speaks more for the alternative; what is not positive is not chosen
    signs: np.ndarray
    direction: str  # in which features are chosen
    valid: np.ndarray
    p_fwer: np.ndarray
    q: np.ndarray
    contrast: Contrast | None
    unit: str
    n_items: int
    trials: str


def _directed(stat: np.ndarray, alternative: str) -> np.ndarray:
    return {"two-sided": np.abs(stat), "greater": stat, "less": -stat}[alternative]


_DIRECTION = {"two-sided": "either direction", "greater": "positive direction", "less": "negative direction"}


_FOLLOWING = {
    "two-sided": "those that follow the model; tested in either direction",
    "greater": "those that follow the model",
    "less": "those that run against the model",
}


def _ranking(result: Any, model: str | None) -> _Ranking:
    if isinstance(result, ContrastResult):
        return _of_contrast(result)
    if isinstance(result, RSAResult):
        if model is None and len(result.maps) > 1:
            names = listed(one.model for one in result.maps)
            raise InvalidInput(f"select_roi: the RSA has {len(result.maps)} models; name one as model: {names}.")
        return _of_rsa(result, result.maps[0] if model is None else result[model], "rsa")
    if isinstance(result, SearchlightMap):
        return _of_rsa(result, result, "searchlight")
    raise InvalidInput(
        "select_roi: features are chosen from a ContrastResult, an RSAResult or a SearchlightMap, found "
        f"{type(result).__name__}."
    )


def _of_contrast(result: ContrastResult) -> _Ranking:
    unit = result.exchange.unit
    how = "F" if result.is_f else _DIRECTION[result.alternative]
    return _Ranking(
        method="contrast",
        where=f"contrast '{result.name}'",
        kind=result.stat_kind,
        told=f"{result.n_tests:,} tested features ({how}) in the contrast '{result.contrast.expression}', "
        f"{result.n_items} {several(unit)}",
        feature=result.feature,
        size=_directed(result.stat, result.alternative),
        signs=np.ones(len(result.stat)) if result.is_f else np.nan_to_num(np.sign(result.stat)),
        direction=f"lie in the direction of the alternative ({result.alternative})",
        valid=result.valid,
        p_fwer=result.p_fwer,
        q=result.q,
        contrast=result.contrast,
        unit=unit,
        n_items=result.n_items + result.n_items_dropped,
        trials=result.trials,
    )


def _of_rsa(result: RSAResult | SearchlightMap, found: RSAMap | SearchlightMap, method: str) -> _Ranking:
    kind = "z" if np.isfinite(found.z[found.valid]).any() else "r"
    against = result.alternative == "less"
    what = {"rsa": "features", "searchlight": "neighbourhoods, of which the centres are taken,"}[method]
    return _Ranking(
        method=method,
        where=f"RSA model '{found.model}'",
        kind=kind,
        told=f"{int(found.valid.sum()):,} tested {what} ({_FOLLOWING[result.alternative]}) in RSA with the model "
        f"'{found.model}' ({result.comparison}), {found.n_items} {several(result.item or 'trial')}",
        feature=result.feature,
        size=-getattr(found, kind) if against else getattr(found, kind),
        signs=np.ones(len(result.feature)),
        direction="run against the model" if against else "follow the model",
        valid=found.valid,
        p_fwer=found.p_fwer,
        q=found.q,
        contrast=None,
        unit=result.item or "trial",
        n_items=found.n_items + found.n_dropped,
        trials=result.trials,
    )


def _chosen(found: _Ranking, rule: tuple) -> np.ndarray:
    """Positions of the chosen features, the largest statistic first."""
    n_features, alpha, by = rule
    where, size = f"select_roi: {found.where}", found.size
    if (n_features is None) == (alpha is None):
        raise InvalidInput("select_roi: give either n_features or alpha, which says how features are chosen.")
    if by not in CORRECTIONS:
        raise InvalidInput(f"select_roi: by is {by!r}; it must be 'p_fwer' or 'q'.")
    directed = found.valid & (size > 0)
    order = np.lexsort((np.arange(len(size)), -np.where(directed, size, -np.inf)))[: int(directed.sum())]
    if n_features is not None:
        if isinstance(n_features, bool) or not isinstance(n_features, (int, np.integer)) or n_features < 1:
            raise InvalidInput(f"select_roi: n_features must be a whole number of at least 1, found {n_features!r}.")
        if len(order) < n_features:
            raise InvalidInput(
                f"{where}: {len(order)} tested features {found.direction}, fewer than n_features = {n_features}."
            )
        return order[:n_features]
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise InvalidInput(f"select_roi: alpha must lie between 0 and 1, found {alpha!r}.")
    values = getattr(found, by)
    if not np.isfinite(values[order]).any():
        raise InvalidInput(f"{where}: has no {by} (n_perm was 0); choose by 'q', or by n_features.")
    chosen = order[values[order] <= alpha]
    if not chosen.size:
        raise InvalidInput(f"{where}: no feature has {by} ≤ {alpha:g}; the smallest is {np.nanmin(values[order]):.3g}.")
    return chosen


def _items(found: _Ranking, obs: pd.DataFrame) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """The item column, its values and the texts, if this is the table that was analysed."""
    contents = used_contents(obs, None if found.unit == "trial" and "trial" not in obs else found.unit)
    if trials_digest(obs, contents[0]) != found.trials:
        raise DataMismatch(
            f"select_roi: the trial table ({len(obs)} trials) is not the one that {found.where} was computed from "
            f"({found.n_items} {several(found.unit)}); give the whole table that was fitted, because all of it counts "
            "as used."
        )
    return contents


def used_contents(obs: pd.DataFrame, item: str | None) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """What a region remembers of the trials it was chosen on: ``item, items, texts`` of `ROI`.

    A design without items leaves the texts alone to tell contents apart.
    """
    texts = tuple(sorted(set(text_keys(obs))))
    return item, () if item is None else tuple(sorted(set(item_keys(obs, item)))), texts
