"""Scores of all features against explicit RDMs and rsatoolbox."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.rdms import (
    categorical_rdm,
    coherence_rdm,
    discriminative_rdm,
    feature_scores,
    numeric_rdm,
    rsa_scores,
)
from neurollm.stats.rdms.forms import form, pair_classes

N = 18
TOOLBOX = {
    "pearson": "corr",
    "cosine": "cosine",
    "whitened": "cosine_cov",
    "whitened_pearson": "corr_cov",
    "spearman": "spearman",
    "rho_a": "rho-a",
    "tau_a": "tau-a",
}


@pytest.fixture(scope="module")
def features():
    """Dense, offset, binary, sparse, tied, single, constant and dead features."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 9))
    X[:, 1] += 100
    X[:, 2] = rng.random(N) < 0.4
    X[:, 3] *= rng.random(N) < 0.3
    X[:, 4] = X[:, 4].round()
    X[:, 5] = 0
    X[4, 5] = 2.5
    X[:, 6] = np.exp(3 * X[:, 6])
    X[:, 7] = 3.0
    X[:, 8] = 0.0
    return X


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, N)
    free = rng.random((N, N))
    free = free + free.T
    np.fill_diagonal(free, 0)
    holes = free.copy()
    left_out = np.triu(rng.random((N, N)) < 0.2, 1)
    holes[left_out | left_out.T] = np.nan
    return {
        "categorical": categorical_rdm(labels),
        "discriminative": discriminative_rdm(labels, 1),
        "coherence": coherence_rdm(labels, 1),
        "numeric": numeric_rdm(rng.normal(size=N)),
        "free": free,
        "holes": holes,
    }


def by_hand(x, D, comparison, distance="squared"):
    """The RDM of one feature, and rsatoolbox's comparison of it with the model."""
    import rsatoolbox
    from scipy.stats import rankdata

    if np.ptp(x) == 0:
        return np.nan
    upper = np.triu_indices(len(x), 1)
    d, m = np.abs(x[:, None] - x)[upper], D[upper]
    d = d**2 if distance == "squared" else d
    kept = ~np.isnan(m)
    d, m = d[kept], m[kept]
    if comparison == "half_rank":
        m, comparison = rankdata(m), "pearson"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rsatoolbox.rdm.compare(d[None], m[None], TOOLBOX[comparison])[0, 0]


@pytest.mark.parametrize("name", ["categorical", "discriminative", "coherence", "numeric", "free", "holes"])
@pytest.mark.parametrize(
    ("comparison", "distance"),
    [
        ("pearson", "squared"),
        ("cosine", "squared"),
        ("whitened", "squared"),
        ("whitened_pearson", "squared"),
        ("half_rank", "squared"),
        ("spearman", "squared"),
        ("rho_a", "squared"),
        ("tau_a", "squared"),
        ("pearson", "absolute"),
        ("cosine", "absolute"),
    ],
)
def test_every_comparison_is_that_of_explicit_rdms(features, models, name, comparison, distance):
    D = models[name]
    if np.isnan(D).any() and comparison.startswith("whitened"):
        with pytest.raises(InvalidInput, match="needs a model of all pairs"):
            rsa_scores(features, D, comparison)
        return
    expected = np.array([by_hand(x, D, comparison, distance) for x in features.T])
    tolerance = 1e-10
    assert np.isnan(expected).sum() == 2
    for kind in (np.asarray, sparse.csr_array, sparse.csc_array, torch.from_numpy):
        np.testing.assert_allclose(
            rsa_scores(kind(features), D, comparison, distance), expected, rtol=tolerance, atol=1e-12
        )
    rng = np.random.default_rng(2)
    index = np.array([rng.permutation(N) for _ in range(3)])
    moved = [[by_hand(x, D[np.ix_(p, p)], comparison, distance) for x in features.T[:5]] for p in index]
    scores = feature_scores(features, D, comparison, distance)
    np.testing.assert_allclose(scores(index, slice(0, 5)), moved, rtol=tolerance, atol=1e-12)


def test_a_large_offset_costs_no_digits(features, models):
    plain = rsa_scores(features[:, :7], models["discriminative"])
    offset = rsa_scores(features[:, :7] + 2.0**10, models["discriminative"])
    np.testing.assert_allclose(offset, plain, rtol=0, atol=1e-10)


def test_scores_do_not_depend_on_scale(features, models):
    scaled = features * np.logspace(-30, 30, features.shape[1])
    for comparison in ("pearson", "whitened", "spearman"):
        np.testing.assert_allclose(
            rsa_scores(scaled, models["numeric"], comparison),
            rsa_scores(features, models["numeric"], comparison),
            rtol=1e-9,
        )


def test_rank_comparisons_are_the_same_for_both_distances(features, models):
    for comparison in ("spearman", "rho_a", "tau_a"):
        squared, absolute = (rsa_scores(features, models["numeric"], comparison, d) for d in ("squared", "absolute"))
        np.testing.assert_allclose(squared, absolute, rtol=1e-12)


