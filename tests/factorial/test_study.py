"""A factorial study finds what was planted, and nothing where nothing is."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.factorial import FactorialStudy, factorial_study, simulate_units
from neurollm.factorial.scales import SCALES, effect_on_scale
from neurollm.glm import FeatureGLM

ALL = {"none": 60, "main": 5, "sum": 5, "threshold": 5, "and": 5, "or": 5, "xor": 5}


@pytest.fixture(scope="module")
def sim():
    return simulate_units(80, ALL)


@pytest.fixture(scope="module")
def study(sim):
    return factorial_study(sim.X, sim.obs, sim.design, n_candidates=30, n_perm=500)


def raw(study, effect):
    frame = study.to_frame()
    return frame[(frame["scale"] == "raw") & (frame["effect"] == effect)].set_index("column")


def on_ranks(X, obs, design):
    """The interaction tested on aligned ranks."""
    effect = design.effects(obs)["f1:f2"]
    options = {"features": np.arange(X.shape[1]), "n_perm": 1, "random_state": 0}
    return effect_on_scale(X, obs, design, effect, "rank", **options)


def test_parts_share_no_item_and_no_text(sim, study):
    tested = set(study.items()["item"])
    assert len(tested) == study.n_items_test == 40
    assert study.n_items_discovery == 40
    assert tested < set(sim.obs["item"])
    # a text that two items share ties them together
    obs = sim.obs.copy()
    obs.loc[obs["item"].isin(["item 00", "item 01"]) & (obs["f1"] == "on"), "text"] = "the same"
    both = {"item 00", "item 01"}
    for seed in range(2):
        again = factorial_study(sim.X[:, 60:62], obs, sim.design, n_candidates=1, n_perm=19, random_state=seed)
        assert len(both & set(again.items()["item"])) != 1


@pytest.mark.parametrize("share", [0.3])
def test_share_of_discovery(sim, share):
    study = factorial_study(sim.X, sim.obs, sim.design, n_candidates=2, n_perm=19, discovery=share)
    assert abs(study.n_items_discovery - 80 * share) <= 4
    assert study.n_items_discovery + study.n_items_test == 80


def test_within_items_effects_are_one_sample_t_tests_of_item_contrasts(sim, study):
    weights = {"f1": [0.5, 0.5, -0.5, -0.5], "f2": [0.5, -0.5, 0.5, -0.5], "f1:f2": [1, -1, -1, 1]}
    items = study.items()
    for column, (effect, weight) in itertools.product([60, 66, 71, 76], weights.items()):
        wide = items[items["column"] == column].pivot(index="item", columns=["f1", "f2"], values="mean")
        cells = [("on", "on"), ("on", "off"), ("off", "on"), ("off", "off")]
        score = wide[cells].to_numpy() @ np.array(weight)
        expected, row = stats.ttest_1samp(score, 0), raw(study, effect).loc[column]
        assert row["estimate"] == pytest.approx(score.mean())
        assert row["t"] == pytest.approx(expected.statistic)
        interval = expected.confidence_interval()
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
        if expected.pvalue > 1e-6:
            assert np.log(row["p"]) == pytest.approx(np.log(expected.pvalue), abs=1)


def test_between_items_effects_are_type_iii_with_unequal_variances():
    """The estimates of least squares with standard errors HC2, which are Welch's in a model of group means."""
    ols = pytest.importorskip("statsmodels.formula.api").ols
    sim = simulate_units(90, {"none": 3, "sum": 2, "and": 2}, between=2)
    keep = np.ones(len(sim.obs), bool)
    keep[np.flatnonzero((sim.obs["f1"] == "on") & (sim.obs["f2"] == "off"))[:9]] = False  # unequal cells
    obs = sim.obs[keep].reset_index(drop=True)
    study = factorial_study(sim.X[keep], obs, sim.design, n_candidates=7, n_perm=200)
    for column in (4, 6):
        items = study.items()
        items = items[items["column"] == column].assign(**{
            name: np.where(items.loc[items["column"] == column, name] == "on", 0.5, -0.5) for name in ("f1", "f2")
        })  # fmt: skip
        fit = ols("mean ~ f1 * f2", items).fit()
        for effect in ("f1", "f2", "f1:f2"):
            row = raw(study, effect).loc[column]
            assert row["estimate"] == pytest.approx(fit.params[effect])
            se = fit.get_robustcov_results("HC2").bse[fit.params.index.get_loc(effect)]
            assert row["t"] == pytest.approx(row["estimate"] / se)
            half = stats.t(row["df"]).ppf(0.975) * se
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["estimate"] - half, row["estimate"] + half))
            parts = items.groupby(["f1", "f2"])["mean"].agg(lambda one: one.var() / len(one))
            sizes = items.groupby(["f1", "f2"])["mean"].size()
            assert row["df"] == pytest.approx(parts.sum() ** 2 / (parts**2 / (sizes - 1)).sum())


