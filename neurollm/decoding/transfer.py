"""A fitted decoder on a corpus: the rows at both ends of its scores, and whether they are what they are called.

A decoder of two classes ranks rows of text from one class to the other: the highest scores belong to the second of its
``classes_``, the lowest to the first. Each end is listed under the name of its own class. Against independent labels
of the rows (of a blinded judge, of the source), for each class:

* precision at n: the share of the n rows at its end that have its label, beside the base rate in all labelled
  rows, and beside the share that has the label of the *other* class. Scoring the rows of one end against the name of
  the other class gives about 0 for a perfect decoder: that is a mistake about the direction, not a decoder that failed.
* AUROC: the chance that a row of the class lies nearer to its end than a row with any other label.

Whether the direction is right is the AUROC of rows of the second class against rows of the first: above one half with
its whole interval, the ends are named rightly; below, they are the wrong way round.

Ties are broken at random, not by the order of the corpus. Intervals are about documents, with all their rows. The
variance of a precision is that of a bootstrap (the n best rows of each resample are taken anew); that of an AUROC is
what a bootstrap would give to first order, d/(d − 1) Σ u², where u sums over the rows of a document how far their
placements are from the AUROC (Obuchowski 1997, Biometrics 53:567). The interval is Wilson's for as many observations as
this variance is worth, at most the number of documents, so that it is never a single point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.stats.proportions import wilson_interval
from neurollm.validation import shortened

if TYPE_CHECKING:
    import pandas as pd

_DEPTH = 50  # × n rows from the end are enough for the n best of every resample
_COLUMNS = (
    *("class", "end", "n", "n_documents", "n_tied", "precision", "precision_low", "precision_high"),
    *("precision_of_other", "base_rate", "auroc", "auroc_low", "auroc_high"),
)


@dataclass(frozen=True, eq=False)
class CorpusTransfer:
    """What a decoder finds in a corpus, in both directions.

    Attributes
    ----------
    classes : tuple of str
        The decoder's: low scores, high scores.
    scores : ndarray, shape (n_rows,)
    top : dict of str to DataFrame
        For each class the rows at its end, best first: columns rank, row, score, document, label (empty if unknown).
    table : DataFrame
        One row per class; see `to_frame`.
    direction, direction_low, direction_high : float
        AUROC of the second class's rows against the first's, with its interval; NaN without labels of both.
    n_labelled : int
        Rows with a label, from which precision, base rates and AUROC are computed.
    """

    classes: tuple[str, str]
    scores: np.ndarray
    top: Mapping[str, pd.DataFrame]
    table: pd.DataFrame
    direction: float
    direction_low: float
    direction_high: float
    n_labelled: int

    def to_frame(self) -> pd.DataFrame:
        """One row per class.

        Columns: class, end (``lowest scores`` or ``highest scores``), n (labelled rows counted at this end),
        n_documents (among them), n_tied (labelled rows with the score of the last of them), precision with its
        interval, precision_of_other (share with the other class's label), base_rate, auroc (against all other labels)
        with its interval.
        """
        return self.table.copy()

    def verdict(self) -> str:
        """One sentence that says which class each end of the list belongs to, and what the labels say."""
        low, high = (f"'{shortened(name)}'" for name in self.classes)
        start = f"The highest scores are the {high} end of the list and the lowest the {low} end"
        if not self.n_labelled:
            return f"{start}; without labels of the rows nothing is said about what they are."
        parts = [
            f"of the {row['n']} rows at the '{shortened(row['class'])}' end {row['precision']:.0%} have that label "
            f"(base rate {row['base_rate']:.0%}) and {row['precision_of_other']:.0%} that of the other class"
            for row in self.table.to_dict("records")[::-1]
        ]
        area = f"AUROC {self.direction:.2f}, {self.direction_low:.2f} to {self.direction_high:.2f}"
        if np.isnan(self.direction):
            told = "the labels do not hold both classes, so the direction cannot be checked"
        elif self.direction_low > 0.5:
            told = f"the labels agree with this direction ({area})"
        elif self.direction_high < 0.5:
            told = f"the labels say the opposite ({area}): the decoder or the labels are the wrong way round"
        else:
            told = f"the labels do not decide the direction ({area})"
        return f"{start}; {told}; {'; '.join(parts)}."


def corpus_transfer(
    decoder: Any,
    X: Any,
    labels: Any = None,
    documents: Any = None,
    *,
    n: int = 20,
    n_boot: int = 1000,
    random_state: int = 0,
) -> CorpusTransfer:
    """Score the rows of a corpus with a fitted decoder and list both ends, each under the name of its class.

    Parameters
    ----------
    decoder : fitted estimator
        With ``decision_function`` and two ``classes_``; trained on something else than this corpus.
    X : array or scipy.sparse, shape (n_rows, V)
        One row per text, as the decoder was trained on.
    labels : sequence, shape (n_rows,), optional
        Independent label of each row: one of the decoder's classes or anything else (such as ``neither``). None or NaN:
        not labelled, left out of everything but the lists. Default: lists only.
    documents : sequence, shape (n_rows,), optional
        What is resampled; default: every row is a document of its own.
    n : int, default=20
        Rows at each end.
    n_boot : int, default=1000
    random_state : int, default=0

    Returns
    -------
    CorpusTransfer

    Raises
    ------
    DataMismatch
        The lengths differ, or the decoder returns something else than one finite number per row.
    InvalidInput
        The decoder is not fitted or has not two classes, no label is one of its classes, `n` or `n_boot` is too small.

    Examples
    --------
    >>> from sklearn.linear_model import RidgeClassifier
    >>> decoder = RidgeClassifier().fit([[0.0], [1.0]], ["failure", "success"])
    >>> found = corpus_transfer(decoder, [[0.1], [3.0], [-2.0]], ["neither", "success", "failure"], n=1)
    >>> found.top["success"]["row"].tolist(), found.top["failure"]["row"].tolist(), found.direction
    ([1], [2], 1.0)
    """
    import pandas as pd

    if n < 1 or n_boot < 100:
        raise InvalidInput(f"corpus transfer: n is {n} and n_boot {n_boot}; expected at least 1 and 100.")
    classes, scores = _scored(decoder, X)
    size = scores.size
    documents = np.arange(size) if documents is None else np.asarray(documents)
    labels = np.full(size, None, object) if labels is None else np.asarray(labels, dtype=object)
    for name, values in (("labels", labels), ("documents", documents)):
        if values.shape != (size,):
            raise DataMismatch(f"corpus transfer: {name} of shape {values.shape} for {size} rows; one each is needed.")
    known = ~pd.isna(labels)
    labels = np.array([str(label) if given else "" for label, given in zip(labels, known, strict=True)], dtype=object)
    if known.any() and not np.isin(labels[known], classes).any():
        raise InvalidInput(
            f"corpus transfer: no row is labelled '{shortened(classes[0])}' or '{shortened(classes[1])}', which are "
            f"the decoder's classes; found labels such as '{shortened(labels[known][0])}'."
        )
    noise = stream(random_state, "corpus_ties").random(size)
    order = np.lexsort((noise, scores))
    ends = {classes[0]: order, classes[1]: order[::-1]}
    top = {name: _listed(places[:n], scores, documents, labels) for name, places in ends.items()}
    found = _Labelled(scores[known], noise[known], labels[known], documents[known], random_state, n_boot)
    table = pd.DataFrame([found.end(classes, side, n) for side in (0, 1)], columns=list(_COLUMNS))
    here = np.isin(found.labels, classes)
    direction = found.area(found.labels == classes[1], here)
    return CorpusTransfer(classes, scores, top, table, *direction, int(known.sum()))


def _scored(decoder: Any, X: Any) -> tuple[tuple[str, str], np.ndarray]:
    classes = getattr(decoder, "classes_", None)
    if classes is None or not hasattr(decoder, "decision_function"):
        raise InvalidInput(
            f"corpus transfer: {type(decoder).__name__} is not a fitted classifier with classes_ and decision_function."
        )
    if len(classes) != 2:
        raise InvalidInput(f"corpus transfer: the decoder has {len(classes)} classes; two ends need exactly two.")
    scores = np.asarray(decoder.decision_function(X), dtype=float)
    rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if scores.shape != (rows,) or not np.isfinite(scores).all():
        raise DataMismatch(
            f"corpus transfer: the decoder gave scores of shape {scores.shape}, {np.sum(~np.isfinite(scores))} of them "
            f"not finite; expected a finite number for each of {rows} rows."
        )
    return (str(classes[0]), str(classes[1])), scores


def _listed(places: np.ndarray, scores: np.ndarray, documents: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    ranks = np.arange(1, places.size + 1)
    columns = (ranks, places, scores[places], documents[places], labels[places])
    return pd.DataFrame(dict(zip(("rank", "row", "score", "document", "label"), columns, strict=True)))


class _Labelled:
    """The labelled rows and resamples of their documents."""

    def __init__(
        self,
        scores: np.ndarray,
        noise: np.ndarray,
        labels: np.ndarray,
        documents: np.ndarray,
        random_state: int,
        n_boot: int,
    ) -> None:
        self.scores, self.noise, self.labels = scores, noise, labels
        names, self.documents = np.unique(documents.astype(str), return_inverse=True)
        self.n_documents, self.random_state, self.n_boot = names.size, random_state, n_boot

    def end(self, classes: tuple[str, str], side: int, n: int) -> list[Any]:
        """The row of the table for one class."""
        own, end = classes[side], ("lowest scores", "highest scores")[side]
        if not self.labels.size:
            return [own, end, 0, 0, 0, *[np.nan] * 8]
        direction = 1 if side else -1
        order = np.lexsort((direction * self.noise, direction * self.scores))[::-1]
        best, hits = order[:n], self.labels == own
        n_documents = np.unique(self.documents[best]).size
        n_tied = int(np.sum(self.scores == self.scores[best[-1]]))
        other = float(np.mean(self.labels[best] == classes[1 - side]))
        observed, near = float(hits[best].mean()), order[: _DEPTH * n]
        precision = _wilson(observed, self._variance(near, hits[near], n), n_documents)
        area = self.area(hits, np.ones(hits.size, bool), direction)
        return [own, end, best.size, n_documents, n_tied, *precision, other, float(hits.mean()), *area]

    def area(self, hits: np.ndarray, here: np.ndarray, direction: int = 1) -> tuple[float, float, float]:
        """AUROC of `hits` against the others among the rows `here`, with its interval."""
        from scipy.stats import rankdata

        hits, scores, documents = hits[here], direction * self.scores[here], self.documents[here]
        units = [np.unique(documents[side]) for side in (hits, ~hits)]
        if not min(unit.size for unit in units):
            return (float("nan"),) * 3
        ranks, placements = rankdata(scores), np.empty(scores.size)
        for side in (hits, ~hits):
            placements[side] = (ranks[side] - rankdata(scores[side])) / np.sum(~side)  # share of the others below
        observed = float(placements[hits].mean())
        placements[~hits] = 1 - placements[~hits]
        parts = (placements - observed) / np.where(hits, hits.sum(), np.sum(~hits))
        used = np.unique(documents).size
        variance = used / max(used - 1, 1) * float(np.sum(np.bincount(documents, parts) ** 2))
        # No more independent comparisons than documents of the rarer side.
        return _wilson(observed, variance, min(units[0].size, units[1].size))

    def _variance(self, near: np.ndarray, hits: np.ndarray, n: int) -> float:
        """Of the share of hits among the n best rows, over resamples of documents; `near`: the best rows."""
        names, documents = np.unique(self.documents[near], return_inverse=True)
        # All documents without a row near the end are drawn as one.
        chances = np.append(np.full(names.size, 1 / self.n_documents), max(1 - names.size / self.n_documents, 0.0))
        drawn = stream(self.random_state, "corpus_documents").multinomial(self.n_documents, chances, self.n_boot)
        return float(np.nanvar(_precision(drawn[:, documents].astype(float), hits, n)))


def _wilson(observed: float, variance: float, most: int) -> tuple[float, float, float]:
    """A share, and its interval for as many observations as its variance is worth."""
    worth = observed * (1 - observed) / variance if variance > 0 else np.inf
    low, high = wilson_interval(np.array([observed]), min(worth, most) or most)
    return observed, float(low[0]), float(high[0])


def _precision(weights: np.ndarray, hits: np.ndarray, n: int) -> np.ndarray:
    """Share of hits among the first n rows of each resample; `weights`: how often each row occurs, best rows first."""
    before = np.cumsum(weights, axis=1) - weights
    taken = np.clip(n - before, 0, weights)
    total = taken.sum(axis=1)
    return np.divide(taken @ hits, total, out=np.full(len(weights), np.nan), where=total > 0)
