"""What may be exchanged under the null hypothesis: random signed rearrangements of the rows of a table.

An arrangement G turns a column of numbers v into

    (G v)[r] = sign[r] · v[index[r]].

The data stay where they are; the columns of the design are rearranged. Three schemes:

``sign_flip``
    Every item's rows keep or change their sign together.
``whole_item``
    Items change places with all their rows, everywhere or only within blocks.
``within_item``
    Inside every item the levels of each factor change places.

Random arrangements come in chunks of fixed size, chunk c from the counter-based stream
``(seed, scheme, c)``: arrangement i is the same whatever the number of arrangements, and it does not
depend on what is tested, so that all contrasts with one scheme see the same arrangements.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.random import stream

Kind = Literal["sign_flip", "whole_item", "within_item"]
_CHUNK = 64  # arrangements per stream; part of the definition of "arrangement i of this seed"


@dataclass(frozen=True)
class Shuffling:
    """A scheme of exchange; made by `sign_flip`, `whole_item` and `within_item`.

    Attributes
    ----------
    kind : {"sign_flip", "whole_item", "within_item"}
    n_items : int
    rows_per_item : int
    codes : tuple of int
        whole_item: items with equal codes have the same rows in the design.
    blocks : tuple of int
        whole_item: the block inside which each item moves.
    shape : tuple of int
        within_item: levels of each factor, the cells of an item in C order.
    """

    kind: Kind
    n_items: int
    rows_per_item: int
    codes: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return self.n_items * self.rows_per_item

    @property
    def n_possible(self) -> int:
        """Exact number of distinct arrangements, the observed one included."""
        if self.kind == "sign_flip":
            return 2**self.n_items
        if self.kind == "within_item":
            return math.prod(math.factorial(levels) for levels in self.shape) ** self.n_items
        orders = math.prod(math.factorial(count) for count in Counter(self.blocks).values())
        same = math.prod(math.factorial(count) for count in Counter(zip(self.blocks, self.codes, strict=True)).values())
        return orders // same

    def draw(self, n_perm: int, random_state: int) -> Draws:
        """All arrangements if there are at most `n_perm`, else `n_perm` random ones.

        Parameters
        ----------
        n_perm : int
        random_state : int

        Returns
        -------
        Draws

        Examples
        --------
        >>> sign_flip(2).draw(10, random_state=0).sign.tolist()
        [[1, 1], [1, -1], [-1, 1], [-1, -1]]
        """
        exhaustive = self.n_possible <= n_perm
        if exhaustive:
            items = np.array(list(self._enumerate()))
        else:
            chunks = range(-(-n_perm // _CHUNK))
            items = np.concatenate([self._random(stream(random_state, self.kind, chunk)) for chunk in chunks])[:n_perm]
        if self.kind == "sign_flip":
            return Draws(None, np.repeat(items.astype(np.int8), self.rows_per_item, axis=1), exhaustive)
        index = items.astype(np.int16 if self.n_rows <= np.iinfo(np.int16).max else np.int32)
        if self.kind == "whole_item":
            rows = np.arange(self.rows_per_item, dtype=index.dtype)
            index = (index[:, :, None] * index.dtype.type(self.rows_per_item) + rows).reshape(len(index), -1)
        return Draws(index, None, exhaustive)

    def _random(self, rng: np.random.Generator) -> np.ndarray:
        """One chunk of signs of items (sign_flip), places of items (whole_item) or places of rows (within_item)."""
        if self.kind == "sign_flip":
            return 1 - 2 * rng.integers(0, 2, (_CHUNK, self.n_items), dtype=np.int8)
        if self.kind == "whole_item":
            # Sorting by block first keeps every item in its block; the blocks' own order of places undoes the sort.
            _, block = np.unique(self.blocks, return_inverse=True)
            places = np.argsort(block, kind="stable")
            found = np.empty((_CHUNK, self.n_items), dtype=np.int32)
            found[:, places] = np.argsort(rng.random((_CHUNK, self.n_items)) + block, axis=1)
            return found
        numbers = rng.random((_CHUNK, self.n_items, sum(self.shape)))
        factors = np.split(numbers, np.cumsum(self.shape)[:-1], axis=2)
        return self._cells([_order(factor) for factor in factors])

    def _cells(self, orders: Sequence[np.ndarray]) -> np.ndarray:
        """Places of rows from the orders of each factor's levels in each item, (P, n_items, levels) per factor."""
        count, factors = len(orders[0]), len(self.shape)
        place = np.zeros((count, self.n_items, *[1] * factors), dtype=np.int32)
        for axis, order in enumerate(orders):
            levels = [self.shape[axis] if other == axis else 1 for other in range(factors)]
            place = place * self.shape[axis] + order.astype(np.int32).reshape(count, self.n_items, *levels)
        first = np.arange(self.n_items, dtype=np.int32).reshape(1, self.n_items, *[1] * factors) * self.rows_per_item
        return (place + first).reshape(count, self.n_rows)

    def _enumerate(self) -> Iterator[np.ndarray]:
        if self.kind == "sign_flip":
            yield from (np.array(signs) for signs in itertools.product((1, -1), repeat=self.n_items))
        elif self.kind == "whole_item":
            blocks, codes = np.array(self.blocks), np.array(self.codes)
            members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
            for parts in itertools.product(*[_arrangements(codes[items]) for items in members]):
                place = np.empty(self.n_items, dtype=np.int32)
                for items, part in zip(members, parts, strict=True):
                    place[items] = items[part]
                yield place
        else:
            levels = [list(itertools.permutations(range(count))) for count in self.shape]
            of_item = list(itertools.product(*levels))
            for chosen in itertools.product(of_item, repeat=self.n_items):
                orders = [np.array([[item[axis] for item in chosen]]) for axis in range(len(self.shape))]
                yield self._cells(orders)[0]


