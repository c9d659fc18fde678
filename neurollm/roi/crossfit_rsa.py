"""Cross-fitting of a region's RSA: chosen on some items, compared with the model on others.

A region chosen for its fit to a model fits it on the items that chose it, whatever is there: with two conditions of 20
items, the best 20 of 1,000 features of noise reach r = 0.5. Here the items are divided into K folds that share no item
and no text; for each fold features are chosen on the others, and the region's RDM over the fold's rows alone (pairs of
rows of different folds are dropped) is compared with the model. Scales of features come from the items that chose them.

The held-out r of the folds are not independent (`neurollm.roi.crossfit`), so the whole procedure, selection included,
is repeated under every shuffling of the model. Whole items are shuffled inside their fold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Design
from neurollm.designs.base import counted
from neurollm.errors import InvalidInput
from neurollm.roi.splitting import folds, in_order, moved
from neurollm.rsa.exchange import Exchange
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import ModelRows, check_whole, read_trials
from neurollm.stats.arrays import dense, take_rows
from neurollm.stats.maxima import share, tied_down
from neurollm.stats.rdms.greedy import enough, forward, greedy_selection
from neurollm.stats.rdms.model import pair_model
from neurollm.stats.rdms.space import Comparison, ModelForm, RDMSpace, check_comparison
from neurollm.stats.shufflings import Shuffling, whole_item
from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd

Select = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
_ELEMENTS, _AT_ONCE = 1 << 22, 64  # shufflings × features, and most shufflings, at a time


@dataclass(frozen=True, eq=False)
class CrossFitRSA:
    """Held-out RSA of regions chosen on other items.

    Attributes
    ----------
    model, comparison : str
    selected : tuple of tuple of int or str
        Ids chosen for each fold (on the others).
    fold : ndarray of int, shape (n_trials,)
        Fold in which each trial was held out.
    r : float
        Mean over rows of the held-out r; a fold in which the region does not vary counts as 0.
    fold_r : ndarray, shape (K,)
        NaN where the region does not vary.
    in_sample : float
        The same on the items that chose the features: what double dipping would have reported.
    null_mean : float
        Mean of `r` over the shufflings.
    p : float
        Of `r` > 0, from shuffling the whole procedure.
    feature : ndarray
        All features chosen in any fold, the most frequent first.
    frequency : ndarray
        Share of the folds for which each was chosen.
    n_items, n_perm : int
    exhaustive : bool
    random_state : int
    sentence : str
        What was exchanged.
    """

    model: str
    comparison: str
    selected: tuple[tuple[int | str, ...], ...]
    fold: np.ndarray
    r: float
    fold_r: np.ndarray
    in_sample: float
    null_mean: float
    p: float
    feature: np.ndarray
    frequency: np.ndarray
    n_items: int
    n_perm: int
    exhaustive: bool
    random_state: int
    sentence: str

    def to_frame(self) -> pd.DataFrame:
        """One row per feature that was chosen in any fold."""
        import pandas as pd

        return pd.DataFrame({"feature": self.feature, "frequency": self.frequency})

    def verdict(self) -> str:
        """The result in one sentence."""
        return (
            f"{self.model}: regions of {len(self.selected[0])} features chosen in each of {len(self.selected)} folds "
            f"have a held-out r of {self.r:.3f} ({self.comparison}; {self.null_mean:.3f} by chance, "
            f"{self.in_sample:.3f} on the items that chose them), p = {self.p:.3g} ({self.n_perm:,} shufflings of the "
            f"whole procedure, {self.n_items} items)."
        )


def cross_fit_rsa(
    design: Design,
    X: Any,
    obs: pd.DataFrame | None = None,
    model: str | ModelRDM = "categorical",
    *,
    n_features: int,
    select: str | Select = "greedy",
    n_splits: int = 5,
    comparison: Comparison = "pearson",
    min_active: int = 5,
    scale: str = "raw",
    features: Any = None,
    n_perm: int = 200,
    random_state: int = 0,
) -> CrossFitRSA:
    """Choose a region on some items and compare its RDM with the model on others, in turns.

    Parameters
    ----------
    design : Design
    X : array or AnnData, shape (n_trials, V)
    obs : DataFrame
        Trial table with a column ``text``; None with an AnnData.
    model : str or ModelRDM, default="categorical"
        See `neurollm.rsa.models`.
    n_features : int
        Features of each region.
    select : {"greedy", "rsa"} or callable
        Greedy forward selection; the features with the largest r; or ``select(values, D, item)``, which gets the rows
        of the other folds (n, V), their model RDM (n, n) and the item of each row, and returns `n_features` columns
        (such as `StabilitySelector`).
    n_splits : int, default=5
    comparison : {"pearson", "whitened"}
    min_active : int, default=5
        Features active in fewer of the rows that choose are left out.
    scale : {"raw", "log1p", "binary"}
        Transform of every trial before averaging.
    features : sequence, optional
        Feature ids; default 0 … V−1.
    n_perm : int, default=200
        Shufflings; each repeats the selection in every fold.
    random_state : int, default=0

    Returns
    -------
    CrossFitRSA

    Raises
    ------
    InvalidInput
        An option or the model is wrong, folds are too small, or too few features vary.
    DataMismatch
        Rows or ids do not go with the activations.

    Examples
    --------
    >>> import pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"kind": ["a", "b"] * 20, "item": np.repeat(np.arange(20), 2)})
    >>> obs["text"] = obs["kind"] + obs["item"].astype(str)
    >>> X = np.random.default_rng(0).normal(size=(40, 300))  # nothing there
    >>> found = cross_fit_rsa(CategoricalDesign("kind"), X, obs, n_features=5, n_perm=99)
    >>> found.in_sample > 0.2, found.r < 0.05, found.p > 0.05
    (True, True, True)
    """
    X, obs, features = read_trials(X, obs, features, "cross_fit_rsa")
    check_comparison(comparison)
    if not callable(select) and select not in ("greedy", "rsa"):
        raise InvalidInput(f"cross_fit_rsa: select is {shown(select)}; it must be 'greedy', 'rsa' or a function.")
    numbers = {"n_features": (n_features, 1), "n_splits": (n_splits, 2), "n_perm": (n_perm, 19)}
    numbers |= {"min_active": (min_active, 0), "random_state": (random_state, 0)}
    for name, (value, least) in numbers.items():
        check_whole("cross_fit_rsa", name, value, least)
    X, obs, origin = in_order(X, obs)
    model = moved(model, origin)
    fold = folds(obs, design.item, n_splits, random_state, design.cells(obs)[1])
    rows = ModelRows.of(design, model, X, obs, scale)
    fold_of_rows = fold[np.unique(design.item_labels(obs), return_index=True)[1]][rows.item]
    how = (select, int(n_features), comparison, int(min_active))
    parts = [_Part.of(rows, fold_of_rows, number, how) for number in range(n_splits)]
    shuffling = _inside_folds(rows.exchange, fold_of_rows)
    draws = shuffling.draw(n_perm, random_state)
    weights = np.array([len(part.test) for part in parts]) / len(fold_of_rows)
    own = np.arange(len(fold_of_rows))[None]
    chosen = [part.choose(own)[0] for part in parts]
    fold_r = np.array([part.held_out(own, one[None])[0] for part, one in zip(parts, chosen, strict=True)])
    inside = np.array([part.in_sample(one) for part, one in zip(parts, chosen, strict=True)])
    step = int(np.clip(_ELEMENTS // max(X.shape[1], 1), 1, _AT_ONCE))
    batches = [draws.index[start : start + step] for start in range(0, len(draws), step)]
    null = np.concatenate([_mean([p.held_out(i, p.choose(i)) for p in parts], weights) for i in batches])
    r = float(_mean(fold_r, weights))
    names, counts = np.unique(np.concatenate(chosen), return_counts=True)
    order = np.lexsort((names, -counts))
    return CrossFitRSA(
        model=rows.model.name,
        comparison=comparison,
        selected=tuple(tuple(features[one].tolist()) for one in chosen),
        fold=fold[np.argsort(origin)],
        r=r,
        fold_r=fold_r,
        in_sample=float(inside @ weights),
        null_mean=float(null.mean()),
        p=float(share(np.count_nonzero(null >= tied_down(np.array(r))), len(draws), draws.exhaustive)),
        feature=features[names[order]],
        frequency=counts[order] / n_splits,
        n_items=rows.exchange.n_items,
        n_perm=len(draws),
        exhaustive=draws.exhaustive,
        random_state=int(random_state),
        sentence=f"{rows.exchange.sentence} Items stay in their fold: {counted(shuffling.n_possible)} shufflings.",
    )


def region_scores(x: np.ndarray, D: np.ndarray, comparison: Comparison) -> np.ndarray:
    """r of regions with models, from explicit RDMs.

    Parameters
    ----------
    x : ndarray, shape (P, n, k)
    D : ndarray, shape (P, n, n)
        NaN leaves a pair out ("pearson" only).
    comparison : {"pearson", "whitened"}

    Returns
    -------
    ndarray, shape (P,)
        NaN where a region or a model does not vary.

    Examples
    --------
    >>> x = np.array([[[0.0], [0.0], [1.0], [1.0]]])
    >>> D = np.abs(x - x.transpose(0, 2, 1))
    >>> region_scores(x, D, "pearson").round(9).tolist(), region_scores(x, D, "whitened").round(9).tolist()
    ([1.0], [1.0])
    """
    check_comparison(comparison)
    x = x - x.mean(axis=1, keepdims=True)
    gram = x @ x.transpose(0, 2, 1)
    if comparison == "whitened":
        model = -(D - D.mean(axis=1, keepdims=True)) / 2
        model = model - model.mean(axis=2, keepdims=True)
        one, other = gram.reshape(len(x), -1), model.reshape(len(x), -1)
    else:
        first, second = np.triu_indices(x.shape[1], 1)
        size = np.einsum("pii->pi", gram)
        other = D[:, first, second]
        kept = ~np.isnan(other)
        one = np.where(kept, size[:, first] + size[:, second] - 2 * gram[:, first, second], 0.0)
        count = np.maximum(kept.sum(axis=1, keepdims=True), 1)
        other = np.where(kept, other, 0.0)
        one = np.where(kept, one - one.sum(axis=1, keepdims=True) / count, 0.0)
        other = np.where(kept, other - other.sum(axis=1, keepdims=True) / count, 0.0)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    varies = norms > 1e-12 * np.maximum(np.abs(gram).max(axis=(1, 2)), 1e-300)
    return np.where(varies, np.einsum("pm,pm->p", one, other) / np.where(varies, norms, 1), np.nan)


@dataclass(frozen=True)
class _Part:
    """One fold: what chooses and what is measured."""

    train: np.ndarray
    test: np.ndarray
    chooser: Callable[[np.ndarray], np.ndarray]
    columns: np.ndarray  # of X that may be chosen
    chose: np.ndarray  # their values in the other folds, in units of their deviation there
    held: np.ndarray  # and in the fold
    matrix: np.ndarray
    comparison: Comparison

    @classmethod
    def of(cls, rows: ModelRows, fold_of_rows: np.ndarray, number: int, how: tuple) -> _Part:
        select, n_features, comparison, min_active = how
        train, test = np.flatnonzero(fold_of_rows != number), np.flatnonzero(fold_of_rows == number)
        for own in (train, test):
            pairs = rows.matrix[np.ix_(own, own)][np.triu_indices(own.size, 1)]
            if own.size < 3 or not np.nanmax(pairs, initial=-np.inf) > np.nanmin(pairs, initial=np.inf):
                raise InvalidInput(
                    f"cross_fit_rsa: model '{rows.model.name}' says the same of all pairs inside a part of {own.size} "
                    "rows; use fewer folds."
                )
        values = take_rows(rows.values, train)
        active = np.diff(values.tocsc().indptr) if hasattr(values, "indptr") else np.count_nonzero(values, axis=0)
        space = RDMSpace(values, comparison)
        columns = np.flatnonzero(space.valid & (active >= min_active))
        spread = space.lengths[columns]
        values = values[:, columns]
        chooser = _chooser(
            values, rows.matrix[np.ix_(train, train)], rows.item[train], (select, n_features, comparison)
        )
        chose, held = (dense(take_rows(rows.values, own)[:, columns]) / spread for own in (train, test))
        return cls(train, test, chooser, columns, chose, held, rows.matrix, comparison)

    def choose(self, index: np.ndarray) -> np.ndarray:
        """Columns of X chosen under arrangements of the model, shape (P, k)."""
        return self.columns[self.chooser(np.searchsorted(self.train, index[:, self.train]))]

    def held_out(self, index: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """r of the chosen regions on the fold, shape (P,)."""
        moved = index[:, self.test]
        return self._scores(self.held, self.matrix[moved[:, :, None], moved[:, None, :]], chosen)

    def in_sample(self, chosen: np.ndarray) -> float:
        """r of a region on the items that chose it."""
        return float(self._scores(self.chose, self.matrix[np.ix_(self.train, self.train)][None], chosen[None])[0])

    def _scores(self, values: np.ndarray, D: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.columns, chosen)
        return region_scores(np.moveaxis(values[:, places], 0, 1), D, self.comparison)


def _chooser(values: Any, D: np.ndarray, item: np.ndarray, how: tuple) -> Callable[[np.ndarray], np.ndarray]:
    """A function from arrangements (P, n) to chosen columns (P, k)."""
    select, n_features, comparison = how
    model = pair_model(D)
    if callable(select) or not model.is_full:
        if not callable(select):
            select = _greedy_of(n_features, comparison) if select == "greedy" else _largest_of(n_features, comparison)

        def one_by_one(index: np.ndarray) -> np.ndarray:
            found = [select(values, D[np.ix_(one, one)], item) for one in index]
            return np.array([_found(columns, n_features, values.shape[1]) for columns in found])

        return one_by_one
    space, form = RDMSpace(values, comparison), ModelForm.of(model, comparison)
    enough(space, n_features)
    if select == "greedy":
        return lambda index: forward(space, space.numerators(form, index) / form.norm, n_features)[0]
    scores = np.sqrt(np.where(space.valid, space.norms, np.nan))
    return lambda index: _top(space.numerators(form, index) / scores, n_features)


def _greedy_of(n_features: int, comparison: Comparison) -> Select:
    return lambda values, D, item: greedy_selection(values, D, n_features, comparison=comparison).feature


def _largest_of(n_features: int, comparison: Comparison) -> Select:
    from neurollm.stats.rdms.scores import rsa_scores

    return lambda values, D, item: _top(rsa_scores(values, D, comparison)[None], n_features)[0]


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """The largest of every row, shape (P, count)."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable"), axis=1)


