"""Cross-fitting: every item is scored by features that were chosen without it.

The items are divided into K folds that share no item and no text. For each fold the `n_features` with the largest
contrast ``|t_k·y|/ν_k`` on the other folds are chosen (the ranking of t; `neurollm.stats.linear`), and their effect
is measured on the fold: the contrast of the region's score ``mean_j sign_j·y_j/s_j`` (`neurollm.roi.testing`).

Test. Each fold's effect has mean zero under the null hypothesis, but the folds' effects are not independent: the
items scored in one fold choose the features of the others. (With a single feature and two folds, both held-out effects
have the same sign, always.) A t or sign-flip test of the held-out scores as they stand is therefore too liberal: on
noise (20 items, 2 or 5 folds, 1 to 200 features) it rejects in 6 to 18 % of data sets at the 5 % level. Here the *whole
procedure*, selection included, is repeated under every shuffling; whole items are shuffled inside their fold, which
leaves the folds what they are. This is exact under the null hypothesis that the contrast is exchangeable in all
features at once (with covariates as exact as Freedman & Lane).

Intervals. A feature chosen in all folds was, in effect, chosen on all data: the mean of its held-out effects is
biased again. In a single fold the interval is honest. Let m = ⌈K/2⌉; a value is excluded if at least m folds
exclude it with level α·m/K, where a fold that did not choose the feature excludes nothing. By Markov's inequality
the expected number of features whose interval misses the truth is at most α times `n_features` (the argument of
Meinshausen, Meier & Bühlmann 2009 for p values of many splits; no independence is used).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from neurollm.designs import Contrast, ContrastPlan, Design, ItemTable
from neurollm.designs.base import counted
from neurollm.errors import InvalidInput
from neurollm.glm import FeatureGLM
from neurollm.roi.splitting import folds, in_order
from neurollm.roi.testing import spread_of
from neurollm.rsa.rows import read_trials
from neurollm.stats.arrays import combine_rows, dense
from neurollm.stats.linear import linear_fit
from neurollm.stats.shufflings import Draws, whole_item

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
_ELEMENTS = 1 << 23  # shufflings × features at a time
_MOST = 256  # shufflings at a time
_FLAT = 1e-6  # share of a feature's norm below which it is constant in the other folds


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Held-out effects of features chosen on other items.

    Attributes
    ----------
    contrast : Contrast
    selected : tuple of tuple of int or str
        Ids chosen for each fold (on the others), strongest first.
    fold : ndarray of int, shape (n_trials,)
        Fold in which each trial was held out.
    effect : float
        Mean over items of the held-out effect of the region, in mean standard deviations of its features and in the
        direction in which they were chosen: positive if the selection generalises. Unbiased.
    effect_low, effect_high : float
        95 % interval: the null distribution of `effect` shifted to it, so that dependence between folds counts.
    fold_effect : ndarray, shape (K,)
    in_sample : float
        The same for the items that chose the features: what double dipping would have reported.
    p : float
        Of `effect` > 0, from shuffling the whole procedure.
    feature : ndarray
        All features chosen in any fold, the most frequent first.
    frequency : ndarray
        Share of the folds for which each was chosen (stability).
    feature_effect, feature_low, feature_high : ndarray
        The contrast in units of (transformed) activation on the folds that did not choose it (see the module for what
        the 95 % interval promises, and why the effect of a stable feature is still too large). Infinite without
        an interval, which needs half of the folds.
    n_items, n_perm : int
    exhaustive : bool
    random_state : int
    alternative : str
    sentence : str
        What was exchanged.
    """

    contrast: Contrast
    selected: tuple[tuple[int | str, ...], ...]
    fold: np.ndarray
    effect: float
    effect_low: float
    effect_high: float
    fold_effect: np.ndarray
    in_sample: float
    p: float
    feature: np.ndarray
    frequency: np.ndarray
    feature_effect: np.ndarray
    feature_low: np.ndarray
    feature_high: np.ndarray
    n_items: int
    n_perm: int
    exhaustive: bool
    random_state: int
    alternative: str
    sentence: str

    def to_frame(self) -> pd.DataFrame:
        """One row per feature that was chosen in any fold."""
        import pandas as pd

        names = ("feature", "frequency", "feature_effect", "feature_low", "feature_high")
        return pd.DataFrame({name.removeprefix("feature_"): getattr(self, name) for name in names})

    def verdict(self) -> str:
        """The result in one sentence."""
        return (
            f"{self.contrast.name}: {len(self.selected[0])} features chosen in each of {len(self.selected)} folds have "
            f"a held-out effect of {self.effect:.2f} SD [{self.effect_low:.2f}, {self.effect_high:.2f}] (in sample "
            f"{self.in_sample:.2f}), p = {self.p:.3g} ({self.n_perm:,} shufflings of the whole procedure, "
            f"{self.n_items} items)."
        )


