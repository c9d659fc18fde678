"""The method grid: nothing of the test part is seen, planted features are found, noise stays at chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.linear_model import Ridge, lasso_path
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from neurollm.decoding import ridge
from neurollm.decoding.grid import (
    GridPlan,
    areas,
    balanced_accuracy,
    grid_scores,
    shuffle_labels,
    stability,
)
from neurollm.decoding.grid_contrasts import PREREGISTERED, GridContrast, compare, concept_pairs, exploratory, holm
from neurollm.decoding.permutation import label_draws
from neurollm.decoding.scores import jaccard
from neurollm.decoding.selectors import SELECTORS
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.paired_scores import auc_bootstrap, paired_auc_difference

SIMPLE = ("welch_t", "maximum_activation")


def _data(n_items=20, n_features=12, effect=2.0, seed=0):
    """Items of two trials, one per level; the first feature is of the concept."""
    rng = np.random.default_rng(seed)
    labels, items = np.arange(2 * n_items) % 2 == 0, np.arange(2 * n_items) // 2
    X = rng.standard_normal((2 * n_items, n_features))
    X[labels, 0] += effect
    return X, labels, items


# The ridge classifier ----------------------------------------------------------------------


def _weighted(Z, labels, penalty):
    weights = len(labels) / 2 / np.where(labels, labels.sum(), (~labels).sum())
    return Ridge(alpha=penalty), weights


@pytest.mark.parametrize(("n_items", "n_columns", "share"), [(12, 5, 0.5), (10, 45, 0.3)])
def test_ridge_equals_refitting_without_each_item(n_items, n_columns, share):
    rng = np.random.default_rng(n_columns)
    items = np.repeat(np.arange(n_items), 3)
    items[-1] = 0  # items of different sizes
    labels = rng.random(items.size) < share
    Z = rng.standard_normal((items.size, n_columns)) + 0.7 * labels[:, None] * (np.arange(n_columns) < 2)
    unseen, target, n = rng.standard_normal((4, n_columns)), np.where(labels, 1.0, -1.0), items.size
    errors = []
    for penalty in ridge.PENALTIES:
        model, weights = _weighted(Z, labels, penalty * n)
        held_out = np.empty(n)
        for item in np.unique(items):
            own = items == item
            held_out[own] = model.fit(Z[~own], target[~own], sample_weight=weights[~own]).predict(Z[own])
        errors.append(weights @ (target - held_out) ** 2)
    best = ridge.PENALTIES[int(np.argmin(errors))]
    model, weights = _weighted(Z, labels, best * n)
    expected = model.fit(Z, target, sample_weight=weights).predict(unseen) - model.predict(
        (weights @ Z / n)[None]
    )  # the threshold is the weighted mean
    np.testing.assert_allclose(ridge.ridge_scores(Z, labels, items, unseen), expected, rtol=1e-8)
    _, _, b, values, U = ridge._decompose(Z, labels)
    shrink = values / (values + n * np.array(ridge.PENALTIES)[:, None])
    np.testing.assert_allclose(ridge._left_out(U, shrink, U.T @ b, b, items), errors, rtol=1e-8)


def test_ridge_without_columns_says_nothing():
    labels = np.array([True, False, True, False])
    found = ridge.ridge_scores(np.zeros((4, 0)), labels, np.arange(4), np.zeros((3, 0)))
    np.testing.assert_array_equal(found, np.zeros(3))


# Selectors of the grid ---------------------------------------------------------------------


def test_the_l1_path_enters_columns_in_the_order_of_the_lasso():
    rng = np.random.default_rng(3)
    y = rng.random(60) < 0.4
    X = rng.standard_normal((60, 9)) * rng.uniform(0.1, 9, 9) + y[:, None] * rng.uniform(0, 3, 9)
    X[:, 4] = 2.0
    scores = SELECTORS["l1_path"](X, y, 0)
    kept = np.delete(np.arange(9), 4)
    root = np.sqrt(30 / np.where(y, y.sum(), (~y).sum()))
    Z = root[:, None] * (X - root**2 @ X / 60)[:, kept] / X[:, kept].std(axis=0)
    strengths = np.geomspace(1, 1e-4, 4000) * np.abs(Z.T @ np.where(y, root, -root)).max() / 60
    _, coef, _ = lasso_path(Z, np.where(y, root, -root), alphas=strengths, tol=1e-10, max_iter=100_000)
    entry = np.where((coef != 0).any(axis=1), (coef != 0).argmax(axis=1), strengths.size)
    np.testing.assert_array_equal(kept[np.argsort(entry, kind="stable")], np.argsort(-scores, kind="stable")[:8])
    assert np.isnan(scores[4]) and np.nanmax(scores) == 1


def test_where_no_column_differs_none_enters_the_path():
    X = np.repeat(np.random.default_rng(0).standard_normal((20, 6)), 2, axis=0)
    np.testing.assert_array_equal(SELECTORS["l1_path"](X, np.arange(40) % 2 == 0, 0), np.zeros(6))


# Cross-validation --------------------------------------------------------------------------


def test_every_selector_finds_a_planted_feature_out_of_fold():
    X, labels, items = _data(effect=5.0)
    X[:, 0] = np.maximum(X[:, 0], 0) * labels + 3 * labels  # large where the concept is, as the last selectors need
    plan = GridPlan(tuple(SELECTORS), (1,), n_repeats=1)
    found = grid_scores(X, labels, items, plan)
    scores = dict(zip(plan.cells, areas(found.scores[0], labels, found.folds[0]), strict=True))
    random = scores.pop(("random", 1))
    assert min(scores.values()) > 0.9 > random
    assert (found.rankings[0, :, : len(SELECTORS) - 1, 0] == 0).all()


def test_on_noise_the_nested_choice_is_at_chance_where_a_leaking_one_is_not():
    rng = np.random.default_rng(4)
    labels, items = np.arange(80) % 2 == 0, np.arange(80) // 2
    X = rng.standard_normal((80, 1500))
    plan = GridPlan(("welch_t", "rsa_categorical"), (8,), n_repeats=3)
    nested = grid_scores(X, labels, items, plan)
    leaked = np.argsort(-SELECTORS["welch_t"](X, labels, 0))[:9]
    leaking = grid_scores(X[:, leaked], labels, items, GridPlan(("welch_t",), (8,), n_repeats=3))

    def mean(found, cell):
        return np.mean([areas(found.scores[r], labels, found.folds[r])[cell] for r in range(3)])

    assert abs(mean(nested, 0) - 0.5) < 0.12 and abs(mean(nested, 1) - 0.5) < 0.12
    assert mean(leaking, 0) > 0.8


def test_the_labels_of_a_fold_do_not_reach_its_scores():
    X, labels, items = _data(effect=1.0)
    plan = GridPlan(("rsa_categorical", "l1_path"), (1, 4), n_repeats=1)
    before = grid_scores(X, labels, items, plan)
    fold = before.folds[0, 6]
    changed = np.where(items == items[6], ~labels, labels)
    after = grid_scores(X, changed, items, plan)
    np.testing.assert_array_equal(after.folds, before.folds)
    own = before.folds[0] == fold
    np.testing.assert_array_equal(after.scores[0][:, own], before.scores[0][:, own])
    assert (after.scores[0][:, ~own] != before.scores[0][:, ~own]).any()


def test_components_and_scales_are_those_of_the_training_part():
    X, labels, items = _data(n_features=6)
    plan = GridPlan(("auroc",), (1, 3), n_repeats=1)
    before = grid_scores(X, labels, items, plan, components=True)
    fold, moved = before.folds[0, 0], X.copy()
    moved[0] *= 1000
    after = grid_scores(moved, labels, items, plan, components=True)
    others = (before.folds[0] == fold) & (np.arange(len(X)) != 0)
    np.testing.assert_array_equal(after.scores[0][:, others], before.scores[0][:, others])
    assert not np.allclose(after.scores[0][:, ~others], before.scores[0][:, ~others])


def test_all_components_decode_as_all_columns_that_have_one_variance():
    X, labels, items = _data(n_features=3, n_items=30)
    found = grid_scores(X, labels, items, GridPlan((), (), n_repeats=1), components=True)
    assert found.n_columns.max() == 3 and areas(found.scores[0], labels, found.folds[0])[0] > 0.8


def test_trials_of_an_item_share_their_fold_and_repetitions_differ():
    _, labels, items = _data()
    folds = GridPlan((), (), n_repeats=4).folds(labels, items)
    assert all(len(set(row[items == item])) == 1 for row in folds for item in np.unique(items))
    assert len({row.tobytes() for row in folds}) == 4


def test_cells_that_cannot_be_are_left_out_with_a_reason():
    X, labels, items = _data(n_features=9)
    X[:, 7] = 1.0  # does not vary
    X[:, 8] = np.nan
    found = grid_scores(X, labels, items, GridPlan(("welch_t",), (2, 7, 64), n_repeats=1))
    assert list(found.left_out) == [("welch_t", 7), ("welch_t", 64)]
    assert found.left_out["welch_t", 7] == "7 columns vary in training, and k has to be smaller"
    assert np.isnan(found.scores[0, 1:3]).all() and np.isfinite(found.scores[0, [0, 3]]).all()
    assert not np.isin(found.selected()["column"], [7, 8]).any()


def test_every_repetition_of_a_random_representation_has_its_own_matrix():
    X, labels, items = _data()
    plan = GridPlan(("welch_t",), (1,), n_repeats=2)
    both = grid_scores([X, X[:, ::-1]], labels, items, plan)
    assert set(both.rankings[0].ravel()) == {0} and set(both.rankings[1].ravel()) == {11}
    with pytest.raises(DataMismatch, match="one per repetition"):
        grid_scores([X, X, X], labels, items, plan)
    with pytest.raises(DataMismatch, match="matrices of 39 rows"):
        grid_scores(X[1:], labels, items, plan)


def test_wrong_plans_are_refused():
    with pytest.raises(InvalidInput, match="did you mean 'welch_t'"):
        GridPlan(("welch",), (1,))
    with pytest.raises(InvalidInput, match="rising numbers"):
        GridPlan(("welch_t",), (2, 1))
    with pytest.raises(InvalidInput, match="at least 2 folds"):
        GridPlan(("welch_t",), (1,), n_folds=1)
    with pytest.raises(InvalidInput, match="at least 2 items"):
        GridPlan(("welch_t",), (1,)).folds(np.array([True, False, False]), np.array([0, 1, 2]))


# What is computed from the scores ----------------------------------------------------------


def test_shuffled_labels_stay_with_their_items():
    labels, items = np.tile([True, True, False, False], 6), np.repeat(np.arange(6), 4)
    shuffled = [shuffle_labels(labels, items, 0, index) for index in range(40)]
    changed = np.array([(one != labels).reshape(6, 4) for one in shuffled])
    assert (changed.all(axis=2) | ~changed.any(axis=2)).all() and 0.35 < changed.mean() < 0.65
    single, owner = np.repeat([True, False, False, False], 3), np.repeat(np.arange(4), 3)
    moved = {tuple(shuffle_labels(single, owner, 0, index)[::3].tolist()) for index in range(60)}
    assert moved == set(itertools.permutations([True, False, False, False]))


def test_shuffled_labels_are_those_of_the_permutation_test():
    labels, items = np.tile([True, False], 9), np.repeat([f"item {i}" for i in range(9)], 2)
    draws, _ = label_draws(labels.astype(int), np.repeat(np.arange(9), 2), 30, 5)
    np.testing.assert_array_equal([shuffle_labels(labels, items, 5, index) for index in range(30)], draws == 1)
    with pytest.raises(InvalidInput, match="average the trials"):
        shuffle_labels(np.tile([True, False, False], 9), np.repeat(np.arange(9), 3), 0, 0)


def test_stability_equals_counting_and_chance_equals_drawing():
    rng = np.random.default_rng(0)
    rankings = np.array([[rng.permutation(9)[:4] for _ in range(3)] for _ in range(2)])
    sets = [[set(one[:3].tolist()) for one in row] for row in rankings]
    flat = [one for row in sets for one in row]
    pairs = {True: list(itertools.combinations(flat, 2))}
    pairs[False] = [pair for row in sets for pair in itertools.combinations(row, 2)]
    for across in (True, False):
        found, chance = stability(rankings, 3, np.full((2, 3), 9), across=across)
        assert found == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs[across]]))
    drawn = [(set(rng.permutation(9)[:3]), set(rng.permutation(9)[:3])) for _ in range(4000)]
    assert chance == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in drawn]), abs=0.01)
    panels = [one[:3] for row in rankings for one in row]
    assert stability(rankings, 3, np.full((2, 3), 9), across=True) == pytest.approx(jaccard(panels, 9))
    assert np.isnan(stability(rankings[:1, :1], 3, np.full((1, 1), 9), across=True)).all()


def test_areas_and_balanced_accuracy_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels, items = np.arange(60) % 3 == 0, np.arange(60) // 3
    scores = rng.standard_normal((2, 60)).round(1) + labels
    np.testing.assert_allclose(
        areas(scores, labels, np.zeros(60, int)), [roc_auc_score(labels, one) for one in scores], rtol=1e-12
    )
    found = balanced_accuracy(scores[:, None], labels, items, np.arange(60)[None] % 4, n_boot=300, random_state=0)
    expected = [balanced_accuracy_score(labels, one > 0) for one in scores]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    assert (found[1] < found[0]).all() and (found[0] < found[2]).all()


def test_the_interval_of_balanced_accuracy_resamples_items_inside_their_level():
    labels, items = np.arange(60) % 3 == 0, np.arange(60)  # 20 items of one level, 40 of the other
    scores = np.where(labels, 1.0, -1.0)[None, None]
    scores[..., :12] *= -1  # 4 and 8 wrong
    value, low, high = balanced_accuracy(scores, labels, items, items[None] % 5, n_boot=20_000, random_state=0)[:, 0]
    variance = (0.2 * 0.8 / 20 + 0.2 * 0.8 / 40) / 4 * 20 / 19 * (1 + 5 / 4) + (0.5 / 22) ** 2
    assert value == pytest.approx(0.8)
    np.testing.assert_allclose([value - low, min(high, 1) - value], student.ppf(0.975, 19) * variance**0.5, rtol=0.03)


# Contrasts ---------------------------------------------------------------------------------

METHODS = [(where, selector, k) for where in ("sae", "raw_units") for selector in SELECTORS for k in (1, 4)]


def _pairs(name="a", materials="m", seed=0, n_items=16, better=(), methods=METHODS):
    rng = np.random.default_rng(seed)
    labels, items = np.arange(2 * n_items) % 2 == 0, np.arange(2 * n_items) // 2
    scores = rng.standard_normal((len(methods), 2, 2 * n_items))
    for place, method in enumerate(methods):
        scores[place] += labels * (2.0 if set(method) & set(better) else 0.5)
    folds = np.array([rng.permutation(np.arange(n_items) % 4)[items] for _ in range(2)])
    return concept_pairs(name, materials, methods, scores, labels, items, folds), scores, labels, items, folds


def test_a_contrast_is_the_difference_of_mean_aurocs():
    pairs, scores, labels, _, folds = _pairs()
    auroc = np.mean([areas(scores[:, r], labels, folds[r]) for r in range(2)], axis=0)
    chosen = {name: [auroc[i] for i, m in enumerate(METHODS) if m[1] == name] for name in SELECTORS}
    result = compare([pairs], PREREGISTERED, n_boot=100)
    rsa = [np.mean(chosen[name]) for name in ("rsa_categorical", "rsa_discriminative", "rsa_coherence")]
    expected = [
        np.mean(rsa) - np.mean(chosen["maximum_activation"]),
        auroc[: len(auroc) // 2].mean() - auroc[len(auroc) // 2 :].mean(),
        rsa[1] - rsa[0],
    ]
    np.testing.assert_allclose([one["overall"]["difference"] for one in result], expected, atol=1e-7)


def test_the_standard_error_is_that_of_the_bootstrap_of_aurocs():
    pairs, scores, labels, items, folds = _pairs()
    mean = PREREGISTERED[0].weights(METHODS, np.ones(len(METHODS), bool)).mean(axis=0)
    mine = compare([pairs], PREREGISTERED[:1], n_boot=4000)[0]["overall"]
    oracle = auc_bootstrap(scores, labels, items, folds, n_boot=4000)
    variance = mean @ oracle.covariance[0] @ mean * 16 / 15  # without the term for single comparisons
    assert mine["ci_high"] - mine["difference"] == pytest.approx(student.ppf(0.975, 15) * variance**0.5, rel=0.05)
    assert mine["p"] == pytest.approx(2 * student.sf(abs(mine["difference"]) / variance**0.5, 15), rel=0.2)


def test_the_lower_limit_of_the_variance_is_what_averaging_leaves_of_half_an_item():
    methods = [(name, "auroc", k) for name in ("sae", "raw_units") for k in range(3)]
    labels, items, folds = np.arange(24) % 2 == 0, np.arange(24) // 2, np.arange(24)[None] // 8
    scores = np.tile(labels + 0.0, (6, 1, 1))
    for k in range(3):  # every setting errs in one pair; two of them in the same
        scores[3 + k, 0, 8 * (k // 2) : 8 * (k // 2) + 2] = 0.4, 0.5
    pairs = concept_pairs("a", "m", methods, scores, labels, items, folds)
    mine = compare([pairs], PREREGISTERED[1:2], n_boot=8000)[0]["overall"]
    # With one repetition the covariance is (1 + k/(k − 1)) V, of a setting and of their mean alike.
    settings = PREREGISTERED[1].weights(methods, np.ones(6, bool))
    covariance = auc_bootstrap(scores, labels, items, folds, n_boot=8000).covariance[0]
    mean = settings.mean(axis=0)
    left = mean @ covariance @ mean / np.mean([row @ covariance @ row for row in settings])
    seen, limit = mean @ covariance @ mean * 12 / 11, left / 14**2
    assert 0.4 < left < 0.7 and 0 < seen < 0.9 * limit
    assert mine["ci_high"] - mine["difference"] == pytest.approx(student.ppf(0.975, 11) * limit**0.5, rel=0.04)


@pytest.mark.parametrize("n_settings", [1, 7])
def test_items_that_all_say_the_same_leave_an_interval(n_settings):
    methods = [(name, "auroc", k) for name in ("sae", "raw_units") for k in range(1, 1 + n_settings)]
    labels, items, folds = np.arange(8) % 2 == 0, np.arange(8) // 2, np.zeros((1, 8), int) + np.arange(8) // 4
    scores = np.array([labels if name == "sae" else np.zeros(8) for name, *_ in methods], float)[:, None]
    found = compare([concept_pairs("a", "m", methods, scores, labels, items, folds)], PREREGISTERED[1:2])[0]["overall"]
    oracle = paired_auc_difference(scores[0, 0], scores[-1, 0], labels, items, folds[0])
    assert found["difference"] == oracle.difference == 0.5
    # One setting or seven that are all alike: the same.
    expected = [oracle.ci_low, oracle.ci_high, oracle.p]
    np.testing.assert_allclose([found[name] for name in ("ci_low", "ci_high", "p")], expected, rtol=1e-9)
    assert found["ci_low"] < 0 and found["ci_high"] > 1


def test_settings_that_cancel_out_leave_an_interval():
    methods = [(name, "auroc", k) for name in ("sae", "raw_units") for k in (1, 2)]
    _, scores, labels, items, folds = _pairs(methods=methods)
    opposite = concept_pairs("a", "m", methods, scores[[0, 1, 1, 0]], labels, items, folds)
    found = compare([opposite], PREREGISTERED[1:2])[0]["overall"]
    half = student.ppf(0.975, 15) * np.sqrt(1 / 2) / 18  # as of two settings without a relation
    np.testing.assert_allclose([found["ci_low"], found["ci_high"]], [-half, half], rtol=1e-6)


def test_planted_differences_are_found_and_equal_methods_are_not():
    concepts = [_pairs(name, name, seed, better=("sae",))[0] for seed, name in enumerate("abc")]
    found = {one["name"]: one["overall"] for one in holm(compare(concepts, PREREGISTERED))}
    assert found["SAE − raw units"]["p_holm"] < 0.001 and found["SAE − raw units"]["ci_low"] > 0.1
    assert found["RSA − maximum activation"]["p_holm"] > 0.05
    assert found["discriminative − categorical RSA"]["p_holm"] > 0.05


def test_concepts_of_the_same_sentences_are_no_independent_evidence():
    pairs = [_pairs("a", "same")[0], _pairs("b", "same")[0]]
    apart = [_pairs("a", "one")[0], _pairs("b", "other")[0]]
    width = [
        np.subtract(*(compare(given, PREREGISTERED[1:2])[0]["overall"][end] for end in ("ci_high", "ci_low")))
        for given in (pairs[:1], pairs, apart)
    ]
    assert width[1] == pytest.approx(width[0], rel=1e-9)
    # Two independent halves: standard error / sqrt(2), twice the degrees of freedom. Draws are of one stream.
    expected = width[0] / np.sqrt(2) * student.ppf(0.975, 30) / student.ppf(0.975, 15)
    assert width[2] == pytest.approx(expected, rel=1e-9)


def test_only_settings_that_both_sides_have_are_compared():
    methods = [("sae", "auroc", 1), ("sae", "auroc", 2), ("raw_units", "auroc", 1), ("raw_units", "auroc", 2)]
    sae = GridContrast("", "representation", ("sae",), ("raw_units",))
    everything = np.ones(4, bool)
    np.testing.assert_allclose(sae.weights(methods, everything), [[1, 0, -1, 0], [0, 1, 0, -1]])
    np.testing.assert_allclose(sae.weights(methods, np.array([True, True, True, False])), [[1, 0, -1, 0]])
    within = GridContrast("", "representation", ("sae",), ("raw_units",), {"k": 2})
    np.testing.assert_allclose(within.weights(methods, everything), [[0, 1, 0, -1]])
    assert GridContrast("", "selector", ("auroc",), ("random",)).weights(methods, everything) is None
    assert PREREGISTERED[0].weights(METHODS[:3], np.ones(3, bool)) is None


def test_methods_that_agree_in_every_trial_do_not_differ():
    pairs, scores, labels, items, folds = _pairs(methods=[("sae", "auroc", 1), ("raw_units", "auroc", 1)])
    same = concept_pairs("a", "m", pairs.methods, scores[[0, 0]], labels, items, folds)
    found = compare([same], PREREGISTERED[1:2])[0]["overall"]
    assert found["difference"] == 0 and found["p"] == 1 and found["ci_low"] < 0 < found["ci_high"]


def test_methods_without_scores_are_left_out():
    _, scores, labels, items, folds = _pairs()
    scores[METHODS.index(("sae", "welch_t", 4))] = np.nan
    with_nan = concept_pairs("a", "m", METHODS, scores, labels, items, folds)
    kept = [i for i, m in enumerate(METHODS) if m[1:] != ("welch_t", 4)]
    without = concept_pairs("a", "m", [METHODS[i] for i in kept], scores[kept], labels, items, folds)
    assert compare([with_nan], PREREGISTERED[1:2]) == compare([without], PREREGISTERED[1:2])


def test_holm_equals_statsmodels():
    results = [{"overall": {"p": p}} for p in (0.02, 0.3, 0.01)]
    expected = multipletests([0.02, 0.3, 0.01], method="holm")[1]
    np.testing.assert_allclose([one["overall"]["p_holm"] for one in holm(results)], expected)


def test_exploratory_comparisons_have_two_different_sides():
    found = exploratory(("sae", "raw_units"), tuple(SELECTORS), (1, 4))
    assert len({one.name for one in found}) == len(found)
    assert all(set(one.plus).isdisjoint(one.minus) for one in found)
    assert all(one.weights(METHODS, np.ones(len(METHODS), bool)) is not None for one in found)
    assert not any(one.claim for one in found)
