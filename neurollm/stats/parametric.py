"""p and z of t and F statistics from their distributions, precise in both tails.

These are nilearn's numbers: p is one-sided, ``P(T ≥ t)`` or ``P(F ≥ f)``, and z is the normal quantile with the same
upper tail, so its sign is that of t. Beyond the smallest double p is 0 and z is computed from the
logarithm of the tail.
"""

from __future__ import annotations

import numpy as np
from scipy import special

_TINY = 1e-290  # below this the tail is computed as a logarithm
_FRACTIONS = 60


def t_to_z(t: np.ndarray, df: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """z and one-sided p of t statistics.

    Parameters
    ----------
    t, df : ndarray

    Returns
    -------
    z, p : ndarray
        NaN where t is; infinite z for an infinite t.

    Examples
    --------
    >>> z, p = t_to_z(np.array([0.0, 2.0]), 10)
    >>> (z + 0.0).round(3).tolist(), p.round(4).tolist()
    ([0.0, 1.79], [0.5, 0.0367])
    """
    t, df = np.broadcast_arrays(np.asarray(t, float), np.asarray(df, float))
    x = df / (df + t**2)
    beyond = _log_betainc(df / 2, 0.5, x) - np.log(2)  # log P(|T| ≥ |t|)/2
    z = np.where(t < 0, 1, -1) * special.ndtri_exp(beyond)
    tail = np.exp(beyond)
    return z, np.where(t < 0, 1 - tail, tail)


def f_to_z(f: np.ndarray, q: float, df: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """z and p of F statistics with q and df degrees of freedom."""
    f, df = np.broadcast_arrays(np.asarray(f, float), np.asarray(df, float))
    with np.errstate(invalid="ignore"):
        upper = _log_betainc(df / 2, q / 2, df / (df + q * f))
        lower = special.betainc(q / 2, df / 2, q * f / (df + q * f))
    p = np.exp(upper)
    with np.errstate(divide="ignore"):
        return np.where(p < 0.5, -special.ndtri_exp(upper), special.ndtri_exp(np.log(lower))), p


def _log_betainc(a: np.ndarray, b: float, x: np.ndarray) -> np.ndarray:
    """Logarithm of the regularised incomplete beta function, also where it underflows."""
    a, x = np.broadcast_arrays(a, x)
    value = special.betainc(a, b, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(value)
        small = ~(value > _TINY) & (x > 0)
        log[small] = _log_continued_fraction(a[small], b, x[small])
    return np.where(np.isnan(x), np.nan, log)


def _log_continued_fraction(a: np.ndarray, b: float, x: np.ndarray) -> np.ndarray:
    """The same by Lentz's method, for x far below the mean a/(a + b) (DLMF 8.17.22)."""
    c, d = np.ones(x.shape), 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _FRACTIONS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction = fraction * c * d
    return a * np.log(x) + b * np.log1p(-x) - np.log(a) - special.betaln(a, b) + np.log(fraction)