def cross_fit(
    design: Design,
    X: Any,
    obs: pd.DataFrame | None,
    contrast: Any,
    *,
    n_features: int,
    n_splits: int = 5,
    features: Any = None,
    alternative: str = "two-sided",
    scale: str = "raw",
    n_perm: int = 1000,
    random_state: int = 0,
) -> CrossFit:
    """Choose features on some items and measure them on others, in turns.

    Parameters
    ----------
    design : Design
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
        Trial table with a column ``text``; None with an AnnData.
    contrast : str, mapping, sequence or Contrast
        With one degree of freedom.
    n_features : int
        Features chosen in each fold.
    n_splits : int, default=5
        Folds. Fewer are better for the intervals of single features, more for the choice.
    features : sequence, optional
        Feature ids; default 0 … V−1.
    alternative : {"two-sided", "greater", "less"}
        Direction in which features are chosen.
    scale : {"raw", "log1p", "binary"}
        As in `FeatureGLM`.
    n_perm : int, default=1000
    random_state : int, default=0

    Returns
    -------
    CrossFit

    Raises
    ------
    InvalidInput
        The contrast has several degrees of freedom, or folds are too small for it.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"outcome": ["won", "lost"] * 30, "item": np.repeat(np.arange(30), 2)})
    >>> obs["text"] = obs["outcome"] + obs["item"].astype(str)
    >>> X = np.random.default_rng(0).normal(size=(60, 100)) + 2 * np.outer(obs["outcome"] == "won", np.arange(100) < 3)
    >>> found = cross_fit(CategoricalDesign("outcome"), X, obs, "won - lost", n_features=3, n_perm=199)
    >>> sorted(found.feature[found.frequency == 1].tolist()), found.p
    ([0, 1, 2], 0.005)
    """
    X, obs, features = read_trials(X, obs, features, "cross_fit")
    X, obs, order = in_order(X, obs)
    glm = FeatureGLM(design, n_perm=n_perm, alternative=alternative, random_state=random_state, scale=scale)
    _check(glm, n_features, n_splits)
    glm.fit(X, obs, features=features)
    contrast = design.contrast(contrast, glm.table_.obs)
    if contrast.rank > 1:
        raise InvalidInput(f"cross_fit: contrast '{contrast.name}' is an F contrast; give one with a direction.")
    fold = folds(obs, design.item, n_splits, random_state, design.cells(obs)[1])
    work = _Work.of(glm, contrast, _fold_of_items(design.item_labels(obs), fold))
    if work.valid.sum() < n_features:
        raise InvalidInput(f"cross_fit: {work.valid.sum()} features vary, fewer than n_features = {n_features}.")
    draws = work.shuffling.draw(n_perm, random_state)
    chosen, effects, in_sample = work.run(np.array([-1]), draws, (n_features, alternative))
    weights = np.array([part.share for part in work.parts])
    null = np.concatenate(
        [work.run(which, draws, (n_features, alternative))[1] @ weights for which in work.batches(len(draws))]
    )
    effect = float(effects[0] @ weights)
    low, high = effect - np.quantile(null, [1 - ALPHA / 2, ALPHA / 2])
    reached = int((null >= effect - 1e-9 * abs(effect)).sum())
    extra = 0 if draws.exhaustive else 1
    return CrossFit(
        contrast=contrast,
        selected=tuple(tuple(features[fold_chosen].tolist()) for fold_chosen in chosen[0]),
        fold=fold[np.argsort(order)],
        effect=effect,
        effect_low=float(low),
        effect_high=float(high),
        fold_effect=effects[0],
        in_sample=float(in_sample[0] @ weights),
        p=(reached + extra) / (len(draws) + extra),
        **_by_feature(work, chosen[0], features),
        n_items=work.plan.exchangeability.n_units,
        n_perm=len(draws),
        exhaustive=draws.exhaustive,
        random_state=int(random_state),
        alternative=alternative,
        sentence=work.sentence,
    )


