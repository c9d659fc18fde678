"""Stability selection: features that are chosen again and again on random halves of the items.

The items are divided into two halves B times (complementary pairs), and on each half the q features with the largest
scores are chosen. A feature is kept if it was chosen on at least a share τ of the 2B halves (Meinshausen & Bühlmann
2010). With p candidates and θ = q/p, call a feature noise if half of the items choose it with probability at most θ,
that is, no more often than by chance. The expected number of noise features that are kept is at most
(Shah & Samworth 2013, theorems 1 and 2)

    q θ / (2τ − 1)                                                             without assumptions
    q θ C,   C = 1 / (2(2τ − 1 − 1/(2B)))         for τ ≤ 3/4                  if the share of pairs in which both
             C = 4(1 − τ + 1/(2B)) / (1 + 1/B)    for τ > 3/4                  halves choose it is unimodal

for whatever chooses features, also if they depend on each other. The first is the bound of Meinshausen & Bühlmann, who
had to assume that noise features are exchangeable. Both take the items for independent draws; halves divide items (and
items that share a text stay together), never trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurollm.designs import Design
from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.roi.contents import item_keys, linked, text_keys
from neurollm.roi.region import ROI
from neurollm.roi.selection import used_contents
from neurollm.roi.splitting import in_order, moved
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import ModelRows, check_whole, read_trials
from neurollm.stats.arrays import dense, take_rows
from neurollm.stats.rdms.forms import pair_classes
from neurollm.stats.rdms.scores import feature_scores, rsa_scores
from neurollm.stats.rdms.space import RDMSpace
from neurollm.validation import listed, several, shown

if TYPE_CHECKING:
    import pandas as pd

Score = Callable[[Any, np.ndarray], np.ndarray]
Assumption = Literal["none", "unimodal"]


@dataclass(frozen=True, eq=False)
class StabilitySelection:
    """How often each feature was chosen on halves of the items.

    Attributes
    ----------
    feature : ndarray, shape (V,)
        Ids.
    frequency : ndarray, shape (V,)
        Share of the halves that chose it; NaN if it is no candidate.
    sign : ndarray of int, shape (V,)
        Direction of its mean score.
    selected : ndarray of int
        Positions of the features that are kept, the most frequent first.
    score : str
    threshold : float
        τ.
    n_selected : int
        q, features chosen on each half.
    n_pairs, n_candidates, n_items : int
    assumption : {"none", "unimodal"}
    expected_false : float
        Bound of the expected number of noise features among those kept.
    item : str or None
    items, texts : tuple of str
        What was looked at, as in `ROI`.
    """

    feature: np.ndarray
    frequency: np.ndarray
    sign: np.ndarray
    selected: np.ndarray
    score: str
    threshold: float
    n_selected: int
    n_pairs: int
    n_candidates: int
    n_items: int
    assumption: str
    expected_false: float
    item: str | None
    items: tuple[str, ...]
    texts: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per feature: ``feature, frequency, sign, selected``."""
        import pandas as pd

        kept = np.zeros(len(self.feature), bool)
        kept[self.selected] = True
        return pd.DataFrame({"feature": self.feature, "frequency": self.frequency, "sign": self.sign, "selected": kept})

    def verdict(self) -> str:
        """The result in one sentence."""
        return (
            f"{len(self.selected)} of {self.n_candidates:,} features are among the {self.n_selected} largest by "
            f"{self.score} in at least {self.threshold:.0%} of {2 * self.n_pairs} halves of {self.n_items} "
            f"{several(self.item or 'trial')}; at most {self.expected_false:.2g} of them are expected to be noise "
            f"({'without assumptions' if self.assumption == 'none' else 'unimodal shares'})."
        )

    def roi(self, name: str) -> ROI:
        """The kept features as a region.

        Raises
        ------
        InvalidInput
            None was kept.
        """
        if not self.selected.size:
            raise InvalidInput(
                f"stability selection: no feature was chosen on at least {self.threshold:.0%} of the halves; the most "
                f"frequent on {np.nanmax(self.frequency):.0%}."
            )
        return ROI(
            name,
            tuple(self.feature[self.selected].tolist()),
            tuple(int(sign) for sign in self.sign[self.selected]),
            self.verdict(),
            None,
            self.item,
            self.items,
            self.texts,
            "stability",
        )


def stability_roi(design: Design, X: Any, obs: pd.DataFrame | None = None, *, name: str, **options: Any) -> ROI:
    """The region of `stability_selection`.

    Parameters
    ----------
    design : Design
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
    name : str
    **options
        Of `stability_selection`.

    Returns
    -------
    ROI

    Raises
    ------
    InvalidInput
        No feature is stable enough, or an option is wrong.
    """
    return stability_selection(design, X, obs, **options).roi(name)


