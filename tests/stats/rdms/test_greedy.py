"""Greedy selection against explicit RDMs, feature by feature."""

import itertools
import re

import numpy as np
import pytest
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.rdms.greedy import forward, greedy_selection, region_ceiling
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm
from neurollm.stats.rdms.model import pair_model
from neurollm.stats.rdms.space import MaskedSpace, ModelForm, RDMSpace

N, V = 14, 60


def data(kind="dense", n=N, n_features=V, seed=0):
    rng = stream(seed, "greedy_test")
    X = rng.gamma(1.0, size=(n, n_features)) + rng.normal(size=(n, 1))
    if kind == "sparse":
        return sparse.csr_array(np.where(rng.random(X.shape) < 0.4, np.abs(X), 0))
    return X


def model(kind, n=N, seed=1):
    if kind == "categories":
        return categorical_rdm(np.arange(n) % 4 - (np.arange(n) == 1))  # unequal groups
    if kind == "loose classes":  # distances inside a class too, so that its form has a diagonal
        labels = np.arange(n) % 3
        D = np.where(labels[:, None] == labels, np.array([0.0, 0.5, 0.2])[labels], 1.0)
        np.fill_diagonal(D, 0)
        return D
    if kind == "left out":
        return discriminative_rdm(np.arange(n) % 3, 1)
    if kind == "some left out":
        D = model("full", n)
        D[2, 5] = D[5, 2] = D[0, 7] = D[7, 0] = D[7, 8] = D[8, 7] = np.nan
        return D
    points = stream(seed, "greedy_model").normal(size=(n, 5))
    return ((points[:, None] - points) ** 2).sum(axis=2)


def unit(X):
    X = X.toarray() if sparse.issparse(X) else X
    X = X - X.mean(axis=0)
    return X / np.sqrt((X**2).sum(axis=0))


def explicit(X, D, comparison):
    """Score of a region from its explicit RDM."""
    if comparison == "whitened":
        H = np.eye(len(X)) - 1 / len(X)
        K, G = -H @ D @ H / 2, H @ X @ X.T @ H
        return np.sum(K * G) / np.sqrt(np.sum(K * K) * np.sum(G * G))
    rows, columns = np.triu_indices(len(X), 1)
    d, kept = ((X[rows] - X[columns]) ** 2).sum(axis=1), ~np.isnan(D[rows, columns])
    return np.corrcoef(d[kept], D[rows, columns][kept])[0, 1]


def brute_force(X, D, k, comparison):
    order, scores = [], []
    for _ in range(k):
        free = [f for f in range(X.shape[1]) if f not in order]
        found = [explicit(X[:, [*order, f]], D, comparison) for f in free]
        order.append(free[int(np.argmax(found))])
        scores.append(max(found))
    return order, scores


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("comparison", "which"),
    [
        *itertools.product(["pearson", "whitened"], ["categories", "full", "loose classes"]),
        ("pearson", "left out"),
        ("pearson", "some left out"),
    ],
)
def test_path_and_scores_are_those_of_brute_force(kind, comparison, which):
    X, D = data(kind), model(which)
    for standardise in (True, False):
        path = greedy_selection(X, D, 6, comparison=comparison, standardise=standardise)
        plain = X.toarray() if sparse.issparse(X) else X
        order, scores = brute_force(unit(X) if standardise else plain, D, 6, comparison)
        assert path.feature.tolist() == order
        np.testing.assert_allclose(path.score, scores, rtol=1e-10)
        assert path.regions[3] == tuple(order[:4]) and path.n_candidates == V


@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
def test_products_of_rdm_space_against_explicit_rdms(comparison):
    for X, D in ((data(), model("full")), (data("sparse"), model("categories"))):
        space, rows, columns = RDMSpace(X, comparison), *np.triu_indices(N, 1)
        x = unit(X)
        if comparison == "pearson":
            vectors = (x[rows] - x[columns]) ** 2
            vectors, target = vectors - vectors.mean(axis=0), D[rows, columns] - D[rows, columns].mean()
        else:
            H = np.eye(N) - 1 / N
            vectors = np.stack([np.outer(a, a).ravel() for a in x.T], axis=1)
            target = (-H @ D @ H / 2).ravel()
        form = ModelForm.of(pair_model(D), comparison)
        np.testing.assert_allclose(space.columns(np.arange(V)), vectors.T @ vectors, atol=1e-12)
        np.testing.assert_allclose(space.norms, (vectors**2).sum(axis=0), atol=1e-12)
        np.testing.assert_allclose(space.numerators(form)[0], target @ vectors, atol=1e-11)
        np.testing.assert_allclose(form.norm, np.linalg.norm(target), rtol=1e-12)


