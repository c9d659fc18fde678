"""AUC intervals against pairs counted one by one, scikit-learn, Brunner-Munzel and simulations."""

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from neurollm.errors import InvalidInput
from neurollm.stats.auc_effect import auc_interval, paired_auc


def mixed_columns(seed=0, n=(9, 14)):
    """Continuous, tied, sparse and negative columns, of two groups."""
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(sum(n), 40))
    Y[:, 10:20] = rng.integers(-1, 3, size=(sum(n), 10))
    Y[:, 20:] = np.where(rng.random((sum(n), 20)) < 0.3, rng.lognormal(size=(sum(n), 20)), 0)
    Y[:, 30:] -= 2 * (rng.random((sum(n), 10)) < 0.1)
    return Y, np.arange(sum(n)) < n[0]


def test_area_equals_scikit_learn_and_the_interval_holds_it():
    Y, positive = mixed_columns()
    area, low, high = auc_interval(Y, positive)
    np.testing.assert_allclose(area, [roc_auc_score(positive, y) for y in Y.T])
    assert ((low <= area) & (area <= high) & (low < high) & (low >= 0) & (high <= 1)).all()
    mirrored = auc_interval(-Y, positive)
    np.testing.assert_allclose(mirrored[0], 1 - area)
    np.testing.assert_allclose([mirrored[1], mirrored[2]], [1 - high, 1 - low], atol=1e-12)


def test_interval_is_delongs_from_pairs_with_brunner_munzels_df():
    Y, positive = mixed_columns(1)
    Y, n = Y[:, :30], np.array([9, 14])
    area, low, high = auc_interval(Y, positive, confidence=0.9)
    checked = 0
    for v, y in enumerate(Y.T):
        pairs = (y[positive][:, None] > y[~positive]) + 0.5 * (y[positive][:, None] == y[~positive])
        parts = np.array([pairs.mean(axis=1).var(ddof=1), pairs.mean(axis=0).var(ddof=1)]) / n
        if parts.min() == 0 or min(pairs.mean(), 1 - pairs.mean()) <= 1 / 18:
            continue
        se, df = np.sqrt(parts.sum()), parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
        theirs = stats.brunnermunzel(y[~positive], y[positive])
        np.testing.assert_allclose((pairs.mean() - 0.5) / se, theirs.statistic, atol=1e-10)
        np.testing.assert_allclose(2 * stats.t.sf(abs(theirs.statistic), df), theirs.pvalue)
        half = stats.t.ppf(0.95, df) * se / (area[v] * (1 - area[v]))
        np.testing.assert_allclose(logit([low[v], high[v]]), logit(pairs.mean()) + np.array([-half, half]))
        checked += 1
    assert checked > 20


def test_sparse_float32_and_dense_agree():
    Y, positive = mixed_columns(2)
    Y = np.hstack([Y] * 60)[:, :2100]  # several blocks
    expected = auc_interval(Y, positive)
    for kind in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        np.testing.assert_allclose(auc_interval(kind(Y), positive), expected)
    Y32 = Y.astype(np.float32)
    np.testing.assert_allclose(auc_interval(sparse.csr_array(Y32), positive), auc_interval(Y32, positive))


def test_never_a_single_point():
    positive = np.repeat([True, False], 10)
    Y = np.stack([positive * 1.0, -1.0 * positive, np.zeros(20), positive * np.arange(20) + 7.0], axis=1)
    area, low, high = auc_interval(Y, positive)
    np.testing.assert_array_equal(area[:3], [1, 0, 0.5])
    assert (high - low > 0.1).all()
    np.testing.assert_allclose([low[1], high[1]], [1 - high[0], 1 - low[0]])
    assert high[0] == 1 and low[1] == 0
    # Newcombe's method 5 at A = 1: the A' whose distance to 1 is z standard errors of its own.
    a, z = low[0], stats.norm.ppf(0.975)
    variance = a * (1 - a) * (1 + 9 * ((1 - a) / (2 - a) + a / (1 + a))) / 100
    np.testing.assert_allclose(1 - a, z * np.sqrt(variance))


def test_nan_passes_through():
    Y, positive = mixed_columns(3)
    Y[4, 7] = np.nan
    for array in (Y, sparse.csc_array(Y)):
        result = np.array(auc_interval(array, positive))
        assert np.isnan(result[:, 7]).all() and np.isfinite(np.delete(result, 7, axis=1)).all()


@pytest.mark.parametrize("n", [(12, 12), (12, 40)])
@pytest.mark.parametrize("case", ["null", "normal", "strong", "sparse null", "sparse"])
def test_coverage_of_independent_groups(n, case):
    rng, size = np.random.default_rng(5), (sum(n), 3000)
    positive = np.arange(sum(n)) < n[0]
    shift = {"null": 0.0, "normal": 1.0, "strong": 2.5}.get(case)
    if shift is not None:
        Y, truth = rng.normal(size=size) + shift * positive[:, None], stats.norm.cdf(shift / np.sqrt(2))
    else:
        rates = (0.1, 0.1) if case == "sparse null" else (0.5, 0.1)
        active = rng.random(size) < np.where(positive, *rates)[:, None]
        Y, truth = np.where(active, rng.random(size), 0), (1 + rates[0] - rates[1]) / 2
    _, low, high = auc_interval(Y, positive)
    assert ((low <= truth) & (truth <= high)).mean() > 0.935


def test_paired_area_counts_signs_and_covers():
    rng, n, p, q = np.random.default_rng(6), 15, 0.35, 0.1
    D = rng.choice([1.7, 0.0, -0.4], p=[p, 1 - p - q, q], size=(n, 5000))
    area, low, high = paired_auc(sparse.csr_array(D))
    np.testing.assert_allclose(area, ((D > 0) + 0.5 * (D == 0)).mean(axis=0))
    assert (low < high).all() and ((low <= area) & (area <= high)).all()
    truth = p + (1 - p - q) / 2
    assert 0.935 < ((low <= truth) & (truth <= high)).mean() < 0.98
    D[0, 3] = np.nan
    assert np.isnan([x[3] for x in paired_auc(D)]).all()


def test_refusals():
    with pytest.raises(InvalidInput, match="two items"):
        auc_interval(np.ones((4, 1)), np.array([True, False, False, False]))
    with pytest.raises(InvalidInput, match="one label per item"):
        auc_interval(np.ones((4, 1)), np.array([True, False]))
    with pytest.raises(InvalidInput, match="none"):
        paired_auc(np.ones((0, 2)))
