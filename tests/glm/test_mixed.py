"""Mixed models against paired t tests, mean squares and planted values."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from neurollm.errors import InvalidInput
from neurollm.glm.mixed import mixed_model
from neurollm.stats.crossed import crossed_anova


def crossed(n_items, n_templates, n_features, effect, seed, sd=(1.0, 0.6, 0.7, 0.5)):
    """Trials of items × templates in both conditions; sd of items, their slopes, templates, their slopes."""
    rng = np.random.default_rng(seed)
    condition, item, template = (x.ravel() for x in np.indices((2, n_items, n_templates)))
    code = condition[:, None] - 0.5
    values = effect * code + rng.normal(size=(condition.size, n_features))
    for labels, spread, slope in ((item, *sd[:2]), (template, *sd[2:])):
        n = labels.max() + 1
        values += spread * rng.normal(size=(n, n_features))[labels]
        values += slope * rng.normal(size=(n, n_features))[labels] * code
    obs = pd.DataFrame({"condition": np.array(["plain", "story"])[condition], "item": item, "template": template})
    return values, obs


def test_one_trial_per_cell_is_the_paired_t_test():
    values, obs = crossed(20, 1, 6, 0.8, seed=0)
    frame = mixed_model(values, obs, "condition")
    cells = values.reshape(2, 20, 6)
    theirs = stats.ttest_rel(cells[1], cells[0])
    np.testing.assert_allclose(frame["estimate"], (cells[1] - cells[0]).mean(axis=0), rtol=1e-4)
    inside = (np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*cells.transpose(0, 2, 1), strict=True)])) > 0
    assert inside.sum() == 5  # where items agree less than by chance their variance is 0, and the t test unpaired
    np.testing.assert_allclose(frame["z"][inside], theirs.statistic[inside], rtol=1e-4)
    np.testing.assert_allclose(frame["p"], 2 * stats.norm.sf(abs(frame["z"])))
    assert frame["converged"].all()
    assert frame["message"].tolist() == np.where(inside, "", "no variance found of 'item'").tolist()
    unpaired = stats.ttest_ind(cells[1], cells[0]).statistic[~inside]
    np.testing.assert_allclose(frame["z"][~inside], unpaired, rtol=1e-4)


def test_balanced_crossed_model_has_the_variance_of_the_mean_squares():
    """REML in balanced data: the squared standard error is 2 (MS_S + MS_T − MS_res) / (items × templates)."""
    values, obs = crossed(12, 6, 8, 0.5, seed=1, sd=(1.0, 1.0, 1.0, 1.0))
    frame = mixed_model(values, obs, "condition", template="template")
    _, items, templates, residual = crossed_anova(
        values, *(obs[c] for c in ("condition", "item", "template"))
    ).mean_squares
    pairs = values.reshape(2, 12, 6, 8).mean(axis=0)  # the model has no item × template effect: residual, too
    pairs = pairs - pairs.mean(axis=0) - pairs.mean(axis=1, keepdims=True) + pairs.mean(axis=(0, 1))
    residual = (residual + 2 * np.square(pairs).sum(axis=(0, 1)) / 55) / 2
    assert (np.minimum(items, templates) > residual).all() and (frame["message"] == "").all()
    np.testing.assert_allclose(frame["se"], np.sqrt(2 * (items + templates - residual) / 72), rtol=1e-4)


def test_unbalanced_crossed_model_equals_statsmodels():
    values, obs = crossed(12, 5, 3, 0.5, seed=7, sd=(1.0, 1.0, 1.0, 1.0))
    keep = np.random.default_rng(7).random(120) < 0.8
    values, obs = values[keep], obs[keep].reset_index(drop=True)
    frame = mixed_model(values, obs, "condition", template="template")
    obs["c"] = (obs["condition"] == "story") - 0.5
    parts = {"a": "0 + C(item)", "b": "0 + C(item):c", "d": "0 + C(template)", "e": "0 + C(template):c"}
    for v in range(3):
        table = obs.assign(y=values[:, v], one=1)
        fitted = smf.mixedlm("y ~ c", table, groups="one", re_formula="0", vc_formula=parts).fit()
        assert fitted.converged
        np.testing.assert_allclose(frame["estimate"].iloc[v], fitted.params["c"], rtol=2e-3)
        np.testing.assert_allclose(frame["se"].iloc[v], fitted.bse["c"], rtol=2e-3)


def test_planted_values_are_recovered():
    values, obs = crossed(24, 12, 100, 0.8, seed=2)
    frame = mixed_model(values, obs, "condition", template="template")
    assert frame["converged"].all()
    assert abs(frame["estimate"].mean() - 0.8) < 0.08
    assert 0.8 < frame["estimate"].std() / frame["se"].mean() < 1.2
    assert 0.88 < (abs(frame["estimate"] - 0.8) < 1.96 * frame["se"]).mean() < 1


def test_items_between_conditions_and_a_covariate():
    rng = np.random.default_rng(3)
    item = np.repeat(np.arange(60), 3)
    length = rng.normal(size=180)
    obs = pd.DataFrame({"condition": item % 2, "item": item, "length": length}).astype({"condition": bool})
    values = (
        1.5 * (item % 2)[:, None] + 2 * length[:, None] + rng.normal(size=(60, 4))[item] + rng.normal(size=(180, 4))
    )
    frame = mixed_model(values, obs, "condition", covariates=["length"], features=[7, 8, 9, 11])
    assert list(frame.index) == [7, 8, 9, 11]
    assert (abs(frame["estimate"] - 1.5) < 3.5 * frame["se"]).all() and (frame["se"] < 0.5).all()


def test_numbers_are_codes_and_scale_does_not_matter():
    values, obs = crossed(15, 2, 2, 0.8, seed=4)
    obs["code"] = np.where(obs["condition"] == "story", 1.0, -1.0)
    words, numbers = mixed_model(values, obs, "condition"), mixed_model(values, obs, "code")
    np.testing.assert_allclose(numbers["estimate"], words["estimate"] / 2, rtol=1e-3)
    np.testing.assert_allclose(numbers["z"], words["z"], rtol=1e-3)
    small = mixed_model(1e-6 * values + 5, obs, "condition")
    np.testing.assert_allclose(small["z"], words["z"], rtol=1e-3)
    turned = obs.assign(condition=pd.Categorical(obs["condition"], ["story", "plain"]))
    np.testing.assert_allclose(mixed_model(values, turned, "condition")["estimate"], -words["estimate"], rtol=1e-3)


def test_failures_are_reported_not_raised():
    values, obs = crossed(10, 2, 4, 0.5, seed=5, sd=(0, 0, 0, 0))
    values[:, 0], values[3, 1] = 2.0, np.nan
    values[:, 2] = np.where(obs["condition"] == "story", 1.0, 0.0)  # nothing is left for the residual
    frame = mixed_model(values, obs, "condition")
    assert frame["message"].iloc[0] == "the feature is constant"
    assert "not finite" in frame["message"].iloc[1]
    assert not frame["converged"].iloc[:2].any() and frame["estimate"].iloc[:2].isna().all()
    assert not frame["converged"].iloc[2] and "residual" in frame["message"].iloc[2]
    assert frame["converged"].iloc[3] and np.isfinite(frame["z"].iloc[3])


def test_a_variance_of_zero_is_an_ordinary_result():
    values, obs = crossed(10, 4, 50, 0.5, seed=8, sd=(0, 0, 0, 0))
    frame = mixed_model(values, obs, "condition", template="template")
    assert frame["converged"].all() and frame["message"].str.contains("no variance found").mean() > 0.8
    assert (abs(frame["estimate"] - 0.5) < 1.96 * frame["se"]).mean() > 0.85


def test_refusals():
    values, obs = crossed(4, 2, 1, 0.5, seed=6)
    with pytest.raises(InvalidInput, match="at most 100"):
        mixed_model(np.zeros((16, 101)), obs, "condition")
    with pytest.raises(InvalidInput, match="did you mean 'condition'"):
        mixed_model(values, obs, "conditon")
    with pytest.raises(InvalidInput, match="16 trials"):
        mixed_model(values[1:], obs, "condition")
    with pytest.raises(InvalidInput, match="3 levels"):
        mixed_model(values, obs.assign(condition=list("abca" * 4)), "condition")
    with pytest.raises(InvalidInput, match="random factor"):
        mixed_model(values, obs.assign(item=np.arange(16)), "condition")
    with pytest.raises(InvalidInput, match="collinear"):
        mixed_model(values, obs.assign(x=(obs["condition"] == "story") * 1.0), "condition", covariates=["x"])
    with pytest.raises(InvalidInput, match="empty cells"):
        mixed_model(values, obs.assign(item=obs["item"].where(obs["item"] > 0)), "condition")
    with pytest.raises(InvalidInput, match="numbers"):
        mixed_model(values, obs.assign(x="a"), "condition", covariates=["x"])
