"""The common-language effect with an interval: the chance that one side exceeds the other, ties counting half.

Two independent groups of items, n₁ positive and n₂ negative: the AUC A. The placement of a positive item is the
share of negative items below it (ties half), that of a negative item the share of positive items above it; A is the
mean of either. DeLong, DeLong and Clarke-Pearson (1988): ``var(A) = s₁²/n₁ + s₂²/n₂`` with the variances of the
placements. The interval is ``logit(A) ± t · se / (A(1 − A))``, t with the Satterthwaite degrees of freedom of
Brunner and Munzel (2000), whose statistic has the same variance.

It is never a single point:

* the placements of a group are all the same, say P, when e.g. none of its items is active; their share of the
  variance is then ``max(P, 1 − P)²/n²``, as if one of the n items might have lain at the far end;
* A within ``1/(2 min(n₁, n₂))`` of 0 or 1, where s² is far too small as a rule: the interval of Newcombe (2006,
  method 5), all A′ with ``|A − A′| ≤ z se(A′)``, se² that of two exponential distributions.

Paired items: ``P(d > 0) + P(d = 0)/2 = (1 + Δ)/2``, where Δ is the difference of the shares of positive and of
negative signs; its interval is Tango's (1998) score interval of paired proportions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse, special

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, by_columns, column_blocks, dense
from neurollm.stats.proportions import tango_interval

_BISECTIONS = 60
_CONSTANT = 1e-14  # variances of placements below this are rounding


def auc_interval(Y: Any, positive: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC of V features between two independent groups of items, with its interval.

    Parameters
    ----------
    Y : array of any supported kind, shape (n_items, V)
        One row per item. Of a sparse array only the nonzeros are ranked.
    positive : ndarray of bool, shape (n_items,)
        The items whose values count as higher when A is above one half.
    confidence : float, default=0.95

    Returns
    -------
    area, low, high : ndarray, shape (V,)
        NaN where a feature holds a NaN.

    Raises
    ------
    InvalidInput
        Another number of labels than rows, or fewer than two items in a group.

    Examples
    --------
    >>> Y = np.array([[3.0], [0.0], [5.0], [0.0], [1.0], [0.0]])
    >>> area, low, high = auc_interval(Y, np.array([True, True, True, False, False, False]))
    >>> [round(float(x[0]), 2) for x in (area, low, high)]
    [0.78, 0.02, 1.0]
    """
    positive = np.asarray(positive, bool)
    if positive.shape != (Y.shape[0],):
        raise InvalidInput(f"positive has shape {positive.shape}; it must hold one label per item, {Y.shape[0]}.")
    sizes = int(positive.sum()), int((~positive).sum())
    if min(sizes) < 2:
        raise InvalidInput(f"an AUC interval needs two items in each group, found {sizes[0]} and {sizes[1]}.")
    Y, moments = by_columns(Y), np.empty((3, Y.shape[1]))
    for start in range(0, Y.shape[1], BLOCK):
        block = Y[:, start : start + BLOCK]
        entries = sparse.coo_array(block if sparse.issparse(block) else dense(block))
        moments[:, start : start + BLOCK] = _placement_moments(entries, positive)
    area, variances = moments[0], moments[1:]
    low, high = _logit_interval(area, variances, sizes, confidence)
    extreme = np.minimum(area, 1 - area) <= 1 / (2 * min(sizes))
    z = special.ndtri((1 + confidence) / 2)
    low[extreme] = 1 - _newcombe_limit(1 - area[extreme], sizes, z)
    high[extreme] = _newcombe_limit(area[extreme], sizes, z)
    return area, low, high


def paired_auc(D: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(d > 0) + P(d = 0)/2 over paired items, with its score interval.

    Parameters
    ----------
    D : array of any supported kind, shape (n_items, V)
        Item differences.
    confidence : float, default=0.95

    Returns
    -------
    area, low, high : ndarray, shape (V,)
        NaN where a feature holds a NaN.

    Raises
    ------
    InvalidInput
        No item.

    Examples
    --------
    >>> area, low, high = paired_auc(np.array([[2.0], [1.0], [0.0], [-1.0], [3.0], [0.5]]))
    >>> [round(float(x[0]), 2) for x in (area, low, high)]
    [0.75, 0.39, 0.93]
    """
    n = D.shape[0]
    if not n:
        raise InvalidInput("a paired AUC needs item differences, found none.")
    above, below = np.empty(D.shape[1]), np.empty(D.shape[1])
    for columns, block in column_blocks(D):
        missing = np.where(np.isnan(block).any(axis=0), np.nan, 0)
        above[columns], below[columns] = (block > 0).sum(axis=0) + missing, (block < 0).sum(axis=0) + missing
    low, high = tango_interval(above, below, n, confidence)
    return (1 + (above - below) / n) / 2, (1 + low) / 2, (1 + high) / 2


def _placement_moments(entries: sparse.coo_array, positive: np.ndarray) -> np.ndarray:
    """AUC and the squared standard errors of the mean placement of either group, for every column."""
    n_columns, sizes = entries.shape[1], np.array([[(~positive).sum()], [positive.sum()]], float)
    groups = np.stack([~positive, positive])[:, entries.row].astype(float)
    # The zeros of a column tie: together they are one entry with a count in either group.
    zeros = sizes - [np.bincount(entries.col, group, n_columns) for group in groups]
    column = np.concatenate([entries.col, np.arange(n_columns)])
    value = np.concatenate([entries.data.astype(float), np.zeros(n_columns)])
    order = np.lexsort((value, column))
    column, value = column[order], value[order]
    starts = np.flatnonzero((np.diff(column, prepend=-1) != 0) | (np.diff(value, prepend=np.nan) != 0))
    counts = np.add.reduceat(np.hstack([groups, zeros])[:, order], starts, axis=1)  # of each set of ties
    tied_in = column[starts]
    lower = np.cumsum(counts, axis=1) - counts / 2 - sizes * tied_in  # items of either group below, ties half
    placements = np.stack([sizes[1] - lower[1], lower[0]]) / sizes[::-1]
    area = np.bincount(tied_in, counts[1] * placements[1], n_columns) / sizes[1]
    squares = counts * (placements - area[tied_in]) ** 2
    variances = np.stack([np.bincount(tied_in, row, n_columns) for row in squares]) / (sizes - 1)
    far = np.maximum(area, 1 - area) ** 2 / sizes
    moments = np.vstack([area, np.where(variances < _CONSTANT, far, variances) / sizes])
    moments[:, column[np.isnan(value)]] = np.nan
    return moments


def _logit_interval(
    area: np.ndarray, variances: np.ndarray, sizes: tuple[int, int], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    total = variances.sum(axis=0)
    df = total**2 / (variances[0] ** 2 / (sizes[1] - 1) + variances[1] ** 2 / (sizes[0] - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        half = special.stdtrit(df, (1 + confidence) / 2) * np.sqrt(total) / (area * (1 - area))
        return special.expit(special.logit(area) - half), special.expit(special.logit(area) + half)


def _newcombe_limit(area: np.ndarray, sizes: tuple[int, int], z: float) -> np.ndarray:
    """Upper limit: the largest A′ within z standard errors, evaluated at A′, of A."""
    n = sum(sizes) / 2
    low, high = area, np.ones_like(area)
    for _ in range(_BISECTIONS):
        a = (low + high) / 2
        variance = a * (1 - a) * (1 + (n - 1) * ((1 - a) / (2 - a) + a / (1 + a))) / (sizes[0] * sizes[1])
        inside = a - area <= z * np.sqrt(variance)
        low, high = np.where(inside, a, low), np.where(inside, high, a)
    return high
