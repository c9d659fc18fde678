"""Shares of variance explained against statsmodels, pingouin, root finding and simulation."""

import numpy as np
import pandas as pd
import pingouin
import pytest
import statsmodels.formula.api as smf
from scipy import optimize, special, stats
from statsmodels.stats.anova import anova_lm

from neurollm.errors import InvalidInput
from neurollm.stats.inversion import solve_percentile
from neurollm.stats.variance_explained import partial_eta_squared, partial_omega_squared, partial_r


def noncentral_f_cdf(f, q, df, noncentrality):
    """The Poisson mixture of beta distributions, summed term by term."""
    mean = noncentrality / 2
    width = 14 * np.sqrt(mean) + 80
    j = np.arange(max(0, int(mean - width)), int(mean + width))
    return np.sum(stats.poisson.pmf(j, mean) * special.betainc(q / 2 + j, df / 2, q * f / (q * f + df)))


@pytest.mark.parametrize(("q", "df"), [(1, 2), (2, 9), (3, 100), (20, 60)])
def test_eta_interval_inverts_the_noncentral_f(q, df):
    f = np.array([0.05, 0.9, 2.0, 7.0, 60.0, 900.0])
    _, low, high = partial_eta_squared(f, q, df)
    for limit, probability in ((low, 0.975), (high, 0.025)):
        for value, observed in zip(f, limit, strict=True):
            if stats.f.cdf(value, q, df) <= probability:
                assert observed == 0
                continue

            def miss(delta, value=value, probability=probability):
                return noncentral_f_cdf(value, q, df, delta**2) - probability

            root = optimize.brentq(miss, 0, 10 + 5 * np.sqrt(q * value), xtol=1e-12) ** 2
            np.testing.assert_allclose(observed, root / (root + df + q + 1), rtol=1e-6)


@pytest.mark.parametrize("df", [1, 4, 60, 1500])
def test_large_f_keeps_its_percentiles(df):
    q = 3
    root = np.array([0.9, 1.1, 1.5, 3]) * (50 + 10 * np.sqrt(df))
    f = root**2 / q
    _, low, high = partial_eta_squared(f, q, df)
    for limit, probability in ((low, 0.975), (high, 0.025)):
        noncentrality = limit / (1 - limit) * (df + q + 1)
        found = [noncentral_f_cdf(value, q, df, x) for value, x in zip(f, noncentrality, strict=True)]
        np.testing.assert_allclose(found, probability, atol=1e-5)
    huge = np.array(partial_eta_squared(np.array([1e12, 1e100]), q, df))
    assert (huge > 0.999).all() and (huge <= 1).all()


@pytest.mark.parametrize(("q", "df"), [(1, 1), (1, 3), (2, 60), (8, 500)])
def test_many_features_have_the_intervals_of_few(q, df):
    """Many are read from a spline, also near the F whose lower limit becomes 0."""
    f = np.random.default_rng(0).noncentral_chisquare(q, 6, 6000) ** 2 / q
    many = partial_eta_squared(f, q, df)
    few = np.hstack([partial_eta_squared(part, q, df) for part in np.split(f, 6)])
    np.testing.assert_allclose(many, few, atol=1e-6)
    assert (many[1] == 0).any() and (many[1] > 0).any()


def test_ninety_percent_interval_agrees_with_the_f_test_at_five():
    f = np.array([stats.f.isf(0.0501, 2, 30), stats.f.isf(0.0499, 2, 30)])
    low = partial_eta_squared(f, 2, 30, confidence=0.90)[1]
    assert low[0] == 0 < low[1]