def test_candidates_are_the_largest_t_of_discovery_and_all_are_one_family(sim, study):
    frame = study.to_frame()
    for effect in ("f1", "f2", "f1:f2"):
        rows = raw(study, effect)
        chosen = rows[rows["chosen"]]
        assert len(chosen) == 30
        assert chosen["t_discovery"].abs().min() >= rows.loc[~rows["chosen"], "t_discovery"].abs().max()
        assert rows["q"].to_numpy() == pytest.approx(stats.false_discovery_control(rows["p"]))
        assert (rows["p_fwer"] >= rows["p"] * 0.5).all()
    assert set(frame["scale"]) == set(SCALES)
    assert len(frame) == 9 * len(study.candidates)


def test_discovery_never_sees_the_test_items(sim, study):
    """Turning the test items upside down changes the test, not the choice."""
    tested = sim.obs["item"].isin(study.items()["item"]).to_numpy()
    X = sim.X.toarray()
    X[tested] = -X[tested]
    turned = factorial_study(X, sim.obs, sim.design, n_candidates=30, n_perm=19)
    assert turned.candidates == study.candidates
    assert np.allclose(raw(turned, "f1")["t_discovery"], raw(study, "f1")["t_discovery"])
    assert np.allclose(raw(turned, "f1")["t"], -raw(study, "f1")["t"])
    assert turned.signed and not study.signed
    log = [one.to_frame().query("scale == 'log1p'")["estimate"].to_numpy() for one in (study, turned)]
    assert np.allclose(log[0], -log[1])


def test_null_data_reject_at_their_level_and_double_dipping_does_not():
    """Selection in discovery costs the test nothing; selection on the same items costs it everything."""
    n, p, p_fwer, dipped = 6, [], [], []
    obs = simulate_units(24, {"none": 1}).obs
    design = FactorialDesign(["f1", "f2"])
    for seed in range(n):
        rng = np.random.default_rng(seed)
        X = (rng.random((96, 300)) < 0.5) * rng.standard_t(4, (96, 300))
        frame = factorial_study(X, obs, design, n_candidates=30, n_perm=99, random_state=seed).to_frame()
        frame = frame[(frame["scale"] == "raw") & frame["chosen"]]
        p.append(frame["p"])
        p_fwer.append(frame.groupby("effect")["p_fwer"].min())
        same = FeatureGLM(design, n_perm=0).fit(X, obs).compute_contrast("f1:f2")
        dipped.append(same.p[np.argsort(-np.abs(same.stat))[:30]])
    p, dipped = np.concatenate(p), np.concatenate(dipped)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    low, high = stats.binom(p.size, 0.05).ppf([0.0005, 0.9995])
    assert low <= (p <= 0.05).sum() <= high
    assert (np.concatenate(p_fwer) <= 0.05).sum() <= stats.binom(3 * n, 0.05).ppf(0.999)
    assert (dipped <= 0.05).mean() > 0.3


@pytest.mark.parametrize("between", [0, 1, 2])
def test_aligned_ranks_keep_their_level_under_strong_main_effects(between):
    obs = simulate_units(40, {"none": 1}, between=between).obs
    design = FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")})
    rng, n = np.random.default_rng(between), 1000
    main = 3 * (obs["f1"] == "on").to_numpy(float) + 3 * (obs["f2"] == "on").to_numpy(float)
    X = main[:, None] + rng.exponential(size=(len(obs), n))
    result = on_ranks(X, obs, design)
    rejected = int((result.p <= 0.05).sum())
    low, high = stats.binom(n, 0.05).ppf([0.0005, 0.9995])
    assert low <= rejected <= high
    if between == 2:  # ranks of the values themselves: bent by the main effects
        plain = FeatureGLM(design, n_perm=0, scale="rank").fit(X, obs).compute_contrast("f1:f2")
        assert (plain.p <= 0.05).sum() < low


