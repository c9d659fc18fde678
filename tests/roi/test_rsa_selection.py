"""Regions chosen by RSA, a searchlight or greedily: what they remember, and that they are refused on the same items."""

import json
import re

import numpy as np
import pytest
from roi.trialset import trials
from scipy import sparse

from neurollm import roi as regions
from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi import ROI, check_disjoint, select_roi
from neurollm.roi.contents import text_hash
from neurollm.roi.greedy import greedy_roi
from neurollm.rsa import FeatureRSA
from neurollm.rsa.searchlight import Searchlight
from neurollm.stats.rdms.greedy import greedy_selection
from neurollm.stats.rdms.labels import categorical_rdm

DESIGN = CategoricalDesign("outcome")


def fitted(X, obs, models=("categorical",), **options):
    return FeatureRSA(DESIGN, models=models, **{"n_perm": 200, **options}).fit(X, obs).result_


def test_selection_by_rsa_remembers_contents_without_a_contrast(tmp_path):
    X, obs = trials(effect=3, n_carry=3)
    result = fitted(X, obs)
    roi = select_roi(result, obs, "success", n_features=3)
    assert set(roi.feature) == {0, 1, 2} and roi.signs == (1, 1, 1)
    assert roi.contrast is None and roi.method == "rsa" and not roi.is_declared
    assert roi.selection == (
        "the 3 largest z of 40 tested features (those that follow the model; tested in either direction) in RSA "
        "with the model 'categorical' (pearson), 20 items."
    )
    assert roi.items == tuple(sorted(set(obs["item"]))) and roi.item == "item"
    assert set(roi.texts) == {text_hash(text) for text in obs["text"]}
    assert ROI.load(roi.save(tmp_path / "roi.json")) == roi
    for refused in (roi, ROI.load(tmp_path / "roi.json")):
        with pytest.raises(DataMismatch, match=r"20 items .* were used to select its features"):
            check_disjoint(refused, obs)
        with pytest.raises(DataMismatch, match="were used to select its features"):
            regions.test_roi(refused, X, obs, DESIGN, "won - lost")
    X, new = trials(effect=3, n_carry=3, prefix="new", seed=1)
    assert regions.test_roi(roi, X, new, DESIGN, "won - lost", n_perm=200).score.p_fwer[0] < 0.05


def test_selection_by_rsa_follows_z_p_and_the_alternative():
    X, obs = trials(effect=2, n_carry=4)
    X[:, 5] = np.repeat(np.arange(20), 2) + 0.3 * X[:, 5]  # items differ, conditions do not: r below 0
    result = fitted(X, obs, models=("categorical", "discriminative"))
    one = result["categorical"]
    with pytest.raises(InvalidInput, match="the RSA has 2 models; name one as model: 'categorical', 'discriminative'"):
        select_roi(result, obs, "x", n_features=3)
    by_alpha = select_roi(result, obs, "x", alpha=0.05, model="categorical")
    assert set(by_alpha.feature) == set(np.flatnonzero((one.p_fwer <= 0.05) & (one.z > 0))) and {0, 1, 2, 3} <= set(
        by_alpha.feature
    )
    by_q = select_roi(result, obs, "x", alpha=0.05, by="q", model="discriminative")
    other = result["discriminative"]
    assert set(by_q.feature) == set(np.flatnonzero((other.q <= 0.05) & (other.z > 0)))
    assert list(select_roi(result, obs, "x", n_features=5, model="categorical").feature) == (
        np.argsort(-one.z)[:5].tolist()
    )
    less = fitted(X, obs, alternative="less")
    assert select_roi(less, obs, "x", n_features=1).feature == (int(np.argmin(less.maps[0].z)),)
    with pytest.raises(InvalidInput, match=r"select_roi: RSA model 'categorical': no feature has p_fwer ≤ 0.001"):
        select_roi(result, obs, "x", alpha=0.001, model="categorical")


