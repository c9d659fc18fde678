"""The estimator: rows, models, exchange, results."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neurollm.designs import CategoricalDesign, DiscriminativeDesign, FactorialDesign, FormulaDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa import FeatureRSA, ModelRDM, RSAResult
from neurollm.stats.rdms import categorical_rdm, discriminative_rdm, numeric_rdm, rsa_scores

COLUMNS = ["feature", "model", "r", "r_over_ceiling", "z", "p", "p_fwer", "q", "n_active", "valid"]


def paired(n_items=20, V=30, seed=0, planted=()):
    """Every item in both outcomes."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"outcome": ["success", "failure"] * n_items, "item": np.repeat(np.arange(n_items), 2)})
    obs["text"] = [f"text {i} {outcome}" for i, outcome in enumerate(obs["outcome"])]
    X = rng.normal(size=(2 * n_items, V))
    for feature in planted:
        X[::2, feature] += 4
    return X, obs


def unpaired(n_items=24, V=30, seed=0, levels=("joy", "fear", "anger")):
    """Every item in one condition."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"emotion": [levels[i % len(levels)] for i in range(n_items)], "item": np.arange(n_items)})
    obs["text"] = [f"text {i}" for i in range(n_items)]
    return rng.normal(size=(n_items, V)), obs


def test_the_frame_has_one_row_per_feature_and_model():
    X, obs = paired(planted=(3,))
    rsa = FeatureRSA(
        CategoricalDesign("outcome"), models=("categorical", "discriminative"), n_perm=200, random_state=0
    ).fit(X, obs)
    frame = rsa.to_frame()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 60
    assert frame.loc[frame["p_fwer"] <= 0.05, "feature"].tolist() == [3, 3]
    np.testing.assert_allclose(frame["r_over_ceiling"], frame["r"], rtol=1e-4)  # two classes can be followed perfectly
    assert frame["p"].min() >= 1 / 201
    assert rsa.result_["categorical"].smallest_p == pytest.approx(1 / 201)
    assert (frame["valid"]).all()


def test_scores_are_those_of_the_rdm_of_the_item_means():
    X, obs = paired(6, 8)
    obs = pd.concat([obs.assign(template="a"), obs.assign(template="b")], ignore_index=True)
    X = np.vstack([X, X + np.random.default_rng(1).normal(size=X.shape)])
    design = CategoricalDesign("outcome", template="template")
    rsa = FeatureRSA(design, models=("categorical", "coherence:success"), n_perm=0).fit(sparse.csr_array(X), obs)
    means = pd.DataFrame(X).groupby([obs["item"], obs["outcome"]]).mean()
    labels = means.index.get_level_values("outcome")
    np.testing.assert_allclose(
        rsa.result_["categorical"].r, rsa_scores(means.to_numpy(), categorical_rdm(labels)), rtol=1e-10
    )
    assert np.isnan(rsa.result_["categorical"].p).all()


def test_planted_within_class_coherence_gives_a_positive_discriminative_score():
    """The sign: successes are alike, failures are spread out; distances within the target are small."""
    X, obs = paired(20, 10, seed=2)
    X[obs["outcome"] == "success", 4] *= 0.1
    design = DiscriminativeDesign("outcome", "success")
    rsa = FeatureRSA(design, ("discriminative", "coherence"), n_perm=500).fit(X, obs)
    for model in ("discriminative", "coherence"):
        one = rsa.result_[model]
        assert one.r[4] > 0.2 and one.p_fwer[4] <= 0.05
    other = FeatureRSA(DiscriminativeDesign("outcome", "failure"), ("coherence",), n_perm=500).fit(X, obs)
    assert other.result_["coherence"].r[4] < -0.2


def test_default_target_is_the_first_level():
    X, obs = unpaired()
    rsa = FeatureRSA(CategoricalDesign("emotion"), ("discriminative", "discriminative:joy"), n_perm=0).fit(X, obs)
    labels = obs["emotion"].to_numpy()
    np.testing.assert_allclose(rsa.result_["discriminative"].r, rsa_scores(X, discriminative_rdm(labels, "anger")))
    np.testing.assert_allclose(rsa.result_["discriminative:joy"].r, rsa_scores(X, discriminative_rdm(labels, "joy")))


def test_labels_alone_are_enough():
    X, obs = unpaired()
    rsa = FeatureRSA(n_perm=50).fit(X, obs["emotion"])
    np.testing.assert_allclose(rsa.result_["categorical"].r, rsa_scores(X, categorical_rdm(obs["emotion"])))


def test_anndata_brings_its_own_table():
    X, obs = paired(planted=(2,))
    obs.index = obs.index.astype(str)
    trials = anndata.AnnData(X=sparse.csr_matrix(X), obs=obs, var=pd.DataFrame({"feature": np.arange(100, 130)}))
    rsa = FeatureRSA(CategoricalDesign("outcome"), n_perm=100).fit(trials)
    assert rsa.to_frame().nsmallest(1, "p_fwer")["feature"].item() == 102


def test_numbers_words_and_lengths_are_models():
    X, obs = unpaired(12, 5)
    obs["age"] = np.arange(12) ** 1.5
    obs["text"] = [("word " * (i % 4 + 1)).strip() + f" {'ab'[i % 2]}" for i in range(12)]
    models = ("numeric:age", "length", "lexical", "categorical:emotion", "item")
    rsa = FeatureRSA(CategoricalDesign("emotion"), models[:-1], n_perm=50).fit(X, obs)
    by_name = {model.name: model.matrix for model in rsa.models_}
    order = np.argsort(obs["item"].astype(str), kind="stable")  # the table's order of items
    np.testing.assert_allclose(by_name["numeric:age"], numeric_rdm(obs["age"].to_numpy()[order]))
    np.testing.assert_allclose(by_name["length"], numeric_rdm(np.array([i % 4 + 2 for i in range(12)])[order]))
    lexical = by_name["lexical"]
    first, second = np.flatnonzero(order == 0)[0], np.flatnonzero(order == 1)[0]
    assert lexical[first, second] == pytest.approx(1 - 1 / 3)  # {word, a} and {word, b}
    with pytest.raises(InvalidInput, match="no exchange tests the model 'item'"):
        FeatureRSA(CategoricalDesign("emotion"), ("item",)).fit(X, obs)
    with pytest.raises(InvalidInput, match="'length' gives all its pairs the same distance"):
        FeatureRSA(CategoricalDesign("emotion"), ("length",)).fit(X, obs.assign(text="two words"))


def test_an_own_model_is_over_trials_and_averaged_to_rows():
    X, obs = paired(6, 4)
    D = np.abs(np.subtract.outer(np.arange(12.0), np.arange(12.0)))
    rsa = FeatureRSA(CategoricalDesign("outcome"), [ModelRDM("order", D)], n_perm=60).fit(X, obs)
    np.testing.assert_allclose(rsa.result_["order"].r, rsa_scores(X, D), rtol=1e-10)
    assert "change places as wholes" in rsa.result_["order"].exchange
    with pytest.raises(DataMismatch, match="12 trials"):
        FeatureRSA(CategoricalDesign("outcome"), [ModelRDM("order", D[:5, :5])]).fit(X, obs)


def crossed(n_items=24, V=20, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        [(i, a, b) for i in range(n_items) for a in ("formal", "casual") for b in ("joy", "fear")],
        columns=["item", "register", "emotion"],
    )
    return rng.normal(size=(len(obs), V)), obs


def test_factorial_effects_find_their_own_features_and_no_others():
    X, obs = crossed()
    a, b = (obs["register"] == "formal").to_numpy() * 2 - 1, (obs["emotion"] == "joy").to_numpy() * 2 - 1
    X[:, 0] += 2 * a
    X[:, 1] += 2 * b
    X[:, 2] += 2 * a * b
    X[:, 3] += 2 * a + 2 * b  # additive: no interaction
    rsa = FeatureRSA(FactorialDesign(["register", "emotion"]), ("effects",), n_perm=500).fit(X, obs)
    found = {one.model: set(np.flatnonzero(one.p_fwer <= 0.05)) for one in rsa.result_.maps}
    assert found == {"register": {0, 3}, "emotion": {1, 3}, "register:emotion": {2}}


def test_a_main_effect_is_no_interaction():
    """Without double centring an additive feature would be significant in most data sets."""
    hits = []
    for seed in range(60):
        X, obs = crossed(10, 1, seed)
        X[:, 0] += 3 * (obs["register"] == "formal")
        rsa = FeatureRSA(FactorialDesign(["register", "emotion"]), ("register:emotion",), n_perm=99)
        hits.append(rsa.fit(X, obs).result_.maps[0].p[0] <= 0.05)
    assert np.mean(hits) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_factors_between_items_exchange_whole_items_within_the_other_factor():
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        [(f"{t}{i}", t, outcome) for t in ("war", "sport") for i in range(10) for outcome in ("won", "lost")],
        columns=["item", "topic", "outcome"],
    )
    X = rng.normal(size=(40, 12))
    X[:, 5] += 3 * (obs["topic"] == "war")
    X[:, 6] += 3 * (obs["outcome"] == "won")
    X[:, 7] += 2 * np.where(obs["topic"] == "war", 1, -1) * np.where(obs["outcome"] == "won", 1, -1)
    rsa = FeatureRSA(FactorialDesign(["topic", "outcome"]), ("effects",), n_perm=500).fit(X, obs)
    found = {one.model: set(np.flatnonzero(one.p_fwer <= 0.05)) for one in rsa.result_.maps}
    assert found == {"topic": {5}, "outcome": {6}, "topic:outcome": {7}}
    sentences = {one.model: one.exchange for one in rsa.result_.maps}
    assert "between the 20 items as wholes" in sentences["topic"] and "inside each" in sentences["outcome"]
    with pytest.raises(InvalidInput, match="test the effects by name"):
        FeatureRSA(FactorialDesign(["topic", "outcome"]), ("categorical",)).fit(X, obs)


def test_a_formula_is_a_model():
    X, obs = unpaired(16, 6)
    obs["age"] = np.arange(16.0) ** 2
    X[:, 2] = obs["age"] / 50
    rsa = FeatureRSA(FormulaDesign("age"), ("age",), n_perm=200).fit(X, obs)
    assert rsa.result_["age"].p_fwer[2] <= 0.05


def test_blocks_are_respected():
    X, obs = unpaired(16, 6, levels=("joy", "fear"))
    obs["block"] = np.repeat(["a", "b"], 8)
    rsa = FeatureRSA(CategoricalDesign("emotion", blocks="block"), n_perm=50).fit(X, obs)
    assert "inside each of 2 blocks" in rsa.result_.maps[0].exchange


def test_features_that_cannot_be_tested_are_counted_and_not_zero():
    X, obs = paired(10, 6)
    X[:, 0] = 0
    X[:, 1] = 7.0
    X[:, 2] = 0
    X[3, 2] = 1
    X[:, 3] = 0
    X[[1, 2, 3], 3] = 1
    rsa = FeatureRSA(CategoricalDesign("outcome"), n_perm=99, min_active=5).fit(X, obs)
    one = rsa.result_.maps[0]
    assert one.valid.tolist() == [False, False, False, False, True, True]
    assert np.isnan(one.r[:2]).all() and np.isnan(one.p[:4]).all() and np.isnan(one.q[:4]).all()
    assert one.n_active.tolist() == [0, 20, 1, 3, 20, 20]
    assert "4 were not tested" in rsa.result_.verdict()


def test_the_least_p_of_few_items_is_told():
    X, obs = paired(3, 4)
    with pytest.warns(UserWarning, match="no p is below"):
        rsa = FeatureRSA(CategoricalDesign("outcome"), n_perm=1000).fit(X, obs)
    one = rsa.result_.maps[0]
    assert (one.n_perm, one.exhaustive, one.smallest_p) == (8, True, 1 / 8)
    assert np.nanmin(one.p) >= 1 / 8
    assert "smallest p possible 0.12" in rsa.result_.verdict()


def test_shares_add_up_to_the_layer():
    X, obs = paired(8, 12)
    rsa = FeatureRSA(CategoricalDesign("outcome"), ("categorical", "discriminative"), n_perm=0).fit(X, obs)
    for model in ("categorical", "discriminative"):
        assert rsa.attribution(model)["share"].sum() == pytest.approx(rsa.result_[model].layer_r)


def test_partial_rsa_removes_what_a_nuisance_explains():
    X, obs = unpaired(30, 6)
    obs["age"] = np.arange(30.0)
    obs["size"] = obs["age"] + np.random.default_rng(3).normal(size=30)
    X[:, 1] = obs["size"]
    design = CategoricalDesign("emotion")
    plain = FeatureRSA(design, ("numeric:age",), n_perm=200).fit(X, obs).result_.maps[0]
    partial = FeatureRSA(design, ("numeric:age",), nuisance=("numeric:size",), n_perm=200).fit(X, obs).result_
    assert plain.r[1] > 0.8 and plain.p[1] <= 0.01
    assert partial.maps[0].r[1] < 0.5
    assert "held constant (approximate)" in partial.verdict()
    with pytest.raises(InvalidInput, match="need a model of all pairs"):
        FeatureRSA(design, ("discriminative",), nuisance=("length",)).fit(X, obs)


def test_a_saved_result_comes_back(tmp_path):
    X, obs = paired()
    X[:, 4] = 0
    obs["text"] = [f"text {'more ' * (i % 5)}" for i in range(len(obs))]
    rsa = FeatureRSA(CategoricalDesign("outcome"), ("categorical", "length"), n_perm=50, min_active=2)
    result = rsa.fit(X, obs).result_
    path = result.save(tmp_path)
    again = RSAResult.load(path)
    pd.testing.assert_frame_equal(again.to_frame(), result.to_frame())
    assert again.verdict() == result.verdict()
    np.testing.assert_array_equal(again["length"].null_max, result["length"].null_max)
    (tmp_path / "rsa.parquet").unlink()
    with pytest.raises(DataMismatch, match="is missing"):
        RSAResult.load(path)
    with pytest.raises(InvalidInput, match="no such file"):
        RSAResult.load(tmp_path / "other.json")


def test_the_same_seed_gives_the_same_numbers_whatever_the_threads():
    X, obs = paired()
    frames = [
        FeatureRSA(CategoricalDesign("outcome"), n_perm=99, random_state=5, n_jobs=jobs).fit(X, obs).to_frame()
        for jobs in (None, 2)
    ]
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"models": ("categorial",)}, "did you mean 'categorical'"),
        ({"models": ()}, "no model is given"),
        ({"models": ("categorical", "categorical")}, "more than once"),
        ({"models": ("discriminative:sucess",)}, "did you mean 'success'"),
        ({"models": ("numeric:text",)}, "does not hold numbers"),
        ({"models": ("numeric:nothing",)}, "no column 'nothing'"),
        ({"comparison": "sperman"}, "did you mean 'spearman'"),
        ({"alternative": "larger"}, "alternative is 'larger'"),
        ({"n_perm": -1}, "n_perm must be a whole number"),
        ({"scale": "rank"}, "scale is 'rank'"),
        ({"models": ("categorical",), "nuisance": ("categorical",)}, "held constant at once"),
        ({"models": 3}, "list of names or ModelRDM"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, problem):
    X, obs = paired(5, 3)
    with pytest.raises(InvalidInput, match=problem):
        FeatureRSA(CategoricalDesign("outcome"), **options).fit(X, obs)


def test_bad_data_are_refused_in_a_sentence():
    X, obs = paired(5, 3)
    design = CategoricalDesign("outcome")
    with pytest.raises(DataMismatch, match="10 rows"):
        FeatureRSA(design).fit(X[:9], obs)
    with pytest.raises(DataMismatch, match="2 feature ids"):
        FeatureRSA(design).fit(X, obs, features=[1, 2])
    with pytest.raises(InvalidInput, match="expected a trial table"):
        FeatureRSA(design).fit(X)
    with pytest.raises(InvalidInput, match="call fit first"):
        FeatureRSA(design).to_frame()
    with pytest.raises(InvalidInput, match=r"numeric:age"):
        FeatureRSA(CategoricalDesign("outcome", covariates=("age",))).fit(X, obs.assign(age=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixed = obs.drop(index=[0, 2, 4, 6])
        with pytest.raises(InvalidInput, match="item"):
            FeatureRSA(design).fit(X[mixed.index], mixed)


def worded(n_items=12, V=8, noise=1.0, seed=0):
    """Every item in both outcomes and three wordings."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        [(i, outcome, wording) for wording in "abc" for i in range(n_items) for outcome in ("won", "lost")],
        columns=["item", "outcome", "template"],
    )
    return noise * rng.normal(size=(len(obs), V)), obs.sample(frac=1, random_state=seed)


