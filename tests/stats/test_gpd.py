"""Generalised Pareto tails against distributions whose tail is known."""

import numpy as np
import pytest
from scipy import stats

from neurollm.errors import InvalidInput
from neurollm.stats.gpd import gpd_tail

RNG = np.random.default_rng(0)
V = 1000


def max_normal(p):
    """The value that the largest |z| of 1000 exceeds with probability p."""
    return stats.norm.isf(-np.expm1(np.log1p(-np.asarray(p)) / V) / 2)


def max_correlation(p):
    """The same for the correlation of 24 normal values."""
    return np.sqrt(stats.beta.isf(-np.expm1(np.log1p(-np.asarray(p)) / V), 0.5, 11))


DISTRIBUTIONS = {
    "max |z|": max_normal,
    "max |r|, bounded": max_correlation,
    "exponential": stats.expon.isf,
    "heavy": lambda p: stats.genpareto.isf(p, 0.2),
}


@pytest.mark.parametrize("quantile", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_tail_is_right_within_a_factor(quantile):
    true = np.array([0.05, 0.01, 1e-3])
    ratio = np.array([gpd_tail(quantile(RNG.random(4000)), quantile(true)) for _ in range(60)]) / true
    middle = np.median(ratio, axis=0)
    np.testing.assert_allclose(middle[:2], 1, atol=0.1)
    assert 0.5 < middle[2] < 1.5
    assert np.mean((ratio[:, 2] > 0.1) & (ratio[:, 2] < 3)) > 0.9


def test_less_variable_than_counting():
    true = 2e-3
    fitted, counted = [], []
    for _ in range(200):
        null = max_normal(RNG.random(1000))
        fitted.append(gpd_tail(null, max_normal([true]))[0])
        counted.append((np.sum(null >= max_normal(true)) + 1) / 1001)
    assert np.std(fitted) < 0.8 * np.std(counted)


def test_p_falls_with_the_statistic_and_is_never_zero():
    for quantile in (max_normal, max_correlation, lambda p: 1 - p):
        null = quantile(RNG.random(1000))
        p = gpd_tail(null, np.linspace(null.min() - 1, null.max() + 3, 3001))
        assert (np.diff(p) <= 1e-12).all()
        assert p.max() == 1 and p.min() >= 0.1 / 1001
    assert gpd_tail(null, np.array([9.0]), floor=1e-7)[0] >= 1e-7


def test_large_p_is_the_permutation_p():
    null = RNG.standard_normal(500)
    observed = np.quantile(null, [0.0, 0.3, 0.89])
    np.testing.assert_allclose(gpd_tail(null, observed), [(np.sum(null >= x) + 1) / 501 for x in observed])


def test_without_a_fit_the_permutation_p_stays():
    two_valued = np.repeat([0.0, 1.0], [900, 100])
    np.testing.assert_allclose(gpd_tail(two_valued, np.array([1.0, 2.0])), [101 / 1001, 1 / 1001])
    few = RNG.standard_normal(50)
    np.testing.assert_allclose(gpd_tail(few, np.array([99.0])), 1 / 51)


def test_a_complete_distribution_is_counted():
    null = np.arange(1.0, 1001)
    np.testing.assert_allclose(gpd_tail(null, np.array([1000.0, 1.0, 1001.0]), exhaustive=True), [1e-3, 1, 0])


def test_missing_stays_missing_and_bad_nulls_are_refused():
    assert np.isnan(gpd_tail(RNG.random(100), np.array([np.nan]))[0])
    for null in ([], [1.0, np.nan], [[1.0]]):
        with pytest.raises(InvalidInput, match="finite"):
            gpd_tail(np.array(null), np.array([1.0]))
