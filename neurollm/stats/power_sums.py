"""Sums over the groups of rows of every column, from the stored nonzeros alone where the columns are sparse.

For a group g of n_g rows with column mean m, the central power sum is ``Σ_{i∈g} (y_i − m)^p``. In a
sparse column it is the sum over the nonzeros plus ``(n_g − n_nonzero) (−m)^p``: two passes, no
cancellation of raw moments. Groups without a nonzero contribute nothing and are never visited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, canonical_columns, column_blocks

SPARSE_BLOCK = 1 << 16  # columns of a sparse array walked at once

RAW = 0  # key of the sum of squares about 0, which tells variation from rounding
Sums = dict[int, np.ndarray]
Terms = Callable[[np.ndarray, Sums], list[np.ndarray]]


@dataclass(frozen=True)
class Groups:
    """Rows sorted by group: `order` brings equal groups together, `starts` and `sizes` say where each lies."""

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @property
    def codes(self) -> np.ndarray:
        """Group number of each row, in the sorted order."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)


def group_rows(labels: np.ndarray | None, n_rows: int) -> Groups:
    """Sort `n_rows` rows by their group label; None is one group.

    Raises
    ------
    InvalidInput
        There are not as many labels as rows.
    """
    if labels is None:
        return Groups(np.arange(n_rows), np.zeros(1, np.intp), np.array([n_rows]))
    labels = np.asarray(labels)
    if labels.shape != (n_rows,):
        raise InvalidInput(f"blocks have shape {labels.shape}; expected one label for each of the {n_rows} rows.")
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return Groups(np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def within(rows: np.ndarray, groups: Groups) -> np.ndarray:
    """Rows (n × k) in the sorted order, less the mean of their group."""
    rows = rows[groups.order]
    means = np.add.reduceat(rows, groups.starts, axis=0) / groups.sizes[:, None]
    return rows - np.repeat(means, groups.sizes, axis=0)


def group_totals(rows: np.ndarray, groups: Groups) -> np.ndarray:
    """Sums over each group of rows that are in the sorted order."""
    return np.add.reduceat(rows, groups.starts, axis=0)


def raw_sums(Y: Any, powers: tuple[int, ...]) -> np.ndarray:
    """Sums of powers of every column about 0, shape (number of powers, V)."""
    if sparse.issparse(Y):
        csc, ones = canonical_columns(Y), np.ones(Y.shape[0])
        raised = (_raised(csc.data, power) for power in powers)
        return np.stack([ones @ sparse.csc_array((values, csc.indices, csc.indptr), csc.shape) for values in raised])
    out = np.empty((len(powers), Y.shape[1]))
    for columns, block in column_blocks(Y, BLOCK):
        out[:, columns] = [np.sum(_raised(block, power), axis=0) for power in powers]
    return out


def add_up(Y: Any, groups: Groups, powers: tuple[int, ...], terms: Terms, residual: np.ndarray | None = None) -> Any:
    """Add `terms` of the central power sums over the groups, for every column.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    groups : Groups
    powers : tuple of int
    terms : callable
        ``terms(g, sums)`` with group numbers g and ``sums[p]`` (``sums[RAW]``: Σy²), arrays that broadcast; a list
        of arrays, each 0 for a group in which a column is 0.
    residual : ndarray, shape (n, k), optional
        Orthonormal columns, orthogonal to the group indicators, in the sorted row order, that are removed from
        the columns first. They fill every row, so sparse columns are then read densely.

    Returns
    -------
    ndarray, shape (number of terms, V)
    """
    if sparse.issparse(Y) and residual is None:
        blocks = _sparse_terms(canonical_columns(Y), groups, powers, terms)
    else:
        blocks = _dense_terms(Y, groups, powers, terms, residual)
    parts = list(blocks)
    return np.concatenate(parts, axis=1) if parts else np.empty((len(terms(np.arange(0), _no_sums(powers))), 0))


def _raised(values: np.ndarray, power: int) -> np.ndarray:
    """A whole power by products: numpy calls the general power for all but squares, which is ten times slower."""
    half = values if power == 1 else _raised(values, power // 2)
    return half if power == 1 else half * half * values if power % 2 else half * half


def _no_sums(powers: tuple[int, ...]) -> Sums:
    return {power: np.empty(0) for power in (RAW, *powers)}


def _dense_terms(Y, groups, powers, terms, residual):
    numbers = np.arange(groups.sizes.size)[:, None]
    for _, block in column_blocks(Y, BLOCK):
        deviations = within(block, groups)
        if residual is not None:
            deviations -= residual @ (residual.T @ deviations)
        sums = {power: group_totals(_raised(deviations, power), groups) for power in powers}
        sums[RAW] = group_totals(block[groups.order] ** 2, groups)
        yield np.stack([np.broadcast_to(term, sums[powers[0]].shape).sum(axis=0) for term in terms(numbers, sums)])


def _sparse_terms(csc, groups, powers, terms):
    codes, n_groups = groups.codes, groups.sizes.size
    for start in range(0, csc.shape[1], SPARSE_BLOCK):
        block = csc[:, start : start + SPARSE_BLOCK]
        if n_groups > 1:
            block = block.tocsr()[groups.order].tocsc()  # through CSR: rows come out sorted
        columns = np.repeat(np.arange(block.shape[1]), np.diff(block.indptr))
        keys = columns * n_groups + codes[block.indices]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.diff(first, append=keys.size)
        column, number = np.divmod(keys[first], n_groups)
        means = np.add.reduceat(block.data, first) / groups.sizes[number]
        deviations, zeros = block.data - np.repeat(means, counts), groups.sizes[number] - counts
        sums = {
            power: np.add.reduceat(_raised(deviations, power), first) + zeros * _raised(-means, power)
            for power in powers
        }
        sums[RAW] = np.add.reduceat(block.data**2, first)
        yield np.stack([np.bincount(column, term, minlength=block.shape[1]) for term in terms(number, sums)])
