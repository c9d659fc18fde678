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

from neurollm.stats.arrays import by_columns, column_blocks, is_torch, largest_values

_RESOLUTION = 2.0**-24  # of float32

Kind = Literal["sign_flip", "within_item", "whole_item"]


def rank_rows(Y: Any, kind: Kind, rows_per_item: int = 1, largest: np.ndarray | None = None) -> Any:
    """Rank the rows of every column.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    kind : {"whole_item", "sign_flip", "within_item"}
        What is exchanged; see the table above.
    rows_per_item : int, default=1
        For "within_item".
    largest : ndarray, shape (V,), optional
        Largest absolute value of what each column was computed from; default: of the column. Values that float32
        would not tell apart beside it are tied: means of equal activations differ by the order of summation.

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
    step = _RESOLUTION * (largest_values(Y) if largest is None else np.asarray(largest, float))
    usable = np.isfinite(step) & (step > 0)
    step = np.where(usable, step, 1.0)

    def ranked(columns: slice, block: np.ndarray) -> np.ndarray:
        rounded = np.where(usable[columns], np.round(block / step[columns]), block)
        return _ranked(rounded, kind, rows_per_item)

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


def _ranked(block: np.ndarray, kind: Kind, rows_per_item: int) -> np.ndarray:
    block = np.where(np.isfinite(block), block, np.nan)
    if kind == "within_item":
        cube = block.reshape(-1, rows_per_item, block.shape[1])
        return (rankdata(cube, axis=1, nan_policy="propagate") - (rows_per_item + 1) / 2).reshape(block.shape)
    if kind == "sign_flip":
        return np.sign(block) * rankdata(np.abs(block), axis=0, nan_policy="propagate")
    ranks = rankdata(block, axis=0, nan_policy="propagate")
    below, zeros = (block < 0).sum(axis=0), (block == 0).sum(axis=0)
    return ranks - (below + (zeros + 1) / 2)
