"""Score intervals of proportions, for many features at once.

* Wilson (1927): the p with ``|p̂ − p| ≤ z √(p(1 − p)/n)``; n may be an effective number of items, not whole.
* Tango (1998): n pairs of which `b` have only the first and `c` only the second event; the Δ = p₁ − p₂ with
  ``|b − c − nΔ| ≤ z √(n (2 p̃ + Δ(1 − Δ)))``, p̃ the maximum likelihood probability of `c` given Δ: the larger
  root of ``2n p² + ((2n − b + c)Δ − b − c) p − cΔ(1 − Δ) = 0``.
"""

from __future__ import annotations

import numpy as np
from scipy import special

_BISECTIONS = 60


def wilson_interval(p: np.ndarray, n: np.ndarray | float, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of a proportion.

    Parameters
    ----------
    p : ndarray, shape (V,)
        Observed proportions.
    n : float or ndarray, shape (V,)
        Independent observations behind each.
    confidence : float, default=0.95

    Returns
    -------
    low, high : ndarray, shape (V,)

    Examples
    --------
    >>> low, high = wilson_interval(np.array([0.0, 0.5]), 10)
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.0, 0.237], [0.278, 0.763])
    """
    z2 = special.ndtri((1 + confidence) / 2) ** 2
    p, n = np.asarray(p, float), np.asarray(n, float)
    centre, half = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))
    # Rounding must not leave [0, 1], nor the estimate outside its own interval.
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return np.minimum(np.clip(low, 0, None), p), np.maximum(np.clip(high, None, 1), p)


def tango_interval(b: np.ndarray, c: np.ndarray, n: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of the difference of two paired proportions.

    Parameters
    ----------
    b, c : ndarray, shape (V,)
        Pairs in which only the first, and only the second, event happened.
    n : int
        All pairs.
    confidence : float, default=0.95

    Returns
    -------
    low, high : ndarray, shape (V,)
        NaN where `b` or `c` is NaN.

    Examples
    --------
    >>> low, high = tango_interval(np.array([12.0, 0.0]), np.array([2.0, 0.0]), 50)
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.061, -0.071], [0.345, 0.071])
    """
    b, c = np.asarray(b, float), np.asarray(c, float)
    z = special.ndtri((1 + confidence) / 2)
    # Exchanging the two events changes the sign of the difference.
    return -_tango_limit(c, b, n, z), _tango_limit(b, c, n, z)


def _tango_limit(b: np.ndarray, c: np.ndarray, n: int, z: float) -> np.ndarray:
    """The upper limit: the score statistic falls in Δ, so that bisection finds it."""
    low, high = (b - c) / n, np.ones_like(b)
    for _ in range(_BISECTIONS):
        delta = (low + high) / 2
        linear = (2 * n - b + c) * delta - b - c
        p = (np.sqrt(linear**2 + 8 * n * c * delta * (1 - delta)) - linear) / (4 * n)
        variance = n * (2 * p + delta * (1 - delta))
        inside = n * delta - (b - c) <= z * np.sqrt(np.clip(variance, 0, None))
        low, high = np.where(inside, delta, low), np.where(inside, high, delta)
    return np.where(np.isnan(b + c), np.nan, (low + high) / 2)
