"""The permutation kernel against brute force and scipy, over storage, block size and order."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from neurollm.stats import contrast_moments, permutation_test, r_to_t, sign_flip, whole_item, within_item


def zero_inflated(shape, seed=0, active=0.4):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < active, rng.lognormal(size=shape), 0.0)


def run(Y, shuffling, weights=(1.0, -1.0), **options):
    moments = contrast_moments(Y, shuffling, np.array(weights))
    return permutation_test(Y, shuffling, moments.norm, **options)


def schemes():
    """Each scheme with data of its shape, and too many arrangements to enumerate."""
    rng = np.random.default_rng(5)
    d = zero_inflated((24, 60), 1) - zero_inflated((24, 60), 2)
    two = rng.permutation(np.repeat([0, 1], [9, 15]))
    three = rng.permutation(np.repeat([0, 1, 2], [7, 8, 9]))
    return {
        "sign_flip": (d, sign_flip(24), (1.0, -1.0)),
        "whole_item": (zero_inflated((24, 60), 3), whole_item(two, [1, -1]), (1.0, -1.0)),
        "whole_item_3": (zero_inflated((24, 60), 4), whole_item(three, [1, -0.5, -0.5]), (1.0, -0.5, -0.5)),
        "within_item": (zero_inflated((36, 60), 6), within_item(12, [1, -0.5, -0.5]), (1.0, -0.5, -0.5)),
    }


SCHEMES = schemes()


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exhaustive_sign_flip_equals_scipy(alternative):
    d = zero_inflated((8, 5), 7) - zero_inflated((8, 5), 8)
    ours = run(d, sign_flip(8), alternative=alternative, n_perm=256)
    assert ours.exhaustive and ours.n_perm == 256
    for v in range(5):
        theirs = stats.permutation_test(
            (d[:, v],), np.mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf
        )
        assert ours.p_value[v] == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exhaustive_whole_item_equals_scipy(alternative):
    y, codes = zero_inflated((9, 5), 9, active=0.9), np.array([0, 1, 0, 1, 1, 0, 1, 0, 1])
    ours = run(y, whole_item(codes, [1, -1]), alternative=alternative, n_perm=126)
    assert ours.exhaustive and ours.n_perm == 126

    def mean_difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    def size(a, b, axis=-1):
        return np.abs(mean_difference(a, b, axis))

    # Two-sided: |difference| itself (scipy's own doubles the smaller tail).
    statistic, tail = (size, "greater") if alternative == "two-sided" else (mean_difference, alternative)
    for v in range(5):
        groups = y[codes == 0, v], y[codes == 1, v]
        theirs = stats.permutation_test(groups, statistic, alternative=tail, n_resamples=np.inf, vectorized=True)
        assert ours.p_value[v] == pytest.approx(theirs.pvalue, abs=1e-12)


def brute_t(y, scheme, codes, weights):
    """t of one arrangement, written out."""
    if scheme == "sign_flip":
        signed = y * np.where(codes, 1, -1)[:, None]
        return stats.ttest_1samp(signed, 0).statistic
    n_levels = len(weights)
    dummies = np.eye(n_levels)[codes]
    if scheme == "within_item":
        items = np.repeat(np.eye(len(codes) // n_levels), n_levels, axis=0)
        design = np.hstack([dummies, items[:, 1:]])
    else:
        design = dummies
    c = np.r_[weights, np.zeros(design.shape[1] - n_levels)]
    beta = np.linalg.pinv(design) @ y
    rest = ((y - design @ beta) ** 2).sum(0) / (len(y) - np.linalg.matrix_rank(design))
    return c @ beta / np.sqrt(rest * (c @ np.linalg.pinv(design.T @ design) @ c))


def arrangements(scheme, codes, n_levels):
    if scheme == "sign_flip":
        return [np.array(s) for s in itertools.product((0, 1), repeat=len(codes))]
    if scheme == "whole_item":
        return [np.array(s) for s in sorted(set(itertools.permutations(codes.tolist())))]
    orders = list(itertools.permutations(range(n_levels)))
    return [np.concatenate(s) for s in itertools.product(orders, repeat=len(codes) // n_levels)]


@pytest.mark.parametrize(
    ("shuffling", "weights", "rows"),
    [
        (sign_flip(7), (1.0, -1.0), 7),
        (whole_item([0, 1, 1, 0, 1, 0, 0], [1, -1]), (1.0, -1.0), 7),
        (whole_item([0, 1, 2, 0, 1, 2, 0], [1, -0.25, -0.75]), (1.0, -0.25, -0.75), 7),
        (within_item(4, [2, -1, -1]), (2.0, -1.0, -1.0), 12),
    ],
)
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exhaustive_equals_brute_force(shuffling, weights, rows, alternative):
    y = np.random.default_rng(rows).normal(size=(rows, 6))
    ours = run(y, shuffling, weights, alternative=alternative, n_perm=2000)
    sign = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative]
    every = arrangements(shuffling.kind, shuffling.codes, len(weights))
    assert len(every) == shuffling.n_possible == ours.n_perm
    null = np.array([sign(brute_t(y, shuffling.kind, codes, weights)) for codes in every])
    observed = sign(brute_t(y, shuffling.kind, shuffling.codes, weights))
    np.testing.assert_allclose(ours.p_value, (null >= observed - 1e-7).mean(0))
    np.testing.assert_allclose(ours.p_fwer, (null.max(1)[:, None] >= observed - 1e-7).mean(0))
    np.testing.assert_allclose(np.sort(ours.null_max), np.sort(null.max(1)), rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_p_values_do_not_depend_on_storage_blocks_or_order(scheme, tmp_path):
    Y, shuffling, weights = SCHEMES[scheme]
    Y = Y.astype(np.float32)
    expected = run(Y, shuffling, weights, n_perm=500, random_state=3)
    mapped = np.memmap(tmp_path / "y.dat", np.float32, "w+", shape=Y.shape)
    mapped[:] = Y
    order = np.random.default_rng(0).permutation(Y.shape[1])
    variants = {
        "csr": sparse.csr_array(Y),
        "csc": sparse.csc_matrix(Y),
        "memmap": mapped,
        "torch": torch.tensor(Y),
        "fortran": np.asfortranarray(Y),
    }
    for name, variant in variants.items():
        for block in ((256, 1024), (7, 13), (1, 60), (500, 1)):
            got = run(variant, shuffling, weights, n_perm=500, random_state=3, block=block)
            np.testing.assert_array_equal(got.p_value, expected.p_value, err_msg=f"{name} {block}")
            np.testing.assert_array_equal(got.p_fwer, expected.p_fwer, err_msg=f"{name} {block}")
            np.testing.assert_allclose(got.null_max, expected.null_max, rtol=1e-9)
    shuffled = run(Y[:, order], shuffling, weights, n_perm=500, random_state=3)
    np.testing.assert_array_equal(shuffled.p_value, expected.p_value[order])
    np.testing.assert_array_equal(shuffled.p_fwer, expected.p_fwer[order])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_products_move_p_by_a_few_counts_at_most(scheme):
    Y, shuffling, weights = SCHEMES[scheme]
    exact, quick = (run(Y, shuffling, weights, n_perm=400, dtype=kind) for kind in ("float64", "float32"))
    np.testing.assert_allclose(quick.p_value, exact.p_value, atol=3 / 401)
    np.testing.assert_allclose(quick.p_fwer, exact.p_fwer, atol=3 / 401)


def test_ties_of_discrete_data_are_counted_alike():
    d = np.random.default_rng(0).integers(-1, 2, (20, 40)) * 0.1
    expected = run(d, sign_flip(20), n_perm=300)
    for block in ((1, 3), (11, 7)):
        np.testing.assert_array_equal(run(d, sign_flip(20), n_perm=300, block=block).p_value, expected.p_value)
    # The mirrored arrangement of a two-sided test is tied with the observed one.
    small = run(d[:5], sign_flip(5), n_perm=32)
    tested = np.isfinite(small.p_value)
    assert (small.p_value[tested] >= 2 / 32).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_monte_carlo_p_is_never_zero(scheme):
    Y, shuffling, weights = SCHEMES[scheme]
    Y = Y + 100 * np.array(weights)[shuffling.codes][:, None] if shuffling.kind != "sign_flip" else Y + 100
    result = run(Y, shuffling, weights, n_perm=99)
    assert not result.exhaustive
    np.testing.assert_allclose(result.p_value, 1 / 100)
    np.testing.assert_allclose(result.p_fwer, 1 / 100)


def test_monte_carlo_approaches_the_exhaustive_p():
    d = zero_inflated((12, 30), 1) - zero_inflated((12, 30), 2)
    exact, random = run(d, sign_flip(12), n_perm=4096), run(d, sign_flip(12), n_perm=4095)
    assert exact.exhaustive and not random.exhaustive
    error = np.sqrt(exact.p_value * (1 - exact.p_value) / 4095)
    assert (np.abs(random.p_value - exact.p_value) < 5 * error + 1 / 4096).all()


def test_untested_columns_do_not_enter_the_maximum():
    Y, shuffling, _ = SCHEMES["sign_flip"]
    poisoned = np.column_stack([Y, np.full(24, np.nan), np.zeros(24), np.full(24, np.inf)])
    expected, got = run(Y, shuffling, n_perm=200), run(poisoned, shuffling, n_perm=200)
    np.testing.assert_array_equal(got.p_fwer[:-3], expected.p_fwer)
    np.testing.assert_array_equal(got.null_max, expected.null_max)
    assert np.isnan(got.p_value[-3:]).all() and np.isnan(got.p_fwer[-3:]).all()


def test_longer_runs_extend_shorter_ones():
    Y, shuffling, _ = SCHEMES["sign_flip"]
    short, long = run(Y, shuffling, n_perm=50), run(Y, shuffling, n_perm=120)
    np.testing.assert_array_equal(long.null_max[:50], short.null_max)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1000), st.sampled_from(sorted(SCHEMES)))
def test_scale_and_shift_leave_p_alone(seed, scale, scheme):
    Y, shuffling, weights = SCHEMES[scheme]
    shift = 0 if shuffling.kind == "sign_flip" else np.random.default_rng(seed).normal(size=Y.shape[1])
    expected = run(Y, shuffling, weights, n_perm=60, random_state=seed)
    got = run(Y * scale + shift, shuffling, weights, n_perm=60, random_state=seed)
    np.testing.assert_array_equal(got.p_value, expected.p_value)
    np.testing.assert_array_equal(got.p_fwer, expected.p_fwer)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(2, 5), st.integers(0, 99))
def test_level_rows_are_orthonormal_and_sum_to_zero(n_levels, per_level, seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=n_levels)
    weights -= weights.mean()
    codes = rng.permutation(np.r_[np.repeat(np.arange(n_levels), per_level), np.zeros(seed % 3, int)])
    for shuffling in (whole_item(codes, weights), within_item(per_level, weights)):
        rows = shuffling.table[:, shuffling.codes]
        assert rows.shape[0] == n_levels - 1
        np.testing.assert_allclose(rows @ rows.T, np.eye(n_levels - 1), atol=1e-12)
        np.testing.assert_allclose(rows.sum(1), 0, atol=1e-12)


def test_random_arrangements_respect_the_scheme():
    within = within_item(6, [1, -0.5, -0.5]).draw(400, 0).codes.reshape(400, 6, 3)
    assert (np.sort(within, axis=2) == np.arange(3)).all()
    whole = whole_item([0, 0, 1, 2, 2, 2, 1, 0, 1, 1], [1, -0.5, -0.5]).draw(400, 0).codes
    assert (np.sort(whole, axis=1) == np.sort([0, 0, 1, 2, 2, 2, 1, 0, 1, 1])).all()
    # Every order, and every label at every place, about equally often (binomial, 5 standard errors).
    for codes, share in (
        (within.reshape(400, -1) == 1, 1 / 3),
        (whole == 2, 0.3),
        (sign_flip(14).draw(400, 0).codes, 0.5),
    ):
        assert (np.abs(codes.mean(axis=0) - share) < 5 * np.sqrt(share * (1 - share) / 400)).all()


@pytest.mark.parametrize(
    ("shuffling", "weights", "rows"),
    [
        (whole_item(np.repeat([0, 1, 2], [3, 3, 2]), [1, -0.5, -0.5]), (1.0, -0.5, -0.5), 8),
        (within_item(4, [1, -0.5, -0.5]), (1.0, -0.5, -0.5), 12),
    ],
)
def test_random_p_approaches_exhaustive_p(shuffling, weights, rows):
    y = zero_inflated((rows, 15), 11, active=0.9) + np.repeat(np.arange(rows // 3 + 1), 3)[:rows, None]
    n = shuffling.n_possible
    exact, random = run(y, shuffling, weights, n_perm=n), run(y, shuffling, weights, n_perm=n - 1)
    assert exact.exhaustive and not random.exhaustive
    error = np.sqrt(exact.p_fwer * (1 - exact.p_fwer) / n)
    assert (np.abs(random.p_fwer - exact.p_fwer) < 5 * error + 2 / n).all()


def test_more_than_127_levels():
    weights = np.zeros(300)
    weights[[0, 299]] = 1, -1
    y = np.random.default_rng(0).normal(size=(600, 3))
    for shuffling in (within_item(2, weights), whole_item(np.tile(np.arange(300), 2), weights)):
        assert shuffling.codes.min() == 0 and shuffling.codes.max() == 299
        result = run(y, shuffling, weights, n_perm=20)
        np.testing.assert_allclose(r_to_t(result.r, shuffling.df), contrast_moments(y, shuffling, weights).stat)
