"""Searchlights on arrays against explicit RDMs, rsatoolbox and the null of all features in blocks."""

import re
import warnings

import numpy as np
import pytest
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm
from neurollm.stats.rdms.neighbourhoods import (
    NeighbourhoodScores,
    nearest_directions,
    neighbourhood_null,
    neighbourhoods,
)
from neurollm.stats.rdms.nulls import permutation_null
from neurollm.stats.rdms.scores import rsa_scores
from neurollm.stats.shufflings import whole_item
from neurollm.stats.tfce import nearest_neighbour_graph

N, V, D = 12, 40, 8


def data(kind="dense", seed=0):
    rng = stream(seed, "neighbourhood_test")
    X = rng.gamma(1.0, size=(N, V))
    return sparse.csc_array(np.where(rng.random(X.shape) < 0.4, X, 0)) if kind == "sparse" else X


def model(seed=1):
    points = stream(seed, "neighbourhood_model").normal(size=(N, 5))
    return ((points[:, None] - points) ** 2).sum(axis=2)


def directions(count=V, seed=2):
    return stream(seed, "directions").normal(size=(count, D))


def explicit(X, D, comparison):
    if comparison == "whitened":
        H = np.eye(len(X)) - 1 / len(X)
        K, G = -H @ D @ H / 2, H @ X @ X.T @ H
        return np.sum(K * G) / np.sqrt(np.sum(K * K) * np.sum(G * G))
    rows, columns = np.triu_indices(len(X), 1)
    return np.corrcoef(((X[rows] - X[columns]) ** 2).sum(axis=1), D[rows, columns])[0, 1]


def plain(X, standardise):
    X = X.toarray() if sparse.issparse(X) else X
    X = X - X.mean(axis=0)
    return X / np.sqrt((X**2).sum(axis=0)) if standardise else X


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
@pytest.mark.parametrize("standardise", [True, False])
def test_scores_against_explicit_rdms_of_neighbourhoods_of_any_size(kind, comparison, standardise):
    X = data(kind)
    members = sparse.csr_array(stream(0, "members").random((25, V)) < np.linspace(0.02, 0.9, 25)[:, None])
    for D in (model(), categorical_rdm(np.arange(N) % 5)):
        found = NeighbourhoodScores(X, D, members, comparison, standardise).observed()
        x = plain(X, standardise)
        for r, chosen in zip(found, members.toarray(), strict=True):
            if not chosen.any():
                assert np.isnan(r)
            else:
                np.testing.assert_allclose(r, explicit(x[:, chosen], D, comparison), rtol=1e-9)


@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
def test_identities(comparison):
    X, D = data(), model()
    alone = NeighbourhoodScores(X, D, sparse.eye_array(V, format="csr"), comparison).observed()
    np.testing.assert_allclose(alone, rsa_scores(X, D, comparison), rtol=1e-9)
    everything = neighbourhoods(directions(), V - 1)
    assert everything.nnz == V * V
    layer = NeighbourhoodScores(X, D, everything, comparison, standardise=False).observed()
    np.testing.assert_allclose(layer, explicit(X, D, comparison), rtol=1e-10)


def test_the_whole_layer_is_what_rsatoolbox_compares():
    rsatoolbox = pytest.importorskip("rsatoolbox")
    X, D = data(), model()
    ours = {
        comparison: NeighbourhoodScores(X, D, sparse.csr_array(np.ones((1, V))), comparison, False).observed()[0]
        for comparison in ("pearson", "whitened")
    }
    rdm = rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(X), method="euclidean")
    target = rsatoolbox.rdm.RDMs(D[np.triu_indices(N, 1)][None])
    for comparison, method in (("pearson", "corr"), ("whitened", "cosine_cov")):
        theirs = rsatoolbox.rdm.compare(rdm, target, method=method)[0, 0]
        np.testing.assert_allclose(ours[comparison], theirs, rtol=1e-6)


