"""How well words alone tell the levels of a factor apart.

A multinomial naive Bayes classifier is trained on the n-grams of all items but one and
reads the stimuli of the item left out. Counts are additive, so leaving an item out is a
subtraction and the whole procedure is exact, without refitting; that also makes it cheap
enough to repeat under permuted levels. N-grams that do not occur in the training items
carry no evidence, levels have equal priors, and a tie counts as chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from neurollm.random import stream

N_PERM = 199
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def ngrams(tokens: Sequence[str], n: int) -> list[str]:
    """All runs of n words.

    Examples
    --------
    >>> ngrams(words("She won the race."), 2)
    ['she won', 'won the', 'the race']
    """
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


class LeaveOneItemOut:
    """Naive Bayes decoding of any labelling of the same texts, each item read by the others.

    Parameters
    ----------
    texts : sequence of str
    items : sequence
        One item per text.
    n : int
        Length of the n-grams.
    """

    def __init__(self, texts: Sequence[str], items: Sequence, n: int) -> None:
        vocabulary: dict[str, int] = {}
        rows, columns = [], []
        for row, text in enumerate(texts):
            for gram in ngrams(words(text), n):
                rows.append(row)
                columns.append(vocabulary.setdefault(gram, len(vocabulary)))
        self.row = np.array(rows, dtype=np.int64)
        self.column = np.array(columns, dtype=np.int64)
        self.n_texts = len(texts)
        self.n_grams = max(len(vocabulary), 1)
        self.item = np.unique(np.asarray(items, dtype=str), return_inverse=True)[1]
        pair = self.item[self.row] * self.n_grams + self.column
        self.n_pairs, self.pair = _relabel(pair)

    def balanced_accuracy(self, labels: np.ndarray) -> float:
        """Mean over levels of the share of texts read correctly; labels are 0, 1, ..."""
        n_levels = int(labels.max()) + 1
        label = labels[self.row]
        n_items = int(self.item.max()) + 1

        def count(groups: np.ndarray, size: int) -> np.ndarray:
            return np.bincount(groups * n_levels + label, minlength=size * n_levels).reshape(size, n_levels)

        kept = count(self.column, self.n_grams)[self.column] - count(self.pair, self.n_pairs)[self.pair]
        totals = np.bincount(label, minlength=n_levels) - count(self.item[self.row], n_items)
        evidence = np.log(kept + 1.0) - np.log(totals + float(self.n_grams))[self.item[self.row]]
        evidence[kept.sum(axis=1) == 0] = 0.0
        score = np.zeros((self.n_texts, n_levels))
        np.add.at(score, self.row, evidence)
        best = score >= score.max(axis=1, keepdims=True) - 1e-9
        credit = best[np.arange(self.n_texts), labels] / best.sum(axis=1)
        return float(np.mean([credit[labels == level].mean() for level in range(n_levels)]))

    def test(self, labels: np.ndarray) -> tuple[float, float]:
        """Balanced accuracy and its one-sided p value, (b + 1) / (B + 1) over permuted labels.

        Labels are shuffled within items if the factor varies within items, else over items.
        """
        observed = self.balanced_accuracy(labels)
        reached = sum(
            self.balanced_accuracy(self._shuffled(labels, index)) >= observed - 1e-12 for index in range(N_PERM)
        )
        return observed, (reached + 1) / (N_PERM + 1)

    def _shuffled(self, labels: np.ndarray, index: int) -> np.ndarray:
        generator = stream(0, "lexical_audit", index)
        by_item = np.full(self.item.max() + 1, -1)
        by_item[self.item] = labels
        if (by_item[self.item] == labels).all():
            return generator.permutation(by_item)[self.item]
        # Sorting by item, ties in random order, lines shuffled labels up with the items they came from.
        source = np.lexsort((generator.random(self.n_texts), self.item))
        shuffled = np.empty_like(labels)
        shuffled[np.argsort(self.item, kind="stable")] = labels[source]
        return shuffled


def _relabel(values: np.ndarray) -> tuple[int, np.ndarray]:
    unique, inverse = np.unique(values, return_inverse=True)
    return max(len(unique), 1), inverse


def telltale_ngrams(texts: Sequence[str], labels: np.ndarray, share: float, n_max: int = 3) -> list[tuple[str, int]]:
    """N-grams in more than `share` of the texts of one level and in none of another level.

    Returns
    -------
    list of (str, int)
        The n-gram and the level that has it, commonest first.
    """
    n_levels = int(labels.max()) + 1
    counts: dict[str, np.ndarray] = {}
    for text, label in zip(texts, labels, strict=True):
        tokens = words(text)
        for gram in {gram for n in range(1, n_max + 1) for gram in ngrams(tokens, n)}:
            counts.setdefault(gram, np.zeros(n_levels))[label] += 1
    sizes = np.bincount(labels, minlength=n_levels)
    found = []
    for gram, count in counts.items():
        rate = count / sizes
        if rate.max() > share and rate.min() == 0:
            found.append((float(rate.max()), gram, int(rate.argmax())))
    found.sort(key=lambda entry: (-entry[0], len(entry[1]), entry[1]))
    return [(gram, level) for _, gram, level in found]
