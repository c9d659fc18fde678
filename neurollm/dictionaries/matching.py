"""One-to-one matching of two sets of features with the largest sum of similarities.

Up to 2,048 features on the smaller side the assignment problem is solved as it is. Above,
only the m most similar partners of each feature of the smaller side are considered, and
beside them one partner of its own with the similarity bᵢ of the best that was left out.
That problem is a relaxation: its optimum U is at least that of the whole one. Features that
took their own partner are then matched among themselves with what is left. The sum found, S,
therefore lies at most U − S below the optimum, and it *is* the optimum when no feature took
its own partner.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.sparse as sp

EXACT = 2048  # features of the smaller side up to which nothing is pruned
MOST_VALUES = 2**25  # of a matrix that is held as a whole
CANDIDATES = 64
BLOCK = 256  # rows of similarities held at a time

Side = TypeVar("Side", bound=Sized)
Block = Callable[[Side, np.ndarray, Side], np.ndarray]


@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs of features, as many as the smaller side has.

    Attributes
    ----------
    rows, columns : ndarray of int, shape (n_pairs,)
        Rows are in ascending order.
    similarity : ndarray of float64, shape (n_pairs,)
    gap : float
        The mean similarity of the best matching is at most so much larger; 0 = this is the best.
    largest_of_rows, largest_of_columns : ndarray of float64
        Largest similarity of each feature with any of the other side.
    """

    rows: np.ndarray
    columns: np.ndarray
    similarity: np.ndarray
    gap: float
    largest_of_rows: np.ndarray
    largest_of_columns: np.ndarray


def best_matching(a: Side, b: Side, block: Block) -> Matching:
    """Match the features of `a` with those of `b`.

    Parameters
    ----------
    a, b : anything with a length
    block : callable
        ``block(a, which, b)`` gives the similarities, between −1 and 1, of some features of one side
        with all of the other, shape (len(which), len(b)). It is also called with the sides exchanged.

    Returns
    -------
    Matching

    Examples
    --------
    >>> a, b = np.eye(3), np.eye(3)[[2, 0, 1]]
    >>> best_matching(a, b, lambda one, which, other: one[which] @ other.T).columns.tolist()
    [1, 2, 0]
    """
    if len(a) > len(b):
        found = best_matching(b, a, block)
        order = np.argsort(found.columns)
        return Matching(
            found.columns[order],
            found.rows[order],
            found.similarity[order],
            found.gap,
            found.largest_of_columns,
            found.largest_of_rows,
        )
    if len(a) <= EXACT and len(a) * len(b) <= MOST_VALUES:
        similarity = block(a, np.arange(len(a)), b)
        rows, columns = _assign(similarity)
        values = similarity[rows, columns].astype(float)
        return Matching(rows, columns, values, 0.0, similarity.max(1).astype(float), similarity.max(0).astype(float))
    return _pruned(a, b, block)


def _pruned(a: Side, b: Side, block: Block) -> Matching:
    """The best matching among candidates, completed, with the largest possible error."""
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    width = min(CANDIDATES, len(b) - 1)
    candidates = np.empty((len(a), width + 1), dtype=np.int64)
    values = np.empty((len(a), width + 1))
    largest = np.full(len(b), -1.0)
    for start in range(0, len(a), BLOCK):
        which = np.arange(start, min(start + BLOCK, len(a)))
        similarity = block(a, which, b)
        top = np.argpartition(-similarity, width, axis=1)[:, : width + 1]  # the last is the best that is left out
        candidates[which], values[which] = top, np.take_along_axis(similarity, top, axis=1)
        largest = np.maximum(largest, similarity.max(0))
    own = np.arange(len(a))
    candidates[:, -1] = len(b) + own  # each feature's own partner
    cost = sp.csr_matrix(
        (2 - values.ravel(), candidates.ravel(), np.arange(len(a) + 1) * (width + 1)), shape=(len(a), len(b) + len(a))
    )
    order, chosen = min_weight_full_bipartite_matching(cost)
    partner = np.empty(len(a), dtype=np.int64)
    partner[order] = chosen
    similarity = 2 - np.asarray(cost[own, partner]).ravel()
    upper = similarity.sum()
    left = np.flatnonzero(partner >= len(b))
    if len(left):
        free = np.setdiff1d(np.arange(len(b)), partner)
        pieces = np.split(left, range(BLOCK, len(left), BLOCK))
        rest = np.concatenate([block(a, piece, b)[:, free] for piece in pieces])
        rows, columns = _assign(rest)
        partner[left[rows]], similarity[left[rows]] = free[columns], rest[rows, columns]
    gap = max(0.0, float(upper - similarity.sum())) / len(a) if len(left) else 0.0
    return Matching(own, partner, similarity, gap, values.max(1), largest)


def _assign(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(similarity, maximize=True)
