"""Averaging, the choice of what is exchanged, and the design file."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from neurollm.designs import CategoricalDesign, Contrast, read_design
from neurollm.errors import DataMismatch, InvalidInput


def trials(n_items=6, levels=("a", "b"), n_templates=3):
    """All items with all levels and templates."""
    index = pd.MultiIndex.from_product(
        [range(n_items), list(levels), range(n_templates)], names=["item", "g", "template"]
    )
    return index.to_frame(index=False).astype({"item": str})


def test_table_averages_over_templates_and_ignores_row_order():
    obs = trials()
    X = np.random.default_rng(0).random((len(obs), 4)) * (np.random.default_rng(1).random((len(obs), 4)) < 0.5)
    expected = pd.DataFrame(X).groupby([obs["item"], obs["g"]]).mean()
    design = CategoricalDesign("g")
    order = np.random.default_rng(2).permutation(len(obs))
    for values in (X, sparse.csr_array(X), sparse.csc_matrix(X), torch.tensor(X)):
        table = design.table(obs.iloc[order], values[order])
        got = table.values.toarray() if sparse.issparse(table.values) else np.asarray(table.values)
        np.testing.assert_allclose(got, expected.to_numpy())
        assert [
            (table.items[i], table.cells[g]) for i, g in zip(table.item_codes, table.cell_codes, strict=True)
        ] == list(expected.index)
        assert (table.n_trials == 3).all()


@pytest.mark.parametrize(("transform", "function"), [("log1p", np.log1p), ("binary", lambda x: (x != 0).astype(float))])
def test_transform_acts_on_trials_before_averaging(transform, function):
    obs = trials()
    X = np.random.default_rng(0).random((len(obs), 4)).astype(np.float32)
    X[X < 0.4] = 0
    expected = pd.DataFrame(function(X.astype(float))).groupby([obs["item"], obs["g"]]).mean()
    for values in (X, sparse.csr_array(X), torch.tensor(X)):
        got = CategoricalDesign("g").table(obs, values, transform).values
        np.testing.assert_allclose(got.toarray() if sparse.issparse(got) else np.asarray(got), expected.to_numpy())


def test_log1p_refuses_negative_activations():
    with pytest.raises(InvalidInput, match="log1p"):
        CategoricalDesign("g").table(trials(), -np.ones((36, 2)), "log1p")


def test_scheme_follows_from_the_design():
    within = trials()
    three = trials(levels="abc")
    between = within[within["g"] == np.where(within["item"].astype(int) % 2, "a", "b")]
    design = CategoricalDesign("g")
    found = design.exchangeability(within)
    assert (found.kind, found.n_units, found.n_possible) == ("sign_flip", 6, 64) and "64 possible" in found.sentence
    assert design.exchangeability(three).kind == "within_item" and design.exchangeability(three).n_possible == 6**6
    assert design.exchangeability(three, "a - b").kind == "sign_flip"
    found = design.exchangeability(between)
    assert (found.kind, found.n_units, found.n_possible) == ("whole_item", 6, 20)
    assert design.exchangeability(trials(400)).n_possible == 2**400


def test_incomplete_items_are_dropped_and_counted():
    obs = trials(8)
    table = CategoricalDesign("g").table(obs[~((obs["item"] == "3") & (obs["g"] == "b"))], np.ones((45, 1)))
    plan = CategoricalDesign("g").plan(table, Contrast.parse("a - b", "ab"))
    assert plan.n_dropped == 1 and plan.hypothesis.shuffling.n_items == 7
    assert "3" not in [table.items[code] for code in table.item_codes[plan.used]]


def mixed():
    obs = trials(8)
    return obs[(obs["item"].astype(int) < 2) | (obs["g"] == np.where(obs["item"].astype(int) % 2, "a", "b"))]


@pytest.mark.parametrize(
    ("obs", "design", "words"),
    [
        (mixed(), CategoricalDesign("g"), "2 of 8 values of 'item'"),
        (trials(1), CategoricalDesign("g"), "at least 2"),
        (trials(4, levels="a"), CategoricalDesign("g"), "single level"),
        (trials(), CategoricalDesign("gg"), "no column 'gg'"),
        (trials(), CategoricalDesign("templat"), "did you mean 'template'?"),
        (trials().assign(item=range(36)).iloc[[0, 3]], CategoricalDesign("g"), "degrees of freedom"),
        (trials().assign(g=None), CategoricalDesign("g"), "empty in 36 trials"),
        (trials().iloc[:0], CategoricalDesign("g"), "table is empty"),
    ],
)
def test_designs_that_cannot_be_tested_are_refused(obs, design, words):
    with pytest.raises(InvalidInput) as caught:
        design.exchangeability(obs)
    assert words in str(caught.value)


def test_covariates_and_wrong_lengths_are_refused():
    with pytest.raises(InvalidInput, match="list of columns, found the text 'length'"):
        CategoricalDesign("g", covariates="length")
    with pytest.raises(InvalidInput, match="'g2' must hold finite numbers, found 'a'"):
        CategoricalDesign("g", covariates=["g2"]).table(trials().assign(g2="a"))
    with pytest.raises(DataMismatch, match="35 rows"):
        CategoricalDesign("g").table(trials(), np.ones((35, 2)))


def test_levels_and_design_matrix():
    obs = trials(2, levels=("b", "a"), n_templates=1)
    obs.index = ["s1", "s2", "s3", "s4"]
    assert CategoricalDesign("g").levels(obs) == {"g": ("a", "b")}
    ordered = obs.assign(g=pd.Categorical(obs["g"], categories=["z", "b", "a"]))
    assert CategoricalDesign("g").levels(ordered) == {"g": ("b", "a")}
    matrix = CategoricalDesign("g").design_matrix(obs)
    assert list(matrix.columns) == ["a", "b"] and list(matrix.index) == list(obs.index)
    np.testing.assert_array_equal(matrix.to_numpy(), [[0, 1], [1, 0], [0, 1], [1, 0]])


GOOD = """
type: categorical
factor: outcome
item: item
covariates: []
contrasts:
  success: success - failure
  weighted: {success: 1, failure: -1}
