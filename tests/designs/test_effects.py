"""Factorial, discriminative and formula designs: matrices, what is exchanged, words, RDMs, files, refusals."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import sparse

from neurollm.designs import (
    CategoricalDesign,
    DiscriminativeDesign,
    FactorialDesign,
    FormulaDesign,
    read_design,
    write_design,
)
from neurollm.errors import InvalidInput
from neurollm.stats.linear import linear_fit

RNG = np.random.default_rng(0)


def crossed(n_items, within, between=(), seed=0):
    """Every item with all combinations of the `within` factors, and one of the `between` combinations."""
    rows = []
    groups = list(itertools.product(*dict(between).values()))
    for item in range(n_items):
        own = dict(zip(dict(between), groups[item % len(groups)], strict=True))
        for cell in itertools.product(*dict(within).values()):
            rows.append({"item": f"i{item:02d}", **own, **dict(zip(dict(within), cell, strict=True))})
    obs = pd.DataFrame(rows)
    return obs.assign(n_words=np.random.default_rng(seed).normal(size=len(obs)))


def fitted(design, obs, contrast, y):
    """Statistic of one feature through plan and fit."""
    plan = design.plan(design.table(obs), design.contrast(contrast, obs))
    table = design.table(obs, y[:, None])
    fit = linear_fit(plan.reduce @ np.asarray(table.values), plan.hypothesis)
    return plan, float(fit.stat[0]), plan.scale * float(fit.projection[0, 0])


FORMALITY, EMOTION = {"formality": ["formal", "casual"]}, {"emotion": ["sad", "glad"]}


def test_effects_of_a_2x2_are_half_differences_and_the_difference_of_differences():
    obs = crossed(6, FORMALITY | EMOTION)
    design = FactorialDesign(FORMALITY | EMOTION)
    m11, m10, m01, m00 = RNG.normal(size=4)  # formal:sad, formal:glad, casual:sad, casual:glad
    y = np.tile([m11, m10, m01, m00], 6) + RNG.normal(size=24) * 1e-9
    assert fitted(design, obs, "formality", y)[2] == pytest.approx(((m11 + m10) - (m01 + m00)) / 2)
    assert fitted(design, obs, "emotion", y)[2] == pytest.approx(((m11 + m01) - (m10 + m00)) / 2)
    assert fitted(design, obs, "emotion:formality", y)[2] == pytest.approx(m11 - m10 - m01 + m00)
    assert design.cells(obs)[0] == ("formal:sad", "formal:glad", "casual:sad", "casual:glad")


def test_2x2_between_items_is_the_factorial_anova():
    obs = crossed(22, {}, FORMALITY | EMOTION).iloc[3:]  # unequal cells: type III
    y = RNG.lognormal(size=len(obs))
    frame = obs.assign(y=y)
    fit = smf.ols("y ~ C(formality, Sum) * C(emotion, Sum)", frame).fit()
    names = [name for name in fit.params.index if name != "Intercept"]
    for contrast, term in zip(
        ("emotion", "formality", "formality:emotion"), (names[1], names[0], names[2]), strict=True
    ):
        plan, stat, effect = fitted(FactorialDesign(["formality", "emotion"]), obs, contrast, y)
        assert stat == pytest.approx(fit.tvalues[term]) and plan.hypothesis.df == fit.df_resid
        factor = 4 if ":" in contrast else 2
        assert effect == pytest.approx(factor * fit.params[term])
        assert plan.exchangeability.kind == "whole_item" and "Freedman-Lane" in plan.exchangeability.sentence


def test_effects_within_items_are_repeated_measures_anova():
    from statsmodels.stats.anova import AnovaRM

    within = {"a": list("xyz"), "b": list("pq"), "c": list("klm")}
    obs = crossed(9, within)
    y = RNG.lognormal(size=len(obs)) + obs["item"].str[1:].astype(int).to_numpy()
    table = AnovaRM(obs.assign(y=y), "y", "item", ["a", "b", "c"]).fit().anova_table
    design = FactorialDesign(["a", "b", "c"])
    for name in design.effects(obs):
        plan, stat, _ = fitted(design, obs, name, y)
        row = table.loc[name]
        assert (stat**2 if plan.hypothesis.rank == 1 else stat) == pytest.approx(row["F Value"])
        assert (plan.hypothesis.rank, plan.hypothesis.df) == (row["Num DF"], row["Den DF"])


def test_mixed_designs_are_split_plot_anova():
    pingouin = pytest.importorskip("pingouin")
    obs = crossed(17, {"b": list("pqr")}, {"g": list("uv")})
    y = RNG.normal(size=len(obs)) + obs["item"].str[1:].astype(int).to_numpy()
    theirs = pingouin.mixed_anova(obs.assign(y=y), dv="y", within="b", between="g", subject="item").set_index("Source")
    design = FactorialDesign(["g", "b"])
    for contrast, row in (("g", "g"), ("g:b", "Interaction")):
        plan, stat, _ = fitted(design, obs, contrast, y)
        assert (stat**2 if plan.hypothesis.rank == 1 else stat) == pytest.approx(theirs.loc[row, "F"])
        assert plan.hypothesis.df == theirs.loc[row, "DF2"]
        assert plan.exchangeability.kind == "whole_item"
    assert fitted(design, obs, "b", y)[0].exchangeability.kind == "within_item"


def test_a_difference_compared_between_groups_is_a_t_test_of_differences():
    from scipy import stats

    obs = crossed(20, EMOTION, {"g": list("uv")})
    y = RNG.lognormal(size=len(obs))
    d = (y[obs["emotion"] == "sad"] - y[obs["emotion"] == "glad"])[:, None]
    plan, stat, effect = fitted(FactorialDesign({"g": ["u", "v"]} | EMOTION), obs, "g:emotion", y)
    theirs = stats.ttest_ind(d[::2], d[1::2])
    assert stat == pytest.approx(theirs.statistic[0]) and plan.hypothesis.df == 18
    assert effect == pytest.approx(d[::2].mean() - d[1::2].mean())


def test_covariates_equal_ols_between_and_difference_regression_within():
    obs = crossed(24, {}, {"g": list("uvw")})
    y = RNG.lognormal(size=len(obs))
    fit = smf.ols("y ~ 0 + C(g) + n_words", obs.assign(y=y)).fit()
    theirs = fit.t_test([1, -0.5, -0.5, 0])
    plan, stat, effect = fitted(CategoricalDesign("g", covariates=["n_words"]), obs, "u - 0.5*v - 0.5*w", y)
    assert stat == pytest.approx(theirs.tvalue.item()) and effect == pytest.approx(theirs.effect.item())
    assert plan.hypothesis.df == fit.df_resid and plan.hypothesis.nuisance.shape[1] == 1
    obs = crossed(24, EMOTION)
    y = RNG.lognormal(size=len(obs))
    d = obs.assign(y=y).pivot(index="item", columns="emotion", values=["y", "n_words"])
    d = pd.DataFrame({name: d[name]["sad"] - d[name]["glad"] for name in ("y", "n_words")})
    theirs = smf.ols("y ~ n_words", d).fit()
    plan, stat, _ = fitted(CategoricalDesign("emotion", covariates=["n_words"]), obs, "sad - glad", y)
    assert stat == pytest.approx(theirs.tvalues["Intercept"]) and plan.exchangeability.kind == "sign_flip"


def test_blocks_are_held_constant_and_limit_the_exchange():
    obs = crossed(24, {}, {"g": list("uv"), "topic": list("klm")})
    y = RNG.normal(size=len(obs)) + obs["topic"].map({"k": 0, "l": 5, "m": 9}).to_numpy()
    design = CategoricalDesign("g", blocks="topic")
    plan, stat, _ = fitted(design, obs, "u - v", y)
    fit = smf.ols("y ~ C(g, Sum) + C(topic)", obs.assign(y=y)).fit()
    assert stat == pytest.approx(fit.tvalues["C(g, Sum)[S.u]"]) and plan.hypothesis.df == fit.df_resid
    assert plan.exchangeability.n_possible == 70**3 and "each of 3 blocks" in plan.exchangeability.sentence


def test_three_levels_against_one_another_within_items_are_not_sign_flipped():
    obs = crossed(8, {"e": list("xyz")})
    design = DiscriminativeDesign("e", "x")
    assert design.exchangeability(obs).kind == "within_item" and design.exchangeability(obs).n_possible == 6**8
    assert design.contrast("x", obs).weights == ((1.0, -0.5, -0.5),)
    rdm = design.model_rdm(obs)
    same = (obs["e"] == "x").to_numpy()
    assert (rdm[np.ix_(same, same)] == 0).all() and (rdm[np.ix_(same, ~same)] == 1).all()
    others = rdm[np.ix_(~same, ~same)]
    assert np.isnan(others[~np.eye(len(others), dtype=bool)]).all()


def test_model_rdms_of_factors_and_interaction():
    obs = crossed(2, FORMALITY | EMOTION)
    design = FactorialDesign(["formality", "emotion"])
    a, b = ((obs[name].to_numpy()[:, None] != obs[name].to_numpy()).astype(float) for name in ("formality", "emotion"))
    np.testing.assert_allclose(design.model_rdm(obs, "formality"), a)
    np.testing.assert_allclose(design.model_rdm(obs), a)
    np.testing.assert_allclose(design.model_rdm(obs, "formality:emotion"), np.abs(a - b))
    three = crossed(2, {"e": list("xyz")})
    levels = three["e"].to_numpy()
    np.testing.assert_allclose(CategoricalDesign("e").model_rdm(three), levels[:, None] != levels)
    number = FormulaDesign("n_words").model_rdm(three)
    distance = (three["n_words"].to_numpy()[:, None] - three["n_words"].to_numpy()) ** 2
    np.testing.assert_allclose(number, distance / distance.max(), atol=1e-12)
    with pytest.raises(InvalidInput, match="no effect 'style'"):
        design.model_rdm(obs, "style")


def test_formulas_equal_statsmodels_between_and_within():
    obs = crossed(30, {}, {"g": list("uvw")}).assign(x=RNG.normal(size=30), z=RNG.normal(size=30))
    y = RNG.lognormal(size=30)
    fit = smf.ols("y ~ C(g) * x + z", obs.assign(y=y)).fit()
    design = FormulaDesign("C(g) * x + z")
    plan, stat, _ = fitted(design, obs, "x", y)
    assert stat == pytest.approx(fit.tvalues["x"]) and plan.hypothesis.df == fit.df_resid
    plan, stat, _ = fitted(design, obs, "C(g):x", y)
    theirs = fit.f_test("C(g)[T.v]:x = 0, C(g)[T.w]:x = 0")
    assert stat == pytest.approx(float(theirs.fvalue)) and plan.hypothesis.rank == 2
    plan, stat, _ = fitted(design, obs, "x - z", y)
    assert stat == pytest.approx(fit.t_test("x - z").tvalue.item())


def test_a_formula_within_items_tests_one_score_per_item():
    obs = crossed(12, {"e": list("xy"), "t": ["1", "2", "3"]}).iloc[2:]
    y = RNG.lognormal(size=len(obs)) + obs["item"].str[1:].astype(int).to_numpy()
    fit = smf.ols("y ~ e * n_words + C(item)", obs.assign(y=y)).fit()
    term = "e[T.y]:n_words"
    plan, stat, effect = fitted(FormulaDesign("e * n_words", template="t"), obs, "e:n_words", y)
    assert effect == pytest.approx(fit.params[term])  # the estimate is that of ordinary least squares
    model = fit.model.exog
    column = model[:, fit.model.exog_names.index(term)]
    others = np.delete(model, fit.model.exog_names.index(term), axis=1)
    rest = column - others @ np.linalg.lstsq(others, column)[0]
    residual = y - others @ np.linalg.lstsq(others, y)[0]  # under the null hypothesis
    scores = pd.Series(rest * residual).groupby(obs["item"].to_numpy()).sum()
    n = len(scores)
    assert stat == pytest.approx(scores.mean() / (scores.std(ddof=1) / np.sqrt(n))) and plan.hypothesis.df == n - 1
    assert plan.exchangeability.kind == "sign_flip" and plan.exchangeability.n_possible == 2**12
    with pytest.raises(InvalidInput, match="one column at a time"):
        three = crossed(12, {"e": list("xyz")})
        FormulaDesign("e").exchangeability(three)


def test_a_formula_and_cells_agree_within_items():
    obs = crossed(12, FORMALITY | EMOTION)
    y = RNG.lognormal(size=len(obs)) + obs["item"].str[1:].astype(int).to_numpy()
    cells = fitted(FactorialDesign(FORMALITY | EMOTION), obs, "formality", y)
    formula = fitted(FormulaDesign("formality + emotion"), obs, "formality[T.formal]", y)
    assert formula[1:] == pytest.approx(cells[1:]) and formula[0].exchangeability.n_possible == 2**12


def test_a_slope_between_items_is_that_of_the_average_condition_whatever_is_missing():
    obs = crossed(30, {"e": list("xy")}).assign(n_words=lambda t: t["item"].str[1:].astype(int) % 7)
    y = (np.where(obs["e"] == "y", 0.3, 0) * obs["n_words"] + 0.01 * RNG.normal(size=len(obs))).to_numpy()
    for start in range(4):
        effect = fitted(FormulaDesign("e * n_words"), obs[start:], "n_words", y[start:])[2]
        assert effect == pytest.approx(0.15, abs=0.02)


def test_the_matrix_is_never_perturbed():
    obs = crossed(12, {}, {"g": list("uv")}).assign(twice=lambda table: 2 * table["n_words"])
    design = FormulaDesign("g + n_words + twice")
    plan = design.plan(design.table(obs), design.contrast("g", obs))
    assert plan.model_rank == 3 < plan.n_columns  # redundant columns are no error where the contrast is determined
    with pytest.raises(InvalidInput, match="cannot be estimated"):
        design.exchangeability(obs, "twice")
    obs = crossed(12, {}, {"g": list("uv")}).assign(n_words=lambda table: (table["g"] == "u") * 2.0)
    with pytest.raises(InvalidInput, match="follows from the covariates"):
        CategoricalDesign("g", covariates=["n_words"]).exchangeability(obs)


DESIGNS = [
    (CategoricalDesign("g", covariates=["n"], blocks="b", template="t"), {"x": "u - v", "m": [[1.0, -1.0]]}),
    (CategoricalDesign("g", item=None, item_reason="every sentence is from another author"), {}),
    (DiscriminativeDesign("g", "u", item="pair"), {}),
    (FactorialDesign(["a", "b"]), {"both": ["a:b"]}),
    (FactorialDesign({"a": ["y", "x"], "b": ["p", "q", "r"]}), {"i": "a:b"}),
    (FormulaDesign("log(x) + C(g, contr.sum):y"), {"e": "log(x)"}),
]


@pytest.mark.parametrize(("design", "contrasts"), DESIGNS)
def test_designs_survive_a_file(design, contrasts, tmp_path):
    write_design(tmp_path / "d.yaml", design, contrasts, "Why?")
    assert read_design(tmp_path / "d.yaml") == (design, contrasts)
    assert "!!" not in (tmp_path / "d.yaml").read_text()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CategoricalDesign("g", item=None), "write down in item_reason"),
        (lambda: CategoricalDesign("g", item_reason="because"), "only for a design without items"),
        (lambda: CategoricalDesign("g", template="item"), "'item' is given two roles"),
        (lambda: FactorialDesign(["a"]), "categorical design for one"),
        (lambda: FactorialDesign("ab"), "list of columns"),
        (lambda: FactorialDesign(["a:b", "c"]), "contains ':'"),
        (lambda: FactorialDesign({"a": ["x", "x"], "b": ["p", "q"]}), "different names"),
        (lambda: FormulaDesign("y ~ g"), "right-hand side"),
        (lambda: FormulaDesign(" "), "right-hand side"),
        (lambda: FormulaDesign("g +* x"), "cannot be read"),
        (lambda: FormulaDesign("a | b"), "has parts"),
        (lambda: FormulaDesign("sqrtt(x)"), "calls 'sqrtt'"),
        (lambda: FormulaDesign("log(__import__('os').getcwd())"), "calls '__import__'"),
        (lambda: FormulaDesign("log(x.__class__)"), "more than columns"),
        (lambda: FormulaDesign("{[q for q in x]}"), "more than columns"),
        (lambda: FormulaDesign("{(lambda: 1)()}"), "more than columns"),
        (lambda: FormulaDesign("x + {x + 9**9**8}"), "too many interactions"),
        (lambda: FormulaDesign("{x**(9 - 1)}"), "a power above 5"),
        (lambda: FormulaDesign("(a + b + c)**99"), "too many interactions"),
        (lambda: FormulaDesign("*".join("abcdefghijkl")), "too many interactions"),
    ],
)
def test_designs_that_make_no_sense_are_refused(make, words):
    with pytest.raises(InvalidInput) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


GRID = crossed(12, FORMALITY | EMOTION)


@pytest.mark.parametrize(
    ("design", "obs", "contrast", "words"),
    [
        (FactorialDesign(["formality", "emotion"]), GRID, "formalty", "did you mean"),
        (
            FactorialDesign(["formality", "emotion"]),
            GRID.query("formality != 'formal' or emotion == 'sad'"),
            "emotion",
            "no trial belongs to the cell 'formal:glad'",
        ),
        (FactorialDesign(["formality", "emotion"]), GRID[GRID["formality"] == "formal"], "emotion", "single level"),
        (
            FactorialDesign({"formality": ["formal", "rude"], "emotion": ["sad", "glad"]}),
            GRID,
            "emotion",
            "'formality' has the value 'casual'",
        ),
        (DiscriminativeDesign("emotion", "glat"), GRID, None, "did you mean 'glad'?"),
        (FormulaDesign("formality + nope"), GRID, "formality", "no column 'nope'"),
        (FormulaDesign("1"), GRID, None, "nothing to test but the constant"),
        (FormulaDesign("log(n_words)"), GRID, "log(n_words)", "not finite"),
        (CategoricalDesign("emotion", blocks="formality"), GRID, None, "lies in 2 values of 'formality'"),
        (CategoricalDesign("emotion", covariates=["formality"]), GRID, None, "finite numbers"),
    ],
)
def test_data_that_do_not_fit_are_refused(design, obs, contrast, words):
    with pytest.raises(InvalidInput) as caught:
        design.exchangeability(obs, contrast)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_cells_need_names_of_their_own():
    obs = crossed(6, {"a": ["x", "x:y"], "b": ["z", "y:z"]})
    with pytest.raises(InvalidInput, match="two cells would be called 'x:y:z'"):
        FactorialDesign(["a", "b"]).effects(obs)["a"]


def test_a_level_called_others_is_a_level():
    obs = crossed(6, {"e": ["joy", "others", "rage"]})
    design = DiscriminativeDesign("e", "joy")
    assert design.contrast("joy - others", obs).weights == ((1.0, -1.0, 0.0),)
    assert design.contrast("joy", obs).weights == ((1.0, -0.5, -0.5),)


def test_a_covariate_with_a_large_offset_counts():
    obs = crossed(20, {}, {"g": list("uv")}).assign(n_words=lambda t: RNG.random(len(t)) * 1e9)
    y, design = RNG.normal(size=20), CategoricalDesign("g", covariates=["n_words"])
    shifted = obs.assign(n_words=obs["n_words"] + 1.7e18)
    plain, moved = fitted(design, obs, "u - v", y), fitted(design, shifted, "u - v", y)
    assert moved[1] == pytest.approx(plain[1], rel=1e-4) and moved[0].hypothesis.df == plain[0].hypothesis.df == 17


@pytest.mark.parametrize("spread", [1e9, 1e14])
def test_a_column_of_a_formula_with_a_large_offset_counts(spread):
    """Dates in nanoseconds, over seconds or days; between items and within them."""
    for n_items, within, between in ((20, {}, {"g": list("uv")}), (20, {"g": list("uv")}, {})):
        obs = crossed(n_items, within, between).assign(when=lambda t: np.round(RNG.random(len(t)) * 1e6) / 1e6 * spread)
        y, design = RNG.normal(size=len(obs)), FormulaDesign("g + when")
        shifted = obs.assign(when=obs["when"] + 1.7e18)
        for term in ("g", "when"):
            plain, moved = fitted(design, obs, term, y), fitted(design, shifted, term, y)
            assert moved[1] == pytest.approx(plain[1], rel=1e-4)
            assert moved[0].model_rank == plain[0].model_rank
    dates = 1.7e18 + spread * RNG.random(20)
    many = crossed(20, {}, {"g": list("uv")}).assign(when=dates).loc[np.repeat(np.arange(20), 3000)]
    assert FormulaDesign("g + when").exchangeability(many.reset_index(drop=True), "when").kind == "whole_item"


@pytest.mark.parametrize("n_items", [6, 10, 12, 20, 22])
def test_a_constant_column_is_no_variation(n_items):
    obs = crossed(n_items, {}, {"g": list("uv")}).assign(c=0.1)
    design = FormulaDesign("g + c")
    assert design.plan(design.table(obs), design.contrast("g", obs)).model_rank == 2
    with pytest.raises(InvalidInput, match="3 columns, rank 2 with the constant"):
        design.exchangeability(obs, "c")


def test_a_contrast_of_all_cells_of_a_mixed_design_is_told_the_names_of_effects():
    obs = crossed(10, EMOTION, FORMALITY)
    design = FactorialDesign(FORMALITY | EMOTION)
    text = "formal:sad - formal:glad - casual:sad + casual:glad"
    with pytest.raises(InvalidInput, match="effects go by their names, 'formality', 'emotion', 'formality:emotion'"):
        design.exchangeability(obs, text)
    assert design.exchangeability(obs, "formality:emotion").kind == "whole_item"


def test_a_column_that_is_there_twice_is_refused():
    obs = crossed(10, EMOTION)
    with pytest.raises(InvalidInput, match="2 columns 'emotion'; rename all but one"):
        CategoricalDesign("emotion").exchangeability(pd.concat([obs, obs[["emotion"]]], axis=1))


def test_a_factor_that_varies_in_few_items_is_refused():
    obs = pd.concat([crossed(10, EMOTION, FORMALITY), crossed(10, FORMALITY | EMOTION).assign(item="both")])
    with pytest.raises(InvalidInput, match="varies within 1 of 11 values of 'item'"):
        FactorialDesign(["formality", "emotion"]).exchangeability(obs)


def test_sparse_tables_stay_sparse():
    obs = crossed(10, FORMALITY | EMOTION)
    X = sparse.random(len(obs), 40, density=0.2, format="csr", random_state=0)
    design = FactorialDesign(["formality", "emotion"])
    table = design.table(obs, X)
    plan = design.plan(table, design.contrast("formality", obs))
    assert sparse.issparse(table.values) and sparse.issparse(plan.reduce @ table.values)
