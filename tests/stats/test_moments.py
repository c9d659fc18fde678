"""t statistics, effect sizes, descriptives, AUC and BH against independent implementations."""

import time

import numpy as np
import pandas as pd
import pingouin
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.special import gamma, nctdtrinc
from sklearn.metrics import roc_auc_score

from neurollm.stats import (
    auc,
    concordance,
    contrast_moments,
    hedges_g,
    permutation_test,
    r_to_t,
    sides,
    sign_flip,
    small_sample_factor,
    t_interval,
    whole_item,
    within_item,
)

RNG = np.random.default_rng(0)


def test_paired_t_equals_scipy():
    a, b = RNG.lognormal(size=(15, 6)), RNG.lognormal(size=(15, 6))
    ours = contrast_moments(a - b, sign_flip(15), [1, -1])
    theirs = stats.ttest_rel(a, b)
    np.testing.assert_allclose(ours.stat, theirs.statistic)
    assert ours.df == theirs.df[0] == 14
    low, high = t_interval(ours.effect, ours.se, ours.df_effect)
    interval = theirs.confidence_interval()
    np.testing.assert_allclose([low, high], [interval.low, interval.high])


def test_two_sample_t_equals_scipy():
    codes = np.repeat([0, 1], [6, 11])
    y = RNG.lognormal(size=(17, 6))
    ours = contrast_moments(y, whole_item(codes, [1, -1]), [1, -1])
    theirs = stats.ttest_ind(y[:6], y[6:])
    np.testing.assert_allclose(ours.stat, theirs.statistic)
    assert ours.df == 15
    interval = theirs.confidence_interval()
    np.testing.assert_allclose(t_interval(ours.effect, ours.se, ours.df), [interval.low, interval.high])


@pytest.mark.parametrize("weights", [(1, -0.5, -0.5), (1, 1, -2), (0.3, -1, 0.7)])
def test_three_levels_between_equals_statsmodels(weights):
    codes = np.repeat([0, 1, 2], [5, 7, 9])
    y = RNG.lognormal(size=(21, 3))
    ours = contrast_moments(y, whole_item(codes, weights), weights)
    for v in range(3):
        fit = smf.ols("y ~ 0 + C(g)", pd.DataFrame({"y": y[:, v], "g": codes})).fit()
        theirs = fit.t_test(np.array(weights))
        assert ours.stat[v] == pytest.approx(theirs.tvalue.item())
        assert ours.effect[v] == pytest.approx(theirs.effect.item())
        assert ours.se[v] == pytest.approx(theirs.sd.item())
        assert ours.df == fit.df_resid


@pytest.mark.parametrize("weights", [(1, -0.5, -0.5), (0.3, -1, 0.7)])
def test_three_levels_within_equals_statsmodels(weights):
    y = RNG.lognormal(size=(24, 3)) + np.repeat(RNG.normal(size=8), 3)[:, None]
    frame = pd.DataFrame({"item": np.repeat(np.arange(8), 3), "g": np.tile([0, 1, 2], 8)})
    ours = contrast_moments(y, within_item(8, weights), weights)
    for v in range(3):
        fit = smf.ols("y ~ 0 + C(g) + C(item)", frame.assign(y=y[:, v])).fit()
        theirs = fit.t_test(np.r_[weights, np.zeros(7)])
        assert ours.stat[v] == pytest.approx(theirs.tvalue.item())
        assert ours.effect[v] == pytest.approx(theirs.effect.item())
        assert ours.df == fit.df_resid
        scores = y[:, v].reshape(8, 3) @ weights
        assert ours.se[v] == pytest.approx(stats.sem(scores))


@pytest.mark.parametrize(
    ("shuffling", "weights", "rows"),
    [
        (sign_flip(9), (1, -1), 9),
        (whole_item([0, 1] * 5, (1, -1)), (1, -1), 10),
        (whole_item([0, 1, 2] * 4, (1, -0.5, -0.5)), (1, -0.5, -0.5), 12),
        (within_item(5, (1, 0.5, -1.5)), (1, 0.5, -1.5), 15),
    ],
)
def test_kernel_correlation_is_the_reported_t(shuffling, weights, rows):
    y = RNG.normal(size=(rows, 20))
    moments = contrast_moments(y, shuffling, weights)
    for alternative in ("two-sided", "greater", "less"):
        kernel = permutation_test(y, shuffling, moments.norm, n_perm=5, alternative=alternative)
        np.testing.assert_allclose(r_to_t(kernel.r, shuffling.df), moments.stat, rtol=1e-8)


def test_constant_perfect_and_broken_columns():
    d = np.column_stack([np.zeros(6), np.full(6, 0.1), RNG.normal(size=6), np.r_[np.nan, np.ones(5)]])
    ours = contrast_moments(d, sign_flip(6), [1, -1])
    assert ours.norm[0] == 0 and np.isinf(ours.stat[1]) and np.isnan(ours.norm[3])
    y = np.column_stack([np.full(6, 0.3), [0.1, 0.1, 0.1, 0.7, 0.7, 0.7]])
    ours = contrast_moments(y, whole_item([0, 0, 0, 1, 1, 1], [-1, 1]), [-1, 1])
    assert ours.norm[0] == 0 and ours.stat[1] == np.inf


@settings(max_examples=60, deadline=None)
@given(st.floats(-40, 40), st.integers(2, 400))
def test_interval_of_g_inverts_the_noncentral_t(t, df):
    _, low, high = hedges_g(np.array([t]), df, 1.0)
    factor = hedges_g(np.array([1.0]), df, 1.0)[0][0]
    assert stats.nct.cdf(t, df, low[0] / factor) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(t, df, high[0] / factor) == pytest.approx(0.025, abs=1e-6)