def test_crossvalidated_distances_multiply_wordings():
    from neurollm.stats.rdms import crossvalidated_scores

    X, obs = worded()
    X[obs["outcome"].to_numpy() == "won", 3] += 1.5
    design = CategoricalDesign("outcome", template="template")
    rsa = FeatureRSA(design, comparison="cosine", distance="crossvalidated", n_perm=200, alternative="greater")
    one = rsa.fit(sparse.csr_array(X), obs).result_.maps[0]
    frame = pd.DataFrame(X).assign(**obs.reset_index(drop=True))
    repeats = [frame[frame["template"] == w].sort_values(["item", "outcome"])[range(8)].to_numpy() for w in "abc"]
    # Items are sorted as text.
    order = np.argsort(np.repeat(np.arange(12).astype(str), 2), kind="stable")
    repeats = [part[order] for part in repeats]
    labels = np.tile(["lost", "won"], 12)
    np.testing.assert_allclose(one.r, crossvalidated_scores(repeats, categorical_rdm(labels)), rtol=1e-9)
    assert one.p_fwer[3] <= 0.05 and np.delete(one.r, 3).mean() < 0.1
    plain = FeatureRSA(design, comparison="cosine", n_perm=0).fit(X, obs).result_.maps[0]
    assert np.delete(plain.r, 3).min() > 0.3  # noise makes every squared distance positive


