"""Decoder: nothing leaks, p is right on noise, planted classes are found, and sklearn's rules are kept."""

import copy
import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold, LeaveOneGroupOut, StratifiedGroupKFold
from sklearn.svm import SVC

from neurollm.decoding import Decoder
from neurollm.decoding.permutation import features_drawn, interchangeable, label_draws, p_value
from neurollm.errors import DataMismatch, InvalidInput

QUICK = {"estimator": "ridge", "selector": "welch_t", "n_features": 3, "n_perm": 0}


def paired(n_items=20, n_features=40, shift=0.0, seed=0, copies=1):
    """Both classes in every item; the first two features differ by `shift`."""
    rng = np.random.default_rng(seed)
    items, y = np.repeat(np.arange(n_items), 2), np.tile(["bad", "good"], n_items)
    X = rng.normal(size=(n_items, n_features))[items] + rng.normal(size=(items.size, n_features))
    X[y == "good", :2] += shift
    rows = np.repeat(np.arange(items.size), copies)
    return X[rows], y[rows], items[rows]


def grouped(n_items=24, n_features=40, shift=0.0, seed=0, trials=2):
    """One class per item."""
    rng = np.random.default_rng(seed)
    items = np.repeat(np.arange(n_items), trials)
    y = np.where(items % 2, "good", "bad")
    X = rng.normal(size=(n_items, n_features))[items] + 0.5 * rng.normal(size=(items.size, n_features))
    X[y == "good", :2] += shift
    return X, y, items


def test_a_planted_class_is_found_and_described():
    X, y, items = paired(shift=3.0)
    decoder = Decoder(selector="rsa_categorical", n_features=2, n_perm=39).fit(X, y, groups=items)
    assert decoder.score_ > 0.95 and decoder.balanced_accuracy_ > 0.85 and decoder.p_value_ == 1 / 40
    assert set(decoder.selected_features_) == {0, 1} and decoder.stability_ > 0.9 > decoder.stability_chance_
    assert decoder.cv_scores_.shape == (5,) and decoder.null_scores_.shape == (39,) and not decoder.exhaustive_
    assert decoder.score_ci_[0] < decoder.score_ < decoder.score_ci_[1] or decoder.score_ci_[1] == 1
    assert (decoder.coef_[0, :2] > 0).all() and not decoder.coef_[0, 2:].any() and (decoder.patterns_ > 0).all()
    for words in ("'bad', 'good': AUROC", "20 items in 5 folds", "0 of 39 random runs", "p = 0.025"):
        assert words in decoder.verdict()
    new_X, new_y, _ = paired(shift=3.0, seed=5)
    assert decoder.score(new_X, new_y) > 0.95 and np.mean(decoder.predict(new_X) == new_y) > 0.85
    decoder.check_direction(new_X, new_y)
    with pytest.raises(DataMismatch, match="said to mean 'bad'"):
        decoder.check_direction(new_X, np.where(new_y == "good", "bad", "good"), "bad")


def test_numbers_are_those_of_the_predictions():
    X, y, items = paired(shift=1.0)
    decoder = Decoder(**QUICK).fit(X, y, groups=items)
    table = decoder.predictions_
    right = pairs = 0
    for fold, rows in table.groupby("fold"):
        good, bad = (rows["decision"][rows["label"] == name].to_numpy() for name in ("good", "bad"))
        right += np.sum(good[:, None] > bad) + 0.5 * np.sum(good[:, None] == bad)
        pairs += good.size * bad.size
        assert decoder.cv_scores_[fold] == pytest.approx(roc_auc_score(rows["label"] == "good", rows["decision"]))
    assert decoder.score_ == pytest.approx(right / pairs, abs=1e-12)
    assert decoder.balanced_accuracy_ == pytest.approx(balanced_accuracy_score(table["label"], table["predicted"]))
    assert table["trial"].tolist() == list(range(40)) and table.groupby("item")["fold"].nunique().max() == 1
    np.testing.assert_array_equal(table["item"], items.astype(str))
    assert np.isnan(decoder.p_value_) and "exchanged" not in decoder.verdict()


class Spy:
    """A selector that notes which trials it was shown; the first feature is the number of the trial."""

    def __init__(self):
        self.calls = []

    def __call__(self, X, y, random_state):
        self.calls.append(set(X[:, 0].astype(int)))
        return np.arange(X.shape[1], 0, -1.0) + (np.arange(X.shape[1]) == 1) * 99


