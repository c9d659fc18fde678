"""Sign-flip p values against all signs, an exact binomial, and simulation."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from neurollm.errors import InvalidInput
from neurollm.stats import nonzeros
from neurollm.stats.flips import sign_flip_p

RNG = np.random.default_rng(0)
KINDS = {"numpy": lambda a: a, "csr": sparse.csr_array, "csc": sparse.csc_matrix, "torch": torch.as_tensor}


def differences(n, size, active=1.0, sigma=1.0, rng=RNG):
    d = rng.lognormal(sigma=sigma, size=(n, size)) * rng.choice([-1, 1], (n, size))
    return np.where(rng.random((n, size)) < active, d, 0.0)


def statistic(d):
    with np.errstate(invalid="ignore"):
        return d.sum(axis=0) / np.sqrt(len(d) * np.sum(d**2, axis=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_few_nonzeros_are_exact(kind, alternative):
    d = np.hstack([differences(9, 8, 0.6), np.round(differences(9, 8, 0.6)), np.zeros((9, 1))])
    sums = np.array(list(itertools.product([-1, 1], repeat=9))) @ d
    observed = d.sum(axis=0)
    beyond = {
        "two-sided": np.abs(sums) >= np.abs(observed) - 1e-9,
        "greater": sums >= observed - 1e-9,
        "less": sums <= observed + 1e-9,
    }[alternative]
    expected = np.where(np.any(d != 0, axis=0), beyond.mean(axis=0), np.nan)
    np.testing.assert_allclose(sign_flip_p(KINDS[kind](d), statistic(d), alternative), expected, atol=1e-15)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_saddlepoint_is_close_to_all_signs(sigma, monkeypatch):
    shares = RNG.random(400)
    d = differences(14, 400, sigma=sigma)
    d = np.where(RNG.random(d.shape) < shares, np.abs(d), d)  # many are far in the tail
    exact = sign_flip_p(d, statistic(d), "greater")
    monkeypatch.setattr(nonzeros, "MOST_ENUMERATED", 0)
    ratio = sign_flip_p(d, statistic(d), "greater") / exact
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert np.mean((ratio > 0.5) & (ratio < 2)) > 0.97


@pytest.mark.parametrize("n", [20, 101])
def test_two_valued_differences_are_nearly_binomial(n):
    n_plus = np.arange(n + 1)
    d = np.where(np.arange(n)[:, None] < n_plus, 0.3, -0.3)
    r = statistic(d)
    upper, lower = stats.binom.sf(n_plus - 1, n, 0.5), stats.binom.cdf(n_plus, n, 0.5)
    np.testing.assert_allclose(sign_flip_p(d, r, "greater"), upper, rtol=0.04)
    np.testing.assert_allclose(sign_flip_p(d, r, "less"), lower, rtol=0.04)
    np.testing.assert_allclose(sign_flip_p(d, r), np.minimum(2 * np.minimum(upper, lower), 1), rtol=0.04)


def test_tails_are_complementary_and_end_at_the_share_of_one_arrangement():
    d = differences(30, 50)
    np.testing.assert_allclose(sign_flip_p(d, statistic(d), "greater") + sign_flip_p(d, statistic(d), "less"), 1)
    top = np.abs(d)
    np.testing.assert_allclose(sign_flip_p(top, statistic(top), "greater"), 0.5**30)
    np.testing.assert_allclose(sign_flip_p(top, statistic(top)), 2 * 0.5**30)
    assert (sign_flip_p(1e200 * top, statistic(top)) == sign_flip_p(top, statistic(top))).all()


@pytest.mark.parametrize("active", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_nulls_are_significant_as_often_as_they_should(active, sigma):
    rng = np.random.default_rng(4)
    d = differences(40, 20_000, active, sigma, rng)
    d = d[:, (d != 0).sum(axis=0) > 10]
    if d.shape[1] < 1000:
        d = differences(140, 5000, active, sigma, rng)
    p = sign_flip_p(d, statistic(d))
    for level in (1e-2, 1e-3):
        assert np.mean(p <= level) / level <= 1 + 3 / np.sqrt(level * p.size)
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.012)


def test_missing_values_and_shapes():
    d = differences(20, 3)
    d[0, 1] = np.nan
    p = sign_flip_p(d, np.array([0.1, 0.1, np.nan]))
    assert np.isnan(p).tolist() == [False, True, True]
    with pytest.raises(InvalidInput, match="one statistic for each"):
        sign_flip_p(d, np.zeros(2))
