"""Permutation distributions: enumeration, closed moments, naive loops, error rates."""

import itertools

import numpy as np
import pytest
from scipy import stats

from neurollm.stats.rdms import (
    categorical_rdm,
    coherence_rdm,
    discriminative_rdm,
    feature_scores,
    numeric_rdm,
    permutation_null,
    rsa_scores,
)
from neurollm.stats.shufflings import whole_item, within_item


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened", "whitened_pearson", "half_rank"])
def test_closed_moments_are_those_of_all_permutations(n, comparison):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, 4))
    X[:, 1] = X[:, 1] > 0
    X[:, 2] *= rng.random(n) < 0.6
    everything = np.array(list(itertools.permutations(range(n))))
    for D in (categorical_rdm(np.arange(n) % 3), numeric_rdm(rng.normal(size=n))):
        scores = feature_scores(X, D, comparison)
        r = scores(everything, slice(0, 4))
        mean, sd = scores.moments()
        np.testing.assert_allclose(mean, r.mean(axis=0), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(sd, r.std(axis=0), rtol=1e-8, atol=1e-10)


def test_a_feature_active_once_cannot_be_tested_with_balanced_classes():
    X = np.zeros((12, 2))
    X[3, 0] = 1
    X[[3, 4, 5], 1] = 1
    D = categorical_rdm(np.arange(12) % 3)
    scores = feature_scores(X, D)
    assert scores.moments()[1][0] == 0
    draws = whole_item(np.arange(12) % 3).draw(200, 0)
    for moments in (None, scores.moments()):
        null = permutation_null(scores, 2, draws, observed=scores.observed(), moments=moments)
        assert np.isnan([null.z[0], null.p[0], null.p_fwer[0]]).all()
        assert 0 < null.p[1] <= 1


def test_an_exhaustive_test_equals_enumeration():
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(7, 5)), np.array([0, 0, 0, 1, 1, 1, 1])
    D = discriminative_rdm(labels, 0)
    scores = feature_scores(X, D)
    draws = whole_item(labels).draw(1000, 0)
    assert (len(draws), draws.exhaustive) == (35, True)
    null = permutation_null(scores, 5, draws, observed=scores.observed(), alternative="greater")
    everything = np.array(list(itertools.permutations(range(7))))
    r = scores(everything, slice(0, 5))  # every arrangement of labels 3!·4! times
    np.testing.assert_allclose(null.p, (r >= scores.observed() - 1e-9).mean(axis=0))
    z = (r - r.mean(axis=0)) / r.std(axis=0)
    own = (scores.observed() - r.mean(axis=0)) / r.std(axis=0)
    np.testing.assert_allclose(null.z, own, rtol=1e-8)
    np.testing.assert_allclose(null.p_fwer, (z.max(axis=1)[:, None] >= own - 1e-9).mean(axis=0))
    assert null.smallest_p == 1 / 35


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_blocks_of_features_equal_a_naive_loop(alternative):
    rng = np.random.default_rng(1)
    n, V = 20, 40
    X, D = rng.normal(size=(n, V)), numeric_rdm(rng.normal(size=n))
    X[:, 7] = 1.0
    scores = feature_scores(X, D)
    draws = whole_item(np.arange(n)).draw(99, 3)
    null = permutation_null(scores, V, draws, observed=scores.observed(), alternative=alternative, n_jobs=2)
    r = np.array([rsa_scores(X, D[np.ix_(p, p)]) for p in draws.index])
    own = rsa_scores(X, D)
    together = np.vstack([own, r])
    mean, sd = together.mean(axis=0), together.std(axis=0)
    z, z_null = (own - mean) / sd, (r - mean) / sd
    size = {"two-sided": np.abs, "greater": lambda v: v, "less": lambda v: -v}[alternative]
    p = (1 + (size(z_null) >= size(z) - 1e-9).sum(axis=0)) / 100.0
    p_fwer = (1 + (np.nanmax(size(z_null), axis=1)[:, None] >= size(z) - 1e-9).sum(axis=0)) / 100.0
    varying = np.arange(V) != 7
    np.testing.assert_allclose(null.z[varying], z[varying], rtol=1e-8)
    np.testing.assert_array_equal(null.p[varying], p[varying])
    np.testing.assert_array_equal(null.p_fwer[varying], p_fwer[varying])
    assert np.isnan(null.p[7]) and null.p[varying].min() >= 0.01