def test_rearranged_models_change_numerators_only():
    X, D = data(), model("full")
    index = np.stack([stream(0, "order", i).permutation(N) for i in range(5)])
    for comparison, kind in itertools.product(("pearson", "whitened"), ("dense", "sparse")):
        X = data(kind)
        space = RDMSpace(X, comparison)
        form = ModelForm.of(pair_model(D), comparison)
        many = forward(space, space.numerators(form, index) / form.norm, 4)
        for order, places, score in zip(many[0], index, many[1], strict=True):
            alone = greedy_selection(X, D[np.ix_(places, places)], 4, comparison=comparison)
            assert alone.feature.tolist() == order.tolist()
            np.testing.assert_allclose(alone.score, score, rtol=1e-9)


def test_masked_space_without_a_mask_is_the_other_one():
    X, D = data(), pair_model(model("full"))
    masked, whole, form = MaskedSpace(X, D), RDMSpace(X, "pearson"), ModelForm.of(D, "pearson")
    np.testing.assert_allclose(masked.columns(np.arange(5)), whole.columns(np.arange(5)), atol=1e-12)
    np.testing.assert_allclose(masked.norms, whole.norms, atol=1e-12)
    np.testing.assert_allclose(masked.numerators(), whole.numerators(form), atol=1e-11)


@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
def test_floating_and_swaps_against_explicit_rdms(comparison):
    better = dict.fromkeys(("floating", "swap"), 0)
    for seed in range(12):
        X, D = data(seed=seed, n=10, n_features=25), model("full", n=10, seed=seed)
        plain = greedy_selection(X, D, 6, comparison=comparison)
        for steps in better:
            path = greedy_selection(X, D, 6, comparison=comparison, steps=steps)
            for region, score in zip(path.regions, path.score, strict=True):
                assert len(set(region)) == len(region)
                np.testing.assert_allclose(score, explicit(unit(X)[:, list(region)], D, comparison), rtol=1e-9)
            assert [len(region) for region in path.regions] == [1, 2, 3, 4, 5, 6]
            assert path.moves[0] == ("add", plain.feature[0], pytest.approx(plain.score[0]))
            better[steps] += (path.score > plain.score + 1e-6).any()
            if steps == "swap":  # no single exchange improves the last region
                members, others = list(path.feature), [f for f in range(25) if f not in path.feature]
                for out, new in itertools.product(members, others):
                    region = [*(f for f in members if f != out), new]
                    assert explicit(unit(X)[:, region], D, comparison) <= path.score[-1] + 1e-8
    assert min(better.values()) > 0


def test_floating_leaves_out_a_feature_that_others_make_needless():
    # The best single feature is a blend; the two it blends make a perfect region without it.
    labels = np.repeat([0, 1, 2], 5)
    X = np.stack([labels == 0, labels == 1, labels == 2, labels, labels == 0], axis=1).astype(float)
    X[:, 4] += np.tile([0.0, 0.5, 1, 1.5, 2], 3)
    X[:, 3] += 0.01 * np.arange(15)
    D = categorical_rdm(labels)
    forward_path = greedy_selection(X, D, 3, comparison="pearson")
    floating = greedy_selection(X, D, 4, comparison="pearson", steps="floating")
    assert forward_path.score[-1] <= floating.score[2] and floating.score[2] == pytest.approx(1)
    assert set(floating.regions[2]) == {0, 1, 2}
    assert floating.best_size == 3


def test_planted_class_features_reach_the_ceiling():
    labels = np.repeat(np.arange(4), 5)
    X = stream(3, "planted").normal(size=(20, 300))
    X[:, 100:104] = np.eye(4)[labels]
    path = greedy_selection(X, categorical_rdm(labels), 4, comparison="whitened")
    assert sorted(path.feature) == [100, 101, 102, 103] and path.score[-1] == pytest.approx(1)
    assert (path.score <= path.ceiling + 1e-12).all()
    np.testing.assert_allclose(path.ceiling, [np.sqrt(1 / 3), np.sqrt(2 / 3), 1, 1])
    assert np.isnan(greedy_selection(X, categorical_rdm(labels), 2).ceiling).all()


