"""Contrasts of every kind against independent implementations, through the estimator."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import sparse, stats
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurollm.designs import CategoricalDesign, DiscriminativeDesign, FactorialDesign, FormulaDesign
from neurollm.errors import InvalidInput
from neurollm.glm import ContrastResult, FeatureGLM, fwer_across_contrasts

warnings.filterwarnings("ignore", message=".*shufflings of.*exist")
A, B = {"formality": ["formal", "casual"]}, {"emotion": ["sad", "glad"]}


@parametrize_with_checks([FeatureGLM()])
def test_scikit_learn(estimator, check):
    check(estimator)


def crossed(n_items, within, between=(), n_features=12, seed=0):
    """Trials with item effects: every item has all `within` cells and one `between` cell."""
    rng = np.random.default_rng(seed)
    groups = list(itertools.product(*dict(between).values()))
    rows = [
        {"item": f"i{item:02d}"}
        | dict(zip([*dict(between), *within], (*groups[item % len(groups)], *cell), strict=True))
        for item in range(n_items)
        for cell in itertools.product(*within.values())
    ]
    obs = pd.DataFrame(rows)
    level = rng.lognormal(size=(n_items, n_features))[obs["item"].str[1:].astype(int)]
    X = np.where(rng.random((len(obs), n_features)) < 0.6, level * rng.lognormal(size=(len(obs), n_features)), 0)
    return X, obs.assign(n_words=rng.integers(3, 12, len(obs)))


def test_f_contrast_against_statsmodels():
    X, obs = crossed(30, {}, {"g": list("uvw")})
    result = FeatureGLM(CategoricalDesign("g"), n_perm=300).fit(X, obs).compute_contrast("g")
    for feature in range(3):
        fit = smf.ols("y ~ C(g)", obs.assign(y=X[:, feature])).fit()
        assert result.stat[feature] == pytest.approx(fit.fvalue)
        assert result.df[feature] == fit.df_resid
        assert result.effect_size[feature] == pytest.approx(fit.rsquared)
    assert result.is_f and result.stat_kind == "F" and result.effect_size_kind == "partial_eta2"
    assert (result.effect_size_low <= result.effect_size).all() and (result.p_fwer >= 1 / 301).all()
    frame = result.to_frame()
    assert {"eta2", "eta2_low", "eta2_high", "mean[u]", "rate[v]", "magnitude[w]"} <= set(frame.columns)
    with pytest.raises(InvalidInput, match="no two sides"):
        result.sides()
    again = FeatureGLM(CategoricalDesign("g"), n_perm=300, alternative="greater").fit(X, obs)
    assert again.compute_contrast("u = v, v = w").alternative == "two-sided"
    np.testing.assert_array_equal(again.compute_contrast("u = v, v = w").p_fwer, result.p_fwer)


def test_output_types_have_nilearns_names_and_values():
    glm_module = pytest.importorskip("nilearn.glm")
    from nilearn.glm.first_level import run_glm

    X, obs = crossed(40, {}, {"g": list("uvw")})
    glm = FeatureGLM(CategoricalDesign("g"), n_perm=0).fit(X, obs)
    design = glm.design_matrix_.to_numpy()
    labels, estimates = run_glm(X, design, noise_model="ols")
    contrast = np.array([1, -0.5, -0.5])
    theirs = glm_module.compute_contrast(labels, estimates, contrast, stat_type="t")
    ours = glm.compute_contrast("u - 0.5*v - 0.5*w", output_type="all")
    np.testing.assert_allclose(ours["stat"], theirs.stat())
    np.testing.assert_allclose(ours["z_score"], theirs.z_score())
    np.testing.assert_allclose(ours["p_value"], theirs.p_value())
    np.testing.assert_allclose(ours["effect_size"], theirs.effect_size().ravel())
    np.testing.assert_allclose(ours["effect_variance"], theirs.effect_variance().ravel())
    rows = np.array([[1, -1, 0], [0, 1, -1]])
    theirs = glm_module.compute_contrast(labels, estimates, rows, stat_type="F")
    np.testing.assert_allclose(glm.compute_contrast("u = v, v = w", output_type="stat"), theirs.stat())
    np.testing.assert_allclose(glm.compute_contrast(rows, output_type="p_value"), theirs.p_value())
    np.testing.assert_allclose(glm.compute_contrast(rows, output_type="z_score"), theirs.z_score(), rtol=1e-6)
    with pytest.raises(InvalidInput, match="output_type is 'beta'"):
        glm.compute_contrast("u - v", output_type="beta")


def test_rank_scale_is_the_exact_rank_test():
    X, obs = crossed(9, {}, {"g": list("uv")}, n_features=6)
    X += np.random.default_rng(3).random(X.shape) * 1e-3  # no ties
    glm = FeatureGLM(CategoricalDesign("g"), scale="rank", tail="permutation").fit(X, obs)
    result = glm.compute_contrast("u - v")
    u = (obs["g"] == "u").to_numpy()
    single = [FeatureGLM(CategoricalDesign("g"), scale="rank").fit(X[:, [v]], obs) for v in range(6)]
    p = [one.compute_contrast("u - v").p_fwer[0] for one in single]
    theirs = [stats.mannwhitneyu(X[u, v], X[~u, v], method="exact").pvalue for v in range(6)]
    np.testing.assert_allclose(p, theirs)
    assert result.exchange.exhaustive and result.exchange.n_possible == 126
    X, obs = crossed(10, B, n_features=4)
    X += np.random.default_rng(3).random(X.shape) * 1e-3
    sad = (obs["emotion"] == "sad").to_numpy()
    for v in range(4):
        one = FeatureGLM(CategoricalDesign("emotion"), scale="rank").fit(X[:, [v]], obs)
        theirs = stats.wilcoxon(X[sad, v], X[~sad, v], method="exact")
        assert one.compute_contrast("sad - glad").p_fwer[0] == pytest.approx(theirs.pvalue)


def test_friedman_is_the_f_contrast_of_ranks_within_items():
    X, obs = crossed(15, {"e": list("xyz")}, n_features=5)
    X += np.random.default_rng(3).random(X.shape) * 1e-3
    result = (
        FeatureGLM(CategoricalDesign("e"), scale="rank", n_perm=50).fit(sparse.csr_array(X), obs).compute_contrast("e")
    )
    columns = [X[obs["e"] == level] for level in "xyz"]
    chi2 = np.array([stats.friedmanchisquare(*(c[:, v] for c in columns)).statistic for v in range(5)])
    np.testing.assert_allclose(result.stat, 14 * chi2 / (15 * 2 - chi2))  # Conover's F of Friedman's statistic


def test_every_design_runs_and_finds_what_was_planted():
    X, obs = crossed(40, A | B, n_features=200)
    interaction = (obs["formality"] == "formal") & (obs["emotion"] == "sad")
    X[obs["formality"] == "formal", 0] += 6
    X[obs["emotion"] == "sad", 1] += 6
    X[interaction, 2] += 12
    glm = FeatureGLM(FactorialDesign(A | B), n_perm=500).fit(X, obs)
    results = glm.compute_contrasts()
    assert list(results) == ["formality", "emotion", "formality:emotion"]
    assert [int(r.strongest(1)[0]) for r in results.values()][1] in (1, 2)
    assert results["formality"].p_fwer[0] <= 0.01 and results["emotion"].p_fwer[1] <= 0.01
    assert results["formality:emotion"].strongest(1)[0] == 2 and results["formality:emotion"].p_fwer[2] <= 0.01
    assert results["formality:emotion"].p_fwer[:2].min() > 0.05  # additive features have no interaction
    assert results["emotion"].stat[1] > 0 and results["emotion"].conditions == glm.parameters_


def test_a_formula_agrees_with_the_cells_it_describes():
    X, obs = crossed(30, {}, {"g": list("uv")})
    cells = FeatureGLM(CategoricalDesign("g"), n_perm=400).fit(X, obs).compute_contrast("v - u")
    for formula in ("g", "0 + g", "C(g, contr.sum)"):
        spec = {"g": "g[T.v]", "0 + g": "g[v] - g[u]", "C(g, contr.sum)": "-2*`C(g, contr.sum)[S.u]`"}[formula]
        other = FeatureGLM(FormulaDesign(formula), n_perm=400).fit(X, obs).compute_contrast(spec)
        np.testing.assert_allclose(other.stat, cells.stat)
        np.testing.assert_allclose(other.effect, cells.effect)
        # an explicit constant, or none, changes neither what is exchanged nor p
        np.testing.assert_array_equal(other.p_fwer, cells.p_fwer)
        np.testing.assert_allclose(other.p, cells.p, rtol=1e-6)


def test_copies_of_trials_are_no_evidence():
    X, obs = crossed(20, B)
    once = FeatureGLM(CategoricalDesign("emotion"), n_perm=300).fit(X, obs).compute_contrast("sad - glad")
    many = FeatureGLM(CategoricalDesign("emotion"), n_perm=300)
    many = many.fit(np.repeat(X, 10, axis=0), obs.loc[obs.index.repeat(10)]).compute_contrast("sad - glad")
    np.testing.assert_array_equal(many.p_fwer, once.p_fwer)
    np.testing.assert_allclose(many.p, once.p)


def test_labels_alone_make_every_trial_an_item():
    X, obs = crossed(30, {}, {"g": list("uv")})
    by_design = FeatureGLM(CategoricalDesign("g"), n_perm=300).fit(X, obs).compute_contrast("u - v")
    by_labels = FeatureGLM(n_perm=300).fit(X, obs["g"].to_numpy()).compute_contrast("u - v")
    np.testing.assert_array_equal(by_labels.p_fwer, by_design.p_fwer)
    assert (
        by_labels.exchange.unit == "trial"
        and "labels were given without items" in FeatureGLM().fit(X, obs["g"].to_numpy()).design_.item_reason
    )


def test_without_permutations_there_is_p_and_q():
    X, obs = crossed(30, B, n_features=50)
    X[obs["emotion"] == "sad", 3] += 8
    result = FeatureGLM(CategoricalDesign("emotion"), n_perm=0).fit(X, obs).compute_contrast("sad - glad")
    assert np.isnan(result.p_fwer).all() and not len(result.null_max) and result.exchange.n_perm == 0
    assert result.q[3] <= 0.05 and "at q ≤ 0.05" in result.verdict() and result.strongest(1)[0] == 3
    with pytest.raises(InvalidInput, match="without permutations"):
        fwer_across_contrasts({"e": result})


@pytest.mark.parametrize(
    ("design", "contrast", "method"),
    [
        (CategoricalDesign("g"), "u - v", "saddlepoint"),
        (CategoricalDesign("g", covariates=["n_words"]), "u - v", "pearson3"),
        (CategoricalDesign("g"), "u = v, v = w", "beta"),
        (DiscriminativeDesign("g", "u"), "u", "pearson3"),
        (CategoricalDesign("emotion"), "sad - glad", "saddlepoint"),
        (FactorialDesign(["g", "emotion"]), "g:emotion", "beta"),
        (FactorialDesign(["g", "emotion"]), "emotion", "t"),
    ],
)
def test_closed_form_p_agrees_with_counting(design, contrast, method):
    X, obs = crossed(36, B, {"g": list("uvw")}, n_features=30)
    glm = FeatureGLM(design, n_perm=4000).fit(X, obs)
    result = glm.compute_contrast(contrast)
    alone = [
        FeatureGLM(design, n_perm=4000).fit(X[:, [v]], obs).compute_contrast(contrast).p_fwer[0] for v in range(30)
    ]
    assert result.p_method == method
    # Where one item dominates a feature the body of its distribution has several humps, which no three moments have.
    small = np.array(alone) < 0.2
    assert small.any()
    assert (result.p[small] > np.array(alone)[small] - 0.06).all()
    if method != "beta":  # which is cautious
        np.testing.assert_allclose(result.p[small], np.array(alone)[small], atol=0.06)
    assert np.corrcoef(np.log(result.p), np.log(alone))[0, 1] > 0.94


def test_family_wise_error_across_contrasts_against_brute_force():
    X, obs = crossed(24, A | B, n_features=15)
    X[obs["emotion"] == "sad", 1] += 5
    results = FeatureGLM(FactorialDesign(A | B), n_perm=700).fit(X, obs).compute_contrasts()
    joint = fwer_across_contrasts(results)
    pool = np.stack([np.append(r.null_max, np.abs(r.stat).max()) for r in results.values()])
    ranks = (pool[:, None, :] >= pool[:, :, None] * (1 - 1e-9)).mean(axis=2)
    smallest = ranks.min(axis=0)
    for name, result in results.items():
        expected = [(smallest <= p * (1 + 1e-9)).mean() for p in result.p_fwer]
        np.testing.assert_allclose(joint[name], np.maximum(expected, result.p_fwer), atol=1e-12)
        assert (joint[name] <= np.minimum(1, 3 * result.p_fwer + 3 / 701)).all()
    tails = FeatureGLM(FactorialDesign(A | B), n_perm=700, tail="gpd").fit(X, obs).compute_contrasts()
    for name, p in fwer_across_contrasts(tails).items():
        np.testing.assert_array_equal(p, joint[name])  # a fitted tail does not enter
    between = FeatureGLM(FactorialDesign(["g", "emotion"]), n_perm=700)
    X, obs = crossed(24, B, {"g": list("uv")})
    results = between.fit(X, obs).compute_contrasts()
    joint = fwer_across_contrasts(results)  # labels of items and signs are different shufflings: Bonferroni between
    assert (joint["emotion"] >= np.minimum(1, 2 * results["emotion"].p_fwer)).all()


def test_a_fitted_tail_reaches_below_the_number_of_permutations():
    X, obs = crossed(60, B, n_features=80)
    X[obs["emotion"] == "sad", 0] += 30
    few = FeatureGLM(CategoricalDesign("emotion"), n_perm=999).fit(X, obs).compute_contrast("sad - glad")
    tail = FeatureGLM(CategoricalDesign("emotion"), n_perm=999, tail="gpd").fit(X, obs).compute_contrast("sad - glad")
    assert few.p_fwer[0] == 1 / 1000 and 0 < tail.p_fwer[0] < 1 / 1000
    binary = (np.random.default_rng(0).random((16, 300)) < 0.5).astype(float)
    perfect = FeatureGLM(n_perm=300, tail="gpd").fit(binary, np.repeat(["a", "b"], 8)).compute_contrast("a - b")
    assert np.nanmin(perfect.p_fwer) > 0  # infinite maxima: no tail is fitted
    likely = few.p_fwer > 0.1
    np.testing.assert_array_equal(tail.p_fwer[likely], few.p_fwer[likely])
    assert (tail.p_step_down <= tail.p_fwer).all()


def test_true_discoveries_of_named_sets():
    X, obs = crossed(40, B, n_features=100)
    X[np.ix_(obs["emotion"] == "sad", range(10))] += 8
    result = FeatureGLM(CategoricalDesign("emotion"), n_perm=0).fit(X, obs).compute_contrast("sad - glad")
    table = result.true_discoveries({"planted": range(10), "rest": range(10, 100), "all": range(100), "none": []})
    assert 1 <= table.loc["planted", "n_true"] <= 10 and table.loc["rest", "n_true"] == 0
    assert table.loc["planted", "n_true"] <= table.loc["all", "n_true"] <= 10
    with pytest.raises(InvalidInput, match="names '100'"):
        result.true_discoveries({"x": [100]})


def test_q_is_benjamini_hochberg_of_the_closed_form_p():
    from statsmodels.stats.multitest import multipletests

    X, obs = crossed(30, B, n_features=60)
    X[:, 4], X[np.ix_(obs["emotion"] == "sad", [7, 9])] = 0, 9
    for fdr, theirs in (("bh", "fdr_bh"), ("by", "fdr_by")):
        glm = FeatureGLM(CategoricalDesign("emotion"), n_perm=0, fdr=fdr).fit(X, obs)
        result = glm.compute_contrast("sad - glad")
        tested = result.valid
        assert not tested[4] and np.isnan(result.q[4])
        np.testing.assert_allclose(result.q[tested], multipletests(result.p[tested], method=theirs)[1])


def test_f_results_survive_a_file(tmp_path):
    X, obs = crossed(12, {"e": list("xyz")})
    result = FeatureGLM(CategoricalDesign("e"), n_perm=100).fit(X, obs).compute_contrast("e")
    loaded = ContrastResult.load(result.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    assert loaded.contrast == result.contrast and loaded.exchange == result.exchange and np.isnan(loaded.unit)
    assert loaded.critical_value(0.05) == result.critical_value(0.05)
    np.testing.assert_array_equal(result.stat > result.critical_value(0.05), result.p_fwer <= 0.05)


def test_a_table_without_a_design_is_refused():
    X, obs = crossed(6, B)
    with pytest.raises(InvalidInput, match="no design"):
        FeatureGLM().fit(X, obs)
    with pytest.raises(InvalidInput, match="must be a table"):
        FeatureGLM(CategoricalDesign("emotion")).fit(X, obs["emotion"].to_numpy())
    with pytest.raises(InvalidInput, match="one label for each"):
        FeatureGLM().fit(X, ["a", "b"])


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("alternative", ["two-sided", "less"])
def test_features_that_cannot_be_significant_are_left_out_whatever_the_labels(within, alternative):
    X, obs = crossed(20, B) if within else crossed(20, {}, B)
    X[:, 0] = 0
    X[:3, 0] = 1  # active in so few items that no labels make it significant
    design, contrast = CategoricalDesign("emotion"), "sad - glad"
    options = {"n_perm": 200, "alternative": alternative}
    result = FeatureGLM(design, testable_at=0.01, **options).fit(X, obs).compute_contrast(contrast)
    assert not result.valid[0] and result.valid[1:].any() and result.not_tested["cannot be significant"] >= 1
    swapped = obs.assign(emotion=obs["emotion"].map({"sad": "glad", "glad": "sad"}))
    if alternative == "two-sided":
        other = FeatureGLM(design, testable_at=0.01, **options).fit(X, swapped).compute_contrast(contrast)
        np.testing.assert_array_equal(other.valid, result.valid)
    everything = FeatureGLM(design, **options).fit(X, obs).compute_contrast(contrast)
    assert (everything.p[~result.valid] > 0.01).all() and everything.valid[0]
    with pytest.raises(InvalidInput, match="without covariates"):
        FeatureGLM(CategoricalDesign("emotion", covariates=["n_words"]), testable_at=0.01).fit(X, obs).compute_contrast(
            contrast
        )


@pytest.mark.parametrize("kind", ["welch", "hc3"])
def test_robust_standard_errors_of_groups(kind):
    X, obs = crossed(37, {}, {"g": list("uuv")}, n_features=8)
    result = FeatureGLM(CategoricalDesign("g"), stat=kind, n_perm=300).fit(X, obs).compute_contrast("u - v")
    u = (obs["g"] == "u").to_numpy()
    welch = stats.ttest_ind(X[u], X[~u], equal_var=False)
    if kind == "welch":
        np.testing.assert_allclose(result.stat, welch.statistic)
        np.testing.assert_allclose(result.df, welch.df)
    for v in range(3):
        fit = smf.ols("y ~ 0 + C(g)", obs.assign(y=X[:, v])).fit(cov_type="HC3")
        if kind == "hc3":
            assert result.stat[v] == pytest.approx(fit.t_test([1, -1]).tvalue.item())
    unequal = np.random.default_rng(0).normal(size=(30, 2000)) * np.repeat([3, 1], [5, 25])[:, None]
    null = FeatureGLM(stat=kind, n_perm=0).fit(unequal, np.repeat(["a", "b"], [5, 25])).compute_contrast("a - b")
    assert null.p_method == "robust" and (null.p < 0.05).mean() < 0.1  # .26 if p were that of the pooled t
    assert result.stat_kind == kind and np.isfinite(result.effect_low).all()
    for alpha in (0.05, 0.5):
        np.testing.assert_array_equal(np.abs(result.stat) > result.critical_value(alpha), result.p_fwer <= alpha)
    covaried = FeatureGLM(CategoricalDesign("g", covariates=["n_words"]), stat=kind, n_perm=10).fit(X, obs)
    with pytest.raises(InvalidInput, match="use stat 't' here"):
        covaried.compute_contrast("u - v")
    X, obs = crossed(12, B)
    paired = FeatureGLM(CategoricalDesign("emotion"), stat=kind, n_perm=10).fit(X, obs).compute_contrast("sad - glad")
    assert paired.stat_kind == "t"


def test_p_does_not_depend_on_where_the_resting_value_lies():
    X, obs = crossed(24, {}, {"g": list("uv")}, n_features=200)
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.3, X, 0)  # at rest in more than half of the items
    glm = FeatureGLM(CategoricalDesign("g"), n_perm=0)
    zero = glm.fit(X, obs).compute_contrast("u - v").p
    jitter = np.random.default_rng(1).choice([0, 1e-16, -1e-16], X.shape)
    for shifted in (X + 3, sparse.csr_array(X + 3), X + jitter, X + 1 / 3 + jitter):
        p = glm.fit(shifted, obs).compute_contrast("u - v").p
        alive = ~np.isnan(zero)
        np.testing.assert_allclose(p[alive], zero[alive], rtol=1e-5)


@pytest.mark.parametrize("scale", ["raw", "binary", "rank"])
def test_infinite_activations_are_not_tested_on_any_scale(scale):
    X, obs = crossed(20, {}, {"g": list("uv")})
    X[0, 0], X[1, 1] = np.inf, -np.inf
    for values in (X, sparse.csr_array(X)):
        result = FeatureGLM(CategoricalDesign("g"), n_perm=20, scale=scale).fit(values, obs).compute_contrast("u - v")
        assert not result.valid[:2].any() and result.not_tested["not finite"] == 2


def test_coefficients_between_items_have_partial_correlations():
    X, obs = crossed(30, {}, {"g": list("uv")})
    result = FeatureGLM(FormulaDesign("n_words + g"), n_perm=50).fit(X, obs).compute_contrast("n_words")
    other = FeatureGLM(FormulaDesign("n_words + g"), n_perm=50).fit(X, obs.assign(n_words=obs["n_words"] * 100))
    assert result.effect_size_kind == "partial_r" and "r_low" in result.to_frame()
    np.testing.assert_allclose(result.effect_size, result.stat / np.sqrt(result.stat**2 + result.df))
    np.testing.assert_allclose(other.compute_contrast("n_words").effect_size, result.effect_size)