@pytest.mark.parametrize("make", [paired, grouped])
def test_selection_never_sees_the_items_it_is_tested_on(make):
    X, y, items = make()
    X[:, 0] = np.arange(len(y))
    spy = Spy()
    decoder = Decoder("logistic_l2", spy, n_features=(2, 4), n_perm=0).fit(X, y, groups=items)
    for fold in range(5):
        test = set(decoder.predictions_.query("fold == @fold")["trial"])
        own = spy.calls[4 * fold : 4 * fold + 4]  # three inner folds, then all training trials
        assert own[3] == set(range(len(y))) - test
        seen = [set(items[list(rows)]) for rows in own]
        for inner in seen[:3]:
            assert inner < seen[3] and not inner & set(items[list(test)])
        assert set.union(*seen[:3]) == seen[3] and not set.intersection(*seen[:3])
    assert len(spy.calls) == 24  # and four times for the decoder of all trials


def test_the_best_of_5000_noise_features_decode_nothing():
    inside, outside = [], []
    for seed in range(6):
        X, y, items = paired(20, 5000, seed=seed)
        inside.append(Decoder(**QUICK | {"random_state": seed}).fit(X, y, groups=items).score_)
        difference = X[y == "good"].mean(0) - X[y == "bad"].mean(0)
        best = np.argsort(-np.abs(difference))[:3]  # chosen on all trials
        outside.append(Decoder("ridge", n_perm=0).fit(X[:, best], y, groups=items).score_)
    assert abs(np.mean(inside) - 0.5) < 0.1 and np.mean(outside) > 0.85


@pytest.mark.parametrize("make", [paired, grouped])
def test_p_is_uniform_on_noise(make):
    p = []
    for seed in range(30):
        X, y, items = make(8, 10, seed=seed)
        options = QUICK | {"n_perm": 9, "cv": 2, "random_state": seed}
        p.append(Decoder(**options).fit(X, y, groups=items).p_value_)
    p = np.array(p)
    assert p.min() >= 1 / 10 and abs(p.mean() - 0.55) < 0.16  # three standard errors
    assert np.mean(p <= 0.2) < 0.4 and np.mean(p <= 0.5) < 0.75


@pytest.mark.parametrize("copies", [3, 10])
def test_copies_of_the_trials_change_neither_score_nor_p(copies):
    options = {"estimator": "logistic_l2", "selector": "mean_difference", "n_features": 3, "n_perm": 9}
    one = Decoder(**options).fit(*paired(shift=0.5)[:2], groups=paired()[2])
    X, y, items = paired(shift=0.5, copies=copies)
    many = Decoder(**options).fit(X, y, groups=items)
    assert many.p_value_ == one.p_value_ and many.score_ == pytest.approx(one.score_, abs=1e-9)
    np.testing.assert_allclose(many.null_scores_, one.null_scores_, atol=1e-9)


def test_identity_of_items_does_not_leak():
    areas = []
    for seed in range(8):
        X, y, items = grouped(16, seed=seed, trials=5)
        areas.append(Decoder("logistic_l2", n_perm=0).fit(X, y, groups=items).score_)
    assert abs(np.mean(areas) - 0.5) < 0.15  # a split that divides items gives 1


def test_patterns_and_weights_of_the_decoder_of_all_trials():
    X, y, items = paired(shift=2.0)
    decoder = Decoder(**QUICK | {"ensemble": "single"}).fit(X, y, groups=items)
    decision = decoder.decision_function(X)
    np.testing.assert_allclose(X @ decoder.coef_[0] + decoder.intercept_[0], decision)
    expected = [np.cov(X[:, k], decision)[0, 1] / np.var(decision, ddof=1) for k in decoder.selected_features_]
    np.testing.assert_allclose(decoder.patterns_, expected)
    rbf = Decoder("svc_rbf", n_perm=0).fit(X, y, groups=items)
    assert not hasattr(rbf, "coef_") and not hasattr(rbf, "patterns_")


