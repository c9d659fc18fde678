"""The searchlight in designs: identities, a planted cluster, noise, and what is refused."""

import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.rsa import FeatureRSA, ModelRDM
from neurollm.rsa.searchlight import Searchlight

WITHIN = CategoricalDesign("outcome")


def trials(n_items=12, n_features=60, seed=0, conditions=("won", "lost"), within=True):
    rng = stream(seed, "searchlight_test")
    item = np.repeat(np.arange(n_items), len(conditions)) if within else np.arange(n_items)
    obs = pd.DataFrame({"item": item, "outcome": np.resize(conditions, item.size)})
    obs["text"] = obs["outcome"] + obs["item"].astype(str)
    return rng.normal(size=(item.size, n_features)), obs, rng.normal(size=(n_features, 10))


@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
def test_alone_every_centre_is_its_feature_and_together_all_are_the_layer(comparison):
    X, obs, w = trials()
    features = FeatureRSA(WITHIN, comparison=comparison, n_perm=0, min_active=0).fit(X, obs).result_.maps[0]
    alone = Searchlight(WITHIN, k=0, comparison=comparison, n_perm=0).fit(X, obs, w).result_
    np.testing.assert_allclose(alone.r, features.r, rtol=1e-9)
    assert (alone.n_members == 1).all() and alone.n_perm == 0 and "without a test" in alone.verdict()
    layer = Searchlight(WITHIN, k=59, comparison=comparison, n_perm=0, standardise=False).fit(X, obs, w).result_
    np.testing.assert_allclose(layer.r, features.layer_r, rtol=1e-9)
    if comparison == "whitened":
        assert alone.ceiling == pytest.approx(features.ceiling)


def test_alone_the_test_is_that_of_the_features():
    X, obs, w = trials(within=False, n_items=20)
    X[::2, 4] += 3
    alone = Searchlight(WITHIN, k=0, n_perm=300, alternative="greater").fit(X, obs, w).result_
    features = FeatureRSA(WITHIN, n_perm=300, alternative="greater").fit(X, obs).result_.maps[0]
    for name in ("z", "p", "p_fwer", "q", "null_max"):
        np.testing.assert_allclose(getattr(alone, name), getattr(features, name), rtol=1e-6)
    assert alone.p_fwer.argmin() == features.p_fwer.argmin() == 4
    assert alone.smallest_p == pytest.approx(1 / 301) and alone.exchange == features.exchange


def test_a_planted_cluster_is_found_in_dense_and_sparse_trials_alike():
    X, obs, w = trials(n_features=300)
    w[40:50] = w[40] + 0.1 * w[40:50]
    X[::2, 40:50] += 1.0  # too little for one feature alone
    light = Searchlight(WITHIN, k=9, n_perm=500, alternative="greater").fit(X, obs, w)
    found = light.result_.valid & (light.result_.p_fwer <= 0.05)
    planted = np.isin(np.arange(300), np.arange(40, 50))
    dice = 2 * (found & planted).sum() / (found.sum() + planted.sum())
    assert dice > 0.8
    alone = Searchlight(WITHIN, k=0, n_perm=500, alternative="greater").fit(X, obs, w).result_
    assert (alone.p_fwer <= 0.05)[planted].sum() < found[planted].sum()
    again = Searchlight(WITHIN, k=9, n_perm=500, alternative="greater").fit(sparse.csr_array(X), obs, w)
    for name in ("r", "z", "p", "p_fwer", "q", "n_members", "valid"):
        np.testing.assert_allclose(light.to_frame()[name], again.to_frame()[name], rtol=1e-7, atol=1e-12)
    verdict = light.result_.verdict()
    assert f"categorical: {found.sum()} of 300 neighbourhoods (up to 10 features each) follow the model at" in verdict
    assert "500 random shufflings of 12 items, smallest p possible 0.002; largest around feature 4" in verdict


def test_what_runs_against_the_model_is_not_said_to_follow_it():
    X, obs, _ = trials(n_items=24, n_features=8, within=False)
    late = np.arange(24) // 12
    model = ModelRDM("mixed", 1.0 * (late[:, None] == late) * (1 - np.eye(24)))  # says that halves are unlike inside
    X[:12, 0] += 6
    X[:, 1] = np.where(np.arange(24) % 2, 1, -1)
    model.matrix[:] += 3.0 * (X[:, 1, None] != X[:, 1])
    result = Searchlight(WITHIN, model, k=0, n_perm=500).fit(X, obs, np.eye(8)).result_
    assert np.flatnonzero(result.p_fwer <= 0.05).tolist() == [0, 1] and result.r[0] < 0 < result.r[1]
    assert "1 of 8 neighbourhoods (up to 1 features each) follow the model and 1 run against it at" in result.verdict()