def test_features_that_run_against_the_model_are_chosen_only_where_that_is_asked():
    X, obs = trials(n_items=24, effect=1.5, n_carry=2, between=True)
    won = (obs["outcome"] == "won").to_numpy()
    X[:, 2:5] = np.where(np.arange(24) // 2 % 2, 1, -1)[:, None] + 0.05 * X[:, 2:5]  # differs inside conditions alone
    w = np.eye(40)
    for result in (fitted(X, obs), Searchlight(DESIGN, k=0, n_perm=200).fit(X, obs, w).result_):
        z = result.maps[0].z if hasattr(result, "maps") else result.z
        assert won.sum() == 12 and (z[2:5] < 0).all()
        many = int((z > 0).sum())
        roi = select_roi(result, obs, "x", n_features=many)
        assert set(roi.feature) == set(np.flatnonzero(z > 0)) and "those that follow the model" in roi.selection
        with pytest.raises(InvalidInput, match=rf"{many} tested features follow the model, fewer than n_features = 40"):
            select_roi(result, obs, "x", n_features=40)
    against = select_roi(fitted(X, obs, alternative="less"), obs, "x", n_features=3)
    assert "(those that run against the model)" in against.selection
    assert set(against.feature) == set(np.argsort(fitted(X, obs).maps[0].z)[:3])


def test_selection_needs_the_whole_table_and_a_known_result():
    X, obs = trials()
    result = fitted(X, obs)
    with pytest.raises(DataMismatch, match="RSA model 'categorical' was computed from"):
        select_roi(result, obs[:20], "x", n_features=2)
    with pytest.raises(InvalidInput, match="no column 'text'"):
        select_roi(result, obs.drop(columns="text"), "x", n_features=2)
    with pytest.raises(InvalidInput, match="an RSAResult or a SearchlightMap, found dict"):
        select_roi({}, obs, "x", n_features=2)
    with pytest.raises(InvalidInput, match="has no p_fwer"):
        select_roi(fitted(X, obs, n_perm=0), obs, "x", alpha=0.05)
    by_r = fitted(X, obs, n_perm=0, alternative="greater")
    assert (
        "largest r of 40 tested features (those that follow the model)"
        in select_roi(by_r, obs, "x", n_features=2).selection
    )


def test_centres_of_a_searchlight():
    X, obs = trials(effect=1.5, n_carry=6)
    w = np.random.default_rng(0).normal(size=(40, 6))
    w[:6] = w[0] + 0.1 * w[:6]
    result = Searchlight(DESIGN, k=5, n_perm=200).fit(X, obs, w).result_
    roi = select_roi(result, obs, "place", alpha=0.05)
    assert set(range(6)) <= set(roi.feature) and roi.method == "searchlight"
    assert (
        "of 40 tested neighbourhoods, of which the centres are taken, (those that follow the model; tested in"
        in roi.selection
    )
    with pytest.raises(DataMismatch, match="were used to select"):
        check_disjoint(roi, obs)


@pytest.mark.parametrize("steps", ["forward", "floating", "swap"])
def test_greedy_region_is_that_of_the_arrays(steps):
    X, obs = trials(n_features=60)
    X[:, 7] = np.where(np.arange(40) < 4, X[:, 7], 0)  # active in four rows
    ids = np.array([f"f{i}" for i in range(60)])
    roi = greedy_roi(
        DESIGN, sparse.csr_array(X), obs, name="x", n_features=4, comparison="whitened", steps=steps, features=ids
    )
    keep = np.delete(np.arange(60), 7)
    order = np.lexsort((obs["outcome"], obs["item"]))
    path = greedy_selection(
        X[order][:, keep], categorical_rdm(obs["outcome"].to_numpy()[order]), 4, comparison="whitened", steps=steps
    )
    assert roi.feature == tuple(ids[keep[path.feature]]) and roi.method == "greedy"
    assert roi.selection == (
        f"4 of 59 features by greedy selection ({steps}) for RSA with the model 'categorical' (whitened): "
        f"r = {path.score[-1]:.3f} on the 20 items that chose them."
    )
    with pytest.raises(DataMismatch, match="20 items"):
        check_disjoint(roi, obs)
    check_disjoint(roi, trials(prefix="new")[1])


def test_greedy_regions_that_are_refused():
    X, obs = trials()
    with pytest.raises(InvalidInput, match="no column 'text'"):
        greedy_roi(DESIGN, X, obs.drop(columns="text"), name="x", n_features=3)
    with pytest.raises(InvalidInput, match="40 features vary, fewer than n_features = 41"):
        greedy_roi(DESIGN, X, obs, name="x", n_features=41)
    with pytest.raises(InvalidInput, match="there is no model 'kind'"):
        greedy_roi(DESIGN, X, obs, model="kind", name="x", n_features=3)
    with pytest.raises(InvalidInput, match="it must be 'pearson' or 'whitened'; did you mean 'whitened'"):
        greedy_roi(DESIGN, X, obs, name="x", n_features=3, comparison="whitend")
    with pytest.raises(InvalidInput, match="scale is 'rank'; it is one of 'raw', 'log1p', 'binary'"):
        greedy_roi(DESIGN, X, obs, name="x", n_features=3, scale="rank")
    with pytest.raises(DataMismatch, match="greedy_roi: 2 feature ids were given for 40 columns"):
        greedy_roi(DESIGN, X, obs, name="x", n_features=3, features=[1, 2])
    with pytest.raises(InvalidInput, match="greedy_roi: X must be a table of trials × features, found shape"):
        greedy_roi(DESIGN, X[:, 0], obs, name="x", n_features=3)
    with pytest.raises(InvalidInput, match="min_active must be a whole number of at least 0, found 'a'"):
        greedy_roi(DESIGN, X, obs, name="x", n_features=3, min_active="a")


def test_ways_and_contents_must_agree(tmp_path):
    X, obs = trials(effect=2, n_carry=3)
    path = greedy_roi(DESIGN, X, obs, name="x", n_features=3).save(tmp_path / "roi.json")
    plain = json.loads(path.read_text())
    assert plain["version"] == 2 and plain["method"] == "greedy" and plain["contrast"] is None
    for change, sentence in (
        ({"method": "declared"}, "a declared one has none"),
        ({"method": "luck"}, "method is 'luck'; it is one of 'declared', 'contrast', 'rsa'"),
        ({"method": "contrast"}, "a contrast belongs to the method 'contrast' and to no other"),
        ({"texts": [], "items": []}, "a region chosen by greedy needs the hashes of the texts it was chosen on"),
        ({"version": 1}, "written by another version"),
    ):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(DataMismatch, match=re.escape(sentence)):
            ROI.load(path)
