"""The nonzeros of every column as short rows, for statistics that need them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import BLOCK, canonical_columns, column_blocks
from neurollm.stats.power_sums import SPARSE_BLOCK

MOST_ENUMERATED = 14  # nonzeros of a column all of whose arrangements are tried
_CELLS = 1 << 18  # numbers in one work array: it stays in the cache
_MULTIPLES = 1e-6  # how far a ratio of values may be from a whole number


@dataclass(frozen=True)
class Nonzeros:
    """Columns with similar numbers of nonzeros, scaled to a largest absolute value of 1.

    Attributes
    ----------
    features : ndarray of int, shape (F,)
        Column numbers.
    values : ndarray, shape (F, m)
        The nonzeros, then zeros.
    counts : ndarray of int, shape (F,)
    few : bool
        All columns have the same number of nonzeros, at most `MOST_ENUMERATED`.
    """

    features: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    few: bool


def nonzero_rows(
    Y: Any, wanted: np.ndarray, work: Callable[[int], int] = lambda number: 2**number
) -> Iterator[Nonzeros]:
    """Yield the wanted columns that are finite and not all zero, as rows of nonzeros.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    wanted : ndarray of bool, shape (V,)
    work : callable
        Numbers that a column of so few nonzeros takes while they are enumerated.
    """
    for start, block in _blocks(Y):
        counts = np.diff(block.indptr)
        usable = wanted[start : start + counts.size] & (counts > 0) & np.isfinite(np.ones(block.shape[0]) @ block)
        order = np.flatnonzero(usable)[np.argsort(counts[usable], kind="stable")]
        while order.size:
            few = bool(counts[order[0]] <= MOST_ENUMERATED)
            width = work(int(counts[order[0]])) if few else counts[order[-1]]
            part = order[: max(1, int(_CELLS // width))]
            if few:
                part = part[counts[part] == counts[part[0]]]
            yield Nonzeros(start + part, _scaled(block, part, counts[part]), counts[part], few)
            order = order[part.size :]


def lattice_step(values: np.ndarray) -> np.ndarray:
    """The smallest absolute nonzero of each row if all are multiples of it, else 0."""
    size = np.abs(values)
    smallest = np.min(np.where(size > 0, size, np.inf), axis=1)
    ratio = size / smallest[:, None]
    multiples = (np.abs(ratio - np.round(ratio)) < _MULTIPLES).all(axis=1) & (ratio.max(axis=1) < 1000)
    return np.where(multiples, smallest, 0)


def _scaled(block: sparse.csc_array, part: np.ndarray, counts: np.ndarray) -> np.ndarray:
    position = np.arange(counts[-1])
    filled = position < counts[:, None]
    values = np.zeros(filled.shape)
    values[filled] = block.data[(block.indptr[part, None] + position)[filled]]
    return values / np.abs(values).max(axis=1, keepdims=True)


def _blocks(Y: Any) -> Iterator[tuple[int, sparse.csc_array]]:
    """Blocks of columns as CSC without stored zeros."""
    if not sparse.issparse(Y):
        yield from ((columns.start, sparse.csc_array(block)) for columns, block in column_blocks(Y, BLOCK))
        return
    csc = canonical_columns(Y)
    for start in range(0, csc.shape[1], SPARSE_BLOCK):
        block = csc[:, start : start + SPARSE_BLOCK].copy()
        block.eliminate_zeros()
        yield start, block
