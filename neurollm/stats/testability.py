"""The largest statistic that any shuffling could give a feature: what cannot be significant, whatever the labels.

For a row x and a column y, both centred inside blocks, the rearrangement inequality gives the extremes of
r = xᵀPy/ν over all permutations P inside blocks: both sorted in the same order, and in opposite orders, in each block.
For signs the extreme is Σ|d| / (√n ν). These bounds do not know the labels, so leaving out the features that
cannot reach a critical value keeps every test valid (Tarone 1990).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, canonical_columns, column_blocks
from neurollm.stats.moments import Alternative, varying
from neurollm.stats.power_sums import (
    RAW,
    SPARSE_BLOCK,
    Groups,
    add_up,
    group_rows,
    raw_sums,
    within,
)


def largest_statistic(
    x: np.ndarray, Y: Any, blocks: np.ndarray | None = None, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """Most extreme r of every column over all permutations inside blocks.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Unit norm, centred inside blocks.
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    blocks : ndarray, shape (n,), optional
        Rows with equal labels are exchanged; default: all rows.
    alternative : {"two-sided", "greater", "less"}

    Returns
    -------
    ndarray, shape (V,)
        At least 0: the largest |r|, r or −r. NaN for a constant or non-finite feature.

    Raises
    ------
    InvalidInput
        `x` is not centred inside blocks, or shapes disagree.

    Examples
    --------
    >>> x = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    >>> largest_statistic(x, np.array([[0.0], [1.0], [2.0]])).round(12).tolist()
    [1.0]
    """
    groups = group_rows(blocks, Y.shape[0])
    x = np.asarray(x, float)
    if x.shape != (Y.shape[0],):
        raise InvalidInput(f"x has shape {x.shape}; expected one number for each of the {Y.shape[0]} rows.")
    rising = within(x[:, None], groups)[:, 0]
    if not np.allclose(rising, x[groups.order], atol=1e-8):
        raise InvalidInput("x must be centred inside blocks; subtract the mean of each block.")
    rising = rising[np.lexsort([rising, groups.codes])]
    raw, norm2 = add_up(Y, groups, (2,), lambda g, sums: [sums[RAW], sums[2]])
    extremes = _sparse_extremes if sparse.issparse(Y) else _dense_extremes
    parts = list(extremes(Y, groups, rising))
    largest, smallest = np.concatenate(parts, axis=1) if parts else np.empty((2, 0))
    reached = {"two-sided": np.maximum(largest, -smallest), "greater": largest, "less": -smallest}[alternative]
    return reached / np.sqrt(varying(norm2, raw))


def largest_flip_statistic(Y: Any) -> np.ndarray:
    """Largest r of every column over all signs: Σ|d| / (√n ν).

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
        Differences d.

    Returns
    -------
    ndarray, shape (V,)
        NaN for a column of zeros.

    Examples
    --------
    >>> largest_flip_statistic(np.array([[1.0, 0.0], [-1.0, 3.0], [1.0, 0.0]])).round(3).tolist()
    [1.0, 0.577]
    """
    total, squares = raw_sums(abs(Y), (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / np.sqrt(Y.shape[0] * squares)


def _dense_extremes(Y: Any, groups: Groups, rising: np.ndarray):
    """Σ x y in the same and in opposite orders; rows of equally large blocks are sorted together."""
    sizes = np.unique(groups.sizes)
    rows = [groups.starts[groups.sizes == size, None] + np.arange(size) for size in sizes]
    for _, block in column_blocks(Y, BLOCK):
        out = np.zeros((2, block.shape[1]))
        centred = within(block, groups)
        for index in rows:
            values = np.sort(centred[index], axis=1)
            out[0] += np.einsum("bk,bkv->v", rising[index], values)
            out[1] += np.einsum("bk,bkv->v", rising[index][:, ::-1], values)
        yield out


def _sparse_extremes(Y: Any, groups: Groups, rising: np.ndarray):
    """The same from the nonzeros: positive ones take one end of the sorted row, negative ones the other."""
    csc = canonical_columns(Y)
    n_groups, ends = groups.sizes.size, groups.starts + groups.sizes - 1
    position = np.empty(groups.order.size, np.intp)
    position[groups.order] = groups.codes
    for start in range(0, csc.shape[1], SPARSE_BLOCK):
        block = csc[:, start : start + SPARSE_BLOCK]
        columns = np.repeat(np.arange(block.shape[1]), np.diff(block.indptr))
        keys = (columns * n_groups + position[block.indices]) * 2 + (block.data > 0)
        order = np.lexsort([-np.abs(block.data), keys])
        keys, values, columns = keys[order], block.data[order], columns[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        rank = np.arange(keys.size) - np.repeat(first, np.diff(first, append=keys.size))
        group, positive = keys // 2 % n_groups, keys % 2 == 1
        top, bottom = rising[ends[group] - rank], rising[groups.starts[group] + rank]
        yield np.stack(
            [
                np.bincount(columns, values * np.where(positive, top, bottom), minlength=block.shape[1]),
                np.bincount(columns, values * np.where(positive, bottom, top), minlength=block.shape[1]),
            ]
        )