def test_g_equals_pingouin():
    a, b = RNG.normal(1, 1, 12), RNG.normal(size=19)
    t = stats.ttest_ind(a, b).statistic
    g = hedges_g(np.array([t]), 29, np.sqrt(1 / 12 + 1 / 19))[0][0]
    assert g == pytest.approx(pingouin.compute_effsize(a, b, eftype="hedges"), rel=2e-3)  # pingouin approximates J
    d = a - RNG.normal(size=12)
    z = hedges_g(np.array([stats.ttest_1samp(d, 0).statistic]), 11, 1 / np.sqrt(12))[0][0]
    factor = gamma(5.5) / (np.sqrt(5.5) * gamma(5))
    assert z == pytest.approx(d.mean() / d.std(ddof=1) * factor)


def test_g_is_nan_or_infinite_where_t_is():
    g, low, high = hedges_g(np.array([np.nan, np.inf, 0.0]), 10, 0.3)
    assert np.isnan(g[0]) and np.isinf(g[1]) and g[2] == 0
    assert np.isnan(low[:2]).all() and low[2] == pytest.approx(-high[2])


def test_interval_of_g_agrees_with_scipy():
    for df in (2, 7, 29, 300):
        t = np.linspace(-30, 30, 41)
        _, low, high = hedges_g(t, df, 1.0)
        factor = small_sample_factor(df)
        np.testing.assert_allclose(low / factor, nctdtrinc(df, 0.975, t), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(high / factor, nctdtrinc(df, 0.025, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("df", [2, 7, 29, 300, 10_000])
def test_interval_of_g_for_any_t_in_bounded_time(df):
    edge = 100 + 20 * np.sqrt(df)
    t = np.array([edge, np.nextafter(edge, np.inf), 3.9e5, 1e6, 1e300])
    start = time.perf_counter()
    _, low, high = hedges_g(np.concatenate([t, -t]), df, 1.0)
    assert time.perf_counter() - start < 2
    assert np.isfinite([low, high]).all()
    np.testing.assert_allclose(high[5:], -low[:5])
    factor = small_sample_factor(df)
    np.testing.assert_allclose(low[1], low[0], rtol=1e-4)  # where the large-t form takes over
    np.testing.assert_allclose(high[1], high[0], rtol=1e-4)
    scale = np.sqrt(stats.chi2.ppf([0.025, 0.975], df) / df) * factor
    np.testing.assert_allclose([low[3] / 1e6, high[3] / 1e6], scale, rtol=1e-5)


@pytest.mark.parametrize("df", [0, 1])
def test_g_does_not_exist_with_one_degree_of_freedom(df):
    assert np.isnan(hedges_g(np.array([0.0, 3.0, np.inf]), df, 1.0)).all() and np.isnan(small_sample_factor(df))


@pytest.mark.parametrize("scheme", ["sign_flip", "whole_item", "within_item"])
def test_rounding_that_follows_the_condition_is_constant_and_a_small_effect_is_not(scheme):
    n, k = 20, 3 if scheme == "within_item" else 2
    weights = [1, -0.5, -0.5][:k] if k == 3 else [1, -1]
    levels = np.tile(np.arange(k), n)
    y = (
        RNG.lognormal(size=(n, 5))[np.repeat(np.arange(n), k)] if scheme != "whole_item" else np.full((n * k, 5), 3.0)
    ) * (1 + np.where(levels == 0, 1, -1)[:, None] * np.array([0, 1e-7, 1e-6, 1e-3, 1e-2]))
    largest = np.abs(y).max(axis=0)
    shuffling = {
        "sign_flip": sign_flip(n),
        "whole_item": whole_item(levels, weights),
        "within_item": within_item(n, weights),
    }[scheme]
    data = y[::2] - y[1::2] if scheme == "sign_flip" else y
    moments = contrast_moments(data, shuffling, weights, largest)
    np.testing.assert_array_equal(moments.norm > 0, [False, False, False, True, True])


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array])
def test_sides_are_mean_rate_and_magnitude(store):
    y = np.where(RNG.random((12, 30)) < 0.3, RNG.lognormal(size=(12, 30)), 0)
    items, levels = np.repeat(np.arange(6), 2), np.tile([0, 1], 6)
    ours = sides(store(y), levels, items, [-1, 1])
    np.testing.assert_allclose(ours.mean_positive, y[1::2].mean(0))
    np.testing.assert_allclose(ours.rate_negative, (y[::2] > 0).mean(0))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(ours.magnitude_positive, y[1::2].sum(0) / (y[1::2] > 0).sum(0))
    np.testing.assert_array_equal(ours.n_active_items, ((y[::2] > 0) | (y[1::2] > 0)).sum(0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
def test_auc_equals_sklearn_with_ties(cases):
    scores, labels = np.array([c[0] for c in cases], float), np.array([c[1] for c in cases])
    if labels.all() or not labels.any():
        assert np.isnan(auc(scores, labels))
        return
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert auc(np.column_stack([scores, -scores]), labels)[1] == pytest.approx(roc_auc_score(labels, -scores))
    weights = np.random.default_rng(len(cases)).integers(1, 4, (3, len(cases))).astype(float)
    more, pairs = concordance(scores, labels, weights)
    expected = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(more / pairs, expected)