def test_the_searchlight_of_rsatoolbox():
    rsatoolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox.util.searchlight import get_searchlight_RDMs

    X, D = data(), model()
    members = neighbourhoods(directions(), 4)
    lists = [members.indices[start:stop] for start, stop in zip(members.indptr[:-1], members.indptr[1:], strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rdms = get_searchlight_RDMs(X, np.arange(V), lists, np.arange(N), method="euclidean", verbose=False)
    target = rsatoolbox.rdm.RDMs(D[np.triu_indices(N, 1)][None])
    for comparison, method in (("pearson", "corr"), ("whitened", "cosine_cov")):
        theirs = rsatoolbox.rdm.compare(rdms, target, method=method)[:, 0]
        ours = NeighbourhoodScores(X, D, members, comparison, standardise=False).observed()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_nearest_against_all_cosines(monkeypatch):
    monkeypatch.setattr("neurollm.stats.rdms.neighbourhoods._ROWS", 7)
    monkeypatch.setattr("neurollm.stats.rdms.neighbourhoods._COLUMNS", 11)
    for dtype in (float, np.float32):
        w = directions().astype(dtype)
        unit = w / np.linalg.norm(w, axis=1)[:, None]
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -np.inf)
        index, value = nearest_directions(w, 5)
        np.testing.assert_array_equal(index, np.argsort(-cosine, axis=1)[:, :5])
        np.testing.assert_allclose(value, -np.sort(-cosine, axis=1)[:, :5], rtol=1e-5)
    graph = neighbourhoods(directions(), 5) - sparse.eye_array(V)
    either = graph.maximum(graph.T)
    np.testing.assert_array_equal(either.toarray(), nearest_neighbour_graph(directions(), 5).toarray())


def test_directions_of_zeros_and_features_left_out():
    w = directions(6)
    w[2] = 0
    members = neighbourhoods(w, 3).toarray()
    assert not members[2].any() and not members[:, 2].any()
    assert (members[[0, 1, 3, 4, 5]].sum(axis=1) == 4).all() and (np.diag(members)[[0, 1, 3, 4, 5]] == 1).all()
    index, cosine = nearest_directions(np.array([[1.0, 0], [0, 0]]), 3)
    assert index.tolist() == [[-1], [-1]] and np.isnan(cosine).all()
    np.testing.assert_array_equal(neighbourhoods(w, 0).toarray(), np.diag([1.0, 1, 0, 1, 1, 1]))


def test_features_that_do_not_vary_leave_no_trace():
    X = data()
    X[:, 3], X[2, 4] = 5.0, np.inf
    members = sparse.csr_array([[1.0 if f in wanted else 0.0 for f in range(V)] for wanted in ({3, 4}, {3, 5, 6})])
    scores = NeighbourhoodScores(X, model(), members)
    assert scores.valid.tolist() == [False, True] and scores.sizes.tolist() == [0, 2]
    found = scores.observed()
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], explicit(plain(X[:, [5, 6]], True), model(), "pearson"))


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_null_is_that_of_the_same_arrangements_in_blocks(alternative, kind):
    X, D = data(kind), categorical_rdm(np.arange(N) % 3)
    members = sparse.vstack([neighbourhoods(directions(), 3), sparse.csr_array((1, V))], format="csr")
    scores = NeighbourhoodScores(X, D, members)
    observed = scores.observed()
    for shuffling, count in ((whole_item(np.arange(N) % 3), 150), (whole_item([0, 0, 0, 1, 1] + [2] * 7), 10**5)):
        draws = shuffling.draw(count, 0) if count < 10**5 else whole_item(np.arange(N) // 10).draw(200, 1)
        done = []
        found = neighbourhood_null(scores, draws, observed=observed, alternative=alternative, on_block=done.append)
        naive = permutation_null(
            lambda index, columns: scores(index)[:, columns],
            V + 1, draws, observed=observed, alternative=alternative,
        )  # fmt: skip
        for name in ("z", "p", "p_fwer", "null_max", "mean", "sd"):
            np.testing.assert_allclose(getattr(found, name), getattr(naive, name), rtol=1e-8, atol=1e-12)
        assert sum(done) == 2 * len(draws) and found.exhaustive == draws.exhaustive and np.isnan(found.p[-1])


@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
@pytest.mark.parametrize("standardise", [True, False])
def test_moments_are_those_of_all_arrangements(comparison, standardise):
    X, members = data()[:6], neighbourhoods(directions(), 3)
    D = model()[:6, :6] ** 0.7
    np.fill_diagonal(D, 0)
    scores = NeighbourhoodScores(X, D, members, comparison, standardise)
    draws = whole_item(np.arange(6)).draw(720, 0)
    assert draws.exhaustive and len(draws) == 720
    every = scores(draws.index)
    mean, sd = scores.moments()
    np.testing.assert_allclose(mean, every.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(sd, every.std(axis=0), rtol=1e-9)
    found, done = [], []
    for moments in (None, (mean, sd)):
        done.append([])
        found.append(
            neighbourhood_null(scores, draws, observed=scores.observed(), moments=moments, on_block=done[-1].append)
        )
    np.testing.assert_allclose(found[0].z, found[1].z, rtol=1e-8)
    np.testing.assert_array_equal(found[0].p_fwer, found[1].p_fwer)
    assert [sum(one) for one in done] == [1440, 720]
    assert NeighbourhoodScores(X[:3], D[:3, :3], members).moments() is None


def test_rearranged_scores_against_rearranged_models():
    X, D = data("sparse"), model()
    scores = NeighbourhoodScores(X, D, neighbourhoods(directions(), 3), "pearson")
    index = np.stack([stream(0, "order", i).permutation(N) for i in range(4)])
    for places, found in zip(index, scores(index), strict=True):
        again = NeighbourhoodScores(X, D[np.ix_(places, places)], neighbourhoods(directions(), 3)).observed()
        np.testing.assert_allclose(found, again, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nearest_directions(np.array([[np.nan, 1]]), 1), "directions must be a table of finite numbers"),
        (lambda: nearest_directions(directions(), -1), "k must be a whole number of neighbours, found -1"),
        (lambda: NeighbourhoodScores(data(), model(), np.eye(V)), "sparse array with 40 columns, found ndarray"),
        (
            lambda: NeighbourhoodScores(data(), model(), sparse.eye_array(3, format="csr")),
            "sparse array with 40 columns, found (3, 3)",
        ),
        (
            lambda: NeighbourhoodScores(
                data(), discriminative_rdm(np.arange(N) % 3, 1), sparse.eye_array(V, format="csr")
            ),
            "leaves out 28 pairs (NaN), but this needs a model of all pairs",
        ),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        call()