@dataclass(frozen=True)
class Draws:
    """The arrangements used.

    Attributes
    ----------
    index : ndarray of int16 or int32, shape (P, n_rows), or None
        Where each row's number comes from; None: rows keep their places.
    sign : ndarray of int8, shape (P, n_rows), or None
        None: all +1.
    exhaustive : bool
        They are all there are, the observed one included.
    """

    index: np.ndarray | None
    sign: np.ndarray | None
    exhaustive: bool

    def __len__(self) -> int:
        """Number of arrangements P."""
        return len(self.sign if self.index is None else self.index)

    def rows(self, column: np.ndarray, which: slice | np.ndarray) -> np.ndarray:
        """Rearrange one column of a design.

        Parameters
        ----------
        column : ndarray, shape (n_rows,)
        which : slice or ndarray of int
            The arrangements.

        Returns
        -------
        ndarray, shape (number of arrangements, n_rows)
            Of the column's dtype.
        """
        moved = column if self.index is None else column[self.index[which]]
        return moved if self.sign is None else moved * self.sign[which].astype(column.dtype)


def sign_flip(n_items: int, rows_per_item: int = 1) -> Shuffling:
    """Signs of items; under the null an item's rows are as likely as their negatives.

    Parameters
    ----------
    n_items : int
    rows_per_item : int, default=1
        Consecutive rows that belong to one item.

    Returns
    -------
    Shuffling

    Raises
    ------
    InvalidInput
        There are no rows.

    Examples
    --------
    >>> sign_flip(10).n_possible
    1024
    """
    _at_least_one(n_items, rows_per_item)
    return Shuffling("sign_flip", n_items, rows_per_item)


def whole_item(codes: np.ndarray, blocks: np.ndarray | None = None, rows_per_item: int = 1) -> Shuffling:
    """Places of whole items; under the null the items of a block are exchangeable.

    Parameters
    ----------
    codes : ndarray of int, shape (n_items,)
        Items with equal codes have the same rows in the design, so exchanging them changes nothing.
    blocks : ndarray of int, shape (n_items,), optional
        Items change places inside their block only; default: everywhere.
    rows_per_item : int, default=1
        Consecutive rows that belong to one item.

    Returns
    -------
    Shuffling

    Raises
    ------
    InvalidInput
        There are no rows, or `codes` and `blocks` are not of one length.

    Examples
    --------
    >>> whole_item([0, 0, 1, 1]).n_possible
    6
    >>> whole_item([0, 1, 0, 1], blocks=[0, 0, 1, 1]).n_possible
    4
    """
    codes = np.asarray(codes, dtype=int)
    blocks = np.zeros(codes.size, int) if blocks is None else np.asarray(blocks, dtype=int)
    if codes.ndim != 1 or codes.shape != blocks.shape:
        raise InvalidInput(
            f"whole_item: codes of shape {codes.shape} with blocks of shape {blocks.shape}; "
            "both hold one number per item."
        )
    _at_least_one(codes.size, rows_per_item)
    return Shuffling("whole_item", codes.size, rows_per_item, tuple(codes.tolist()), tuple(blocks.tolist()))


def within_item(n_items: int, shape: Sequence[int]) -> Shuffling:
    """Levels of each factor inside every item; under the null they are exchangeable there.

    Parameters
    ----------
    n_items : int
    shape : sequence of int
        Number of levels of each factor. The rows are items × cells, the cells in C order.

    Returns
    -------
    Shuffling

    Raises
    ------
    InvalidInput
        There are no rows.

    Examples
    --------
    >>> within_item(2, (3, 2)).n_possible
    144
    """
    shape = tuple(int(levels) for levels in shape)
    _at_least_one(n_items, *(shape or (0,)))
    return Shuffling("within_item", n_items, math.prod(shape), shape=shape)


def _at_least_one(*numbers: int) -> None:
    if min(numbers) < 1:
        raise InvalidInput("a shuffling needs at least one item, and at least one row in each item.")


def _order(numbers: np.ndarray) -> np.ndarray:
    """Ranks along the last axis: a random order of the levels."""
    if numbers.shape[-1] > 8:
        return np.argsort(numbers, axis=-1)
    # For a few levels counting the smaller ones is several times faster than sorting.
    return np.sum([numbers[..., [level]] < numbers for level in range(numbers.shape[-1])], axis=0, dtype=np.int8)


def _arrangements(codes: np.ndarray) -> list[np.ndarray]:
    """All distinct rearrangements of `codes`, as indices; the identity is one of them."""
    own = {code: np.flatnonzero(codes == code) for code in np.unique(codes)}
    names = list(own)

    def place(which: int, free: tuple[int, ...], found: np.ndarray) -> Iterator[np.ndarray]:
        if which == len(names):
            yield found.copy()
            return
        for chosen in itertools.combinations(free, len(own[names[which]])):
            found[list(chosen)] = own[names[which]]
            yield from place(which + 1, tuple(sorted(set(free) - set(chosen))), found)

    return list(place(0, tuple(range(len(codes))), np.empty(len(codes), int)))
