"""Cross-fitting against a plain loop, its error rate, and what it finds."""

import itertools

import numpy as np
import pytest
from roi.trialset import trials
from scipy import stats

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.glm import FeatureGLM
from neurollm.roi import check_disjoint, cross_fit, localize, select_roi

DESIGN = CategoricalDesign("outcome")


def fit(X, obs, design=DESIGN, contrast="won - lost", **options):
    return cross_fit(design, X, obs, contrast, **{"n_features": 3, "n_splits": 4, "n_perm": 99, **options})


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_against_a_loop_of_selection_and_test(between, alternative):
    X, obs = trials(n_items=32, effect=1, n_carry=2, between=between)
    found = fit(X, obs, alternative=alternative)
    effects, inside, spread = [], [], X.std(axis=0)
    for fold in range(4):
        mine = found.fold == fold
        other = FeatureGLM(DESIGN, n_perm=0, alternative=alternative).fit(X[~mine], obs[~mine])
        there = other.compute_contrast("won - lost")
        roi = select_roi(there, obs[~mine], "x", n_features=3)
        check_disjoint(roi, obs[mine])
        assert found.selected[fold] == roi.feature
        here = FeatureGLM(DESIGN, n_perm=0).fit(X[mine], obs[mine]).compute_contrast("won - lost")
        chosen, signs = list(roi.feature), np.array(roi.signs)
        effects.append((here.effect[chosen] * signs / spread[chosen]).mean())
        inside.append((there.effect[chosen] * signs / spread[chosen]).mean())
    np.testing.assert_allclose(found.fold_effect, effects)
    np.testing.assert_allclose([found.effect, found.in_sample], [np.mean(effects), np.mean(inside)])


@pytest.mark.parametrize("between", [False, True])
def test_p_against_doing_everything_again(between):
    X, obs = trials(n_items=8 if between else 6, n_features=5, effect=0.5, n_carry=1, between=between)
    options = {"n_features": 2, "n_splits": 2, "n_perm": 100}
    found = fit(X, obs, **options)
    assert found.exhaustive and found.n_perm == (36 if between else 64)
    assert found.sentence.endswith("in their fold: 36 shufflings." if between else "(64 possible shufflings).")
    null = []
    if between:
        halves = [np.flatnonzero(found.fold == fold) for fold in (0, 1)]
        won = [[set(pair) for pair in itertools.combinations(range(4), 2)] for _ in halves]
        for chosen in itertools.product(*won):
            moved = X.copy()
            for rows, which in zip(halves, chosen, strict=True):
                mine = [*sorted(which), *sorted(set(range(4)) - which)]  # two winners, two losers
                places = [rows[obs["outcome"][rows] == level] for level in ("won", "lost")]
                moved[np.concatenate(places)] = X[rows[mine]]
            null.append(fit(moved, obs, **options).effect)
    else:
        for swapped in itertools.product((False, True), repeat=6):
            order = np.arange(12).reshape(6, 2)
            order[list(swapped)] = order[list(swapped)][:, ::-1]
            null.append(fit(X[order.ravel()], obs, **options).effect)
    assert found.p == pytest.approx(np.mean(np.array(null) >= found.effect - 1e-9))
    low, high = found.effect - np.quantile(null, [0.975, 0.025])
    np.testing.assert_allclose([found.effect_low, found.effect_high], [low, high])


@pytest.mark.parametrize(("n_features", "n_splits", "V"), [(1, 2, 1), (4, 3, 30)])
def test_noise(n_features, n_splits, V):
    """Large in sample, zero held out, and the level is kept; a test of the held-out scores as they stand does not."""
    n_data, runs = 100, []
    for seed in range(n_data):
        X, obs = trials(n_items=18, n_features=V, seed=seed)
        options = {"n_features": n_features, "n_splits": n_splits, "n_perm": 59, "random_state": seed}
        runs.append(fit(X, obs, **options))
    effect = np.array([run.effect for run in runs])
    assert np.mean([run.in_sample for run in runs]) > 0.3
    assert abs(effect.mean()) < 4 * effect.std() / np.sqrt(n_data)
    low, high = stats.binom.ppf([0.0005, 0.9995], n_data, 0.05) / n_data
    assert low <= np.mean([run.p <= 0.05 for run in runs]) <= high
    missed = [((run.feature_low > 0) | (run.feature_high < 0)).sum() for run in runs]
    assert np.mean(missed) <= 0.05 * n_features + 3 * np.std(missed) / np.sqrt(n_data)


def test_a_planted_effect_is_found():
    X, obs = trials(n_items=40, effect=2, n_carry=3)
    X[:, 2] *= -1
    found = fit(X, obs, n_splits=2, n_perm=199)
    assert set(found.feature[found.frequency == 1]) == {0, 1, 2} and found.p == 1 / 200
    frame = found.to_frame().set_index("feature")
    assert list(frame) == ["frequency", "effect", "low", "high"]
    assert (frame.loc[[0, 1], "low"] > 0).all() and frame.loc[2, "high"] < 0
    assert (frame["low"] < frame["effect"]).all() and (frame["effect"] < frame["high"]).all()
    assert found.effect_low < 2 / X[:, :3].std(axis=0).mean() < found.effect_high
    assert found.verdict().startswith("won - lost: 3 features chosen in each of 2 folds have a held-out effect of ")


