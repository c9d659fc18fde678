"""The held-out test of a region."""

import anndata
import numpy as np
import pandas as pd
import pytest
from roi.trialset import trials
from scipy import sparse, stats

from neurollm import roi as regions
from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import FeatureGLM
from neurollm.roi import ROI, localize, split_half
from neurollm.stats.evidence import bayes_factor, equivalence

DESIGN = CategoricalDesign("outcome")
N_DATA = 60


def run(roi, X, obs, contrast="won - lost", **options):
    return regions.test_roi(roi, X, obs, DESIGN, contrast, **{"n_perm": 500, **options})


def declared(*features, **options):
    return ROI.declared("success", features, "by hand", **options)


def test_score_is_the_mean_of_features_in_units_of_their_spread():
    X, obs = trials(effect=1, n_carry=3)
    X[:, 1] *= 1000  # a feature of another order of magnitude weighs as much as the others
    X[:, 2] = 5 - X[:, 2]
    found = run(declared(0, 1, 2, signs=[1, 1, -1]), X, obs)
    score = (X[:, :3] / X[:, :3].std(axis=0)) @ [1, 1, -1] / 3
    won, lost = score[obs["outcome"] == "won"], score[obs["outcome"] == "lost"]
    theirs = stats.ttest_rel(won, lost)
    np.testing.assert_allclose([found.score.stat[0], found.score.effect[0]], [theirs.statistic, (won - lost).mean()])
    assert found.score.feature.tolist() == ["success"] and found.score.p_fwer[0] <= 0.01


def test_members_are_the_features_own_contrasts():
    X, obs = trials(effect=1, n_carry=3)
    found = run(declared(2, 9), X, obs)
    alone = FeatureGLM(DESIGN, n_perm=500).fit(X[:, [2, 9]], obs).compute_contrast("won - lost")
    for name in ("effect", "effect_size", "effect_size_low", "effect_size_high", "p", "p_fwer"):
        np.testing.assert_array_equal(getattr(found.members, name), getattr(alone, name))
    frame = found.to_frame()
    assert frame["feature"].tolist() == [2, 9] and frame["sign"].tolist() == [1, 1]
    assert {"g_low", "g_high"} <= set(frame)
    assert found.n_true == alone.true_discoveries({"x": [0, 1]})["n_true"].iloc[0]


def test_selected_on_one_half_and_found_on_the_other():
    X, obs = trials(n_items=60, effect=1.5, n_carry=3)
    first, second = split_half(obs)
    roi = localize(DESIGN, "won - lost", X[first], obs[first], name="success", n_features=3, n_perm=200)
    found = run(roi, X[second], obs[second])
    assert set(roi.feature) == {0, 1, 2} and found.n_true == 3 and found.score.p_fwer[0] < 0.01
    assert found.bayes_factor is None and found.p_equivalence is None
    assert found.verdict().startswith(
        "won - lost in ROI success (3 of 3 features vary over 30 held-out items): differs, g = "
    )


def test_the_selections_own_items_are_always_refused():
    X, obs = trials(effect=1, n_carry=3)
    roi = localize(DESIGN, "won - lost", X, obs, name="success", n_features=3, n_perm=200)
    with pytest.raises(DataMismatch, match=r"20 items \('i00', .* were used to select its features"):
        run(roi, X, obs)
    with pytest.raises(DataMismatch, match="were used to select"):
        run(roi, X[:4], obs[:4].assign(item=["new", "new", "other", "other"]))
    with pytest.raises(InvalidInput, match="no column 'text'"):
        run(roi, X, trials(prefix="n")[1].drop(columns="text"))


def test_held_out_p_is_uniform_although_features_were_selected_on_noise():
    p, in_sample, held_out = [], [], []
    for seed in range(N_DATA):
        X, obs = trials(n_items=24, n_features=60, seed=seed)
        first, second = split_half(obs, random_state=seed)
        roi = localize(DESIGN, "won - lost", X[first], obs[first], name="x", n_features=5, n_perm=0)
        found = run(roi, X[second], obs[second], n_perm=99).score
        p.append(found.p_fwer[0])
        held_out.append(found.effect_size[0])
        in_sample.append(run(ROI.declared("x", roi.feature, "circular", roi.signs), X[first], obs[first], n_perm=0))
    low, high = stats.binom.ppf([0.0005, 0.9995], N_DATA, 0.05) / N_DATA
    assert low <= np.mean(np.array(p) <= 0.05) <= high
    assert np.mean([found.score.effect_size[0] for found in in_sample]) > 1
    assert abs(np.mean(held_out)) < 4 * np.std(held_out) / np.sqrt(N_DATA)