def test_results_do_not_depend_on_blocks_or_threads(monkeypatch):
    from neurollm.stats.rdms import nulls

    rng = np.random.default_rng(2)
    X, labels = rng.normal(size=(16, 100)), np.arange(16) % 2
    scores = feature_scores(X, categorical_rdm(labels))
    draws = whole_item(labels).draw(300, 0)
    one = permutation_null(scores, 100, draws, observed=scores.observed())
    monkeypatch.setattr(nulls, "ELEMENTS", 300 * 20)
    monkeypatch.setattr(nulls, "_BLOCK", (7, 20))
    two = permutation_null(scores, 100, draws, observed=scores.observed(), n_jobs=2)
    np.testing.assert_array_equal(one.p, two.p)
    np.testing.assert_array_equal(one.p_fwer, two.p_fwer)


def heavy_tailed(rng, n, V):
    """Mostly zeros, log-normal where active, from 6 active trials to all."""
    X = np.exp(1.5 * rng.normal(size=(n, V)))
    return X * (rng.random((n, V)) < np.linspace(0.25, 1, V))


@pytest.mark.parametrize("model", ["categorical", "discriminative", "coherence"])
def test_family_wise_error_with_sparse_heavy_tailed_features(model):
    """500 null data sets of 24 trials and 30 features: at most 5 % + 3 standard errors."""
    labels = np.arange(24) % 2
    make = {
        "categorical": categorical_rdm(labels),
        "discriminative": discriminative_rdm(labels, 0),
        "coherence": coherence_rdm(labels, 0),
    }
    rng = np.random.default_rng(3)
    draws = whole_item(labels).draw(199, 0)
    smallest, p = [], []
    for _ in range(500):
        X = heavy_tailed(rng, 24, 30)
        scores = feature_scores(X, make[model])
        moments = scores.moments()
        null = permutation_null(scores, 30, draws, observed=scores.observed(), moments=moments)
        smallest.append(np.nanmin(null.p_fwer))
        p.append(null.p[15])
    assert np.mean(np.array(smallest) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)
    assert np.mean(np.array(smallest) <= 0.05) >= 0.02
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_family_wise_error_with_prompts_that_are_exchangeable_in_blocks():
    """Trials of an item are alike; labels vary within items and are exchanged there."""
    rng = np.random.default_rng(4)
    n_items = 12
    labels = np.tile([0, 1], n_items)
    D = categorical_rdm(labels)
    restricted = within_item(n_items, (2,)).draw(199, 0)
    hits = []
    for _ in range(500):
        item = np.repeat(rng.normal(size=(n_items, 20)), 2, axis=0)
        X = np.exp(item + 0.3 * rng.normal(size=item.shape))
        scores = feature_scores(X, D)
        null = permutation_null(scores, 20, restricted, observed=scores.observed())
        hits.append(np.nanmin(null.p_fwer) <= 0.05)
    assert 0.02 <= np.mean(hits) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_whole_items_are_the_unit_when_conditions_differ_between_them():
    """Duplicating every trial ten times must not change p."""
    rng = np.random.default_rng(5)
    X, labels = rng.normal(size=(10, 8)), np.arange(10) % 2
    once = feature_scores(X, categorical_rdm(labels), "whitened")
    p = permutation_null(once, 8, whole_item(labels).draw(500, 0), observed=once.observed()).p
    many = feature_scores(np.repeat(X, 10, axis=0), categorical_rdm(np.repeat(labels, 10)), "whitened")
    draws = whole_item(labels, rows_per_item=10).draw(500, 0)
    np.testing.assert_allclose(permutation_null(many, 8, draws, observed=many.observed()).p, p)
