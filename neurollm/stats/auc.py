"""Area under the ROC curve: the chance that a positive case outranks a negative one, ties counting one half."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray | float:
    """AUROC of one score vector, or of every column of a matrix.

    Parameters
    ----------
    scores : ndarray, shape (n,) or (n, V)
    labels : ndarray of bool, shape (n,)
        True for the positive class.

    Returns
    -------
    float or ndarray of shape (V,)
        NaN when a class is absent or a score is not finite.

    Examples
    --------
    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    labels = np.asarray(labels, bool)
    scores = np.asarray(scores, float)
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    ranks = rankdata(scores, axis=0, nan_policy="propagate")
    if not (n_positive and n_negative):
        return float("nan") if scores.ndim == 1 else np.full(scores.shape[1], np.nan)
    area = (ranks[labels].sum(axis=0) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return float(area) if scores.ndim == 1 else area


def concordance(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted concordant pairs and all pairs, for many weightings of the same scores at once.

    Parameters
    ----------
    scores : ndarray, shape (n,)
    labels : ndarray of bool, shape (n,)
    weights : ndarray, shape (B, n)
        E.g. 0 for the cases that replicate b leaves out, else 1.

    Returns
    -------
    concordant, pairs : ndarray, shape (B,)
        Their ratio is the weighted AUROC.
    """
    order = np.argsort(scores, kind="stable")
    positive = np.where(labels[order], weights[:, order], 0.0)
    negative = np.where(labels[order], 0.0, weights[:, order])
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    positive, negative = np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    concordant = np.sum(positive * (below + negative / 2), axis=1)
    return concordant, positive.sum(axis=1) * negative.sum(axis=1)
