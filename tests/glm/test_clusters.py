"""Threshold-free cluster enhancement of contrasts: brute force, error rate, and that neighbours help."""

import numpy as np
import pytest
from scipy import sparse

from neurollm.designs import CategoricalDesign
from neurollm.errors import InvalidInput
from neurollm.glm import FeatureGLM
from neurollm.stats.tfce import tfce
from tests.glm.test_contrasts import B, crossed

PATH = sparse.diags_array([np.ones(11), np.ones(11)], offsets=[-1, 1], format="csr")


def test_exhaustive_signs_against_brute_force():
    X, obs = crossed(8, B)
    X[:, 4] = 0
    result = FeatureGLM(CategoricalDesign("emotion")).fit(X, obs).compute_tfce("sad - glad", PATH[:, :].copy(), 256)
    d = X[obs["emotion"] == "sad"] - X[obs["emotion"] == "glad"]
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)

    def enhanced(d):
        mean = d.mean(axis=0)
        with np.errstate(invalid="ignore"):
            t = mean / (d.std(axis=0, ddof=1) / np.sqrt(8))
        return np.abs(tfce(t, PATH))

    null = np.array([np.nanmax(enhanced(row[:, None] * d)) for row in signs])
    observed = enhanced(d)
    expected = (null >= observed[:, None] * (1 - 1e-9)).mean(axis=1)
    kept = np.arange(12) != 4
    np.testing.assert_allclose(result["tfce"][kept], observed[kept])
    np.testing.assert_allclose(result["p_fwer"][kept], expected[kept])
    assert result.loc[4, ["stat", "tfce", "p_fwer"]].isna().all()


def test_neighbours_support_each_other():
    X, obs = crossed(24, B, n_features=12)
    X[np.ix_(obs["emotion"] == "sad", range(3, 8))] += 0.8
    glm = FeatureGLM(CategoricalDesign("emotion"), n_perm=500, scale="log1p").fit(X, obs)
    alone = glm.compute_contrast("sad - glad").p_fwer
    together = glm.compute_tfce("sad - glad", PATH, 500)
    assert together["p_fwer"][3:8].max() < alone[3:8].max() and together["p_fwer"].min() > 0


def test_noise_keeps_the_level():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        X, obs = crossed(12, B, seed=seed)
        X += rng.normal(size=X.shape)
        glm = FeatureGLM(CategoricalDesign("emotion"), random_state=seed).fit(X, obs)
        hits += glm.compute_tfce("sad - glad", PATH, 39)["p_fwer"].min() <= 0.05
    assert hits <= 17  # 99.9 % of exact tests


def test_a_graph_that_does_not_fit_is_refused():
    X, obs = crossed(12, B)
    glm = FeatureGLM(CategoricalDesign("emotion")).fit(X, obs)
    with pytest.raises(InvalidInput, match="graph of shape"):
        glm.compute_tfce("sad - glad", PATH[:5, :5], 10)
