"""What a unit is called: by tests, in spite of sign, unit of activation and unequal variances."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurollm.designs import FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.factorial import FactorialStudy, factorial_study, simulate_units
from neurollm.factorial.scales import effect_on_scale, typical_size
from neurollm.factorial.weightings import CellScores

DESIGN = FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")})


def crossed(n_items, cells, n=12, noise=0.4, signed=False, seed=0):
    """Columns with these means in 11, 10, 01, 00, heavy-tailed noise and a lognormal gain."""
    obs, rng = simulate_units(n_items, {"none": 1}).obs, np.random.default_rng(seed)
    gain = np.exp(0.3 * rng.standard_normal((4 * n_items, n)))
    X = np.tile(cells, n_items)[:, None] * gain
    spikes = rng.standard_t(4, X.shape) if signed else (rng.random(X.shape) < 0.3) * np.abs(rng.standard_t(4, X.shape))
    return X + noise * spikes, obs


def kinds(X, obs, **options):
    study = factorial_study(X, obs, DESIGN, **{"n_candidates": X.shape[1], "n_perm": 199, **options})
    return study.units().sort_values("column").reset_index(drop=True)


@pytest.fixture(scope="module")
def study():
    sim = simulate_units(30, {"none": 4, "and": 2, "sum": 2})
    return factorial_study(sim.X, sim.obs, sim.design, n_candidates=3, n_perm=99)


def test_exclusive_or_is_never_called_and_for_want_of_power():
    """So few items that a crossover cannot pass Holm's correction over 30 columns."""
    for noise in (0.25, 0.5):
        sim = simulate_units(20, {"xor": 30}, noise=noise, random_state=3)
        units = kinds(sim.X, sim.obs)
        assert units["significant"].sum() >= 25 and (units["kind"] == "and").sum() == 0
        assert units["p_little"].min() > 0.5


@pytest.mark.parametrize("n_items", [16, 60])
def test_sums_that_grow_faster_and_faster_are_not_called_and(n_items):
    """(a + b)² with cells 4, 1, 1, 0: one factor alone gives a quarter, and with 1.4 it gives more than a third."""
    X, obs = crossed(n_items, (4.0, 1.4, 1.4, 0.0), n=30)
    assert (kinds(X, obs)["kind"] == "and").mean() <= 0.05


@pytest.mark.parametrize("signed", [True, False])
def test_the_kind_does_not_depend_on_the_sign(signed):
    shapes = {"and": (2, 0, 0, 0), "or": (2, 2, 2, 0), "xor": (0, 2, 2, 0), "sum": (2, 1, 1, 0)}
    parts = [crossed(50, np.array(cells, float) - 0.5 * signed, n=3, signed=signed) for cells in shapes.values()]
    X, obs = np.hstack([part for part, _ in parts]), parts[0][1]
    plus, minus = kinds(X, obs, n_perm=99), kinds(-X, obs, n_perm=99)
    assert plus["kind"].tolist() == minus["kind"].tolist()
    assert (plus["turned"] != minus["turned"]).all()
    assert plus["interaction"].to_numpy() == pytest.approx(-minus["interaction"].to_numpy())
    for p in ("p_superadditive", "p_little", "p_ordered", "p_subadditive", "p_crossover"):
        assert plus[p].to_numpy() == pytest.approx(minus[p].to_numpy())
    assert (plus.loc[:2, "kind"] == "and").sum() >= 2


def test_real_interactions_without_main_effects_are_not_called_sub_additive():
    """Cells 1, 0, 0, 1 around a common mean, with so much noise that the reversal is rarely proven."""
    named = []
    for seed in range(2):
        X, obs = crossed(30, (1.0, 0.0, 0.0, 1.0), n=30, noise=0.9, seed=seed)
        units = kinds(X, obs)
        named.append(units.loc[units["significant"], "kind"])
    named = pd.concat(named)
    assert len(named) >= 20 and (named == "sub-additive").mean() <= 0.1


