"""P values of a difference between two groups against all subsets, the hypergeometric distribution and simulation."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from neurollm.errors import InvalidInput
from neurollm.stats import nonzeros
from neurollm.stats.two_groups import two_group_p

RNG = np.random.default_rng(0)
KINDS = {"numpy": lambda a: a, "csr": sparse.csr_array, "csc": sparse.csc_matrix, "torch": torch.as_tensor}


def row(n1, n2):
    x = np.repeat([1 / n1, -1 / n2], [n1, n2])
    return x / np.linalg.norm(x)


def correlation(x, Y):
    centred = Y - Y.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return x @ centred / np.linalg.norm(centred, axis=0)


def zero_inflated(shape, active, rng=RNG):
    return np.where(rng.random(shape) < active, rng.lognormal(size=shape), 0.0)


def over_all_subsets(Y, n1, alternative):
    """Exact p of the first n1 rows against the others, and the sign of the difference."""
    subsets = np.array([[i in chosen for i in range(len(Y))] for chosen in itertools.combinations(range(len(Y)), n1)])
    sums, observed = subsets.astype(float) @ Y, Y[:n1].sum(axis=0)
    upper, lower = np.mean(sums >= observed - 1e-9, axis=0), np.mean(sums <= observed + 1e-9, axis=0)
    side = np.where(observed >= n1 * Y.mean(axis=0) - 1e-12, upper, lower)
    return {"greater": upper, "less": lower, "two-sided": np.minimum(2 * side, 1)}[alternative]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("sizes", [(3, 7), (8, 2)])
def test_few_nonzeros_are_exact(kind, alternative, sizes):
    Y = np.hstack([zero_inflated((10, 6), 0.5), RNG.standard_normal((10, 3)), RNG.integers(-1, 2, (10, 6))])
    p = two_group_p(row(*sizes), KINDS[kind](Y), correlation(row(*sizes), Y), alternative)
    np.testing.assert_allclose(p, over_all_subsets(Y, sizes[0], alternative), atol=1e-12)


@pytest.mark.parametrize("sizes", [(5, 12), (9, 9), (12, 4)])
@pytest.mark.parametrize("active", [0.6, 1.0])
def test_saddlepoint_is_close_to_all_subsets_in_both_tails(sizes, active, monkeypatch):
    n = sum(sizes)
    Y = zero_inflated((n, 200), active)
    # Half sorted rows: far in either tail.
    moved = RNG.random(200) < 0.8
    Y[:, moved] = np.sort(Y[:, moved], axis=0)[:: RNG.choice([1, -1])]
    for v in range(200):
        swapped = RNG.permutation(n)[: RNG.integers(0, 6)]
        Y[np.sort(swapped), v] = Y[swapped, v]
    monkeypatch.setattr(nonzeros, "MOST_ENUMERATED", 0)
    for alternative in ("greater", "less"):
        exact = over_all_subsets(Y, sizes[0], alternative)
        ratio = two_group_p(row(*sizes), Y, correlation(row(*sizes), Y), alternative) / exact
        assert 0.85 < np.median(ratio) < 1.15
        assert np.mean((ratio > 0.4) & (ratio < 2.5)) > 0.95


@pytest.mark.parametrize("sizes", [(12, 68), (40, 40)])
@pytest.mark.parametrize("n_active", [20, 40, 70])
def test_two_valued_features_are_nearly_hypergeometric(sizes, n_active):
    n, n1 = sum(sizes), sizes[0]
    inside = np.arange(max(0, n_active - sizes[1]), min(n1, n_active) + 1)
    position = np.arange(n)[:, None]
    Y = np.where(position < n1, position < inside, position - n1 < n_active - inside) * 0.7
    p = two_group_p(row(*sizes), Y, correlation(row(*sizes), Y), "greater")
    np.testing.assert_allclose(p, stats.hypergeom.sf(inside - 1, n, n_active, n1), rtol=0.06)


@pytest.mark.parametrize("sizes", [(5, 75), (12, 68), (40, 40)])
@pytest.mark.parametrize("active", [0.2, 0.8])
def test_nulls_are_significant_as_often_as_they_should(sizes, active):
    rng = np.random.default_rng(1)
    Y = zero_inflated((80, 10_000), active, rng)
    p = two_group_p(row(*sizes), Y, correlation(row(*sizes), Y))
    for level in (1e-2, 1e-3, 1e-4):
        assert np.mean(p <= level) / level <= 1 + 4 / np.sqrt(level * p.size)
    p = two_group_p(row(*sizes), Y, correlation(row(*sizes), Y), "greater")
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.01)


def test_the_most_extreme_arrangement_has_its_own_probability():
    Y = np.r_[np.zeros(5), RNG.lognormal(size=30), np.zeros(4)][:, None]
    # Five of nine zeros, of 39 rows.
    expected = stats.hypergeom.pmf(5, 39, 9, 5)
    np.testing.assert_allclose(two_group_p(row(5, 34), Y, correlation(row(5, 34), Y), "less"), expected)
    Y = np.sort(RNG.lognormal(size=(30, 4)), axis=0)[::-1]
    np.testing.assert_allclose(
        two_group_p(row(6, 24), Y, correlation(row(6, 24), Y), "greater"), stats.hypergeom.pmf(6, 30, 6, 6)
    )
    np.testing.assert_allclose(two_group_p(row(6, 24), Y, correlation(row(6, 24), Y), "less"), 1)


def test_undefined_features_and_bad_input():
    Y = np.hstack([np.zeros((20, 1)), np.full((20, 1), 0.1), np.full((20, 1), np.nan), RNG.random((20, 1))])
    p = two_group_p(row(5, 15), Y, np.array([0.1, 0.1, 0.1, 0.1]))
    assert np.isnan(p).tolist() == [True, True, True, False]
    for x, message in (
        (np.ones(20), "two values"),
        (np.r_[-2.0, -1, np.ones(18)], "two values"),
        (np.r_[-1.0, np.ones(19)], "centred"),
        (row(5, 14), "each of the 20 rows"),
    ):
        with pytest.raises(InvalidInput, match=message):
            two_group_p(x, Y, np.zeros(4))
    with pytest.raises(InvalidInput, match="one statistic"):
        two_group_p(row(5, 15), Y, np.zeros(3))