def test_bagging_is_the_mean_of_the_folds():
    X, y, items = paired(shift=1.0)
    decoder = Decoder("logistic_l2", "welch_t", 3, n_perm=0).fit(X, y, groups=items)
    new, _, _ = paired(seed=3)
    np.testing.assert_allclose(decoder.decision_function(new), new @ decoder.coef_[0] + decoder.intercept_[0])
    assert set(np.flatnonzero(decoder.coef_[0])) <= set(np.concatenate(decoder.fold_features_))
    probability = decoder.predict_proba(new)
    np.testing.assert_allclose(probability.sum(1), 1)
    np.testing.assert_allclose(np.log(probability[:, 1] / probability[:, 0]), decoder.decision_function(new))
    np.testing.assert_array_equal(decoder.classes_[probability.argmax(1)], decoder.predict(new))
    for other in (Decoder("ridge"), Decoder(SVC()), Decoder(None), Decoder(["lda", "ridge"])):
        assert not hasattr(other, "predict_proba")
    assert hasattr(Decoder(["lda", "ridge"], ensemble="stacking"), "predict_proba")


def test_stacking_weighs_a_good_member_more_than_a_useless_one():
    X, y, items = paired(shift=2.5)
    options = {"selector": ["welch_t", "random"], "n_features": 2, "ensemble": "stacking", "n_perm": 9}
    decoder = Decoder("logistic_l2", **options).fit(X, y, groups=items)
    assert decoder.score_ > 0.9 and decoder.p_value_ == 0.1
    part = decoder._ensemble.parts[0][0]
    sizes = [
        weight * np.linalg.norm(panel.fitted.coef) for panel, weight in zip(part.panels, part.weights, strict=True)
    ]
    assert sizes[0] > 3 * abs(sizes[1])
    np.testing.assert_allclose(X @ decoder.coef_[0] + decoder.intercept_[0], decoder.decision_function(X))
    noise = [Decoder("ridge", **options | {"n_perm": 0}).fit(*paired(seed=s)[:2], paired()[2]).score_ for s in range(8)]
    assert abs(np.mean(noise) - 0.5) < 0.15


def test_number_of_features_is_chosen_inside_the_folds():
    rng = np.random.default_rng(0)
    items, y = np.repeat(np.arange(40), 2), np.tile([0, 1], 40)
    X = rng.normal(size=(80, 60))
    X[y == 1, :8] += 0.9
    decoder = Decoder("ridge", "welch_t", (1, 8), n_perm=0).fit(X, y, groups=items)
    assert [len(found) for found in decoder.fold_features_] == [8] * 5
    assert decoder.score_ > Decoder("ridge", "welch_t", 1, n_perm=0).fit(X, y, groups=items).score_


def test_several_classes_are_told_from_the_rest():
    rng = np.random.default_rng(0)
    items, y = np.repeat(np.arange(20), 3), np.tile(["a", "b", "c"], 20)
    X = rng.normal(size=(60, 30))
    for column, name in enumerate("abc"):
        X[y == name, column] += 4
    decoder = Decoder("logistic_l2", "welch_t", 2, n_perm=9).fit(X, y, groups=items)
    assert decoder.score_ > 0.9 and decoder.balanced_accuracy_ > 0.85 and decoder.p_value_ == 0.1
    assert [decoder.selected_features_[name][0] for name in "abc"] == [0, 1, 2]
    assert decoder.coef_.shape == (3, 30) and set(decoder.patterns_) == set("abc")
    assert decoder.decision_function(X).shape == decoder.predict_proba(X).shape == (60, 3)
    table = decoder.predictions_
    areas = []
    for name in "abc":
        folds = [roc_auc_score(rows["label"] == name, rows[f"decision_{name}"]) for _, rows in table.groupby("fold")]
        areas.append(np.mean(folds))  # folds are of one size
    assert decoder.score_ == pytest.approx(np.mean(areas))
    decoder.check_direction(X, y)


def test_sparse_anndata_and_names_give_the_same():
    anndata = pytest.importorskip("anndata")
    import pandas as pd

    X, y, items = paired(shift=1.0)
    X[X < 0] = 0
    plain = Decoder(**QUICK | {"n_perm": 9}).fit(X, y, groups=items)
    thin = Decoder(**QUICK | {"n_perm": 9}).fit(sparse.csr_matrix(X), y, groups=items)
    obs = pd.DataFrame({"outcome": y, "item": items}, index=[str(k) for k in range(len(y))])
    var = pd.DataFrame({"feature": np.arange(40) + 100}, index=[f"f{k}" for k in range(40)])
    data = anndata.AnnData(sparse.csr_matrix(X), obs=obs, var=var)
    named = Decoder(**QUICK | {"n_perm": 9}).fit(data, "outcome", groups="item")
    for other in (thin, named):
        assert other.score_ == pytest.approx(plain.score_) and other.p_value_ == plain.p_value_
    np.testing.assert_array_equal(named.selected_features_, plain.selected_features_ + 100)
    np.testing.assert_allclose(named.decision_function(data), plain.decision_function(X))
    with pytest.raises(InvalidInput, match="no column 'outcom'; did you mean 'outcome'"):
        Decoder(**QUICK).fit(data, "outcom", groups="item")


