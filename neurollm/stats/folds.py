"""Folds of cross-validation: items are whole, classes are balanced, and a guard against folds that leak.

Items come in a random order, those with the most uneven classes first; each goes to the fold in which the
shares of the classes stay most alike over folds (smallest mean over classes of the deviation over folds),
of equal ones to the emptiest. That is the rule of scikit-learn's ``StratifiedGroupKFold``, here with whole numbers:
rounding does not decide between equal folds, and a thousand assignments take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.validation import listed, shortened, shown

Split = tuple[np.ndarray, np.ndarray]


def item_folds(labels: np.ndarray, items: np.ndarray, n_folds: int, random_state: int = 0) -> np.ndarray:
    """Fold of each trial; all trials of an item are in one fold, and each fold has its share of every class.

    Parameters
    ----------
    labels, items : ndarray, shape (n_trials,)
    n_folds : int
    random_state : int, default=0

    Returns
    -------
    ndarray of int, shape (n_trials,)

    Raises
    ------
    InvalidInput
        There are fewer items than folds, or fewer than two folds.

    Examples
    --------
    >>> item_folds(np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2]), 3).tolist()
    [2, 2, 0, 0, 1, 1]
    """
    names, items = np.unique(items, return_inverse=True)
    if not 2 <= n_folds <= names.size:
        raise InvalidInput(
            f"folds: {n_folds} folds of {names.size} items are not possible; there must be at least 2 folds and an "
            "item for each."
        )
    classes, codes = np.unique(labels, return_inverse=True)
    counts = np.zeros((names.size, classes.size), dtype=np.int64)
    np.add.at(counts, (items, codes), 1)
    order = stream(random_state, "folds").permutation(names.size)
    # n Σc² − (Σc)² is the variance over classes in whole numbers.
    uneven = classes.size * (counts**2).sum(axis=1) - counts.sum(axis=1) ** 2
    order = order[np.argsort(-uneven[order], kind="stable")]
    fold_of = np.empty(names.size, dtype=int)
    fold_of[order] = _greedy(counts[order], n_folds)
    return fold_of[items]


def _greedy(counts: np.ndarray, n_folds: int) -> list[int]:
    """Fold of each item, in the order given; `counts` has a row per item and a column per class."""
    totals = counts.sum(axis=0)
    in_fold = np.zeros((n_folds, totals.size), dtype=np.int64)
    squares, sums = np.zeros_like(totals), np.zeros_like(totals)
    sizes, chosen = [0] * n_folds, []
    for count in counts:
        sums = sums + count
        spread = n_folds * (squares + 2 * in_fold * count + count**2) - sums**2
        deviations = np.mean(np.sqrt(spread) / totals, axis=1).tolist()
        best, least = 0, deviations[0]
        for fold in range(1, n_folds):
            value = deviations[fold]
            if value < least or (isclose(value, least, rel_tol=1e-5, abs_tol=1e-8) and sizes[fold] < sizes[best]):
                best, least = fold, value
        squares = squares + 2 * in_fold[best] * count + count**2
        in_fold[best] += count
        sizes[best] += int(count.sum())
        chosen.append(best)
    return chosen


def as_splits(folds: np.ndarray) -> list[Split]:
    """Rows of the training and the test part of each fold."""
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]


@dataclass(frozen=True, eq=False)
class Folding:
    """How trials are divided, the same way for every arrangement of the labels.

    Attributes
    ----------
    n_folds : int
        Balanced folds of items; 0 for the other two.
    splitter : object, optional
        A splitter of scikit-learn; it gives the same folds whenever it is called with the same labels.
    given : tuple of (train, test)
        Folds that do not depend on the labels.
    random_state : int
    """

    n_folds: int
    splitter: Any
    given: tuple
    random_state: int

    @classmethod
    def of(cls, cv: Any, n_most: int, random_state: int, where: str) -> Folding:
        """From a number (at most `n_most` folds), a splitter, or an iterable of (train, test), which is read once.

        Raises
        ------
        InvalidInput
            It is none of these, or the folds of the splitter differ from run to run.
        """
        expected = "cv must be a number, a splitter or a list of folds (train, test)"
        if isinstance(cv, (int, np.integer)):
            if isinstance(cv, bool) or cv < 2:
                raise InvalidInput(f"{where}: cv must be at least 2 folds, found {shown(cv)}.")
            return cls(min(int(cv), n_most), None, (), random_state)
        if isinstance(cv, type):
            raise InvalidInput(f"{where}: {expected}, found the class {cv.__name__}; give an object of it.")
        if hasattr(cv, "split") and not isinstance(cv, (str, bytes, np.ndarray)):
            seed = getattr(cv, "random_state", 0)
            drawn = seed is not None or getattr(cv, "shuffle", True)
            if drawn and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
                raise InvalidInput(
                    f"{where}: give the splitter a random_state that is a whole number, or its folds differ from run "
                    f"to run; found {shown(seed)}."
                )
            return cls(0, cv, (), random_state)
        if isinstance(cv, (str, bytes, dict)) or not isinstance(cv, Iterable):
            raise InvalidInput(f"{where}: {expected}, found {shown(cv)}.")
        given = tuple(cv)
        for number, fold in enumerate(given, start=1):
            if isinstance(fold, (str, bytes, dict)) or not hasattr(fold, "__len__") or len(fold) != 2:
                raise InvalidInput(f"{where}: {expected}, but fold {number} is {shown(fold)}.")
        return cls(0, None, given, random_state)

    def checked(self, labels: np.ndarray, items: np.ndarray, where: str, names: np.ndarray) -> list[Split]:
        """The folds of the observed labels (`names` is what the codes `labels` stand for), by `check_folds`.

        Raises
        ------
        InvalidInput
            The splitter cannot divide the trials, or gives other folds when it is asked again.
        DataMismatch
            See `check_folds`.
        """
        try:
            splits = self.splits(labels, items, where)
        except (ValueError, TypeError) as error:
            if self.splitter is None:
                raise
            raise InvalidInput(f"{where}: the splitter cannot divide the trials ({shortened(error, 200)}).") from None
        splits = check_folds(splits, names[labels], items, where)
        if self.splitter is not None:
            again = self.splits(labels, items)
            if len(again) != len(splits) or not all(
                np.array_equal(one[side], other[side])
                for one, other in zip(splits, again, strict=True)
                for side in (0, 1)
            ):
                raise InvalidInput(
                    f"{where}: the splitter gives other folds each time it is asked; give it a random_state that is a "
                    "whole number, or a list of folds."
                )
        return splits

    def splits(self, labels: np.ndarray, items: np.ndarray, where: str = "folds") -> list[Split]:
        """Rows of the training and the test part of each fold, for these labels."""
        if self.n_folds:
            return as_splits(item_folds(labels, items, self.n_folds, self.random_state))
        found = self.given
        if self.splitter is not None:
            found = self.splitter.split(np.zeros((labels.size, 1)), labels, items)
        return [tuple(_rows(rows, labels.size, where, number) for rows in fold) for number, fold in enumerate(found, 1)]


def check_folds(splits: Iterable[Split], labels: Sequence, items: Sequence, where: str = "folds") -> list[Split]:
    """Refuse folds that leak or cannot be scored (the role of ``cosmo_check_partitions`` in CoSMoMVPA).

    Parameters
    ----------
    splits : iterable of (train, test)
        Row numbers or booleans, as scikit-learn's splitters give them.
    labels, items : sequence, shape (n_trials,)
    where : str, default="folds"
        Start of the sentence.

    Returns
    -------
    list of (train, test)
        Row numbers.

    Raises
    ------
    DataMismatch
        There is no fold, rows do not exist or are repeated, an item is on both sides of one fold or in the test
        parts of two, or a class is missing on a side.

    Examples
    --------
    >>> check_folds([([0, 1, 2], [3])], ["a", "b", "a", "b"], ["i", "i", "j", "j"])
    Traceback (most recent call last):
    ...
    neurollm.errors.DataMismatch: folds: fold 1 has the item 'j' in the training and in the test part; ...
    """
    labels, items = np.asarray(labels), np.asarray(items)
    classes = np.unique(labels)
    checked, tested = [], np.zeros(0, dtype=items.dtype)
    for number, (train, test) in enumerate(splits, start=1):
        train, test = _rows(train, labels.size, where, number), _rows(test, labels.size, where, number)
        shared = np.intersect1d(items[train], items[test])
        if shared.size:
            more = f" and {shared.size - 1} more" if shared.size > 1 else ""
            raise DataMismatch(
                f"{where}: fold {number} has the item {listed(shared[:1])}{more} in the training and in the test part; "
                "all trials of an item must be on one side, as StratifiedGroupKFold does."
            )
        for side, rows in (("training", train), ("test", test)):
            missing = np.setdiff1d(classes, labels[rows])
            if missing.size:
                raise DataMismatch(
                    f"{where}: fold {number} has no trial of {listed(missing)} in its {side} part; use fewer folds, or "
                    "items of that class in every fold."
                )
        again = np.intersect1d(tested, items[test])
        if again.size:
            raise DataMismatch(
                f"{where}: the item {listed(again[:1])} is in the test part of fold {number} and of an earlier one; "
                "test parts must not overlap, because intervals count every item once (repeated cross-validation "
                "belongs to the method grid)."
            )
        tested = np.union1d(tested, items[test])
        checked.append((train, test))
    if not checked:
        raise DataMismatch(f"{where}: there is no fold.")
    return checked


def _rows(rows: Sequence, n: int, where: str, number: int) -> np.ndarray:
    """Row numbers, rising, of row numbers or booleans."""
    try:
        rows = np.asarray(rows)
    except ValueError:  # lists of unequal lengths
        rows = np.zeros((0, 0))
    if rows.dtype == bool and rows.shape == (n,):
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n)):
        raise DataMismatch(f"{where}: fold {number} does not consist of row numbers from 0 to {n - 1}.")
    rows, counts = np.unique(rows.astype(int), return_counts=True)
    if (counts > 1).any():
        raise DataMismatch(f"{where}: fold {number} names row {rows[counts > 1][0]} more than once in one part.")
    return rows
