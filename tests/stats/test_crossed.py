"""Crossed random items and templates against statsmodels' ANOVA, Clark's formulas and null simulations."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import sparse, stats
from statsmodels.stats.anova import anova_lm

from neurollm.errors import InvalidInput
from neurollm.stats.crossed import crossed_anova

RNG = np.random.default_rng(0)


def simulated(k, n_items, n_templates, n_features, *, nested=False, sd_item=1.0, sd_template=1.0, effect=0.0, seed=1):
    """Cells with random items, templates and their interactions with condition; returns values and labels."""
    rng, shape = np.random.default_rng(seed), (k, n_items, n_templates)
    condition, item, template = (x.ravel() for x in np.indices(shape))
    item_effect = sd_item * rng.normal(size=(k, n_items, 1, n_features))
    values = effect * np.arange(k)[:, None, None, None] + item_effect
    values = values + sd_template * rng.normal(size=(k, 1, n_templates, n_features))
    values = values + rng.normal(size=(1, 1, n_templates, n_features)) + rng.normal(size=(*shape, n_features))
    if not nested:
        values = values + rng.normal(size=(1, n_items, 1, n_features))
    return values.reshape(-1, n_features), condition, item + nested * condition * n_items, template


@pytest.mark.parametrize("nested", [False, True])
def test_mean_squares_equal_statsmodels(nested):
    Y, condition, item, template = simulated(3, 5, 4, 3, nested=nested, effect=0.4)
    shuffled = RNG.permutation(len(Y))
    result = crossed_anova(Y[shuffled], condition[shuffled], item[shuffled], template[shuffled])
    table = pd.DataFrame({"a": condition, "s": item % 5, "t": template})
    terms = "C(a) + C(a):C(s) + C(t) + C(a):C(t)" if nested else "(C(a) + C(s) + C(t)) ** 2"
    rows = ["C(a)", "C(a):C(s)", "C(a):C(t)", "Residual"]
    for v in range(3):
        anova = anova_lm(smf.ols(f"y ~ {terms}", table.assign(y=Y[:, v])).fit())
        np.testing.assert_allclose(result.mean_squares[:, v], anova.loc[rows, "sum_sq"] / anova.loc[rows, "df"])
    df = [result.df_condition, result.df_items, result.df_templates, result.df_residual]
    assert df == anova.loc[rows, "df"].tolist() and result.nested == nested


def test_two_conditions_within_items_are_paired_t_tests_of_means():
    Y, condition, item, template = simulated(2, 7, 5, 4, effect=0.7)
    result = crossed_anova(Y, condition, item, template)
    cells = Y.reshape(2, 7, 5, 4)
    by_item, by_template = (stats.ttest_rel(*cells.mean(axis=axis)) for axis in (2, 1))
    np.testing.assert_allclose(result.f_items, by_item.statistic**2)
    np.testing.assert_allclose(result.p_items, by_item.pvalue)
    np.testing.assert_allclose(result.p_templates, by_template.pvalue)


def test_items_nested_in_two_conditions_are_a_two_sample_t_test():
    Y, condition, item, template = simulated(2, 6, 3, 4, nested=True)
    result = crossed_anova(Y, condition, item, template)
    means = Y.reshape(2, 6, 3, 4).mean(axis=2)
    np.testing.assert_allclose(result.p_items, stats.ttest_ind(*means).pvalue)


def test_min_f_follows_clark():
    """Raaijmakers et al. (1999): min F' = F1 F2 / (F1 + F2), j = (F1 + F2)^2 / (F1^2 / n2 + F2^2 / n1)."""
    result = crossed_anova(*simulated(3, 8, 4, 20, effect=0.3))
    f1, f2 = result.f_items, result.f_templates
    n1, n2 = result.df_items, result.df_templates  # error degrees of freedom of F1 and F2
    np.testing.assert_allclose(result.min_f, f1 * f2 / (f1 + f2))
    np.testing.assert_allclose(result.df_min_f, (f1 + f2) ** 2 / (f1**2 / n2 + f2**2 / n1))
    np.testing.assert_allclose(result.p_min_f, stats.f.sf(result.min_f, 2, result.df_min_f))
    assert (result.min_f <= result.quasi_f).all()
    assert (result.p_min_f >= np.maximum(result.p_items, result.p_templates)).all()


@pytest.mark.parametrize("nested", [False, True])
def test_only_the_tests_over_both_hold_their_level_when_both_vary(nested):
    result = crossed_anova(*simulated(2, 16, 12, 4000, nested=nested))
    level = {name: (getattr(result, f"p_{name}") <= 0.05).mean() for name in ("items", "templates", "min_f", "quasi_f")}
    assert level["items"] > 0.09 and level["templates"] > 0.09
    assert 0.02 < level["min_f"] < 0.06
    assert 0.035 < level["quasi_f"] < 0.065


def test_by_items_holds_its_level_when_templates_do_not_vary():
    result = crossed_anova(*simulated(2, 16, 5, 4000, sd_template=0.0))
    assert 0.04 < (result.p_items <= 0.05).mean() < 0.06
    assert (result.p_min_f <= 0.05).mean() < 0.05


def test_sparse_constant_and_missing_features():
    Y, *labels = simulated(2, 6, 4, 12_000, effect=1)
    Y[:, 0], Y[3, 1], Y[:, 2] = 0.1, np.nan, labels[0] * 2.0
    expected = crossed_anova(Y, *labels)
    result = crossed_anova(sparse.csr_array(Y), *labels)
    np.testing.assert_allclose(result.p_quasi_f, expected.p_quasi_f)
    for name in ("f_items", "f_templates", "min_f", "quasi_f", "p_items", "p_templates", "p_min_f", "p_quasi_f"):
        values = getattr(result, name)
        assert np.isnan(values[:2]).all() and np.isfinite(values[3:]).all()
    assert result.f_items[2] == np.inf and result.p_items[2] == 0


def test_refusals():
    Y, condition, item, template = simulated(2, 4, 3, 2)
    with pytest.raises(InvalidInput, match="unbalanced: 23 rows"):
        crossed_anova(Y[1:], condition[1:], item[1:], template[1:])
    twice = np.r_[np.arange(23), 0]
    with pytest.raises(InvalidInput, match="unbalanced: 24 rows in 23"):
        crossed_anova(Y[twice], condition[twice], item[twice], template[twice])
    with pytest.raises(InvalidInput, match="average repeated trials"):
        crossed_anova(np.vstack([Y, Y]), *(np.tile(x, 2) for x in (condition, item, template)))
    with pytest.raises(InvalidInput, match="unbalanced"):  # three items in one condition, five in the other
        crossed_anova(Y, (np.arange(24) >= 9).astype(int), np.repeat(np.arange(8), 3), template)
    with pytest.raises(InvalidInput, match="at least two"):
        one = template == 0
        crossed_anova(Y[one], condition[one], item[one], template[one])
    with pytest.raises(InvalidInput, match="at least two"):
        crossed_anova(Y, np.zeros(24), np.arange(24) // 3, template)
    with pytest.raises(InvalidInput, match="one label per row"):
        crossed_anova(Y, condition, item, template[1:])
