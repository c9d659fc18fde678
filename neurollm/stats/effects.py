"""Effect sizes with intervals, and what lies behind a difference of means.

Hedges' g is ``J(df) · t · unit`` with the exact ``J = Γ(df/2) / (√(df/2) Γ((df−1)/2))``; its interval
inverts the noncentral t distribution: the noncentralities under which the observed t is the
97.5th and the 2.5th percentile, times ``J · unit``. The inversion is this module's own:
``scipy.special.nctdtrinc`` does not return for large t with few degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from neurollm.stats.arrays import column_blocks

_MAX_STEPS = 60  # four to eight are usual
_PRECISION = 1e-9  # of the percentile, in standard deviations of a normal distribution


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
        NaN where t is NaN, and everywhere with ``df`` ≤ 1, where no unbiased g exists;
        an infinite t gives an infinite g without an interval.
        The interval's coverage is solved to about 1e-5, for any t in bounded time.
    """
    t = np.asarray(t, float)
    if df <= 1:
        return tuple(np.full((3, *t.shape), np.nan))
    factor = small_sample_factor(df) * unit
    low, high = noncentrality_interval(t, df, confidence)
    with np.errstate(invalid="ignore"):
        return t * factor, low * factor, high * factor


def noncentrality_interval(t: np.ndarray, df: float, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The noncentralities under which t is the upper and the lower percentile; NaN where t is not finite."""
    t, probability = np.asarray(t, float), (1 + confidence) / 2
    finite = np.isfinite(t)
    low, high = np.full(t.shape, np.nan), np.full(t.shape, np.nan)
    low[finite] = _noncentrality(t[finite], df, probability)
    high[finite] = -_noncentrality(-t[finite], df, probability)
    return low, high


def _noncentrality(t: np.ndarray, df: float, probability: float) -> np.ndarray:
    """The noncentralities under which t stands at percentile `probability`.

    As t = (Z + nc) / S with S = √(χ²/df), nc is a quantile of t·S − Z. For large t that is the quantile
    of t·S, corrected for the spread of Z to first order; nctdtr gives up there.
    """
    nc = _quantile_of_scale(t, df, 1 - probability)
    far = np.abs(t) > 100 + 20 * np.sqrt(df)
    q = nc[far] / t[far]
    nc[far] -= ((df - 1) / q - df * q) / (2 * t[far])
    nc[~far] = _invert(t[~far], df, probability)
    return nc


def _quantile_of_scale(t: np.ndarray, df: float, probability: float) -> np.ndarray:
    """Quantile of t·S, S = √(χ²/df), for either sign of t."""
    # chdtri takes the upper tail, which for a negative t is the lower tail of the product.
    return t * np.sqrt(special.chdtri(df, np.where(t < 0, probability, 1 - probability)) / df)


def _invert(t: np.ndarray, df: float, probability: float) -> np.ndarray:
    """Solve nctdtr(df, nc, t) = probability, by secants on the probit scale (nearly straight) inside a bracket."""
    goal, half = special.ndtri(probability), (1 - probability) / 2
    # Half of the tail for S and half for Z: the solution cannot lie outside.
    low = _quantile_of_scale(t, df, half) + special.ndtri(half)
    high = _quantile_of_scale(t, df, 1 - probability / 2) - special.ndtri(probability / 2)
    spread = np.sqrt(1 + t**2 / (2 * df))
    x, slope, last = np.clip(t - goal * spread, low, high), -1 / spread, None
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_MAX_STEPS):
            miss = special.ndtri(special.nctdtr(df, x, t)) - goal
            done = (np.abs(miss) < _PRECISION) | (high - low < 1e-12 * (1 + np.abs(x)))
            if done.all():
                break
            if last is not None:
                secant = (miss - last[1]) / (x - last[0])
                slope = np.where(np.isfinite(secant) & (secant < 0), secant, slope)
            low, high, last = np.where(miss > 0, x, low), np.where(miss <= 0, x, high), (x, miss)
            step = x - miss / slope
            step = np.where((step > low) & (step < high), step, (low + high) / 2)
            x = np.where(done, x, step)
    return x


def small_sample_factor(df: float) -> float:
    """Hedges' J, which makes the standardised difference unbiased; NaN with ``df`` ≤ 1."""
    if df <= 1:
        return float("nan")
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

    ``mean = rate × magnitude`` on each side: `rate` is the share of trials in which the feature is not
    zero, averaged over item × level cells like the mean, and `magnitude` is ``mean / rate``: the mean of the
    active trials where cells have equally many trials (NaN if there is none).
    Several levels on one side enter with their weights, normalised to sum to one.
    """

    mean_positive: np.ndarray
    mean_negative: np.ndarray
    rate_positive: np.ndarray
    rate_negative: np.ndarray
    magnitude_positive: np.ndarray
    magnitude_negative: np.ndarray
    n_active_items: np.ndarray


def sides(
    cells: Any, level_codes: np.ndarray, item_codes: np.ndarray, weights: np.ndarray, shares: Any = None
) -> Sides:
    """Describe both sides of a contrast.

    Parameters
    ----------
    cells : array of any supported kind, shape (n_cells, V)
        Item × level means.
    level_codes, item_codes : ndarray of int, shape (n_cells,)
    weights : ndarray
        Weight of each level code.
    shares : array like `cells`, optional
        Share of active trials in each cell; default: 1 where the cell is not zero.

    Returns
    -------
    Sides
    """
    weights = np.asarray(weights, float)
    counts = np.bincount(level_codes, minlength=weights.size)
    parts = [np.clip(sign * weights, 0, None) for sign in (1, -1)]
    rows = np.stack([(part / part.sum() / counts)[level_codes] for part in parts])
    order = np.argsort(item_codes, kind="stable")
    starts = np.flatnonzero(np.diff(item_codes[order], prepend=-1))
    means, rates = np.empty((2, cells.shape[1])), np.empty((2, cells.shape[1]))
    n_active = np.empty(cells.shape[1], dtype=np.int64)
    with np.errstate(invalid="ignore"):
        blocks = column_blocks(cells if shares is None else shares)
        for (columns, block), (_, share) in zip(column_blocks(cells), blocks, strict=True):
            active = share != 0
            means[:, columns], rates[:, columns] = rows @ block, rows @ (active if shares is None else share)
            n_active[columns] = np.logical_or.reduceat(active[order], starts, axis=0).sum(axis=0)
        magnitudes = np.where(rates > 0, means / np.where(rates > 0, rates, 1), np.nan)
    return Sides(*means, *rates, *magnitudes, n_active)
