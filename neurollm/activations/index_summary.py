"""Strongest occurrences of all features at once, found without a loop over features.

The entries of a shard arrive sorted by feature and row, and so by feature and document.
A segmented maximum leaves one entry per (feature, document); those above the feature's
current threshold are merged with the current best by two sorts. After the first shards
nearly everything is below the threshold, and little is left to sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Entries:
    """Occurrences of features, as columns of equal length."""

    feature: np.ndarray
    value: np.ndarray
    row: np.ndarray
    document: np.ndarray

    def take(self, which: np.ndarray) -> Entries:
        """The entries at `which` (indices or mask)."""
        return Entries(self.feature[which], self.value[which], self.row[which], self.document[which])

    def join(self, other: Entries) -> Entries:
        """These entries, then those of `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Entries(*(np.concatenate(pair) for pair in pairs))


def strongest_per_document(entries: Entries) -> Entries:
    """One entry for each feature and document: the largest value, the earliest row of equals.

    `entries` must be sorted by feature, and by document and row within a feature.
    """
    if not len(entries.value):
        return entries
    new = (np.diff(entries.feature) != 0) | (np.diff(entries.document) != 0)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    sizes = np.diff(np.append(starts, len(entries.value)))
    is_largest = np.flatnonzero(entries.value == np.repeat(np.maximum.reduceat(entries.value, starts), sizes))
    group = np.searchsorted(starts, is_largest, side="right")
    return entries.take(is_largest[np.concatenate([[True], np.diff(group) != 0])])


def keep_top(entries: Entries, top: int) -> Entries:
    """For each feature its `top` largest values of different documents, in falling order, equals by row."""
    entries = entries.take(np.lexsort((entries.row, entries.document, entries.feature)))
    entries = strongest_per_document(entries)
    entries = entries.take(np.lexsort((entries.row, -entries.value, entries.feature)))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(entries.feature) != 0])) if len(entries.value) else []
    sizes = np.diff(np.append(starts, len(entries.value)))
    rank = np.arange(len(entries.value)) - np.repeat(starts, sizes)
    return entries.take(rank < top)


class Summary:
    """How often and how strongly each feature fires, with its strongest occurrences.

    Parameters
    ----------
    n_features : int
    top : int
        Occurrences to keep per feature, at most one per document.
    """

    def __init__(self, n_features: int, top: int) -> None:
        self.n_features, self.top = n_features, top
        self.fires = np.zeros(n_features, np.int64)
        self.maximum = np.zeros(n_features, np.float32)
        self._threshold = np.zeros(n_features, np.float32)  # what an occurrence must exceed to enter
        self.best = Entries(
            np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        )

    def add(self, entries: Entries) -> None:
        """Take in a shard's entries, sorted by feature and row; only positive values are occurrences."""
        entries = entries.take(entries.value > 0)
        self.fires += np.bincount(entries.feature, minlength=self.n_features)
        entries = entries.take(entries.value > self._threshold[entries.feature])
        candidates = strongest_per_document(entries)
        self.best = keep_top(self.best.join(candidates), self.top)
        counts = np.bincount(self.best.feature, minlength=self.n_features)
        last = np.cumsum(counts) - 1
        full = counts == self.top
        self._threshold[full] = self.best.value[last[full]]

    def tensors(self) -> dict[str, np.ndarray]:
        """What is kept on disk."""
        counts = np.bincount(self.best.feature, minlength=self.n_features)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        fires = counts > 0
        self.maximum[fires] = self.best.value[indptr[:-1][fires]]
        return {
            "fires": self.fires,
            "top_indptr": indptr,
            "top_row": self.best.row,
            "top_value": self.best.value,
            "maximum": self.maximum,
        }
