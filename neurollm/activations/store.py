"""Reading stored activations: rows, their tokens, their texts, and shuffled batches."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurollm.activations.documents import Documents, words_after, words_before
from neurollm.activations.folder import DOCUMENTS, open_complete, verify
from neurollm.activations.reader import BlockReader
from neurollm.activations.tensorfile import TensorFile
from neurollm.errors import InvalidInput
from neurollm.files import sha256_json
from neurollm.models import Site

COLUMNS = ("token_id", "doc_id", "position", "char_start", "char_end")


@dataclass(frozen=True)
class TokenContext:
    """A token in its text: ``before + token + after`` is an exact passage of the document.

    Attributes
    ----------
    document : str
        Name of the document.
    doc_id : int
        Its place in the corpus.
    position : int
        Index of the token in the document, special tokens not counted.
    before, token, after : str
    """

    document: str
    doc_id: int
    position: int
    before: str
    token: str
    after: str


class RowMap:
    """Global row numbers over the shards of a folder."""

    def __init__(self, shards: list[dict[str, Any]], files: list[TensorFile]) -> None:
        self.files = files
        self.first = np.array([shard["first_row"] for shard in shards], dtype=np.int64)
        self.n_rows = int(shards[-1]["first_row"] + shards[-1]["n_rows"])

    def locate(self, row: int) -> tuple[int, int]:
        """Shard of a row and its place there."""
        if not 0 <= row < self.n_rows:
            raise InvalidInput(f"row {row} does not exist; rows are 0 to {self.n_rows - 1}")
        shard = int(np.searchsorted(self.first, row, side="right")) - 1
        return shard, int(row - self.first[shard])

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Shards of a range of rows, with the range inside each."""
        if not 0 <= start <= stop <= self.n_rows:
            raise InvalidInput(f"rows {start} to {stop} do not exist; there are {self.n_rows} rows")
        while start < stop:
            shard, begin = self.locate(start)
            after = self.n_rows if shard + 1 == len(self.first) else int(self.first[shard + 1])
            end = min(stop, after) - int(self.first[shard])
            yield shard, begin, end
            start += end - begin

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """One tensor's rows `start` to `stop`, copied."""
        return self.ranges(name, [(start, stop)])

    def ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
        """One tensor's rows in several ranges, copied."""
        spans = (span for edges in ranges for span in self.spans(*edges))
        parts = [self.files[shard].array(name)[begin:end] for shard, begin, end in spans]
        return np.concatenate(parts) if parts else self.files[0].array(name)[:0].copy()


class ActivationStore:
    """A finished harvest on disk.

    Parameters
    ----------
    path : path-like
        Folder written by `harvest`.

    Attributes
    ----------
    manifest : dict
    site : Site
    model_fingerprint : str
    n_rows, d : int
        Number of tokens stored, and of dimensions.
    shards : list of dict
        File name, rows and contexts of each shard.
    documents : Documents
        ``documents[doc_id]`` is (name, text).

    Raises
    ------
    InvalidInput
        If the folder holds no store.
    DataMismatch
        If the store is not finished, or a shard is missing or truncated.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.manifest, files = open_complete(self.path, "activation store", "harvest")
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.site = Site.from_dict(self.manifest["site"])
        self.model_fingerprint: str = self.manifest["model"]["fingerprint"]
        self.d: int = self.manifest["d"]
        self.dtype: torch.dtype = getattr(torch, self.manifest["settings"]["dtype"])
        self.documents = Documents(self.path / DOCUMENTS)
        self._rows = RowMap(self.shards, files)
        self.n_rows = self._rows.n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, {self.site}, {self.n_rows:,} rows × {self.d}, {self.dtype})"

    @property
    def sha256(self) -> str:
        """Identifies the stored rows: a hash of all settings and of the hashes of all shards."""
        return sha256_json([self.manifest["settings"], [shard["sha256"] for shard in self.shards]])

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension over all rows, float64."""
        return np.asarray(self.manifest["statistics"]["sum"]) / self.n_rows

    @property
    def mean_squared_norm(self) -> float:
        """Mean of ‖x‖² over all rows."""
        return float(np.sum(self.manifest["statistics"]["sum_of_squares"]) / self.n_rows)

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest; DataMismatch names the first damaged one."""
        verify(self.path, self.manifest, "harvest")

    def shard(self, index: int) -> dict[str, Any]:
        """A shard, memory-mapped: its columns as int32 arrays, and ``acts`` (n, d) as Tensor in the stored dtype."""
        file = self._rows.files[index]
        return {"acts": file.tensor("acts"), **{name: file.array(name) for name in COLUMNS}}

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Activations of rows `start` to `stop`, (n, d), in reading order."""
        return self.ranges([(start, stop)], dtype)

    def ranges(self, ranges: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Activations of the rows of several ranges (`start`, `stop`), one after the other."""
        return self._typed(torch.from_numpy(self._rows.ranges("acts", ranges)), dtype)

    def columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """What is known about rows `start` to `stop`: token_id, doc_id, position, char_start, char_end."""
        return {name: self._rows.column(name, start, stop) for name in COLUMNS}

    def _typed(self, raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (raw.view(torch.bfloat16) if self.dtype == torch.bfloat16 else raw).to(dtype)

    def context(self, row: int, words: int = 40) -> TokenContext:
        """The exact text around the token of a row.

        Parameters
        ----------
        row : int
        words : int, default=40
            How many words to show on either side, beside the word the token stands in.

        Returns
        -------
        TokenContext
        """
        shard, place = self._rows.locate(row)
        of = {name: int(self._rows.files[shard].array(name)[place]) for name in COLUMNS}
        name, text = self.documents[of["doc_id"]]
        return TokenContext(
            document=name,
            doc_id=of["doc_id"],
            position=of["position"],
            before=words_before(text, of["char_start"], words),
            token=text[of["char_start"] : of["char_end"]],
            after=words_after(text, of["char_end"], words),
        )

    def n_batches(self, batch_size: int) -> int:
        """Number of batches in an epoch; the last may be smaller."""
        return -(-self.n_rows // batch_size)

    def batches(
        self,
        batch_size: int,
        random_state: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        prefetch: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[torch.Tensor]:
        """Shuffled batches: every row exactly once per epoch.

        Blocks of at least 1 MB are read in random order, and the rows of 64 blocks at a
        time are permuted together. The sequence depends on `batch_size`,
        `random_state` and `epoch` alone, and starting at `start_batch` gives what an
        uninterrupted pass would have given from there on, without reading what is before.

        Parameters
        ----------
        batch_size : int
        random_state : int, default=0
        epoch : int, default=0
        start_batch : int, default=0
        prefetch : bool, default=True
            Read ahead in a thread.
        dtype : torch.dtype, default=torch.float32

        Yields
        ------
        Tensor, shape (batch_size, d)
        """
        if batch_size < 1 or start_batch < 0:
            raise InvalidInput(
                f"batch_size is {batch_size} and start_batch {start_batch}; they must be at least 1 and 0"
            )
        reader = BlockReader([file.array("acts") for file in self._rows.files], batch_size, random_state, epoch)
        return self._typed_batches(reader.read_ahead(start_batch) if prefetch else reader.read(start_batch), dtype)

    def _typed_batches(self, raw: Generator[np.ndarray, None, None], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        with closing(raw):  # a consumer that stops early ends the reading thread at once
            for batch in raw:
                yield self._typed(torch.from_numpy(batch), dtype)
