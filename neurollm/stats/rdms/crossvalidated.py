"""Cross-validated (crossnobis) distances of every feature over independent repeats, and their RSA.

With repeats x_1 … x_R (wordings, contexts, seeds) of the same n rows, the distance that multiplies differences of
*different* repeats only,

    d_ij = 1/(R(R−1)) Σ_{r≠s} (x_ri − x_rj)(x_si − x_sj) = 1/(R(R−1)) [ (Δs)² − Σ_r (Δx_r)² ],    s = Σ_r x_r,

has expectation 0 where rows differ by noise alone (Nili et al. 2014; Walther et al. 2016), and may be negative. It is
a weighted sum of squared distances of the R + 1 columns s, x_1 … x_R, with weights 1 and −1: the algebra of windows
(`neurollm.stats.rdms.windows`) holds as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.arrays import canonical_columns, dense
from neurollm.stats.rdms.windows import pair_distances, window_scores


def crossvalidated_scores(
    X_by_repeat: Sequence[Any], D: np.ndarray, *, comparison: str = "cosine", index: np.ndarray | None = None
) -> np.ndarray:
    """RSA of every feature with cross-validated squared distances.

    Parameters
    ----------
    X_by_repeat : sequence of R arrays, each (n, V)
        Dense or sparse; the same rows in every repeat.
    D : ndarray, shape (n, n)
        Model RDM; NaN: the pair is left out.
    comparison : {"cosine", "pearson", "whitened"}
        These distances have a meaningful zero, so the cosine has no baseline of noise to stand on. A score is still a
        ratio: distances and numerators have expectation 0 under noise, scores only nearly (−.05 with 9 rows).
    index : ndarray of int, shape (P, n), optional
        Rearrangements: row i of the model is replaced by row ``index[p, i]``.

    Returns
    -------
    ndarray, shape (V,), or (P, V) with `index`
        NaN where a feature is not finite or does not vary.

    Raises
    ------
    InvalidInput
        There are fewer than two repeats.
    DataMismatch
        Repeats or model do not hold the same rows.

    Examples
    --------
    >>> first, second = np.array([[0.0], [1], [5], [6]]), np.array([[1.0], [0], [6], [5]])
    >>> D = np.array([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    >>> crossvalidated_scores([first, second], D).round(3).tolist()
    [0.999]
    """
    columns, weights = _columns(X_by_repeat)
    return window_scores(columns, D, comparison=comparison, weights=weights, index=index)


class CrossvalidatedScores:
    """`crossvalidated_scores` of all features against one model, with the interface of `SquaredScores`.

    Parameters
    ----------
    X_by_repeat, D, comparison
        See `crossvalidated_scores`.
    """

    def __init__(self, X_by_repeat: Sequence[Any], D: np.ndarray, comparison: str = "cosine") -> None:
        self._columns, self._weights = _columns(X_by_repeat)
        self._D, self._comparison = D, comparison
        self.n_features = self._columns[0].shape[1]

    def take(self, columns: Any) -> CrossvalidatedScores:
        """The same of some features."""
        other = copy(self)
        other._columns = [column[:, columns] for column in self._columns]
        other.n_features = other._columns[0].shape[1]
        return other

    def observed(self, n_jobs: int = 1) -> np.ndarray:
        """Scores of all features, shape (V,)."""
        return window_scores(self._columns, self._D, comparison=self._comparison, weights=self._weights)

    def moments(self) -> None:
        """There is no closed form."""

    def __call__(self, index: np.ndarray, columns: slice) -> np.ndarray:
        """Scores under arrangements of the model's rows, shape (P, b)."""
        parts = [column[:, columns] for column in self._columns]
        return window_scores(parts, self._D, comparison=self._comparison, weights=self._weights, index=index)


def crossvalidated_distances(X_by_repeat: Sequence[Any]) -> np.ndarray:
    """Cross-validated distances of every pair of rows in every feature; for a few features.

    Parameters
    ----------
    X_by_repeat : sequence of R arrays, each (n, V)

    Returns
    -------
    ndarray, shape (n(n − 1)/2, V)
        Pairs i < j; may be negative. Their sum over features is the cross-validated RDM of a region.

    Raises
    ------
    InvalidInput, DataMismatch
        See `crossvalidated_scores`.

    Examples
    --------
    >>> crossvalidated_distances([np.array([[0.0], [2]]), np.array([[0.0], [3]])]).tolist()
    [[6.0]]
    """
    columns, weights = _columns(X_by_repeat)
    Z = np.stack([dense(column) for column in columns])
    return pair_distances(Z, weights, np.ones(Z.shape[1:], bool))


def _columns(X_by_repeat: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """The sum of all repeats and the repeats, and the weights of their squared distances."""
    repeats = [canonical_columns(X) if sparse.issparse(X) else np.asarray(X, float) for X in X_by_repeat]
    R = len(repeats)
    if R < 2:
        raise InvalidInput(
            f"cross-validated distances multiply differences of different repeats: at least 2 are needed, found {R}."
        )
    shapes = {X.shape for X in repeats}
    if len(shapes) > 1 or repeats[0].ndim != 2:
        raise DataMismatch(
            f"cross-validated distances: repeats of the shapes {sorted(shapes)} are not tables of the same rows."
        )
    total = repeats[0]
    for X in repeats[1:]:
        total = total + X
    return [total, *repeats], np.array([1.0, *[-1.0] * R]) / (R * (R - 1))