def stability_selection(
    design: Design,
    X: Any,
    obs: pd.DataFrame | None = None,
    *,
    score: str | Score = "rsa",
    model: str | ModelRDM = "categorical",
    comparison: str = "pearson",
    target: str | None = None,
    n_selected: int | None = None,
    max_false: float = 1.0,
    threshold: float = 0.75,
    assumption: Assumption = "unimodal",
    n_pairs: int = 50,
    min_active: int = 5,
    scale: str = "raw",
    features: Any = None,
    random_state: int = 0,
) -> StabilitySelection:
    """Find the features that halves of the items agree on.

    Parameters
    ----------
    design : Design
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
        Trial table with a column ``text``; None with an AnnData.
    score : "rsa" or callable
        RSA of each feature with `model`; or ``score(X, y)``, which gets item × condition means (n, V) and a bool for
        each row, and returns (V,) numbers of which those far from 0 are chosen: a difference of means, Welch's t, …
    model, comparison
        See `neurollm.rsa.FeatureRSA`.
    target : str, optional
        Condition for which y is True; not needed with two conditions (the first) or a `DiscriminativeDesign`.
    n_selected : int, optional
        q; default: as many as `max_false` allows.
    max_false : float, default=1.0
        Largest expected number of noise features that are kept; only without `n_selected`.
    threshold : float, default=0.75
        τ, above ½.
    assumption : {"unimodal", "none"}
    n_pairs : int, default=50
        B.
    min_active : int, default=5
        Features active in fewer rows are no candidates (label-blind).
    scale : {"raw", "log1p", "binary"}
    features : sequence, optional
        Feature ids; default 0 … V−1.
    random_state : int, default=0

    Returns
    -------
    StabilitySelection

    Raises
    ------
    InvalidInput
        An option is wrong, the table has no texts, or there are fewer than four independent groups of items.
    DataMismatch
        Rows or ids do not go with the activations.

    Examples
    --------
    >>> import pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"kind": ["a", "b"] * 20, "item": np.repeat(np.arange(20), 2)})
    >>> obs["text"] = obs["kind"] + obs["item"].astype(str)
    >>> X = np.random.default_rng(0).normal(size=(40, 200))
    >>> X[::2, :3] += 3
    >>> found = stability_selection(CategoricalDesign("kind"), X, obs, max_false=0.3, n_pairs=25)
    >>> found.feature[found.selected].tolist(), found.n_selected, round(found.expected_false, 2)
    ([0, 1, 2], 7, 0.26)
    """
    X, obs, features = read_trials(X, obs, features, "stability_selection")
    for word, value, least in (
        ("n_pairs", n_pairs, 1),
        ("min_active", min_active, 0),
        ("random_state", random_state, 0),
    ):
        check_whole("stability selection", word, value, least)
    _check_score(score, comparison)
    X, obs, order = in_order(X, obs)
    contents = used_contents(obs, design.item)
    rows = ModelRows.of(design, moved(model, order) if score == "rsa" else "categorical", X, obs, scale)
    valid = RDMSpace(rows.values, "whitened").valid & (rows.n_active >= min_active)
    candidates = np.flatnonzero(valid)
    q = _quota(n_selected, max_false, (threshold, n_pairs, assumption), candidates.size)
    expected = false_selections(q, candidates.size, threshold, n_pairs, assumption)
    groups = _groups(design, obs, rows)
    values = rows.values[:, candidates]
    one_sided = score == "rsa"
    if one_sided:
        told = f"RSA with the model '{rows.model.name}' ({comparison})"

        def scored(own: np.ndarray) -> np.ndarray:
            return rsa_scores(take_rows(values, own), rows.matrix[np.ix_(own, own)], comparison)

    else:
        y, level = _labels(design, rows, target)
        told = f"{getattr(score, '__name__', 'a score')} of '{level}'"

        def scored(own: np.ndarray) -> np.ndarray:
            return _numbers(score(dense(take_rows(values, own)), y[own]), candidates.size)

    chosen, mean = half_choices(scored, groups, q, n_pairs, random_state, one_sided=one_sided)
    frequency, sign = np.full(len(features), np.nan), np.ones(len(features), int)
    frequency[candidates] = chosen
    sign[candidates] = 1 if one_sided else np.where(mean < 0, -1, 1)
    kept = np.flatnonzero(frequency >= threshold - 1e-9)
    kept = kept[np.argsort(-frequency[kept], kind="stable")]
    counts = (threshold, q, n_pairs, candidates.size, rows.exchange.n_items)
    return StabilitySelection(features, frequency, sign, kept, told, *counts, assumption, expected, *contents)


