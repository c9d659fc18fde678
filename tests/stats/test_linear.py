"""Partition of a contrast, least squares of all features, ranks, conditions, z values."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from neurollm.stats import Hypothesis, is_estimable, linear_fit, orthonormal, partition, sign_flip, whole_item
from neurollm.stats.arrays import take_rows
from neurollm.stats.conditions import conditions
from neurollm.stats.parametric import f_to_z, t_to_z
from neurollm.stats.ranks import rank_rows

RNG = np.random.default_rng(0)
GROUP = np.repeat([0, 1, 2], [7, 9, 14])
MODEL = np.column_stack([np.eye(3)[GROUP], np.ones(30), RNG.normal(size=30)])  # one column too many


def hypothesis_of(model, contrast, groups=None):
    part = partition(model, np.atleast_2d(contrast))
    groups = np.zeros(len(model), int) if groups is None else groups
    fixed = orthonormal(np.eye(groups.max() + 1)[groups])
    nuisance = orthonormal(part.others, against=fixed)
    empty = np.zeros((len(model), 0))
    return part, Hypothesis(
        part.tested, empty, nuisance, groups, len(model) - part.rank, whole_item(np.arange(len(model)))
    )


def features(n=30, v=40):
    y = np.where(RNG.random((n, v)) < 0.4, RNG.lognormal(size=(n, v)), 0)
    y[:, 1] += 1e5  # hardly varies: sums of squares cancel
    y[:, 2] = RNG.normal(size=n)
    return y


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
@pytest.mark.parametrize("contrast", [[1, -0.5, -0.5, 0, 0], [0, 1, -1, 0, 0], [0, 0, 0, 0, 1], [-1, 0.4, 0.6, 0, 2]])
@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, sparse.csc_array, torch.tensor])
def test_t_of_a_rank_deficient_model_is_statsmodels(contrast, store):
    y = features()
    part, hypothesis = hypothesis_of(MODEL, contrast)
    fit = linear_fit(store(y), hypothesis)
    for v in range(6):
        model = sm.OLS(y[:, v], MODEL).fit()
        theirs = model.t_test(np.array(contrast))
        assert fit.stat[v] == pytest.approx(theirs.tvalue.item(), rel=1e-6)
        assert part.scale * fit.projection[0, v] == pytest.approx(theirs.effect.item(), rel=1e-6)
        assert fit.df == model.df_resid and part.rank == 4
        assert fit.rho[v] == pytest.approx(theirs.tvalue.item() / np.hypot(theirs.tvalue.item(), fit.df**0.5), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_f_of_a_rank_deficient_model_is_statsmodels():
    y, rows = features(), np.array([[1, -1, 0, 0, 0], [0, 1, -1, 0, 0.5]])
    _, hypothesis = hypothesis_of(MODEL, rows)
    fit = linear_fit(y, hypothesis)
    for v in range(6):
        theirs = sm.OLS(y[:, v], MODEL).fit().f_test(rows)
        assert fit.stat[v] == pytest.approx(float(theirs.fvalue), rel=1e-6)
        assert (fit.rank, fit.df) == (theirs.df_num, theirs.df_denom)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_estimates_follow_from_the_tested_part_alone(seed):
    rng = np.random.default_rng(seed)
    model = rng.normal(size=(12, 5)) @ rng.normal(size=(5, 6))  # rank 5 of 6 columns
    contrast = rng.normal(size=(1, 12)) @ model  # estimable by construction
    part = partition(model, contrast)
    y = rng.normal(size=12)
    estimate = contrast[0] @ (np.linalg.pinv(model) @ y)
    assert part.scale * (part.tested[:, 0] @ y) == pytest.approx(estimate, rel=1e-6, abs=1e-9)
    assert np.abs(part.tested.T @ part.others).max() < 1e-9 and part.rank == 5
    assert partition(model, rng.normal(size=(1, 6))) is None


def test_what_is_estimable():
    assert is_estimable(MODEL, np.array([1, -1, 0, 0, 0])) and is_estimable(MODEL, np.array([1, 0, 0, 1, 0]))
    assert not is_estimable(MODEL, np.array([1, 0, 0, 0, 0]))
    assert is_estimable(MODEL * [1, 1, 1, 1, 1e9], np.array([[1, -1, 0, 0, 0], [0, 0, 0, 0, 1]]))


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_constant_perfect_and_broken_features(store):
    y = np.zeros((6, 5))
    y[:, 1], y[:, 2], y[2, 3] = 0.1, [0.1, 0.1, 0.1, 0.7, 0.7, 0.7], np.nan
    y[:, 4] = 5 * (1 + 1e-8 * np.arange(6))  # rounding of float32
    _, hypothesis = hypothesis_of(np.eye(2)[[0, 0, 0, 1, 1, 1]], [-1, 1])
    fit = linear_fit(store(y), hypothesis)
    assert (fit.norm[[0, 1, 4]] == 0).all() and fit.norm[2] > 0 and np.isnan(fit.norm[3])
    assert fit.stat[2] == np.inf and fit.stat[0] == 0 and fit.rho[2] == 1
    none = np.zeros((6, 0))
    signs = Hypothesis(np.full((6, 1), 6**-0.5), none, none, None, 5, sign_flip(6))
    assert linear_fit(store(np.full((6, 1), 0.1)), signs).stat[0] == np.inf


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_ranks_and_what_they_leave_at_zero(store):
    y = np.where(RNG.random((15, 30)) < 0.5, RNG.normal(size=(15, 30)).round(1), 0)
    y[3, 7] = np.nan

    def ranked(kind, rows=1):
        out = rank_rows(store(y), kind, rows)
        assert sparse.issparse(out) == sparse.issparse(store(y))
        return out.toarray() if sparse.issparse(out) else np.asarray(out)

    whole, ranks = ranked("whole_item"), stats.rankdata(y, axis=0, nan_policy="propagate")
    np.testing.assert_allclose(whole - whole.mean(axis=0), ranks - ranks.mean(axis=0))
    assert (whole[y == 0][~np.isnan(whole[y == 0])] == 0).all() and np.isnan(whole[:, 7]).all()
    signed = np.sign(y) * stats.rankdata(np.abs(y), axis=0, nan_policy="propagate")
    np.testing.assert_allclose(ranked("sign_flip"), signed)
    cube = stats.rankdata(y.reshape(5, 3, 30), axis=1, nan_policy="propagate") - 2
    np.testing.assert_allclose(ranked("within_item", 3), cube.reshape(15, 30))


@pytest.mark.parametrize("kind", ["whole_item", "sign_flip", "within_item"])
@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_values_that_differ_by_rounding_are_tied(kind, store):
    parts = np.where(RNG.random((12, 40, 3)) < 0.2, 1, RNG.integers(1, 10, (12, 40, 3))) / 10
    parts[:, :5] = 0.3  # constant
    parts[0, 39, 0] = 1e9  # must not drown the others
    noisy = parts * (1 + 3e-7 * RNG.uniform(-1, 1, parts.shape))
    signs = np.array([1, 1, -2])
    size = parts @ np.abs(signs)
    ranks = [rank_rows(store(values @ signs), kind, 3, store(size)) for values in (parts, noisy)]
    ranks = [out.toarray() if sparse.issparse(out) else np.asarray(out) for out in ranks]
    np.testing.assert_array_equal(*ranks)
    assert (ranks[0][:, :5] == ranks[0][0, 0]).all() and len(np.unique(ranks[0][:, 39])) > 2
    exact = np.round(parts * 10).astype(int) @ signs
    np.testing.assert_allclose(ranks[0], rank_rows(exact.astype(float), kind, 3))


@pytest.mark.parametrize("kind", ["whole_item", "sign_flip"])
def test_ranks_of_nonzeros_are_those_of_the_dense_columns(kind):
    y = np.where(RNG.random((15, 300)) < RNG.random(300), RNG.normal(size=(15, 300)).round(1), 0)
    y[:, 0], y[:, 1], y[3, 2], y[4, 3] = 0, 1, np.nan, np.inf
    size = np.abs(y) * RNG.uniform(1, 1e6, y.shape) + (RNG.random(y.shape) < 0.2)
    for sizes in (None, size):
        stored = [
            rank_rows(store(y), kind, 1, None if sizes is None else store(sizes))
            for store in (np.asarray, sparse.csc_array)
        ]
        np.testing.assert_array_equal(stored[1].toarray(), stored[0])
        order = RNG.permutation(15)
        shuffled = rank_rows(y[order], kind, 1, None if sizes is None else sizes[order])
        np.testing.assert_array_equal(shuffled, stored[0][order])
    assert rank_rows(sparse.csr_array((15, 0)), kind).shape == (15, 0)


def test_parts_of_a_stored_value_are_one_value():
    y = np.where(RNG.random((12, 20)) < 0.5, RNG.normal(size=(12, 20)), 0)
    half = sparse.coo_array(y / 2)
    rows, columns = np.tile(half.row, 2), np.tile(half.col, 2)
    parted = sparse.coo_array((np.tile(half.data, 2), (rows, columns)), y.shape)
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=20))])
    order = np.argsort(columns, kind="stable")
    twice = sparse.csc_array((parted.data[order], rows[order], starts), y.shape)
    _, hypothesis = hypothesis_of(np.eye(2)[np.arange(12) % 2], [-1, 1])
    assert twice.nnz == 2 * np.count_nonzero(y)
    np.testing.assert_allclose(linear_fit(twice, hypothesis).stat, linear_fit(y, hypothesis).stat)


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, sparse.csc_array, torch.tensor])
def test_rows_are_taken_from_any_array(store):
    y = np.where(RNG.random((9, 30)) < 0.3, RNG.normal(size=(9, 30)), 0)
    for rows in (np.array([1, 4, 8]), np.arange(9), np.array([], int)):
        out = take_rows(store(y), rows)
        np.testing.assert_array_equal(out.toarray() if sparse.issparse(out) else np.asarray(out), y[rows])


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_conditions_are_mean_rate_and_magnitude(store):
    y = np.where(RNG.random((12, 30)) < 0.3, RNG.lognormal(size=(12, 30)), 0)
    items, cells = np.repeat(np.arange(6), 2), np.tile([0, 1], 6)
    ours = conditions(store(y), store((y > 0).astype(float)), cells, items)
    for cell in (0, 1):
        own = y[cell::2]
        np.testing.assert_allclose(ours.mean[cell], own.mean(0))
        np.testing.assert_allclose(ours.rate[cell], (own > 0).mean(0))
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(ours.magnitude[cell], own.sum(0) / (own > 0).sum(0))
    np.testing.assert_array_equal(ours.n_active_items, ((y[::2] > 0) | (y[1::2] > 0)).sum(0))


def test_z_values_in_both_tails():
    t = np.array([-60.0, -8, -1, 0, 0.3, 4, 37, 1e3, np.inf, np.nan])
    z, p = t_to_z(t, 40)
    np.testing.assert_allclose(p, stats.t.sf(t, 40), rtol=1e-9)
    middle = slice(1, 6)
    np.testing.assert_allclose(z[middle], stats.norm.isf(stats.t.sf(t, 40))[middle], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(z[0], -t_to_z(np.array([60.0]), 40)[0], rtol=1e-12)
    assert z[7] > z[6] > 10 and np.isposinf(z[8]) and np.isnan(z[9])
    f = np.array([0.01, 0.5, 3, 40, 1e4, np.nan])
    z, p = f_to_z(f, 3, 50)
    np.testing.assert_allclose(p, stats.f.sf(f, 3, 50), rtol=1e-8)
    np.testing.assert_allclose(z[:4], stats.norm.isf(stats.f.sf(f, 3, 50))[:4], rtol=1e-7)
    assert z[4] > z[3] and np.isnan(z[5])
    # Far beyond the smallest double: the normal limit of large df.
    assert t_to_z(np.array([50.0]), 1e12)[0][0] == pytest.approx(50, rel=1e-6)
