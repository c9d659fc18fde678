"""Integration is told from co-activation, and only on items that did not choose the unit."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurollm.designs import FactorialDesign
from neurollm.factorial import factorial_study, simulate_units
from neurollm.factorial.intervals import cell_intervals
from neurollm.stimuli import StimulusSet

KINDS = {"none": 20, "main": 12, "sum": 40, "threshold": 12, "and": 12, "or": 12, "xor": 12}


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["within", "mixed", "between"])
def planted(request):
    n_items = (80, 140, 240)[request.param]
    sim = simulate_units(n_items, KINDS, between=request.param, random_state=3)
    study = factorial_study(sim.X, sim.obs, sim.design, n_candidates=100, n_perm=500)
    units = study.units().set_index("column")
    return study, units.assign(true=np.array(sim.kinds)[units.index])


def test_confusion_of_planted_units(planted):
    _, units = planted
    table = pd.crosstab(units["true"], units["kind"])
    share = table.div(table.sum(axis=1), axis=0)
    right = {"none": "none", "main": "f1", "sum": "additive", "and": "and", "or": "sub-additive", "xor": "crossover"}
    for true, kind in right.items():
        assert share.loc[true, kind] >= 0.8, (true, share.loc[true])
    assert share.get("and", pd.Series(0.0, share.index))["threshold"] == 0


def test_sums_do_not_become_and_units(planted):
    """The family-wise level holds for all sums at once."""
    _, units = planted
    assert (units.loc[units["true"] == "sum", "kind"] == "and").sum() == 0
    assert (units.loc[units["true"] == "threshold", "kind"]).isin(["removable", "additive"]).all()
    assert (units.loc[units["true"].isin(["none", "main"]), "significant"]).sum() <= 1


def test_verdicts_are_consistent(planted):
    _, units = planted
    assert (units["removable"] <= units["significant"]).all()
    assert not (units["removable"] & units["crossover"]).any()
    assert (units["survives"] <= units["significant"]).all()
    assert not (units.loc[units["true"] == "xor", "removable"]).any()
    removable = units[units["kind"] == "removable"]
    assert removable["reason"].str.contains("not found on|monotone scale").all()
    assert removable["removable"].all()
    assert (units.loc[units["kind"] == "and", ["preferred_f1", "preferred_f2"]] == "on").all(axis=None)


def test_p_of_the_tests_between_cells(planted):
    """Conjunction, super-additivity, order and crossover are the named combinations of one-sided tests."""
    study, units = planted
    simple = study.simple_effects().set_index(["column", "factor", "at"])
    frame = study.to_frame().query("scale == 'raw'").set_index(["column", "effect"])
    for column in units.index[::7]:
        row = units.loc[column]
        both = frame.loc[[(column, "f1"), (column, "f2")]]
        assert row["p_conjunction"] == both["p"].max()
        assert row["t_conjunction"] == both["t"].abs().min()

        def above(factor, other, opposite, row=row, column=column):
            """One-sided p that the factor's preferred level is above its other one, at a level of the other factor."""
            at = row[f"preferred_{other}"]
            one = simple.loc[(column, factor, {"on": "off", "off": "on"}[at] if opposite else at)]
            up = (one["estimate"] > 0) == (row[f"preferred_{factor}"] == "on")
            return one["p"] / 2 if up else 1 - one["p"] / 2

        exceeds = max(above("f1", "f2", False), above("f2", "f1", False))
        alone = max(above("f1", "f2", True), above("f2", "f1", True))
        assert row["p_ordered"] == pytest.approx(max(exceeds, alone), rel=0.15, abs=1e-6)
        assert row["p_superadditive"] >= exceeds * 0.85
        same = (row["preferred_f1"] == "on") == (row["preferred_f2"] == "on")
        assert row["interaction"] == (1 if same else -1) * frame.loc[(column, "f1:f2"), "estimate"]


def test_simple_effects_are_t_tests_of_cells():
    sim = simulate_units(60, {"and": 3, "xor": 2})
    study = factorial_study(sim.X, sim.obs, sim.design, n_perm=50)
    items, simple = study.items(), study.simple_effects().set_index(["column", "factor", "at"])
    for column in range(5):
        wide = items[items["column"] == column].pivot(index="item", columns=["f1", "f2"], values="mean")
        for factor, at, one, other in (
            ("f1", "off", ("on", "off"), ("off", "off")),
            ("f2", "on", ("on", "on"), ("on", "off")),
        ):
            expected = stats.ttest_rel(wide[one], wide[other])
            row = simple.loc[(column, factor, at)]
            assert (row["estimate"], row["t"]) == pytest.approx(((wide[one] - wide[other]).mean(), expected.statistic))


