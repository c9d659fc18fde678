"""g_av against pingouin and simulations of known population values."""

import numpy as np
import pingouin
import pytest

from neurollm.errors import InvalidInput
from neurollm.stats import hedges_g, small_sample_factor
from neurollm.stats.paired import hedges_g_av


def described(a, b):
    d = a - b
    return d.mean(axis=0), *(x.std(axis=0, ddof=1) for x in (a, b, d)), len(a)


def simulated(n, r, delta, ratio, n_simulations, seed):
    """Two normal conditions whose means differ by delta average standard deviations."""
    z = np.random.default_rng(seed).normal(size=(2, n, n_simulations))
    a = z[0] + delta * np.sqrt((1 + ratio**2) / 2)
    return a, ratio * (r * z[0] + np.sqrt(1 - r**2) * z[1])


def test_estimate_is_pingouins_average_d_times_j():
    a, b = simulated(20, 0.6, 0.8, 1.7, 5, seed=0)
    g, low, high = hedges_g_av(*described(a, b))
    for v in range(5):
        d = pingouin.compute_effsize(a[:, v], b[:, v], paired=True, eftype="cohen")
        cov = np.cov(a[:, v], b[:, v])
        df = 19 * np.trace(cov) ** 2 / (cov**2).sum()
        np.testing.assert_allclose(g[v], d * small_sample_factor(df))
    assert ((low < g) & (g < high)).all()


def test_uncorrelated_equal_conditions_have_the_interval_of_the_paired_t():
    """With s_a = s_b = 1 and r = 0, s_d = √2, so s_av is s_d/√2 and g_av is √2 times the limits of g_z."""
    args = (np.array([0.7]), np.ones(1), np.ones(1), np.array([np.sqrt(2)]))
    _, low, high = hedges_g_av(*args, 12)
    _, z_low, z_high = hedges_g(0.7 / np.sqrt(2 / 12) * np.ones(1), 11, 1 / np.sqrt(12))
    np.testing.assert_allclose([low, high], np.sqrt(2) * np.array([z_low, z_high]))


@pytest.mark.parametrize(("r", "delta", "ratio"), [(0.0, 0.0, 1.0), (0.5, 0.8, 1.0), (0.9, 0.5, 1.0), (0.7, 1.0, 3.0)])
def test_unbiased_and_covering(r, delta, ratio):
    a, b = simulated(15, r, delta, ratio, 8000, seed=1)
    g, low, high = hedges_g_av(*described(a, b))
    assert abs(g.mean() - delta) < 0.015
    assert 0.94 < ((low <= delta) & (delta <= high)).mean() < 0.975


def test_constant_and_missing_conditions():
    one, zero, nan = np.ones(1), np.zeros(1), np.full(1, np.nan)
    assert np.isnan(hedges_g_av(nan, one, one, one, 10)).all()
    assert np.isnan(hedges_g_av(zero, zero, zero, zero, 10)).all()
    g, low, high = hedges_g_av(-one, zero, zero, zero, 10)
    assert g[0] == -np.inf and np.isnan([low, high]).all()
    g, low, high = hedges_g_av(one, one, one, zero, 10)  # a = b + 1 in every item
    assert 0.9 < g[0] < 1 and np.isnan([low, high]).all()
    g, low, high = hedges_g_av(one, one, zero, one, 10)  # a feature silent in one condition
    assert low[0] < g[0] < high[0]


def test_refusals():
    with pytest.raises(InvalidInput, match="three items"):
        hedges_g_av(np.ones(1), np.ones(1), np.ones(1), np.ones(1), 2)
    with pytest.raises(InvalidInput, match="negative"):
        hedges_g_av(np.ones(1), -np.ones(1), np.ones(1), np.ones(1), 9)
