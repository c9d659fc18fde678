"""The products behind a permutation test: residual columns, exact statistics and bounds from float32.

R y is formed once per block of columns (group means and nuisance removed, divided by ν), because R is a
projection: (R G t)·y = (G t)·(R y). The rows of the products are then plain rearrangements of the
design's columns, and every column has unit length, so that one bound of rounding holds for all.

**Bound.** With u = 2⁻²⁴, storing both factors in float32 and adding n products in any order changes
(G t)·(R y)/ν by at most (n + 2) u (1 + O(nu)) Σ|a||x| (Higham 2002, section 3.1), where Σ|a||x| ≤ 1 by
Cauchy–Schwarz. ``ε = 1.1 (n + 16) u`` leaves room for the few operations after the product. With m further columns e,
D = 1 − Σe² is off by at most 2√m ε + mε² < 3√m ε, so that

    |ρ| ≤ (|r| + √q ε) / √(D − 3√m ε).

The same lines run on numpy arrays and on torch tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import by_columns, dense, is_torch, namespace
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.lookup import Matrix, Rows, Words, has_few_levels, words_of
from neurollm.stats.shufflings import Draws

NOTHING_LEFT = 1e-8  # share of variance below which a feature has none besides what is not tested
_NO_DIVISOR = 1e-12


class ResidualColumns:
    """Blocks of R y / ν in float64, of any supported array.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    norms : ndarray, shape (V,)
    hypothesis : Hypothesis

    Attributes
    ----------
    n_rows : int
    device : torch.device or None
        Where tensors are; None for all other arrays.
    """

    def __init__(self, Y: Any, norms: np.ndarray, hypothesis: Hypothesis) -> None:
        self._Y, self._norms = by_columns(Y), norms
        self.n_rows = Y.shape[0]
        self.device = Y.device if is_torch(Y) else None
        self._nuisance = np.asarray(hypothesis.nuisance, dtype=float)
        self._groups = self._means = None
        if hypothesis.groups is not None:
            _, self._groups = np.unique(hypothesis.groups, return_inverse=True)
            counts = np.bincount(self._groups)
            rows = np.arange(self._groups.size)
            self._means = sparse.csr_array((1 / counts[self._groups], (self._groups, rows)))

    def __call__(self, columns: np.ndarray) -> Any:
        """R y / ν of the columns with these (for speed ascending) numbers, shape (n, len(columns))."""
        first, last = columns.min(), columns.max() + 1
        if last - first == len(columns) and (np.diff(columns) == 1).all():
            block = self._float64(self._Y[:, first:last])
        elif last - first <= 2 * len(columns):
            # A gap or two: a slice is read much faster than scattered columns.
            block = self._float64(self._Y[:, first:last])
            block = _select(block, columns - first)
        else:
            block = self._float64(self._Y[:, as_in(self._Y, columns)])
        if self._groups is not None:
            block -= self._group_means(block)
        if self._nuisance.shape[1]:
            basis = as_in(block, self._nuisance)
            block -= basis @ (basis.T @ block)
        block *= as_in(block, 1 / self._norms[columns])
        return block

    def _float64(self, block: Any) -> Any:
        if self.device is not None and has_float64(self.device):
            import torch

            return block.detach().to(torch.float64, copy=True)
        if sparse.issparse(block):
            return block.toarray(order="C").astype(np.float64, copy=False)
        return np.ascontiguousarray(dense(block))

    def _group_means(self, block: Any) -> Any:
        if len(self._means.indptr) == 2:
            return block.mean(0)
        if not is_torch(block):
            return (self._means @ block)[self._groups]
        import torch

        groups = torch.as_tensor(self._groups, device=block.device)
        weights = as_in(block, 1 / np.bincount(self._groups))[:, None]
        sums = block.new_zeros((len(weights), block.shape[1])).index_add_(0, groups, block)
        return (sums * weights)[groups]


class Statistic:
    """ρ of arrangements × columns; larger is more extreme except that two-sided values keep their sign.

    Parameters
    ----------
    hypothesis : Hypothesis
    alternative : {"two-sided", "greater", "less"}
    """

    def __init__(self, hypothesis: Hypothesis, alternative: str) -> None:
        sign = -1.0 if alternative == "less" else 1.0
        self.tested = [sign * column for column in np.asarray(hypothesis.tested, dtype=float).T]
        self.share = [column for part in (hypothesis.rest, hypothesis.nuisance) for column in np.asarray(part, float).T]
        self.two_sided = alternative == "two-sided"

    @property
    def n_products(self) -> int:
        """Products per statistic."""
        return len(self.tested) + len(self.share)

    def exact(self, draws: Draws | None, which: np.ndarray | None, X: Any) -> Any:
        """Float64 statistics of arrangements (None: the observed one) for residual columns X."""
        xp = namespace(X)

        def product(column: np.ndarray) -> Any:
            return as_in(X, column[None] if draws is None else draws.rows(column, which)) @ X

        if len(self.tested) == 1:
            r = product(self.tested[0])
        else:
            r = xp.sqrt(sum(product(column) ** 2 for column in self.tested))
        if self.share:
            left = 1 - sum(product(column) ** 2 for column in self.share)
            r = xp.where(left > NOTHING_LEFT, r / xp.sqrt(left.clip(NOTHING_LEFT, None)), 0 * r)
        return r

    def extremity(self, r: Any) -> Any:
        """Larger is more extreme."""
        return abs(r) if self.two_sided else r

    def largest(self, r: Any) -> Any:
        """Largest extremity of each row, without a copy of `r`."""
        xp = namespace(r)
        top = xp.amax(r, 1)
        return xp.maximum(top, -xp.amin(r, 1)) if self.two_sided else top

    def matrices(self, draws: Draws, which: np.ndarray, device: Any) -> list[Matrix]:
        """Rearranged columns in float32 on a torch device (None: numpy), tested ones first."""
        columns = (*self.tested, *self.share)
        return [Matrix(_moved(draws.rows(column.astype(np.float32), which), device)) for column in columns]

    def has_words(self, draws: Draws) -> bool:
        """Whether every rearranged column has few enough different numbers for `words`."""
        return all(has_few_levels(column, draws) for column in (*self.tested, *self.share))

    def words(self, draws: Draws, which: np.ndarray) -> list[Words]:
        """As `matrices`, on the CPU."""
        return [words_of(column, draws, which) for column in (*self.tested, *self.share)]

    def upper_bounds(self, rows: Sequence[Rows], X: Any, segment: int, size: tuple[int, int]) -> np.ndarray:
        """Bounds of the largest statistic of each segment of columns.

        Parameters
        ----------
        rows : sequence of Rows, each of P arrangements
            From `matrices` or `words`.
        X : array of float32, shape (n, c)
            Residual columns, c a multiple of `segment`; see `float32_copy`.
        segment : int
            Columns under one bound.
        size : (int, int)
            Arrangements and columns per product; columns a multiple of `segment`.

        Returns
        -------
        ndarray, shape (P, c / segment)
        """
        batch, width = size
        found = np.empty((len(rows[0]), X.shape[1] // segment), dtype=np.float32)
        for first in range(0, X.shape[1], width):
            part = X[:, first : first + width]
            buffers = [_empty((min(batch, len(found)), part.shape[1]), X) for _ in range(1 if self._simple else 3)]
            products = [row.on(part) for row in rows]
            here = slice(first // segment, (first + part.shape[1]) // segment)
            for start in range(0, len(found), batch):
                which = slice(start, min(start + batch, len(found)))
                out = [buffer[: which.stop - start] for buffer in buffers]
                found[which, here] = self._largest_bounds(products, which, out, segment, X.shape[0])
        return found

    @property
    def _simple(self) -> bool:
        return self.n_products == 1

    def _largest_bounds(
        self, products: Sequence[Any], which: slice, out: Sequence[Any], segment: int, n_rows: int
    ) -> np.ndarray:
        epsilon = 1.1 * (n_rows + 16) * 2.0**-24
        if self._simple:
            r = products[0](which, out[0])
            xp = namespace(r)
            r = r.reshape(len(r), -1, segment)
            top = xp.amax(r, 2)
            top = xp.maximum(top, -xp.amin(r, 2)) if self.two_sided else top
            return to_numpy(top) + np.float32(epsilon)
        r = self._bounds(products, which, out, epsilon)
        return to_numpy(namespace(r).amax(r.reshape(len(r), -1, segment), 2))

    def _bounds(self, products: Sequence[Any], which: slice, out: Sequence[Any], epsilon: float) -> Any:
        q, m = len(self.tested), len(self.share)
        r, one, left = products[0](which, out[0]), *out[1:]
        xp = namespace(r)
        if q == 1:
            # A negative statistic has no use for its size: 0 bounds it.
            r = xp.abs(r, out=r) if self.two_sided else xp.clip(r, 0, None, out=r)
        else:
            r *= r
            for product in products[1:q]:
                square = product(which, one)
                square *= square
                r += square
            r = xp.sqrt(r, out=r)
        r += q**0.5 * epsilon
        if m:
            left[:] = 1 - 3 * m**0.5 * epsilon
            for product in products[q:]:
                square = product(which, one)
                square *= square
                left -= square
            left = xp.clip(left, _NO_DIVISOR, None, out=left)
            r /= xp.sqrt(left, out=left)
        return r


def float32_copy(X: Any, device: Any, segment: int) -> Any:
    """X in float32 on the device of the data (None: numpy), with columns of zeros up to a full segment."""
    shape = X.shape[0], -(-X.shape[1] // segment) * segment
    if device is None:
        padded = np.zeros(shape, dtype=np.float32)
    else:
        import torch

        padded = torch.zeros(shape, dtype=torch.float32, device=device)
        X = torch.from_numpy(X) if isinstance(X, np.ndarray) else X
    padded[:, : X.shape[1]] = X
    return padded


def has_float64(device: Any) -> bool:
    """Whether a torch device computes in float64."""
    return device.type != "mps"


def to_numpy(array: Any) -> np.ndarray:
    """A numpy array of either kind of array."""
    return array.cpu().numpy() if is_torch(array) else array


def _select(block: Any, columns: np.ndarray) -> Any:
    """Columns of a block, in C order (indexing would return them in the other, which is slower to go on with)."""
    return block[:, as_in(block, columns)] if is_torch(block) else np.take(block, columns, axis=1)


def as_in(other: Any, array: np.ndarray) -> Any:
    """`array` on the device of `other`."""
    return _moved(array, other.device if is_torch(other) else None)


def _moved(array: np.ndarray, device: Any) -> Any:
    if device is None:
        return array
    import torch

    return torch.as_tensor(array, device=device)


def _empty(shape: tuple[int, int], like: Any) -> Any:
    return like.new_empty(shape) if is_torch(like) else np.empty(shape, dtype=like.dtype)
