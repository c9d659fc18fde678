"""Difference of activation rates between two sides, with an interval; items are the unit.

The rate of an item is the share of its trials in which the feature is active, so a number from 0 to 1, and 0 or 1
with one trial. One rule covers both. Each side has Wilson limits l, u of its mean rate p over an effective number
of items, and the limits of the difference are Newcombe's (1998) hybrid score,

    low = d − √((p₁ − l₁)² − 2φ(p₁ − l₁)(u₂ − p₂) + (u₂ − p₂)²),
    high = d + √((u₁ − p₁)² − 2φ(u₁ − p₁)(p₂ − l₂) + (p₂ − l₂)²),

with φ = 0 for independent groups and the correlation over items for paired ones (for any limits and correlation:
Zou and Donner 2008).

* Rates of 0 and 1 only: the effective number is n, φ has Newcombe's continuity correction (covariance less
  1/(2n), not below 0, if it is positive). These are his methods for independent and for paired proportions.
* Fractions: n · p(1 − p)/s² with the variance s² over items, times (z/t)² with n − 1 degrees of freedom because
  s² is estimated (Korn and Graubard 1998). A t interval would leave [−1, 1] and cover too little where rates are
  near 0, as most are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import column_blocks
from neurollm.stats.proportions import wilson_interval

_CONSTANT = 1e-12  # variances of rates below this are rounding


def rate_difference(
    rates: Any, positive: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean rate of the positive items less that of the others, independent groups.

    Parameters
    ----------
    rates : array of any supported kind, shape (n_items, V)
        Between 0 and 1.
    positive : ndarray of bool, shape (n_items,)
    confidence : float, default=0.95

    Returns
    -------
    difference, low, high : ndarray, shape (V,)
        NaN where a feature holds a NaN.

    Raises
    ------
    InvalidInput
        A rate outside [0, 1], another number of labels than rows, or fewer than two items in a group.

    Examples
    --------
    >>> rates = np.repeat([1.0, 0.0, 1.0, 0.0], [9, 1, 3, 7])[:, None]  # 9 of 10 items, 3 of 10 items
    >>> difference, low, high = rate_difference(rates, np.arange(20) < 10)
    >>> [round(float(x[0]), 4) for x in (difference, low, high)]
    [0.6, 0.1705, 0.809]
    """
    positive = np.asarray(positive, bool)
    if positive.shape != (rates.shape[0],):
        raise InvalidInput(f"positive has shape {positive.shape}; it must hold one label per item, {rates.shape[0]}.")
    _check_sizes(int(positive.sum()), int((~positive).sum()))
    out = np.empty((3, rates.shape[1]))
    for columns, block in column_blocks(rates):
        _check_rates(block)
        sides = [_side(block[rows], confidence) for rows in (positive, ~positive)]
        out[:, columns] = _hybrid(*sides, np.zeros(block.shape[1]))
    return tuple(out)


def paired_rate_difference(
    rates_a: Any, rates_b: Any, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over items of the rate in a less the rate in b.

    Parameters
    ----------
    rates_a, rates_b : arrays of any supported kind, shape (n_items, V)
        Between 0 and 1; rows of both are the same items.
    confidence : float, default=0.95

    Returns
    -------
    difference, low, high : ndarray, shape (V,)
        NaN where a feature holds a NaN.

    Raises
    ------
    InvalidInput
        A rate outside [0, 1], different shapes, or fewer than two items.

    Examples
    --------
    >>> a, b = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [1, 1, 7, 12], axis=0).T[:, :, None]
    >>> difference, low, high = paired_rate_difference(a, b)
    >>> [round(float(x[0]), 3) for x in (difference, low, high)]
    [-0.286, -0.507, -0.026]
    """
    if rates_a.shape != rates_b.shape:
        raise InvalidInput(
            f"the two sides must hold the same items and features, found {rates_a.shape} and {rates_b.shape}."
        )
    _check_sizes(rates_a.shape[0])
    out = np.empty((3, rates_a.shape[1]))
    for (columns, a), (_, b) in zip(column_blocks(rates_a), column_blocks(rates_b), strict=True):
        _check_rates(a)
        _check_rates(b)
        out[:, columns] = _hybrid(_side(a, confidence), _side(b, confidence), _correlation(a, b))
    return tuple(out)


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 2:
        raise InvalidInput(f"a difference of rates needs at least two items on each side, found {min(sizes)}.")


def _check_rates(block: np.ndarray) -> None:
    if (block < 0).any() or (block > 1).any():
        raise InvalidInput(
            f"a rate lies between 0 and 1, found values from {np.nanmin(block):.4g} to {np.nanmax(block):.4g}; give "
            "the share of active trials of each item."
        )


def _whole(block: np.ndarray) -> np.ndarray:
    return ((block == 0) | (block == 1)).all(axis=0)


def _side(block: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean rate of each column with its Wilson limits."""
    n, p, variance = len(block), block.mean(axis=0), block.var(axis=0, ddof=1)
    quantile = (1 + confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = n * p * (1 - p) / variance * (special.ndtri(quantile) / special.stdtrit(n - 1, quantile)) ** 2
    low, high = wilson_interval(p, np.where(_whole(block) | (variance < _CONSTANT), n, fractions), confidence)
    return p, low, high


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rates over items; 0 where a side does not vary."""
    covariance = ((a - a.mean(axis=0)) * (b - b.mean(axis=0))).mean(axis=0)
    corrected = np.where(covariance > 0, np.clip(covariance - 1 / (2 * len(a)), 0, None), covariance)
    covariance = np.where(_whole(a) & _whole(b), corrected, covariance)
    scale = a.std(axis=0) * b.std(axis=0)
    return np.where(scale > _CONSTANT, covariance / np.where(scale > _CONSTANT, scale, 1), 0)


def _hybrid(first: tuple, second: tuple, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combine the limits of both sides."""
    (p, p_low, p_high), (q, q_low, q_high) = first, second
    difference = p - q

    def half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(np.clip(a**2 - 2 * correlation * a * b + b**2, 0, None))

    return difference, difference - half(p - p_low, q_high - q), difference + half(p_high - p, q - q_low)