def test_crossvalidated_distances_need_wordings():
    X, obs = worded(4)
    design = CategoricalDesign("outcome", template="template")
    crossvalidated = {"comparison": "cosine", "distance": "crossvalidated", "n_perm": 20}
    with pytest.raises(InvalidInput, match="name the column of the wording"):
        FeatureRSA(CategoricalDesign("outcome"), **crossvalidated).fit(X, obs)
    with pytest.raises(InvalidInput, match="found one"):
        FeatureRSA(design, **crossvalidated).fit(X, obs.assign(template="a"))
    with pytest.raises(InvalidInput, match="compared by 'cosine'"):
        FeatureRSA(design, comparison="spearman", distance="crossvalidated").fit(X, obs)
    keep = ~((obs["template"] == "b") & (obs["item"] == 2) & (obs["outcome"] == "won")).to_numpy()
    with pytest.raises((DataMismatch, InvalidInput), match="2"):
        FeatureRSA(design, **crossvalidated).fit(X[keep], obs[keep])


def test_models_are_rounded_alike_however_trials_are_shared_out():
    """Means over unequal numbers of trials must not change what is exchanged."""
    _, obs = paired(8, 4)
    obs = obs.loc[obs.index.repeat(np.random.default_rng(0).integers(1, 8, len(obs)))].reset_index(drop=True)
    X = np.random.default_rng(1).normal(size=(len(obs), 4))
    rsa = FeatureRSA(CategoricalDesign("outcome"), ("categorical", "categorical:outcome"), n_perm=300).fit(X, obs)
    one, other = rsa.result_.maps
    np.testing.assert_allclose(other.r, one.r)
    assert one.n_perm == other.n_perm == 256 and np.isfinite(other.p).all()