def _found(columns: Any, n_features: int, count: int) -> np.ndarray:
    where = f"cross_fit_rsa: select must return {n_features} different columns"
    try:
        columns = np.asarray(columns)
    except ValueError:
        raise InvalidInput(f"{where}, found {shown(columns)}.") from None
    if columns.shape != (n_features,) or columns.dtype.kind not in "iu" or np.unique(columns).size < n_features:
        raise InvalidInput(f"{where}, found {columns.shape} {columns.dtype}.")
    if columns.min() < 0 or columns.max() >= count:
        outside = columns[(columns < 0) | (columns >= count)][0]
        raise InvalidInput(f"{where}, numbered 0 to {count - 1} as it was given them, found {outside}.")
    return columns


def _mean(fold_r: Any, weights: np.ndarray) -> np.ndarray:
    """Over folds; one in which the region does not vary tells nothing apart and counts as 0."""
    return weights @ np.nan_to_num(np.asarray(fold_r))


def _inside_folds(how: Exchange, fold_of_rows: np.ndarray) -> Shuffling:
    shuffling = how.shuffling
    if shuffling.kind != "whole_item":
        return shuffling
    own = fold_of_rows[:: shuffling.rows_per_item]
    blocks = np.unique(np.stack([shuffling.blocks, own]), axis=1, return_inverse=True)[1].ravel()
    return whole_item(shuffling.codes, blocks, shuffling.rows_per_item)
