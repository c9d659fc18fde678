"""Prevalence inference: enumeration, the published formula, coverage of a planted share."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.prevalence import _significant, prevalence_inference


def population(rng, n_units, share, n_perm=99, shift=6.0, n_features=None):
    """Scores of units of which `share` of the population carry information, and their permutations."""
    size = () if n_features is None else (n_features,)
    informed = rng.random((n_units, *size)) < share
    return rng.normal(size=(n_units, *size)) + shift * informed, rng.normal(size=(n_units, n_perm, *size))


def enumerated(scores, null, reduce):
    """Share of all second-level permutations whose statistic reaches the observed one, per feature and family-wise."""
    values = np.concatenate([scores[:, None], null], axis=1)
    units = range(len(scores))
    found = [
        reduce([values[k, row[k]] for k in units], axis=0)
        for row in itertools.product(range(values.shape[1]), repeat=len(scores))
    ]
    found, observed = np.array(found), reduce(list(scores), axis=0)
    return np.mean(found >= observed, axis=0), np.mean(found.max(axis=1, keepdims=True) >= observed, axis=0)


def test_the_global_null_equals_the_enumeration_of_all_second_level_permutations():
    scores, null = population(np.random.default_rng(0), 3, 1.0, n_perm=5, shift=1.0, n_features=4)
    found = prevalence_inference(scores, null, n_perm2=6**3)
    p, p_fwer = enumerated(scores, null, np.min)
    np.testing.assert_allclose(found.p_global, p, rtol=1e-12)
    np.testing.assert_allclose(found.p_global_fwer, p_fwer, rtol=1e-12)
    drawn = prevalence_inference(scores, null, n_perm2=6**3 - 1).p_global_fwer
    np.testing.assert_allclose(drawn, p_fwer, atol=0.12)
    assert (found.p_global_fwer >= found.p_global).all() and (drawn >= 1 / 6**3).all()


def test_the_family_wise_count_equals_enumeration():
    scores, null = population(np.random.default_rng(3), 3, 1.0, n_perm=5, shift=2.0, n_features=4)
    values = np.concatenate([scores[:, None], null], axis=1)
    significant = np.array([[[np.mean(v >= x) <= 0.4 for x in v] for v in unit.T] for unit in values]).swapaxes(1, 2)
    np.testing.assert_array_equal(_significant(values, 0.4), significant)
    found = prevalence_inference(scores, null, statistic="count", n_perm2=6**3, alpha=0.4)
    np.testing.assert_array_equal(found.observed, significant[:, 0].sum(axis=0))
    expected = enumerated(significant[:, 0].astype(int), significant[:, 1:].astype(int), np.sum)[1]
    np.testing.assert_allclose(found.p_global_fwer, expected)


def test_equal_units_give_the_published_formulas():
    n, null = 6, np.arange(99) / 100
    found = prevalence_inference([0.955] * n, [null] * n)
    p = (4 / 100) ** n  # .96 … .98 and the neutral permutation
    assert found.p_global == pytest.approx(p)
    assert found.p_majority == pytest.approx((0.5 * p ** (1 / n) + 0.5) ** n)
    assert found.bound == pytest.approx((0.05 ** (1 / n) - p ** (1 / n)) / (1 - p ** (1 / n)))
    assert found.largest_bound == pytest.approx((0.05 ** (1 / n) - 0.01) / 0.99)


def test_one_good_unit_of_two_does_not_bound_the_share():
    # Their geometric mean would call more than a fifth of the population informed.
    null = np.arange(9_999)
    found = prevalence_inference([10_000, 999.5], [null, null * 0.0 + 1_000])
    assert found.p_global > 0.05 and found.bound == 0
    found = prevalence_inference([1_000.5, 10_000], [null - 8_998, null])  # π = .0001 and .9
    share = found.bound
    tails = [np.mean(np.append(one, np.inf) >= 1_000.5) for one in (null - 8_998, null)]
    assert np.prod([share + (1 - share) * tail for tail in tails]) == pytest.approx(0.05, abs=1e-6)
    assert share < (np.sqrt(0.05) - np.sqrt(np.prod(tails))) / (1 - np.sqrt(np.prod(tails)))


def test_the_count_is_the_binomial_bound_of_significant_units():
    scores, null = population(np.random.default_rng(1), 40, 0.6)
    found = prevalence_inference(scores, null, statistic="count")
    own = [(1 + np.sum(n >= s)) / 100 for s, n in zip(scores, null, strict=True)]
    count = int(np.sum(np.array(own) <= 0.05))
    low = binomtest(count, 40, alternative="greater").proportion_ci(0.95).low
    assert found.observed == count and found.bound == pytest.approx((low - 0.05) / 0.95, abs=1e-6)
    assert found.p_global == pytest.approx(binomtest(count, 40, 0.05, alternative="greater").pvalue)


@pytest.mark.parametrize("statistic", ["minimum", "count"])
@pytest.mark.parametrize("n_units", [4, 12])
def test_a_planted_share_is_not_exceeded_more_often_than_alpha(statistic, n_units):
    rng = np.random.default_rng(n_units)
    bounds = [prevalence_inference(*population(rng, n_units, 0.6), statistic=statistic).bound for _ in range(400)]
    assert np.mean(np.array(bounds) > 0.6) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_many_units_recover_a_planted_share_of_sixty_percent():
    rng = np.random.default_rng(7)
    bounds = [prevalence_inference(*population(rng, 1000, 0.6), statistic="count").bound for _ in range(10)]
    assert 0.5 < np.mean(bounds) < 0.6
    # The smallest score of four hundred uninformed units shows nothing; with every unit informed both come close to 1.
    assert np.mean([prevalence_inference(*population(rng, 1000, 0.6)).bound for _ in range(10)]) < 0.2
    for statistic in ("minimum", "count"):
        assert prevalence_inference(*population(rng, 200, 1.0), statistic=statistic).bound > 0.95


@pytest.mark.parametrize("statistic", ["minimum", "count"])
def test_without_information_the_family_wise_error_is_alpha(statistic):
    rng, rejected = np.random.default_rng(2), []
    for index in range(200):
        data = population(rng, 5, 0.0, n_perm=39, n_features=8)
        found = prevalence_inference(*data, statistic=statistic, n_perm2=199, random_state=index)
        rejected.append((found.bound_fwer > 0).any())
        assert ((found.bound_fwer > 0) <= (found.p_global_fwer <= 0.05)).all()
    assert np.mean(rejected) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_dead_features_are_nan_and_the_others_unchanged():
    scores, null = population(np.random.default_rng(5), 6, 1.0, n_features=3)
    whole = prevalence_inference(scores[:, [0, 2]], null[..., [0, 2]])
    scores[2, 1] = np.nan
    found = prevalence_inference(scores, null)
    assert np.isnan(found.bound).tolist() == [False, True, False] and np.isnan(found.p_global_fwer[1])
    np.testing.assert_array_equal(found.bound_fwer[[0, 2]], whole.bound_fwer)
    frame = found.to_frame()
    assert len(frame) == 3 and frame["bound"].isna().sum() == 1


def test_the_verdict_claims_what_was_shown():
    rng = np.random.default_rng(6)
    shown = prevalence_inference(*population(rng, 12, 1.0))
    assert shown.verdict().startswith(f"More than {shown.bound:.0%} of the population") and shown.bound > 0.5
    nothing = prevalence_inference(*population(rng, 12, 0.0))
    assert nothing.bound == 0 and "do not exclude" in nothing.verdict()
    few = prevalence_inference(*population(rng, 3, 1.0))
    assert 0 < few.bound < 0.5 and "majority is not shown" in few.verdict()
    many = prevalence_inference(*population(rng, 12, 1.0, n_features=3))
    assert "family-wise" in many.verdict() and (many.bound_fwer <= many.bound).all()


def test_wrong_calls_are_told():
    scores, null = population(np.random.default_rng(0), 4, 1.0)
    with pytest.raises(DataMismatch, match="do not fit"):
        prevalence_inference(scores, null[:3])
    with pytest.raises(InvalidInput, match="at least 2"):
        prevalence_inference(scores[:1], null[:1])
    with pytest.raises(InvalidInput, match="at least 19 are needed"):
        prevalence_inference(scores, null[:, :10], statistic="count")
    with pytest.raises(InvalidInput, match="statistic"):
        prevalence_inference(scores, null, statistic="median")
    with pytest.raises(InvalidInput, match="alpha"):
        prevalence_inference(scores, null, alpha=0)