def test_a_pair_left_out_stays_one_pair_when_trials_are_averaged():
    obs = pd.DataFrame({"outcome": ["won", "lost"] * 6, "item": range(12)})
    obs = pd.concat([obs, obs.iloc[[11]]], ignore_index=True)
    number = np.append(np.arange(12.0), 11)
    D = np.abs(np.subtract.outer(number, number))
    D[0, 1] = D[1, 0] = np.nan
    rsa = FeatureRSA(CategoricalDesign("outcome"), [ModelRDM("mine", D)], n_perm=20, min_active=0)
    rsa.fit(np.random.default_rng(0).normal(size=(13, 2)), obs)
    assert np.isnan(rsa.models_[0].matrix).sum() == 2


def test_a_similarity_matrix_is_refused():
    X, obs = unpaired(10, 2)
    similarity = np.exp(-np.abs(np.subtract.outer(np.arange(10.0), np.arange(10.0))))
    with pytest.raises(InvalidInput, match=r"model RDM 'mine'.*similarity matrix"):
        FeatureRSA(CategoricalDesign("emotion"), [ModelRDM("mine", similarity)]).fit(X, obs)


def test_an_interaction_of_factors_between_items_is_refused():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"a": ["x", "y"] * 8, "b": ["p", "p", "q", "q"] * 4, "item": range(16)})
    X = rng.normal(size=(16, 3))
    with pytest.raises(InvalidInput, match="test it with FeatureGLM"):
        FeatureRSA(FactorialDesign(["a", "b"]), ("a:b",)).fit(X, obs)
    rsa = FeatureRSA(FactorialDesign(["a", "b"]), ("a", "b"), n_perm=20).fit(X, obs)
    assert np.isfinite(rsa.result_["b"].p).all()


