"""RSA of windows against explicit RDMs, rsatoolbox and naive loops; the artefacts of zero padding and zero scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import pdist, squareform

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.rdms.labels import categorical_rdm, coherence_rdm, discriminative_rdm
from neurollm.stats.rdms.pairs import pair_correlations, pair_vectors, rdm_scores
from neurollm.stats.rdms.windows import undefined_rows, window_scores

KINDS = {"numpy": np.asarray, "csr": sparse.csr_array, "csc": sparse.csc_matrix}
LABELS = np.repeat(["a", "b", "c"], [5, 4, 3])


def draw(seed, n=12, T=5, V=7, active=0.7):
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=(T, n, V)) * (rng.random((T, n, V)) < active)


def model(seed, n=12):
    return squareform(pdist(np.random.default_rng(seed).normal(size=(n, 3))))


def explicit(pattern, D, comparison, distance, w=None):
    """One feature, pattern (n, T), by its own RDM, from rows that have a pattern."""
    w = np.ones(pattern.shape[1]) if w is None else np.asarray(w, float)
    if distance == "squared":
        rdm = squareform(pdist(pattern * np.sqrt(w), "sqeuclidean"))
    else:
        centred = pattern - (pattern @ w / w.sum())[:, None]
        cov = (centred * w) @ centred.T
        with np.errstate(invalid="ignore", divide="ignore"):
            rdm = 1 - cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
        keep = np.ptp(pattern, axis=1) > 0
        rdm, D = rdm[np.ix_(keep, keep)], D[np.ix_(keep, keep)]
    d, m = pair_vectors(rdm), pair_vectors(D)
    d, m = d[~np.isnan(m)], m[~np.isnan(m)]
    if comparison == "pearson":
        return np.corrcoef(d, m)[0, 1]
    if comparison == "cosine":
        return d @ m / np.sqrt(d @ d * (m @ m))
    H = np.eye(len(D)) - 1 / len(D)
    K, L = H @ rdm @ H, H @ D @ H
    return (K * L).sum() / np.sqrt((K**2).sum() * (L**2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened"])
@pytest.mark.parametrize("distance", ["squared", "correlation"])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_equal_those_of_explicit_rdms(kind, comparison, distance, weighted):
    Z, D = draw(0), model(1)
    w = [0.5, 2, 1, 0, 3] if weighted else None
    Z[:, 2:5, 3] = 0  # a silent feature in three trials
    used = Z if not weighted else np.delete(Z, 3, axis=0)
    scores = window_scores([KINDS[kind](part) for part in Z], D, comparison=comparison, distance=distance, weights=w)
    w = None if w is None else np.delete(w, 3)
    expected = [explicit(used[:, :, f].T, D, comparison, distance, w) for f in range(Z.shape[2])]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


@pytest.mark.parametrize("comparison, theirs", [("pearson", "corr"), ("cosine", "cosine"), ("whitened", "cosine_cov")])
@pytest.mark.parametrize("distance, method", [("squared", "euclidean"), ("correlation", "correlation")])
def test_scores_equal_rsatoolbox(comparison, theirs, distance, method):
    toolbox = pytest.importorskip("rsatoolbox")
    Z, D = np.random.default_rng(2).normal(size=(6, 10, 4)), model(3, 10)
    scores = window_scores(list(Z), D, comparison=comparison, distance=distance)
    for feature, score in enumerate(scores):
        rdm = toolbox.rdm.calc_rdm(toolbox.data.Dataset(Z[:, :, feature].T), method=method)
        expected = toolbox.rdm.compare(rdm.dissimilarities, pair_vectors(D)[None], method=theirs)[0, 0]
        np.testing.assert_allclose(score, expected, rtol=1e-8)


@pytest.mark.parametrize("D", [discriminative_rdm(LABELS, "b"), coherence_rdm(LABELS, "a")], ids=["disc", "coherence"])
@pytest.mark.parametrize("distance", ["squared", "correlation"])
def test_pairs_that_the_model_leaves_out(D, distance):
    Z = draw(4)
    Z[:, 7, 1] = 0
    for comparison in ("pearson", "cosine"):
        scores = window_scores(list(Z), D, comparison=comparison, distance=distance)
        expected = [explicit(Z[:, :, f].T, D, comparison, distance) for f in range(Z.shape[2])]
        np.testing.assert_allclose(scores, expected, rtol=1e-9)


@pytest.mark.parametrize("D", [categorical_rdm(LABELS), model(5), discriminative_rdm(LABELS, "a")])
@pytest.mark.parametrize("T, silent", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened"])
def test_rearranged_models_equal_a_loop(D, comparison, T, silent):
    if comparison == "whitened":
        D = np.nan_to_num(D)  # a model with gaps is refused, see below
    rng = np.random.default_rng(6)
    Z = draw(7, T=T, active=1.0)
    Z[:, 4, 2] = 0 if silent else Z[:, 4, 2]
    index = np.stack([rng.permutation(12) for _ in range(9)])
    distance = "squared" if T == 1 else "correlation"
    found = window_scores(list(Z), D, comparison=comparison, distance=distance, index=index)
    expected = [window_scores(list(Z), D[row][:, row], comparison=comparison, distance=distance) for row in index]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_undefined_features_are_missing_and_never_zero():
    Z = draw(8, V=5, active=1.0)
    Z[:, :, 0] = 0  # dead
    Z[:, :, 1] = 3.3  # constant
    Z[1, 2, 2] = np.nan
    Z[:, :, 3] = Z[0, :, 3]  # differs between trials, but flat over positions
    squared = window_scores(list(Z), model(9))
    assert np.isnan(squared).tolist() == [True, True, True, False, False]
    assert np.isnan(window_scores(list(Z), model(9), distance="correlation")).tolist() == [True] * 4 + [False]
    assert undefined_rows(list(Z))[[0, 1, 3, 4]].tolist() == [12, 12, 12, 0]


def test_large_offsets_do_not_destroy_the_scores():
    Z, D = draw(10), model(11)
    np.testing.assert_allclose(window_scores(list(Z + 1e5), D), window_scores(list(Z), D), rtol=1e-6)


def test_wrong_calls_are_told():
    Z, D = list(draw(12)), model(13)
    with pytest.raises(InvalidInput, match="distance='squared'"):
        window_scores(Z[:1], D, distance="correlation")
    with pytest.raises(InvalidInput, match="needs all pairs"):
        window_scores(Z, discriminative_rdm(LABELS, "a"), comparison="whitened")
    with pytest.raises(InvalidInput, match="unknown"):
        window_scores(Z, D, comparison="kendall")
    with pytest.raises(InvalidInput, match="no position"):
        window_scores([], D)
    with pytest.raises(InvalidInput, match="two of them positive"):
        window_scores(Z, D, distance="correlation", weights=[1, 0, 0, 0, 0])
    with pytest.raises(DataMismatch, match="same trials"):
        window_scores([Z[0], Z[1][:5]], D)
    with pytest.raises(DataMismatch, match="5 rows but the data have 12"):
        window_scores(Z, D[:5, :5])
    with pytest.raises(DataMismatch, match="2 weights"):
        window_scores(Z, D, weights=[1, 2])


def test_pair_correlations_with_gaps_on_both_sides():
    rng = np.random.default_rng(14)
    models, distances = rng.normal(size=(4, 30)) + 5, rng.normal(size=(30, 5)) * 100
    models[rng.random(models.shape) < 0.3] = np.nan
    distances[rng.random(distances.shape) < 0.3] = np.nan
    distances[:, 4] = 0.1  # constant
    for comparison in ("pearson", "cosine"):
        found = pair_correlations(models, distances, comparison)
        for p in range(4):
            for f in range(4):
                has = np.isfinite(models[p]) & np.isfinite(distances[:, f])
                a, b = models[p, has], distances[has, f]
                expected = np.corrcoef(a, b)[0, 1] if comparison == "pearson" else a @ b / np.sqrt(a @ a * (b @ b))
                np.testing.assert_allclose(found[p, f], expected, rtol=1e-10)
    assert np.isnan(pair_correlations(models, distances)[:, 4]).all()


def test_whole_rdms_equal_the_same_distances_of_windows():
    Z, index = draw(17, T=6), np.stack([np.random.default_rng(18).permutation(12) for _ in range(3)])
    rdms = np.stack([squareform(pdist(Z[:, :, f].T, "sqeuclidean")) for f in range(7)])
    for comparison in ("pearson", "cosine", "whitened"):
        for rows in (None, index):
            found = rdm_scores(rdms, model(19), comparison, rows)
            np.testing.assert_allclose(found, window_scores(list(Z), model(19), comparison=comparison, index=rows))
    rdms[0, 1, 2] = rdms[0, 2, 1] = np.nan
    assert np.isnan(rdm_scores(rdms, model(19), "whitened")).tolist() == [True] + [False] * 6
    with pytest.raises(InvalidInput, match="needs all pairs"):
        rdm_scores(rdms, discriminative_rdm(LABELS, "a"), "whitened")


# What went wrong in exploratory work, each as a case in which it would show.


def coherent(seed, n=10, T=8):
    """One feature: trials of class a share a time course, those of b have their own each."""
    rng = np.random.default_rng(seed)
    course = rng.normal(size=T)
    a = course + 0.5 * rng.normal(size=(n, T))
    return np.vstack([a, rng.normal(size=(n, T))]), np.repeat(["a", "b"], n)


def truncated_t(pattern, labels):
    """The exploratory score: arctanh of 1 − r, pairs with r ≤ 0 dropped, within class a against across."""
    z = np.arctanh(1 - np.clip(np.corrcoef(pattern), -0.999, 0.999) + 0j)
    z = np.where(np.abs(z.imag) < 1e-9, z.real, np.nan)
    a = labels == "a"
    within, across = z[np.ix_(a, a)][np.triu_indices(a.sum(), 1)], z[np.ix_(a, ~a)].ravel()
    return within, across


def test_coherent_classes_score_positive():
    pattern, labels = coherent(0)
    within, across = truncated_t(pattern, labels)
    assert stats.ttest_ind(within[np.isfinite(within)], across[np.isfinite(across)])[0] < -3  # the sign was inverted
    Z = list(pattern.T[:, :, None])
    for D in (discriminative_rdm(labels, "a"), coherence_rdm(labels, "a")):
        assert window_scores(Z, D, distance="correlation")[0] > 0.5
    assert window_scores(Z, coherence_rdm(labels, "b"), distance="correlation")[0] < -0.5


def test_no_pair_is_dropped_where_correlations_are_negative():
    pattern, labels = coherent(1)
    pattern[labels == "b"] = -pattern[:10]  # across classes every correlation is negative: the strongest evidence
    _, across = truncated_t(pattern, labels)
    assert np.isnan(across).mean() > 0.9  # which was dropped
    D = discriminative_rdm(labels, "a")
    score = window_scores(list(pattern.T[:, :, None]), D, distance="correlation")[0]
    distances = 1 - np.corrcoef(pattern)
    kept = ~np.isnan(pair_vectors(D))
    assert kept.sum() == 145
    expected = np.corrcoef(pair_vectors(distances)[kept], pair_vectors(D)[kept])[0, 1]
    assert score == pytest.approx(expected) and score > 0.9


def test_one_silent_trial_does_not_silence_the_feature():
    pattern, labels = coherent(2)
    pattern[0] = 0  # then the exploratory score of the whole feature was 0
    Z, D = list(pattern.T[:, :, None]), discriminative_rdm(labels, "a")
    score = window_scores(Z, D, distance="correlation")[0]
    without = window_scores([z[1:] for z in Z], D[1:, 1:], distance="correlation")[0]
    assert undefined_rows(Z).tolist() == [1]
    assert score == pytest.approx(without) and score > 0.4


def test_equal_features_get_equal_scores():
    Z = np.repeat(draw(15, V=1), 4, axis=2)
    scores = window_scores(list(Z), model(16))
    assert np.ptp(scores) == 0  # an order among them would be that of their numbers
