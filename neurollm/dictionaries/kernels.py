"""Products with a matrix that has few non-zeros per row, and finding these non-zeros.

A `SparseCode` names the places (row, column) where a matrix a (n, F) may differ from zero; the
values at these places are a vector beside it. With W (F, d), x and g (n, d):

    decode(a, W)   a · W            2 d multiplications for each place, not 2 F d for each row
    dots(x, W)     (x · Wᵀ) there   the gradient of the former with respect to a, and exact pre-activations
    gram(a, g)     aᵀ · g           the gradient with respect to W

`DenseCode` has the same members for a matrix with all its places; it wins from a density of
`CROSSOVER` on (benchmarks/train_sae.py measures it).

Selecting (`largest`, `above`) runs in blocks of rows that stay in a core's cache: product,
comparison and selection touch memory once. The k largest of F are found among the members of
the k groups with the largest maxima, which contain them.

Inside `threads`, work on a CPU is divided among threads of our own that each compute with one
thread: torch's threads meet at the end of every operation, and where another program takes one
of the cores for a while the others wait for it, thousands of times a second. How the work is
divided changes no result.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional

CROSSOVER = 0.12  # share of places from which on dense products are faster on a CPU
BLOCK_VALUES = 2**19  # pre-activations of a block: 2 MB
GROUPS = 16  # members of a group; F below 64 k is not worth grouping
DEVICE_VALUES = 2**26  # pre-activations held at a time on other devices

SMALLEST_PART = 256  # rows of a product that are worth a thread
_own = threading.local()


@contextmanager
def threads() -> Iterator[None]:
    """Divide the work of this module among as many threads as torch had; meanwhile torch itself uses one."""
    number = torch.get_num_threads()
    if number == 1 or getattr(_own, "pool", None) is not None:
        yield
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _own.pool, _own.number = pool, number
            yield
    finally:
        _own.pool = None
        torch.set_num_threads(number)


@contextmanager
def one_thread_less() -> Iterator[None]:
    """Leave a core to a thread that reads ahead."""
    number = torch.get_num_threads()
    torch.set_num_threads(max(1, number - 1))
    try:
        yield
    finally:
        torch.set_num_threads(number)


def each(function: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    """``[function(part) for part in parts]``, in the threads of `threads`."""
    pool = getattr(_own, "pool", None)
    return list((pool.map if pool is not None else map)(function, parts))


def bounds(n: int, smallest: int = SMALLEST_PART) -> list[int]:
    """Where the parts of n rows begin and end, one part a thread."""
    number = _own.number if getattr(_own, "pool", None) is not None else 1
    parts = max(1, min(number, n // smallest))
    return [n * part // parts for part in range(parts + 1)]


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b, by rows of a."""
    edges = bounds(len(a))
    return _joined(each(lambda i: a[edges[i] : edges[i + 1]] @ b, range(len(edges) - 1)))


