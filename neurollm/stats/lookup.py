"""Products of rearranged columns with data: by a matrix product, or by looking up sums of a few rows.

Under every shuffling of a two-group comparison the rearranged column holds the same two numbers, and a sign
flip is two numbers after the column has been multiplied into the data. Six such rows have only 2⁶ = 64 possible
contributions to a product. They are formed once for each block of columns; an arrangement then adds one looked-up
row for every six rows of data instead of multiplying each (Arlazarov, Dinic, Kronrod & Faradzhev 1970,
"the four Russians"). The lookup is `torch.nn.functional.embedding_bag`. A column with L different numbers takes
words of the largest number of rows that have at most 81 contributions, and is multiplied when that is fewer than three.

A product is the sum of the same n terms in another order, so the bound of `neurollm.stats.products` holds for both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from neurollm.stats.arrays import namespace
from neurollm.stats.shufflings import Draws

WORTHWHILE = 2**36  # multiplications from which on it pays to import torch
COLUMNS = 128  # under one table: tables of 34 words take 1 MB, the size of a core's second cache
_ENTRIES = 81  # of a word, at most
_WORDS = 34  # looked up at once
_DIGITS = 12  # numbers of a column that agree to so many decimals are one; it has length 1

_running: list[int] = []  # torch's number of threads, once for each test that runs
_running_lock = threading.Lock()


class Matrix:
    """Rearranged columns as a matrix.

    Parameters
    ----------
    values : ndarray or torch.Tensor of float32, shape (P, n)
    """

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        """Number of arrangements P."""
        return len(self._values)

    def on(self, X: Any) -> Callable[[slice, Any], Any]:
        """The product with X, shape (n, c), as a function of a slice of arrangements and a buffer it may return."""
        matmul = namespace(X).matmul
        return lambda part, buffer: matmul(self._values[part], X, out=buffer)


class Words:
    """Rearranged columns as numbers of table rows.

    Parameters
    ----------
    codes : ndarray of uint8, shape (P, n)
        Which of `levels` each row of data is multiplied with.
    levels : ndarray, shape (L,)
    scale : ndarray, shape (n,), or None
        What each row of data is multiplied with besides.
    """

    def __init__(self, codes: np.ndarray, levels: np.ndarray, scale: np.ndarray | None) -> None:
        import torch

        n_rows, length = codes.shape[1], word_length(levels.size)
        self._scale = scale
        digits = np.indices((levels.size,) * length).reshape(length, -1)[::-1]
        self._patterns = levels.astype(np.float32)[digits.T]
        self._rows = [slice(start, start + _WORDS * length) for start in range(0, n_rows, _WORDS * length)]
        self._words, self._offsets = [], []
        for rows in self._rows:
            part = codes[:, rows]
            words = np.zeros((len(part), -(-part.shape[1] // length)), dtype=np.int32)
            for place in range(length):
                digit = part[:, place::length]
                words[:, : digit.shape[1]] += np.multiply(digit, levels.size**place, dtype=np.int32)
            words += np.arange(words.shape[1], dtype=np.int32) * len(self._patterns)
            self._words.append(torch.from_numpy(words))
            self._offsets.append(torch.from_numpy(np.arange(0, words.size + 1, words.shape[1], dtype=np.int32)))

    def __len__(self) -> int:
        """Number of arrangements P."""
        return len(self._words[0])

    def on(self, X: Any) -> Callable[[slice, Any], Any]:
        """As `Matrix.on`; X is a tensor on the CPU, and buffers are not used."""
        import torch

        values = X.numpy()
        if self._scale is not None:
            values = values * self._scale[:, None].astype(np.float32)
        tables = [torch.from_numpy(self._table(values[rows])) for rows in self._rows]

        def product(part: slice, buffer: Any) -> Any:
            sums = None
            for table, words, offsets in zip(tables, self._words, self._offsets, strict=True):
                chosen = words[part]
                found = torch.nn.functional.embedding_bag(
                    chosen.reshape(-1), table, offsets[: len(chosen) + 1], mode="sum", include_last_offset=True
                )
                sums = found if sums is None else sums.add_(found)
            return sums

        return product

    def _table(self, values: np.ndarray) -> np.ndarray:
        """Contributions of every word's rows, shape (words × entries, c)."""
        length = self._patterns.shape[1]
        words = -(-len(values) // length)
        padded = np.zeros((words * length, values.shape[1]), dtype=np.float32)
        padded[: len(values)] = values
        return np.matmul(self._patterns, padded.reshape(words, length, -1)).reshape(-1, values.shape[1])


Rows = Matrix | Words


def word_length(n_levels: int) -> int:
    """Rows of a word: the most whose contributions of `n_levels` numbers each fit into a table.

    Examples
    --------
    >>> [word_length(n_levels) for n_levels in (2, 3, 4, 5)]
    [6, 4, 3, 2]
    """
    length = 1
    while max(n_levels, 2) ** (length + 1) <= _ENTRIES:
        length += 1
    return length


@contextmanager
def one_thread_each() -> Iterator[None]:
    """New threads look up with one torch thread each: torch gives a thread its number when it first computes.

    Several tests may run at a time: the first notes torch's number, and each puts it back for the thread it is in.
    """
    import torch

    with _running_lock:
        before = _running[0] if _running else torch.get_num_threads()
        _running.append(before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _running_lock:
            _running.pop()
            torch.set_num_threads(before)


def has_few_levels(column: np.ndarray, draws: Draws) -> bool:
    """Whether the rearranged column can be looked up: words of at least three rows."""
    if draws.index is None:
        return True
    return draws.sign is None and word_length(_levels(column)[0].size) >= 3


def words_of(column: np.ndarray, draws: Draws, which: slice | np.ndarray) -> Words:
    """The rearranged column as words.

    Parameters
    ----------
    column : ndarray, shape (n,)
        Of length 1; see `has_few_levels`.
    draws : Draws
    which : slice or ndarray of int
        The arrangements.

    Returns
    -------
    Words
    """
    if draws.index is None:
        return Words((draws.sign[which] > 0).view(np.uint8), np.array([-1.0, 1.0]), column)
    levels, codes = _levels(column)
    return Words(codes[draws.index[which]], levels, None)


def _levels(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    levels, codes = np.unique(np.round(column, _DIGITS), return_inverse=True)
    return levels, codes.astype(np.uint8)
