"""Hedges' g with its interval, and AUC, against independent implementations."""

import time

import numpy as np
import pingouin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gamma, nctdtrinc
from sklearn.metrics import roc_auc_score

from neurollm.stats import auc, concordance, hedges_g, small_sample_factor

RNG = np.random.default_rng(0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-40, 40), st.integers(2, 400))
def test_interval_of_g_inverts_the_noncentral_t(t, df):
    _, low, high = hedges_g(np.array([t]), df, 1.0)
    assert stats.nct.cdf(t, df, low[0]) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(t, df, high[0]) == pytest.approx(0.025, abs=1e-6)


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
        np.testing.assert_allclose(low, nctdtrinc(df, 0.975, t), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(high, nctdtrinc(df, 0.025, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("df", [2, 7, 29, 300, 10_000])
def test_interval_of_g_for_any_t_in_bounded_time(df):
    edge = 100 + 20 * np.sqrt(df)
    t = np.array([edge, np.nextafter(edge, np.inf), 3.9e5, 1e6, 1e300])
    start = time.perf_counter()
    _, low, high = hedges_g(np.concatenate([t, -t]), df, 1.0)
    assert time.perf_counter() - start < 2
    assert np.isfinite([low, high]).all()
    np.testing.assert_allclose(high[5:], -low[:5])
    np.testing.assert_allclose(low[1], low[0], rtol=1e-4)  # where the large-t form takes over
    np.testing.assert_allclose(high[1], high[0], rtol=1e-4)
    scale = np.sqrt(stats.chi2.ppf([0.025, 0.975], df) / df)
    np.testing.assert_allclose([low[3] / 1e6, high[3] / 1e6], scale, rtol=1e-5)


@pytest.mark.parametrize("df", [0, 1])
def test_g_does_not_exist_with_one_degree_of_freedom(df):
    assert np.isnan(hedges_g(np.array([0.0, 3.0, np.inf]), df, 1.0)).all() and np.isnan(small_sample_factor(df))


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


def test_interval_of_g_covers_the_true_size():
    rng = np.random.default_rng(0)
    for n, delta in ((8, 1.5), (30, 0.8)):
        d = rng.normal(delta, 1, (n, 20_000))
        t = d.mean(axis=0) / d.std(axis=0, ddof=1) * np.sqrt(n)
        g, low, high = hedges_g(t, n - 1, n**-0.5)
        assert abs(((low <= delta) & (delta <= high)).mean() - 0.95) < 0.006
        assert g.mean() == pytest.approx(delta, rel=0.02)
