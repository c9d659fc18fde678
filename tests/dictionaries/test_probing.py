"""Sparse probing against a pipeline of scikit-learn, on noise, and on planted concepts."""

from math import comb

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurollm.dictionaries import RandomDirections, RawUnits
from neurollm.dictionaries.probing import _against, _Trials, probe_splits, sparse_probing
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


def mean_difference(X, y):
    return np.abs(X[y == 1].mean(0) - X[y == 0].mean(0))


def crossed(n_items=30, n_features=50, signal=0.8, seed=0):
    """Both levels in every item; feature 3 differs, and items have their own level."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_items), 2)
    labels = np.tile([0, 1], n_items)
    X = rng.standard_normal((2 * n_items, n_features)) + rng.standard_normal((n_items, n_features))[groups]
    X[labels == 1, 3] += signal
    return X, labels, groups


@pytest.mark.parametrize("sparse", [False, True])
def test_same_as_a_pipeline_of_scikit_learn(sparse):
    X, labels, groups = crossed()
    X[np.abs(X) < 0.5] = 0
    given = sp.csr_matrix(X) if sparse else X
    found = sparse_probing({"made up": given}, labels, groups, k=(1, 4, 9), n_shuffles=2, random_state=7)
    folds = _Trials.of(labels, groups, 5, 7).folds
    assert all(len(set(folds[groups == item])) == 1 for item in range(30))
    for row in found.table.itertuples():
        scores, right, pairs = np.zeros(60), 0, 0
        for fold in range(5):
            test = folds == fold
            model = make_pipeline(
                SelectKBest(mean_difference, k=row.k),
                StandardScaler(),
                LogisticRegression(class_weight="balanced", solver="newton-cholesky"),
            )
            scores[test] = model.fit(X[~test], labels[~test]).decision_function(X[test])
            n = labels[test].sum() * (1 - labels[test]).sum()
            right, pairs = right + n * roc_auc_score(labels[test], scores[test]), pairs + n
        assert row.auroc == pytest.approx(right / pairs, abs=1e-12)
        assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, scores > 0))
        assert row.f1 == pytest.approx(f1_score(labels, scores > 0))
    assert (found.positive, found.n_trials, found.n_groups, found.n_folds) == ("1", 60, 30, 5)


def test_planted_feature_is_chosen_and_beats_its_shuffles():
    X, labels, groups = crossed(signal=4.0)
    found = sparse_probing({"planted": X, "without": np.delete(X, 3, 1)}, labels, groups, k=(1, 2), n_shuffles=19)
    assert found.features["planted"][1] == {3: 5} and found.features["planted"][2][3] == 5
    table = found.to_frame().set_index(["representation", "k"])
    assert table.loc[("planted", 1), "auroc"] > 0.95 and table.loc[("planted", 1), "p"] == 1 / 20
    assert table.loc[("without", 1), "auroc"] < 0.75 and table.loc[("without", 1), "p"] > 0.05
    for row in table.itertuples():
        assert abs(row.shuffled_auroc - 0.5) < 4 * row.shuffled_sd / 19**0.5


@pytest.mark.parametrize("within", [True, False])
def test_noise_gives_chance_only_if_features_are_chosen_inside_the_folds(within):
    inside, outside, p = [], [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((48, 800)) + rng.standard_normal((16, 800))[np.repeat(np.arange(16), 3)]
        groups = np.repeat(np.arange(16), 3)
        labels = np.tile([0, 1, 1], 16) if within else np.repeat(np.tile([0, 1], 8), 3)
        options = {"k": (2,), "random_state": seed}
        found = sparse_probing({"noise": X}, labels, groups, n_shuffles=4, **options).table
        inside.append(found["auroc"][0])
        p.append(found["p"][0])
        best = np.argsort(-mean_difference(X, labels))[:2]
        outside.append(
            sparse_probing({"peeked": X[:, best]}, labels, groups, n_shuffles=0, **options).table["auroc"][0]
        )
    error = np.std(inside, ddof=1) / 16**0.5
    assert np.mean(inside) == pytest.approx(0.5, abs=3 * error) and error < 0.05
    assert np.mean(outside) > 0.75
    assert np.mean(np.array(p) <= 0.2) <= 0.5  # of 16 draws at .2, more than 8 have probability .002


def test_labels_are_shuffled_where_they_can_be():
    groups = np.repeat(np.arange(8), 3)
    labels = np.array([0, 0, 0] * 3 + [1, 1, 1] * 3 + [0, 1, 1, 1, 0, 0]).astype(bool)
    trials = _Trials(labels, groups, groups % 2, "1")
    seen = np.array([trials.shuffled_labels(np.random.default_rng(seed)) for seed in range(400)])
    by_group = seen.reshape(400, 8, 3)
    assert (by_group[:, :6].all(2) | ~by_group[:, :6].any(2)).all() and (by_group[:, :6, 0].sum(1) == 3).all()
    assert (by_group[:, 6].sum(1) == 2).all() and (by_group[:, 7].sum(1) == 1).all()
    np.testing.assert_allclose(by_group[:, :6].mean((0, 2)), 0.5, atol=0.1)
    np.testing.assert_allclose(by_group[:, 6].mean(0), 2 / 3, atol=0.1)


def test_dictionaries_stand_beside_each_other():
    rng = np.random.default_rng(0)
    labels, groups = np.tile(["a", "b"], 40), np.arange(80)
    x = rng.standard_normal((80, 8)).astype(np.float32)
    x[1::2, 2] += 4
    control = RandomDirections(Site(1), 8, 64)
    found = sparse_probing({"units": RawUnits(Site(1), 8), "random": control}, labels, groups, x=x, n_shuffles=3)
    assert found.table["representation"].tolist() == ["units"] * 3 + ["random"] * 3
    assert found.table["n_features"].tolist() == [8] * 3 + [64] * 3 and found.table["k"].tolist() == [1, 2, 5] * 2
    assert found.features["units"][1] == {2: 5}
    features = sparse_probing({"random": control.encode(x)}, labels, groups, n_shuffles=3)
    np.testing.assert_allclose(features.table["auroc"], found.table["auroc"][3:])


def test_a_concept_in_three_features_is_spread_over_three():
    rng = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 150), np.arange(300)
    X = np.zeros((300, 40))
    X[np.arange(1, 300, 2), rng.integers(3, size=150)] = 1  # each positive trial has one of three features
    X[:, 3:] = rng.random((300, 37)) < 0.05
    n, table = probe_splits(sp.csr_matrix(X), labels, groups, most=6)
    assert n == 3 and len(table) == 6 and (np.diff(table["f1"])[:2] > 0.03).all()
    assert probe_splits(X, labels, groups, most=2)[0] == 2  # no more than was tried
    X[:, 5] = labels
    assert probe_splits(X, labels, groups, most=3)[0] == 1


@pytest.mark.parametrize("n_items", [3, 4, 5])
def test_perfect_signal_in_few_items_is_as_rare_as_its_labelling(n_items):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(2 * n_items), 4)
    labels = np.where(groups < n_items, "a", "b")
    X = rng.standard_normal((len(groups), 5))
    X[labels == "b", 3] += 50
    found = sparse_probing({"planted": X}, labels, groups, k=1, n_shuffles=99)
    row = found.table.iloc[0]
    rarity = 2 / comb(2 * n_items, n_items)  # the labels themselves, and the same with the levels exchanged
    assert row.auroc == 1 and found.n_shuffles == 99
    assert row.p == pytest.approx((99 * rarity + 1) / 100, abs=4 * (rarity / 99) ** 0.5)
    assert row.shuffled_auroc < 0.8


def test_shuffles_have_folds_of_their_own_labels():
    groups = np.repeat(np.arange(10), 3)
    trials = _Trials.of(groups < 5, groups, 5, 0)
    for seed in range(30):
        other = trials.shuffled(np.random.default_rng(seed))
        for fold in range(5):
            assert other.labels[other.folds == fold].mean() == 0.5
            assert len(np.unique(groups[other.folds == fold])) == 2


def test_a_shuffle_without_an_area_is_not_used():
    groups = np.repeat([0, 1], 5)  # an item of each level, so that no fold can hold both levels
    trials = _Trials(groups == 1, groups, groups, "a")
    assert trials.shuffled(np.random.default_rng(0)) is None
    assert np.isnan(_against(0.9, np.zeros(0))["p"])
    assert np.isnan(_against(float("nan"), np.full(9, 0.5))["p"])


def test_levels_are_sorted_as_what_they_are():
    X = np.random.default_rng(0).standard_normal((40, 3))
    for levels, positive in (([10, 9], "10"), ([1.5, -2.0], "1.5"), (["10", "9"], "9"), ([True, False], "True")):
        found = sparse_probing({"x": X}, np.repeat(np.array(levels), 20), range(40), k=1, n_shuffles=0)
        assert found.positive == positive
    for missing in (None, float("nan")):
        with pytest.raises(InvalidInput, match=r"labels are missing .* at 20 trials, such as trial 20"):
            sparse_probing({"x": X}, ["a"] * 20 + [missing] * 20, range(40), k=1)


def test_refusals():
    X, labels, groups = crossed(6)
    with pytest.raises(InvalidInput, match="n_shuffles must be 0 or more"):
        sparse_probing({"x": X}, labels, groups, n_shuffles=-1)
    with pytest.raises(InvalidInput, match="found 3"):
        sparse_probing({"x": X}, np.arange(12) % 3, groups)
    with pytest.raises(InvalidInput, match="at least 2 items"):
        sparse_probing({"x": X}, labels, np.zeros(12))
    with pytest.raises(InvalidInput, match=r"k must be 1 to 50 .* found \[51\]"):
        sparse_probing({"x": X}, labels, groups, k=[51])
    with pytest.raises(DataMismatch, match="expected 12 trials"):
        sparse_probing({"x": X[:5]}, labels, groups)
    with pytest.raises(DataMismatch, match="labels have shape"):
        sparse_probing({"x": X}, labels[:3], groups)
    with pytest.raises(InvalidInput, match="x, the activations of the trials, is missing"):
        sparse_probing({"x": RawUnits(Site(1), 50)}, labels, groups)
    with pytest.raises(InvalidInput, match="NaN"):
        sparse_probing({"x": np.full_like(X, np.nan)}, labels, groups)