def test_named_cell_and_its_opposite():
    sim = simulate_units(60, {"and": 3})
    options = {"n_candidates": 3, "n_perm": 99}
    on = factorial_study(sim.X, sim.obs, sim.design, preferred={"f1": "on", "f2": "on"}, **options).units()
    off = factorial_study(sim.X, sim.obs, sim.design, preferred={"f1": "off", "f2": "on"}, **options).units()
    assert (on["kind"] == "and").all() and (on["p_superadditive"] < 0.001).all()
    assert (off["p_superadditive"] > 0.5).all() and (off["kind"] != "and").all()
    assert np.allclose(on["interaction"], -off["interaction"])


def test_super_additivity_keeps_its_level_where_only_one_neighbour_is_lower():
    """m11 = m10 > m01 = m00: the intersection-union test is about the better neighbour."""
    sim = simulate_units(60, {"main": 150}, noise=1)
    study = factorial_study(sim.X, sim.obs, sim.design, n_candidates=150, n_perm=19)
    assert (study.units()["p_superadditive"] <= 0.05).sum() <= stats.binom(150, 0.05).ppf(0.999)


def test_an_interaction_of_scale_is_removable():
    """exp of a sum is additive on a log scale, and its order is that of a sum."""
    rng = np.random.default_rng(0)
    obs = simulate_units(80, {"none": 1}).obs
    sums = (obs["f1"] == "on").to_numpy(float) + (obs["f2"] == "on").to_numpy(float)
    X = np.exp(1.2 * sums[:, None] + 2 + 0.3 * rng.normal(size=(320, 8)))
    units = factorial_study(X, obs, FactorialDesign({"f1": ("on", "off"), "f2": ("on", "off")}), n_perm=99).units()
    assert units["significant"].all() and units["removable"].all() and (units["kind"] == "removable").all()
    assert not units["crossover"].any()


def test_the_exclamation_mark_comes_out_and_the_audit_says_why():
    """A mark that only one cell has makes two main effects and an interaction; the stimuli are to blame."""
    rng, rows = np.random.default_rng(0), []
    for item in range(50):
        for formality in ("formal", "casual"):
            for emotion in ("sad", "glad"):
                mark = formality == "casual" and emotion == "glad" and rng.random() < 0.86
                text = f"Topic {item} was told in a {formality} way by someone {emotion}{'!' if mark else '.'}"
                rows.append((f"s{len(rows)}", text, f"i{item}", formality, emotion, "t"))
    names = ["stimulus_id", "text", "item", "formality", "emotion", "template"]
    obs = pd.DataFrame(rows, columns=names)
    X = np.column_stack([obs["text"].str.count("!"), rng.normal(size=(200, 20))])
    design = FactorialDesign({"formality": ("casual", "formal"), "emotion": ("glad", "sad")})
    study = factorial_study(X, obs, design, n_candidates=3, n_perm=999)
    found = study.effects().set_index(["column", "effect"])["significant"]
    assert found.loc[0].all() and study.units().set_index("column").loc[0, "kind"] == "and"
    checks = StimulusSet(obs, factors=("formality", "emotion")).audit().to_frame().set_index(["name", "factor"])
    assert checks.loc[("punctuation", "formality:emotion"), "status"] == "fail"
    assert "!" in checks.loc[("punctuation", "formality:emotion"), "reason"]


def test_intervals_within_items_by_hand():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 4, 2)) + 10 * rng.normal(size=(12, 1, 1))
    mean, low, high = cell_intervals(values)
    for cell in range(4):
        own = values[:, cell, 1] - values[:, :, 1].mean(axis=1) + values[:, :, 1].mean()
        half = stats.t(11).ppf(0.975) * np.sqrt(own.var(ddof=1) * 4 / 3 / 12)
        assert (mean[cell, 1], low[cell, 1], high[cell, 1]) == pytest.approx(
            (own.mean(), own.mean() - half, own.mean() + half)
        )
    # of two cells: the interval of the difference, divided by √2 (Morey 2008)
    _, low, high = cell_intervals(values[:, :2])
    interval = stats.ttest_rel(values[:, 0, 0], values[:, 1, 0]).confidence_interval()
    assert high[0, 0] - low[0, 0] == pytest.approx((interval.high - interval.low) / np.sqrt(2))


def test_cells_between_items_have_plain_intervals():
    sim = simulate_units(80, {"and": 2}, between=2)
    study = factorial_study(sim.X, sim.obs, sim.design, n_perm=19)
    items, cells = study.items(), study.cells().set_index(["column", "f1", "f2"])
    for (column, f1, f2), rows in items.groupby(["column", "f1", "f2"]):
        interval = stats.ttest_1samp(rows["mean"], 0).confidence_interval()
        row = cells.loc[(column, f1, f2)]
        assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx((rows["mean"].mean(), *interval))
        assert row["n_items"] == len(rows) == 10