def test_identical_and_affine_rdms_score_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    own = (x[:, None] - x) ** 2
    for comparison in ("pearson", "cosine", "whitened", "whitened_pearson", "spearman"):
        assert rsa_scores(x[:, None], own, comparison)[0] == pytest.approx(1)
    affine = 3 * own + 2
    np.fill_diagonal(affine, 0)
    for comparison in ("pearson", "spearman", "half_rank"):
        assert rsa_scores(x[:, None], affine, comparison)[0] > 0.8
    assert rsa_scores(x[:, None], affine, "pearson")[0] == pytest.approx(1)
    assert rsa_scores(x[:, None], 5 * own, "cosine")[0] == pytest.approx(1)
    assert rsa_scores(x[:, None], np.abs(x[:, None] - x), "pearson", "absolute")[0] == pytest.approx(1)


def test_whitened_is_the_squared_correlation_with_a_number(features):
    y = np.random.default_rng(3).normal(size=N)
    expected = [np.corrcoef(x, y)[0, 1] ** 2 for x in features.T[:7]]
    np.testing.assert_allclose(rsa_scores(features[:, :7], numeric_rdm(y, squared=True), "whitened"), expected)


def test_whitened_is_anova_with_balanced_classes(features):
    labels = np.repeat(np.arange(3), 6)
    X = features[:, :7]
    between = sum(6 * (X[labels == c].mean(axis=0) - X.mean(axis=0)) ** 2 for c in range(3))
    eta2 = between / ((X - X.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(rsa_scores(X, categorical_rdm(labels), "whitened"), eta2 / np.sqrt(2))


def test_whitened_is_squared_distance_correlation_with_absolute_models(features):
    """Of a feature's squared distances with |y − y'|: ⟨x̃x̃ᵀ, K⟩ as in Székely's V-statistic."""
    y = np.random.default_rng(4).normal(size=N)
    D = numeric_rdm(y)
    H = np.eye(N) - 1 / N
    x = features[:, 0]
    a, b = H @ (x[:, None] - x) ** 2 @ H, H @ D @ H
    assert rsa_scores(x[:, None], D, "whitened")[0] == pytest.approx(
        np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    )


def test_partial_scores_are_partial_correlations_of_pairs(features, models):
    upper = np.triu_indices(N, 1)
    D, other = models["numeric"], [models["free"], models["categorical"]]
    basis = np.column_stack([np.ones(upper[0].size), *(one[upper] for one in other)])

    def left(v):
        return v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0]

    x = features[:, 0]
    expected = np.corrcoef(left(((x[:, None] - x) ** 2)[upper]), left(D[upper]))[0, 1]
    scores = feature_scores(features, D, nuisance=other)
    assert scores.observed()[0] == pytest.approx(expected, rel=1e-10)
    index = np.random.default_rng(5).permutation(N)[None]
    residual = np.zeros((N, N))
    residual[upper] = left(D[upper])
    residual += residual.T
    moved = left(residual[np.ix_(index[0], index[0])][upper])
    by_hand = np.corrcoef(left(((x[:, None] - x) ** 2)[upper]), moved)[0, 1]
    assert scores(index, slice(0, 1))[0, 0] == pytest.approx(by_hand, rel=1e-10)


def test_classes_make_few_rows():
    labels = np.repeat(np.arange(4), 25)
    D = categorical_rdm(labels)
    assert len(form(D, np.zeros(100), centred=True).rows) == 3
    assert pair_classes(D).tolist() == labels.tolist()
    assert pair_classes(np.abs(np.subtract.outer(np.arange(40.0), np.arange(40.0)))) is None


def test_coherence_classes_of_size_one_are_no_trap():
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    X = np.random.default_rng(6).normal(size=(8, 3))
    D = coherence_rdm(labels, 1)
    expected = [by_hand(x, D, "pearson") for x in X.T]
    np.testing.assert_allclose(rsa_scores(X, D), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("D", "problem", "error"),
    [
        (np.ones((3, 4)), "square table", InvalidInput),
        (np.zeros((4, 4)), "same distance", InvalidInput),
        (np.eye(3), "similarity matrix", InvalidInput),
        (np.array([[0, 1, 2.0], [3, 0, 1], [2, 1, 0]]), "rows 0 and 1", InvalidInput),
        (np.full((3, 3), np.nan), "at least two pairs", InvalidInput),
        (categorical_rdm([0, 0, 1, 1]), "4 rows but the data have 3", DataMismatch),
        (np.array([[0, np.inf, 2.0], [np.inf, 0, 1], [2, 1, 0]]), "finite", InvalidInput),
    ],
)
def test_bad_models_are_refused_in_a_sentence(D, problem, error):
    n = 3 if error is DataMismatch else len(D)
    with pytest.raises(error, match=problem):
        rsa_scores(np.random.default_rng(0).normal(size=(n, 2)), D)


def test_bad_options_are_refused_in_a_sentence():
    X, D = np.random.default_rng(0).normal(size=(4, 2)), categorical_rdm([0, 0, 1, 1])
    with pytest.raises(InvalidInput, match="did you mean 'pearson'"):
        rsa_scores(X, D, "person")
    with pytest.raises(InvalidInput, match="'squared' or 'absolute'"):
        rsa_scores(X, D, distance="euclidean")
    with pytest.raises(InvalidInput, match="defined for squared distances"):
        rsa_scores(X, D, "whitened", "absolute")
    with pytest.raises(InvalidInput, match="follows from the nuisance models"):
        feature_scores(X, D, nuisance=[2 * D + 0])
    with pytest.raises(InvalidInput, match="none of the labels"):
        discriminative_rdm(["a", "b"], "c")
