"""Rank transforms of item tables, which turn t statistics into rank tests.

============================  ==========================================  ============================
rows                          ranked                                      the t test becomes
============================  ==========================================  ============================
one value per item            over items                                  Wilcoxon rank sum, Kruskal–Wallis
a difference per item         sizes over items, with the sign kept        Wilcoxon signed rank
cells of an item              inside each item                            Friedman
============================  ==========================================  ============================

Ranks over items are stored as ``rank − rank of zero``, so zero stays zero and sparse features stay sparse: tests of
centred rows do not see the constant. Ties share their mean rank; differences of zero get the signed rank 0 and
count among the ranks (Pratt 1959).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import by_columns, canonical_columns, column_blocks, dense, is_torch, join_columns
from neurollm.stats.threads import in_parts

_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of equal activations, as a share of them; seen: up to 5 eps

Kind = Literal["sign_flip", "within_item", "whole_item"]


def rank_rows(Y: Any, kind: Kind, rows_per_item: int = 1, size: Any = None) -> Any:
    """Rank the rows of every column.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    kind : {"whole_item", "sign_flip", "within_item"}
        What is exchanged; see the table above.
    rows_per_item : int, default=1
        For "within_item".
    size : as `Y`, optional
        The size of what each value was computed from (of a difference: the sum of the two); default: its own.
        Neighbours that differ by no more than 1e-6 of it are tied, because equal activations differ by the rounding of
        float32 and equal means by the order of summation.

    Returns
    -------
    CSC for sparse input, a tensor for torch, else ndarray
        Float64; a column with a value that is not finite becomes NaN.

    Examples
    --------
    >>> rank_rows(np.array([[0.0], [5.0], [2.0], [0.0]]), "whole_item").ravel().tolist()
    [0.0, 2.5, 1.5, 0.0]
    >>> rank_rows(np.array([[-3.0], [1.0], [2.0]]), "sign_flip").ravel().tolist()
    [-3.0, 1.0, 2.0]
    """
    Y = by_columns(Y)
    size = Y if size is None else by_columns(size)
    if sparse.issparse(Y):
        if kind == "within_item":
            parts = [sparse.csc_array(ranked) for _, ranked in _dense_blocks(Y, size, kind, rows_per_item)]
            return join_columns(parts) if parts else Y
        Y, size = canonical_columns(Y), canonical_columns(size)
        return join_columns(in_parts(lambda columns: _sparse(Y[:, columns], size[:, columns], kind), Y.shape[1]))
    out = np.empty(Y.shape)
    for columns, ranked in _dense_blocks(Y, size, kind, rows_per_item):
        out[:, columns] = ranked
    if is_torch(Y):
        import torch

        return torch.as_tensor(out, device=Y.device)
    return out


def _dense_blocks(Y: Any, size: Any, kind: Kind, rows_per_item: int) -> Iterator[tuple[slice, np.ndarray]]:
    for columns, block in column_blocks(Y):
        block = np.where(np.isfinite(block), block, np.nan)
        yield columns, _ranked(block, _ROUNDING * np.abs(dense(size[:, columns])), kind, rows_per_item)


def _ranked(block: np.ndarray, tolerance: np.ndarray, kind: Kind, rows_per_item: int) -> np.ndarray:
    if kind == "within_item":

        def turned(values: np.ndarray) -> np.ndarray:  # the cells of an item below each other
            return np.moveaxis(values.reshape(-1, rows_per_item, block.shape[1]), 1, 0).reshape(rows_per_item, -1)

        ranks = _mean_ranks(turned(block), turned(tolerance)) - (rows_per_item + 1) / 2
        return np.moveaxis(ranks.reshape(rows_per_item, -1, block.shape[1]), 0, 1).reshape(block.shape)
    block = np.where(np.abs(block) <= tolerance, 0.0, block)
    tolerance = np.where(block == 0, 0.0, tolerance)  # nothing is close to zero but what is zero already
    if kind == "sign_flip":
        return np.sign(block) * _mean_ranks(np.abs(block), tolerance)
    below, zeros = (block < 0).sum(axis=0), (block == 0).sum(axis=0)
    return _mean_ranks(block, tolerance) - (below + (zeros + 1) / 2)


def _mean_ranks(values: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Ranks along the first axis; neighbours that lie within the larger of their tolerances share their mean rank."""
    order = np.lexsort((tolerance, values), axis=0)  # by tolerance too, or the order of rows would decide
    near = np.take_along_axis(tolerance, order, axis=0)
    gaps = np.diff(np.take_along_axis(values, order, axis=0), axis=0)
    first = np.ones(values.shape, bool)
    first[1:] = ~(gaps <= np.maximum(near[1:], near[:-1]))
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, _group_means(first), axis=0)
    ranks[:, np.isnan(values).any(axis=0)] = np.nan
    return ranks


