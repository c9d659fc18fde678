"""Cutting tokenised documents into the contexts a model sees.

A document is tokenised once, as a whole, and cut into contexts of equal length (its
last one is shorter). Each context is put between the tokenizer's own special tokens
(a start token for most models), and no context reaches over the end of a document.
All of a corpus is held as a few flat arrays.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from neurollm.activations.corpus import Corpus
from neurollm.activations.tensorfile import TensorFile, write_tensors
from neurollm.errors import InvalidInput
from neurollm.files import sha256_json
from neurollm.models import LanguageModel, tokenize

_CHARACTERS_PER_CALL = 1 << 20
_INT32_MAX = np.iinfo(np.int32).max


def tokenizer_fingerprint(lm: LanguageModel) -> str:
    """Hash of everything that decides how the model's tokenizer cuts a text."""
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json(sorted(lm.tokenizer.get_vocab().items()))
    settings = json.loads(backend.to_str())
    # Set and unset by earlier calls; neither plays a part here.
    settings.pop("truncation", None), settings.pop("padding", None)
    return sha256_json([settings, lm.tokenizer.bos_token_id])


@dataclass(frozen=True)
class Contexts:
    """The tokens of a corpus and where they are cut.

    Attributes
    ----------
    prefix, suffix : ndarray of int32
        Special tokens around each context.
    ids, starts, ends : ndarray of int32, shape (n_tokens,)
        Tokens of all documents, one after the other, with their character spans.
    stored : ndarray of uint8, shape (n_tokens,)
        0 for a special token spelled out in the text: the model sees it, but it yields
        no row.
    document_start : ndarray of int64, shape (n_documents + 1,)
        Where each document's tokens begin.
    length : int
        Tokens of text in a full context.
    """

    prefix: np.ndarray
    suffix: np.ndarray
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    stored: np.ndarray
    document_start: np.ndarray
    length: int

    @classmethod
    def of(cls, lm: LanguageModel, corpus: Corpus, context: int) -> Contexts:
        """Tokenise a corpus for contexts of at most `context` tokens, special tokens included."""
        probe = tokenize(lm, ["a"])[0]
        text_at = np.flatnonzero(~probe.special)
        prefix, suffix = probe.ids[: text_at[0]], probe.ids[text_at[-1] + 1 :]
        length = context - len(prefix) - len(suffix)
        if length < 1:
            raise InvalidInput(f"context is {context}: it leaves no room for text beside the special tokens")
        parts = [part for group in _groups(corpus) for part in tokenize(lm, group, add_special_tokens=False)]
        counts = np.array([len(part) for part in parts], dtype=np.int64)
        if not counts.any():
            raise InvalidInput(f"{corpus.name}: the corpus is empty; none of its documents holds a token")
        return cls(
            prefix=prefix,
            suffix=suffix,
            ids=np.concatenate([part.ids for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
            stored=np.concatenate([~part.special for part in parts]).astype(np.uint8),
            document_start=np.concatenate([[0], np.cumsum(counts)]),
            length=length,
        )

    def save(self, path: Path) -> None:
        """Keep the tokens for a run that resumes."""
        arrays = {"document_start": self.document_start, "length": np.array([self.length])}
        for name in ("ids", "starts", "ends", "prefix", "suffix", "stored"):
            arrays[name] = getattr(self, name)
        write_tensors(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Contexts:
        """Inverse of `save`."""
        file = TensorFile(path)
        arrays = {name: file.array(name) for name in file.names()}
        return cls(**{**arrays, "length": int(arrays["length"][0])})

    @cached_property
    def first(self) -> np.ndarray:
        """First token of each context; one more entry than contexts."""
        counts = -(-np.diff(self.document_start) // self.length)
        index_in_document = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(self.document_start[:-1], counts) + index_in_document * self.length
        return np.append(first, len(self.ids))

    @cached_property
    def rows_before(self) -> np.ndarray:
        """Number of rows stored before each context; one more entry than contexts."""
        return np.concatenate([[0], np.cumsum(self.stored, dtype=np.int64)])[self.first]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def n_rows(self) -> int:
        """Number of tokens that yield a row."""
        return int(self.rows_before[-1])

    def shards(self, tokens_per_shard: int) -> list[tuple[int, int]]:
        """Ranges of contexts with about `tokens_per_shard` rows each: whole contexts, in order."""
        bounds = np.flatnonzero(np.diff(self.rows_before[:-1] // tokens_per_shard)) + 1
        edges = [0, *bounds.tolist(), len(self)]
        return list(itertools.pairwise(edges))

    def sequences(self, start: int, stop: int) -> list[np.ndarray]:
        """What the model gets for contexts `start` to `stop`: special tokens, text, special tokens."""
        return [
            np.concatenate([self.prefix, self.ids[self.first[c] : self.first[c + 1]], self.suffix])
            for c in range(start, stop)
        ]

    def placement(self, start: int, stop: int, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of a padded batch belong.

        Parameters
        ----------
        start, stop : int
            The contexts of the shard.
        indices : ndarray of int
            Contexts in the batch, counted from `start`.
        width : int
            Padded length of the batch.

        Returns
        -------
        source, target : ndarray of int64
            Rows of the flattened batch, and their rows in the shard.
        """
        contexts = indices + start
        first, counts = self.first[contexts], self.first[contexts + 1] - self.first[contexts]
        before = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(before, counts)
        source = np.repeat(np.arange(len(indices)) * width + len(self.prefix), counts) + within
        token = np.repeat(first, counts) + within
        keep = self.stored[token].astype(bool)
        if keep.all():
            return source, np.repeat(self.rows_before[contexts] - self.rows_before[start], counts) + within
        row = np.cumsum(self.stored[self.first[start] : self.first[stop]], dtype=np.int64) - 1
        return source[keep], row[token[keep] - self.first[start]]

    def describe(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """What is known about each row of contexts `start` to `stop`, as int32 arrays."""
        token = np.arange(self.first[start], self.first[stop])
        token = token[self.stored[token].astype(bool)]
        document = np.searchsorted(self.document_start, token, side="right") - 1
        columns = {
            "token_id": self.ids[token],
            "doc_id": document,
            "position": token - self.document_start[document],
            "char_start": self.starts[token],
            "char_end": self.ends[token],
        }
        return {name: column.astype(np.int32) for name, column in columns.items()}


def _groups(corpus: Corpus) -> Iterator[list[str]]:
    """Documents in groups that are large enough for the tokenizer's threads and small enough for memory."""
    group, size = [], 0
    for name, text in corpus:
        if len(text) > _INT32_MAX:
            raise InvalidInput(f"{corpus.name}: document {name!r} is longer than {_INT32_MAX:,} characters; split it")
        group.append(text)
        size += len(text)
        if size >= _CHARACTERS_PER_CALL:
            yield group
            group, size = [], 0
    if group:
        yield group
