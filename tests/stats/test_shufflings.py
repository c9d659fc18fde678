"""Arrangements: what they move, how many there are, and that they depend on seed and number only."""

import itertools
import math

import numpy as np
import pytest

from neurollm.errors import InvalidInput
from neurollm.stats.shufflings import sign_flip, whole_item, within_item

SCHEMES = {
    "sign_flip": sign_flip(12, rows_per_item=2),
    "whole_item": whole_item(np.repeat([0, 1, 2], [5, 4, 3]), rows_per_item=2),
    "blocks": whole_item(np.arange(12), blocks=np.arange(12) % 3),
    "within_item": within_item(8, (3,)),
    "two_factors": within_item(4, (3, 2)),
}


def arrangements(draws, n):
    """G applied to the row numbers 1 … n, one row per arrangement."""
    return draws.rows(np.arange(1.0, n + 1), slice(None))


@pytest.mark.parametrize("name", SCHEMES)
def test_an_arrangement_depends_on_seed_and_number_only(name):
    shuffling = SCHEMES[name]
    long = arrangements(shuffling.draw(300, 4), shuffling.n_rows)
    for n_perm in (1, 63, 64, 130):
        np.testing.assert_array_equal(arrangements(shuffling.draw(n_perm, 4), shuffling.n_rows), long[:n_perm])
    assert (arrangements(shuffling.draw(300, 5), shuffling.n_rows) != long).any(axis=1).mean() > 0.9


def test_an_arrangement_does_not_depend_on_what_is_tested():
    two, three = whole_item(np.arange(12) % 2), whole_item(np.arange(12) % 3)
    np.testing.assert_array_equal(two.draw(50, 1).index, three.draw(50, 1).index)


def test_rows_of_an_item_stay_together():
    signs = SCHEMES["sign_flip"].draw(50, 0).sign.reshape(50, 12, 2)
    assert (signs[:, :, 0] == signs[:, :, 1]).all() and set(np.unique(signs)) == {-1, 1}
    index = SCHEMES["whole_item"].draw(50, 0).index.reshape(50, 12, 2)
    assert (index[:, :, 0] % 2 == 0).all() and (index[:, :, 1] == index[:, :, 0] + 1).all()


def test_items_stay_in_their_block():
    for n_perm in (50, 10**6):
        shuffling = whole_item([0, 1, 0, 1, 2, 2], blocks=[7, 3, 7, 7, 3, 3])
        index = shuffling.draw(n_perm if n_perm > 50 else 5, 0).index
        blocks = np.array(shuffling.blocks)
        assert (blocks[index] == blocks).all()
        assert (np.sort(index, axis=1) == np.arange(6)).all()


def test_within_item_moves_the_levels_of_each_factor():
    index = within_item(4, (3, 2)).draw(500, 0).index.reshape(500, 4, 3, 2)
    first, second = np.divmod(index - 6 * np.arange(4)[:, None, None], 2)
    assert (first == first[..., :1]).all() and (second == second[:, :, :1]).all()
    assert (np.sort(first[..., 0], axis=2) == np.arange(3)).all()
    assert (np.sort(second[:, :, 0], axis=2) == np.arange(2)).all()
    # The two factors move independently of each other and of the other items.
    together = (first[..., 0, 0] == 0)[:, 0] & (second[:, 0, 0, 0] == 1)
    assert abs(together.mean() - 1 / 6) < 5 * np.sqrt(5 / 36 / 500)


@pytest.mark.parametrize(
    ("draw", "share"),
    [
        (lambda: sign_flip(14).draw(1000, 0).sign == 1, 1 / 2),
        (lambda: whole_item(np.arange(10)).draw(1000, 0).index == 4, 1 / 10),
        (lambda: within_item(6, (3,)).draw(1000, 0).index % 3 == 1, 1 / 3),
        (lambda: within_item(3, (9,)).draw(1000, 0).index % 9 == 1, 1 / 9),
    ],
)
def test_every_place_is_equally_likely(draw, share):
    found = draw().mean(axis=0)
    assert (np.abs(found - share) < 5 * np.sqrt(share * (1 - share) / 1000)).all()


@pytest.mark.parametrize(
    ("shuffling", "label", "count"),
    [
        (sign_flip(5, 2), np.arange(10), 32),
        (whole_item([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2]), 30),
        (whole_item([0, 1, 0, 1, 2, 2], [0, 0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 2, 2]), 9),
        (whole_item(np.arange(4), rows_per_item=2), np.arange(8), 24),
        (within_item(3, (3,)), np.arange(9), 216),
        (within_item(2, (3, 2)), np.arange(12), 144),
        (within_item(3, (2,)), np.arange(6), 8),
    ],
)
def test_enumeration_is_complete_and_without_repeats(shuffling, label, count):
    draws = shuffling.draw(count, 0)
    assert draws.exhaustive and len(draws) == shuffling.n_possible == count
    moved = draws.rows(label + 1, slice(None))
    assert len(np.unique(moved, axis=0)) == count
    assert (moved == label + 1).all(axis=1).sum() == 1
    if shuffling.n_possible > 1:
        assert not shuffling.draw(count - 1, 0).exhaustive


def test_enumeration_by_code_equals_the_distinct_permutations():
    codes = np.array([2, 0, 1, 0, 2, 0])
    found = whole_item(codes).draw(10**6, 0).rows(codes, slice(None))
    assert {tuple(row) for row in found.tolist()} == set(itertools.permutations(codes.tolist()))


def test_numbers_of_arrangements_are_exact_integers():
    assert sign_flip(200).n_possible == 2**200
    assert whole_item(np.arange(200)).n_possible == math.factorial(200)
    assert within_item(50, (3, 4)).n_possible == (6 * 24) ** 50


@pytest.mark.parametrize(
    "make", [lambda: sign_flip(0), lambda: within_item(3, ()), lambda: whole_item([]), lambda: whole_item([0, 1], [0])]
)
def test_impossible_schemes_are_refused(make):
    with pytest.raises(InvalidInput):
        make()
