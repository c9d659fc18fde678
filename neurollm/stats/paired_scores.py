"""AUROC of many methods on the same items, and of the differences between them.

Out-of-fold scores are given; AUROC compares trials of the same test fold only (scores of different folds come
from different classifiers): concordant pairs of all folds over pairs of all folds. It is a U statistic over items,

    A = Σ_ij K_ij / Σ_ij N_ij,

K_ij the concordant pairs (ties one half) and N_ij all pairs of the positive trials of item i and the negative trials
of item j in one fold. A bootstrap replicate resamples items (inside each concept, and among items that have the
same levels) and weights these sums by w_i w_j, within an item by w_i: two copies of an item are not compared with each
other, else pairs within items would count twice. All methods share the resampled items, so that
differences are paired. Repetitions (other folds or seeds on the same items) are averaged with the same w; concepts
are averaged with independent w.

The interval and p of a difference D use bootstrap variances over u units (items with both levels, and pairs of
items with one): V of D, and V₁, the mean over repetitions of the variance of D in a single one (equal to V without
repetitions),

    se² = (V + k/(k − 1) · V₁) · u/(u − 1) + 1/(u + 2)²,     D ± t(u − 1) se.

The second term, with k folds, is what resampling test items cannot see: the folds share training items, so that all
of them are right or wrong together about a method. It is the one of Nadeau & Bengio (2003, Machine Learning 52:239),
whose n_test/n_train is 1/(k − 1), and does not shrink with more repetitions; no unbiased estimate exists (Bengio &
Grandvalet 2004). The last term keeps two methods without any error on few items from having an interval of no width
(half an item in each direction, as in Agresti & Min 2005). No p is below 2^(1 − u), the smallest of a test of u signs.

Why not the obvious tests. Two equally good nearest-mean classifiers, each on features of its own, were trained in
five or ten folds, once or five times (AUROC .5 to .95; 10 to 50 units; 200 to 300 data sets each; α = .05). Swapping
the ranks of the two methods within items, which takes the classifiers for exchangeable, rejected in 6 to 19 % of the
data sets, the percentiles of the bootstrap in up to 19 %, the above in 0 to 5 % (one of 60 settings: 8 %). It is
cautious for methods that use the same features, and not cautious enough for the most unstable ones: with a single
feature chosen from 300, of which one is informative, it rejects in 4 to 16 %. With one fold (classifiers trained on
other items) the second term is absent, and the conclusion is about those classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream

_ELEMENTS = 1 << 22  # numbers in one block of the products


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """Differences between AUROCs on the same items; arrays of shape (C,) for C differences, else numbers.

    Attributes
    ----------
    difference : float or ndarray
    ci_low, ci_high : float or ndarray
        Interval of level 1 − α.
    p : float or ndarray
        Two-sided, of no difference.
    """

    difference: Any
    ci_low: Any
    ci_high: Any
    p: Any


@dataclass(frozen=True, eq=False)
class AucBootstrap:
    """AUROC of M methods on the same items; made by `auc_bootstrap`.

    Attributes
    ----------
    area : ndarray, shape (M,)
        Mean over repetitions and concepts; NaN where a method lacks a finite score.
    areas : ndarray, shape (n_concepts, M)
    covariance : ndarray, shape (n_concepts, M, M)
        Of the areas: V + k/(k − 1) · V₁ of the module's introduction.
    units : ndarray of int, shape (n_concepts,)
        Items with both levels, and pairs of items with one.
    """

    areas: np.ndarray
    covariance: np.ndarray
    units: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Mean over repetitions and concepts, shape (M,)."""
        return self.areas.mean(axis=0)

    def contrast(self, weights: Any, alpha: float = 0.05) -> PairedDifference:
        """Weighted sums of the methods' AUROCs, such as the mean of some methods minus the mean of others.

        Parameters
        ----------
        weights : array-like, shape (M,) or (C, M)
            Each row sums to 0; methods of weight 0 may be NaN.
        alpha : float, default=0.05

        Returns
        -------
        PairedDifference
            Numbers for one row of weights, else arrays of shape (C,).

        Raises
        ------
        InvalidInput
            The weights have another length or do not sum to 0.
        """
        from scipy.stats import t as student

        weights = np.asarray(weights, float)
        rows = np.atleast_2d(weights)
        if rows.ndim != 2 or rows.shape[1] != self.areas.shape[1]:
            raise InvalidInput(
                f"contrast: weights of shape {weights.shape} for {self.areas.shape[1]} methods; give one per method."
            )
        if not np.allclose(rows.sum(axis=1), 0, atol=1e-9):
            raise InvalidInput("contrast: the weights of a difference between methods must sum to 0.")
        estimate, se, df = self._estimate(rows)
        t = np.abs(estimate) / se
        p = np.clip(2 * student.sf(t, df), 2.0 ** (1 - self.units.sum()), 1)
        half = student.ppf(1 - alpha / 2, df) * se
        parts = (estimate, estimate - half, estimate + half, p)
        return PairedDifference(*(parts if weights.ndim == 2 else (float(part[0]) for part in parts)))

    def interval(self, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """Interval of each method's AUROC at level 1 − α, inside 0 … 1.

        Parameters
        ----------
        alpha : float, default=0.05

        Returns
        -------
        ci_low, ci_high : ndarray, shape (M,)
        """
        from scipy.stats import t as student

        estimate, se, df = self._estimate(np.eye(self.areas.shape[1]))
        half = student.ppf(1 - alpha / 2, df) * se
        return np.clip(estimate - half, 0, 1), np.clip(estimate + half, 0, 1)

    def p_chance(self) -> np.ndarray:
        """Two-sided p of each method's AUROC being one half, from the same standard error; shape (M,)."""
        from scipy.stats import t as student

        estimate, se, df = self._estimate(np.eye(self.areas.shape[1]))
        return np.clip(2 * student.sf(np.abs(estimate - 0.5) / se, df), 2.0 ** (1 - self.units.sum()), 1)

    def _estimate(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate, standard error and degrees of freedom of each row of weights."""
        scale = np.abs(weights).sum(axis=1) / 2  # 1 for two methods
        used = [np.flatnonzero(row) for row in weights]  # a method of weight 0 may be NaN
        variances = np.array(
            [
                [row[own] @ covariance[np.ix_(own, own)] @ row[own] for row, own in zip(weights, used, strict=True)]
                for covariance in self.covariance
            ]
        )
        units = self.units[:, None]
        variances = np.maximum(variances, 0) * units / (units - 1) + (scale / (units + 2)) ** 2
        df = variances.sum(axis=0) ** 2 / np.sum(variances**2 / (units - 1), axis=0)
        estimate = np.array([row[own] @ self.area[own] for row, own in zip(weights, used, strict=True)])
        return estimate, np.sqrt(variances.sum(axis=0)) / len(self.units), df


def auc_bootstrap(
    scores: Any,
    labels: Any,
    items: Any,
    folds: Any,
    *,
    concepts: Any = None,
    n_boot: int = 2000,
    random_state: int = 0,
) -> AucBootstrap:
    """AUROC of many methods and its bootstrap over items, the same items for all methods.

    Parameters
    ----------
    scores : array-like, shape (M, n) or (M, R, n)
        Out-of-fold scores of M methods for n trials, in R repetitions (other folds or seeds). Larger: positive.
    labels : array-like of bool, shape (n,)
    items : array-like, shape (n,)
    folds : array-like, shape (n,) or (R, n)
        The test fold of each trial; one fold if the classifier was trained on other items altogether.
    concepts : array-like, shape (n,), optional
        What is decoded in each trial, or another part of the data: AUROC is computed in each and averaged.
    n_boot : int, default=2000
    random_state : int, default=0

    Returns
    -------
    AucBootstrap

    Raises
    ------
    DataMismatch
        The arrays do not fit together.
    InvalidInput
        A concept has fewer than 2 units of items, no fold with both levels, or `n_boot` is below 100.

    Examples
    --------
    >>> scores = [[0.9, 0.1, 0.8, 0.3, 0.7, 0.2], [0.1, 0.2, 0.5, 0.3, 0.2, 0.6]]
    >>> found = auc_bootstrap(scores, [1, 0, 1, 0, 1, 0], items=[0, 0, 1, 1, 2, 2], folds=[0, 0, 0, 0, 0, 0])
    >>> found.area.round(2).tolist()
    [1.0, 0.28]
    """
    if n_boot < 100:
        raise InvalidInput(f"n_boot is {n_boot}; expected at least 100.")
    labels, items, concepts, scores, folds = _arrays(labels, items, concepts, scores, folds)
    found = []
    for index, concept in enumerate(np.unique(concepts)):
        here = concepts == concept
        codes = np.unique(items[here], return_inverse=True)[1]
        kinds = item_kinds(labels[here], codes)
        units = n_units(kinds)
        if units < 2:
            raise InvalidInput(
                f"concept {concept}: at least 2 items with both levels, or of each level, are needed; found {units}."
            )
        drawn = resampled_items(kinds, n_boot, stream(random_state, "auc_bootstrap", index))
        weights = np.vstack([np.ones(kinds.size), drawn])  # the observed items come first
        repetitions = [
            _areas(scores[:, r][:, here], labels[here], codes, folds[r, here], weights) for r in range(len(folds))
        ]
        found.append((np.mean(repetitions, axis=0)[:, 0], _covariance(repetitions, folds[:, here]), units))
    return AucBootstrap(*(np.array(part) for part in zip(*found, strict=True)))


def _covariance(repetitions: list[np.ndarray], folds: np.ndarray) -> np.ndarray:
    """Covariance (M, M) of the methods' areas: of their means over repetitions, and what training items share."""
    covariance = np.atleast_2d(np.cov(np.mean(repetitions, axis=0)[:, 1:]))
    n_folds = min(np.unique(row).size for row in folds)
    if n_folds == 1:
        return covariance
    single = np.mean([np.atleast_2d(np.cov(areas[:, 1:])) for areas in repetitions], axis=0)
    return covariance + n_folds / (n_folds - 1) * single


def paired_auc_difference(
    scores_a: Any,
    scores_b: Any,
    labels: Any,
    items: Any,
    folds: Any,
    n_boot: int = 2000,
    random_state: int = 0,
    *,
    concepts: Any = None,
) -> PairedDifference:
    """AUROC of method a minus that of method b on the same items, with interval and p.

    Parameters
    ----------
    scores_a, scores_b : array-like, shape (n,), (C, n) or (C, R, n)
        Out-of-fold scores of C pairs of methods for n trials, in R repetitions.
    labels, items, folds, n_boot, random_state, concepts
        As in `auc_bootstrap`.

    Returns
    -------
    PairedDifference
        Numbers for scores of shape (n,), else arrays of shape (C,).

    Raises
    ------
    DataMismatch, InvalidInput
        As in `auc_bootstrap`.

    Examples
    --------
    >>> a, b = [0.9, 0.1, 0.8, 0.3, 0.7, 0.2], [0.1, 0.2, 0.5, 0.3, 0.2, 0.6]
    >>> found = paired_auc_difference(a, b, [1, 0, 1, 0, 1, 0], items=[0, 0, 1, 1, 2, 2], folds=[0] * 6)
    >>> round(found.difference, 2)
    0.72
    """
    first, second = np.asarray(scores_a, float), np.asarray(scores_b, float)
    if first.shape != second.shape:
        raise DataMismatch(
            f"scores of shape {first.shape} and {second.shape} cannot be paired; both need the same trials."
        )
    single = first.ndim == 1
    if single:
        first, second = first[None], second[None]
    both = auc_bootstrap(
        np.concatenate([first, second]),
        labels,
        items,
        folds,
        concepts=concepts,
        n_boot=n_boot,
        random_state=random_state,
    )
    rows = np.hstack([np.eye(len(first)), -np.eye(len(first))])
    return both.contrast(rows[0] if single else rows)


def _arrays(labels: Any, items: Any, concepts: Any, scores: Any, folds: Any) -> tuple[np.ndarray, ...]:
    """All arguments as arrays that fit together; scores (M, R, n) and folds (R, n)."""
    labels, items = np.asarray(labels), np.asarray(items)
    concepts = np.zeros(labels.size, int) if concepts is None else np.asarray(concepts)
    scores, folds = np.asarray(scores, float), np.atleast_2d(np.asarray(folds))
    if scores.ndim == 2:
        scores = scores[:, None]
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise InvalidInput("labels: one True or False per trial is expected.")
    n_repetitions = scores.shape[1] if scores.ndim == 3 else 0
    for name, found, expected in (
        ("items", items.shape, labels.shape),
        ("concepts", concepts.shape, labels.shape),
        ("folds", folds.shape, (n_repetitions, labels.size)),
        ("scores", scores.shape[1:], (n_repetitions, labels.size)),
    ):
        if found != expected:
            raise DataMismatch(f"{name} have shape {found}, which does not fit {labels.size} labels ({expected}).")
    return labels.astype(bool), items, concepts, scores, folds


def item_kinds(labels: np.ndarray, items: np.ndarray) -> np.ndarray:
    """What trials an item has.

    Parameters
    ----------
    labels : ndarray of bool, shape (n,)
    items : ndarray of int, shape (n,)
        Numbers from 0.

    Returns
    -------
    ndarray of int, shape (n_items,)
        0: only negative trials, 1: only positive ones, 2: both.

    Examples
    --------
    >>> item_kinds(np.array([True, False, False]), np.array([0, 0, 1])).tolist()
    [2, 0]
    """
    positive, negative = (np.bincount(items[labels == side], minlength=items.max() + 1) > 0 for side in (True, False))
    return np.where(positive & negative, 2, positive.astype(int))


def n_units(kinds: np.ndarray) -> int:
    """Items with both levels, and pairs of items with one; `kinds` as from `item_kinds`."""
    return int(np.sum(kinds == 2)) + int(min(np.sum(kinds == 0), np.sum(kinds == 1)))


def resampled_items(kinds: np.ndarray, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """How often each item occurs in each replicate, (n_boot, n_items); items of a kind keep their number."""
    weights = np.zeros((n_boot, kinds.size))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        weights[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), n_boot)
    return weights


def _areas(
    scores: np.ndarray, labels: np.ndarray, items: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC (M, B) of each method under each row of item weights; NaN where a score is not finite."""
    concordant, pairs = np.zeros((len(scores), len(weights))), np.zeros(len(weights))
    for fold in np.unique(folds):
        rows, columns = (_sorted_trials(items, (folds == fold) & (labels == side)) for side in (True, False))
        if rows.size and columns.size:
            for counts, all_counts, weight in _item_pairs(scores, items, rows, columns, weights):
                concordant += counts @ weight
                pairs += all_counts @ weight
    if pairs[0] == 0:
        raise InvalidInput("AUROC compares trials of the same fold, and no fold holds both levels.")
    # A replicate in which every fold lost a level says nothing: it keeps the estimate.
    areas = np.divide(concordant, pairs, out=np.zeros_like(concordant), where=pairs > 0)
    areas[:, pairs == 0] = areas[:, :1]
    areas[~np.isfinite(scores).all(axis=1)] = np.nan
    return areas


def _sorted_trials(items: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    trials = np.flatnonzero(chosen)
    return trials[np.argsort(items[trials], kind="stable")]


def _item_pairs(
    scores: np.ndarray, items: np.ndarray, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Concordant pairs (M, q) and all pairs (q,) of pairs of items, and the pairs' weights (q, B), block by block."""
    row_items, row_starts = np.unique(items[rows], return_index=True)
    column_items, column_starts = np.unique(items[columns], return_index=True)
    column_sizes = np.diff(column_starts, append=columns.size)
    row_stops = np.append(row_starts[1:], rows.size)
    step = max(_ELEMENTS // (columns.size * max(len(weights), len(scores))), 1)
    for start in range(0, row_items.size, step):
        own = slice(start, min(start + step, row_items.size))
        trials = rows[row_starts[own.start] : row_stops[own.stop - 1]]
        counts = _concordant(scores, trials, columns)
        counts = np.add.reduceat(counts, column_starts, axis=2)
        counts = np.add.reduceat(counts, row_starts[own] - row_starts[own.start], axis=1)
        sizes = (row_stops[own] - row_starts[own])[:, None] * column_sizes
        first, second = weights[:, row_items[own]].T, weights[:, column_items].T
        weight = first[:, None] * second
        one, other = np.nonzero(row_items[own][:, None] == column_items)
        weight[one, other] = first[one]
        yield counts.reshape(len(scores), -1), sizes.ravel().astype(float), weight.reshape(-1, len(weights))


def _concordant(scores: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """1 where the row's score is larger, ½ where they tie: (M, rows, columns)."""
    first, second = scores[:, rows, None], scores[:, None, columns]
    return (first > second) + 0.5 * (first == second)
