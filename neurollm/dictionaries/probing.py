"""How few features tell two kinds of texts apart.

For every fold of items: the k features with the largest difference of means between the two
levels are chosen *in the training part*, scaled by their training deviations and given to a
logistic regression, which then scores the test part. Choosing on all trials and testing on some
of them would find signal in noise. AUROC compares trials of the same fold only; balanced accuracy
and F1 (of the level that comes second in sorted order) are over all out-of-fold predictions.

The whole procedure, with its choice of folds and of features, is repeated with shuffled labels:
within items that have both levels, and between items that have one. Folds are stratified by the
labels of the run, so that observed and shuffled labels are treated alike.

After Gurnee et al. (2023, https://arxiv.org/abs/2305.01610) and SAEBench (Karvonen et al. 2025,
https://arxiv.org/abs/2503.09532), whose rule for splitting is `probe_splits`: a concept is
spread over so many features as raise F1 by more than .03 each, up to 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from neurollm.dictionaries.base import Dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.stats.auc import concordance
from neurollm.stats.folds import item_folds

if TYPE_CHECKING:
    import pandas as pd

GAIN, MOST_SPLITS = 0.03, 10
MOST_DRAWS = 20  # of one shuffle
ROUNDING = 1e-12  # by which equal areas may differ


@dataclass(frozen=True, eq=False)
class SparseProbing:
    """Out-of-fold scores of probes on few features.

    Attributes
    ----------
    table : DataFrame
        One row per representation and k: ``representation``, ``n_features``, ``k``, ``auroc``,
        ``balanced_accuracy``, ``f1``, and under shuffled labels ``shuffled_auroc``, ``shuffled_sd``
        (means and deviations over shuffles) and ``p`` = (b + 1) / (n_shuffles + 1), b = number of
        shuffles with at least this AUROC; NaN without shuffles. With few items p cannot be small: labels that
        separate perfectly do so with their levels exchanged, too, in 2 of all labellings of the items.
    features : dict
        ``features[representation][k]``: how many folds chose each feature.
    positive : str
        The level scored high, the second in sorted order; numbers are sorted as numbers.
    n_trials, n_groups, n_folds : int
    n_shuffles : int
        Shuffles that were used: one without two trials of different levels in any fold has no AUROC
        and is drawn again, at most 20 times.
    """

    table: pd.DataFrame
    features: dict[str, dict[int, dict[int, int]]]
    positive: str
    n_trials: int
    n_groups: int
    n_folds: int
    n_shuffles: int

    def to_frame(self) -> pd.DataFrame:
        """One row per representation and k."""
        return self.table.copy()


def sparse_probing(
    representations: Mapping[str, Any],
    labels: Any,
    groups: Any,
    *,
    x: Any = None,
    k: int | Sequence[int] = (1, 2, 5),
    cv: int = 5,
    n_shuffles: int = 20,
    random_state: int = 0,
    verbose: int = 0,
) -> SparseProbing:
    """Probe two levels with the k features of the largest mean difference, chosen inside the folds.

    Parameters
    ----------
    representations : mapping
        Name to features of each trial, ndarray or scipy.sparse (n_trials, n_features), or to a
        Dictionary, which then encodes `x`. Give controls (`RandomDirections`, `RawUnits`) beside.
    labels : sequence
        Level of each trial, none missing; exactly two different ones.
    groups : sequence
        Item of each trial; all trials of an item are on the same side of every split.
    x : Tensor or ndarray, shape (n_trials, d_in), optional
        One activation vector per trial, for dictionaries.
    k : int or sequence of int, default=(1, 2, 5)
    cv : int, default=5
        Folds; fewer if a level has fewer items.
    n_shuffles : int, default=20
    random_state : int, default=0
    verbose : int, default=0

    Returns
    -------
    SparseProbing

    Raises
    ------
    InvalidInput
        If there are not two levels with two items each, a label is missing, or k is not possible.
    DataMismatch
        If the numbers of trials differ.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.random((80, 30))
    >>> features[::2, 7] += 2
    >>> found = sparse_probing({"made up": features}, ["a", "b"] * 40, np.arange(80), k=[1], n_shuffles=9)
    >>> found.features["made up"][1], float(found.table["auroc"][0]), float(found.table["p"][0])
    ({7: 5}, 1.0, 0.1)
    """
    import pandas as pd

    if n_shuffles < 0:
        raise InvalidInput(f"sparse_probing: n_shuffles must be 0 or more, found {n_shuffles}")
    trials = _Trials.of(labels, groups, cv, random_state)
    matrices = {name: _matrix(name, value, x, trials.n) for name, value in representations.items()}
    k = _checked_k(k, matrices)
    drawn = (trials.shuffled(stream(random_state, "probing", draw)) for draw in range(n_shuffles))
    shuffled = [other for other in drawn if other is not None]
    rows, features = [], {}
    with Progress("probing", len(matrices) * (1 + len(shuffled)), "runs", verbose) as progress:
        for name, matrix in matrices.items():
            observed, features[name] = _probe(matrix, trials, k)
            progress.advance(1)
            null = []
            for other in shuffled:
                null.append([score["auroc"] for score in _probe(matrix, other, k)[0]])
                progress.advance(1)
            null = np.array(null).reshape(len(shuffled), len(k))
            for place, score in enumerate(observed):
                rows.append({"representation": name, "n_features": matrix.shape[1], "k": k[place], **score})
                rows[-1] |= _against(score["auroc"], null[:, place])
    return SparseProbing(
        pd.DataFrame(rows),
        features,
        trials.positive,
        trials.n,
        trials.n_groups,
        int(trials.folds.max()) + 1,
        len(shuffled),
    )


def probe_splits(
    features: Any,
    labels: Any,
    groups: Any,
    *,
    x: Any = None,
    gain: float = GAIN,
    most: int = MOST_SPLITS,
    cv: int = 5,
    random_state: int = 0,
) -> tuple[int, pd.DataFrame]:
    """Over how many features a concept is spread: the k up to which each further one raises F1 by more than `gain`.

    Parameters
    ----------
    features : ndarray, scipy.sparse or Dictionary
    labels, groups, x, cv, random_state
        See `sparse_probing`; the concept is the level that comes second in sorted order.
    gain : float, default=0.03
    most : int, default=10

    Returns
    -------
    n_features : int
        1 = one feature is as good as two.
    table : DataFrame
        Of `sparse_probing`, for every k.
    """
    found = sparse_probing(
        {"features": features},
        labels,
        groups,
        x=x,
        k=range(1, most + 1),
        cv=cv,
        n_shuffles=0,
        random_state=random_state,
    )
    small = np.flatnonzero(np.diff(found.table["f1"]) <= gain)
    return (int(small[0]) + 1 if len(small) else most), found.table


@dataclass(frozen=True, eq=False)
class _Trials:
    """Labels of the trials, their items, and folds of items that are stratified by these labels."""

    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    positive: str

    @classmethod
    def of(cls, labels: Any, groups: Any, cv: int, random_state: int) -> _Trials:
        labels, groups = _complete(labels, "labels"), _complete(groups, "groups").astype(str)
        if labels.shape != groups.shape or labels.ndim != 1:
            raise DataMismatch(f"sparse_probing: labels have shape {labels.shape} and groups {groups.shape}")
        values = labels.astype(float if all(isinstance(value, Real) for value in labels) else str)
        levels = np.unique(values)
        if len(levels) != 2:
            raise InvalidInput(f"sparse_probing: exactly two levels can be probed, found {len(levels)}")
        positive = values == levels[1]
        codes = np.unique(groups, return_inverse=True)[1]
        n_items = min(len(np.unique(codes[positive])), len(np.unique(codes[~positive])))
        if n_items < 2 or cv < 2:
            raise InvalidInput(
                f"sparse_probing: each level needs at least 2 items and cv must be at least 2; found {n_items} and {cv}"
            )
        folds = item_folds(positive, codes, min(cv, n_items), random_state)
        return cls(positive, codes, folds, str(labels[positive][0]))

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    def shuffled(self, rng: np.random.Generator) -> _Trials | None:
        """Shuffled labels with folds of their own; None if no draw has two levels in any fold."""
        n_folds = int(self.folds.max()) + 1
        for _ in range(MOST_DRAWS):
            labels = self.shuffled_labels(rng)
            folds = item_folds(labels, self.groups, n_folds, int(rng.integers(2**32)))
            positives = np.bincount(folds, weights=labels)
            if (positives * (np.bincount(folds) - positives)).any():
                return _Trials(labels, self.groups, folds, self.positive)
        return None

    def shuffled_labels(self, rng: np.random.Generator) -> np.ndarray:
        """Labels moved within items that have both levels, and between items that have one."""
        sizes = np.bincount(self.groups)
        share = np.bincount(self.groups, weights=self.labels) / sizes
        constant = np.flatnonzero((share == 0) | (share == 1))
        moved = share.copy()
        moved[constant] = rng.permutation(share[constant])
        labels = moved[self.groups] == 1
        for group in np.flatnonzero((share > 0) & (share < 1)):
            rows = np.flatnonzero(self.groups == group)
            labels[rows] = rng.permutation(self.labels[rows])
        return labels


def _complete(values: Any, what: str) -> np.ndarray:
    """The values as objects, so that a missing one is not taken for a text."""
    import pandas as pd

    values = np.asarray(values, dtype=object)
    missing = np.flatnonzero(pd.isna(values))
    if len(missing):
        raise InvalidInput(
            f"sparse_probing: {what} are missing (NaN or None) at {len(missing)} trials, such as "
            f"trial {missing[0]}; leave these trials out"
        )
    return values


def _matrix(name: str, value: Any, x: Any, n: int) -> Any:
    """Features of the trials as float64, dense or CSR."""
    if isinstance(value, Dictionary):
        if x is None:
            raise InvalidInput(
                f"sparse_probing: {name!r} is a dictionary; x, the activations of the trials, is missing"
            )
        value = value.encode_sparse(x)
    matrix = sp.csr_matrix(value, dtype=np.float64) if sp.issparse(value) else np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != n:
        raise DataMismatch(f"sparse_probing: {name!r} has shape {matrix.shape}, expected {n} trials as rows")
    if not np.isfinite(matrix.data if sp.issparse(matrix) else matrix).all():
        raise InvalidInput(f"sparse_probing: {name!r} contains NaN or infinite values")
    return matrix


def _checked_k(k: int | Sequence[int], matrices: dict[str, Any]) -> list[int]:
    k = [int(value) for value in np.atleast_1d(k)]
    fewest = min((matrix.shape[1] for matrix in matrices.values()), default=0)
    if not k or min(k) < 1 or max(k) > fewest:
        raise InvalidInput(f"sparse_probing: k must be 1 to {fewest:,} (the fewest features given), found {k}")
    return k


def _probe(matrix: Any, trials: _Trials, k: list[int]) -> tuple[list[dict], dict]:
    """Scores for every k, and how many folds chose each feature."""
    scores = np.zeros((len(k), trials.n))
    chosen: dict[int, dict[int, int]] = {size: {} for size in k}
    for fold in np.unique(trials.folds):
        test = trials.folds == fold
        train = trials.labels[~test]
        if train.all() or not train.any():
            continue  # such a fold scores 0: no level is preferred
        ranking = _ranking(matrix[~test], train, max(k))
        columns = matrix[:, ranking]
        columns = columns.toarray() if sp.issparse(columns) else columns
        for place, size in enumerate(k):
            scores[place, test] = _fit_and_score(columns[:, :size], test, train)
            for feature in ranking[:size].tolist():
                chosen[size][feature] = chosen[size].get(feature, 0) + 1
    return [_scored(row, trials.labels, trials.folds) for row in scores], chosen


def _ranking(matrix: Any, labels: np.ndarray, n: int) -> np.ndarray:
    """The `n` features with the largest absolute difference of means, largest first; of equal ones the first."""
    weights = np.where(labels, 1 / labels.sum(), -1 / (~labels).sum())
    difference = np.abs(np.asarray(matrix.T @ weights).ravel())
    return np.argsort(-difference, kind="stable")[:n]


def _fit_and_score(columns: np.ndarray, test: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    mean, sd = columns[~test].mean(0), columns[~test].std(0)
    scaled = (columns - mean) / np.where(sd > 0, sd, 1)
    model = LogisticRegression(class_weight="balanced", solver="newton-cholesky")
    return model.fit(scaled[~test], train_labels).decision_function(scaled[test])


def _scored(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    concordant, pairs = 0.0, 0.0
    for fold in np.unique(folds):
        here = folds == fold
        more, all_pairs = concordance(scores[here], labels[here], np.ones((1, here.sum())))
        concordant, pairs = concordant + float(more[0]), pairs + float(all_pairs[0])
    predicted = scores > 0
    hits = float((predicted & labels).sum())
    return {
        "auroc": concordant / pairs if pairs else float("nan"),
        "balanced_accuracy": float((predicted[labels].mean() + (~predicted[~labels]).mean()) / 2),
        "f1": 2 * hits / float(predicted.sum() + labels.sum()),
    }


def _against(auroc: float, null: np.ndarray) -> dict[str, float]:
    """The observed area beside those of shuffled labels."""
    if not len(null) or np.isnan(auroc):
        return dict.fromkeys(("shuffled_auroc", "shuffled_sd", "p"), float("nan"))
    spread = float(null.std(ddof=1)) if len(null) > 1 else float("nan")
    p = float((np.sum(null >= auroc - ROUNDING) + 1) / (len(null) + 1))
    return {"shuffled_auroc": float(null.mean()), "shuffled_sd": spread, "p": p}
