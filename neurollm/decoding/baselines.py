"""What the texts themselves give away: decoding from words, length and punctuation, beside a decoder of features.

Each row is judged as a `Decoder` is: the same folds of items, AUROC within folds, the same interval.

=============  =========================================================================================
row            decoded from
=============  =========================================================================================
words          counts of single words (case folded, without punctuation): multinomial naive Bayes with
               add-one smoothing, classes equally likely, vocabulary and counts from the training part
bigrams        the same for pairs of neighbouring words
length         numbers of characters and words: ridge classifier, penalty chosen in the training part
punctuation    counts of every punctuation mark and symbol, capitals, digits and superfluous spaces, likewise
=============  =========================================================================================

Naive Bayes rather than a linear classifier of standardised features: with a hundred short texts it reads words better
(AUROC .60 against .52 on sentence polarity; .66 against .63 with four hundred), and a baseline should be as strong as
it can be. A decoder that is no better than the words has not shown that it needs anything else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.decoding.ridge import ridge_scores
from neurollm.decoding.trials import complete, typed
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.folds import as_splits, check_folds, item_folds
from neurollm.stats.linear import NOISE
from neurollm.stats.paired_scores import auc_bootstrap
from neurollm.stimuli._lexical import ngrams, words
from neurollm.validation import shortened

if TYPE_CHECKING:
    import pandas as pd

ROWS = ("words", "bigrams", "length", "punctuation")


@dataclass(frozen=True, eq=False)
class Baselines:
    """AUROC from the texts alone, one row per baseline.

    Attributes
    ----------
    rows : tuple of str
        `ROWS`.
    levels : tuple of str
        Low and high scores.
    auroc, ci_low, ci_high : ndarray, shape (4,)
    scores : ndarray, shape (4, n)
        Out-of-fold scores.
    labels : ndarray of bool, shape (n,)
        True: the second level.
    items : ndarray of str, shape (n,)
    folds : ndarray of int, shape (n,)
    n_boot, random_state : int
    alpha : float
    """

    rows: tuple[str, ...]
    levels: tuple[str, str]
    auroc: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    items: np.ndarray
    folds: np.ndarray
    n_boot: int
    random_state: int
    alpha: float

    def to_frame(self) -> pd.DataFrame:
        """One row per baseline; columns baseline, auroc, ci_low, ci_high, n_items, n_trials."""
        import pandas as pd

        columns = {"baseline": self.rows, "auroc": self.auroc, "ci_low": self.ci_low, "ci_high": self.ci_high}
        return pd.DataFrame({**columns, "n_items": np.unique(self.items).size, "n_trials": self.items.size})

    def compare(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """How much better a decoder is than each baseline, on the same items in the same folds.

        Parameters
        ----------
        predictions : DataFrame
            ``predictions_`` of a `Decoder` of two classes: columns trial, label, fold and decision.

        Returns
        -------
        DataFrame
            Columns baseline, difference (AUROC of the decoder minus that of the baseline), ci_low, ci_high, p; see
            `neurollm.stats.paired_scores`.

        Raises
        ------
        DataMismatch
            The trials, their labels, the order of their levels or their folds are others.
        """
        import pandas as pd

        missing = {"trial", "label", "fold", "decision"} - set(predictions)
        ordered = predictions if missing else predictions.sort_values("trial")
        if missing or not np.array_equal(ordered["trial"], np.arange(self.labels.size)):
            raise DataMismatch(
                f"baselines: the predictions must hold each of the {self.labels.size} trials once, with columns trial, "
                "label, fold and decision."
            )
        if not np.array_equal(ordered["label"].astype(str) == self.levels[1], self.labels):
            raise DataMismatch("baselines: the predictions are of other labels than the baselines.")
        order = tuple(map(str, np.unique(typed(ordered["label"].to_numpy(object)))))
        if order != self.levels:
            raise DataMismatch(
                f"baselines: high decisions of the predictions mean '{shortened(order[-1])}', those of the baselines "
                f"'{shortened(self.levels[1])}'; give both the labels as numbers, or both as text."
            )
        pairs = len(set(zip(ordered["fold"], self.folds, strict=True)))
        if not pairs == np.unique(self.folds).size == ordered["fold"].nunique():
            raise DataMismatch("baselines: the decoder had other folds; give its folds to the baselines.")
        scores = np.vstack([ordered["decision"].to_numpy(float), self.scores])
        found = self._bootstrap(scores).contrast(
            np.hstack([np.ones((len(self.rows), 1)), -np.eye(len(self.rows))]), self.alpha
        )
        columns = {"difference": found.difference, "ci_low": found.ci_low, "ci_high": found.ci_high, "p": found.p}
        return pd.DataFrame({"baseline": self.rows, **columns})

    def verdict(self) -> str:
        """One sentence: which baseline tells the levels apart best, and whether its interval excludes chance."""
        names = " and ".join(f"'{shortened(level)}'" for level in self.levels)
        best = int(np.argmax(self.auroc))
        areas = ", ".join(f"{name} {area:.2f}" for name, area in zip(self.rows, self.auroc, strict=True))
        told = [name for name, low in zip(self.rows, self.ci_low, strict=True) if low > 0.5]
        end = f"above chance: {', '.join(told)}" if told else "none is above chance"
        return (
            f"From the texts alone {names} are told apart best by {self.rows[best]} (AUROC {self.auroc[best]:.2f}, "
            f"{self.ci_low[best]:.2f} to {self.ci_high[best]:.2f}, on unseen items); {areas}; {end}."
        )

    def _bootstrap(self, scores: np.ndarray) -> Any:
        return auc_bootstrap(
            scores, self.labels, self.items, self.folds, n_boot=self.n_boot, random_state=self.random_state
        )


def baselines(
    texts: Sequence[str],
    labels: Any,
    groups: Any,
    *,
    cv: int = 5,
    folds: Any = None,
    n_boot: int = 2000,
    alpha: float = 0.05,
    random_state: int = 0,
) -> Baselines:
    """Decode two levels from the texts alone.

    Parameters
    ----------
    texts : sequence of str, length n
        For example the column ``text`` of the table of a `StimulusSet`.
    labels : sequence, shape (n,)
        Exactly two levels.
    groups : sequence, shape (n,)
        Item of each text.
    cv : int, default=5
        Folds, made as `Decoder` makes them with the same `cv` and `random_state`; fewer if a level has fewer items.
    folds : sequence of int, shape (n,), optional
        Test fold of each text, in place of `cv`; all texts of an item are in one fold.
    n_boot : int, default=2000
    alpha : float, default=0.05
        Of the intervals, 1 − α.
    random_state : int, default=0

    Returns
    -------
    Baselines

    Raises
    ------
    DataMismatch
        The lengths differ, or folds divide an item or lack a level.
    InvalidInput
        A text is not a string, a label or group is missing, there are not two levels, or a level has fewer than two
        items.

    Examples
    --------
    >>> texts = [f"the {noun} was {word}" for noun in ("film", "meal", "trip", "book") for word in ("bad", "good")]
    >>> found = baselines(texts, ["bad", "good"] * 4, groups=[0, 0, 1, 1, 2, 2, 3, 3], cv=2, n_boot=100)
    >>> found.to_frame()[["baseline", "auroc"]].values.tolist()[0]
    ['words', 1.0]
    """
    texts = list(texts)
    labels = typed(complete(labels, "labels", len(texts), "baselines"))
    groups = complete(groups, "groups", len(texts), "baselines").astype(str)
    wrong = [place for place, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise InvalidInput(f"baselines: text {wrong[0]} is of type {type(texts[wrong[0]]).__name__}; expected text.")
    levels = np.unique(labels)
    if levels.size != 2:
        raise InvalidInput(f"baselines: exactly two levels can be decoded, found {levels.size}.")
    positive, items = labels == levels[1], np.unique(groups, return_inverse=True)[1]
    folds = _folds(labels, groups, cv, folds, random_state)
    scores = np.zeros((len(ROWS), labels.size))
    counts = [_counts(texts, n) for n in (1, 2)]
    surface = [_lengths(texts), _punctuation(texts)]
    for train, test in as_splits(folds):
        scores[:2, test] = [_naive_bayes(own, positive, train, test) for own in counts]
        scores[2:, test] = [_ridge(own, positive, items, train, test) for own in surface]
    found = auc_bootstrap(scores, positive, groups, folds, n_boot=n_boot, random_state=random_state)
    names = (str(levels[0]), str(levels[1]))
    low, high = found.interval(alpha)
    return Baselines(ROWS, names, found.area, low, high, scores, positive, groups, folds, n_boot, random_state, alpha)


def _folds(labels: np.ndarray, groups: np.ndarray, cv: int, folds: Any, random_state: int) -> np.ndarray:
    """The folds given, or those of a decoder, as 0, 1, ..."""
    if folds is None:
        fewest = min(np.unique(groups[labels == level]).size for level in np.unique(labels))
        if cv < 2 or fewest < 2:
            raise InvalidInput(
                f"baselines: at least 2 folds and 2 items of each level are needed, found {cv} and {fewest}."
            )
        return item_folds(labels, groups, min(cv, fewest), random_state)
    folds = np.asarray(folds)
    if folds.shape != labels.shape:
        raise DataMismatch(f"baselines: folds of shape {folds.shape} do not fit {labels.size} texts.")
    folds = np.unique(folds, return_inverse=True)[1]
    check_folds(as_splits(folds), labels, groups, "baselines")
    return folds


def _counts(texts: Sequence[str], n: int) -> sparse.csr_array:
    """Counts of n-grams, texts × n-grams."""
    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        for gram in ngrams(words(text), n):
            rows.append(row)
            columns.append(vocabulary.setdefault(gram, len(vocabulary)))
    shape = len(texts), max(len(vocabulary), 1)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _naive_bayes(counts: sparse.csr_array, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log odds of the test texts; n-grams that the training texts lack carry none."""
    totals = np.stack([counts[train[labels[train] == side]].sum(axis=0) for side in (True, False)])
    known = totals.sum(axis=0) > 0
    evidence = np.zeros(known.size)
    if known.any():
        rates = np.log(totals[:, known] + 1) - np.log(totals.sum(axis=1, keepdims=True) + known.sum())
        evidence[known] = rates[0] - rates[1]
    return counts[test] @ evidence


def _ridge(
    values: np.ndarray, labels: np.ndarray, items: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Decisions about the test texts from columns that vary in the training texts."""
    mean, sd = values[train].mean(axis=0), values[train].std(axis=0)
    used = sd > NOISE * np.abs(values[train]).max(axis=0)
    if not used.any():
        return np.zeros(test.size)
    Z, Z_test = ((values[rows][:, used] - mean[used]) / sd[used] for rows in (train, test))
    return ridge_scores(Z, labels[train], items[train], Z_test)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([[len(text), len(text.split())] for text in texts], dtype=float)


def _punctuation(texts: Sequence[str]) -> np.ndarray:
    marks = sorted({c for text in texts for c in text if unicodedata.category(c)[0] in "PS"})
    return np.array(
        [
            [
                *(text.count(mark) for mark in marks),
                sum(map(str.isupper, text)),
                sum(map(str.isdigit, text)),
                len(text) - len(" ".join(text.split())),
            ]
            for text in texts
        ],
        dtype=float,
    )