"""


def test_design_file(tmp_path):
    path = tmp_path / "success.yaml"
    path.write_text(GOOD)
    design, contrasts = read_design(path)
    assert design == CategoricalDesign("outcome")
    assert list(contrasts) == ["success", "weighted"]
    for spec in contrasts.values():
        assert Contrast.parse(spec, ["failure", "success"]).weights == ((-1, 1),)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("factor:", "facter:", "unknown field 'facter'; did you mean 'factor'?"),
        ("factor: outcome", "", "field 'factor' is missing"),
        ("type: categorical", "type: factorial", "did you mean 'factors'?"),
        ("item: item", "item: [1]", "field 'item' is [1]"),
        ("item: item", "item: outcome", "given two roles"),
        ("covariates: []", "covariates: length", "field 'covariates' is 'length'"),
        ("item: item", "factor: x", "line 4 gives the field 'factor' a second time"),
        ("factor: outcome", "factor: [", "not valid YAML"),
        (GOOD, "", "found nothing"),
        (GOOD, "type: categorical\nfactor: a\ncontrasts: {'': a - b}", "empty name"),
        (GOOD, 'type: categorical\nfactor: a\ncontrasts: {"a\\x01": a - b}', "control character"),
        (GOOD, 'type: categorical\nfactor: a\ncontrasts: {"\\ud800": a - b}', "control character"),
        (GOOD, "- a", "found a list"),
        (GOOD, "type: kategorical\nfactor: a", "did you mean 'categorical'?"),
    ],
)
def test_mistakes_in_a_design_file_name_file_and_field(tmp_path, old, new, words):
    path = tmp_path / "d.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InvalidInput) as caught:
        read_design(path)
    assert words in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_absent_design_file():
    with pytest.raises(InvalidInput, match="no such file"):
        read_design("nowhere.yaml")
