"""Distances of sequences against plain recursions, scipy, and definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist, squareform

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.rdms import categorical_rdm, permutation_null, rsa_scores
from neurollm.stats.rdms import sequences as module
from neurollm.stats.rdms.sequences import SEQUENCE_DISTANCES, distance_correlation, sequence_distances
from neurollm.stats.shufflings import whole_item

RNG = np.random.default_rng(0)


def draw(n=7, features=3, low=1, high=9, rng=RNG):
    return [rng.normal(size=(rng.integers(low, high + 1), features)) for _ in range(n)]


def dtw(a, b, band=None):
    """All cells, one by one."""
    cost = cdist(a, b)
    g = np.full(cost.shape, np.inf)
    reach = np.inf if band is None else max(band, abs(len(a) - len(b)))
    for i, j in itertools.product(range(len(a)), range(len(b))):
        if abs(i - j) > reach:
            continue
        if i == j == 0:
            g[0, 0] = 2 * cost[0, 0]
            continue
        ways = [g[i - 1, j] + cost[i, j] if i else np.inf, g[i, j - 1] + cost[i, j] if j else np.inf]
        g[i, j] = min(*ways, g[i - 1, j - 1] + 2 * cost[i, j] if i and j else np.inf)
    return g[-1, -1] / (len(a) + len(b))


def all_paths(a, b):
    """The best mean distance over every monotone path, listed."""
    cost = cdist(a, b)
    best = np.inf
    stack = [((0, 0), 2 * cost[0, 0])]
    while stack:
        (i, j), total = stack.pop()
        if (i, j) == (len(a) - 1, len(b) - 1):
            best = min(best, total / (len(a) + len(b)))
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i + di < len(a) and j + dj < len(b):
                stack.append(((i + di, j + dj), total + (di + dj) * cost[i + di, j + dj]))
    return best


def pairwise(sequences, function):
    out = np.zeros((len(sequences),) * 2)
    for i, j in itertools.combinations(range(len(sequences)), 2):
        out[i, j] = out[j, i] = function(sequences[i], sequences[j])
    return out


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("band", [None, 0, 1, 3, 20])
def test_warping_equals_the_recursion(features, band, monkeypatch):
    sequences = draw(9, features)
    expected = pairwise(sequences, lambda a, b: dtw(a, b, band))
    np.testing.assert_allclose(sequence_distances(sequences, "dtw", band=band), expected, rtol=1e-12)
    monkeypatch.setattr(module, "_CELLS", 200)  # a few pairs at a time
    np.testing.assert_allclose(sequence_distances(sequences, "dtw", band=band), expected, rtol=1e-12)


def test_warping_is_the_best_of_all_paths():
    sequences = draw(5, 2, 1, 5)
    np.testing.assert_allclose(sequence_distances(sequences), pairwise(sequences, all_paths), rtol=1e-12)


def test_warping_ignores_shifts_and_speed():
    course = np.array([0.0, 0, 1, 3, 2, 0, 0])
    shifted, slow = np.array([0.0, 0, 0, 0, 1, 3, 2, 0]), np.repeat(course, 3)
    distances = sequence_distances([course[:, None], shifted[:, None], slow[:, None]])
    np.testing.assert_allclose(distances, 0, atol=1e-12)
    assert sequence_distances([course[:, None], shifted[:, None]], band=1)[0, 1] > 0


def test_energy_and_transport_equal_scipy():
    sequences = [np.round(one, 1) for one in draw(8, 1)]  # with ties
    expected = pairwise(sequences, lambda a, b: stats.energy_distance(a[:, 0], b[:, 0]))
    np.testing.assert_allclose(sequence_distances(sequences, "energy"), expected, rtol=1e-7, atol=1e-7)
    expected = pairwise(sequences, lambda a, b: stats.wasserstein_distance(a[:, 0], b[:, 0]))
    np.testing.assert_allclose(sequence_distances(sequences, "transport"), expected, rtol=1e-9, atol=1e-12)


def test_energy_and_transport_of_several_features():
    sequences = draw(6, 3)

    def energy(a, b):
        return np.sqrt(max(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean(), 0))

    np.testing.assert_allclose(sequence_distances(sequences, "energy"), pairwise(sequences, energy), rtol=1e-7)
    expected = np.mean([sequence_distances([one[:, [f]] for one in sequences], "transport") for f in range(3)], axis=0)
    np.testing.assert_allclose(sequence_distances(sequences, "transport"), expected)
    shuffled = [RNG.permutation(one) for one in sequences]
    for distance in ("energy", "transport"):  # order is nothing to them
        np.testing.assert_allclose(
            sequence_distances(shuffled, distance), sequence_distances(sequences, distance), atol=1e-7
        )


def dcor(A, B):
    """From the definition, with four loops over means."""
    A = A - A.mean(axis=0, keepdims=True) - A.mean(axis=1, keepdims=True) + A.mean()
    B = B - B.mean(axis=0, keepdims=True) - B.mean(axis=1, keepdims=True) + B.mean()
    return (A * B).mean() / np.sqrt((A**2).mean() * (B**2).mean())


def test_profiles_are_read_at_relative_positions():
    sequences = draw(6, 2, 4, 9)
    points = int(np.median([len(one) for one in sequences]))

    def read(one):
        where = np.linspace(0, len(one) - 1, points)
        return squareform(pdist(np.column_stack([np.interp(where, np.arange(len(one)), x) for x in one.T])))

    expected = pairwise(sequences, lambda a, b: 1 - np.sqrt(dcor(read(a), read(b))))
    np.testing.assert_allclose(sequence_distances(sequences, "profile"), expected, atol=1e-7)
    ramp = np.linspace(0, 1, 5)[:, None]
    stretched = np.linspace(0, 4, 17)[:, None]
    assert sequence_distances([ramp, stretched, -ramp], "profile").max() < 1e-6
    found = sequence_distances([ramp, ramp[:1], np.ones((4, 1)), stretched], "profile")
    assert np.isnan(found[1]).all() and np.isnan(found[2]).all() and np.isfinite(found[0, 3])


@pytest.mark.parametrize("distance", SEQUENCE_DISTANCES)
def test_distances_are_symmetric_and_missing_where_undefined(distance):
    sequences = draw(5, 2, 3, 7)
    sequences[2][1, 0] = np.nan
    found = sequence_distances(sequences, distance)
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    rest = np.delete(np.delete(found, 2, 0), 2, 1)
    np.testing.assert_array_equal(rest, rest.T)
    assert (np.diag(rest) == 0).all() and (rest >= 0).all()
    np.testing.assert_allclose(rest, sequence_distances([*sequences[:2], *sequences[3:]], distance))


def test_wrong_calls_are_told():
    a, b = draw(2, 2)
    for sequences, options, words in [
        ([a, b], {"distance": "edit"}, "'edit' is unknown"),
        ([a, b], {"distance": "energy", "band": 2}, "for 'dtw' only"),
        ([a, b], {"band": -1}, "at least 0"),
        ([a, b], {"band": 1.5}, "at least 0"),
        ([a], {}, "at least two sequences"),
        ([a, b[:0]], {}, "number 1 has shape"),
        ([a, b[:, :1]], {}, "number 1 has shape"),
        ([a, b[:, 0]], {}, "number 1 has shape"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            sequence_distances(sequences, **options)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_distance_correlation_equals_its_definition(kind):
    X = RNG.lognormal(size=(15, 6)) * (RNG.random((15, 6)) < 0.7)
    D = squareform(pdist(RNG.normal(size=(15, 2))))
    expected = [dcor(np.abs(x[:, None] - x), D) for x in X.T]
    np.testing.assert_allclose(distance_correlation(kind(X), D), expected, rtol=1e-9)
    index = np.stack([RNG.permutation(15) for _ in range(4)])
    expected = [[dcor(np.abs(x[:, None] - x), D[row][:, row]) for x in X.T] for row in index]
    np.testing.assert_allclose(distance_correlation(kind(X), D, index), expected, rtol=1e-9)


def test_distance_correlation_is_rsa_with_the_centred_model():
    X, D = RNG.normal(size=(12, 5)), squareform(pdist(RNG.normal(size=(12, 2))))
    H = np.eye(12) - 1 / 12
    centred = H @ D @ H
    hollow = centred - np.diag(np.diag(centred))
    cosines = rsa_scores(X, hollow, "cosine", "absolute")  # ⟨A, HDH⟩ over pairs, up to the norms
    distances = np.stack([pdist(x[:, None]) for x in X.T])
    products = cosines * np.linalg.norm(distances, axis=1) * np.linalg.norm(squareform(hollow, checks=False))
    norms = np.array([np.linalg.norm(H @ squareform(d) @ H) for d in distances])
    np.testing.assert_allclose(distance_correlation(X, D), 2 * products / norms / np.linalg.norm(centred), rtol=1e-9)


def test_distance_correlation_of_features_that_do_not_vary():
    X = np.column_stack([np.zeros(6), np.full(6, 0.1), [1, 2, np.nan, 3, 4, 5], [1, 2, 9, 3, 4, 5]])
    D = categorical_rdm([0, 0, 0, 1, 1, 1])
    assert np.isnan(distance_correlation(X, D)).tolist() == [True, True, True, False]
    with pytest.raises(InvalidInput, match="every pair"):
        distance_correlation(X, np.where(D == 1, np.nan, D) + np.array([[0, 1], [1, 0]]).repeat(3, 0).repeat(3, 1))
    with pytest.raises(InvalidInput, match="does not vary"):
        distance_correlation(X, np.zeros((6, 6)))
    with pytest.raises(DataMismatch, match="5 rows but the data have 6"):
        distance_correlation(X, D[:5, :5])


def test_dependence_without_correlation_is_found_and_independence_is_not():
    rng = np.random.default_rng(1)
    y = rng.normal(size=30)
    X = np.column_stack([y**2, rng.normal(size=(30, 200))])
    D = np.abs(y[:, None] - y)
    draws = whole_item(np.arange(30)).draw(199, 0)
    null = permutation_null(
        lambda index, columns: distance_correlation(X[:, columns], D, index),
        201,
        draws,
        observed=distance_correlation(X, D),
        alternative="greater",
    )
    assert null.p[0] <= 0.02 and null.p_fwer[0] <= 0.05
    rate = np.mean(null.p[1:] <= 0.1)
    assert 0.1 - 3 * 0.021 < rate < 0.1 + 3 * 0.021
