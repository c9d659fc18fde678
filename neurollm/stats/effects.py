"""Effect sizes with intervals, and what lies behind a difference of means.

Hedges' g is ``J(df) · t · unit`` with the exact ``J = Γ(df/2) / (√(df/2) Γ((df−1)/2))``; its interval
inverts the noncentral t distribution: the noncentralities under which the observed t is the
97.5th and the 2.5th percentile, times ``J · unit``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from neurollm.stats.arrays import column_blocks


def hedges_g(
    t: np.ndarray, df: float, unit: float, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hedges' g of a t statistic and its noncentral-t interval.

    Parameters
    ----------
    t : ndarray
    df : float
    unit : float
        ``1/√n`` for paired differences (g_z), ``√(1/n1 + 1/n2)`` for two groups.
    confidence : float, default=0.95

    Returns
    -------
    g, low, high : ndarray
        NaN where t is NaN; an infinite t gives an infinite g without an interval.
        The interval's coverage is solved to about 1e-5.
    """
    t = np.asarray(t, float)
    finite = np.isfinite(t)
    factor = small_sample_factor(df) * unit
    tail = (1 - confidence) / 2
    low, high = np.full(t.shape, np.nan), np.full(t.shape, np.nan)
    low[finite] = special.nctdtrinc(df, 1 - tail, t[finite]) * factor
    high[finite] = -special.nctdtrinc(df, 1 - tail, -t[finite]) * factor
    with np.errstate(invalid="ignore"):
        return t * factor, low, high


def small_sample_factor(df: float) -> float:
    """Hedges' J, which makes the standardised difference unbiased."""
    if df <= 1:
        return 0.0
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2) - np.log(df / 2) / 2))


def t_interval(
    effect: np.ndarray, se: np.ndarray, df: float, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Central t interval of an estimate."""
    half = special.stdtrit(df, (1 + confidence) / 2) * se
    return effect - half, effect + half


@dataclass(frozen=True)
class Sides:
    """Means and activation rates of the two sides of a contrast, for V features.

    ``mean = rate × magnitude`` on each side: `rate` is the share of item × level cells in which
    the feature is not zero and `magnitude` the mean over those cells (NaN if there is none).
    Several levels on one side enter with their weights, normalised to sum to one.
    """

    mean_positive: np.ndarray
    mean_negative: np.ndarray
    rate_positive: np.ndarray
    rate_negative: np.ndarray
    magnitude_positive: np.ndarray
    magnitude_negative: np.ndarray
    n_active_items: np.ndarray


def sides(cells: Any, level_codes: np.ndarray, item_codes: np.ndarray, weights: np.ndarray) -> Sides:
    """Describe both sides of a contrast.

    Parameters
    ----------
    cells : array of any supported kind, shape (n_cells, V)
        Item × level means.
    level_codes, item_codes : ndarray of int, shape (n_cells,)
    weights : ndarray
        Weight of each level code.

    Returns
    -------
    Sides
    """
    weights = np.asarray(weights, float)
    counts = np.bincount(level_codes, minlength=weights.size)
    shares = [np.clip(sign * weights, 0, None) for sign in (1, -1)]
    rows = np.stack([(share / share.sum() / counts)[level_codes] for share in shares])
    order = np.argsort(item_codes, kind="stable")
    starts = np.flatnonzero(np.diff(item_codes[order], prepend=-1))
    means, rates = np.empty((2, cells.shape[1])), np.empty((2, cells.shape[1]))
    n_active = np.empty(cells.shape[1], dtype=np.int64)
    with np.errstate(invalid="ignore"):
        for columns, block in column_blocks(cells):
            active = block != 0
            means[:, columns], rates[:, columns] = rows @ block, rows @ active
            n_active[columns] = np.logical_or.reduceat(active[order], starts, axis=0).sum(axis=0)
        magnitudes = np.where(rates > 0, means / np.where(rates > 0, rates, 1), np.nan)
    return Sides(*means, *rates, *magnitudes, n_active)
