"""The estimator: storage, order of rows, filters, refusals, saving."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from sklearn.exceptions import NotFittedError
from support.results import QUESTIONS, trials

from neurollm.designs import CategoricalDesign, FormulaDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.stats import threads


def study(n_items=20, levels=("failure", "success"), n_templates=2, n_features=40, seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [range(n_items), list(levels), range(n_templates)], names=["item", "outcome", "template"]
    )
    obs = index.to_frame(index=False).astype({"item": str})
    X = np.where(rng.random((len(obs), n_features)) < 0.4, rng.lognormal(size=(len(obs), n_features)), 0)
    return X.astype(np.float32), obs


def between(n_items=24, **options):
    X, obs = study(n_items, **options)
    mine = np.where(obs["item"].astype(int) % 3 == 0, "success", "failure")
    return X[obs["outcome"] == mine], obs[obs["outcome"] == mine].reset_index(drop=True)


def glm(**options):
    return FeatureGLM(CategoricalDesign("outcome"), **{"n_perm": 200, **options})


def assert_same(a, b, rtol=1e-9):
    for name in (name for name, value in vars(a).items() if isinstance(value, np.ndarray) and name != "null_max"):
        x, y = getattr(a, name), getattr(b, name)
        if name in ("p_fwer", "p_step_down", "valid", "feature", "n_active_items"):
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12, err_msg=name)


def test_paired_result_against_scipy():
    X, obs = study(n_templates=1)
    result = glm().fit(X, obs).compute_contrast("success - failure")
    wins, losses = X[obs["outcome"] == "success"].astype(float), X[obs["outcome"] == "failure"].astype(float)
    order = np.argsort([str(item) for item in range(20)])
    theirs = stats.ttest_rel(wins[order], losses[order])
    np.testing.assert_allclose(result.stat, theirs.statistic)
    np.testing.assert_allclose(result.effect, (wins - losses).mean(0))
    np.testing.assert_allclose(result.sides().mean_positive, wins.mean(0))
    np.testing.assert_allclose(result.sides().rate_negative, (losses > 0).mean(0))
    interval = theirs.confidence_interval()
    np.testing.assert_allclose([result.effect_low, result.effect_high], [interval.low, interval.high])
    assert result.effect_size_kind == "hedges_g_z" and result.n_items == 20 and (result.df == 19).all()
    assert ((result.effect_size_low < result.effect_size) & (result.effect_size < result.effect_size_high)).all()


def test_between_items_uses_item_means():
    X, obs = between()
    result = glm().fit(X, obs).compute_contrast("success - failure")
    means = pd.DataFrame(X.astype(float)).groupby([obs["outcome"], obs["item"]]).mean()
    theirs = stats.ttest_ind(means.loc["success"], means.loc["failure"])
    np.testing.assert_allclose(result.stat, theirs.statistic)
    assert (result.df == 22).all() and result.exchange.kind == "whole_item" and result.effect_size_kind == "hedges_g"


@pytest.mark.parametrize("make", [study, between, lambda: study(levels=("failure", "other", "success"))])
@pytest.mark.parametrize("alternative", ["two-sided", "less"])
def test_storage_and_row_order_do_not_matter(make, alternative, tmp_path):
    X, obs = make()
    contrast = "success - failure" if obs["outcome"].nunique() == 2 else "success - 0.5*failure - 0.5*other"
    expected = glm(alternative=alternative).fit(X, obs).compute_contrast(contrast)
    mapped = np.memmap(tmp_path / "x.dat", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    order = np.random.default_rng(1).permutation(len(obs))
    for values in (sparse.csr_matrix(X), sparse.csc_array(X), mapped, torch.tensor(X), X.astype(float)):
        assert_same(glm(alternative=alternative).fit(values, obs).compute_contrast(contrast), expected)
    shuffled = glm(alternative=alternative).fit(X[order], obs.iloc[order]).compute_contrast(contrast)
    assert_same(shuffled, expected)
    features = np.random.default_rng(2).permutation(X.shape[1])
    moved = glm(alternative=alternative).fit(X[:, features], obs, features).compute_contrast(contrast)
    np.testing.assert_array_equal(moved.p_fwer, expected.p_fwer[features])
    np.testing.assert_array_equal(moved.feature, features)


def test_anndata_gives_the_same_result():
    import anndata

    X, obs = study()
    obs.index = obs.index.astype(str)
    var = pd.DataFrame({"feature": np.arange(100, 140)}, index=[f"f{i}" for i in range(40)])
    expected = glm().fit(X, obs, np.arange(100, 140)).compute_contrast("success - failure")
    trials = anndata.AnnData(sparse.csr_matrix(X), obs, var)
    assert_same(glm().fit(trials).compute_contrast("success - failure"), expected)
    with pytest.raises(InvalidInput, match="AnnData"):
        glm().fit(trials, obs)


def test_reversed_contrast_and_alternatives_mirror():
    X, obs = study()
    forth = glm(alternative="greater").fit(X, obs).compute_contrast("success - failure")
    back = glm(alternative="less").fit(X, obs).compute_contrast("failure - success")
    np.testing.assert_array_equal(forth.p_fwer, back.p_fwer)
    np.testing.assert_allclose(forth.stat, -back.stat)
    np.testing.assert_allclose(forth.effect_size_low, -back.effect_size_high, rtol=1e-5)
    both = glm().fit(X, obs).compute_contrast("success - failure")
    down = glm(alternative="less").fit(X, obs).compute_contrast("success - failure")
    np.testing.assert_array_equal(both.null_max, np.maximum(forth.null_max, down.null_max))
    assert (both.p_fwer >= np.where(both.stat > 0, forth.p_fwer, down.p_fwer)).all()
    assert [result.alternative for result in (both, forth, down)] == ["two-sided", "greater", "less"]


def test_planted_features_are_found():
    X, obs = study(24, n_features=300)
    X[np.ix_(obs["outcome"] == "success", [5, 250])] += 2
    result = glm(n_perm=1000).fit(X, obs).compute_contrast("success - failure")
    table = result.to_frame()
    assert set(table["feature"][:2]) == {5, 250} and (table["p_fwer"][:2] < 0.01).all()
    assert (result.p_fwer <= 0.05).sum() <= 3
    assert table["p_fwer"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("alternative", "sign"), [("two-sided", np.abs), ("greater", np.positive), ("less", np.negative)]
)
@pytest.mark.parametrize("n_items", [9, 20])
def test_critical_value_agrees_with_p(alternative, sign, n_items):
    X, obs = study(n_items)
    X[np.ix_(obs["outcome"] == "success", range(5))] += np.arange(5)
    X[np.ix_(obs["outcome"] == "failure", range(5, 10))] += np.arange(5)
    result = glm(alternative=alternative, n_perm=600).fit(X, obs).compute_contrast("success - failure")
    assert result.exchange.exhaustive == (n_items == 9)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        np.testing.assert_array_equal(sign(result.stat) > result.critical_value(alpha), result.p_fwer <= alpha)
    assert result.critical_value(1e-6) == np.inf


def test_dead_constant_and_broken_features_are_counted():
    X, obs = study()
    X[:, 0], X[:, 1], X[3, 2] = 0, 2.5, np.nan
    X[:, 3] = 0
    X[:2, 3] = 1
    expected = glm(min_active_items=3).fit(X[:, 4:], obs).compute_contrast("success - failure")
    result = glm(min_active_items=3).fit(X, obs).compute_contrast("success - failure")
    np.testing.assert_array_equal(result.p_fwer[4:], expected.p_fwer)
    assert not result.valid[:4].any() and result.valid[4:].all() and result.n_tests == 36
    assert result.not_tested == {"not finite": 1, "constant": 2, "too few active items": 1} or result.not_tested == {
        "not finite": 1,
        "constant": 3,
        "too few active items": 0,
    }
    for name in ("stat", "p", "q", "p_fwer", "effect_size", "effect_size_low", "df", "effect_low"):
        assert np.isnan(getattr(result, name)[:4]).all(), name
    assert result.n_active_items[3] == 1
    tail = result.to_frame().tail(4)
    assert set(tail["feature"]) == {0, 1, 2, 3}
    assert "4 were not tested" in result.verdict()


def test_the_filter_does_not_look_at_labels():
    X, obs = study()
    X[:, :20] *= np.random.default_rng(0).random((len(X), 20)) < 0.15
    swapped = obs.assign(outcome=obs["outcome"].map({"success": "failure", "failure": "success"}))
    a, b = (glm(min_active_items=8).fit(X, table).compute_contrast("success - failure") for table in (obs, swapped))
    np.testing.assert_array_equal(a.valid, b.valid)
    assert 0 < a.valid.sum() < 40
    np.testing.assert_array_equal(a.p_fwer, b.p_fwer)


def test_perfect_feature_without_variance_is_significant():
    X, obs = study()
    X[:, 0] = obs["outcome"] == "success"
    result = glm(scale="binary").fit(X, obs).compute_contrast("success - failure")
    assert result.valid[0] and np.isinf(result.stat[0]) and result.p_fwer[0] == 1 / 201
    assert np.isnan(result.effect_size_low[0]) and result.effect[0] == pytest.approx(1)


def test_nothing_to_test_gives_a_sentence(tmp_path):
    X, obs = study()
    with pytest.warns(UserWarning, match="none of the 40 features"):
        result = glm().fit(X * 0, obs).compute_contrast("success - failure")
    assert np.isnan(result.p_fwer).all() and result.n_tests == 0 and np.isnan(result.critical_value())
    assert "none of the 40 features could be tested (40 constant)" in result.verdict()
    assert_same(ContrastResult.load(result.save(tmp_path)), result)
    with pytest.raises(ValueError, match="0 feature"):
        glm().fit(X[:, :0], obs)


def test_few_items_and_dropped_items_are_told():
    X, obs = study(8)
    with pytest.warns(UserWarning, match="only 256 shufflings of 8 items"):
        result = glm().fit(X, obs).compute_contrast("success - failure")
    assert len(result.warnings) == 1
    keep = ~((obs["item"] == "2") & (obs["outcome"] == "success"))
    X, obs = study(12)
    keep = ~((obs["item"] == "2") & (obs["outcome"] == "success"))
    with pytest.warns(UserWarning, match="1 of 12 items were left out"):
        result = glm().fit(X[keep], obs[keep]).compute_contrast("success - failure")
    assert result.n_items == 11 and result.n_items_dropped == 1


def test_save_and_load_round_trip(tmp_path):
    X, obs = study()
    X[:, 0] = 0
    result = glm().fit(X, obs).compute_contrast("success - failure", name="Success?")
    path = result.save(tmp_path / "glm")
    assert path.suffix == ".json" and sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".npz", ".parquet"]
    loaded = ContrastResult.load(path)
    for name, value in vars(result).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
            assert getattr(loaded, name).dtype == value.dtype
        else:
            assert getattr(loaded, name) == value, name
    pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    assert loaded.critical_value(0.05) == result.critical_value(0.05)
    stored = json.loads(path.read_text())
    for key in ("n_tests", "exchange", "contrast", "alternative", "p_method", "fdr", "transform"):
        assert key in stored
    path.with_suffix(".npz").unlink()
    with pytest.raises(DataMismatch, match="is missing"):
        ContrastResult.load(path)


def test_damaged_results_are_refused(tmp_path):
    X, obs = study()
    path = glm().fit(X, obs).compute_contrast("success - failure").save(tmp_path)
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    with pytest.raises(DataMismatch, match="damaged"):
        ContrastResult.load(path)
    path.write_text("{}")
    with pytest.raises(InvalidInput, match="not a saved contrast"):
        ContrastResult.load(path)
    with pytest.raises(InvalidInput, match="no such file"):
        ContrastResult.load(tmp_path / "absent.json")


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_null_distribution_is_refused(tmp_path, damage):
    X, obs = study()
    path = glm().fit(X, obs).compute_contrast("success - failure").save(tmp_path)
    stored = path.with_suffix(".npz").read_bytes()
    middle = len(stored) // 2
    flipped = stored[: middle - 20] + bytes(byte ^ 0xFF for byte in stored[middle - 20 : middle]) + stored[middle:]
    damaged = {"empty": b"", "cut": stored[:middle], "flipped": flipped, "text": b"PK\x03\x04"}
    path.with_suffix(".npz").write_bytes(damaged[damage])
    with pytest.raises(DataMismatch, match="damaged"):
        ContrastResult.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alternative": "both"}, "alternative is 'both'"),
        ({"scale": "sqrt"}, "scale is 'sqrt'"),
        ({"stat": "u"}, "stat is 'u'"),
        ({"fdr": "storey"}, "fdr is 'storey'"),
        ({"n_jobs": 0}, "n_jobs must be a positive number of threads, or -1"),
        ({"n_jobs": "2"}, "n_jobs must be a positive number of threads, or -1"),
        ({"stat": "welch", "scale": "rank"}, "goes with stat 't'"),
        ({"n_perm": -1}, "n_perm must be a whole number"),
        ({"n_perm": 10.5}, "n_perm must be a whole number"),
        ({"random_state": -1}, "random_state"),
        ({"design": "success.yaml"}, "design must be a design such as"),
    ],
)
def test_wrong_parameters_are_refused(options, words):
    X, obs = study(4)
    with pytest.raises(InvalidInput, match=words):
        FeatureGLM(**{"design": CategoricalDesign("outcome"), **options}).fit(X, obs)


def test_wrong_data_are_refused():
    X, obs = study(4)
    with pytest.raises(DataMismatch, match="feature ids"):
        glm().fit(X, obs, features=[1, 2])
    with pytest.raises(InvalidInput, match="trial table or labels"):
        glm().fit(X)
    with pytest.raises(NotFittedError, match="call fit first"):
        glm().compute_contrast("a - b")
    with pytest.raises(InvalidInput, match="did you mean 'success'"), warnings.catch_warnings():
        glm().fit(X, obs).compute_contrast("sucess - failure")


def test_seed_decides_and_is_kept():
    X, obs = study()
    one, same, other = (glm(random_state=s).fit(X, obs).compute_contrast("success - failure") for s in (1, 1, 2))
    assert_same(one, same, rtol=0)
    assert (one.p_fwer != other.p_fwer).any() and one.exchange.random_state == 1


def test_rounding_noise_is_not_tested_but_small_effects_are():
    _, obs = study()
    wins = (obs["outcome"] == "success").to_numpy()
    size = np.array([1e-6, 1e-3, 0]) * np.random.default_rng(0).normal(1, 0.3, (len(obs), 3))
    X = np.repeat(np.arange(5.0, 25.0), 4)[:, None] * (1 + wins[:, None] * size)
    result = glm().fit(X.astype(np.float32), obs).compute_contrast("success - failure")
    assert result.valid.tolist() == [False, True, False] and result.not_tested["constant"] == 2
    assert result.p_fwer[1] < 0.05


def test_one_broken_value_breaks_a_feature_alike_in_all_storages():
    X, obs = study(levels=("failure", "other", "success"))
    X[2, 1] = np.nan  # in a level with weight zero
    X[0, 3] = np.inf
    assert obs["outcome"][2] == "other" and obs["outcome"][0] == "failure"
    expected = glm().fit(X, obs).compute_contrast("success - failure")
    assert np.flatnonzero(~expected.valid).tolist() == [3]
    for values in (sparse.csr_array(X), torch.tensor(X)):
        got = glm().fit(values, obs).compute_contrast("success - failure")
        np.testing.assert_array_equal(got.valid, expected.valid)
        np.testing.assert_array_equal(got.p_fwer, expected.p_fwer)


@pytest.mark.parametrize("transform", ["raw", "log1p", "binary"])
def test_entries_stored_in_parts_are_summed_before_the_transform(transform):
    X, obs = study()
    once = sparse.csr_array(X)
    parts = sparse.csr_array((np.repeat(once.data / 2, 2), np.repeat(once.indices, 2), once.indptr * 2), once.shape)
    expected = glm(scale=transform).fit(X, obs).compute_contrast("success - failure")
    assert_same(glm(scale=transform).fit(parts, obs).compute_contrast("success - failure"), expected)
    assert parts.nnz == 2 * once.nnz  # the caller's array is left alone


def test_numpy_integers_are_saved(tmp_path):
    X, obs = study()
    options = {"n_perm": np.int32(50), "random_state": np.int64(3), "min_active_items": np.int8(1)}
    result = glm(**options).fit(X, obs).compute_contrast("success - failure")
    assert ContrastResult.load(result.save(tmp_path)).exchange.random_state == 3


def test_unequal_numbers_of_trials_are_told():
    X, obs = study(20)
    for n_items, told in ((2, 0), (3, 1)):
        keep = ~(obs["item"].astype(int).lt(n_items) & (obs["outcome"] == "success") & (obs["template"] == 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = glm().fit(X[keep], obs[keep]).compute_contrast("success - failure")
        assert sum(f"{n_items} of 20 items the conditions were averaged" in text for text in result.warnings) == told
    X, obs = study(20)
    obs["template"] = np.where(obs["outcome"] == "success", obs["template"], obs["template"] + 1)
    with pytest.warns(UserWarning, match="in 20 of 20 items the conditions were averaged over different trials"):
        design = CategoricalDesign("outcome", template="template")
        FeatureGLM(design, n_perm=10).fit(X, obs).compute_contrast("success - failure")


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_rates_are_shares_of_trials_and_magnitudes_means_of_the_active_ones(store):
    X, obs = study()
    wins = X[obs["outcome"] == "success"].astype(float)
    result = glm().fit(store(X), obs).compute_contrast("success - failure")
    np.testing.assert_allclose(result.sides().rate_positive, (wins > 0).mean(0))
    np.testing.assert_allclose(result.sides().magnitude_positive, wins.sum(0) / (wins > 0).sum(0))


def test_two_items_have_no_g():
    X, obs = study(2)
    with pytest.warns(UserWarning, match="only 4 shufflings"):
        result = glm().fit(X + 1, obs).compute_contrast("success - failure")
    assert np.isnan([result.effect_size, result.effect_size_low, result.effect_size_high]).all()


@pytest.mark.parametrize("scale", ["raw", "rank"])
@pytest.mark.parametrize("unit", [1e-9, 1e6, 1e12])
def test_units_of_covariates_and_weights_do_not_matter(scale, unit):
    X, obs = trials()
    obs = obs.assign(x=np.random.default_rng(0).random(len(obs)))
    slope = FeatureGLM(FormulaDesign("x"), n_perm=100, scale=scale)
    fitted = [slope.fit(X, obs.assign(x=obs["x"] * by)).compute_contrast("x") for by in (1, unit)]
    paired = FeatureGLM(CategoricalDesign("outcome"), n_perm=100, scale=scale).fit(X, obs)
    fitted += [paired.compute_contrast([by, -by]) for by in (1, unit)]
    for one, other in (fitted[:2], fitted[2:]):
        assert one.n_tests == other.n_tests == X.shape[1]
        np.testing.assert_allclose(other.stat, one.stat, rtol=1e-6)
        np.testing.assert_array_equal(other.p_fwer, one.p_fwer)


@pytest.mark.parametrize("n_templates", [3, 6])
@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, torch.tensor])
def test_ranks_of_signed_trials_that_cancel_are_those_of_exact_sums(n_templates, store):
    """Means of trials that cancel are rounding, which must be neither sign nor rank."""
    _, obs = study(n_templates=n_templates)
    X = np.random.default_rng(0).integers(-2, 3, (len(obs), 60)) * 0.1
    sums = (X * 10).round().astype(int)
    pairs = obs.groupby(["item", "outcome"]).indices
    items = sorted(obs["item"].unique())
    wins, losses = (np.array([sums[pairs[item, o]].sum(0) for item in items]) for o in ("success", "failure"))
    score = wins - losses
    ranks = np.sign(score) * stats.rankdata(np.abs(score), axis=0)
    result = glm(scale="rank", n_perm=0).fit(store(X), obs).compute_contrast("success - failure")
    np.testing.assert_allclose(result.stat, stats.ttest_1samp(ranks, 0).statistic, rtol=1e-8, atol=1e-12)
    order = np.random.default_rng(1).permutation(len(obs))
    again = glm(scale="rank", n_perm=0).fit(store(X[order]), obs.iloc[order]).compute_contrast("success - failure")
    np.testing.assert_allclose(again.stat, result.stat, rtol=1e-8, atol=1e-12)


def test_rounding_of_many_trials_is_no_effect():
    obs = pd.DataFrame(
        [(f"i{i}", "uv"[i % 2], float(k)) for i in range(10) for k in range(300)], columns=["item", "g", "x"]
    )
    X = np.ones((len(obs), 3))
    X[obs["g"] == "v", 1] += 5 * np.finfo(np.float32).eps
    X[:, 2] = np.random.default_rng(0).normal(size=len(obs))
    result = FeatureGLM(FormulaDesign("g + x"), n_perm=0).fit(X, obs).compute_contrast("g")
    assert result.valid.tolist() == [False, False, True]


def test_a_wild_covariate_in_one_item_does_not_silence_features_without_activity_there():
    X, obs = study(n_templates=4)
    rng = np.random.default_rng(0)
    obs = obs.assign(x=rng.normal(size=len(obs)) * np.where(obs["item"] == "0", 1e6, 1))
    X[obs["item"] == "0"] = 0
    assert FeatureGLM(FormulaDesign("x"), n_perm=0).fit(X, obs).compute_contrast("x").valid.all()


def test_ranks_withstand_one_huge_value_and_ignore_rounding():
    X, obs = between(n_templates=1)
    plain = glm(scale="rank").fit(X, obs).compute_contrast("success - failure")
    row = int(np.argmax(X[:, 3]))
    X[row, 3] *= 1e9  # the largest already
    X[:, 5] = np.random.default_rng(0).choice(np.float32([1, 1 + 2**-23, 1 + 2**-22]), len(X))
    result = glm(scale="rank").fit(X, obs).compute_contrast("success - failure")
    assert result.stat[3] == pytest.approx(plain.stat[3]) and plain.valid[5] and not result.valid[5]


def test_a_tail_is_named_only_where_it_was_fitted():
    X, obs = study(n_items=20)
    assert glm(tail="gpd", n_perm=2000).fit(X, obs).compute_contrast("success - failure").tail == "gpd"
    for few in (glm(tail="gpd", n_perm=40).fit(X, obs), glm(tail="gpd", n_perm=2000).fit(*study(n_items=9))):
        result = few.compute_contrast("success - failure")
        counts = result.p_fwer * (result.exchange.n_perm + (not result.exchange.exhaustive))
        assert result.tail == "permutation"
        np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    nothing = glm(tail="gpd").fit(np.ones_like(X), obs)
    with pytest.warns(UserWarning, match="could be tested"):
        assert nothing.compute_contrast("success - failure").tail == "permutation"


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("options", [{}, {"scale": "rank"}, {"testable_at": 0.01}])
def test_blocks_of_features_and_threads_do_not_matter(question, options, monkeypatch):
    design, contrast = QUESTIONS[question]
    X, obs = trials()
    estimator = FeatureGLM(design, n_perm=100, **options)
    try:
        whole = estimator.fit(X, obs).compute_contrast(contrast)
    except InvalidInput:
        assert options == {"testable_at": 0.01}  # for differences of two conditions only
        return
    monkeypatch.setattr(threads, "FEATURES", 7)
    for store, n_jobs in ((np.asarray, 1), (sparse.csr_array, 2), (sparse.csc_array, -1), (torch.tensor, 1)):
        estimator.set_params(n_jobs=n_jobs)
        assert_same(estimator.fit(store(X), obs).compute_contrast(contrast), whole)
