"""Quadratic forms of many features at once, under many arrangements of their rows.

A symmetric matrix Q over n trials is kept as ``Q = Σ_r w_r g_r g_rᵀ + diag(d)``, so that for all features

    xᵀQx = Σ_r w_r (g_r·x)² + Σ_i d_i x_i²

is a product of a few rows with the data. A model whose entries depend on the classes of two trials alone (categorical,
discriminative, any factorial effect) has as many rows g as classes, whatever n is; all others are taken apart into
eigenvectors. Rearranging the model rearranges the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_SMALL = 1e-9  # eigenvalues below this share of the largest are rounding
_FEW_ROWS = 4  # of which products one by one are faster than together
_CLASS_SHARE = 4  # with more than n / 4 classes, eigenvectors are as good


@dataclass(frozen=True)
class Form:
    """A symmetric matrix in rows; see the module.

    Attributes
    ----------
    rows : ndarray, shape (R, n)
    weights : ndarray, shape (R,)
    diagonal : ndarray, shape (n,)
    """

    rows: np.ndarray
    weights: np.ndarray
    diagonal: np.ndarray

    @cached_property
    def _is_flat(self) -> bool:
        """The diagonal is the same in every arrangement."""
        return bool(np.ptp(self.diagonal) <= _SMALL * np.abs(self.diagonal).max(initial=0))

    def quadratic(
        self, index: np.ndarray, x: np.ndarray, x2: np.ndarray, total: np.ndarray | None = None
    ) -> np.ndarray:
        """xᵀQx for P arrangements and b features.

        Parameters
        ----------
        index : ndarray of int, shape (P, n)
        x, x2 : ndarray, shape (n, b)
            Features and their squares.
        total : ndarray, shape (b,), optional
            Sums of the squares, if they are known.

        Returns
        -------
        ndarray, shape (P, b)
        """
        if total is not None and self._is_flat:
            out = np.repeat((self.diagonal[0] * total)[None], len(index), axis=0)
        else:
            out = self.weighted(index, self.diagonal, x2)
        if len(index) == 1 and len(self.rows) > _FEW_ROWS:
            return out + self.weights @ (self.rows[:, index[0]] @ x) ** 2
        for row, weight in zip(self.rows, self.weights, strict=True):
            product = row[index] @ x
            product *= product
            product *= weight
            out += product
        return out

    def bilinear(self, index: np.ndarray, x: np.ndarray, y: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """xᵀQy, with the elementwise product xy; shapes as in `quadratic`."""
        out = self.weighted(index, self.diagonal, xy)
        for row, weight in zip(self.rows, self.weights, strict=True):
            moved = row[index]
            product = moved @ x
            product *= moved @ y
            product *= weight
            out += product
        return out

    @staticmethod
    def weighted(index: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Σ_i weights_i x_i for P arrangements of the weights, shape (P, b)."""
        if np.ptp(weights) <= _SMALL * np.abs(weights).max(initial=0):  # the same in every arrangement
            return np.repeat((weights @ x)[None], len(index), axis=0) if weights.any() else _nothing(index, x)
        return weights[index] @ x


def _nothing(index: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.zeros((len(index), x.shape[1]))


def form(hollow: np.ndarray, diagonal: np.ndarray, centred: bool) -> Form:
    """Take a matrix apart.

    Parameters
    ----------
    hollow : ndarray, shape (n, n)
        Symmetric, 0 on the diagonal.
    diagonal : ndarray, shape (n,)
    centred : bool
        The features will be centred, so what the matrix does to constants does not matter.

    Returns
    -------
    Form

    Examples
    --------
    >>> labels = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2])
    >>> unlike = (labels[:, None] != labels).astype(float)
    >>> len(form(unlike, np.zeros(9), centred=True).rows)
    2
    """
    labels = pair_classes(hollow)
    if labels is None:
        matrix = hollow
        if centred:
            matrix = matrix - matrix.mean(axis=0) - matrix.mean(axis=1)[:, None] + matrix.mean()
        values, vectors = np.linalg.eigh(matrix)
        return _kept(vectors.T, values, diagonal)
    core = class_entries(hollow, labels)
    rows = np.eye(len(core))[labels]
    if centred:
        rows = rows - rows.mean(axis=0)
    basis, triangle = np.linalg.qr(rows)
    values, vectors = np.linalg.eigh(triangle @ core @ triangle.T)
    return _kept((basis @ vectors).T, values, diagonal - np.diag(core)[labels])


def pair_classes(hollow: np.ndarray) -> np.ndarray | None:
    """Class of every row, where an entry depends on the classes of its row and column alone; None if there are many.

    Examples
    --------
    >>> labels = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    >>> pair_classes((labels[:, None] != labels).astype(float)).tolist()
    [0, 1, 0, 1, 1, 0, 1, 0]
    """
    n = len(hollow)
    labels, first = np.zeros(n, int), []
    for row in range(n):
        for number, other in enumerate(first):
            alike = hollow[row] == hollow[other]
            alike[[row, other]] = True
            if alike.all() and _fits(hollow, row, np.flatnonzero(labels[:row] == number)):
                labels[row] = number
                break
        else:
            labels[row] = len(first)
            first.append(row)
            if len(first) > max(n // _CLASS_SHARE, 2):
                return None
    return labels


def _fits(hollow: np.ndarray, row: int, members: np.ndarray) -> bool:
    """Whether a row is to all members of a class as these are to each other."""
    own = hollow[row, members]
    return bool((own == own[0]).all() and (members.size < 2 or hollow[members[0], members[1]] == own[0]))


def class_entries(hollow: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Entries of the classes found by `pair_classes`, shape (C, C); 0 for a class of one row with itself."""
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    return np.array([[_between(hollow, a, b) for b in members] for a in members])


def _between(hollow: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    if a[0] != b[0]:
        return float(hollow[a[0], b[0]])
    return float(hollow[a[0], a[1]]) if a.size > 1 else 0.0


def _kept(rows: np.ndarray, values: np.ndarray, diagonal: np.ndarray) -> Form:
    keep = np.abs(values) > _SMALL * max(np.abs(values).max(initial=0), np.abs(diagonal).max(initial=0), 1e-300)
    return Form(np.ascontiguousarray(rows[keep]), values[keep], diagonal)