def test_interval_of_a_feature_is_that_which_half_of_the_folds_allow():
    X, obs = trials(n_items=30, effect=2, n_carry=3)
    found = fit(X, obs, n_splits=3)
    own = []
    for fold in range(3):
        mine = found.fold == fold
        here = FeatureGLM(DESIGN, n_perm=0).fit(X[mine], obs[mine]).compute_contrast("won - lost")
        half = stats.t.isf(0.05 * 2 / 3 / 2, here.df[0]) * here.se[0]
        own.append((here.effect[0] - half, here.effect[0] + half))
    lows, highs = np.sort(np.array(own).T, axis=1)
    row = found.to_frame().set_index("feature").loc[0]
    assert row["frequency"] == 1
    np.testing.assert_allclose([row["low"], row["high"]], [lows[-2], highs[1]])
    rare = found.to_frame().query("frequency < 0.5")
    assert np.isinf(rare[["low", "high"]]).all(axis=None)


def test_folds_share_no_text():
    X, obs = trials(n_items=12)
    obs.loc[2, "text"] = obs.loc[0, "text"]
    found = fit(X, obs)
    assert len(set(found.fold[:4])) == 1
    for fold in range(4):
        assert not set(obs["text"][found.fold == fold]) & set(obs["text"][found.fold != fold])


def test_same_numbers_for_other_storage_order_and_dead_features():
    from scipy import sparse

    X, obs = trials(n_items=24, effect=1, n_carry=3)
    X = np.where(X > 0.3, X, 0)
    X[:, 10:20] = 0
    dense, thin = fit(X, obs), fit(sparse.csr_matrix(X), obs)
    assert dense.selected == thin.selected and dense.p == thin.p
    np.testing.assert_allclose(dense.fold_effect, thin.fold_effect)
    assert not set(dense.feature) & set(range(10, 20))
    with pytest.raises(InvalidInput, match="30 features vary, fewer than n_features = 31"):
        fit(X, obs, n_features=31)


def test_features_that_are_not_finite_are_left_out():
    X, obs = trials(n_items=24, effect=2, n_carry=3)
    broken = X.copy()
    broken[3, 0], broken[5, 1] = np.nan, np.inf
    with np.errstate(all="raise"):
        found = fit(broken, obs, n_features=1)
    assert found.feature.tolist() == [2] and found.p == 0.01


def test_other_designs():
    """Three levels inside items, an interaction, and a covariate that explains the effect away."""
    rng = np.random.default_rng(0)
    X, obs = trials(n_items=60, n_features=20)
    obs["item"] = np.repeat([f"i{number:02d}" for number in range(30)], 4)
    obs["voice"] = np.tile(["active", "active", "passive", "passive"], 30)
    X[:, 3] += 3 * (obs["outcome"] == "won") * (obs["voice"] == "active")
    crossed = fit(X, obs, FactorialDesign(["outcome", "voice"]), "outcome:voice", n_features=1)
    assert crossed.feature.tolist() == [3] and crossed.p == 0.01
    levels = obs.assign(outcome=np.resize(["won", "lost", "drew"], 120), item=np.repeat(np.arange(40), 3).astype(str))
    Y = rng.normal(size=X.shape)
    Y[:, 6] += 2 * (levels["outcome"] == "won")
    three = fit(Y, levels, contrast="won - 0.5*lost - 0.5*drew", n_features=1)
    assert three.feature.tolist() == [6] and three.p == 0.01 and "exchanged inside each" in three.sentence
    Y, alone = trials(n_items=60, n_features=20, between=True)
    alone["length"] = (alone["outcome"] == "won") * 2 + rng.normal(size=60)
    Y += np.asarray(alone["length"])[:, None]
    assert fit(Y, alone, n_features=2).p == 0.01
    held = fit(Y, alone, CategoricalDesign("outcome", covariates=["length"]), n_features=2)
    assert held.p > 0.05 and "Freedman-Lane" in held.sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_features": 0}, "n_features must be a whole number of at least 1, found 0"),
        ({"n_splits": 1}, "n_splits must be a whole number of at least 2, found 1"),
        ({"n_perm": 5}, "n_perm must be a whole number of at least 19, found 5"),
        ({"n_splits": 30}, "20 items make 20 groups that share no text, too few for 30 parts"),
        ({"n_splits": 20}, "one of the folds is too small"),
        ({"scale": "rank"}, "scale 'rank' would rank across folds"),
    ],
)
def test_refusals(change, sentence):
    X, obs = trials()
    with pytest.raises(InvalidInput, match=sentence):
        fit(X, obs, **change)


def test_contrasts_without_direction_and_tables_without_texts_are_refused():
    X, obs = trials(n_items=30, between=True)
    with pytest.raises(InvalidInput, match="no column 'text'"):
        fit(X, obs.drop(columns="text"))
    obs["outcome"] = np.resize(["won", "lost", "drew"], 30)
    with pytest.raises(InvalidInput, match="is an F contrast; give one with a direction"):
        fit(X, obs, contrast=["won - lost", "drew - lost"])


def test_selected_features_are_those_of_a_localizer_on_the_other_folds():
    X, obs = trials(n_items=24, effect=2, n_carry=3)
    found = fit(X, obs, n_splits=2)
    mine = found.fold == 0
    roi = localize(DESIGN, "won - lost", X[~mine], obs[~mine], name="x", n_features=3, n_perm=0)
    assert found.selected[0] == roi.feature