def _group_means(first: np.ndarray) -> np.ndarray:
    """Mean rank, counted along the first axis, of the group of neighbours each entry is in; `first` begins a group."""
    place = np.arange(1, len(first) + 1).reshape(-1, *[1] * (first.ndim - 1))
    start = np.maximum.accumulate(np.where(first, place, 0), axis=0)
    last = np.ones(first.shape, bool)
    last[:-1] = first[1:]
    end = np.minimum.accumulate(np.where(last, place, len(first))[::-1], axis=0)[::-1]
    return (start + end) / 2


def _sparse(Y: sparse.csc_array, size: sparse.csc_array, kind: Kind) -> sparse.csc_array:
    """Ranks from the nonzeros alone: the zeros of a column share one rank, which is stored as zero."""
    n, n_columns = Y.shape
    column = np.repeat(np.arange(n_columns), np.diff(Y.indptr))
    broken = np.bincount(column[~np.isfinite(Y.data)], minlength=n_columns) > 0
    tolerance = _ROUNDING * np.abs(_at(size, column, Y.indices))
    kept = (np.abs(Y.data) > tolerance) & ~broken[column]
    column, row, value, tolerance = column[kept], Y.indices[kept], Y.data[kept], tolerance[kept]
    sorted_by = np.abs(value) if kind == "sign_flip" else value
    order = np.lexsort((tolerance, sorted_by, column))
    column, row, value, near, sorted_by = (array[order] for array in (column, row, value, tolerance, sorted_by))
    first = np.ones(column.size, bool)
    first[1:] = (np.diff(column) > 0) | ~(np.diff(sorted_by) <= np.maximum(near[1:], near[:-1]))
    counts = np.bincount(column, minlength=n_columns)
    zeros = (n - counts)[column]
    rank = _group_means(first) - (np.cumsum(counts) - counts)[column]  # among the nonzeros of the column
    if kind == "sign_flip":
        rank = np.sign(value) * (rank + zeros)
    else:
        below = np.bincount(column[value < 0], minlength=n_columns)[column]
        rank += np.where(value > 0, zeros, 0) - (below + (zeros + 1) / 2)
    everywhere = np.flatnonzero(broken)
    rank = np.append(rank, np.full(everywhere.size * n, np.nan))
    places = np.append(row, np.tile(np.arange(n), everywhere.size)), np.append(column, np.repeat(everywhere, n))
    return canonical_columns(sparse.coo_array((rank, places), shape=Y.shape))


def _at(array: sparse.csc_array, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Stored values at these places, in the order of a canonical CSC; 0 where none is stored."""
    n = array.shape[0]
    stored = np.repeat(np.arange(array.shape[1]), np.diff(array.indptr)) * n + array.indices
    wanted = column * n + row
    place = np.minimum(np.searchsorted(stored, wanted), max(stored.size - 1, 0))
    found = stored[place] == wanted if stored.size else np.zeros(wanted.size, bool)
    return np.where(found, array.data[place] if stored.size else 0.0, 0.0)
