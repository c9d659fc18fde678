"""One way to read a trials × features array: numpy, memory map, scipy.sparse or torch.

Everything numerical walks over *blocks of columns* (features). A block is small, dense and
float64, so the array itself is only ever read: it may be sparse, half precision or on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.threads import in_parts

BLOCK = 1024  # columns: 200 rows × 1024 × 8 bytes stay in a core's cache


def is_torch(array: Any) -> bool:
    """Whether `array` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def namespace(array: Any) -> Any:
    """The module whose functions take `array`: torch or numpy."""
    if is_torch(array):
        import torch

        return torch
    return np


def by_columns(array: Any) -> Any:
    """Return the array in the form whose column blocks are cheap (sparse becomes CSC)."""
    if sparse.issparse(array):
        return array.tocsc()
    return array if is_torch(array) or isinstance(array, np.ndarray) else np.asarray(array)


def canonical_columns(array: Any) -> sparse.csc_array:
    """CSC in float64 with sorted rows and no row twice in a column; the caller's array is left as it is."""
    csc = sparse.csc_array(array, dtype=np.float64)
    if not csc.has_canonical_format:
        csc = csc.copy()
        csc.sum_duplicates()
    return csc


def column_blocks(array: Any, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ``(columns, dense float64 block)`` over all columns of any supported array."""
    array = by_columns(array)
    for start in range(0, array.shape[1], size):
        columns = slice(start, min(start + size, array.shape[1]))
        yield columns, dense(array[:, columns])


def dense(block: Any) -> np.ndarray:
    """A float64 numpy copy of a block of any supported array."""
    if sparse.issparse(block):
        return block.toarray().astype(np.float64, copy=False)
    if is_torch(block):
        block = block.detach().cpu().double().numpy()  # of a float64 tensor the same memory, hence the copy
    return np.array(block, dtype=np.float64)


def combine_rows(weights: sparse.csr_array, array: Any, transform: Callable | None = None, n_jobs: int = 1) -> Any:
    """Multiply ``weights (m × n) @ transform(array) (n × V)`` in float64.

    Parameters
    ----------
    weights : scipy.sparse.csr_array
        One row per output row: averages, differences or selections of the input's rows.
    array : ndarray, memory map, scipy.sparse or torch.Tensor
    transform : callable, optional
        Elementwise function with ``transform(0) = 0``, applied before the product.
    n_jobs : int, default=1
        Threads over sparse columns; -1 for all cores.

    Returns
    -------
    CSC for sparse input, a torch tensor on the same device for torch, else ndarray
    """
    if sparse.issparse(array):
        csc, turned = canonical_columns(array), weights.T.tocsr()  # a transform acts on values, not on their parts

        def part(columns: slice) -> sparse.csc_array:
            block = csc[:, columns]
            if transform is not None:
                block.data = transform(block.data)
            product = sparse.csc_array((block.T @ turned).T)  # without a change of format
            product.sum_duplicates()  # also sorts, so that later steps know
            product.eliminate_zeros()
            return product

        return join_columns(in_parts(part, csc.shape[1], n_jobs))
    if is_torch(array):
        import torch

        values = array.double() if transform is None else torch.as_tensor(transform(dense(array)), device=array.device)
        return _torch_product(torch.as_tensor(weights.toarray(), device=array.device), values)
    out = np.empty((weights.shape[0], array.shape[1]))
    for columns, block in column_blocks(array):
        out[:, columns] = weights @ (block if transform is None else transform(block))
    return out


def join_columns(parts: list[Any]) -> Any:
    """Blocks of columns side by side: sparse ones as CSC, else ndarray; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    if not sparse.issparse(parts[0]):
        return np.concatenate(parts, axis=-1)
    starts = np.cumsum([0, *(part.nnz for part in parts)])
    indptr = [part.indptr[:-1].astype(np.int64) + start for part, start in zip(parts, starts[:-1], strict=True)]
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "indices")]
    shape = parts[0].shape[0], sum(part.shape[1] for part in parts)
    return sparse.csc_array((*arrays, np.concatenate([*indptr, starts[-1:]])), shape=shape)


def take_rows(array: Any, rows: np.ndarray) -> Any:
    """Rows of any supported array, in rising order.

    Parameters
    ----------
    array : ndarray, scipy.sparse or torch.Tensor, shape (n, V)
    rows : ndarray of int
        Rising, without repeats.

    Returns
    -------
    the kind of `array` (sparse: CSC)
    """
    if len(rows) == array.shape[0]:
        return array
    if not sparse.issparse(array):
        return array[rows]
    csc = array.tocsc()  # scipy's own choice of rows sorts every column again
    keep = np.zeros(array.shape[0], bool)
    keep[rows] = True
    kept = keep[csc.indices]
    starts = np.concatenate([[0], np.cumsum(kept)])[csc.indptr]
    indices = (np.cumsum(keep) - 1)[csc.indices[kept]]
    return sparse.csc_array((csc.data[kept], indices, starts), shape=(len(rows), array.shape[1]))


def _torch_product(weights: Any, values: Any) -> Any:
    """Product in which a weight of 0 leaves a value out even if it is not finite, as in a sparse product."""
    finite = values.isfinite()
    if finite.all():
        return weights @ values
    product = weights @ values.where(finite, values.new_zeros(()))
    touched = (weights != 0).to(values.dtype) @ (~finite).to(values.dtype) > 0
    return product.masked_fill(touched, float("nan"))


def has_negative(array: Any) -> bool:
    """Whether any supported array holds a number below zero."""
    if sparse.issparse(array):
        return bool((array.data < 0).any())
    if is_torch(array):
        return bool((array < 0).any())
    return any(bool((array[:, start : start + BLOCK] < 0).any()) for start in range(0, array.shape[1], BLOCK))


def column_squares(block: Any, weights: np.ndarray | None = None) -> np.ndarray:
    """Sums of squares of the columns of a dense or (canonical) sparse block, with a weight for each row."""
    if sparse.issparse(block):
        csc = block.tocsc()
        squares = csc.data**2 if weights is None else csc.data**2 * weights[csc.indices]
        return np.ones(csc.shape[0]) @ sparse.csc_array((squares, csc.indices, csc.indptr), shape=csc.shape)
    squares = np.asarray(block) ** 2
    return squares.sum(axis=0) if weights is None else weights @ squares


def column_norms(array: Any) -> np.ndarray:
    """Euclidean norm of each column of any supported array."""
    if sparse.issparse(array):
        return np.sqrt(column_squares(canonical_columns(array)))
    out = np.empty(array.shape[1])
    for columns, block in column_blocks(array):
        with np.errstate(over="ignore"):
            out[columns] = np.sqrt(column_squares(block))
    return out


def largest_values(array: Any) -> np.ndarray:
    """Largest absolute value of each column of any supported array; NaN where a column holds one."""
    out = np.zeros(array.shape[1])
    if sparse.issparse(array):
        csc = canonical_columns(array)
        filled = np.diff(csc.indptr) > 0
        if filled.any():
            out[filled] = np.maximum.reduceat(np.abs(csc.data), csc.indptr[:-1][filled], dtype=float)
        return out
    for columns, block in column_blocks(array):
        out[columns] = np.abs(block).max(axis=0, initial=0)
    return out
