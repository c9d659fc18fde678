"""Numbers computed from coded rows, in the shape of an activation store: a dictionary can be trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from neurollm.interactions.rows import CodedBatch, CodedRows
from neurollm.models import Site


class DerivedStore:
    """Rows f(code, activations) of coded rows.

    It has what `neurollm.dictionaries.training` and `neurollm.dictionaries.metrics` use of a store. Nothing is kept:
    every pass computes the rows anew.

    Parameters
    ----------
    rows : CodedRows
    function : callable
        Takes a CodedBatch of n tokens and gives a float32 Tensor (n, d).
    d : int
    name : str
        Says what is computed, with all that it depends on: part of `sha256`.

    Attributes
    ----------
    n_rows, d : int
    site : Site
        Of the activations; layer 0 for rows of arrays, which know none.
    model_fingerprint, sha256 : str
    manifest : dict

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> rows = CodedRows.from_arrays(sp.eye(4, format="csr"), np.arange(8.0).reshape(4, 2))
    >>> store = DerivedStore(rows, lambda batch: 2 * batch.error, 2, "twice the error")
    >>> store.rows(1, 3).tolist(), store.mean.tolist()
    ([[4.0, 6.0], [8.0, 10.0]], [6.0, 8.0])
    """

    def __init__(self, rows: CodedRows, function: Callable[[CodedBatch], torch.Tensor], d: int, name: str) -> None:
        self._rows, self._function = rows, function
        self.d, self.n_rows, self.dtype = int(d), rows.n_rows, torch.float32
        self.documents = rows.documents
        self.site = rows.site or Site(0)
        self.model_fingerprint = rows.model_fingerprint
        self.sha256 = hashlib.sha256(f"{rows.sha256}\n{name}".encode()).hexdigest()
        self.manifest: dict[str, Any] = {"model": {"name": rows.model_name}, "settings": {"derived": name}}

    @property
    def shards(self) -> list[dict[str, int]]:
        """One."""
        return [{"rows": self.n_rows}]

    def shard(self, index: int) -> dict[str, torch.Tensor]:
        """All rows."""
        return {"acts": self.rows(0, self.n_rows)}

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows `start` to `stop`, (n, d)."""
        if start >= stop:
            return torch.zeros(0, self.d, dtype=dtype)
        mask = np.zeros(self.n_rows, bool)
        mask[start:stop] = True
        return torch.cat([self._of(batch) for batch in self._rows.subset(mask).in_order()]).to(dtype)

    def batches(
        self, batch_size: int, random_state: int = 0, epoch: int = 0, start_batch: int = 0
    ) -> Iterator[torch.Tensor]:
        """Shuffled batches, every row once per epoch; see `CodedRows.batches`."""
        for batch in self._rows.batches(batch_size, random_state, epoch, start_batch):
            yield self._of(batch)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension, float64."""
        return self._statistics[0]

    @property
    def mean_squared_norm(self) -> float:
        """Mean of ‖row‖²."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, float]:
        total, squares = torch.zeros(self.d, dtype=torch.float64), 0.0
        for batch in self._rows.in_order():
            values = self._of(batch).double()
            total += values.sum(0)
            squares += float(values.square().sum())
        return (total / self.n_rows).numpy(), squares / self.n_rows

    def _of(self, batch: CodedBatch) -> torch.Tensor:
        return self._function(batch).cpu()
