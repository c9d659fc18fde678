"""Exchanges of labels: only between equal numbers of trials, all of them, and with the level they promise."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from neurollm.decoding.permutation import label_draws, p_value
from neurollm.errors import InvalidInput
from neurollm.stats.auc import auc


def _design(sizes):
    """Codes and items of `sizes`: a dict class → trials for each item."""
    codes = np.concatenate([np.repeat(list(one), list(one.values())) for one in sizes])
    return codes, np.repeat(np.arange(len(sizes)), [sum(one.values()) for one in sizes])


def _by_hand(sizes):
    """All labellings in which labels change places between equal cells of an item, or equal items of one cell."""
    single = [place for place, one in enumerate(sizes) if len(one) == 1]
    options = []
    for one in sizes:
        orders = itertools.permutations(one)
        options.append([new for new in orders if all(one[a] == one[b] for a, b in zip(one, new, strict=True))])
    found = set()
    for order in itertools.permutations(single):
        if all(sum(sizes[a].values()) == sum(sizes[b].values()) for a, b in zip(single, order, strict=True)):
            source = dict(zip(single, order, strict=True))
            for chosen in itertools.product(*options):
                labels = []
                for place, one in enumerate(sizes):
                    new = tuple(sizes[source[place]]) if place in source else chosen[place]
                    labels += np.repeat(new, list(one.values())).tolist()
                found.add(tuple(labels))
    return found


@pytest.mark.parametrize(
    "sizes",
    [
        [{0: 1, 1: 1}] * 5,  # equal within items
        [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 3, 1: 3}, {0: 1, 1: 4}, {1: 2, 2: 2}, {0: 1, 1: 1}],  # one stays as it is
        [{0: 2, 1: 2, 2: 5}] * 5,  # two of three cells
        [{0: 1}, {0: 1}, {1: 1}, {1: 1}, {0: 3}, {1: 3}, {1: 3}, {1: 3}],  # whole items, in two blocks
        [{0: 1}, {1: 1}, {0: 2}, {1: 2}, {0: 1, 1: 1}, {0: 4, 1: 4}, {1: 1, 2: 1}, {0: 2, 1: 3}],
    ],
)
def test_all_arrangements_between_equal_numbers_of_trials(sizes):
    codes, items = _design(sizes)
    expected = _by_hand(sizes)
    draws, exhaustive = label_draws(codes, items, len(expected), 0)
    assert exhaustive and len(draws) == len(expected) and {tuple(row) for row in draws.tolist()} == expected
    random, exhaustive = label_draws(codes, items, len(expected) - 1, 0)
    assert not exhaustive and len(random) == len(expected) - 1
    assert {tuple(row) for row in random.tolist()} <= expected
    many = Counter(map(tuple, label_draws(np.tile(codes, 2), np.r_[items, items + items.max() + 1], 60, 0)[0].tolist()))
    assert len(many) > 20  # drawn, not repeated


def test_every_arrangement_keeps_the_sizes_of_the_classes():
    codes, items = _design([{0: 1, 1: 1}] * 6 + [{0: 1, 1: 9}] * 4 + [{0: 2}, {1: 2}, {0: 7}, {1: 3}])
    draws, _ = label_draws(codes, items, 500, 0)
    assert len(np.unique(draws, axis=0)) == 2**7 == len(draws)
    assert (draws.sum(axis=1) == codes.sum()).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([{0: 1, 1: 15}] * 10, "from 1 to 15 trials.* 1 arrangement of the 20 .*; average the trials of each item"),
        ([{0: 1}] * 8 + [{1: 12}] * 8, "from 1 to 12 trials"),
        ([{0: 1, 1: 15}] * 10 + [{0: 1, 1: 1}] * 4, "16 arrangements"),
    ],
)
def test_numbers_of_trials_that_go_with_the_label_are_refused(sizes, message):
    with pytest.raises(InvalidInput, match=message):
        label_draws(*_design(sizes), 99, 0)


def test_few_items_of_equal_numbers_are_no_reason_to_refuse():
    assert len(label_draws(*_design([{0: 3, 1: 3}] * 3), 99, 0)[0]) == 8


@pytest.mark.parametrize(
    "sizes",
    [
        [{0: 1, 1: 1}] * 8,
        [{0: 1}] * 6 + [{1: 1}] * 6 + [{1: 8}] * 4,  # a label that comes with more trials
        [{0: 1, 1: 1}] * 6 + [{0: 1, 1: 12}] * 6,
    ],
)
def test_on_noise_p_has_its_level(sizes):
    # The statistic is large where the classes are of unequal size: what exchanges of unequal cells would even out.
    codes, items = _design(sizes)
    rng, p = np.random.default_rng(1), []
    draws, exhaustive = label_draws(codes, items, 99, 0)

    def statistic(x, y):
        return abs(auc(x, y == 1) - 0.5) + abs(np.mean(y) - 0.5)

    for _ in range(400):
        x = rng.standard_normal(codes.size) + rng.standard_normal(items.max() + 1)[items]
        p.append(p_value(statistic(x, codes), np.array([statistic(x, y) for y in draws]), exhaustive))
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.075
