"""Activations to measure a dictionary on: rows of an array or of an activation store, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.base import Dictionary, as_tensor
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

Rows: TypeAlias = Union["ActivationStore", torch.Tensor, np.ndarray]


def count_rows(data: Rows) -> int:
    """Number of rows; InvalidInput if `data` is neither a store nor an array of shape (n, d)."""
    if isinstance(data, torch.Tensor | np.ndarray):
        if data.ndim != 2:
            raise InvalidInput(f"activations: expected shape (n, d), got {tuple(data.shape)}")
        return len(data)
    if not hasattr(data, "n_rows"):
        raise InvalidInput(
            f"activations: expected an activation store or an array of shape (n, d), got a {type(data).__name__}"
        )
    return data.n_rows


def row_batches(data: Rows, batch_size: int = 4096) -> Iterator[torch.Tensor]:
    """The rows in order, at most `batch_size` at a time."""
    n = count_rows(data)
    is_array = isinstance(data, torch.Tensor | np.ndarray)
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        yield as_tensor(data[start:stop]) if is_array else data.rows(start, stop)


def check_rows(dictionary: Dictionary, data: Rows) -> None:
    """Refuse a store of another site or another model with DataMismatch; arrays say nothing about either."""
    count_rows(data)
    if isinstance(data, torch.Tensor | np.ndarray):
        return
    if data.site != dictionary.site:
        raise DataMismatch(f"{dictionary} was made at {dictionary.site}; the activation store holds {data.site}")
    known = dictionary.model_fingerprint and data.model_fingerprint
    if known and dictionary.model_fingerprint != data.model_fingerprint:
        raise DataMismatch(
            f"{dictionary} was trained on a model with fingerprint {dictionary.model_fingerprint[:12]}; the "
            f"activation store is of one with {data.model_fingerprint[:12]}"
        )


def check_alike(where: str, a: Dictionary, b: Dictionary, names: tuple[str, str]) -> None:
    """Refuse two dictionaries of different sites, widths or models, with DataMismatch."""
    sides = tuple(zip((a, b), names, strict=True))
    texts = [
        [f"{name} is of {one.site}" + (f" to {one.target_site}" if one.is_transcoder else "") for one, name in sides],
        [f"{name} has width {one.d_in}" + (f" to {one.d_out}" if one.is_transcoder else "") for one, name in sides],
    ]
    if a.model_fingerprint and b.model_fingerprint:
        texts.append(
            [f"{name} is of model {one.model_name!r} (fingerprint {one.model_fingerprint[:12]})" for one, name in sides]
        )
    same = (
        (a.site, a.target_site, a.is_transcoder) == (b.site, b.target_site, b.is_transcoder),
        (a.d_in, a.d_out) == (b.d_in, b.d_out),
        a.model_fingerprint == b.model_fingerprint,
    )
    for pair, alike in zip(texts, same, strict=False):  # without two fingerprints, models are not compared
        if not alike:
            raise DataMismatch(
                f"{where}: {pair[0]}, but {pair[1]}; only dictionaries of one site and model can be compared"
            )


def encode_rows(dictionary: Dictionary, data: Rows, *, batch_size: int = 4096, verbose: int = 0) -> sp.csr_matrix:
    """Features of all rows, (n, n_features), sparse; never more than one batch is held densely."""
    check_rows(dictionary, data)
    parts = []
    with Progress("encode", count_rows(data), "tokens", verbose) as progress:
        for batch in row_batches(data, batch_size):
            parts.append(dictionary.encode_sparse(batch))
            progress.advance(len(batch))
    if not parts:
        raise InvalidInput("there are no activations to encode")
    return sp.vstack(parts, format="csr")
