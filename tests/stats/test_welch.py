"""Welch and HC3 contrasts against scipy and statsmodels, their permutation test against brute force."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import sparse, stats

from neurollm.errors import InvalidInput
from neurollm.stats.kernel import r_to_t
from neurollm.stats.shufflings import sign_flip, whole_item
from neurollm.stats.welch import welch_contrast, welch_test

TWO = np.random.default_rng(0).permutation(np.repeat([0, 1], [7, 15]))
THREE = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [6, 7, 9]))
CONTRASTS = {
    "two": (TWO, np.array([1.0, -1.0])),
    "three": (THREE, np.array([1.0, -0.5, -0.5])),
    "pair of three": (THREE, np.array([0.0, 1.0, -1.0])),
}


def data(columns=40, seed=0, active=0.6):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((22, columns)) < active, rng.lognormal(size=(22, columns)), 0.0)


def norms(Y):
    return np.sqrt(((Y - Y.mean(axis=0)) ** 2).sum(axis=0))


def test_two_groups_equal_scipy():
    Y = data()
    found, theirs = welch_contrast(Y, TWO, [1, -1]), stats.ttest_ind(Y[TWO == 0], Y[TWO == 1], equal_var=False)
    np.testing.assert_allclose(found.stat, theirs.statistic)
    np.testing.assert_allclose(found.df, theirs.df)
    np.testing.assert_allclose(found.effect, Y[TWO == 0].mean(0) - Y[TWO == 1].mean(0), atol=1e-14)


@pytest.mark.parametrize("name", CONTRASTS)
def test_hc3_equals_statsmodels(name):
    codes, weights = CONTRASTS[name]
    Y, dummies = data(6), np.eye(len(weights))[codes]
    found = welch_contrast(sparse.csr_array(Y), codes, weights, "hc3")
    for v in range(6):
        test = sm.OLS(Y[:, v], dummies).fit(cov_type="HC3").t_test(weights)
        assert found.se[v] == pytest.approx(float(np.squeeze(test.sd)))
        assert found.stat[v] == pytest.approx(float(np.squeeze(test.tvalue)))
    assert (found.df == 22 - len(weights)).all()


def test_satterthwaite_df_of_three_groups_equals_its_formula():
    codes, weights = CONTRASTS["three"]
    y = data(1)[:, 0]
    shares = [weights[g] ** 2 * y[codes == g].var(ddof=1) / (codes == g).sum() for g in range(3)]
    df = sum(shares) ** 2 / sum(share**2 / ((codes == g).sum() - 1) for g, share in enumerate(shares))
    found = welch_contrast(y[:, None], codes, weights)
    assert found.df[0] == pytest.approx(df) and found.se[0] == pytest.approx(np.sqrt(sum(shares)))


def brute_force(Y, codes, weights, kind, n_perm):
    draws = whole_item(codes).draw(n_perm, 0)
    return np.array([welch_contrast(Y, codes[index], weights, kind).stat for index in draws.index.astype(int)])


@pytest.mark.parametrize("kind", ["welch", "hc3"])
@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_p_equals_brute_force(name, kind, alternative):
    codes, weights = CONTRASTS[name]
    Y = data()
    got = welch_test(
        Y, codes, weights, norms(Y), whole_item(codes), kind=kind, n_perm=150, alternative=alternative, count=True
    )
    outer = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative]
    null, observed = outer(brute_force(Y, codes, weights, kind, 150)), welch_contrast(Y, codes, weights, kind).stat
    np.testing.assert_allclose(r_to_t(got.r, 22 - len(weights)), observed, rtol=1e-9, atol=1e-9)
    threshold = outer(observed) - 1e-7
    np.testing.assert_allclose(got.p_permutation, (1 + (null >= threshold).sum(0)) / 151)
    np.testing.assert_allclose(got.p_fwer, (1 + (null.max(1)[:, None] >= threshold).sum(0)) / 151)
    np.testing.assert_allclose(got.null_max, null.max(1), rtol=1e-7)
    assert (got.p_step_down <= got.p_fwer).all()


def test_exhaustive_p_equals_scipy_on_all_labels():
    codes, y = np.array([0, 1, 0, 1, 1, 0, 1, 1]), data(1, 5, active=1.0)[:8]
    got = welch_test(y, codes, [1, -1], norms(y), whole_item(codes), n_perm=56, count=True)

    def welch(a, b, axis=-1):
        return np.abs(stats.ttest_ind(a, b, equal_var=False, axis=axis).statistic)

    theirs = stats.permutation_test(
        (y[codes == 0, 0], y[codes == 1, 0]), welch, alternative="greater", n_resamples=np.inf, vectorized=True
    )
    assert got.exhaustive and got.p_permutation[0] == pytest.approx(theirs.pvalue)


def test_p_values_do_not_depend_on_storage_blocks_or_threads():
    Y = data(600).astype(np.float32)
    arguments = TWO, [1, -1], norms(Y.astype(float)), whole_item(TWO)
    expected = welch_test(Y, *arguments, n_perm=200)
    for stored in (sparse.csc_array(Y), torch.tensor(Y), Y.astype(float)):
        for n_jobs, block in ((1, (256, 1024)), (2, (30, 100)), (3, (200, 41))):
            got = welch_test(stored, *arguments, n_perm=200, n_jobs=n_jobs, block=block)
            np.testing.assert_array_equal(got.p_fwer, expected.p_fwer)
            np.testing.assert_array_equal(got.p_step_down, expected.p_step_down)


def test_groups_that_do_not_vary():
    """A binary feature that is on in one group only has an infinite t, tied with its like."""
    Y = np.column_stack([TWO == 0, TWO == 1, np.ones(22), np.full(22, np.nan), data(1)[:, 0]]).astype(float)
    with np.errstate(invalid="ignore"):
        nu = norms(Y)
    found = welch_contrast(Y, TWO, [1, -1])
    np.testing.assert_array_equal(found.stat[:3], [np.inf, -np.inf, 0])
    assert np.isnan(found.stat[3]) and np.isnan(found.df[3])
    got = welch_test(Y, TWO, [1, -1], nu, whole_item(TWO), n_perm=99, count=True)
    np.testing.assert_array_equal(got.p_permutation[:2], got.p_fwer[:2])
    assert got.p_fwer[0] == pytest.approx(1 / 100) and np.isnan(got.p_fwer[2:4]).all()
    np.testing.assert_array_equal(got.r[:2], [1, -1])


def test_unequal_variances_keep_the_level_where_a_pooled_error_does_not():
    """Equal means, the small group varies most: 400 tables of one feature."""
    rng = np.random.default_rng(3)
    codes = np.repeat([0, 1], [15, 45])
    Y = rng.normal(size=(60, 400)) * np.where(codes == 0, 4.0, 1.0)[:, None]
    p = welch_test(Y, codes, [1, -1], norms(Y), whole_item(codes), n_perm=199, count=True).p_permutation
    low, high = stats.binom(400, 0.05).interval(0.999)
    assert low <= (p <= 0.05).sum() <= high
    assert (stats.ttest_ind(Y[codes == 0], Y[codes == 1]).pvalue <= 0.05).sum() > high


@pytest.mark.parametrize(
    ("codes", "weights", "kind", "shuffling"),
    [
        (TWO, [1, -1], "hc2", whole_item(TWO)),
        (TWO, [1, -1], "welch", sign_flip(22)),
        (TWO, [1, -0.5, -0.5], "welch", whole_item(TWO)),
        (TWO, [1, 1], "welch", whole_item(TWO)),
        (np.r_[0, np.ones(21, int)], [1, -1], "welch", whole_item(TWO)),
    ],
)
def test_wrong_arguments_are_refused(codes, weights, kind, shuffling):
    Y = data(3)
    with pytest.raises(InvalidInput):
        welch_test(Y, codes, weights, norms(Y), shuffling, kind=kind, n_perm=10)
