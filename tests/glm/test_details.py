"""Effect sizes of every kind, and robustness columns, through the estimator."""

import numpy as np
import pandas as pd
import pingouin
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.glm import FeatureGLM, robustness
from tests.glm.test_contrasts import B, crossed


def test_sizes_between_items():
    X, obs = crossed(30, {}, {"g": list("uv")})
    X[:, 5] = 0
    glm = FeatureGLM(CategoricalDesign("g"), n_perm=50).fit(sparse.csr_array(X), obs)
    table = glm.effect_sizes("u - v").set_index("feature")
    u = (obs["g"] == "u").to_numpy()
    for v in (0, 3, 8):
        assert table.loc[v, "auc"] == pytest.approx(roc_auc_score(u, X[:, v]))
        assert table.loc[v, "rate"] == pytest.approx((X[u, v] > 0).mean() - (X[~u, v] > 0).mean())
        assert table.loc[v, "g"] == pytest.approx(
            pingouin.compute_effsize(X[u, v], X[~u, v], eftype="hedges"), rel=2e-3
        )
        t = stats.ttest_ind(X[u, v], X[~u, v]).statistic
        assert table.loc[v, "r"] == pytest.approx(stats.pearsonr(u, X[:, v])[0])
        assert (
            table.loc[v, "eta2"] == pytest.approx(t**2 / (t**2 + 28)) and table.loc[v, "omega2"] < table.loc[v, "eta2"]
        )
    kept = table.drop(index=5)
    assert (kept["eta2_low"] <= kept["eta2_high"]).all()
    for name in ("g", "auc", "rate", "r"):
        assert ((kept[f"{name}_low"] <= kept[name]) & (kept[name] <= kept[f"{name}_high"])).all(), name
    assert table.loc[5].isna().all()
    np.testing.assert_allclose(
        glm.effect_sizes("u - v", [8, 0]).to_numpy()[:, 1:], table.loc[[8, 0]].to_numpy(), rtol=1e-9
    )
    with pytest.raises(InvalidInput, match="'99' is no feature"):
        glm.effect_sizes("u - v", [99])


def test_sizes_within_items():
    X, obs = crossed(25, B)
    result = FeatureGLM(CategoricalDesign("emotion"), n_perm=50).fit(X, obs)
    table = result.effect_sizes("sad - glad")
    a, b = X[obs["emotion"] == "sad"], X[obs["emotion"] == "glad"]
    np.testing.assert_allclose(table["rate"], (a > 0).mean(0) - (b > 0).mean(0), atol=1e-12)
    np.testing.assert_allclose(table["auc"], ((a > b) + 0.5 * (a == b)).mean(0))
    spread = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2)
    np.testing.assert_allclose(table["g_av"], (a - b).mean(0) / spread, rtol=0.05)  # times a factor for small samples
    assert (np.sign(table["g_av"]) == np.sign(table["g"])).all()
    assert {"omega2", "eta2_high"} <= set(result.effect_sizes("emotion").columns)


def test_sizes_of_interactions_and_f():
    X, obs = crossed(24, {"a": list("xyz"), **B})
    glm = FeatureGLM(FactorialDesign(["a", "emotion"]), n_perm=50).fit(X, obs)
    assert list(glm.effect_sizes("a").columns) == ["feature", "eta2", "eta2_low", "eta2_high", "omega2"]
    assert {"g_av", "auc", "rate"} <= set(glm.effect_sizes("emotion").columns)
    X, obs = crossed(24, B, {"g": list("uv")})
    table = FeatureGLM(FactorialDesign(["g", "emotion"]), n_perm=50).fit(X, obs).effect_sizes("g:emotion")
    assert table["g"].notna().all() and "auc" not in table


def test_robustness_takes_templates_as_random():
    rng = np.random.default_rng(0)
    X, obs = crossed(20, {**B, "template": list("pqrs")}, n_features=6)
    X[obs["emotion"] == "sad", 0] += 4
    # An effect of one wording only: large over items, not over templates.
    X[(obs["emotion"] == "sad") & (obs["template"] == "p"), 1] += 12 + rng.normal(size=20)
    design = CategoricalDesign("emotion", template="template")
    frame = robustness(design, "sad - glad", X, obs, [0, 1, 4])
    assert list(frame["feature"]) == [0, 1, 4] and (frame["p_mixed"] < 0.01).tolist()[0]
    assert frame["p_min_f"][0] < 0.05 < frame["p_min_f"][1]
    a, b = X[obs["emotion"] == "sad"], X[obs["emotion"] == "glad"]
    np.testing.assert_allclose(frame["estimate"], (a - b).mean(0)[[0, 1, 4]], rtol=1e-3)
    by_item = stats.ttest_rel(*(X[obs["emotion"] == level].reshape(20, 4, 6).mean(1) for level in ("sad", "glad")))
    np.testing.assert_allclose(frame["f_items"], by_item.statistic[[0, 1, 4]] ** 2)
    unbalanced = robustness(design, "sad - glad", X[1:], obs.iloc[1:], [0])
    assert "p_min_f" not in unbalanced and "p_mixed" in unbalanced
    with pytest.raises(InvalidInput, match="two levels of one factor"):
        robustness(FactorialDesign(["emotion", "template"]), "emotion", X, obs, [0])
    with pytest.raises(InvalidInput, match="no items"):
        robustness(CategoricalDesign("emotion", item=None, item_reason="test"), "emotion", X, obs, [0])


def test_robustness_is_a_frame_of_the_asked_features():
    X, obs = crossed(12, B)
    frame = robustness(CategoricalDesign("emotion"), "sad - glad", sparse.csr_array(X), obs, [2])
    assert isinstance(frame, pd.DataFrame) and "p_min_f" not in frame and len(frame) == 1
