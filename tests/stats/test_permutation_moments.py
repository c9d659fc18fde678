"""Closed-form moments and tails of permutation distributions against enumeration, scipy and simulation."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, sparse, stats

from neurollm.errors import InvalidInput
from neurollm.stats.moments import beta_p, label_moments, pearson3_p, quadratic_moments

RNG = np.random.default_rng(0)
BLOCKS = [None, [0, 1, 0, 1, 0, 1, 2, 2], [0, 0, 1, 2, 2, 2, 2, 2], [3, 3, 3, 1, 1, 2, 2, 5], [0, 0, 0, 0, 1, 1, 1, 1]]
KINDS = {
    "numpy": lambda a: a,
    "csr": sparse.csr_array,
    "coo": sparse.coo_matrix,
    "float32": lambda a: a.astype(np.float32),
    "torch": torch.as_tensor,
}


def zero_inflated(shape, active=0.6, rng=RNG):
    return np.where(rng.random(shape) < active, rng.lognormal(size=shape), 0.0)


def labels_of(blocks, n):
    return np.zeros(n, int) if blocks is None else np.array(blocks)


def rows(labels, q, rng=RNG):
    """Orthonormal columns that are centred inside blocks."""
    block = (labels[:, None] == np.unique(labels)).astype(float)
    free = rng.standard_normal((labels.size, q))
    return np.linalg.qr(free - block @ np.linalg.lstsq(block, free, rcond=None)[0])[0]


def every_statistic(X, Y, labels):
    """r of every row of X and column of Y, over all permutations inside blocks: (P, q, V)."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    Y = Y.copy()
    for group in groups:
        Y[group] -= Y[group].mean(axis=0)
    Y /= np.linalg.norm(Y, axis=0)
    r = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        source = np.empty(labels.size, int)
        for group, order in zip(groups, orders, strict=True):
            source[group] = order
        r.append(X.T @ Y[source])
    return np.array(r)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_moments_equal_those_over_all_permutations(blocks, kind):
    n = 6 if blocks is None else 8
    labels = labels_of(blocks, n)
    X, Y = rows(labels, 2), zero_inflated((n, 5)).astype(np.float32).astype(float)
    r = every_statistic(X, Y, labels)
    moments = label_moments(X[:, 0], KINDS[kind](Y), blocks)
    variance, third = np.mean(r[:, 0] ** 2, axis=0), np.mean(r[:, 0] ** 3, axis=0)
    np.testing.assert_allclose(moments.variance, variance, atol=1e-10)
    np.testing.assert_allclose(moments.skewness, third / variance**1.5, atol=1e-10)
    r2 = np.sum(r**2, axis=1)
    mean, variance = quadratic_moments(X, KINDS[kind](Y), blocks)
    np.testing.assert_allclose(mean, r2.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(variance, r2.var(axis=0), atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_moments_of_very_few_rows(n):
    labels = np.zeros(n, int)
    X, Y = rows(labels, 1), RNG.lognormal(size=(n, 3))
    r2 = every_statistic(X, Y, labels)[:, 0] ** 2
    np.testing.assert_allclose(label_moments(X[:, 0], Y).variance, r2.mean(axis=0))
    mean, variance = quadratic_moments(X, Y)
    np.testing.assert_allclose(mean, r2.mean(axis=0))
    np.testing.assert_allclose(variance, r2.var(axis=0), atol=1e-12)


def test_one_block_has_the_known_mean_and_variance():
    labels = np.zeros(9, int)
    Y = RNG.lognormal(size=(9, 4))
    np.testing.assert_allclose(label_moments(rows(labels, 1)[:, 0], Y).variance, 1 / 8)
    np.testing.assert_allclose(quadratic_moments(rows(labels, 3), Y)[0], 3 / 8)


def test_precise_for_a_feature_that_hardly_varies_and_undefined_for_one_that_does_not():
    x, y = rows(np.zeros(30, int), 1)[:, 0], RNG.lognormal(size=(30, 1))
    shifted = label_moments(x, np.hstack([y, y + 1e6, np.full((30, 1), 0.1), np.zeros((30, 1)), y * np.nan]))
    np.testing.assert_allclose(shifted.skewness[1], shifted.skewness[0], rtol=1e-6)
    assert np.isnan(shifted.skewness[2:]).all() and np.isnan(shifted.variance[2:]).all()
    empty = label_moments(x, sparse.csc_array((30, 2)))
    assert np.isnan(empty.variance).all() and np.isnan(quadratic_moments(x, sparse.csc_array((30, 2)))[1]).all()
    assert label_moments(x, sparse.csc_array((30, 0))).variance.shape == (0,)


def test_rows_stored_twice_are_added():
    twice = sparse.coo_array(([1.0, 2.0, 3.0, 1.0], ([0, 0, 2, 4], [0, 0, 0, 0])), shape=(6, 1))
    x = rows(np.zeros(6, int), 1)[:, 0]
    np.testing.assert_allclose(label_moments(x, twice).skewness, label_moments(x, twice.toarray()).skewness)


@pytest.mark.parametrize("shuffled_along", [False, True])
def test_partial_correlation_by_simulation(shuffled_along):
    rng = np.random.default_rng(1)
    n, k, n_perm = 20, 3, 40_000
    basis = rows(np.zeros(n, int), k + 1, rng)
    x, others = basis[:, 0], basis[:, 1:]
    Y = zero_inflated((n, 6), 0.7, rng)
    Y -= Y.mean(axis=0)
    if not shuffled_along:
        Y -= others @ (others.T @ Y)
    order = rng.permuted(np.tile(np.arange(n), (n_perm, 1)), axis=1)
    unit = Y / np.linalg.norm(Y, axis=0)
    rho = np.empty((n_perm, 6))
    for v in range(6):
        drawn = unit[order, v]
        rho[:, v] = drawn @ x / np.sqrt(1 - np.sum((drawn @ others) ** 2, axis=1))
    options = {"rest" if shuffled_along else "nuisance": others}
    moments = label_moments(x, Y, **options)
    np.testing.assert_allclose(moments.variance, 1 / (n - 1 - k), rtol=1e-12)
    # The correction of the variance is approximate: some per cent more than the sampling error of 1 %.
    np.testing.assert_allclose(np.mean(rho**2, axis=0), moments.variance, rtol=0.07)
    np.testing.assert_allclose(stats.skew(rho), moments.skewness, atol=0.15)


@pytest.mark.parametrize("skewness", [-3, -1, -0.3, 0.03, 0.3, 1, 3])
def test_tail_equals_scipy(skewness):
    r = np.linspace(-4, 12, 60)
    theirs = stats.pearson3.sf(r, skewness)
    ours = pearson3_p(r * 0.2, 0.04, skewness, "greater")
    there = theirs > 1e-250
    np.testing.assert_allclose(ours[there], theirs[there], rtol=1e-8, atol=1e-13 if skewness < 0 else 0)
    np.testing.assert_allclose(pearson3_p(-r * 0.2, 0.04, -skewness, "less"), ours)
    both = 2 * np.minimum(ours, pearson3_p(r * 0.2, 0.04, skewness, "less"))
    np.testing.assert_allclose(pearson3_p(r * 0.2, 0.04, skewness), np.minimum(both, 1), atol=1e-300)


@pytest.mark.parametrize("skewness", [-0.03, -0.019, -1e-3, -1e-6, 1e-6, 0.01, 0.019, 0.021])
@pytest.mark.parametrize("z", [-3.0, 0.2, 2.0, 5.0, 7.0])
def test_far_tail_equals_the_integral_of_the_density(skewness, z):
    a = 4 / skewness**2

    def log_density(u):
        """log of the standardised density over its value at 0, with Stirling's sum for the constant."""
        step = u * skewness / 2
        return (a - 1) * np.log1p(step) - a * step

    constant = -0.5 * np.log(2 * np.pi) - 1 / (12 * a)
    integral = integrate.quad(lambda u: np.exp(log_density(u) - log_density(z)), z, z + 9, epsabs=0, epsrel=1e-9)[0]
    expected = integral * np.exp(log_density(z) + constant)
    np.testing.assert_allclose(pearson3_p(z, 1.0, skewness, "greater"), expected, rtol=1e-6)


def test_no_skewness_is_normal_and_p_is_never_zero():
    z = np.array([-3.0, 0.0, 3.0, 8.0])
    np.testing.assert_allclose(pearson3_p(z, 1.0, 0.0, "greater"), stats.norm.sf(z), rtol=1e-12)
    # The fitted distribution ends at −2.
    assert pearson3_p(-2.5, 1.0, 1.0, "less") == np.finfo(float).tiny
    assert pearson3_p(-2.5, 1.0, 1.0, "less", floor=1e-5) == 1e-5
    assert pearson3_p(-2.5, 1.0, 1.0, "greater") == 1
    assert np.isnan(pearson3_p([np.nan, 1.0], [1.0, np.nan], 0.5)).all()


def test_beta_tail_equals_scipy():
    a, b = np.array([0.5, 2.0, 1.0]), np.array([20.0, 50.0, 1.0])
    mean, variance = stats.beta.stats(a, b)
    for r2 in (0.01, 0.3, 0.9):
        np.testing.assert_allclose(beta_p(r2, mean, variance), stats.beta.sf(r2, a, b), rtol=1e-9)
    assert beta_p(1.0, mean[0], variance[0], floor=1e-4) == 1e-4
    assert np.isnan(beta_p(0.5, np.array([np.nan, 0.5]), np.array([0.1, 0.25]))).all()


@pytest.mark.parametrize("sizes", [(12, 68), (40, 40)])
@pytest.mark.parametrize("active", [0.05, 0.2, 0.8])
def test_null_features_are_not_significant_too_often(sizes, active):
    rng = np.random.default_rng(2)
    x = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
    x /= np.linalg.norm(x)
    Y = zero_inflated((80, 30_000), active, rng)
    Y = Y[:, (Y > 0).sum(axis=0) >= 3]
    centred = Y - Y.mean(axis=0)
    r = x @ centred / np.linalg.norm(centred, axis=0)
    moments = label_moments(x, Y)
    for alternative in ("two-sided", "greater", "less"):
        p = pearson3_p(r, moments.variance, moments.skewness, alternative)
        for level in (1e-2, 1e-3):
            assert np.mean(p <= level) / level <= 1 + 3 / np.sqrt(level * p.size)
    if active == 0.8:  # and it has power: the share is not negligible either
        assert np.mean(pearson3_p(r, moments.variance, moments.skewness, "greater") <= 1e-2) > 5e-3


@pytest.mark.parametrize("active", [0.05, 0.2, 0.8])
def test_several_levels_of_equal_size_are_not_significant_too_often(active):
    rng = np.random.default_rng(3)
    indicators = (np.arange(78)[:, None] % 3 == np.arange(3)).astype(float)
    X = np.linalg.qr(indicators[:, 1:] - indicators[:, 1:].mean(axis=0))[0]
    Y = zero_inflated((78, 30_000), active, rng)
    Y = Y[:, (Y > 0).sum(axis=0) >= 3]
    centred = Y - Y.mean(axis=0)
    r2 = np.sum((X.T @ centred) ** 2, axis=0) / np.sum(centred**2, axis=0)
    p = beta_p(r2, *quadratic_moments(X, Y))
    for level in (1e-2, 1e-3):
        assert np.mean(p <= level) / level <= 1 + 3 / np.sqrt(level * p.size)


@pytest.mark.parametrize(
    ("x", "blocks", "message"),
    [
        (np.array([1.0, 0, 0, 0]), None, "centred"),
        (np.array([1.0, 0, -1, 0]) / np.sqrt(2), [0, 0, 1, 1], "centred"),
        (np.array([1.0, -1, 0, 0]), None, "orthonormal"),
        (np.array([1.0, -1, 0]), None, "3 rows"),
        (np.array([1.0, -1, 0, 0]) / np.sqrt(2), [0, 1], "one label for each"),
    ],
)
def test_bad_rows_are_refused(x, blocks, message):
    for moments in (label_moments, quadratic_moments):
        with pytest.raises(InvalidInput, match=message):
            moments(x, np.eye(4), blocks)