@pytest.mark.parametrize("make", [paired, unpaired])
def test_p_is_never_below_what_active_rows_allow(make):
    X, obs = make(10, 60) if make is paired else unpaired(10, 60, levels=("joy", "fear"))
    rng = np.random.default_rng(3)
    for feature in range(60):
        X[rng.permutation(len(X))[rng.integers(1, 9) :], feature] = 0
    design = CategoricalDesign("outcome" if "outcome" in obs else "emotion")
    one = FeatureRSA(design, n_perm=20_000, min_active=1).fit(X, obs).result_.maps[0]
    assert one.exhaustive
    tested = one.valid
    assert (one.p[tested] >= one.smallest_p_active[tested] - 1e-12).all()
    assert (one.p[tested] <= 5 * one.smallest_p_active[tested]).any()


def test_rank_comparisons_do_not_depend_on_rounding():
    """Distances that are equal but for the last digit are tied: p of 0 came of it."""
    obs = pd.DataFrame({"outcome": ["won", "lost"] * 5, "item": range(10)})
    whole = np.array([0, 0, 1, 2, 3, 0, 1, 3, 4, 6.0])
    for comparison in ("spearman", "rho_a", "tau_a"):
        expected = rsa_scores(whole[:, None], categorical_rdm(np.arange(10) % 2), comparison)
        for share in (0.1, 0.3, 1 / 3, 1e-8):
            for kind in (np.asarray, sparse.csc_array):
                found = rsa_scores(kind(share * whole[:, None]), categorical_rdm(np.arange(10) % 2), comparison)
                np.testing.assert_allclose(found, expected, rtol=1e-12)
    x = np.array([0.1, 0.4, 0, 0.3, 0, 0.3, 0, 0.2, 0, 0.3])
    for kind in (np.asarray, sparse.csr_array):
        rsa = FeatureRSA(CategoricalDesign("outcome"), comparison="spearman", n_perm=300, min_active=3)
        one = rsa.fit(kind(x[:, None]), obs).result_.maps[0]
        assert one.exhaustive and one.p[0] >= 1 / 252 and one.p_fwer[0] >= 1 / 252


def test_the_verdict_names_a_tested_feature_and_left_out_items():
    X, obs = paired(10, 5)
    X[:, 4] = 0
    X[:4:2, 4] = 1  # r is large, but it is active in two rows only
    verdict = FeatureRSA(CategoricalDesign("outcome"), n_perm=0).fit(X, obs).result_.verdict()
    assert "feature 4" not in verdict and "1 were not tested" in verdict
    keep = ~obs.index.isin([0, 5])
    rsa = FeatureRSA(CategoricalDesign("outcome"), n_perm=100).fit(X[keep], obs[keep])
    assert "2 items without all conditions were left out" in rsa.result_.verdict()