def test_few_shufflings_and_dropped_items_are_told():
    X, obs, w = trials(n_items=4)
    with pytest.warns(UserWarning, match="RSA: 16 shufflings are used, so no p is below 0.062") as caught:
        Searchlight(WITHIN, n_perm=100).fit(X, obs, w)
    assert caught[0].filename == __file__
    X, obs, w = trials(n_items=12)
    obs = obs.iloc[:-1]
    for n_perm in (0, 30):
        verdict = Searchlight(WITHIN, n_perm=n_perm).fit(X[:-1], obs, w).result_.verdict()
        assert "; 1 items without all conditions were left out)" in verdict


def test_why_nothing_could_be_tested():
    X, obs, w = trials()
    rare = "no feature varies, is active in at least 5 of 24 rows, and has a direction or neighbourhood"
    same = X[::2].repeat(2, axis=0)  # conditions of an item are alike, so no exchange changes anything
    for values, ways, why in (
        (X * 0, w, rare),
        (X[:, :0], w[:0], "there are no features"),
        (same, w, "no arrangement"),
    ):
        assert f"could be tested: {why}" in Searchlight(WITHIN, n_perm=20).fit(values, obs, ways).result_.verdict()


@pytest.mark.parametrize("make", ["grad", "bfloat16", "float16", "list"])
def test_directions_of_any_kind(make):
    torch = pytest.importorskip("torch")
    X, obs, w = trials()
    w = np.round(4 * w) / 4  # exact in every precision
    given = {
        "grad": lambda: torch.tensor(w, requires_grad=True),
        "bfloat16": lambda: torch.tensor(w).bfloat16(),
        "float16": lambda: w.astype(np.float16),
        "list": w.tolist,
    }[make]()
    plain = Searchlight(WITHIN, k=3, n_perm=0).fit(X, obs, w).result_
    found = Searchlight(WITHIN, k=3, n_perm=0).fit(X, obs, given).result_
    np.testing.assert_array_equal(found.members.toarray().sum(axis=1), plain.members.toarray().sum(axis=1))
    assert (found.members != plain.members).nnz <= 4  # neighbours with equal cosines


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_the_scale_of_the_data_decides_nothing(factor):
    X, obs, w = trials()
    for standardise in (True, False):
        light = Searchlight(WITHIN, k=3, n_perm=30, standardise=standardise)
        plain, far = light.fit(X, obs, w).to_frame(), light.fit(X * factor, obs, w).to_frame()
        pd.testing.assert_frame_equal(plain, far, rtol=1e-7)


@pytest.mark.parametrize("within", [True, False])
def test_family_wise_error_on_noise(within):
    smallest = []
    for seed in range(60):
        X, obs, w = trials(n_items=8 if within else 14, n_features=40, seed=seed + 1, within=within)
        X = np.exp(X) * (X > 0)  # heavy tails and zeros
        found = Searchlight(WITHIN, k=4, n_perm=99, min_active=3, random_state=seed).fit(X, obs, w).result_
        smallest.append(np.nanmin(found.p_fwer))
    rejected = np.mean(np.array(smallest) <= 0.1)
    assert rejected <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 60)
    assert stats.kstest(smallest, "uniform", alternative="greater").pvalue > 0.001  # not too small
    assert np.mean(smallest) < 0.8  # nor stuck at 1


def test_rare_and_constant_features_are_neither_centres_nor_neighbours():
    X, obs, w = trials(n_features=30)
    X[:, 2] = 3.0
    X[4:, 5] = 0.0
    X[3, 6] = np.nan
    w[7] = 0
    out = [2, 5, 6, 7]
    result = Searchlight(WITHIN, k=3, n_perm=20).fit(X, obs, w).result_
    assert np.flatnonzero(~result.valid).tolist() == out and np.isnan(result.r[out]).all()
    assert (np.delete(result.n_members, out) == 4).all() and (result.n_members[out] == 0).all()
    assert not result.members[:, out].sum() and not result.members[out].sum()
    keep = np.setdiff1d(np.arange(30), out)
    alone = Searchlight(WITHIN, k=3, n_perm=20).fit(X[:, keep], obs, w[keep], features=keep).to_frame()
    pd.testing.assert_frame_equal(result.to_frame().iloc[keep].reset_index(drop=True), alone)


def test_nothing_to_test_is_said_and_no_error():
    X, obs, w = trials()
    for values, ways in ((X * 0, w), (X, w * 0), (X[:, :0], w[:0])):
        result = Searchlight(WITHIN, n_perm=20).fit(values, obs, ways).result_
        assert "neighbourhoods could be tested" in result.verdict() and not result.valid.any()
        assert result.null_max.size == 0 and len(result.to_frame()) == values.shape[1]