def test_shares_equal_statsmodels_and_pingouin():
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"group": np.repeat(list("abc"), 12), "x": rng.normal(size=36)})
    table["y"] = rng.normal(size=36) + (table["group"] == "c") + 0.5 * table["x"]
    anova = anova_lm(smf.ols("y ~ x + C(group)", table).fit(), typ=2)
    f, (q, df) = anova.loc[["C(group)"], "F"].to_numpy(), (2, 32)
    ss, error = anova.loc["C(group)", "sum_sq"], anova.loc["Residual", "sum_sq"]
    np.testing.assert_allclose(partial_eta_squared(f, q, df)[0], ss / (ss + error))
    ms = error / df
    np.testing.assert_allclose(partial_omega_squared(f, q, df, n=36), (ss - q * ms) / (ss + (36 - q) * ms))
    t = smf.ols("y ~ x + C(group)", table).fit().tvalues[["x"]].to_numpy()
    dummies = table.assign(b=table["group"] == "b", c=table["group"] == "c").astype({"b": float, "c": float})
    theirs = pingouin.partial_corr(dummies, "x", "y", covar=["b", "c"])["r"].to_numpy()
    np.testing.assert_allclose(partial_r(t, 32)[0], theirs)


def test_r_interval_squares_to_the_eta_limit_and_keeps_the_sign():
    t = np.array([3.0, -3.0, 0.0])
    r, low, high = partial_r(t, 25, confidence=0.90)
    np.testing.assert_allclose([r[1], low[1], high[1]], [-r[0], -high[0], -low[0]])
    np.testing.assert_allclose(-low[2], high[2])
    # P(|t'| < 3) and P(t' < 3) differ by the other tail only, which is negligible at this noncentrality.
    np.testing.assert_allclose(partial_eta_squared(t[:1] ** 2, 1, 25, confidence=0.90)[2], high[0] ** 2, rtol=1e-4)


def test_intervals_cover_their_nominal_share():
    rng, q, df, noncentrality = np.random.default_rng(8), 2, 27, 9.0
    f = rng.noncentral_chisquare(q, noncentrality, 20_000) / q / (rng.chisquare(df, 20_000) / df)
    _, low, high = partial_eta_squared(f, q, df)
    truth = noncentrality / (noncentrality + q + df + 1)
    assert abs(((low <= truth) & (truth <= high)).mean() - 0.95) < 0.006
    t = (rng.normal(size=20_000) - 2.0) / np.sqrt(rng.chisquare(df, 20_000) / df)
    _, low, high = partial_r(t, df)
    truth = -2.0 / np.sqrt(4 + df + 2)
    assert abs(((low <= truth) & (truth <= high)).mean() - 0.95) < 0.006


def test_missing_and_infinite_values():
    eta, low, high = partial_eta_squared(np.array([np.nan, np.inf, 0.0]), 2, 20)
    np.testing.assert_array_equal(eta, [np.nan, 1, 0])
    np.testing.assert_array_equal(low, [np.nan, np.nan, 0])
    assert np.isnan(high[:2]).all() and high[2] == 0
    np.testing.assert_array_equal(partial_omega_squared(np.array([np.nan, np.inf]), 2, 20), [np.nan, 1])
    r, low, high = partial_r(np.array([np.nan, -np.inf]), 20)
    np.testing.assert_array_equal(r, [np.nan, -1])
    assert np.isnan([low, high]).all()


def test_refusals():
    with pytest.raises(InvalidInput, match="negative"):
        partial_eta_squared(np.array([1.0, -2.0]), 1, 10)
    with pytest.raises(InvalidInput, match="df"):
        partial_omega_squared(np.array([1.0]), 1, 0)
    with pytest.raises(InvalidInput, match="confidence"):
        partial_r(np.array([1.0]), 10, confidence=95)


def test_solver_survives_a_flat_start():
    """The probit of 0 and 1 is infinite: those steps bisect."""
    truth = np.array([-3.0, 0.0, 40.0])
    found = solve_percentile(
        lambda x: special.ndtr(truth - x), 0.5, np.full(3, 90.0), np.full(3, -100.0), np.full(3, 100.0)
    )
    np.testing.assert_allclose(found, truth, atol=1e-8)
