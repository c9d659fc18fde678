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

from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from neurollm.stats.arrays import by_columns, column_blocks, dense, is_torch

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
    size = abs(Y) if size is None else by_columns(size)

    def ranked(columns: slice, block: np.ndarray) -> np.ndarray:
        block = np.where(np.isfinite(block), block, np.nan)
        return _ranked(block, _ROUNDING * dense(size[:, columns]), kind, rows_per_item)

    if sparse.issparse(Y):
        parts = [sparse.csc_array(ranked(columns, block)) for columns, block in column_blocks(Y)]
        return sparse.hstack(parts, format="csc") if parts else Y
    out = np.empty(Y.shape)
    for columns, block in column_blocks(Y):
        out[:, columns] = ranked(columns, block)
    if is_torch(Y):
        import torch

        return torch.as_tensor(out, device=Y.device)
    return out


def _ranked(block: np.ndarray, tolerance: np.ndarray, kind: Kind, rows_per_item: int) -> np.ndarray:
    if kind == "within_item":
        cube = _tied(block, tolerance).reshape(-1, rows_per_item, block.shape[1])
        return (rankdata(cube, axis=1, nan_policy="propagate") - (rows_per_item + 1) / 2).reshape(block.shape)
    block = np.where(np.abs(block) <= tolerance, 0.0, block)
    if kind == "sign_flip":
        return np.sign(block) * rankdata(_tied(np.abs(block), tolerance), axis=0, nan_policy="propagate")
    ranks = rankdata(_tied(block, tolerance), axis=0, nan_policy="propagate")
    below, zeros = (block < 0).sum(axis=0), (block == 0).sum(axis=0)
    return ranks - (below + (zeros + 1) / 2)


def _tied(block: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Values of each column, with neighbours that lie within the larger of their tolerances replaced by the first."""
    order = np.argsort(block, axis=0)
    values, near = np.take_along_axis(block, order, axis=0), np.take_along_axis(tolerance, order, axis=0)
    first = np.ones(block.shape, bool)
    first[1:] = ~(np.diff(values, axis=0) <= np.maximum(near[1:], near[:-1]))
    start = np.maximum.accumulate(np.where(first, np.arange(len(block))[:, None], 0), axis=0)
    out = np.empty_like(block)
    np.put_along_axis(out, order, np.take_along_axis(values, start, axis=0), axis=0)
    return out
