"""The texts kept beside a store: any document by number, exact passages around any token."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from neurollm.activations.corpus import Corpus
from neurollm.errors import DataMismatch
from neurollm.files import atomic_path

_SCAN_BYTES = 1 << 24
_WORD = re.compile(r"\S+")


def write_documents(path: str | os.PathLike, corpus: Corpus) -> None:
    """Write a corpus as ``documents.jsonl``, atomically."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.writelines(corpus.lines())


class Documents:
    """Documents of a JSON lines file, read one at a time.

    Parameters
    ----------
    path : path-like
        A file with ``{"name", "text"}`` per line. It is scanned for line ends when the
        first document is asked for.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._offsets: np.ndarray | None = None
        self._get = lru_cache(maxsize=64)(self._read)

    def __len__(self) -> int:
        return len(self._line_starts()) - 1

    def __getitem__(self, index: int) -> tuple[str, str]:
        """Name and text of a document."""
        return self._get(int(index))

    def _read(self, index: int) -> tuple[str, str]:
        start, stop = self._line_starts()[index : index + 2]
        with open(self.path, "rb") as file:
            file.seek(start)
            entry = json.loads(file.read(stop - start))
        return entry["name"], entry["text"]

    def _line_starts(self) -> np.ndarray:
        if self._offsets is None:
            ends, done = [np.zeros(1, np.int64)], 0
            try:
                with open(self.path, "rb") as file:
                    while block := file.read(_SCAN_BYTES):
                        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + (done + 1))
                        done += len(block)
            except FileNotFoundError:
                raise DataMismatch(f"{self.path}: the file is missing; run the command again to restore it") from None
            self._offsets = np.concatenate(ends)
        return self._offsets


def words_before(text: str, index: int, words: int) -> str:
    """The part of `text` that ends at `index` and begins `words` words earlier.

    Examples
    --------
    >>> words_before("one two three four", 9, 1)
    'two t'
    >>> words_before("one two three", 4, 5)
    'one '
    """
    width = 16 * (words + 1)
    while True:
        start = max(0, index - width)
        found = [match.start() for match in _WORD.finditer(text, start, index)]
        touches = index > 0 and not text[index - 1].isspace()  # the word the token stands in is not counted
        wanted = words + touches
        if len(found) > wanted or start == 0:
            break
        width *= 2
    return text[found[-wanted] if 0 < wanted <= len(found) else (index if wanted == 0 else start) : index]


def words_after(text: str, index: int, words: int) -> str:
    """The part of `text` that begins at `index` and ends `words` words later.

    Examples
    --------
    >>> words_after("one two three four", 5, 1)
    'wo three'
    """
    width = 16 * (words + 1)
    while True:
        stop = min(len(text), index + width)
        found = [match.end() for match in _WORD.finditer(text, index, stop)]
        touches = index < len(text) and not text[index].isspace()
        wanted = words + touches
        if len(found) > wanted or stop == len(text):
            break
        width *= 2
    return text[index : found[wanted - 1] if 0 < wanted <= len(found) else (index if wanted == 0 else stop)]


def pieces(text: str, starts: np.ndarray, ends: np.ndarray) -> list[str]:
    """Cut a passage so that each token has its piece and the pieces join to the passage exactly.

    Text between two tokens goes to the later one; of several tokens that share a
    character (a byte-level tokenizer on an emoji) the first gets it.

    Examples
    --------
    >>> pieces("a  bc d", np.array([0, 3, 4]), np.array([1, 4, 5]))
    ['a', '  b', 'c']
    """
    bounds = np.maximum.accumulate(np.concatenate([starts[:1], ends]))
    return [text[left:right] for left, right in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
