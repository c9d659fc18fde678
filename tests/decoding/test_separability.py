"""Separability: noise, planted signal, no leak between trials of an item."""

import time

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from neurollm.decoding import separability
from neurollm.decoding.separability import _fit, _interval, _rotate
from neurollm.errors import DataMismatch, InvalidInput


def paired(n_items=20, n_features=60, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    items, y = np.repeat(np.arange(n_items), 4), np.tile(["no", "yes", "no", "yes"], n_items)
    X = rng.normal(size=(n_items, n_features))[items] + rng.normal(size=(items.size, n_features))
    X[:, :3] += shift * (y == "yes")[:, None]
    return X, y, items


def test_noise_is_near_one_half_and_signal_near_one():
    noise = [separability(*paired(seed=seed)).auroc for seed in range(8)]
    assert abs(np.mean(noise) - 0.5) < 0.06
    result = separability(*paired(shift=4.0))
    assert result.auroc > 0.97 and result.balanced_accuracy > 0.9
    assert result.ci_low <= result.auroc <= result.ci_high and result.positive == "yes" and result.n_items == 20


def test_item_identity_between_items_does_not_leak():
    areas = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        items = np.repeat(np.arange(24), 5)
        X = 5 * rng.normal(size=(24, 40))[items] + rng.normal(size=(120, 40))
        areas.append(separability(X, items % 2, items, random_state=seed).auroc)
    assert abs(np.mean(areas) - 0.5) < 0.2  # a split that shares items gives 1.0


def test_rotated_classifier_equals_plain_sklearn():
    X, y, items = paired(shift=1.0, n_features=200)
    train = items < 15
    labels = y == "yes"
    Z = _rotate(X, train)
    ours = _fit(Z[train], labels[train], 1.0).decision_function(Z[~train])
    scaler = StandardScaler().fit(X[train])
    # Rows are scaled by 1/√V, so the same penalty is C/V on the plain scale.
    plain = LogisticRegression(C=1.0 / 200, class_weight="balanced", tol=1e-8, max_iter=5000)
    theirs = plain.fit(scaler.transform(X[train]), labels[train]).decision_function(scaler.transform(X[~train]))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_auroc_is_the_pair_weighted_mean_of_fold_aurocs():
    result = separability(*paired(shift=0.7))
    frame = result.predictions
    areas, pairs = [], []
    for _, fold in frame.groupby("fold"):
        labels = fold["level"] == "yes"
        areas.append(roc_auc_score(labels, fold["score"]))
        pairs.append(labels.sum() * (~labels).sum())
    assert result.auroc == pytest.approx(np.average(areas, weights=pairs))
    assert frame.groupby("group")["fold"].nunique().max() == 1
    recall = [np.mean(frame["predicted"][frame["level"] == level] == level) for level in ("no", "yes")]
    assert result.balanced_accuracy == pytest.approx(np.mean(recall))


def test_sparse_equals_dense_and_runs_repeat():
    X, y, items = paired(shift=0.7)
    X[X < 0] = 0
    dense, again = separability(X, y, items), separability(X, y, items)
    thin = separability(sparse.csr_matrix(X), y, items)
    assert (dense.auroc, dense.ci_low, dense.ci_high) == (again.auroc, again.ci_low, again.ci_high)
    assert thin.auroc == pytest.approx(dense.auroc, abs=1e-12)
    np.testing.assert_allclose(thin.predictions["score"], dense.predictions["score"], atol=1e-6)


def test_constant_features_and_few_items():
    X, y, items = paired(6)
    assert separability(X * 0, y, items).auroc == 0.5
    result = separability(X[:12], y[:12], items[:12])
    assert result.n_folds == 3


def test_features_that_are_not_finite_or_constant_up_to_rounding_are_left_out():
    X, y, items = paired(12, shift=1.0)
    rounding = 5 + 1e-6 * (y == "yes")[:, None]
    broken = np.column_stack([X, X[:, 0], X[:, 0], rounding])
    broken[3, -3], broken[7, -2] = np.nan, np.inf
    for values in (broken, sparse.csr_array(broken)):
        result = separability(values, y, items, random_state=np.int32(0))
        np.testing.assert_allclose(result.predictions["score"], separability(X, y, items).predictions["score"])


def test_interval_covers_and_is_never_a_point():
    covered = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for n_items, both in ((6, False), (10, False), (6, True), (12, True)):
            items = np.repeat(np.arange(n_items), 2)
            y = np.tile([0, 1], n_items) if both else items % 2
            result = separability(rng.normal(size=(2 * n_items, 8)), y, items)
            assert 0 <= result.ci_low <= result.auroc <= result.ci_high <= 1
            assert result.ci_high - result.ci_low > 0.1
            covered.append(result.ci_low <= 0.5 <= result.ci_high)
    assert np.mean(covered) > 0.9


def test_interval_without_errors_is_that_of_as_many_items():
    items, labels = np.repeat(np.arange(56), 2), np.tile([False, True], 56)
    low, high = _interval(labels * 1.0, labels, items, items % 5, 1.0)
    assert low == pytest.approx(0.933, abs=0.001) and high == 1
    few = _interval(labels * 1.0, items % 2 == 1, items, items // 2 % 5, 1.0)
    assert few[0] < 0.89  # half as many pairs of items with one level each


def test_thousands_of_sparse_features_are_quick():
    rng = np.random.default_rng(0)
    items, y = np.repeat(np.arange(50), 4), np.tile([0, 1], 100)
    X = sparse.random_array((200, 4096), density=0.03, rng=rng, format="csr", dtype=np.float32)
    start = time.process_time()
    separability(X, y, items)
    assert time.process_time() - start < 15


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda X, y, g: (X[:-1], y, g), DataMismatch, "do not fit"),
        (lambda X, y, g: (X, np.r_[["third"], y[1:]], g), InvalidInput, "exactly two levels"),
        (lambda X, y, g: (X, y, g * 0), InvalidInput, "at least 2 items each"),
        (lambda X, y, g: (X, np.r_[[None], y[1:]], g), InvalidInput, "levels are missing"),
        (lambda X, y, g: (X, y, np.r_[[np.nan], g[1:]]), InvalidInput, "items are missing"),
    ],
)
def test_wrong_input_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        separability(*change(*paired(5)))


def test_numbers_are_sorted_as_numbers():
    X, y, items = paired(10)
    levels = np.unique(y)
    numbers = np.where(y == levels[1], 10, 9)
    found, words = separability(X, numbers, items), separability(X, y, items)
    assert found.positive == "10" and found.auroc == words.auroc
    assert found.predictions["level"].tolist() == [str(number) for number in numbers]
