"""Score intervals against statsmodels, the numerically maximised likelihood and exact coverage."""

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.proportion import proportion_confint

from neurollm.stats.proportions import tango_interval, wilson_interval


def test_wilson_equals_statsmodels():
    counts = np.arange(13)
    low, high = wilson_interval(counts / 12, 12, confidence=0.9)
    theirs = proportion_confint(counts, 12, alpha=0.1, method="wilson")
    np.testing.assert_allclose([low, high], theirs, atol=1e-12)
    assert low[0] == 0 and high[-1] == 1


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (3, 0, 10), (0, 6, 7), (1, 1, 30), (0, 0, 20)])
def test_tango_limits_have_the_critical_score(b, c, n):
    """The nuisance probability is the argument of the maximum of the trinomial likelihood."""
    limits = np.concatenate(tango_interval(np.array([b]), np.array([c]), n))
    for delta, sign in zip(limits, (1, -1), strict=True):

        def minus_log_likelihood(p, delta=delta):
            cells = np.clip([p + delta, p, 1 - 2 * p - delta], 1e-300, 1)
            return -np.array([b, c, n - b - c]) @ np.log(cells)

        bounds = (max(0, -delta), (1 - delta) / 2)
        p = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-11}).x
        score = (b - c - n * delta) / np.sqrt(n * (2 * p + delta - delta**2))
        np.testing.assert_allclose(score, sign * stats.norm.ppf(0.975), rtol=1e-4)


def test_tango_without_discordant_pairs_is_z2_over_n_plus_z2():
    low, high = tango_interval(np.zeros(1), np.zeros(1), 40)
    z2 = stats.norm.ppf(0.975) ** 2
    np.testing.assert_allclose([low[0], high[0]], [-z2 / (40 + z2), z2 / (40 + z2)])


@pytest.mark.parametrize(("p", "q"), [(0.1, 0.1), (0.3, 0.05), (0.6, 0.2), (0.02, 0.0)])
def test_tango_covers_exactly_enumerated(p, q):
    n = 20
    b, c = (x.ravel() for x in np.indices((n + 1, n + 1)))
    b, c = b[b + c <= n], c[b + c <= n]
    probability = stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=1), n, [p, q, 1 - p - q])
    low, high = tango_interval(b, c, n)
    inside = (low <= p - q + 1e-9) & (p - q - 1e-9 <= high)
    assert 0.935 < probability[inside].sum() <= 1