def _check(glm: FeatureGLM, n_features: Any, n_splits: Any) -> None:
    for name, value, least in (("n_features", n_features, 1), ("n_splits", n_splits, 2), ("n_perm", glm.n_perm, 19)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InvalidInput(f"cross_fit: {name} must be a whole number of at least {least}, found {value!r}.")
    if glm.scale == "rank":
        raise InvalidInput("cross_fit: scale 'rank' would rank across folds; use raw, log1p or binary.")


def _fold_of_items(labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Fold of each item of the table (items sorted by label)."""
    return fold[np.unique(labels, return_index=True)[1]]


@dataclass(frozen=True)
class _Part:
    """One fold: the contrast on the other folds and on itself, as weights of the rows of the full table."""

    train: np.ndarray
    basis: np.ndarray  # of what is held constant there
    norm: np.ndarray  # of every feature in the other folds; infinite where it is constant
    test: np.ndarray
    own: np.ndarray  # its rows
    own_basis: np.ndarray
    se: np.ndarray  # infinite where a feature does not vary in the fold
    df: int
    share: float


@dataclass(frozen=True)
class _Work:
    """The tested rows of all features, and what each fold does with them."""

    plan: ContrastPlan
    data: np.ndarray
    valid: np.ndarray
    spread: np.ndarray
    parts: tuple[_Part, ...]
    shuffling: Any

    @classmethod
    def of(cls, glm: FeatureGLM, contrast: Contrast, fold: np.ndarray) -> _Work:
        table, design = glm.table_, glm.design_
        plan = design.plan(table, contrast)
        data = dense(combine_rows(plan.reduce, table.values))
        valid = np.nan_to_num(linear_fit(data, plan.hypothesis).norm) > 0
        fold_of_rows = fold[table.item_codes[plan.reduce.indices[plan.reduce.indptr[:-1]]]]
        data = np.where(valid, data, 0.0)
        parts = tuple(
            _part(design, contrast, table, (data, fold_of_rows, fold[table.item_codes], number))
            for number in range(fold.max() + 1)
        )
        # Means of blocks, so that a large table is not made dense a second time.
        spread = np.concatenate(
            [spread_of(dense(table.values[:, i : i + 4096])) for i in range(0, data.shape[1], 4096)]
        )
        return cls(plan, data, valid, spread, parts, _inside_folds(plan, fold_of_rows))

    @property
    def sentence(self) -> str:
        """What is exchanged, in words."""
        told = self.plan.exchangeability
        inside = f" Items stay in their fold: {counted(self.shuffling.n_possible)} shufflings."
        return told.sentence + (inside if told.kind == "whole_item" else "")

    def batches(self, count: int) -> list[np.ndarray]:
        """Numbers of shufflings that are computed together."""
        size = min(max(1, _ELEMENTS // self.data.shape[1]), _MOST)
        return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, which: np.ndarray, draws: Draws, rule: tuple[int, str]) -> tuple[np.ndarray, ...]:
        """Choose and measure under some shufflings (−1: as observed).

        Returns
        -------
        chosen : ndarray of int, shape (P, K, n_features)
        held_out, in_sample : ndarray, shape (P, K)
        """
        found = [self._fold(part, which, draws, rule) for part in self.parts]
        return tuple(np.stack(arrays, axis=1) for arrays in zip(*found, strict=True))

    def _fold(self, part: _Part, which: np.ndarray, draws: Draws, rule: tuple[int, str]) -> tuple[np.ndarray, ...]:
        n_features, alternative = rule
        train = _moved(part.train, which, draws, part.basis) @ self.data
        r = np.where(self.valid, train / part.norm, np.nan)
        size = {"two-sided": np.abs(r), "greater": r, "less": -r}[alternative]
        size = np.where(np.isnan(size), -np.inf, size)
        top = np.argpartition(-size, n_features - 1, axis=1)[:, :n_features]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(size, top, axis=1), axis=1, kind="stable"), axis=1)
        signs = np.where(np.take_along_axis(r, top, axis=1) < 0, -1.0, 1.0)
        if alternative != "two-sided":
            signs = np.full_like(signs, 1.0 if alternative == "greater" else -1.0)
        weights = signs / self.spread[top] / n_features
        moved = _moved(part.test, which, draws, part.own_basis)[:, part.own]
        held_out = np.einsum("pi,ipj,pj->p", moved, self.data[part.own[:, None, None], top], weights, optimize=True)
        in_sample = (np.take_along_axis(train, top, axis=1) * weights).sum(axis=1)
        return top, held_out, in_sample


def _moved(column: np.ndarray, which: np.ndarray, draws: Draws, basis: np.ndarray) -> np.ndarray:
    """Weights of the rows under shufflings (no row leaves its fold), without what is held constant there."""
    moved = np.tile(column, (len(which), 1)) if which[0] < 0 else draws.rows(column, which)
    return moved - (moved @ basis) @ basis.T if basis.shape[1] else moved


def _part(design: Design, contrast: Contrast, table: ItemTable, place: tuple) -> _Part:
    data, fold_of_rows, fold_of_table, number = place
    halves = []
    for which in (lambda folds: folds != number, lambda folds: folds == number):
        rows = np.flatnonzero(which(fold_of_rows))
        try:
            plan = design.plan(_subtable(table, which(fold_of_table)), contrast)
        except InvalidInput as error:
            raise InvalidInput(f"cross_fit: one of the folds is too small ({error}) Use fewer folds.") from None
        if plan.hypothesis.n_rows != rows.size:
            raise InvalidInput(
                f"cross_fit: the items of a fold do not suffice to test '{contrast.name}' in the same way as all "
                "items; use fewer folds."
            )
        column, basis = np.zeros(len(data)), np.zeros((len(data), plan.hypothesis.nuisance.shape[1]))
        column[rows] = plan.scale * plan.hypothesis.tested[:, 0]
        basis[rows] = plan.hypothesis.nuisance
        halves.append((column, rows, basis, plan, linear_fit(data[rows], plan.hypothesis)))
    (train, rows, basis, _, fit), (test, own, own_basis, plan, own_fit) = halves
    whole = np.sqrt(((data[rows] - data[rows].mean(axis=0)) ** 2).sum(axis=0))
    norm = np.where(fit.norm > _FLAT * whole, fit.norm, np.inf)
    with np.errstate(invalid="ignore"):
        se = plan.scale * np.sqrt(own_fit.residual / own_fit.df)
    se = np.where(own_fit.norm > 0, se, np.inf)
    return _Part(train, basis, norm, test, own, own_basis, se, own_fit.df, len(own) / len(data))


def _subtable(table: ItemTable, which: np.ndarray) -> ItemTable:
    """The rows of some items, without values."""
    codes, item_codes = np.unique(table.item_codes[which], return_inverse=True)
    return replace(
        table,
        values=None,
        shares=None,
        items=tuple(table.items[code] for code in codes),
        item_codes=item_codes,
        cell_codes=table.cell_codes[which],
        n_trials=table.n_trials[which],
        obs=table.obs[which].reset_index(drop=True),
    )


def _inside_folds(plan: ContrastPlan, fold_of_rows: np.ndarray) -> Any:
    """The plan's shuffling, with items that stay in their fold."""
    shuffling = plan.hypothesis.shuffling
    if shuffling.kind != "whole_item":
        return shuffling
    own = fold_of_rows[:: shuffling.rows_per_item]
    blocks = np.unique(np.stack([shuffling.blocks, own]), axis=1, return_inverse=True)[1].ravel()
    return whole_item(shuffling.codes, blocks, shuffling.rows_per_item)


def _by_feature(work: _Work, chosen: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
    """Frequency, held-out effect and interval of every feature chosen in any fold."""
    n_splits = len(work.parts)
    least = -(-n_splits // 2)
    level = 1 - ALPHA * least / n_splits / 2
    names = np.unique(chosen)
    effect, low, high = np.full((3, n_splits, names.size), np.nan)
    low[:], high[:] = -np.inf, np.inf
    shares = np.zeros((n_splits, names.size))
    for number, (part, own) in enumerate(zip(work.parts, chosen, strict=True)):
        at = np.isin(names, own)
        estimate = part.test[part.own] @ work.data[np.ix_(part.own, names[at])]
        half = special.stdtrit(part.df, level) * part.se[names[at]]
        effect[number, at], shares[number, at] = estimate, part.share
        low[number, at], high[number, at] = estimate - half, estimate + half
    # At least `least` folds exclude every value below the `least`-th largest lower limit.
    limits = np.sort(np.stack([-np.sort(-low, axis=0)[least - 1], np.sort(high, axis=0)[least - 1]]), axis=0)
    frequency = (shares > 0).mean(axis=0)
    mean = np.nansum(effect * shares, axis=0) / shares.sum(axis=0)
    order = np.lexsort((names, -np.abs(mean), -frequency))
    found = {"feature": features[names], "frequency": frequency, "feature_effect": mean}
    found |= {"feature_low": limits[0], "feature_high": limits[1]}
    return {name: values[order] for name, values in found.items()}