def test_neighbourhoods_of_your_own():
    X, obs, _ = trials(n_features=20)
    X[:, 3] = 1.0
    graph = sparse.csr_array(np.kron(np.eye(4), np.ones((5, 5))))
    result = Searchlight(WITHIN, n_perm=20).fit(X, obs, graph).result_
    blocks = result.r.reshape(4, 5)
    assert np.isnan(blocks[0, 3]) and np.isfinite(blocks).sum() == 19
    for block in blocks:
        np.testing.assert_allclose(block[np.isfinite(block)], np.nanmean(block))
    assert result.n_members.tolist() == [4, 4, 4, 0, 4] + [5] * 15


def test_an_interaction_is_not_made_of_main_effects():
    rng = stream(0, "searchlight_interaction")
    cells = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    obs = pd.DataFrame([(item, *cell) for item in range(10) for cell in cells], columns=["item", "one", "two"])
    X, w = rng.normal(size=(40, 30)), rng.normal(size=(30, 6))
    main = (obs["one"] == "a").to_numpy() + (obs["two"] == "x").to_numpy() * 1.0
    crossed = ((obs["one"] == "a") == (obs["two"] == "x")).to_numpy()
    w[:10] = w[0] + 0.05 * w[:10]
    w[10:20] = w[10] + 0.05 * w[10:20]
    X[:, :10] += 3 * main[:, None]
    X[:, 10:20] += 1.5 * crossed[:, None]
    design = FactorialDesign({"one": ("a", "b"), "two": ("x", "y")})
    result = Searchlight(design, model="one:two", k=6, n_perm=300, alternative="greater").fit(X, obs, w).result_
    assert (result.p_fwer[10:20] <= 0.05).all() and (result.p_fwer[:10] > 0.05).all()


def test_anndata_and_a_model_of_your_own():
    X, obs, w = trials()
    D = 1.0 - (np.array(obs["outcome"])[:, None] == np.array(obs["outcome"]))
    model = ModelRDM("mine", D)
    given = Searchlight(WITHIN, model=model, n_perm=50).fit(X, obs, w).result_
    named = Searchlight(WITHIN, n_perm=50).fit(X, obs, w).result_
    np.testing.assert_allclose(given.r, named.r, rtol=1e-9)
    assert given.model == "mine"
    var = pd.DataFrame({"feature": np.arange(60) + 100}, index=np.arange(60).astype(str))
    data = anndata.AnnData(X, obs.set_axis(obs.index.astype(str)), var)
    found = Searchlight(WITHIN, n_perm=50).fit(data, None, w).to_frame()
    np.testing.assert_allclose(found["r"], named.r)
    assert found["feature"][0] == 100


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"k": -1}, InvalidInput, "k must be a whole number of at least 0, found -1"),
        ({"n_perm": 1.5}, InvalidInput, "n_perm must be a whole number of at least 0, found 1.5"),
        ({"alternative": "more"}, InvalidInput, "alternative is 'more'; it must be 'two-sided', 'greater' or 'less'"),
        ({"comparison": "cosine"}, InvalidInput, "comparison is 'cosine'; it must be 'pearson' or 'whitened'"),
        ({"scale": "sqrt"}, InvalidInput, "scale is 'sqrt'; it is one of"),
        ({"scale": "rank"}, InvalidInput, "scale is 'rank'; it is one of 'raw', 'log1p', 'binary'"),
        ({"directions": [[1.0], [1.0, 2.0]]}, InvalidInput, "directions must be a table of numbers"),
        ({"directions": None}, DataMismatch, "directions have shape ()"),
        ({"model": "discriminative:won"}, InvalidInput, "leaves out"),
        ({"model": "effect"}, InvalidInput, "there is no model 'effect'"),
        ({"directions": np.zeros((3, 2))}, DataMismatch, "directions have shape (3, 2); expected (60, d)"),
        ({"directions": sparse.eye_array(3)}, DataMismatch, "directions have shape (3, 3); expected (60, 60)"),
        ({"obs": None}, InvalidInput, "expected a trial table with one row per trial, found NoneType"),
        ({"features": [1, 2]}, DataMismatch, "2 feature ids were given for 60 columns"),
    ],
)
def test_what_is_refused(change, kind, sentence):
    X, obs, w = trials()
    given = {"obs": obs, "directions": w, "features": None}
    data = {name: change.pop(name, value) for name, value in given.items()} if change.keys() & given else given
    options = {name: value for name, value in change.items() if name not in given}
    with pytest.raises(kind, match=re.escape(sentence)):
        Searchlight(WITHIN, **{"n_perm": 20, **options}).fit(X, **data)
    with pytest.raises(InvalidInput, match="call fit first"):
        Searchlight(WITHIN).to_frame()
