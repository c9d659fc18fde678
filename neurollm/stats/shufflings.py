"""What may be exchanged under the null hypothesis, written as rows of numbers.

A shuffling relabels the rows of a table: a row's *code* says which label it carries
(a sign, or a level), and a small table gives the number that stands for each code. One
permutation is therefore one row of int16 codes, and the test statistic of all features is
one matrix product of the coded row with the data. Three schemes:

``sign_flip``
    Rows are items, the data are item differences, codes are signs, values ``±1/√n``.
``whole_item``
    Rows are item means, codes are the level each item belongs to.
``within_item``
    Rows are item × level cells, codes are levels and are exchanged inside an item.

For levels the value of code ``l`` is proportional to ``w_l / n_l``, so the row times the
data is the contrast of level means. The rows sum to zero (inside each item for
``within_item``), hence the data need no centring and sparse data stay sparse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurollm.random import stream

Kind = Literal["sign_flip", "whole_item", "within_item"]
CODE = np.int16  # holds the number of any level


@dataclass(frozen=True)
class Shuffling:
    """A scheme of exchange together with the contrast that is tested under it.

    Attributes
    ----------
    kind : {"sign_flip", "whole_item", "within_item"}
    codes : ndarray of int16, shape (n_rows,)
        The observed labels.
    table : ndarray of float64, shape (q, n_codes)
        Value of each code: row 0 for the tested contrast (unit norm over the observed codes),
        the others an orthonormal basis of the remaining differences between levels.
    n_items : int
    df : int
        Degrees of freedom of the t statistic.
    """

    kind: Kind
    codes: np.ndarray
    table: np.ndarray
    n_items: int
    df: int

    @property
    def n_possible(self) -> int:
        """Exact number of distinct arrangements of the labels."""
        if self.kind == "sign_flip":
            return 2**self.n_items
        if self.kind == "within_item":
            return math.factorial(self.table.shape[1]) ** self.n_items
        counts = np.bincount(self.codes)
        return math.factorial(self.n_items) // math.prod(math.factorial(int(count)) for count in counts)

    def draw(self, n_perm: int, random_state: int) -> Draws:
        """All arrangements if there are at most `n_perm`, else `n_perm` random ones.

        A random arrangement depends on the seed and its own number only.
        """
        if self.n_possible <= n_perm:
            codes = np.array(list(self._enumerate()), dtype=CODE)
            return Draws(codes.reshape(self.n_possible, self.codes.size), True)
        codes = np.empty((n_perm, self.codes.size), dtype=CODE)
        for index in range(n_perm):
            codes[index] = self._random(stream(random_state, self.kind, index))
        return Draws(codes, False)

    def _random(self, rng: np.random.Generator) -> np.ndarray:
        if self.kind == "sign_flip":
            return rng.integers(0, 2, self.n_items, dtype=np.int8)
        if self.kind == "whole_item":
            return rng.permutation(self.codes)
        return rng.permuted(self.codes.reshape(self.n_items, -1), axis=1).ravel()

    def _enumerate(self) -> Iterator:
        if self.kind == "sign_flip":
            yield from itertools.product((0, 1), repeat=self.n_items)
        elif self.kind == "whole_item":
            yield from _arrangements(np.bincount(self.codes))
        else:
            orders = list(itertools.permutations(range(self.table.shape[1])))
            for chosen in itertools.product(orders, repeat=self.n_items):
                yield np.concatenate(chosen)


@dataclass(frozen=True)
class Draws:
    """The arrangements used: ``codes`` (P × n int16) and whether they are all there are, the observed one included."""

    codes: np.ndarray
    exhaustive: bool


def sign_flip(n_items: int) -> Shuffling:
    """Signs of `n_items` differences; the null is that each is as likely as its negative."""
    root = 1 / math.sqrt(n_items)
    return Shuffling("sign_flip", np.ones(n_items, CODE), np.array([[-root, root]]), n_items, n_items - 1)


def whole_item(codes: np.ndarray, weights: np.ndarray) -> Shuffling:
    """Levels of whole items; the null is that the items of the levels in the contrast are exchangeable."""
    codes = np.asarray(codes, CODE)
    table = _level_rows(np.asarray(weights, float), np.bincount(codes, minlength=len(weights)))
    return Shuffling("whole_item", codes, table, codes.size, codes.size - len(weights))


def within_item(n_items: int, weights: np.ndarray) -> Shuffling:
    """Levels inside each item (rows item by item); the null is that they are exchangeable there."""
    n_levels = len(weights)
    table = _level_rows(np.asarray(weights, float), np.full(n_levels, n_items))
    codes = np.tile(np.arange(n_levels, dtype=CODE), n_items)
    return Shuffling("within_item", codes, table, n_items, (n_items - 1) * (n_levels - 1))


def _level_rows(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Orthonormal row values: the contrast first, then the other differences between the levels."""
    # In coordinates scaled by √counts the inner product over rows is the plain one over levels.
    root = np.sqrt(counts)
    basis, triangle = np.linalg.qr(np.column_stack([root, weights / root, np.eye(len(counts))]))
    basis[:, 1] *= np.sign(triangle[1, 1])
    return basis.T[1:] / root


def _arrangements(counts: np.ndarray) -> Iterator[np.ndarray]:
    """All distinct orders of a multiset given by the count of each code."""

    def place(code: int, free: tuple[int, ...], out: np.ndarray) -> Iterator[np.ndarray]:
        if code == len(counts) - 1:
            out[list(free)] = code
            yield out.copy()
            return
        for chosen in itertools.combinations(free, int(counts[code])):
            out[list(chosen)] = code
            yield from place(code + 1, tuple(sorted(set(free) - set(chosen))), out)

    yield from place(0, tuple(range(int(counts.sum()))), np.empty(int(counts.sum()), CODE))