def test_aligned_ranks_with_unequal_cells_where_plain_ranks_find_what_is_not_there():
    sizes, n = (15, 15, 15, 105), 600
    cells = [
        cell for cell, size in zip(itertools.product(("on", "off"), repeat=2), sizes, strict=True) for _ in range(size)
    ]
    obs = pd.DataFrame(cells, columns=["f1", "f2"]).assign(item=range(150))
    design = FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")})
    main = 2.0 * (obs["f1"] == "on") + 1.0 * (obs["f2"] == "on")
    X = main.to_numpy()[:, None] + np.random.default_rng(1).exponential(size=(150, n))
    rates = []
    for result in (
        on_ranks(X, obs, design),
        FeatureGLM(design, n_perm=0, scale="rank").fit(X, obs).compute_contrast("f1:f2"),
    ):
        rates.append((result.p <= 0.05).mean())
    assert rates[0] < 0.08 < 0.2 < rates[1]


def test_aligned_ranks_are_those_of_residuals():
    sim = simulate_units(60, {"sum": 1, "and": 1}, between=2)
    X = sim.X.toarray()
    result = on_ranks(X, sim.obs, sim.design)
    order = np.argsort(sim.obs["item"].to_numpy())
    a, b = (np.where(sim.obs[name].to_numpy()[order] == "on", 1.0, -1.0) for name in ("f1", "f2"))
    additive, full = (np.column_stack(columns) for columns in ([a * 0 + 1, a, b], [a * 0 + 1, a, b, a * b]))
    for column in (0, 1):
        y = X[order, column]
        rest = y - additive @ np.linalg.lstsq(additive, y, rcond=None)[0]
        ranks = stats.rankdata(rest.round(10))
        beta = np.linalg.lstsq(full, ranks, rcond=None)[0]
        residual = ranks - full @ beta
        se = np.sqrt(residual @ residual / 56 * np.linalg.inv(full.T @ full)[3, 3])
        assert result.stat[column] == pytest.approx(beta[3] / se)


def test_one_way_anova_is_no_test_of_the_interaction():
    sim = simulate_units(60, {"main": 60}, effect=0.6)
    study = factorial_study(sim.X, sim.obs, sim.design, n_candidates=60, n_perm=19)
    items, one_way = study.items(), []
    for _, rows in items.groupby("column"):
        one_way.append(stats.f_oneway(*[cell["mean"] for _, cell in rows.groupby(["f1", "f2"])]).pvalue)
    assert (np.array(one_way) < 0.001).mean() > 0.9
    assert stats.kstest(raw(study, "f1:f2")["p"], "uniform").pvalue > 0.001
    assert (raw(study, "f1:f2")["p_fwer"] <= 0.05).sum() <= 1


def test_constant_columns_are_counted_and_never_tested(sim):
    X = sim.X.toarray()
    rng = np.random.default_rng(0)
    X[:, 0] = 0.353035 + 1e-8 * rng.normal(size=len(X)) + 3e-7 * (sim.obs["f2"] == "on")
    X[:, 1] = 0
    study = factorial_study(X, sim.obs, sim.design, n_perm=19)
    assert not {0, 1} & set(study.candidates)
    assert all(study.not_tested["discovery"][effect]["constant"] == 2 for effect in ("f1", "f2", "f1:f2"))


def test_rare_columns_can_be_left_out_before_looking_at_labels(sim):
    X = sim.X.toarray()
    X[:, 0] = 0
    X[::40, 0] = 5.0  # 8 items of 80, always the same cell
    counted = factorial_study(X, sim.obs, sim.design, n_candidates=90, n_perm=19, min_active_items=8)
    assert 0 not in counted.candidates
    assert counted.not_tested["discovery"]["f1"] == {"too few active items": 1}
    assert 0 in factorial_study(X, sim.obs, sim.design, n_candidates=90, n_perm=19).candidates


def test_column_that_is_constant_in_the_test_items_is_untested(sim, study):
    X = sim.X.toarray()
    X[sim.obs["item"].isin(study.items()["item"]).to_numpy(), 60] = 0
    again = factorial_study(X, sim.obs, sim.design, n_candidates=30, n_perm=19)
    assert np.isnan(raw(again, "f1").loc[60, ["t", "p", "p_fwer", "q"]].astype(float)).all()
    assert again.units().set_index("column").loc[60, "kind"] == "untested"
    assert again.not_tested["test"]["f1"] == {"constant": 1}
    assert "could not be tested" in again.verdict()


def test_a_length_covariate_takes_a_column_of_length():
    obs = simulate_units(80, {"none": 1}).obs
    rng = np.random.default_rng(0)
    tokens = 10 + rng.integers(0, 5, len(obs)) + 4 * (obs["f1"] == "on")
    obs = obs.assign(length=1 / tokens)
    X = np.column_stack([1 / tokens + 1e-4 * rng.normal(size=len(obs)), rng.normal(size=(len(obs), 10))])
    plain = factorial_study(X, obs, FactorialDesign(["f1", "f2"]), n_candidates=11, n_perm=99)
    held = factorial_study(X, obs, FactorialDesign(["f1", "f2"], covariates=["length"]), n_candidates=11, n_perm=99)
    assert raw(plain, "f1").loc[0, "p_fwer"] <= 0.05
    assert raw(held, "f1").loc[0, "p"] > 0.01