def test_features_that_are_not_finite_are_counted_and_left_out():
    X, y, items = paired(shift=2.0)
    broken = np.column_stack([X, X[:, 0]])
    broken[5, 40] = np.nan
    plain, other = (Decoder(**QUICK).fit(values, y, groups=items) for values in (X, broken))
    assert other.n_not_finite_ == 1 and other.score_ == plain.score_
    thin = Decoder(**QUICK).fit(sparse.csc_matrix(broken), y, groups=items)
    assert thin.n_not_finite_ == 1 and thin.score_ == pytest.approx(plain.score_)
    new = X[:3].copy()
    new[1, int(plain.selected_features_[0])] = np.inf
    with pytest.raises(InvalidInput, match="not finite"):
        plain.predict(new)


def test_folds_of_scikit_learn_are_used_and_leaks_refused():
    X, y, items = paired(12)
    decoder = Decoder(**QUICK | {"cv": LeaveOneGroupOut(), "n_perm": 5}).fit(X, y, groups=items)
    assert len(decoder.cv_scores_) == 12
    Decoder(**QUICK | {"cv": StratifiedGroupKFold(3)}).fit(X, y, groups=items)
    leaky = list(KFold(3, shuffle=True, random_state=0).split(X))
    with pytest.raises(DataMismatch, match=r"Decoder: fold 1 has the item .* in the training and in the test part"):
        Decoder(**QUICK | {"cv": leaky}).fit(X, y, groups=items)
    with pytest.raises(InvalidInput, match="give the splitter a random_state"):
        Decoder(**QUICK | {"cv": StratifiedGroupKFold(3, shuffle=True)}).fit(X, y, groups=items)
    half = np.arange(24) < 12
    fixed = Decoder(**QUICK | {"cv": [(half, ~half), (~half, half)]})
    with pytest.raises(DataMismatch, match="row numbers"):
        fixed.fit(X[:20], y[:20], groups=items[:20])


def test_scikit_learns_rules():
    decoder = Decoder("lda", selector="auroc", n_features=(2, 4), cv=3, random_state=7)
    assert clone(decoder).get_params() == decoder.get_params()
    decoder.set_params(n_perm=0, ensemble="single")
    X, y, items = paired(shift=2.0)
    assert decoder.fit(X, y, groups=items) is decoder and decoder.classes_.tolist() == ["bad", "good"]
    again = clone(decoder).fit(X, y, groups=items)
    np.testing.assert_array_equal(again.decision_function(X), decoder.decision_function(X))
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        Decoder().predict(X)


def test_processes_change_nothing():
    X, y, items = paired(10, 10)
    one, two = (Decoder(**QUICK | {"n_perm": 6, "n_jobs": n}).fit(X, y, groups=items) for n in (None, 2))
    np.testing.assert_array_equal(one.null_scores_, two.null_scores_)


def test_all_arrangements_are_run_if_there_are_few():
    X, y, items = paired(4, shift=3.0)
    decoder = Decoder(**QUICK | {"n_perm": 99, "cv": 2}).fit(X, y, groups=items)
    assert decoder.exhaustive_ and decoder.n_perm_ == 16 and decoder.score_ in decoder.null_scores_
    assert (
        decoder.p_value_ == np.mean(decoder.null_scores_ >= decoder.score_ - 1e-12)
        and "all 16 runs" in decoder.verdict()
    )
    flipped = Decoder(**QUICK | {"n_perm": 0, "cv": 2}).fit(X, np.where(y == "good", "bad", "good"), groups=items)
    assert (np.abs(decoder.null_scores_ - flipped.score_) < 1e-12).any()