def false_selections(
    n_selected: int, n_candidates: int, threshold: float, n_pairs: int, assumption: Assumption = "unimodal"
) -> float:
    """Bound of the expected number of noise features that are kept (see the module).

    Parameters
    ----------
    n_selected : int
        q, at most p/√3 for "unimodal".
    n_candidates : int
        p.
    threshold : float
        τ.
    n_pairs : int
        B.
    assumption : {"unimodal", "none"}

    Returns
    -------
    float

    Raises
    ------
    InvalidInput
        The theorem does not cover these numbers.

    Examples
    --------
    >>> false_selections(20, 1000, 0.9, 50, "none"), round(false_selections(20, 1000, 0.9, 50), 3)
    (0.5, 0.173)
    """
    theta, tau, B = n_selected / n_candidates, threshold, n_pairs
    if assumption not in ("none", "unimodal"):
        raise InvalidInput(f"stability selection: assumption is {shown(assumption)}; it must be 'none' or 'unimodal'.")
    _check_number("threshold", tau)
    if not 0.5 < tau <= 1:
        raise InvalidInput(f"stability selection: threshold must be above 0.5 and at most 1, found {tau!r}.")
    if assumption == "none":
        return n_selected * theta / (2 * tau - 1)
    lowest = min(0.5 + theta**2, 0.5 + 1 / (2 * B) + 0.75 * theta**2)
    if theta > 3**-0.5 or tau <= max(lowest, 0.5 + 1 / (4 * B)):
        raise InvalidInput(
            f"stability selection: no bound is known for {n_selected} of {n_candidates} features on each half with "
            f"threshold {tau:g}; choose fewer, a larger threshold, or assumption 'none'."
        )
    if tau <= 0.75:
        return n_selected * theta / (2 * (2 * tau - 1 - 1 / (2 * B)))
    return n_selected * theta * 4 * (1 - tau + 1 / (2 * B)) / (1 + 1 / B)