def test_saturated_sums_are_sub_additive_or_removable_and_never_lasting():
    from neurollm.reporting.factorial_results import counts

    X, obs = crossed(60, (1.0, 1.0, 1.0, 0.0), noise=0.2)
    study = factorial_study(X, obs, DESIGN, n_candidates=12, n_perm=199)
    assert study.units()["significant"].all() and study.units()["survives"].any()
    assert set(study.kinds()) <= {"sub-additive", "removable"}
    assert counts(study)["lasting"] == 0


def test_the_unit_of_activation_does_not_matter():
    X, obs = crossed(40, (3.0, 1.0, 1.0, 0.0), n=10)
    one, many = (factorial_study(scale * X, obs, DESIGN, n_candidates=10, n_perm=99) for scale in (1, 1000))
    assert one.units()["kind"].tolist() == many.units()["kind"].tolist()
    for table in (one.to_frame(), many.to_frame()):
        assert table["scale"].nunique() == 3
    log = [study.to_frame().query("scale == 'log1p'")["p"].to_numpy() for study in (one, many)]
    assert log[0] == pytest.approx(log[1])
    assert typical_size(np.array([[0, np.inf], [-2, -3], [6, 0]])).tolist() == [4.0, 3.0]


def test_not_found_on_ranks_is_not_removable():
    """A quarter of the items has a huge interaction, the others a tiny opposite one, so ranks have no common sign."""
    obs, rng = simulate_units(80, {"none": 1}).obs, np.random.default_rng(0)
    own = np.where(rng.random((80, 6)) < 0.25, 6.0, -0.02)
    X = 1 + own[np.repeat(np.arange(80), 4)] * np.tile([1.0, 0, 0, 0], 80)[:, None]
    units = kinds(X + 0.005 * rng.standard_normal(X.shape), obs, n_perm=99)
    on_ranks = units[units["reason"].str.contains("not found on ranks")]
    assert len(on_ranks) >= 3 and not on_ranks["survives"].any() and not on_ranks["removable"].any()
    assert (on_ranks["kind"] != "removable").all()


@pytest.mark.parametrize("between", [0, 1, 2])
def test_weighted_sums_of_cells_are_welch_tests(between):
    sim = simulate_units(40, {"and": 3}, between=between)
    table = sim.design.table(sim.obs, sim.X.toarray())
    means = pd.DataFrame(table.values[:, 1]).groupby([table.item_codes, table.cell_codes])[0].mean().unstack()
    weights = np.array([1.0, -3.0, 0.0, 2.0])
    p = CellScores.of(table).p_positive(np.repeat(weights[:, None], 3, axis=1))[1]
    scores = means * weights
    if between == 0:
        expected = stats.ttest_1samp(scores.sum(axis=1), 0, alternative="greater").pvalue
    else:
        groups = [scores[means[own].notna().all(axis=1)][own].sum(axis=1) for own in ([0, 2], [1, 3])]
        if between == 2:
            groups = [scores[cell].dropna() for cell in (0, 1, 3)]
        parts = np.array([one.var() / len(one) for one in groups])
        df = parts.sum() ** 2 / (parts**2 / [len(one) - 1 for one in groups]).sum()
        expected = stats.t(df).sf(sum(one.mean() for one in groups) / np.sqrt(parts.sum()))
    assert p == pytest.approx(expected)


def test_unequal_variances_between_items_do_not_make_effects():
    """Active where f1 is on only, unequal cells: of f2 and the interaction the pooled test finds far too many."""
    sizes = (10, 20, 30, 30)
    cells = itertools.product(("on", "off"), repeat=2)
    rows = [cell for cell, size in zip(cells, sizes, strict=True) for _ in range(size)]
    obs = pd.DataFrame(rows, columns=["f1", "f2"]).assign(item=range(90), text=[f"t{n}" for n in range(90)])
    found, options = {"f2": 0, "f1:f2": 0}, {"features": range(20), "n_perm": 99}
    for seed, effect in itertools.product(range(20), found):
        X = np.where((obs["f1"] == "on").to_numpy()[:, None], np.random.default_rng(seed).lognormal(size=(90, 20)), 0)
        result = effect_on_scale(X, obs, DESIGN, DESIGN.effects(obs)[effect], "raw", random_state=seed, **options)
        found[effect] += (result.p_fwer <= 0.05).any()
    assert sum(found.values()) <= 5  # of 40; with the pooled variance 10
    held = FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")}, covariates=["length"])
    with pytest.warns(UserWarning, match="pooled variance"):
        study = factorial_study(X, obs.assign(length=np.arange(90.0) % 7), held, n_candidates=5, n_perm=19)
    assert any("pooled variance" in text for text in study.warnings)


