"""Equivalence tests and Bayes factors against pingouin, statsmodels, published values and adaptive quadrature."""

from itertools import pairwise

import numpy as np
import pingouin
import pytest
from scipy import integrate, stats
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from neurollm.errors import InvalidInput
from neurollm.stats.evidence import bayes_factor, equivalence

RNG = np.random.default_rng(0)


def test_paired_equivalence_equals_statsmodels_and_pingouin():
    a, b = RNG.normal(size=(25, 4)), RNG.normal(0.1, size=(25, 4))
    p = equivalence(stats.ttest_rel(a, b).statistic, 24, 1 / 5, (-0.4, 0.6))
    for v in range(4):
        sd = (a - b)[:, v].std(ddof=1)
        np.testing.assert_allclose(p[v], ttost_paired(a[:, v], b[:, v], -0.4 * sd, 0.6 * sd)[0])
        symmetric = equivalence(stats.ttest_rel(a, b).statistic, 24, 1 / 5, (-0.5, 0.5))[v]
        theirs = pingouin.tost(a[:, v], b[:, v], bound=0.5 * sd, paired=True)
        np.testing.assert_allclose(symmetric, theirs[next(c for c in theirs if c.startswith("p"))].iloc[0])


def test_independent_equivalence_equals_statsmodels():
    a, b = RNG.normal(size=18), RNG.normal(0.2, size=30)
    unit = np.sqrt(1 / 18 + 1 / 30)
    test = stats.ttest_ind(a, b)
    sd = (a.mean() - b.mean()) / (test.statistic * unit)
    p = equivalence(np.array([test.statistic]), 46, unit, (-0.5, 0.5))
    np.testing.assert_allclose(p[0], ttost_ind(a, b, -0.5 * sd, 0.5 * sd)[0])


def test_equivalence_keeps_its_level_at_the_bound():
    n, bound = 40, 0.6
    d = RNG.normal(bound, 1, size=(n, 20_000))
    t = d.mean(axis=0) / (d.std(axis=0, ddof=1) / np.sqrt(n))
    rejected = (equivalence(t, n - 1, 1 / np.sqrt(n), (-bound, bound)) <= 0.05).mean()
    # The bound uses the observed sd, so the level is that of t(δ) shifted by δ/unit: a little above .05.
    nominal = stats.nct.cdf(bound * np.sqrt(n) + stats.t.ppf(0.05, n - 1), n - 1, bound * np.sqrt(n))
    assert abs(rejected - nominal) < 0.005 and rejected < 0.07


def marginal_ratio(t, n, df, r):
    """The definition: noncentral t densities averaged over a Cauchy effect, over the central density."""

    def integrand(effect):
        return stats.nct.pdf(t, df, effect * np.sqrt(n)) * stats.cauchy.pdf(effect, scale=r)

    peak = t / np.sqrt(n)
    pieces = peak + np.array([-40, -4, -1, 0, 1, 4, 40]) / np.sqrt(n)
    total = sum(integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in pairwise(pieces))
    return total / stats.t.pdf(t, df)


@pytest.mark.parametrize("r", [0.3, 0.707, 1.4])
def test_bayes_factor_equals_quadrature_and_pingouin(r):
    for t in (0.0, 0.4, -2.2, 4.0, 9.0):
        one, two = bayes_factor(np.array([t]), 15, r=r)[0], bayes_factor(np.array([t]), 12, 30, r=r)[0]
        np.testing.assert_allclose(one, marginal_ratio(t, 15, 14, r), rtol=1e-5)
        np.testing.assert_allclose(two, marginal_ratio(t, 12 * 30 / 42, 40, r), rtol=1e-5)
        np.testing.assert_allclose(one, float(pingouin.bayesfactor_ttest(t, 15, paired=True, r=r)), rtol=1e-4)
        np.testing.assert_allclose(two, float(pingouin.bayesfactor_ttest(t, 12, 30, r=r)), rtol=1e-4)


def test_published_bayes_factors():
    """Rouder et al. (2009): t(79) = 2.24 and 2.03 give null to alternative 1.02 and 1.56 with r = 1."""
    np.testing.assert_allclose(1 / bayes_factor(np.array([2.24, 2.03]), 80, r=1.0), [1.02, 1.56], atol=0.005)


def test_bayes_factor_of_any_t_is_finite_in_logs():
    t = np.array([0, 1e-200, 1e3, 1e8, 1e100, 1e300, np.inf, np.nan])
    log = bayes_factor(t, 20, 20, log=True)
    assert np.isfinite(log[:6]).all() and (np.diff(log[1:6]) > 0).all()
    assert log[6] == np.inf and np.isnan(log[7])
    # Far out BF grows as |t|^(df + 1) times the tail of the prior, |t|^(-2) of a Cauchy distribution over an effect.
    np.testing.assert_allclose((log[4] - log[3]) / np.log(1e92), 38 - 1, rtol=1e-3)
    assert bayes_factor(t, 20, 20)[4] == np.inf
    together = bayes_factor(np.linspace(-6, 6, 5000), 20, 20)
    alone = [bayes_factor(np.array([x]), 20, 20)[0] for x in np.linspace(-6, 6, 5000)[::999]]
    np.testing.assert_allclose(together[::999], alone, rtol=1e-10)


def test_refusals():
    with pytest.raises(InvalidInput, match="bounds"):
        equivalence(np.zeros(1), 9, 0.3, (0.3, -0.3))
    with pytest.raises(InvalidInput, match="unit"):
        equivalence(np.zeros(1), 9, 0, (-0.3, 0.3))
    with pytest.raises(InvalidInput, match="degree of freedom"):
        bayes_factor(np.zeros(1), 1)
    with pytest.raises(InvalidInput, match="scale"):
        bayes_factor(np.zeros(1), 9, r=0)
