"""Folds: those of scikit-learn, whole items, and no leak gets past the guard."""

import numpy as np
import pytest
from sklearn.model_selection import KFold, LeaveOneGroupOut, StratifiedGroupKFold

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.stats.folds import Folding, as_splits, check_folds, item_folds


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_assignment_is_that_of_stratified_group_kfold_up_to_rounding():
    rng = np.random.default_rng(0)
    equal = []
    for seed in range(60):
        n_items, n_folds, n_classes = rng.integers(6, 30), rng.integers(2, 6), rng.integers(2, 5)
        items = np.sort(rng.integers(0, n_items, 4 * n_items))
        labels = rng.integers(0, n_classes, items.size) if seed % 2 else (items * 7) % n_classes
        names, codes = np.unique(items, return_inverse=True)
        place = np.argsort(stream(seed, "folds").permutation(names.size))  # without its shuffle, in our order
        expected = np.empty(items.size, int)
        splitter = StratifiedGroupKFold(int(n_folds))
        for fold, (_, test) in enumerate(splitter.split(labels, labels, place[codes])):
            expected[test] = fold
        found = item_folds(labels, items, int(n_folds), seed)
        equal.append((found == expected).all())
        assert unevenness(found, labels) == pytest.approx(unevenness(expected, labels), abs=1e-12)
    assert np.mean(equal) > 0.75  # the others differ in which of several equal folds is taken


def unevenness(folds, labels):
    classes = np.unique(labels)
    share = [[np.mean(folds[labels == one] == fold) for one in classes] for fold in np.unique(folds)]
    return np.std(share, axis=0).mean()


def test_items_are_whole_classes_balanced_and_seeds_matter():
    items = np.repeat(np.arange(40), 3)
    labels = np.where(items % 4 == 0, "rare", "common")
    folds = item_folds(labels, items, 5, 1)
    assert all(np.unique(folds[items == item]).size == 1 for item in range(40))
    for fold in range(5):
        assert (labels[folds == fold] == "rare").sum() == 6 and (folds == fold).sum() == 24
    np.testing.assert_array_equal(folds, item_folds(labels, items, 5, 1))
    assert (folds != item_folds(labels, items, 5, 2)).any()
    assert item_folds(labels, items.astype(str), 5, -3).max() == 4


def test_copies_of_all_trials_change_nothing():
    items, labels = np.repeat(np.arange(12), 2), np.tile([0, 1], 12)
    copies = np.repeat(np.arange(24), 10)
    np.testing.assert_array_equal(item_folds(labels, items, 4)[copies], item_folds(labels[copies], items[copies], 4))


@pytest.mark.parametrize("n_folds", [1, 5])
def test_impossible_numbers_of_folds(n_folds):
    with pytest.raises(InvalidInput, match="items are not possible"):
        item_folds(np.array([0, 1, 0, 1]), np.arange(4), n_folds)


def test_guard_passes_what_is_sound_and_refuses_what_leaks():
    items, labels = np.repeat(np.arange(6), 2), np.tile(["no", "yes"], 6)
    own = check_folds(as_splits(item_folds(labels, items, 3)), labels, items)
    assert len(own) == 3 and sorted(np.concatenate([test for _, test in own])) == list(range(12))
    assert len(check_folds(LeaveOneGroupOut().split(labels, labels, items), labels, items)) == 6
    with pytest.raises(DataMismatch, match=r"fold 1 has the item '\d' and \d more in the training and in the test"):
        check_folds(KFold(3, shuffle=True, random_state=0).split(labels), labels, items)
    with pytest.raises(DataMismatch, match="fold 2 has no trial of 'yes' in its test part"):
        check_folds([(np.arange(6), np.arange(6, 12)), (np.arange(2, 12), np.array([0]))], labels, items)
    with pytest.raises(DataMismatch, match="fold 1 has no trial of 'no' in its training part"):
        check_folds([(items % 2 == 1, items % 2 == 0)], np.where(items % 2, "yes", labels), items)
    with pytest.raises(DataMismatch, match="row numbers from 0 to 11"):
        check_folds([([0, 1], [12])], labels, items)
    with pytest.raises(DataMismatch, match="there is no fold"):
        check_folds([], labels, items)


def test_test_parts_do_not_overlap_and_rows_are_not_repeated():
    items, labels = np.repeat(np.arange(6), 4), np.tile(["no", "yes"], 12)
    first = [rows for item in range(6) for rows in (4 * item, 4 * item + 1)]
    second = np.setdiff1d(np.arange(24), first)
    early = items < 3
    splits = [(np.flatnonzero(~early), np.intersect1d(rows, np.flatnonzero(early))) for rows in (first, second)]
    with pytest.raises(DataMismatch, match="the item '0' is in the test part of fold 2 and of an earlier one"):
        check_folds(splits, labels, items)  # other trials of the same item
    assert len(check_folds(splits[:1], labels, items)) == 1
    for train, test in (([12, 13, 13], [0, 1]), ([12, 13], [0, 1, 1])):
        with pytest.raises(DataMismatch, match=r"names row 1?[13] more than once in one part"):
            check_folds([(train, test)], labels, items)
    ((train, test),) = check_folds([([13, 12], [1, 0])], labels, items)
    assert train.tolist() == [12, 13] and test.tolist() == [0, 1]


def test_folds_are_those_of_these_labels():
    items, labels = np.repeat(np.arange(6), 2), np.repeat([0, 1, 0, 1, 0, 1], 2)
    other = np.repeat([0, 0, 0, 1, 1, 1], 2)
    folding = Folding.of(5, 3, 7, "here")
    for own in (labels, other):
        for found, expected in zip(folding.splits(own, items), as_splits(item_folds(own, items, 3, 7)), strict=True):
            np.testing.assert_array_equal(found[1], expected[1])
    splitter = StratifiedGroupKFold(3, shuffle=True, random_state=1)
    for own in (labels, other):
        expected = list(splitter.split(labels, own, items))
        for found, (_, test) in zip(Folding.of(splitter, 3, 0, "here").splits(own, items), expected, strict=True):
            np.testing.assert_array_equal(found[1], test)
    given = Folding.of(iter([(items > 1, items < 2)]), 3, 0, "here")
    assert [given.splits(own, items)[0][1].tolist() for own in (labels, other)] == [[0, 1, 2, 3]] * 2
