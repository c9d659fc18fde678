"""Cross-validated distances against products of repeats, rsatoolbox' crossnobis, and noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import pdist, squareform

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.rdms.crossvalidated import crossvalidated_distances, crossvalidated_scores
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm
from neurollm.stats.rdms.pairs import pair_vectors
from neurollm.stats.rdms.windows import window_scores

RNG = np.random.default_rng(0)
D = squareform(pdist(RNG.normal(size=(9, 3))))


def explicit(repeats, feature):
    """Distances of one feature: products of differences of different repeats."""
    total, pairs = np.zeros((9, 9)), list(itertools.permutations(range(len(repeats)), 2))
    for r, s in pairs:
        a, b = repeats[r][:, feature], repeats[s][:, feature]
        total += np.subtract.outer(a, a) * np.subtract.outer(b, b)
    return total / len(pairs)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize("n_repeats", [2, 3, 5])
def test_scores_equal_explicit_products(kind, n_repeats):
    repeats = RNG.lognormal(size=(n_repeats, 9, 6)) * (RNG.random((n_repeats, 9, 6)) < 0.8)
    m = pair_vectors(D)
    distances = np.stack([pair_vectors(explicit(repeats, f)) for f in range(6)])
    inputs = [kind(x) for x in repeats]
    np.testing.assert_allclose(
        crossvalidated_scores(inputs, D, comparison="pearson"), [np.corrcoef(d, m)[0, 1] for d in distances], rtol=1e-9
    )
    np.testing.assert_allclose(
        crossvalidated_scores(inputs, D),
        [d @ m / np.sqrt(d @ d * (m @ m)) for d in distances],
        rtol=1e-9,
    )
    H = np.eye(9) - 1 / 9
    K = -H @ D @ H / 2
    grams = [-H @ squareform(d, checks=False) @ H / 2 for d in distances]
    np.testing.assert_allclose(
        crossvalidated_scores(inputs, D, comparison="whitened"),
        [(K * G).sum() / np.sqrt((K**2).sum() * (G**2).sum()) for G in grams],
        rtol=1e-9,
    )
    gaps = discriminative_rdm(np.repeat([0, 1, 2], 3), 1)
    has = ~np.isnan(pair_vectors(gaps))
    expected = [np.corrcoef(d[has], pair_vectors(gaps)[has])[0, 1] for d in distances]
    np.testing.assert_allclose(crossvalidated_scores(inputs, gaps, comparison="pearson"), expected, rtol=1e-9)
    np.testing.assert_allclose(crossvalidated_distances(inputs), distances.T, rtol=1e-9, atol=1e-12)


def test_distances_equal_crossnobis():
    toolbox = pytest.importorskip("rsatoolbox")
    repeats = RNG.normal(size=(3, 9, 4))
    data = toolbox.data.Dataset(
        repeats.reshape(27, 4), obs_descriptors={"condition": np.tile(np.arange(9), 3), "run": np.repeat([0, 1, 2], 9)}
    )
    rdm = toolbox.rdm.calc_rdm(data, method="crossnobis", descriptor="condition", cv_descriptor="run")
    np.testing.assert_allclose(crossvalidated_distances(repeats).sum(axis=1), 4 * rdm.dissimilarities[0], rtol=1e-9)
    one = toolbox.data.Dataset(data.measurements[:, [2]], obs_descriptors=data.obs_descriptors)
    one = toolbox.rdm.calc_rdm(one, method="crossnobis", descriptor="condition", cv_descriptor="run")
    expected = toolbox.rdm.compare(one.dissimilarities, pair_vectors(D)[None], method="corr")[0, 0]
    found = crossvalidated_scores(list(repeats), D, comparison="pearson")[2]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_noise_has_distance_zero_on_average():
    n = 4000
    repeats = RNG.normal(size=(3, 9, n)) + 3 * RNG.normal(size=(3, 1, n))
    distances = crossvalidated_distances(repeats).T
    per_feature = distances.mean(axis=1)
    assert abs(per_feature.mean()) < 3 * per_feature.std() / np.sqrt(len(per_feature))
    model = categorical_rdm(np.repeat([0, 1, 2], 3))
    numerators = distances @ pair_vectors(model)
    assert abs(numerators.mean()) < 3 * numerators.std() / np.sqrt(len(numerators))
    cosines = crossvalidated_scores(list(repeats), model)
    plain = window_scores([repeats.mean(axis=0)], model, comparison="cosine")
    assert abs(cosines.mean()) < 0.1 and plain.mean() > 0.5


def test_signal_is_recovered_without_the_bias_of_noise():
    centres = np.repeat([0.0, 1.0, 2.0], 3)[:, None]
    repeats = centres + 2 * RNG.normal(size=(4, 9, 6000))
    mean = crossvalidated_distances(repeats).mean(axis=1)
    np.testing.assert_allclose(mean, pdist(centres, "sqeuclidean"), atol=0.3)
    plain = pdist(repeats.mean(axis=0), "sqeuclidean") / 6000
    assert plain[0] > 1.5 > abs(mean[0]) + 1  # the distance of averages holds the noise


def test_scores_do_not_depend_on_the_scale_of_a_feature():
    repeats = RNG.normal(size=(3, 9, 4))
    scaled = repeats * np.array([1e-6, 1, 1e3, 1e6])
    np.testing.assert_allclose(crossvalidated_scores(list(scaled), D), crossvalidated_scores(list(repeats), D))


def test_rearranged_models_equal_a_loop():
    repeats, index = list(RNG.normal(size=(3, 9, 4))), np.stack([RNG.permutation(9) for _ in range(5)])
    for comparison in ("cosine", "whitened"):
        found = crossvalidated_scores(repeats, D, comparison=comparison, index=index)
        expected = [crossvalidated_scores(repeats, D[row][:, row], comparison=comparison) for row in index]
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_wrong_calls_are_told():
    X = RNG.normal(size=(9, 2))
    with pytest.raises(InvalidInput, match="at least 2 are needed, found 1"):
        crossvalidated_scores([X], D)
    with pytest.raises(DataMismatch, match="same rows"):
        crossvalidated_scores([X, X[:5]], D)
    assert np.isnan(crossvalidated_scores([np.zeros((9, 1)), np.zeros((9, 1))], D)).all()
