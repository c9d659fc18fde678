"""Paired AUROC differences: brute force over items, scikit-learn, size and power with trained classifiers."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.paired_scores import AucBootstrap, _areas, auc_bootstrap, paired_auc_difference


def within(n_items=12, n_methods=2, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    items, labels = np.repeat(np.arange(n_items), 3), np.tile([True, False, True], n_items)
    scores = rng.normal(size=(n_methods, items.size)) + labels
    return (scores.round() if ties else scores), labels, items, items % 3


def brute_force(scores, labels, items, folds, weights):
    """Sum over pairs of drawn copies of items; the copies of one item are not compared with each other."""
    concordant = pairs = 0.0
    for i, j in itertools.product(np.flatnonzero(labels), np.flatnonzero(~labels)):
        if folds[i] == folds[j]:
            same = items[i] == items[j]
            weight = weights[items[i]] if same else weights[items[i]] * weights[items[j]]
            concordant += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            pairs += weight
    return concordant / pairs


@pytest.mark.parametrize("ties", [False, True])
def test_estimates_and_replicates_equal_a_loop_over_pairs_of_trials(ties, monkeypatch):
    scores, labels, items, folds = within(ties=ties)
    weights = np.random.default_rng(1).integers(0, 3, (5, 12)).astype(float)
    expected = [[brute_force(row, labels, items, folds, weight) for weight in weights] for row in scores]
    np.testing.assert_allclose(_areas(scores, labels, items, folds, weights), expected, rtol=1e-12)
    monkeypatch.setattr("neurollm.stats.paired_scores._ELEMENTS", 1)  # one item at a time
    np.testing.assert_allclose(_areas(scores, labels, items, folds, weights), expected, rtol=1e-12)


def test_the_area_is_the_pair_weighted_mean_of_scikit_learns_fold_areas():
    scores, labels, items, folds = within(n_items=13)
    parts = [(roc_auc_score(labels[folds == f], scores[0, folds == f]), np.sum(folds == f) ** 2) for f in range(3)]
    found = auc_bootstrap(scores, labels, items, folds, n_boot=100)
    assert found.area[0] == pytest.approx(np.average([a for a, _ in parts], weights=[w for _, w in parts]))


def test_any_monotone_change_of_a_fold_leaves_everything_as_it_is():
    scores, labels, items, folds = within(n_items=20)
    moved = np.exp(scores) + 100 * folds
    one, other = (paired_auc_difference(s, s[::-1], labels, items, folds, n_boot=200) for s in (scores, moved))
    np.testing.assert_array_equal(one.difference, other.difference)
    np.testing.assert_array_equal(one.p, other.p)


def test_one_pair_equals_its_row_among_many_and_signs_turn_with_the_order():
    scores, labels, items, folds = within(n_methods=6)
    many = paired_auc_difference(scores[:3], scores[3:], labels, items, folds)
    one = paired_auc_difference(scores[1], scores[4], labels, items, folds)
    turned = paired_auc_difference(scores[4], scores[1], labels, items, folds)
    assert one.difference == pytest.approx(many.difference[1]) and one.p == pytest.approx(many.p[1])
    assert (turned.difference, turned.ci_low, turned.p) == pytest.approx((-one.difference, -one.ci_high, one.p))


def test_repetitions_and_concepts_are_averaged():
    a, b = within(seed=1), within(n_items=8, seed=2)
    scores = np.concatenate([a[0], b[0]], axis=1)
    labels, items, folds = (np.concatenate([x, y]) for x, y in zip(a[1:], b[1:], strict=True))
    concepts = np.repeat(["first", "second"], [36, 24])
    found = auc_bootstrap(scores, labels, items, folds, concepts=concepts)
    alone = [auc_bootstrap(*part) for part in (a, b)]
    np.testing.assert_allclose(found.area, (alone[0].area + alone[1].area) / 2)
    assert found.units.tolist() == [12, 8] and found.covariance.shape == (2, 2, 2)
    # The same repetition twice is no new information: nothing changes.
    twice = auc_bootstrap(np.stack([scores, scores], axis=1), labels, items, np.stack([folds] * 2), concepts=concepts)
    np.testing.assert_allclose(twice.covariance, found.covariance)
    assert twice.contrast([1, -1]).p == pytest.approx(found.contrast([1, -1]).p)


def test_no_interval_is_a_point_and_no_p_is_below_a_test_of_signs():
    items, labels = np.repeat(np.arange(6), 2), np.tile([True, False], 6)
    perfect, folds = labels.astype(float), np.zeros(12, int)
    same = paired_auc_difference(perfect, perfect, labels, items, folds)
    assert same.difference == 0 and same.p == 1 and same.ci_low < 0 < same.ci_high
    opposite = paired_auc_difference(perfect, -perfect, labels, items, folds)
    assert opposite.difference == 1 and opposite.p == pytest.approx(2.0**-5)


def test_contrasts_of_groups_of_methods_ignore_unusable_methods_of_weight_zero():
    scores, labels, items, folds = within(n_methods=4)
    scores[3, 0] = np.nan
    found = auc_bootstrap(scores, labels, items, folds)
    assert np.isnan(found.area).tolist() == [False] * 3 + [True]
    mean = found.contrast([0.5, 0.5, -1, 0])
    assert mean.difference == pytest.approx(found.area[:2].mean() - found.area[2]) and 0 < mean.p <= 1
    assert np.isnan(found.contrast([0, 0, 1, -1]).p) and np.isnan(found.interval()[0][3])


def trained(rng, n_items, both_levels, shifts, n_repetitions=1, n_features=20, n_folds=5):
    """Out-of-fold scores (methods, repetitions, trials) of nearest-mean classifiers on features of their own."""
    items = np.repeat(np.arange(n_items), 2) if both_levels else np.arange(n_items)
    labels = np.arange(items.size) % 2 == 1
    folds = np.array([rng.permutation(np.arange(n_items) % n_folds)[items] for _ in range(n_repetitions)])
    scores = np.empty((len(shifts), *folds.shape))
    for method, shift in enumerate(shifts):
        X = rng.normal(size=(items.size, n_features)) + rng.normal(size=(n_items, n_features))[items]
        X[:, :3] += shift * labels[:, None]
        for repetition, fold in np.ndindex(n_repetitions, n_folds):
            test = folds[repetition] == fold
            means = [X[~test & (labels == side)].mean(axis=0) for side in (True, False)]
            scores[method, repetition, test] = X[test] @ (means[0] - means[1])
    return scores, labels, items, folds


@pytest.mark.parametrize(
    ("n_items", "both_levels", "n_repetitions"), [(12, True, 1), (40, True, 1), (60, False, 1), (30, True, 4)]
)
def test_two_methods_equally_good_differ_at_most_at_level_alpha(n_items, both_levels, n_repetitions):
    rng, p, p_items_only = np.random.default_rng(n_items), [], []
    for index in range(300):
        scores, labels, items, folds = trained(rng, n_items, both_levels, (0.5, 0.5), n_repetitions)
        found = auc_bootstrap(scores, labels, items, folds, n_boot=200, random_state=index)
        p.append(found.contrast([1, -1]).p)
        difference, variance = found.area @ [1, -1], np.array([1, -1]) @ found.covariance[0] @ [1, -1]
        p_items_only.append(2 * norm.sf(abs(difference) / np.sqrt(variance / (1 + 5 / 4))))
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(p_items_only) <= 0.05) > 0.075  # why the folds' common training items are counted


def test_the_p_of_chance_fits_the_interval():
    scores, labels, items, folds = within(n_items=30, n_methods=4)
    scores[2:] -= labels
    found = auc_bootstrap(scores, labels, items, folds)
    p = found.p_chance()
    assert (p[:2] < 0.05).all() and (p[2:] > 0.05).all()
    for method in range(4):  # the interval of level 1 − p ends at one half
        low, high = found.interval(p[method])
        assert min(abs(low[method] - 0.5), abs(high[method] - 0.5)) < 1e-6


def test_a_better_method_is_found_and_its_interval_holds_the_difference():
    rng = np.random.default_rng(0)
    found = []
    for index in range(40):
        scores, *rest = trained(rng, 60, True, shifts=(2.0, 0.0))
        found.append(paired_auc_difference(*scores[:, 0], *rest, n_boot=200, random_state=index))
    truth = np.mean([one.difference for one in found])
    assert truth > 0.3 and np.mean([one.p <= 0.05 for one in found]) > 0.9
    assert np.mean([one.ci_low <= truth <= one.ci_high for one in found]) >= 0.9


def test_draws_depend_on_the_seed_only():
    data = within()
    one, same, other = (auc_bootstrap(*data, n_boot=100, random_state=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.covariance, same.covariance)
    assert not np.array_equal(one.covariance, other.covariance) and isinstance(one, AucBootstrap)


def test_wrong_calls_are_told():
    scores, labels, items, folds = within()
    with pytest.raises(DataMismatch, match="cannot be paired"):
        paired_auc_difference(scores[0], scores[0, 1:], labels, items, folds)
    with pytest.raises(DataMismatch, match="items have shape"):
        auc_bootstrap(scores, labels, items[1:], folds)
    with pytest.raises(DataMismatch, match="folds have shape"):
        auc_bootstrap(np.stack([scores] * 2, axis=1), labels, items, folds)
    with pytest.raises(InvalidInput, match="True or False"):
        auc_bootstrap(scores, np.array(["a", "b", "a"] * 12), items, folds)
    with pytest.raises(InvalidInput, match="no fold holds both"):
        auc_bootstrap(scores, labels, items, labels)
    with pytest.raises(InvalidInput, match="at least 2 items"):
        auc_bootstrap(scores, labels, np.zeros(36), folds)
    with pytest.raises(InvalidInput, match="n_boot"):
        auc_bootstrap(scores, labels, items, folds, n_boot=10)
    found = auc_bootstrap(scores, labels, items, folds, n_boot=100)
    with pytest.raises(InvalidInput, match="sum to 0"):
        found.contrast([1, 0])
    with pytest.raises(InvalidInput, match="one per method"):
        found.contrast([1, -1, 0])
