"""Layers, their division into features, and ceilings."""

import numpy as np
import pytest
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.rdms import categorical_rdm, discriminative_rdm, numeric_rdm, rsa_scores
from neurollm.stats.rdms.ceilings import ceiling
from neurollm.stats.rdms.layers import attribution, layer_distances, layer_score

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
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(14, 30)) * (rng.random((14, 30)) < 0.4)
    X[:, 4] = 2.0
    return X


@pytest.mark.parametrize("comparison", list(TOOLBOX))
def test_a_layer_scores_as_in_rsatoolbox(data, comparison):
    import rsatoolbox

    D = numeric_rdm(np.random.default_rng(1).normal(size=14))
    dataset = rsatoolbox.data.Dataset(data)
    rdms = rsatoolbox.rdm.calc_rdm(dataset, method="euclidean")
    model = D[np.triu_indices(14, 1)]
    expected = rsatoolbox.rdm.compare(rdms.dissimilarities, model[None], TOOLBOX[comparison])[0, 0]
    for kind in (np.asarray, sparse.csr_array):
        assert layer_score(layer_distances(kind(data)), D, comparison) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened", "half_rank"])
def test_shares_of_features_add_up_to_the_layer(data, comparison):
    models = [categorical_rdm(np.arange(14) % 3), numeric_rdm(np.arange(14.0))]
    if comparison != "whitened":
        models.append(discriminative_rdm(np.arange(14) % 3, 1))
    for D in models:
        shares = attribution(data, D, comparison)
        assert shares.sum() == pytest.approx(layer_score(layer_distances(data), D, comparison), rel=1e-10)
        assert shares[4] == 0
        # A layer of one feature is that feature.
        assert attribution(data[:, :1], D, comparison)[0] == pytest.approx(rsa_scores(data[:, :1], D, comparison)[0])


def test_ranks_do_not_divide(data):
    with pytest.raises(InvalidInput, match="does not divide"):
        attribution(data, categorical_rdm(np.arange(14) % 2), "spearman")


def test_distances_keep_their_digits_beside_a_large_offset():
    assert layer_distances(np.array([[1e8, 1e8], [1e8 + 1, 1e8]]))[0, 1] == pytest.approx(1.0)


def test_the_whitened_ceiling_is_the_leading_eigenvector():
    rng = np.random.default_rng(2)
    D = numeric_rdm(rng.normal(size=12))
    H = np.eye(12) - 1 / 12
    values, vectors = np.linalg.eigh(-H @ D @ H / 2)
    assert ceiling(D, "whitened") == pytest.approx(values[-1] / np.linalg.norm(values))
    assert rsa_scores(vectors[:, -1:], D, "whitened")[0] == pytest.approx(ceiling(D, "whitened"))
    assert rsa_scores(rng.normal(size=(12, 5000)), D, "whitened").max() < ceiling(D, "whitened")


@pytest.mark.parametrize("comparison", ["pearson", "cosine", "spearman", "rho_a", "half_rank"])
def test_no_feature_exceeds_a_ceiling_that_was_searched_for(comparison):
    """Random features and local ascents from them stay below."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    for D in (numeric_rdm(rng.normal(size=8)), categorical_rdm([0, 0, 0, 1, 1, 2, 2, 2])):
        highest = ceiling(D, comparison)
        assert rsa_scores(rng.normal(size=(8, 3000)), D, comparison).max() <= highest + 1e-6
        if comparison in ("pearson", "cosine"):
            for _ in range(5):
                found = minimize(lambda x, D=D: -rsa_scores(x[:, None], D, comparison)[0], rng.normal(size=8)).fun
                assert -found <= highest + 1e-4


def test_two_classes_can_be_followed_perfectly():
    for comparison in ("pearson", "whitened", "spearman"):
        assert ceiling(categorical_rdm([0, 0, 0, 1, 1, 1]), comparison) == pytest.approx(1)
    assert ceiling(discriminative_rdm([0, 0, 0, 1, 1, 1, 2, 2], 0)) == pytest.approx(1, abs=1e-6)