def test_labels_move_with_their_cells():
    codes = np.repeat([0, 1, 1, 2, 0, 1, 0, 1], 2)
    items = np.repeat([0, 0, 1, 1, 2, 2, 3, 4], 2)
    draws, exhaustive = label_draws(codes, items, 200, 0)
    # items 0, 1, 2 hold two classes each, items 3 and 4 one
    assert exhaustive and len(draws) == len(np.unique(draws, axis=0)) == 16 and (draws == codes).all(axis=1).sum() == 1
    random, exhaustive = label_draws(codes, items, 15, 0)
    assert not exhaustive and len(random) == 15
    for row in np.concatenate([draws, random]):
        np.testing.assert_array_equal(row[::2], row[1::2])  # the two trials of a cell
        assert [set(row[items == item]) for item in range(3)] == [{0, 1}, {1, 2}, {0, 1}]
        assert sorted([row[12], row[14]]) == [0, 1]
    many, exhaustive = label_draws(np.tile([0, 1], 70), np.repeat(np.arange(70), 2), 50, 0)
    assert not exhaustive and len(np.unique(many, axis=0)) == 50


def test_features_move_between_items_and_keep_their_class():
    rng = np.random.default_rng(0)
    items, codes = np.repeat(np.arange(6), 3), np.tile([1, 0, 0], 6)
    X = np.stack([items * 10 + np.tile([0, 1, 2], 6)] * 50, axis=1).astype(float)
    assert [places.shape for places in interchangeable(codes, items)] == [(6, 3)]
    moved = features_drawn(X, codes, items, rng)
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(X, axis=0))
    assert (moved % 10 == X % 10).all()  # the place in the item, and so the class
    assert all(len(np.unique(moved[items == k] // 10, axis=0)) == 1 for k in range(6))  # items as wholes
    assert len(np.unique(moved, axis=1).T) > 40  # every feature by itself
    np.testing.assert_array_equal(X[:, 0], items * 10 + np.tile([0, 1, 2], 6))


def xor(seed, n=60):
    rng = np.random.default_rng(seed)
    X = np.sign(rng.normal(size=(n, 2))) + 0.3 * rng.normal(size=(n, 2))
    return X, (X[:, 0] > 0) != (X[:, 1] > 0)


def test_dependence_is_found_in_xor_and_not_in_independent_features():
    X, y = xor(0)
    options = {"n_perm": 19, "cv": 3, "item_reason": "simulated"}
    found = Decoder("svc_rbf", **options).dependence_test(X, y)
    assert found.score > 0.95 and found.p_value == 0.05 and "uses how features depend" in found.verdict()
    assert Decoder("naive_bayes", **options).dependence_test(X, y).p_value > 0.05  # cannot use it
    p = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        y = np.arange(40) % 2 == 0
        X = rng.normal(size=(40, 3)) + 1.2 * y[:, None]  # independent inside the classes
        test = Decoder("svc_rbf", **options | {"random_state": seed}).dependence_test(X, y, n_perm=9)
        assert test.score > 0.65
        p.append(test.p_value)
    assert np.sum(np.array(p) <= 0.1) <= 1 and np.mean(p) > 0.3
    assert test.to_frame().shape == (1, 5) and "nothing shows" in test.verdict()


def test_p_counts_what_reaches_the_observed():
    null = np.array([0.4, 0.7, np.nan, 0.7 - 1e-14])
    assert p_value(0.7, null, exhaustive=False) == 4 / 5 and p_value(0.7, null, exhaustive=True) == 3 / 4


def test_few_items_without_an_error_have_a_wide_interval():
    X, y, items = paired(6, shift=30.0)
    decoder = Decoder(**QUICK | {"cv": 3}).fit(X, y, groups=items)
    assert decoder.score_ == 1 and decoder.score_ci_[0] < 0.7 and decoder.score_ci_[1] == 1
    assert decoder.balanced_accuracy_ci_[0] < 0.7


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"estimator": "svm"}, InvalidInput, "no estimator 'svm'"),
        ({"selector": "rsa"}, InvalidInput, "no selector 'rsa'"),
        ({"selector": ["welch_t", "auroc"]}, InvalidInput, "'stacking' combines several"),
        ({"ensemble": "stacking"}, InvalidInput, "'stacking' combines several"),
        ({"ensemble": "boosting"}, InvalidInput, "'bagging', 'stacking', 'single'"),
        ({"n_features": 41}, InvalidInput, "whole numbers from 1 to 40"),
        ({"n_features": 0}, InvalidInput, "whole numbers from 1 to 40"),
        ({"n_features": 2.5}, InvalidInput, "whole numbers from 1 to 40"),
        ({"cv": 1}, InvalidInput, "at least 2 folds"),
        ({"cv": "five"}, InvalidInput, "a number, a splitter or a list"),
        ({"n_perm": -1}, InvalidInput, "n_perm at least 0"),
        ({"item_reason": "independent"}, InvalidInput, "only for trials without groups"),
        ({"groups": None}, InvalidInput, "write down in item_reason"),
        ({"y": ["one"] * 40}, InvalidInput, "at least two classes"),
        ({"y": ["one"] * 38 + [None, "two"]}, InvalidInput, "labels are missing"),
        ({"y": ["one"] * 39 + ["two"]}, InvalidInput, "'two' has one"),
        ({"y": ["one", "two"]}, DataMismatch, "do not fit 40 trials"),
        ({"features": [1, 2]}, DataMismatch, "2 feature ids do not fit 40"),
        ({"X": np.array([["a"] * 40] * 40)}, InvalidInput, "table of numbers"),
        ({"X": np.zeros((40, 0))}, InvalidInput, "table of numbers"),
        ({"X": sparse.csr_array((40, 0))}, InvalidInput, "table of numbers"),
        ({"X": [[1.0]] * 39 + [[1.0, 2.0]]}, InvalidInput, "its rows differ"),
        ({"estimator": SVC()}, InvalidInput, "estimator must be a name out of"),
        ({"estimator": None}, InvalidInput, "estimator must be a name out of"),
        ({"estimator": []}, InvalidInput, "estimator must be a name out of"),
        ({"estimator": [SVC()]}, InvalidInput, "no estimator"),
        ({"selector": 3}, InvalidInput, "no selector 3"),
        ({"selector": []}, InvalidInput, "list of selectors is empty"),
        ({"selector": [["auroc"]]}, InvalidInput, "no selector"),
        ({"selector": lambda X, y: X[0]}, InvalidInput, "must take three arguments"),
        ({"selector": lambda X, y, seed: ["a"] * 40}, InvalidInput, "a number for each of 40 features"),
        ({"selector": lambda X, y, seed: X}, InvalidInput, "scores of shape"),
        ({"selector": lambda X, y, seed: None}, InvalidInput, "scores of shape"),
        ({"n_features": [[1, 2], [3]]}, InvalidInput, "whole numbers from 1 to 40"),
        ({"n_features": ["x", 1]}, InvalidInput, "whole numbers from 1 to 40"),
        ({"n_jobs": "x"}, InvalidInput, "n_jobs must be a whole number"),
        ({"item_reason": None}, InvalidInput, "item_reason must be text"),
        ({"groups": [None] * 40}, InvalidInput, "groups are missing"),
        ({"cv": True}, InvalidInput, "at least 2 folds, found true"),
        ({"cv": None}, InvalidInput, "a number, a splitter or a list"),
        ({"cv": 2.5}, InvalidInput, "a number, a splitter or a list"),
        ({"cv": {1: 2}}, InvalidInput, "a number, a splitter or a list"),
        ({"cv": [1, 2, 3]}, InvalidInput, "but fold 1 is 1"),
        ({"cv": [[1, 2]]}, DataMismatch, "fold 1 does not consist of row numbers"),
        ({"cv": [([[1], [2, 3]], [0])]}, DataMismatch, "fold 1 does not consist of row numbers"),
        ({"cv": iter(())}, DataMismatch, "there is no fold"),
        ({"cv": GroupKFold}, InvalidInput, "found the class GroupKFold"),
        ({"cv": GroupKFold(30)}, InvalidInput, "cannot divide the trials"),
        ({"cv": [(np.arange(20), np.array([]))]}, DataMismatch, "in its test part"),
        ({"cv": [(np.arange(20), np.r_[20:40, 20])]}, DataMismatch, "names row 20 more than once"),
        ({"cv": GroupShuffleSplit(9, random_state=0)}, DataMismatch, "test parts must not overlap"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(change, error, words):
    X, y, items = paired()
    given = {"X": X, "y": y, "groups": items, "features": None}
    own = {name: value for name, value in change.items() if name in given}
    options = {name: value for name, value in change.items() if name not in given}
    with pytest.raises(error, match=words) as caught:
        Decoder(**QUICK | options).fit(**given | own)
    assert "\n" not in str(caught.value)


class Half:
    """A splitter of two folds, which draws from whatever it is given."""

    def __init__(self, draw):
        self.draw = draw

    def split(self, X, y, groups):
        chosen = np.isin(groups, self.draw(np.unique(groups)))
        return iter(
            [(np.flatnonzero(~chosen), np.flatnonzero(chosen)), (np.flatnonzero(chosen), np.flatnonzero(~chosen))]
        )


@pytest.mark.parametrize("seed", [np.random.RandomState(0), np.random.default_rng(0), None, True])
def test_splitters_whose_folds_differ_from_run_to_run_are_refused(seed):
    X, y, items = paired()
    for splitter in (StratifiedGroupKFold(4, shuffle=True), GroupKFold(4, shuffle=True), GroupShuffleSplit(1)):
        splitter.random_state = seed
        with pytest.raises(InvalidInput, match="a random_state that is a whole number"):
            Decoder(**QUICK | {"cv": splitter, "n_perm": 9}).fit(X, y, groups=items)


def test_splitters_with_a_hidden_generator_are_refused_and_the_same_folds_used_for_every_run():
    X, y, items = paired(shift=0.8)
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInput, match="gives other folds each time"):
        Decoder(**QUICK | {"cv": Half(lambda names: rng.permutation(names)[:10])}).fit(X, y, groups=items)
    ours = Decoder(**QUICK | {"cv": Half(lambda names: names[:10]), "n_perm": 9}).fit(X, y, groups=items)
    codes = np.unique(items.astype(str), return_inverse=True)[1]
    half = codes < 10
    masks = [(~half, half), (half, ~half)]
    listed = Decoder(**QUICK | {"cv": masks, "n_perm": 9}).fit(X, y, groups=items)
    once = Decoder(**QUICK | {"cv": iter(masks), "n_perm": 9}).fit(X, y, groups=items)
    rows = [(np.flatnonzero(train)[::-1], np.flatnonzero(test)) for train, test in masks]
    numbers = Decoder(**QUICK | {"cv": np.array(rows), "n_perm": 9}).fit(X, y, groups=items)
    for other in (listed, once, numbers):
        assert other.score_ == ours.score_ and other.p_value_ == ours.p_value_
        np.testing.assert_array_equal(other.null_scores_, ours.null_scores_)
    shuffled = GroupKFold(4, shuffle=True, random_state=3)
    assert Decoder(**QUICK | {"cv": shuffled, "n_perm": 4}).fit(X, y, groups=items).n_perm_ == 4


def test_a_feature_that_is_constant_in_training_is_never_used_nor_the_users_data_changed():
    X, y, items = paired()
    X[:, 3] = 7.0

    def wants_the_constant(values, labels, random_state):
        values[:] = 0
        labels[:] = True
        return np.arange(40) == 3

    for values in (X, sparse.csc_array(X)):
        before = values.copy()
        decoder = Decoder("ridge", wants_the_constant, 1, n_perm=0).fit(values, y, groups=items)
        assert np.isfinite(decoder.predictions_["decision"]).all() and 3 not in decoder.selected_features_
        assert abs(values - before).max() == 0
    assert decoder.fold_features_[0].size == 1


def test_decisions_that_are_not_finite_are_refused():
    X, y, items = paired()
    for size in (1e-200, 1e200):
        with pytest.raises(InvalidInput, match="too large or too small to be squared"), np.errstate(all="ignore"):
            Decoder("ridge", n_perm=0).fit(X * size, y, groups=items)
    X[:, 3] *= 1e-12
    X[0, 3] = 1e300
    test = items == 0
    with pytest.raises(InvalidInput, match="fold 1 are not finite"), np.errstate(all="ignore"):
        Decoder("ridge", n_perm=0, cv=[(~test, test)]).fit(X, y, groups=items)


def test_random_features_overlap_as_by_chance():
    overlap, chance = [], []
    for seed in range(6):
        X, y, items = paired(seed=seed)
        decoder = Decoder("ridge", "random", 8, n_perm=0, random_state=seed).fit(X, y, groups=items)
        overlap.append(decoder.stability_)
        chance.append(decoder.stability_chance_)
    assert np.mean(overlap) == pytest.approx(np.mean(chance), abs=0.04)
    again = Decoder("ridge", "random", 8, n_perm=0, random_state=5).fit(X, y, groups=items)
    np.testing.assert_array_equal(again.fold_features_, decoder.fold_features_)


def test_the_verdict_counts_what_was_tested_and_tells_of_too_few_runs():
    X, y, items = paired(shift=3.0)
    few = Decoder(**QUICK | {"n_perm": 9}).fit(X, y, groups=items)
    assert "p cannot be below 0.1" in few.verdict() and "nothing shows" not in few.verdict()
    X4, y4, items4 = paired(4, shift=3.0)
    assert "p cannot be below 0.062" in Decoder(**QUICK | {"n_perm": 99, "cv": 2}).fit(X4, y4, groups=items4).verdict()
    noise = Decoder(**QUICK | {"n_perm": 19}).fit(*paired()[:2], groups=items)
    assert noise.p_value_ > 0.05 and "so nothing shows" in noise.verdict() and "cannot" not in noise.verdict()
    test = items < 6
    part = Decoder(**QUICK | {"cv": [(~test, test)]}).fit(X, y, groups=items)
    assert "on unseen trials of 6 items in 1 folds" in part.verdict() and part.n_items_ == 20


@pytest.mark.parametrize("estimator", ["logistic_l1", "naive_bayes", "svc_rbf", ["lda", "svc_rbf"]])
def test_fitted_decoders_can_be_copied_and_sent_to_processes(estimator):
    X, y, items = paired(shift=1.0)
    options = {"ensemble": "bagging" if isinstance(estimator, str) else "stacking", "n_perm": 0}
    decoder = Decoder(estimator, "auroc", 3, **options).fit(X, y, groups=items)
    for other in (pickle.loads(pickle.dumps(decoder)), copy.deepcopy(decoder)):
        np.testing.assert_array_equal(other.decision_function(X), decoder.decision_function(X))


def test_columns_are_known_by_name():
    pd, anndata = pytest.importorskip("pandas"), pytest.importorskip("anndata")
    X, y, items = paired(shift=2.0)
    frame = pd.DataFrame(X, columns=[f"f{k}" for k in range(40)])
    decoder = Decoder(**QUICK).fit(frame, y=y, groups=items)
    np.testing.assert_array_equal(decoder.feature_names_in_, frame.columns)
    assert set(decoder.selected_features_[:2]) == {"f0", "f1"}
    np.testing.assert_array_equal(decoder.predict(frame), decoder.predict(X))
    for other in (frame[frame.columns[::-1]], frame.rename(columns={"f7": "g7"})):
        for call in (decoder.predict, decoder.decision_function, lambda values: decoder.score(values, y)):
            with pytest.raises(DataMismatch, match=r"column \d+ of X is '..?.?', but the decoder was fitted to 'f\d'"):
                call(other)
    data = anndata.AnnData(X, var=pd.DataFrame({"feature": np.arange(40) + 9}, index=list(frame.columns)))
    decoder.fit(data, y, groups=items)
    assert not hasattr(decoder, "feature_names_in_")
    decoder.predict(data.copy()), decoder.predict(X)
    with pytest.raises(DataMismatch, match="column 0 of X is '48', but the decoder was fitted to '9' there"):
        decoder.predict(data[:, ::-1].copy())
    given = Decoder(**QUICK).fit(X, y, groups=items, features=np.arange(40) + 9)
    given.predict(data)
    with pytest.raises(DataMismatch, match="column 0"):
        given.predict(frame)
    numbered = Decoder(**QUICK).fit(pd.DataFrame(X), y, groups=items)
    assert not hasattr(numbered, "feature_names_in_") and numbered.predict(pd.DataFrame(X)).size == 40


def test_wrong_calls_after_fit_are_told():
    X, y, items = paired(shift=1.0)
    decoder = Decoder(**QUICK).fit(X, y, groups=items)
    for n_perm in (1.5, "x", True):
        with pytest.raises(InvalidInput, match="n_perm must be a whole number"):
            decoder.dependence_test(X, y, items, n_perm=n_perm)
    with pytest.raises(InvalidInput, match="n_rows must be 1 to 20"):
        decoder.check_direction(X, y, n_rows="x")
    with pytest.raises(InvalidInput, match="one label out of 'bad', 'good'"):
        decoder.score(X, [None] * 40)
