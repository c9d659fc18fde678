"""RSA with absolute distances |x_i − x_j| and with ranks of distances.

Observed scores avoid the pairs where they can:

* absolute distances, by sorting: with A = W∘(D − D̄) and the features in rising order,
  ``Σ A_ij |x_i − x_j| = Σ_t x_(t) (Σ_{u<t} A − Σ_{u>t} A)``, where a model of C classes needs counts of classes only;
  Σd from the same form, Σd² as with squared distances;
* ranks of sparse features, from the stored values: see `neurollm.stats.rdms.sparse_ranks`.

Under rearrangements (and for dense ranks) a block of features is written out over its m = n(n − 1)/2 pairs, and all
arrangements are one product of the rearranged models with it.

Spearman's correlation and Kendall's τ_a are the same for |x_i − x_j| and (x_i − x_j)². ρ_a is Spearman's without the
correction for ties, ``12 Σ (R_x − R̄)(R_D − R̄)/(m³ − m)``, the expected Spearman correlation when ties are broken at
random (Nili et al. 2014; Schütt et al. 2023, eLife 82566): preferred when models have ties.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import BLOCK, by_columns, dense
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.forms import class_entries, pair_classes
from neurollm.stats.rdms.model import pair_model, without_rounding
from neurollm.stats.rdms.pairs import pair_correlations, pair_vectors
from neurollm.stats.rdms.sparse_ranks import sparse_rank_scores
from neurollm.stats.threads import workers

RANKS = ("spearman", "rho_a", "tau_a")
_PAIRS = 1 << 22  # pairs × features written out at a time


class ExplicitScores:
    """Scores of all features over written-out pairs; the same interface as `SquaredScores`.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM; NaN leaves a pair out.
    comparison : {"pearson", "cosine"} of absolute distances, or {"spearman", "rho_a", "tau_a"}
    """

    def __init__(self, X: Any, D: np.ndarray, comparison: str) -> None:
        self._X = by_columns(X)
        self.n_features = X.shape[1]
        self._model = pair_model(D, X.shape[0])
        self._comparison = comparison
        values = self._model.values
        if comparison in RANKS:
            values = without_rounding(values.ravel()).reshape(values.shape)
        self._spoken = np.where(self._model.pairs, values, np.nan)  # the diagonal is never looked at
        self._rows, self._columns = np.triu_indices(X.shape[0], 1)
        if comparison != "cosine":
            self._model.refuse_constant()

    def on(self, X: Any) -> ExplicitScores:
        """The same model for other features."""
        other = copy(self)
        other._X, other.n_features = by_columns(X), X.shape[1]
        return other

    def take(self, columns: Any) -> ExplicitScores:
        """The same of some features."""
        return self.on(self._X[:, columns])

    def observed(self, n_jobs: int = 1) -> np.ndarray:
        """Scores of all features, shape (V,); NaN for constant and non-finite ones."""
        if sparse.issparse(self._X) and self._model.is_full and self._comparison in ("spearman", "rho_a"):
            return sparse_rank_scores(self._X, self._model.values, self._comparison)
        if self._comparison in ("pearson", "cosine"):
            return self._sorted()
        identity = np.arange(self._X.shape[0])[None]
        step = self._step()
        starts = range(0, self.n_features, step)
        with workers(n_jobs) as run:
            parts = run(lambda start: self(identity, slice(start, min(start + step, self.n_features)))[0], starts)
            return np.concatenate([np.empty(0), *parts])

    def moments(self) -> None:
        """No closed form is used: `permutation_null` takes mean and spread from the arrangements."""

    def __call__(self, index: np.ndarray, columns: slice) -> np.ndarray:
        """Scores under arrangements of the model's rows; shapes as in `SquaredScores`."""
        step = self._step()
        parts = []
        for start in range(columns.start, columns.stop, step):
            x, valid = self._values(slice(start, min(start + step, columns.stop)))
            distances = np.abs(x[self._rows] - x[self._columns])
            if self._comparison in RANKS:
                distances = without_rounding(distances)
            r = self._compared(index, distances)
            parts.append(np.where(valid, r, np.nan))
        return np.concatenate(parts, axis=1)

    def _step(self) -> int:
        return int(np.clip(_PAIRS // max(self._rows.size, 1), 1, BLOCK))

    def _values(self, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Features of unit spread, and which of them vary; all others are 0."""
        x = dense(self._X[:, columns])
        with np.errstate(invalid="ignore"):
            spread = np.ptp(x, axis=0)
            valid = np.isfinite(spread) & (spread > NOISE * np.abs(x).max(axis=0, initial=0))
            return np.where(valid, x - x[0], 0.0) / np.where(valid, spread, 1.0), valid

    def _compared(self, index: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Scores of P arrangements of the model with b features over the pairs (m × b)."""
        from scipy.stats import rankdata

        models = pair_vectors(self._spoken, index)
        if self._comparison in ("pearson", "cosine"):
            return pair_correlations(models, distances, self._comparison)
        if self._model.is_full and self._comparison != "tau_a":
            return _rank_correlated(rankdata(models, axis=1), rankdata(distances, axis=0), self._comparison)
        scores = []  # ranks among the pairs of this arrangement
        for model in models:
            kept = ~np.isnan(model)
            value, part = model[kept], distances[kept]
            if self._comparison == "tau_a":
                scores.append(tau_a(value, part)[None])
            else:
                scores.append(_rank_correlated(rankdata(value)[None], rankdata(part, axis=0), self._comparison))
        return np.concatenate(scores)

    def _sorted(self) -> np.ndarray:
        model = self._model
        centre = self._comparison == "pearson"
        values = np.where(model.pairs, model.values - model.mean, 0.0) if centre else model.values
        size = np.sqrt(np.sum(values**2) / 2)
        pairs = model.pairs.astype(float)
        degree = pairs.sum(axis=1)
        weigh, spoken = _SortedSum(values), _SortedSum(pairs)
        out = np.empty(self.n_features)
        for start in range(0, self.n_features, BLOCK):
            columns = slice(start, min(start + BLOCK, self.n_features))
            x, valid = self._values(columns)
            x = x - x.mean(axis=0)
            order = np.argsort(x, axis=0, kind="stable")
            rising = np.take_along_axis(x, order, axis=0)
            squares = degree @ (x * x) - np.einsum("nb,nb->b", x, pairs @ x)
            if centre:
                squares -= spoken(order, rising) ** 2 / model.n_pairs
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = np.sqrt(np.where(valid & (squares > 1e-12), squares, np.nan))
                out[columns] = weigh(order, rising) / (spread * size)
        return out


class _SortedSum:
    """Σ_{i<j} A_ij |x_i − x_j| of sorted features, for a symmetric hollow matrix A."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix
        self._labels = pair_classes(matrix)
        self._entries = None if self._labels is None else class_entries(matrix, self._labels)

    def __call__(self, order: np.ndarray, rising: np.ndarray) -> np.ndarray:
        if self._labels is None:
            return np.array([self._whole(order[:, b], rising[:, b]) for b in range(order.shape[1])])
        total, sorted_labels = np.zeros(order.shape[1]), self._labels[order]
        for other, entries in enumerate(self._entries):
            here = sorted_labels == other
            below = np.cumsum(here, axis=0) - here
            above = here.sum(axis=0) - below - here
            total += np.einsum("nb,nb->b", entries[sorted_labels] * (below - above), rising)
        return total

    def _whole(self, order: np.ndarray, rising: np.ndarray) -> float:
        moved = self._matrix[np.ix_(order, order)]
        return float(rising @ (np.tril(moved).sum(axis=1) - np.triu(moved).sum(axis=1)))


def _rank_correlated(values: np.ndarray, distances: np.ndarray, comparison: str) -> np.ndarray:
    """Spearman's correlation or ρ_a from the ranks of P models and b features."""
    if comparison == "spearman":
        return pair_correlations(values, distances)
    m = values.shape[1]
    middle = (m + 1) / 2
    r = (values - middle) @ (distances - middle) * (12 / (m**3 - m))
    return np.where(np.ptp(distances, axis=0) > 0, r, np.nan)


def tau_a(value: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Kendall's τ_a of one model with b features, from scipy's τ_b and the numbers of ties."""
    from scipy.stats import kendalltau

    pairs = value.size * (value.size - 1) / 2
    untied = pairs - _tied(value)
    return np.array(
        [kendalltau(value, one).statistic * np.sqrt(untied * (pairs - _tied(one))) / pairs for one in distances.T]
    )


def _tied(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1].astype(float)
    return float(np.sum(counts * (counts - 1)) / 2)