@pytest.mark.parametrize("n_factors", [3, 4])
def test_designs_of_higher_order(n_factors):
    names = [f"f{number}" for number in range(n_factors)]
    cells = np.array(list(itertools.product((1, -1), repeat=n_factors)))
    obs = pd.DataFrame(np.tile(np.where(cells > 0, "on", "off"), (24, 1)), columns=names)
    obs["item"] = np.repeat(np.arange(24), len(cells))
    obs["text"] = obs.astype(str).agg(" ".join, axis=1)
    design = FactorialDesign({name: ("on", "off") for name in names})
    X = np.random.default_rng(0).normal(size=(len(obs), 30))
    X[:, 7] += np.tile(cells.prod(axis=1), 24)
    study = factorial_study(X, obs, design, n_candidates=3, n_perm=99)
    effects = study.effects().set_index(["column", "effect"])
    assert len(study.to_frame()["effect"].unique()) == 2**n_factors - 1
    row = effects.loc[(7, ":".join(names))]
    assert row["survives"] and row["order"] == n_factors
    assert row["estimate"] == pytest.approx(2**n_factors, abs=1.5 * 2 ** (n_factors - 2))  # Σ (product of codes)·m
    assert effects["significant"].sum() <= 3
    for method in (study.units, study.simple_effects):
        with pytest.raises(InvalidInput, match="two factors"):
            method()
    assert "survive" in study.verdict()


def test_saved_and_read_back(study, tmp_path):
    again = FactorialStudy.load(study.save(tmp_path / "study").parent)
    for name in ("to_frame", "units", "cells", "items", "effects", "simple_effects"):
        pd.testing.assert_frame_equal(getattr(again, name)(), getattr(study, name)())
    assert (again.verdict(), again.factors, again.warnings) == (study.verdict(), study.factors, study.warnings)
    (tmp_path / "study" / "units.parquet").write_bytes(b"no table")
    with pytest.raises(DataMismatch, match="damaged"):
        FactorialStudy.load(tmp_path / "study")
    with pytest.raises(InvalidInput, match="no such file"):
        FactorialStudy.load(tmp_path)


def test_sparse_dense_and_order_of_trials_do_not_matter(sim, study):
    order = np.random.default_rng(0).permutation(len(sim.obs))
    again = factorial_study(
        sim.X.toarray()[order], sim.obs.iloc[order].reset_index(drop=True), sim.design, n_candidates=30, n_perm=500
    )
    pd.testing.assert_frame_equal(again.to_frame(), study.to_frame())
    columns = sparse.csc_array(sim.X)
    pd.testing.assert_frame_equal(
        factorial_study(columns, sim.obs, sim.design, n_candidates=30, n_perm=500).units(), study.units()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_candidates": 0}, "n_candidates"),
        ({"discovery": 1.0}, "discovery"),
        ({"discovery": "half"}, "discovery"),
        ({"alpha": 0}, "alpha"),
        ({"preferred": {"f1": "on"}}, "preferred"),
        ({"preferred": {"f1": "on", "f2": "up"}}, "preferred"),
    ],
)
def test_wrong_options_are_refused(sim, options, message):
    with pytest.raises(InvalidInput, match=message):
        factorial_study(sim.X, sim.obs, sim.design, **options)


def test_wrong_data_are_refused(sim):
    with pytest.raises(InvalidInput, match="FactorialDesign"):
        factorial_study(sim.X, sim.obs, CategoricalDesign("f1"))
    with pytest.raises(DataMismatch, match="rows"):
        factorial_study(sim.X[1:], sim.obs, sim.design)
    with pytest.raises(InvalidInput, match="text"):
        factorial_study(sim.X, sim.obs.drop(columns="text"), sim.design)
    three = sim.obs.assign(f1=np.resize(["a", "b", "c"], len(sim.obs)))
    with pytest.raises(InvalidInput, match="two"):
        factorial_study(sim.X, three, FactorialDesign(["f1", "f2"]))
    with pytest.raises(InvalidInput, match="rename"):
        factorial_study(sim.X, sim.obs.rename(columns={"f1": "mean"}), FactorialDesign(["mean", "f2"]))
    with pytest.raises(InvalidInput, match="no column varies"):
        factorial_study(np.ones((len(sim.obs), 3)), sim.obs, sim.design)
