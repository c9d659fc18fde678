"""Time-resolved RSA: planted times, noise, missing positions, and the artefact of padding with zeros."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import pdist, squareform

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi import ROI, greedy_roi
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.temporal import TimeResolvedRSA
from neurollm.rsa.windows import Windows
from neurollm.stats.rdms import categorical_rdm, rsa_scores
from neurollm.stats.rdms.pairs import pair_vectors
from neurollm.stats.rdms.windows import window_scores

DESIGN = CategoricalDesign("outcome")


def made(seed, lengths, within=False, V=4, templates=1, planted=None, noise=1.0, kind=np.asarray):
    """Trials with one row per token.

    lengths : tokens of every item (within: of both its conditions); planted : (position, feature, size).
    """
    rng = np.random.default_rng(seed)
    stimuli = []
    for item, length in enumerate(lengths):
        for outcome in "ab" if within else "ab"[item % 2]:
            stimuli += [(f"i{item:02d}", outcome, f"t{t}", length) for t in range(templates)]
    rows = [(f"s{i}", *facts[:3], p) for i, facts in enumerate(stimuli) for p in range(facts[3])]
    obs = pd.DataFrame(rows, columns=["stimulus_id", "item", "outcome", "template", "position"])
    X = noise * rng.lognormal(size=(len(obs), V)) * (rng.random((len(obs), V)) < 0.8)
    if planted is not None:
        position, feature, size = planted
        X[(obs["position"] == position) & (obs["outcome"] == "a"), feature] += size
    return AnnData(kind(X), obs=obs.set_index(obs.index.astype(str)))


def mixed(n, low=3, high=6, seed=0):
    return np.random.default_rng(seed).integers(low, high + 1, n)


def fitted(trials, span=(0, 4), **options):
    options = {"n_perm": 99} | options
    return TimeResolvedRSA(options.pop("design", DESIGN), span=span, **options).fit(trials).result_


@pytest.mark.parametrize("within", [False, True])
def test_planted_time_and_feature_are_found(within):
    errors = []
    for seed in range(6):
        position, feature = seed % 4, seed % 3
        trials = made(seed, mixed(24, 4, 7, seed), within, planted=(position, feature, 4.0))
        result = fitted(trials, n_perm=199)
        peak = result.peak
        errors.append(abs(int(peak.position) - position))
        assert peak.feature == feature and peak.p_fwer <= 0.05 and peak.r > 0
        frame = result.to_frame()
        elsewhere = frame[(frame["position"] != position) | (frame["feature"] != feature)]
        assert (elsewhere["p_fwer"] <= 0.05).sum() <= 1
    assert errors == [0] * 6


def test_target_and_end_are_events():
    trials = made(3, mixed(24, 5, 8), planted=None)
    rng = np.random.default_rng(0)
    ids = trials.obs["stimulus_id"].unique()
    anchors = {name: int(rng.integers(1, 4)) for name in ids}
    at = trials.obs["position"].to_numpy() - trials.obs["stimulus_id"].map(anchors).to_numpy(int)
    trials.X[(at == 1) & (trials.obs["outcome"] == "a").to_numpy(), 2] += 5
    rsa = TimeResolvedRSA(DESIGN, align="target", span=(-2, 2), n_perm=199).fit(trials, anchors=anchors)
    assert (int(rsa.result_.peak.position), int(rsa.result_.peak.feature)) == (1, 2)
    assert rsa.result_.peak.p_fwer <= 0.05 and rsa.to_frame().columns.tolist() == [
        "position", "feature", "r", "z", "p", "p_fwer", "n_trials",
    ]  # fmt: skip
    assert "position 1 from the target" in rsa.result_.verdict()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_scores_are_those_of_the_rows_that_exist(within, kind):
    trials = made(5, mixed(14, 3, 6), within, templates=2, kind=kind)
    obs = trials.obs
    # A wording of i03 that ends early: its row is missing from there on, not an average of the other wording.
    short = obs["stimulus_id"] == obs.loc[obs["item"] == "i03", "stimulus_id"].iloc[0]
    trials = trials[~(short & (obs["position"] >= 2))].copy()
    result = fitted(trials, min_active=0)
    frame = trials.obs.assign(row=trials.obs["item"].astype(str) + trials.obs["outcome"].astype(str))
    X = trials.X if kind is np.asarray else trials.X.toarray()
    every = frame.drop_duplicates("stimulus_id").groupby("row").size()
    for t in range(5):
        here = frame["position"] == t
        sizes = frame[here].groupby("row").size()
        rows = [row for row in sizes.index if sizes[row] == every[row]]
        if within:
            rows = [row for row in rows if row[:-1] + "a" in rows and row[:-1] + "b" in rows]
        means = np.stack([X[here & (frame["row"] == row)].mean(axis=0) for row in rows])
        expected = rsa_scores(means, categorical_rdm([row[-1] for row in rows]))
        np.testing.assert_allclose(result.r[t], expected, rtol=1e-9)
        assert result.n_rows[t] == len(rows) and result.n_trials[t] == 2 * len(rows)


def test_p_values_are_those_of_a_loop_over_arrangements():
    trials = made(6, np.repeat([4, 5], 6), planted=(1, 0, 2.0))
    result = fitted(trials, span=(0, 4), n_perm=150, min_active=0)
    X = np.full((12, 5, 4), np.nan)
    for row, (name, p) in enumerate(zip(trials.obs["item"], trials.obs["position"], strict=True)):
        X[int(name[1:]), p] = trials.X[row]
    from neurollm.stats.shufflings import whole_item

    draws = whole_item(np.arange(12) % 2, np.repeat([0, 1], 6)).draw(150, 0)
    D = categorical_rdm(np.arange(12) % 2)
    null = np.empty((len(draws), 5, 4))
    for p, index in enumerate(draws.index):
        for t in range(5):
            here = np.flatnonzero(np.isfinite(X[:, t, 0]))
            null[p, t] = rsa_scores(X[here, t], D[index][:, index][np.ix_(here, here)])
    both = np.concatenate([null, result.r[None]]) if not draws.exhaustive else null
    z_null, z = (null - both.mean(axis=0)) / both.std(axis=0), (result.r - both.mean(axis=0)) / both.std(axis=0)
    largest = np.abs(z_null).max(axis=(1, 2))
    plus = int(not draws.exhaustive)
    expected = ((largest[:, None, None] >= np.abs(z) - 1e-8).sum(axis=0) + plus) / (len(draws) + plus)
    np.testing.assert_allclose(result.z, z, rtol=1e-6)
    np.testing.assert_allclose(result.p_fwer, expected)
    critical = result.critical_value(0.05)
    np.testing.assert_array_equal(np.abs(result.z) >= critical, result.p_fwer <= 0.05)


def test_critical_values_are_those_of_the_p_values(monkeypatch):
    trials = made(20, mixed(16), planted=(1, 0, 2.0), V=7)
    result = fitted(trials)
    for alpha in np.arange(1, 100) / 100:
        significant = np.abs(result.z) >= result.critical_value(alpha)
        np.testing.assert_array_equal(significant, result.p_fwer <= alpha)
    monkeypatch.setattr("neurollm.stats.rdms.nulls._BLOCK", (3, 3))  # blocks that do not end where positions do
    again = fitted(trials)
    np.testing.assert_allclose(again.z, result.z)
    np.testing.assert_array_equal(again.p_fwer, result.p_fwer)


def test_noise_is_significant_at_the_nominal_rate():
    """Also where one condition tends to have longer trials."""
    least = []
    for seed in range(150):
        lengths = 2 + np.random.default_rng(seed).binomial(2, np.tile([0.3, 0.7], 10))
        result = fitted(made(1000 + seed, lengths, V=2), span=(0, 3), n_perm=39, min_active=0, random_state=seed)
        least.append(np.nanmin(result.p_fwer))
    rate = np.mean(np.array(least) <= 0.05)
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert np.mean(np.array(least) <= 0.3) > 0.2  # nor is it too strict


def test_length_is_no_signal():
    """Padded with zeros, the length of the trials of a condition is the strongest effect there is."""
    lengths = np.tile([4, 7, 5, 6, 7, 4, 5, 8], 4)  # condition b is longer on average
    trials = made(0, lengths, V=6)
    trials.X[:] = np.random.default_rng(0).normal(5, 1, trials.shape)  # features that are always on
    windows = Windows.from_trials(trials, span=(0, 7))
    padded = np.where(windows.present[:, :, None], windows.data[windows.rows], 0.0).transpose(1, 0, 2)
    labels = windows.obs["outcome"].to_numpy()
    spurious = window_scores(list(padded), categorical_rdm(labels))
    rng = np.random.default_rng(0)
    index = np.stack([rng.permutation(len(labels)) for _ in range(99)])
    null = window_scores(list(padded), categorical_rdm(labels), index=index)
    assert (null >= spurious).sum(axis=0).max() <= 4  # p ≤ .05 in every feature of pure noise
    result = fitted(trials, span=(0, 7), min_active=0)
    assert np.nanmin(result.p_fwer) > 0.05
    assert np.isnan(result.r[7]).all()  # only b has eight tokens: nothing to compare
    whole = fitted(trials, span=(0, 3), per="window", min_active=0)
    assert whole.n_trials.tolist() == [32] and whole.p_fwer.min() > 0.05


def test_length_that_is_the_condition_is_refused():
    trials = made(8, np.tile([3, 6], 10))
    with pytest.raises(InvalidInput, match="length of the trials says what their condition is"):
        fitted(trials)
    assert fitted(trials, span=(0, 2)).n_trials.tolist() == [20] * 3


def test_positions_that_no_trial_has_change_nothing():
    trials = made(9, mixed(16, 3, 5), planted=(1, 1, 3.0))
    short, long = fitted(trials, span=(0, 4)), fitted(trials, span=(-3, 9))
    for name in ("r", "z", "p", "p_fwer"):
        np.testing.assert_array_equal(getattr(long, name)[3:8], getattr(short, name))
        assert np.isnan(np.delete(getattr(long, name), np.s_[3:8], axis=0)).all()
    np.testing.assert_array_equal(long.null_max, short.null_max)


def test_shuffled_tokens_lose_the_time():
    trials = made(10, np.full(24, 6), planted=(3, 0, 6.0))
    windows = Windows.from_trials(trials, span=(0, 5))
    rsa = TimeResolvedRSA(DESIGN, n_perm=99)
    told, control = rsa.fit(windows).result_, rsa.fit(windows.shuffled(0)).result_
    assert told.p_fwer[3, 0] <= 0.05 < np.nanmin(control.p_fwer)
    assert told.z[3, 0] > 1.5 * np.nanmax(control.z)


@pytest.mark.parametrize("distance", ["squared", "correlation"])
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened"])
def test_regions_equal_explicit_rdms(distance, comparison):
    trials = made(11, np.full(12, 3), V=8, planted=(1, slice(1, 5), 3.0))
    result = fitted(trials, span=(0, 2), region=[1, 2, 3, 4, 6], distance=distance, comparison=comparison)
    D, H = categorical_rdm(np.arange(12) % 2), np.eye(12) - 1 / 12
    for t in range(3):
        X = trials.X[trials.obs["position"] == t][:, [1, 2, 3, 4, 6]]
        rdm = squareform(pdist(X, "sqeuclidean" if distance == "squared" else "correlation"))
        if comparison == "whitened":
            expected = np.sum((H @ rdm @ H) * (H @ D @ H)) / np.linalg.norm(H @ rdm @ H) / np.linalg.norm(H @ D @ H)
        else:
            a, b = pair_vectors(rdm), pair_vectors(D)
            a, b = (a - a.mean(), b - b.mean()) if comparison == "pearson" else (a, b)
            expected = a @ b / np.sqrt(a @ a * (b @ b))
        np.testing.assert_allclose(result.r[t], [expected], rtol=1e-9)
    assert result.feature.tolist() == ["region"]
    if distance == "squared":
        assert int(result.peak.position) == 1 and result.peak.p_fwer <= 0.05 and "the region" in result.verdict()


def test_whole_windows_are_one_pattern():
    trials = made(12, mixed(16, 3, 6), planted=(2, 1, 4.0))
    result = fitted(trials, span=(0, 3), per="window", distance="correlation", min_active=0)
    kept = trials.obs.groupby("item")["position"].transform("max") >= 3
    parts = [trials.X[kept & (trials.obs["position"] == t)] for t in range(4)]
    labels = trials.obs["outcome"][kept & (trials.obs["position"] == 0)]
    np.testing.assert_allclose(result.r[0], window_scores(parts, categorical_rdm(labels), distance="correlation"))
    assert "positions 0:3 from the start" in result.verdict()
    assert result.positions.tolist() == ["0:3"] and result.n_dropped == 16 - len(labels)


def test_sparse_trials_give_the_same():
    options = {"planted": (1, 1, 3.0), "templates": 2}
    a, b = (fitted(made(13, mixed(14), kind=kind, **options)) for kind in (np.asarray, sparse.csr_matrix))
    for name in ("r", "z", "p_fwer"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-7)


def test_equal_features_are_told_to_be_tied():
    trials = made(14, np.full(16, 4), V=2, planted=(1, 0, 3.0))
    trials.X[:, 1] = trials.X[:, 0]
    result = fitted(trials, span=(0, 3))
    np.testing.assert_array_equal(result.p_fwer[:, 0], result.p_fwer[:, 1])
    assert result.peak.n_tied == 1 and "tied with 1 other" in result.verdict()
    assert np.nanmin(result.p) > 0


def test_silent_and_rare_features_are_not_tested():
    trials = made(15, np.full(16, 3), V=3)
    trials.X[:, 0] = 0
    trials.X[:, 1] = np.arange(len(trials.X)) < 12  # four rows at a position
    result = fitted(trials, span=(0, 2))
    assert np.isfinite(fitted(trials, span=(0, 2), min_active=4).p[:, 1]).all()
    assert np.isnan(result.r[:, 0]).all() and np.isnan(result.p[:, :2]).all() and np.isfinite(result.p[:, 2]).all()
    assert result.n_tested == 3
    window = fitted(trials, span=(0, 2), per="window")
    assert np.isfinite(window.r[0, 1:]).all() and np.isnan(window.p[0]).tolist() == [True, True, False]
    trials.X[:] = 0
    empty = fitted(trials, span=(0, 2))
    assert empty.peak is None and "nothing could be tested" in empty.verdict() and np.isnan(empty.critical_value())


def test_interactions_are_free_of_main_effects():
    rng = np.random.default_rng(16)
    rows = [
        (f"s{i}{a}{b}", f"i{i:02d}", a, b, p)
        for i in range(20) for a in "xy" for b in "uv" for p in range(3 + i % 2)
    ]  # fmt: skip
    obs = pd.DataFrame(rows, columns=["stimulus_id", "item", "first", "second", "position"])
    X = rng.normal(size=(len(obs), 3))
    both = (obs["first"] == "x").astype(int), (obs["second"] == "u").astype(int)
    X[:, 0] += 3 * both[0]  # a main effect alone
    X[:, 1] += 3 * (both[0] ^ both[1]) * (obs["position"] == 2)
    trials = AnnData(X, obs=obs.set_index(obs.index.astype(str)))
    design = FactorialDesign(("first", "second"))
    result = fitted(trials, span=(0, 3), design=design, model="first:second", n_perm=199)
    assert (int(result.peak.position), int(result.peak.feature)) == (2, 1)
    assert result.p_fwer[2, 1] <= 0.05 and np.nanmin(np.delete(result.p_fwer.ravel(), 7)) > 0.05
    for position, items in [(1, range(20)), (3, range(1, 20, 2))]:
        cells = X[obs["position"] == position].reshape(len(items), 2, 2, 3)
        for axis in (1, 2):  # the item's means over each factor
            cells = cells - cells.mean(axis=axis, keepdims=True)
        expected = rsa_scores(cells.reshape(-1, 3), categorical_rdm([0, 1, 1, 0] * len(items)))
        np.testing.assert_allclose(result.r[position], expected, rtol=1e-9)


def test_own_models_and_too_few_shufflings():
    trials = made(17, np.full(6, 3), planted=(0, 0, 9.0))
    numbers = np.arange(6.0)
    own = ModelRDM("number", np.abs(numbers[:, None] - numbers))
    result = fitted(trials, span=(0, 2), model=own, n_perm=1000, min_active=0)
    assert result.exhaustive and result.n_perm == 720
    few = fitted(made(18, np.full(4, 3)), span=(0, 2), min_active=0)
    assert few.n_perm == 6 and few.critical_value(0.05) == np.inf


def test_wrong_calls_are_told():
    trials = made(19, np.full(8, 3), within=True, templates=2)
    for options, words in [
        ({"per": "token"}, "per is 'token'"),
        ({"distance": "correlation"}, "no correlation over a single position"),
        ({"comparison": "spearman", "per": "window"}, "comparison is 'spearman'"),
        ({"alternative": "both"}, "alternative is 'both'"),
        ({"n_perm": 0}, "n_perm must be"),
        ({"random_state": True}, "random_state must be"),
        ({"scale": "rank"}, "scale is 'rank'"),
        ({"model": "nothing"}, "no model 'nothing'"),
        (
            {"model": "effects", "design": FactorialDesign(("outcome", "template"))},
            "'effects' stands for 3 models; name one of",
        ),
        ({"region": [99]}, "'99' is no feature"),
        ({"span": (0, 9), "per": "window"}, "at all positions"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            fitted(trials, **{"span": (0, 2)} | options)
    with pytest.raises(InvalidInput, match=r"must be an AnnData with one row per token, .* found ndarray"):
        TimeResolvedRSA(DESIGN).fit(trials.X)
    with pytest.raises(InvalidInput, match="call fit first"):
        TimeResolvedRSA(DESIGN).to_frame()
    with pytest.raises(InvalidInput, match="alpha must lie"):
        fitted(trials, span=(0, 2), min_active=0).critical_value(1.5)


def test_ids_of_stimuli_are_compared_as_text():
    trials = made(20, np.full(16, 5))
    named = TimeResolvedRSA(DESIGN, align="target", span=(0, 1), n_perm=30)
    ids = trials.obs["stimulus_id"].unique()
    expected = named.fit(trials, anchors={name: 1 + i % 3 for i, name in enumerate(ids)}).to_frame()
    trials.obs["stimulus_id"] = trials.obs["stimulus_id"].str[1:].astype(int)
    found = named.fit(trials, anchors={int(name[1:]): 1 + i % 3 for i, name in enumerate(ids)}).to_frame()
    pd.testing.assert_frame_equal(found, expected)


def test_what_runs_against_the_model_is_not_said_to_follow_it():
    trials = made(21, np.full(16, 3), planted=(1, 0, 60.0))
    alike = ModelRDM("alike", (1 - categorical_rdm(np.arange(16) % 2)) * (1 - np.eye(16)))
    result = fitted(trials, span=(0, 2), model=alike, n_perm=300)
    assert (result.p_fwer <= 0.05).sum() == 1 and result.r[1, 0] < 0
    assert "0 of 12 tested pairs of position and feature follow the model and 1 run against it at" in result.verdict()


def test_why_nothing_could_be_tested_and_what_was_dropped():
    trials = made(22, np.full(16, 3))
    trials.X[:] = 0
    assert "4 features: no feature varies, or the model" in fitted(trials, span=(0, 2)).verdict()
    trials.X[:16] = np.arange(16)[:, None]
    assert "active in fewer than 40 rows, or no arrangement" in fitted(trials, span=(0, 2), min_active=40).verdict()
    short = made(23, np.r_[np.full(14, 3), 1, 1])
    short.X[:] = 0
    assert "; 0 items and 2 trials were dropped" in fitted(short, span=(1, 2)).verdict()


def test_a_region_is_refused_on_the_items_that_chose_it():
    trials = made(24, np.full(16, 3), planted=(1, slice(0, 2), 5.0))
    trials.obs["text"] = trials.obs["stimulus_id"] + " said so"
    windows = Windows.from_trials(trials, span=(1, 1))
    X, _ = windows.at(1)
    chosen = greedy_roi(DESIGN, X, windows.obs, name="both", n_features=2)
    assert set(chosen.feature) == {0, 1}
    with pytest.raises(DataMismatch, match=r"ROI 'both': 16 items .* were used to select its features"):
        fitted(trials, span=(0, 2), region=chosen)
    other = trials[:, :].copy()
    other.obs["text"] += " again"
    other.obs["item"] = "new" + other.obs["item"].astype(str)
    declared = ROI.declared("both", [0, 1], "known before")
    for region, where in ((chosen, other), (declared, trials)):
        found, plain = (fitted(where, span=(0, 2), region=one) for one in (region, list(region.feature)))
        pd.testing.assert_frame_equal(found.to_frame(), plain.to_frame())
