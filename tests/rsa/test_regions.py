"""RDMs of regions, against rsatoolbox, scipy and plain loops."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.spatial.distance import pdist

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.regions import region_rdms

rsatoolbox = pytest.importorskip("rsatoolbox")

N_CONDITIONS, N_REPEATS, N_FEATURES = 7, 3, 40
EVERYTHING = {"layer": slice(None)}


@pytest.fixture
def trials():
    """Conditions × repeats in a random order, as a trial table."""
    rng = np.random.default_rng(1)
    order = rng.permutation(N_CONDITIONS * N_REPEATS)
    obs = pd.DataFrame(
        {
            "condition": [f"c{row // N_REPEATS}" for row in order],
            "template": [f"t{row % N_REPEATS}" for row in order],
            "size": [row // N_REPEATS * 0.5 for row in order],
        }
    )
    X = rng.normal(size=(len(obs), N_FEATURES)) * (rng.random((len(obs), N_FEATURES)) < 0.6)
    return X, obs


def reference(X, obs, method, columns=slice(None), **options):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    with np.errstate(invalid="ignore"):
        data = Dataset(X[:, columns], obs_descriptors={name: obs[name].to_numpy() for name in obs})
        return calc_rdm(data, method, descriptor="condition", **options).dissimilarities[0]


KINDS = {
    "ndarray": lambda X: X,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_array,
    "coo": sparse.coo_array,
    "torch": torch.as_tensor,
}


@pytest.mark.parametrize("kind", [*KINDS, "memmap"])
@pytest.mark.parametrize("distance", ["squared", "correlation", "crossvalidated"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rsatoolbox casts NaN to int
def test_equals_rsatoolbox(trials, distance, kind, tmp_path):
    X, obs = trials
    if kind == "memmap":
        array = np.memmap(tmp_path / "X.bin", np.float64, "w+", shape=X.shape)
        array[:] = X
    else:
        array = KINDS[kind](X)
    columns = [3, 30, 7, 8, 9, 25]
    repeat = "template" if distance == "crossvalidated" else None
    regions = {"layer": slice(None), "few": columns, "mask": np.isin(np.arange(N_FEATURES), columns)}
    rdms = region_rdms(array, obs, regions, condition="condition", repeat=repeat, distance=distance)
    method = {"squared": "euclidean", "correlation": "correlation", "crossvalidated": "crossnobis"}[distance]
    options = {"cv_descriptor": "template"} if repeat else {}
    np.testing.assert_allclose(rdms.dissimilarities[0], reference(X, obs, method, **options), rtol=1e-10, atol=1e-13)
    few = reference(X, obs, method, sorted(columns), **options)
    np.testing.assert_allclose(rdms.dissimilarities[1:], [few, few], rtol=1e-10, atol=1e-13)
    assert list(rdms.rdm_descriptors["name"]) == ["layer", "few", "mask"]
    assert list(rdms.rdm_descriptors["n_features"]) == [40, 6, 6]


@pytest.mark.parametrize("density", [0.03, 1.0])
@pytest.mark.parametrize(("distance", "metric"), [("cosine", "cosine"), ("correlation", "correlation")])
def test_equals_scipy_for_wide_sparse_and_dense_patterns(distance, metric, density):
    rng = np.random.default_rng(2)
    X = rng.gamma(1, 2, (12, 5000)) * (rng.random((12, 5000)) < density)
    for array in (X, sparse.csr_array(X)):
        found = region_rdms(array, list("abcdefghijkl"), EVERYTHING, distance=distance).dissimilarities[0]
        np.testing.assert_allclose(found, pdist(X, metric), rtol=1e-10)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_small_distances_between_large_patterns(make):
    """The form a + b − 2ab of rsatoolbox gives 0 where the distance is 0.5."""
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    X = np.array([[1e8, 1e8], [1e8 + 1, 1e8], [1e8, 1e8]])
    assert calc_rdm(Dataset(X)).dissimilarities[0, 0] != 0.5
    found = region_rdms(make(X), ["a", "b", "c"], EVERYTHING).dissimilarities[0]
    np.testing.assert_array_equal(found, [0.5, 0, 0.5])
    # One huge pattern moves the centre away from all others, which stay as close to each other as they are.
    X = np.vstack([np.random.default_rng(0).normal(size=(5, 300)), np.full(300, 1e9)])
    found = region_rdms(make(X), list("abcdef"), EVERYTHING).dissimilarities[0]
    np.testing.assert_allclose(found, pdist(X, "sqeuclidean") / 300, rtol=1e-12)


def test_correlations_of_sparse_patterns_on_a_large_offset():
    """A sparse product would lose the variance of the row that is nearly constant."""
    rng = np.random.default_rng(3)
    X = np.zeros((40, 3000))
    X[0] = 1e7 + rng.normal(size=3000)
    X[1:] = rng.random((39, 3000)) * (rng.random((39, 3000)) < 0.02)
    found = region_rdms(sparse.csc_array(X), list(range(40)), EVERYTHING, distance="correlation")
    np.testing.assert_allclose(found.dissimilarities[0], pdist(X, "correlation"), atol=1e-9)


def test_features_add_up(trials):
    X, obs = trials
    regions = {"layer": slice(None), "left": range(15), "right": range(15, 40)}
    rdms = region_rdms(
        X, obs, {k: np.array(v) if k != "layer" else v for k, v in regions.items()}, condition="condition"
    )
    sums = rdms.dissimilarities * np.array(rdms.rdm_descriptors["n_features"])[:, None]
    np.testing.assert_allclose(sums[0], sums[1] + sums[2], rtol=1e-12)
    single = region_rdms(X, obs, {str(f): [f] for f in range(N_FEATURES)}, condition="condition").dissimilarities
    np.testing.assert_allclose(single.sum(axis=0), sums[0], rtol=1e-12)
    every = region_rdms(X, obs, {"all": np.arange(N_FEATURES)}, condition="condition")
    np.testing.assert_array_equal(every.dissimilarities[0], rdms.dissimilarities[0])


def test_constant_patterns_are_undefined_and_named(caplog):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(6, 9))
    X[1], X[4] = 0.1, 0.0
    with caplog.at_level(logging.WARNING, "neurollm"):
        found = region_rdms(X, list("pqrstu"), EVERYTHING, distance="correlation")
    assert "2 of 6 conditions is constant" in caplog.text and "'q', 't'" in caplog.text
    matrix = found.get_matrices()[0]
    assert np.isnan(matrix[1, [0, 2, 3, 4, 5]]).all() and np.isnan(matrix[4, [0, 1, 2, 3, 5]]).all()
    rest = [0, 2, 3, 5]
    np.testing.assert_allclose(matrix[np.ix_(rest, rest)], np.corrcoef(X[rest]) * -1 + 1, atol=1e-14)
    cosine = region_rdms(sparse.csr_array(X), list("pqrstu"), EVERYTHING, distance="cosine").get_matrices()[0]
    assert np.isnan(cosine[4, :4]).all() and np.isfinite(cosine[1, [0, 2, 3, 5]]).all()


def test_averages_of_equal_trials_are_constant(caplog):
    """The mean of three times 0.1 is not 0.1 to the last digit."""
    X = np.vstack([np.full((3, 8), 0.1), np.random.default_rng(0).normal(size=(6, 8))])
    X[0, ::2], X[1, ::2], X[2, ::2] = 0.3, 0.0, 0.0
    found = region_rdms(X, ["a"] * 3 + ["b"] * 3 + ["c"] * 3, EVERYTHING, distance="correlation").dissimilarities[0]
    assert np.isnan(found[:2]).all() and np.isfinite(found[2])


def test_crossvalidated_distance_of_equal_conditions_is_zero_on_average():
    rng = np.random.default_rng(5)
    obs = pd.DataFrame({"condition": np.repeat([0, 1, 2], 4), "run": np.tile(range(4), 3)})
    signal = np.repeat([[0.0], [0.0], [0.5]], 4, axis=0)
    X = rng.normal(size=(12, 20_000)) + signal
    crossed = region_rdms(X, obs, EVERYTHING, condition="condition", repeat="run", distance="crossvalidated")
    plain = region_rdms(X, obs, EVERYTHING, condition="condition").dissimilarities[0]
    np.testing.assert_allclose(crossed.dissimilarities[0], [0, 0.25, 0.25], atol=0.03)
    assert (plain > crossed.dissimilarities[0] + 0.4).all()  # 2/4 of noise variance


def test_repeats_weigh_the_same_whatever_their_trials(trials):
    X, obs = trials
    twice = obs["template"] == "t0"
    more = pd.concat([obs, obs[twice]], ignore_index=True)
    options = {"condition": "condition", "repeat": "template", "distance": "crossvalidated"}
    once = region_rdms(X, obs, EVERYTHING, **options).dissimilarities
    again = region_rdms(np.vstack([X, X[twice]]), more, EVERYTHING, **options).dissimilarities
    np.testing.assert_allclose(again, once, atol=1e-13)


def test_descriptors_of_conditions_survive():
    obs = pd.DataFrame(
        {
            "condition": ["höhe", "größe", "höhe", "最大"],
            "prompt": ["wie hoch\n?", None, "wie hoch\n?", "😀\x00"],
            "trial": [1, 2, 3, 4],
            "size": [1.5, 2.5, 1.5, np.nan],
        }
    )
    rdms = region_rdms(np.eye(4), obs, EVERYTHING, condition="condition", descriptors={"model": "gpt2"})
    assert rdms.pattern_descriptors["condition"].tolist() == sorted({"höhe", "größe", "最大"})
    assert rdms.pattern_descriptors["prompt"] == [None, "wie hoch\n?", "😀\x00"]
    assert rdms.pattern_descriptors["size"] == [2.5, 1.5, None]
    assert "trial" not in rdms.pattern_descriptors  # differs within a condition
    assert rdms.descriptors == {"model": "gpt2"}
    every = region_rdms(np.eye(4), obs, EVERYTHING)
    assert every.n_cond == 4 and list(every.pattern_descriptors["trial"]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"distance": "euclid"}, "distance is 'euclid'"),
        ({"distance": "poisson_cv"}, "distance is 'poisson_cv'"),
        ({"distance": "crossvalidated"}, "needs repeat"),
        ({"repeat": "template"}, "needs repeat"),
        ({"condition": "conditon"}, "did you mean 'condition'"),
        ({"regions": {}}, "at least one name"),
        ({"regions": {"r": []}}, "no features"),
        ({"regions": {"r": [0, 0]}}, "more than once"),
        ({"regions": {"r": [-1]}}, "outside"),
        ({"regions": {"r": [40]}}, "outside"),
        ({"regions": {"r": [0.5]}}, "column numbers"),
        ({"regions": {"r": np.ones(3, bool)}}, "mask of length 40"),
        ({"regions": {"r": [3]}, "distance": "correlation"}, "single feature"),
    ],
)
def test_wrong_arguments_are_told(trials, change, sentence):
    X, obs = trials
    arguments = {"regions": EVERYTHING, "condition": "condition"} | change
    with pytest.raises(InvalidInput, match=sentence):
        region_rdms(X, obs, **arguments)


def test_wrong_data_are_told(trials):
    X, obs = trials
    with pytest.raises(DataMismatch, match="20 rows but there are 21 trials"):
        region_rdms(X[:20], obs, EVERYTHING, condition="condition")
    bad = X.copy()
    bad[3, 5] = np.nan
    bad[4, 6] = np.inf
    for array in (bad, sparse.csc_array(bad)):
        for distance in ("squared", "correlation"):
            with pytest.raises(DataMismatch, match="2 of 40 features hold numbers that are not finite"):
                region_rdms(array, obs, EVERYTHING, condition="condition", distance=distance)
    region_rdms(bad, obs, {"fine": [0, 1]}, condition="condition")
    with np.errstate(over="ignore"), pytest.raises(DataMismatch, match="too large"):
        region_rdms(X * 1e200, obs, EVERYTHING, condition="condition")
    lacking = (obs["condition"] != "c3") | (obs["template"] != "t1")
    with pytest.raises(InvalidInput, match="'t1' lacks 1 of 7"):
        region_rdms(
            X[lacking], obs[lacking], EVERYTHING, condition="condition", repeat="template", distance="crossvalidated"
        )
    obs.loc[2, "condition"] = None
    with pytest.raises(InvalidInput, match="1 of 21 trials have no condition"):
        region_rdms(X, obs, EVERYTHING, condition="condition")


def test_the_activations_are_only_read(trials):
    X, obs = trials
    before = X.copy()
    X.flags.writeable = False
    for distance in ("squared", "correlation", "cosine"):
        region_rdms(X, obs, EVERYTHING, condition="condition", distance=distance)
    np.testing.assert_array_equal(X, before)
