"""Products with a matrix that has few non-zeros per row.

With `a` (n, F) given as values and column indices, both (n, k):

* ``sparse_decode``: a · W, cost 2nkd instead of 2nFd;
* ``sampled_dot``: (x · Wᵀ) at the given places only, the gradient of the former with
  respect to the values, and the exact value of selected pre-activations;
* ``Transposed``: aᵀ · g, the gradient with respect to W, by sorting the non-zeros by column.

On CPU each takes 1 to 6 ms at n = 4,096, k = 32, F = 4,096, d = 256, where the dense
float32 product takes about 100 ms. On other devices ``Transposed`` falls back to one
dense product, which is fast there and, unlike atomic additions, deterministic.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional


def sparse_decode(values: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of the rows `indices` of `weight` (F, d), weighted by `values`: (n, k), (n, k) → (n, d)."""
    return functional.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def sampled_dot(x: torch.Tensor, weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Dot products of each row of `x` (n, d) with its own rows `indices` (n, k) of `weight` (F, d)."""
    with torch.enable_grad():
        probe = torch.zeros(indices.shape, dtype=x.dtype, device=x.device, requires_grad=True)
        output = sparse_decode(probe, indices, weight.detach())
        return torch.autograd.grad(output, probe, x)[0]


class Transposed:
    """The transpose of a sparse pattern, built once and used for several products.

    Parameters
    ----------
    indices : LongTensor, shape (n, k)
        Column of each entry; within a row all different.
    n_columns : int
    """

    def __init__(self, indices: torch.Tensor, n_columns: int) -> None:
        self.indices, self.n_columns = indices, n_columns
        self.sparse = indices.device.type == "cpu"
        if self.sparse:
            n, k = indices.shape
            pattern = sp.csr_matrix(
                (np.arange(n * k), indices.reshape(-1).numpy(), np.arange(n + 1) * k), shape=(n, n_columns)
            ).tocsc()
            self.offsets = torch.from_numpy(pattern.indptr[:-1].astype(np.int64))
            self.rows = torch.from_numpy(pattern.indices.astype(np.int64))
            self.order = torch.from_numpy(pattern.data.astype(np.int64))

    def dot(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """aᵀ · x, shape (n_columns, d), for the entries `values` (n, k) and `x` (n, d)."""
        if not self.sparse:
            return self._dense(values).T @ x
        ordered = values.reshape(-1)[self.order]
        return functional.embedding_bag(self.rows, x, self.offsets, per_sample_weights=ordered, mode="sum")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Column sums of a, shape (n_columns,)."""
        if not self.sparse:
            return self._dense(values).sum(0)
        sums = np.bincount(self.indices.reshape(-1).numpy(), values.reshape(-1).numpy(), self.n_columns)
        return torch.from_numpy(sums).to(values.dtype)

    def _dense(self, values: torch.Tensor) -> torch.Tensor:
        dense = torch.zeros(len(values), self.n_columns, dtype=values.dtype, device=values.device)
        return dense.scatter_(1, self.indices, values)


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