def test_sentences_say_what_was_found_and_not_what_is(study):
    reasons = " ".join(study.units()["reason"])
    assert "was found" in reasons and "co-activation" not in reasons and "neither factor has" not in reasons
    assert "p of each effect over all candidates, 99 of 99 shufflings" in study.verdict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_perm": 18}, "n_perm must be at least 19"),
        ({"n_perm": 98, "alpha": 0.01}, "n_perm must be at least 99"),
        ({"discovery": 0.97}, "between .05 and .95"),
        ({"discovery": 0.001}, "between .05 and .95"),
        ({"preferred": "on"}, "preferred must name a level"),
        ({"features": list("aabcdefg")}, "given more than once"),
        ({"features": [np.nan, *range(7)]}, "texts or numbers, found nan"),
        ({"features": np.array([*"abcd", *range(4)], object)}, "all texts or all numbers"),
        ({"min_active_items": 1000}, "active in 1000 or more items"),
    ],
)
def test_what_would_give_no_or_a_wrong_answer_is_refused(options, message):
    sim = simulate_units(20, {"none": 8})
    with pytest.raises(InvalidInput, match=message):
        factorial_study(sim.X, sim.obs, sim.design, **options)


def test_no_columns_and_a_factor_with_an_inner_name():
    sim = simulate_units(20, {"and": 2})
    with pytest.raises(InvalidInput, match="no columns"):
        factorial_study(np.zeros((80, 0)), sim.obs, sim.design)
    obs = sim.obs.rename(columns={"f1": "_cell"})
    cells = factorial_study(sim.X, obs, FactorialDesign(["_cell", "f2"]), n_perm=19).cells()
    assert cells["_cell"].tolist()[:4] == ["off", "off", "on", "on"]


@pytest.mark.parametrize("n", [0, -1, 2.5, "all"])
def test_a_wrong_number_of_panels_is_refused(study, n):
    from neurollm.plotting.factorial import plot_cells

    with pytest.raises(InvalidInput, match="n must be a whole number of at least 1"):
        plot_cells(study, n)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"noise": np.nan}, "noise"), ({"rate": 2}, "rate"), ({"effect": -1}, "effect"), ({"noise": "much"}, "noise")],
)
def test_wrong_simulations_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        simulate_units(4, {"none": 1}, **options)
    for n_items, count in ((0, 1), (2.5, 1), (4, -1)):
        with pytest.raises(InvalidInput, match="whole number"):
            simulate_units(n_items, {"none": count})


def test_the_share_of_discovery_is_the_one_that_was_reached():
    sim = simulate_units(40, {"and": 2})
    study = factorial_study(sim.X, sim.obs, sim.design, n_perm=19, discovery=0.37)
    assert study.discovery == study.n_items_discovery / 40 and abs(study.discovery - 0.37) < 0.06


def test_changed_files_of_a_study_are_told(study, tmp_path):
    path = study.save(tmp_path)
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"alpha": "high"}))
    with pytest.raises(DataMismatch, match="was changed"):
        FactorialStudy.load(tmp_path)
    study.save(tmp_path)
    sim = simulate_units(30, {"and": 3}, random_state=1)
    other = factorial_study(sim.X, sim.obs, sim.design, n_perm=19)
    other.unit_table.to_parquet(tmp_path / "units.parquet", index=False)
    with pytest.raises(DataMismatch, match=r"units\.parquet is not the table"):
        FactorialStudy.load(tmp_path)
    assert FactorialStudy.load(study.save(tmp_path).parent).verdict() == study.verdict()