class SparseCode:
    """Places of a sparse matrix, row by row.

    Parameters
    ----------
    columns : LongTensor or IntTensor, shape (m,)
    offsets : Tensor, shape (n + 1,)
        Of the same type. Where each row begins in `columns`, and their number at the end.
    n_columns : int
    """

    def __init__(self, columns: torch.Tensor, offsets: torch.Tensor, n_columns: int) -> None:
        self.columns, self.offsets, self.n_columns = columns, offsets, n_columns
        self.n_rows = len(offsets) - 1
        self._transposed: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def regular(cls, columns: torch.Tensor, n_columns: int) -> SparseCode:
        """The same number of places in every row: `columns` is (n, k)."""
        n, k = columns.shape
        return cls(columns.reshape(-1), torch.arange(0, n * k + 1, k, device=columns.device), n_columns)

    @property
    def rows(self) -> torch.Tensor:
        """Row of each place."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(self.n_rows, device=counts.device), counts)

    def at(self, vector: torch.Tensor) -> torch.Tensor:
        """A number of each column, at each place."""
        return vector[self.columns]

    def subset(self, keep: torch.Tensor) -> SparseCode:
        """The places where `keep` (m,) is true."""
        counted = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        return SparseCode(self.columns[keep], counted[self.offsets], self.n_columns)

    def decode(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """a · W, shape (n, d)."""
        return _joined(each(lambda part: _bags(*part, weight), self._by_rows(values)))

    def dots(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Products of each row of `x` with the rows of `weight` at its places, shape (m,)."""
        weight = weight.detach()

        def part(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], upstream: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():  # the derivative of a sum of rows with respect to the weights of the rows
                probe = torch.zeros(len(rows[0]), dtype=x.dtype, device=x.device, requires_grad=True)
                return torch.autograd.grad(_bags(rows[0], rows[1], probe, weight), probe, upstream)[0]

        edges = bounds(self.n_rows)
        pieces = zip(self._by_rows(None), map(slice, edges, edges[1:]), strict=True)
        return _joined(each(lambda piece: part(piece[0], x[piece[1]]), pieces))

    def gram(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """aᵀ · x, shape (F, d). Not by atomic additions: the same bits every time."""
        if self.columns.device.type != "cpu":
            return self.dense(values).T @ x
        offsets, rows, order = self._by_column()
        ordered = values[order]
        # Parts with about as many places, not as many columns: few columns may hold most of them.
        shares = [len(rows) * part // max(1, len(bounds(self.n_rows)) - 1) for part in range(len(bounds(self.n_rows)))]
        edges = [0, *(int(torch.searchsorted(offsets, share)) for share in shares[1:-1]), self.n_columns]

        def part(i: int) -> torch.Tensor:
            first, last = int(offsets[edges[i]]), int(offsets[edges[i + 1]])
            inside = offsets[edges[i] : edges[i + 1] + 1] - first
            return _bags(rows[first:last], inside, ordered[first:last], x)

        return _joined(each(part, range(len(edges) - 1)))

    def _by_rows(self, values: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Columns, offsets and values of consecutive rows, one part a thread."""
        edges = bounds(self.n_rows)
        if len(edges) == 2:
            return [(self.columns, self.offsets, values)]
        parts = []
        for start, stop in itertools.pairwise(edges):
            first, last = int(self.offsets[start]), int(self.offsets[stop])
            inside = None if values is None else values[first:last]
            parts.append((self.columns[first:last], self.offsets[start : stop + 1] - first, inside))
        return parts

    def column_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of each column, shape (F,)."""
        if self.columns.device.type != "cpu":
            return self.dense(values).sum(0)
        return torch.from_numpy(np.bincount(self.columns.numpy(), values.numpy(), self.n_columns)).to(values.dtype)

    def counts(self, values: torch.Tensor) -> torch.Tensor:
        """Values other than zero in each row, shape (n,)."""
        if bool(values.all()):
            return self.offsets.diff()
        counted = torch.cat([self.offsets.new_zeros(1), (values != 0).cumsum(0)])
        return counted[self.offsets].diff()

    def active_columns(self, values: torch.Tensor) -> torch.Tensor:
        """Which columns hold a value above zero, bool (F,)."""
        active = torch.zeros(self.n_columns, dtype=torch.bool, device=values.device)
        active[self.columns[values > 0]] = True
        return active

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """The matrix, shape (n, F)."""
        matrix = torch.zeros(self.n_rows, self.n_columns, dtype=values.dtype, device=values.device)
        matrix[self.rows, self.columns] = values
        return matrix

    def _by_column(self) -> tuple[torch.Tensor, ...]:
        if self._transposed is None:
            shape = (self.n_rows, self.n_columns)
            entries = np.arange(len(self.columns), dtype=np.int32)
            pattern = sp.csr_matrix((entries, self.columns.numpy(), self.offsets.numpy()), shape=shape).tocsc()
            parts = (pattern.indptr, pattern.indices, pattern.data)
            self._transposed = tuple(torch.from_numpy(part.astype(np.int64)) for part in parts)
        return self._transposed


def _bags(indices: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted sums of the rows of `weight`."""
    return functional.embedding_bag(
        indices, weight, offsets, per_sample_weights=values, mode="sum", include_last_offset=True
    )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class DenseCode:
    """All places of an (n, F) matrix; the values beside it are the matrix itself."""

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self.n_rows, self.n_columns = n_rows, n_columns

    def at(self, vector: torch.Tensor) -> torch.Tensor:
        """A number of each column, at each place."""
        return vector

    def decode(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """a · W, shape (n, d)."""
        return product(values, weight)

    def dots(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x · Wᵀ, shape (n, F)."""
        return product(x, weight.T)

    def gram(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """aᵀ · x, shape (F, d)."""
        return product(values.T, x)

    def column_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of each column, shape (F,)."""
        return values.sum(0)

    def active_columns(self, values: torch.Tensor) -> torch.Tensor:
        """Which columns hold a value above zero, bool (F,)."""
        return (values > 0).any(0)


Code = SparseCode | DenseCode


class Encoder:
    """The product z · Wᵀ + c, computed in blocks to find its largest entries.

    Parameters
    ----------
    weight : Tensor, shape (F, d)
    bias : Tensor, shape (F,)
    low : bool
        Compute in bfloat16. The places found are then those of the rounded numbers; `SparseCode.dots`
        gives the exact ones.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, low: bool) -> None:
        self.weight, self.bias = (weight.bfloat16(), bias.bfloat16()) if low else (weight, bias)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """The whole product, float32 (n, F)."""
        edges = bounds(len(z))
        return _joined(each(lambda i: self._product(z[edges[i] : edges[i + 1]]), range(len(edges) - 1)))

    def _product(self, z: torch.Tensor) -> torch.Tensor:
        return functional.linear(z.to(self.weight.dtype), self.weight, self.bias).float()

    def largest(self, z: torch.Tensor, k: int) -> SparseCode:
        """The places of the k largest entries of every row, in no particular order."""
        if z.device.type != "cpu":
            size = max(1, DEVICE_VALUES // len(self.weight))
            columns = torch.cat([self._product(piece).topk(k, dim=1, sorted=False).indices for piece in z.split(size)])
        else:
            parts = self._in_blocks(z, lambda pre: largest_columns(pre, k))
            columns = torch.from_numpy(np.concatenate(parts))
        return SparseCode.regular(columns, len(self.weight))

    def above(self, z: torch.Tensor, threshold: torch.Tensor | float) -> SparseCode:
        """The places of all entries above a threshold, one for all columns or one for each (F,)."""
        if z.device.type != "cpu":
            size = max(1, DEVICE_VALUES // len(self.weight))
            masks = [self._product(piece) > threshold for piece in z.split(size)]
            columns = torch.cat([mask.nonzero()[:, 1] for mask in masks])
            counts = torch.cat([mask.sum(1) for mask in masks])
        else:
            limit = np.float32(threshold) if isinstance(threshold, float) else threshold.numpy()
            parts = self._in_blocks(z, lambda pre: _above(pre, limit))
            columns = torch.from_numpy(np.concatenate([columns for columns, _ in parts]))
            counts = torch.from_numpy(np.concatenate([counts for _, counts in parts]))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return SparseCode(columns, offsets, len(self.weight))

    def _in_blocks(self, z: torch.Tensor, function: Callable[[np.ndarray], object]) -> list:
        size = max(16, BLOCK_VALUES // len(self.weight))
        return each(lambda block: function(self._product(block).numpy()), z.split(size))


def largest_columns(pre: np.ndarray, k: int) -> np.ndarray:
    """Columns (n, k) of the k largest entries of each row, in no particular order.

    Examples
    --------
    >>> sorted(largest_columns(np.array([[3.0, 9.0, 1.0, 7.0]]), 2)[0].tolist())
    [1, 3]
    """
    n, n_columns = pre.shape
    if k == n_columns or n == 0:
        return np.broadcast_to(np.arange(k), (n, k))
    groups, rest = divmod(n_columns, GROUPS)
    if groups < 4 * k:
        return np.argpartition(pre, n_columns - k, axis=1)[:, n_columns - k :]
    # Group g has the columns g, g + groups, g + 2 groups …: their maximum is an elementwise one.
    maxima = pre[:, : n_columns - rest].reshape(n, GROUPS, groups).max(1)
    best = np.argpartition(maxima, groups - k, axis=1)[:, groups - k :]
    candidates = (best[:, :, None] + np.arange(0, n_columns - rest, groups)).reshape(n, -1)
    if rest:
        last = np.broadcast_to(np.arange(n_columns - rest, n_columns), (n, rest))
        candidates = np.concatenate([candidates, last], axis=1)
    chosen = np.argpartition(np.take_along_axis(pre, candidates, 1), candidates.shape[1] - k, axis=1)
    return np.take_along_axis(candidates, chosen[:, candidates.shape[1] - k :], 1)


def _above(pre: np.ndarray, limit: np.ndarray | np.float32) -> tuple[np.ndarray, np.ndarray]:
    mask = pre > limit
    return np.flatnonzero(mask) % pre.shape[1], mask.sum(1)


def sparse_decode(values: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of the rows `indices` of `weight` (F, d), weighted by `values`: (n, k), (n, k) → (n, d)."""
    return SparseCode.regular(indices, len(weight)).decode(values.reshape(-1), weight)


def topk_of_relu(pre: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest positive entries of every row; of equal entries the lower column wins.

    Parameters
    ----------
    pre : Tensor, shape (n, F)
    k : int

    Returns
    -------
    values, indices : Tensor, shape (n, k)
        Where fewer than k entries are positive the remaining values are 0.
    """
    n_columns = pre.shape[1]
    if k == n_columns:
        return pre.relu(), torch.arange(n_columns, device=pre.device).expand_as(pre)
    values, indices = pre.topk(k + 1, dim=1)
    tied = torch.nonzero((values[:, k] == values[:, k - 1]) & (values[:, k] > 0)).reshape(-1)
    if len(tied):
        values[tied], indices[tied] = (part[:, : k + 1] for part in pre[tied].sort(dim=1, descending=True, stable=True))
    return values[:, :k].relu(), indices[:, :k]