def half_choices(
    score: Callable[[np.ndarray], np.ndarray],
    groups: tuple[np.ndarray, np.ndarray],
    n_selected: int,
    n_pairs: int,
    random_state: int,
    one_sided: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the largest scores on halves.

    Parameters
    ----------
    score : callable
        From rows (in rising order) to (V,) scores; NaN is never chosen.
    groups : (ndarray of int, ndarray of int), each of shape (n,)
        Rows with the same number stay together; groups of one stratum are shared out evenly.
    n_selected, n_pairs, random_state : int
    one_sided : bool
        Choose large scores; else those far from 0.

    Returns
    -------
    frequency, mean : ndarray, shape (V,)
        Share of the halves that chose each feature, and its mean score.
    """
    counts, total, n_scores = 0.0, 0.0, 0
    for pair in range(n_pairs):
        for rows in halves(*groups, random_state, pair):
            found = score(rows)
            size = np.where(np.isnan(found), -np.inf, found if one_sided else np.abs(found))
            top = np.argpartition(-size, min(n_selected, size.size) - 1)[:n_selected]
            counts = counts + np.bincount(top[size[top] > -np.inf], minlength=size.size)
            total, n_scores = total + np.nan_to_num(found), n_scores + 1
    return counts / n_scores, total / n_scores


def halves(group: np.ndarray, strata: np.ndarray, random_state: int, pair: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves with equally many groups; of an odd number one group is left out.

    Parameters
    ----------
    group : ndarray of int, shape (n,)
        0 … G − 1.
    strata : ndarray of int, shape (n,)
        Stratum of each row's group (that of its first row counts).
    random_state, pair : int

    Returns
    -------
    (ndarray of int, ndarray of int)
        Rising.

    Examples
    --------
    >>> one, other = halves(np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.zeros(8, int), 0, 0)
    >>> sorted([*one.tolist(), *other.tolist()]), len(one)
    ([0, 1, 2, 3, 4, 5, 6, 7], 4)
    """
    rng = stream(random_state, "stability_halves", pair)
    _, first = np.unique(group, return_index=True)
    own = strata[first]
    order = np.lexsort((rng.random(own.size), own))
    side = np.full(own.size, -1)
    even = own.size - own.size % 2
    side[order[:even]] = (np.arange(even) + rng.integers(2)) % 2
    return np.flatnonzero(side[group] == 0), np.flatnonzero(side[group] == 1)


@dataclass(frozen=True)
class StabilitySelector:
    """The features with the most stable RSA, as a choice for `cross_fit_rsa`.

    Parameters
    ----------
    n_features : int
    n_selected : int
        q, features chosen on each half.
    n_pairs : int, default=10
    comparison : str, default="pearson"
    random_state : int, default=0
    """

    n_features: int
    n_selected: int
    n_pairs: int = 10
    comparison: str = "pearson"
    random_state: int = 0

    def __call__(self, values: Any, D: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Columns, the most frequent first; of equally frequent ones those with the larger mean r."""
        group = np.unique(item, return_inverse=True)[1]
        labels = pair_classes(np.nan_to_num(D, nan=-1.0))
        strata = np.zeros(len(D), int) if labels is None else labels
        frequency, mean = half_choices(
            lambda rows: rsa_scores(take_rows(values, rows), D[np.ix_(rows, rows)], self.comparison),
            (group, strata),
            self.n_selected,
            self.n_pairs,
            self.random_state,
        )
        return np.lexsort((-mean, -frequency))[: self.n_features]


def _check_score(score: Any, comparison: Any) -> None:
    if not callable(score) and (not isinstance(score, str) or score != "rsa"):
        raise InvalidInput(f"stability selection: score is {shown(score)}; it must be 'rsa' or a function of X and y.")
    # The name of the comparison is checked before the data are read.
    feature_scores(np.zeros((3, 0)), np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]), comparison)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InvalidInput(f"stability selection: {name} must be a number, found {shown(value)}.")


def _numbers(found: Any, count: int) -> np.ndarray:
    """What a score function returned, if there is a number for every feature."""
    try:
        numbers = np.asarray(found, float)
    except (TypeError, ValueError):
        raise InvalidInput(f"stability selection: the score must return numbers, found {shown(found)}.") from None
    if numbers.shape != (count,):
        raise InvalidInput(
            f"stability selection: the score must return one number for each of the {count} features it is given, "
            f"found shape {numbers.shape}."
        )
    return numbers


def _quota(n_selected: Any, max_false: Any, rule: tuple[float, int, Assumption], n_candidates: int) -> int:
    """q, checked or from the number of false selections."""
    if n_selected is None:
        _check_number("max_false", max_false)
        if not max_false > 0:
            raise InvalidInput(f"stability selection: max_false must be above 0, found {max_false!r}.")
        found = int(np.sqrt(max_false / false_selections(1, max(n_candidates, 2), *rule)))  # it grows with q²
        if found < 1:
            raise InvalidInput(
                f"stability selection: with {n_candidates} features no choice keeps fewer than {max_false:g} false "
                "ones in expectation; allow more or raise the threshold."
            )
        n_selected = min(found, max(n_candidates, 1))
    check_whole("stability selection", "n_selected", n_selected, 1)
    if n_candidates <= n_selected:
        raise InvalidInput(
            f"stability selection: {n_candidates} features vary, too few to choose {n_selected} of them."
        )
    return int(n_selected)


def _groups(design: Design, obs: pd.DataFrame, rows: ModelRows) -> tuple[np.ndarray, np.ndarray]:
    """Group of items that stay together, for every row, and its stratum: the conditions of its items."""
    texts = text_keys(obs)
    of_trial = linked(texts if design.item is None else item_keys(obs, design.item), texts)
    of_item = of_trial[np.unique(design.item_labels(obs), return_index=True)[1]]
    group = np.unique(of_item[rows.item], return_inverse=True)[1]
    if group.max(initial=0) < 3:
        raise InvalidInput(
            f"stability selection: the items make {group.max(initial=-1) + 1} groups that share no text; at least 4 "
            "are needed."
        )
    cells = rows.table.cell_codes[rows.exchange.rows]
    sets = [tuple(np.unique(cells[group == number])) for number in range(group.max() + 1)]
    codes = {cells: code for code, cells in enumerate(sorted(set(sets)))}
    return group, np.array([codes[cells] for cells in sets])[group]


def _labels(design: Design, rows: ModelRows, target: str | None) -> tuple[np.ndarray, str]:
    """Whether each row is of the target, and its name."""
    cells = rows.table.cells
    level = target or getattr(design, "target", None) or (cells[0] if len(cells) == 2 else None)
    if level not in cells:
        raise InvalidInput(
            f"stability selection: target is {target!r}; a score of labels needs one of the conditions {listed(cells)}."
        )
    return rows.table.cell_codes[rows.exchange.rows] == cells.index(level), level