def test_storage_does_not_matter():
    X, obs = trials(effect=1, n_carry=3)
    X = np.where(X > 0, X, 0)
    roi = ROI.declared("success", ["f0", "f5"], "by hand")
    names = np.array([f"f{number}" for number in range(40)])
    dense = run(roi, X, obs, features=names)
    data = anndata.AnnData(
        sparse.csr_matrix(X), obs=obs.set_index(pd.Index(map(str, range(40)))), var=pd.DataFrame(index=names)
    )
    for other in (run(roi, sparse.csr_matrix(X), obs, features=names), run(roi, data, None)):
        np.testing.assert_allclose(other.score.stat, dense.score.stat)
        np.testing.assert_array_equal(other.members.p_fwer, dense.members.p_fwer)
    with pytest.raises(InvalidInput, match="bring their own table"):
        run(roi, data, obs)


@pytest.mark.parametrize("scale", ["log1p", "binary", "rank"])
def test_transforms_come_before_the_mean(scale):
    X, obs = trials(effect=1, n_carry=3)
    X = np.where(X > 0, X, 0)
    found = run(declared(0, 1), X, obs, scale=scale)
    values = {"log1p": np.log1p(X), "binary": X > 0, "rank": X}[scale][:, :2].astype(float)
    score = (values / values.std(axis=0)).mean(axis=1)[:, None]
    own = FeatureGLM(DESIGN, n_perm=500, scale="rank" if scale == "rank" else "raw").fit(score, obs)
    np.testing.assert_allclose(found.score.stat, own.compute_contrast("won - lost").stat)


def test_dead_features_are_left_out_and_counted():
    X, obs = trials(effect=1, n_carry=3)
    X[:, 5] = 0
    found = run(declared(0, 5), X, obs)
    np.testing.assert_allclose(found.score.stat, run(declared(0), X, obs).score.stat)
    assert "(1 of 2 features vary over 20 items)" in found.verdict() and np.isnan(found.members.p[1])
    with pytest.raises(InvalidInput, match="none of its 1 features varies in these trials"):
        run(declared(5), X, obs)


def test_evidence_for_absence_of_declared_regions_within_items():
    X, obs = trials(n_items=100, seed=3)
    found = run(declared(0, 1, 2), X, obs, bounds=(-0.5, 0.5))
    t = found.score.stat
    assert found.bayes_factor == pytest.approx(bayes_factor(t, 100)[0]) and found.bayes_factor < 0.5
    assert found.p_equivalence == pytest.approx(equivalence(t, 99, 0.1, (-0.5, 0.5))[0])
    assert found.p_equivalence < 0.05 and "BF10 = " in found.verdict() and "within g = -0.5 … 0.5" in found.verdict()
    assert run(declared(0), X, obs).p_equivalence is None


@pytest.mark.parametrize("stat", ["t", "welch"])
def test_evidence_between_items(stat):
    X, obs = trials(n_items=31, between=True, seed=3)
    found = run(declared(0, 1, 2), X, obs, bounds=(-0.5, 0.5), stat=stat)
    score = (X[:, :3] / X[:, :3].std(axis=0)).mean(axis=1)
    t = stats.ttest_ind(score[obs["outcome"] == "won"], score[obs["outcome"] == "lost"]).statistic
    assert found.bayes_factor == pytest.approx(bayes_factor(np.array([t]), 16, 15)[0])
    unit = np.sqrt(1 / 16 + 1 / 15)
    assert found.p_equivalence == pytest.approx(equivalence(np.array([t]), 29, unit, (-0.5, 0.5))[0])


def test_evidence_is_not_for_selected_regions_nor_for_other_comparisons():
    X, obs = trials(n_items=30, between=True)
    roi = localize(DESIGN, "won - lost", X, obs, name="x", n_features=3, n_perm=99)
    with pytest.raises(InvalidInput, match="equivalence bounds are for a region declared beforehand"):
        run(roi, X, trials(n_items=30, between=True, prefix="new")[1], bounds=(-1, 1))
    obs["outcome"] = np.resize(["won", "lost", "drew"], 30)
    found = run(declared(0), X, obs, ["won - lost", "drew - lost"])
    assert found.bayes_factor is None and "partial η² = " in found.verdict()
    with pytest.raises(InvalidInput, match="equivalence is tested for paired and two-group comparisons"):
        run(declared(0), X, obs, ["won - lost", "drew - lost"], bounds=(-1, 1))


def test_features_of_another_dictionary():
    X, obs = trials()
    with pytest.raises(DataMismatch, match=r"1 of its 2 features are not among the 40 of these trials \('99'\)"):
        run(declared(1, 99), X, obs)
    with pytest.raises(InvalidInput, match="test_roi: expected a trial table with one row per trial, found NoneType"):
        run(declared(1), X, None)
    with pytest.raises(DataMismatch, match=r"X has shape \(39, 40\) but the trial table has 40 rows"):
        run(declared(1), X[:-1], obs)
