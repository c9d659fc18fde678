"""Features as vectors of RDM space: inner products of their RDMs without an RDM.

Notation: n rows, x̃ a centred feature, S2 = Σ x̃², m = n(n−1)/2 pairs, D the model's RDM with row sums D1 and mean D̄,
K = −½ H D H. The squared-difference RDM d_x = (x_i − x_j)² has

    numerator   Σ (D − D̄) d_x = Σ_i (D1_i − n D̄) x̃_i² + 2 x̃'K x̃               Pearson
                x̃'K x̃                                                          whitened
    Gram        Q_xy = n Σ x̃²ỹ² + S2_x S2_y + 2 (x̃·ỹ)² − n² S2_x S2_y / m      Pearson
                Q_xy = (x̃·ỹ)²                                                  whitened
    r           numerator / (√Q_xx |d_D|),     |d_D| = |D − D̄| over pairs, or |K|_F

The whitened comparison is linear CKA of a feature with the model (Diedrichsen et al. 2021). RDMs of features add up to
that of their region, so numerators add, and |d_S|² of a region S is the sum of Q over all its pairs. Rearranging the
rows of the model changes numerators only.

With pairs left out (NaN in D) all sums run over the pairs that remain; then Q_xy = x' L_ω x − s_x s_y / m with ω the
RDM of y there, L_ω = diag(ω1) − ω and s sums of RDMs: exact, at n times the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, canonical_columns, dense, largest_values
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.forms import Form, form
from neurollm.stats.rdms.model import PairModel, centred_kernel, pair_model
from neurollm.validation import closest, shown

Comparison = Literal["pearson", "whitened"]
COMPARISONS = ("pearson", "whitened")
_FAR = 1e60  # beyond it, or below its inverse, products of four values come near the ends of float64


@dataclass(frozen=True)
class ModelForm:
    """A model of all pairs as the quadratic form of its numerator.

    Attributes
    ----------
    matrix : ndarray, shape (n, n)
        With rows that add up to 0.
    form : Form
        The same, taken apart.
    norm : float
        |d_D|.
    """

    matrix: np.ndarray
    form: Form
    norm: float

    @classmethod
    def of(cls, D: PairModel, comparison: Comparison) -> ModelForm:
        """Take a model apart.

        Raises
        ------
        InvalidInput
            It leaves pairs out, or the comparison is unknown.
        """
        check_comparison(comparison)
        values = D.values
        if not D.is_full:
            raise InvalidInput(
                f"the model RDM leaves out {D.n_left_out} pairs (NaN), but this needs a model of all pairs."
            )
        if comparison == "whitened":
            K = centred_kernel(values)
            return cls(K, form(-values / 2, np.zeros(len(values)), centred=True), float(np.linalg.norm(K)))
        # D itself is of low rank for a model of a few dimensions, D without its mean (and 0 on the diagonal) is not.
        hollow = form(-values, np.zeros(len(values)), centred=True)
        taken = Form(hollow.rows, hollow.weights, hollow.diagonal + values.sum(axis=1) - len(values) * D.mean)
        centred = np.where(D.pairs, values - D.mean, 0.0)
        matrix = np.diag(centred.sum(axis=1)) - centred
        return cls(matrix, taken, float(np.linalg.norm(centred) / np.sqrt(2)))


def check_comparison(comparison: Any) -> None:
    """Refuse a comparison that is not one of regions.

    Raises
    ------
    InvalidInput
    """
    if not isinstance(comparison, str) or comparison not in COMPARISONS:
        hint = closest(str(comparison), COMPARISONS) or "."
        raise InvalidInput(
            f"RSA of a region: comparison is {shown(comparison)}; it must be 'pearson' or 'whitened'{hint}"
        )


def checked(D: Any, comparison: str, n: int) -> PairModel:
    """Take in a model RDM that a region can be compared with.

    Raises
    ------
    InvalidInput
        The comparison is unknown, or the model is no RDM, or says the same of all pairs.
    DataMismatch
        It has not as many rows as the data.
    """
    check_comparison(comparison)
    model = pair_model(D, n)
    if model.is_constant:
        raise InvalidInput("the model RDM says the same of all pairs, so nothing can be compared with it.")
    return model


class RDMSpace:
    """RDMs of all features, as vectors of which only inner products are computed.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
    comparison : {"pearson", "whitened"}
    standardise : bool, default=True
        Give every feature the sum of squares 1, so that no feature weighs more in a region because it is louder.

    Attributes
    ----------
    valid : ndarray of bool, shape (V,)
        Finite and not constant; all sums of other features are 0.
    lengths : ndarray, shape (V,)
        √S2 of each feature as it was given; 0 where it is not valid.
    squares : ndarray, shape (V,)
        S2 of each feature (1 if standardised).
    norms : ndarray, shape (V,)
        Q_ff.

    Notes
    -----
    Features are divided by their largest absolute value before anything is squared. Without `standardise` that is
    undone; only if the largest value of all is beyond 1e±60, all features are divided by it, which changes no score.

    Raises
    ------
    InvalidInput
        The comparison is unknown.

    Examples
    --------
    >>> space = RDMSpace(np.array([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]), "whitened", standardise=False)
    >>> space.valid.tolist(), round(float(space.norms[0]), 3)
    ([True, False], 21.778)
    """

    def __init__(self, X: Any, comparison: Comparison, standardise: bool = True) -> None:
        check_comparison(comparison)
        self.comparison = comparison
        self.n, self.n_features = X.shape
        read = self._read_sparse if sparse.issparse(X) else self._read_dense
        fourth = read(X, standardise)
        if comparison == "pearson":
            n = self.n
            self.norms = n * fourth + (3 - 2 * n / (n - 1)) * self.squares**2
        else:
            self.norms = self.squares**2
        # Three rows of two values: all their differences are equal up to rounding.
        self.valid &= self.norms > 1e-14 * self.n * self.squares**2

    def _read_dense(self, X: Any, standardise: bool) -> np.ndarray:
        values = dense(X)
        values[:, ~np.isfinite(values).all(axis=0)] = 0
        largest = np.abs(values).max(axis=0, initial=0)
        values /= np.where(largest > 0, largest, 1)
        values -= values.mean(axis=0)
        values *= self._factor(np.einsum("nv,nv->v", values, values), largest, standardise)
        self._x, self._mean = values, None
        return np.einsum("nv,nv->v", values**2, values**2)

    def _read_sparse(self, X: Any, standardise: bool) -> np.ndarray:
        csc = canonical_columns(X)
        counts = np.diff(csc.indptr)
        column = np.repeat(np.arange(self.n_features), counts)

        def sums(values: np.ndarray) -> np.ndarray:
            return np.bincount(column, values, minlength=self.n_features)

        finite = sums(~np.isfinite(csc.data)) == 0
        largest = np.where(finite, largest_values(csc), 0.0)
        data = np.where(finite[column], csc.data, 0.0) / np.where(largest > 0, largest, 1)[column]
        mean = sums(data) / self.n
        centred, unstored = data - mean[column], self.n - counts
        factor = self._factor(sums(centred**2) + unstored * mean**2, largest, standardise)
        self._x = sparse.csc_array((data * factor[column], csc.indices, csc.indptr), shape=csc.shape)
        self._mean = mean * factor
        return (sums(centred**4) + unstored * mean**4) * factor**4

    def _factor(self, squares: np.ndarray, largest: np.ndarray, standardise: bool) -> np.ndarray:
        """What features with a largest value of 1 are multiplied by; 0 where they do not vary.

        Parameters
        ----------
        squares : ndarray, shape (V,)
            Their S2.
        largest : ndarray, shape (V,)
            What they were divided by; 0 for features that are not finite.
        standardise : bool
        """
        self.valid = squares > self.n * NOISE**2
        length = np.sqrt(np.where(self.valid, squares, 0.0))
        self.lengths = length * largest
        if standardise:
            self.squares = self.valid.astype(float)
            return self.valid / np.where(self.valid, length, 1)
        most = largest.max(initial=0.0)
        unit = 1.0 if 1 / _FAR < most < _FAR or not most else most
        self.squares = (self.lengths / unit) ** 2
        return np.where(self.valid, largest / unit, 0.0)

    def rows(self, weights: np.ndarray) -> np.ndarray:
        """Sums over rows of weights (…, n) whose own sum is 0 times features: (…, V)."""
        return _product(weights, self._x)

    def second(self, weights: np.ndarray) -> np.ndarray:
        """Sums over rows of weights (P, n) times squares of centred features: (P, V)."""
        raw = _product(weights, self._squared)
        if self._mean is None:
            return raw
        return raw - 2 * self._mean * _product(weights, self._x) + weights.sum(axis=-1)[..., None] * self._mean**2

    @cached_property
    def _squared(self) -> Any:
        return self._x.multiply(self._x).tocsc() if sparse.issparse(self._x) else self._x**2

    def take(self, features: np.ndarray) -> np.ndarray:
        """Some centred features, dense, shape (n, number of features)."""
        if self._mean is None:
            return self._x[:, features]
        return self._x[:, features].toarray() - self._mean[features]

    def columns(self, features: np.ndarray) -> np.ndarray:
        """Q between some features and all, shape (number of features, V)."""
        chosen = self.take(features).T
        gram = self.rows(chosen) ** 2
        if self.comparison == "whitened":
            return gram
        gram *= 2
        gram += self.n * self.second(chosen**2)
        gram += (1 - 2 * self.n / (self.n - 1)) * np.outer(self.squares[features], self.squares)
        return gram

    def numerators(self, model: ModelForm, index: np.ndarray | None = None) -> np.ndarray:
        """Numerators of all features under P arrangements of the model's rows (default: as it is), shape (P, V).

        Parameters
        ----------
        model : ModelForm
        index : ndarray of int, shape (P, n), optional
        """
        index = np.arange(self.n)[None] if index is None else index
        diagonal = model.form.diagonal
        if np.ptp(diagonal) <= NOISE * np.abs(diagonal).max():  # the same in every arrangement
            found = np.tile(diagonal.mean() * self.squares, (len(index), 1))
        else:
            found = self.second(diagonal[index])
        for row, weight in zip(model.form.rows, model.form.weights, strict=True):
            projected = self.rows(row[index])
            projected *= projected
            projected *= weight
            found += projected
        return found


class MaskedSpace:
    """`RDMSpace` over some pairs of rows, for a model that leaves pairs out (Pearson).

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
    model : PairModel
    standardise : bool, default=True
    """

    comparison = "pearson"

    def __init__(self, X: Any, model: PairModel, standardise: bool = True) -> None:
        self._whole = RDMSpace(X, "pearson", standardise)
        self.n, self.n_features = X.shape
        self._pairs, self._m = model.pairs, model.n_pairs
        self._sums = self._quadratic(self._pairs.astype(float))
        self.norms = self._fourth() - self._sums**2 / self._m
        self.squares = self._whole.squares
        self.valid = self._whole.valid & (self.norms > 1e-14 * self.n * self.squares**2)
        self._centred = np.where(self._pairs, model.values - model.mean, 0.0)
        self.model_norm = float(np.sqrt((self._centred**2).sum() / 2))

    def columns(self, features: np.ndarray) -> np.ndarray:
        """Q between some features and all."""
        chosen = self._whole.take(features)
        found = [self._quadratic(self._pairs * (x[:, None] - x) ** 2) for x in chosen.T]
        return np.array(found) - np.outer(self._sums[features], self._sums) / self._m

    def numerators(self) -> np.ndarray:
        """Numerators of all features with the model, shape (1, V)."""
        return self._quadratic(self._centred)[None]

    def _quadratic(self, weights: np.ndarray) -> np.ndarray:
        """x'(diag(W1) − W)x of every feature."""
        laplacian = np.diag(weights.sum(axis=1)) - weights
        return np.concatenate([np.einsum("nv,nv->v", x, laplacian @ x) for x in self._blocks()])

    def _fourth(self) -> np.ndarray:
        """Σ (x_i − x_j)⁴ over the pairs."""
        pairs = self._pairs.astype(float)
        degree, found = pairs.sum(axis=1), []
        for x in self._blocks():
            second = x**2
            found.append(
                degree @ second**2
                - 4 * np.einsum("nv,nv->v", second * x, pairs @ x)
                + 3 * np.einsum("nv,nv->v", second, pairs @ second)
            )
        return np.concatenate(found)

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.n_features, BLOCK):
            yield self._whole.take(np.arange(start, min(start + BLOCK, self.n_features)))


def _product(weights: np.ndarray, x: Any) -> np.ndarray:
    return (x.T @ weights.T).T if sparse.issparse(x) else weights @ x