def test_the_ceiling_is_reached_by_eigenvectors_and_by_nothing_else():
    D = model("full")
    H = np.eye(N) - 1 / N
    values, vectors = np.linalg.eigh(-H @ D @ H / 2)
    bound = region_ceiling(values, 3)
    for k in (1, 2, 3):
        best = vectors[:, -k:] * np.sqrt(values[-k:])
        assert explicit(best, D, "whitened") == pytest.approx(bound[k - 1])
    # A model that is no squared distance has negative eigenvalues; no region reaches what they explain.
    D = 1.0 - np.eye(4)
    D[0, 1] = D[1, 0] = 5.0
    values = np.linalg.eigvalsh(-(np.eye(4) - 0.25) @ D @ (np.eye(4) - 0.25) / 2)
    assert values.min() < -1e-3
    tried = max(explicit(stream(0, "tries", i).normal(size=(4, 4)), D, "whitened") for i in range(3000))
    assert 0.9 * region_ceiling(values, 4)[-1] < tried <= region_ceiling(values, 4)[-1] < 1


def test_features_that_cannot_be_chosen():
    X = data()
    X[:, 3] = 7.0
    X[4, 8] = np.nan
    X[:, 9] = 1e8 + np.arange(N) % 2 * 1e-4  # rounding of a large number
    D = model("full")
    path = greedy_selection(X, D, 57)
    assert path.n_candidates == 57 and not {3, 8, 9} & set(path.feature)
    assert np.isfinite(path.score).all()
    with pytest.raises(InvalidInput, match="57 features vary, fewer than n_features = 58"):
        greedy_selection(X, D, 58)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_scale_of_the_data_decides_nothing(kind, standardise, factor):
    X, D = data(kind), model("full")
    for comparison in ("pearson", "whitened"):
        plain, far = (
            greedy_selection(x, D, 4, comparison=comparison, standardise=standardise) for x in (X, X * factor)
        )
        assert far.feature.tolist() == plain.feature.tolist() and far.n_candidates == plain.n_candidates == V
        np.testing.assert_allclose(far.score, plain.score, rtol=1e-9)
    np.testing.assert_allclose(RDMSpace(X * factor, "pearson").lengths / factor, RDMSpace(X, "pearson").lengths)
    lengths = RDMSpace(X, "pearson", standardise=False).lengths
    dense = X.toarray() if kind == "sparse" else X
    np.testing.assert_allclose(lengths, np.linalg.norm(dense - dense.mean(axis=0), axis=0))


def test_one_feature_of_another_scale_is_as_good_as_any():
    X, D = data(), model("full")
    scale = np.ones(V)
    scale[:2] = 1e200, 1e-200
    np.testing.assert_allclose(greedy_selection(X * scale, D, 5).score, greedy_selection(X, D, 5).score)
    masked = greedy_selection(X * scale, model("left out"), 5)
    np.testing.assert_allclose(masked.score, greedy_selection(X, model("left out"), 5).score)


@pytest.mark.parametrize("make", [lambda c: RDMSpace(data(), c), lambda c: ModelForm.of(pair_model(model("full")), c)])
def test_an_unknown_comparison_is_refused_everywhere(make):
    for wrong in ("bogus", None, ["pearson"]):
        with pytest.raises(InvalidInput, match="it must be 'pearson' or 'whitened'"):
            make(wrong)
    with pytest.raises(InvalidInput, match=r"comparison is 'pearsn'; .* did you mean 'pearson'"):
        make("pearsn")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_features": 0}, "n_features must be a whole number of at least 1, found 0"),
        ({"n_features": True}, "found True"),
        ({"comparison": "cosine"}, "comparison is 'cosine'; it must be 'pearson' or 'whitened'"),
        ({"steps": "back"}, "steps is 'back'"),
        ({"D": 1.0 - np.eye(N)}, "says the same of all pairs"),
        ({"D": model("left out"), "comparison": "whitened"}, "leaves out"),
    ],
)
def test_what_is_refused(change, sentence):
    given = {"X": data(), "D": model("full"), "n_features": 3, **change}
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        greedy_selection(**given)
