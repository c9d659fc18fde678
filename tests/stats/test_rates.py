"""Rate differences against published examples, statsmodels and simulations."""

import numpy as np
import pytest
from scipy import sparse, special
from statsmodels.stats.proportion import confint_proportions_2indep

from neurollm.errors import InvalidInput
from neurollm.stats.proportions import tango_interval
from neurollm.stats.rates import paired_rate_difference, rate_difference


def counts(x1, n1, x2, n2):
    """Columns of zeros and ones with these sums, one group above the other."""
    return np.repeat([1.0, 0.0, 1.0, 0.0], [x1, n1 - x1, x2, n2 - x2])[:, None], np.arange(n1 + n2) < n1


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ],
)
def test_newcombes_published_examples(table, published):
    """Newcombe (1998), Statistics in Medicine 17:873-890, table II, method 10."""
    _, low, high = rate_difference(*counts(*table), confidence=0.95)
    np.testing.assert_allclose([low[0], high[0]], published, atol=6e-5)


def test_zeros_and_ones_equal_statsmodels():
    for table in ((3, 11, 9, 14), (1, 40, 6, 40), (20, 21, 2, 9)):
        difference, low, high = rate_difference(*counts(*table), confidence=0.9)
        theirs = confint_proportions_2indep(
            table[0], table[1], table[2], table[3], method="newcomb", compare="diff", alpha=0.1
        )
        np.testing.assert_allclose([low[0], high[0]], theirs)
        np.testing.assert_allclose(difference[0], table[0] / table[1] - table[2] / table[3])


def test_published_paired_example():
    """Airway reactivity before and after treatment (Fagerland, Lydersen and Laake 2014): 1, 1, 7 and 12 of 21."""
    a, b = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [1, 1, 7, 12], axis=0).T[:, :, None]
    difference, low, high = paired_rate_difference(a, b)
    np.testing.assert_allclose([difference[0], low[0], high[0]], [-6 / 21, -0.507, -0.026], atol=6e-4)
    np.testing.assert_allclose(np.ravel(tango_interval([1.0], [7.0], 21)), [-0.517, -0.026], atol=6e-4)


def item_rates(rng, n, p, z, n_trials=4, spread=2.0):
    """Shares of active trials of items whose own probabilities vary (a beta-binomial driven by z)."""
    return rng.binomial(n_trials, special.betaincinv(p * spread, (1 - p) * spread, special.ndtr(z))) / n_trials


@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.3, 0.1), (0.9, 0.2)])
def test_coverage_with_fractions(n, p, q):
    rng = np.random.default_rng(n)
    z = rng.normal(size=(2, n, 2000))
    a, b = item_rates(rng, n, p, z[0]), item_rates(rng, n, q, z[1])
    _, low, high = rate_difference(np.vstack([a, b]), np.arange(2 * n) < n)
    assert 0.93 < ((low <= p - q) & (p - q <= high)).mean() < 0.99
    paired = item_rates(rng, n, q, 0.6 * z[0] + 0.8 * z[1])
    difference, low, high = paired_rate_difference(a, paired)
    np.testing.assert_allclose(difference, (a - paired).mean(axis=0), atol=1e-12)
    assert 0.93 < ((low <= p - q) & (p - q <= high)).mean() < 0.995


@pytest.mark.parametrize(("p", "q"), [(0.3, 0.1), (0.05, 0.05), (0.02, 0.2)])
def test_coverage_of_paired_zeros_and_ones(p, q):
    rng, n = np.random.default_rng(2), 20
    z = rng.normal(size=(2, n, 3000))
    a, b = special.ndtr(z[0]) < p, special.ndtr(0.6 * z[0] + 0.8 * z[1]) < q
    _, low, high = paired_rate_difference(a, b)
    assert ((low <= p - q) & (p - q <= high)).mean() > 0.94


def test_never_a_single_point_and_inside_the_scale():
    silent, positive = np.zeros((20, 1)), np.arange(20) < 10
    _, low, high = rate_difference(silent, positive)
    assert -0.3 < low[0] < -0.2 and 0.2 < high[0] < 0.3
    same = np.full((12, 1), 0.25)
    for a, b in ((same, same), (np.ones((12, 1)), np.zeros((12, 1))), (silent, silent)):
        difference, low, high = paired_rate_difference(a, b)
        assert -1 <= low[0] < high[0] <= 1 and low[0] <= difference[0] <= high[0]


def test_kinds_of_arrays_agree_and_nan_passes_through():
    rng = np.random.default_rng(4)
    a, b = (np.where(rng.random((16, 1100)) < 0.4, rng.integers(0, 4, (16, 1100)) / 3, 0) for _ in range(2))
    np.testing.assert_allclose(paired_rate_difference(sparse.csr_array(a), b), paired_rate_difference(a, b), atol=1e-12)
    positive = np.arange(16) < 7
    expected = rate_difference(a, positive)
    np.testing.assert_allclose(rate_difference(sparse.csc_array(a), positive), expected, atol=1e-12)
    a[3, 5] = np.nan
    for result in (rate_difference(a, positive), paired_rate_difference(a, b)):
        assert np.isnan([x[5] for x in result]).all()
        assert np.isfinite([x[:5] for x in result]).all()


def test_refusals():
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        rate_difference(np.full((4, 1), 1.5), np.array([True, True, False, False]))
    with pytest.raises(InvalidInput, match="at least two items"):
        rate_difference(np.ones((3, 1)), np.array([True, False, False]))
    with pytest.raises(InvalidInput, match="same items"):
        paired_rate_difference(np.ones((3, 1)), np.ones((4, 1)))
    with pytest.raises(InvalidInput, match="one label per item"):
        rate_difference(np.ones((3, 1)), np.array([True]))
