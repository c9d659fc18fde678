"""Shares of variance explained, from F and t statistics, with intervals.

* partial η² = F·q / (F·q + df);
* partial ω² = q(F − 1) / (q(F − 1) + N) (Olejnik and Algina 2003), less biased, negative when F < 1;
* partial r = t / √(t² + df), with the sign of t.

The interval of η² inverts the noncentral F distribution (Steiger 2004): λ_low and λ_high are the
noncentralities under which the observed F is the upper and the lower percentile, and a share is λ / (λ + N).
N = q + df + 1, the number of observations of a model with intercept. The interval of r inverts the noncentral
t distribution in the same way, δ / √(δ² + N), so that δ² is the λ of q = 1. The predictors are taken as fixed.

With δ = √λ, √(qF) is the noncentral χ_q(δ) over S = √(χ²_df / df), and χ_q(δ) lies between Z + δ and δ + χ_q:
this brackets δ. For large F, χ_q(δ) ≈ δ + Z + (q − 1) / 2δ, so δ is a quantile of √(qF)·S corrected to first
order; the distribution function itself would need ever more terms there.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.effects import noncentrality_interval
from neurollm.stats.inversion import on_nodes, solve_percentile


def partial_eta_squared(
    f: np.ndarray, q: float, df: float, confidence: float = 0.95, n: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partial η² of F statistics and its noncentral-F interval.

    Parameters
    ----------
    f : ndarray, shape (V,)
    q, df : float
        Degrees of freedom of the numerator and of the denominator.
    confidence : float, default=0.95
        With .90 the interval excludes 0 exactly when the F test at .05 rejects.
    n : float, optional
        N of λ / (λ + N); default ``q + df + 1``.

    Returns
    -------
    eta_squared, low, high : ndarray, shape (V,)
        NaN where F is NaN; an infinite F gives 1 without an interval. A small F can have both limits 0.

    Raises
    ------
    InvalidInput
        A negative F, degrees of freedom or N not above 0, or a confidence outside (0, 1).

    Examples
    --------
    >>> eta_squared, low, high = partial_eta_squared(np.array([5.0]), 3, 100, confidence=0.90)
    >>> [round(float(x[0]), 3) for x in (eta_squared, low, high)]
    [0.13, 0.029, 0.216]
    """
    f, n = _checked(f, q, df, n)
    _check_confidence(confidence)
    finite = np.isfinite(f)
    root, tail = np.sqrt(q * f[finite]), (1 - confidence) / 2
    low, high = np.full(f.shape, np.nan), np.full(f.shape, np.nan)
    for limit, probability in ((low, 1 - tail), (high, tail)):
        noncentrality = _noncentrality(root, q, df, probability) ** 2
        limit[finite] = noncentrality / (noncentrality + n)
    with np.errstate(invalid="ignore"):
        return np.where(np.isposinf(f), 1.0, f * q / (f * q + df)), low, high


def partial_omega_squared(f: np.ndarray, q: float, df: float, n: float | None = None) -> np.ndarray:
    """Partial ω² of F statistics.

    Parameters
    ----------
    f : ndarray, shape (V,)
    q, df : float
    n : float, optional
        Number of observations; default ``q + df + 1``.

    Returns
    -------
    ndarray, shape (V,)
        NaN where F is NaN, 1 where it is infinite.

    Raises
    ------
    InvalidInput
        A negative F, or degrees of freedom or N not above 0.

    Examples
    --------
    >>> round(float(partial_omega_squared(np.array([5.0]), 3, 100)[0]), 4)
    0.1034
    """
    f, n = _checked(f, q, df, n)
    with np.errstate(invalid="ignore"):
        return np.where(np.isposinf(f), 1.0, q * (f - 1) / (q * (f - 1) + n))


def partial_r(
    t: np.ndarray, df: float, confidence: float = 0.95, n: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partial correlation of t statistics and its noncentral-t interval.

    Parameters
    ----------
    t : ndarray, shape (V,)
    df : float
    confidence : float, default=0.95
    n : float, optional
        N of δ / √(δ² + N); default ``df + 2``.

    Returns
    -------
    r, low, high : ndarray, shape (V,)
        NaN where t is NaN; an infinite t gives ±1 without an interval.

    Raises
    ------
    InvalidInput
        ``df`` or N not above 0, or a confidence outside (0, 1).

    Examples
    --------
    >>> r, low, high = partial_r(np.array([2.5]), 40)
    >>> [round(float(x[0]), 3) for x in (r, low, high)]
    [0.368, 0.069, 0.572]
    """
    t = np.asarray(t, float)
    _, n = _checked(np.zeros(1), 1, df, n)
    _check_confidence(confidence)
    low, high = noncentrality_interval(t, df, confidence)
    with np.errstate(invalid="ignore"):
        r = np.where(np.isinf(t), np.sign(t), t / np.sqrt(t**2 + df))
    return r, low / np.sqrt(low**2 + n), high / np.sqrt(high**2 + n)


def _checked(f: np.ndarray, q: float, df: float, n: float | None) -> tuple[np.ndarray, float]:
    f, n = np.asarray(f, float), q + df + 1 if n is None else n
    if not (q > 0 and df > 0 and n > 0):
        raise InvalidInput(f"q, df and n must be above 0, found q = {q}, df = {df}, n = {n}.")
    if (f < 0).any():
        raise InvalidInput(f"an F statistic cannot be negative, found {np.nanmin(f):.4g}; for t use partial_r.")
    return f, n


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence must lie between 0 and 1, such as 0.95, found {confidence}.")


def _noncentrality(root: np.ndarray, q: float, df: float, probability: float) -> np.ndarray:
    """The δ = √λ under which F stands at percentile `probability`, 0 if no λ makes it that small; root = √(qF)."""
    delta = root * np.sqrt(special.chdtri(df, probability) / df)  # chdtri takes the upper tail
    # Found: the percentile is then right to 4e-6, for q up to 20 and df from 1 to 2000.
    far = (root > 50 + 10 * np.sqrt(df)) & (delta > 30 + 3 * np.sqrt(q))
    s = delta[far] / root[far]
    delta[far] -= ((df - 1) / s - df * s + (q - 1) / s) / (2 * root[far])
    above = special.fdtr(q, df, root**2 / q) > probability
    near = above & ~far
    # λ, unlike its root, is smooth down to 0, on the scale of the F where it becomes 0.
    scale = root[near].min(initial=np.inf)
    squared = on_nodes(lambda nodes: _invert(scale * nodes, q, df, probability) ** 2, root[near] / scale)
    delta[near] = np.sqrt(np.maximum(squared, 0))
    delta[~above & ~far] = 0
    return delta


def _invert(root: np.ndarray, q: float, df: float, probability: float) -> np.ndarray:
    """Solve ncfdtr(q, df, δ², root²/q) = probability, half of each tail for S and half for the noncentral χ."""
    scale_low, scale_high = np.sqrt(special.chdtri(df, [(1 + probability) / 2, probability / 2]) / df)
    low = np.clip(root * scale_low - np.sqrt(special.chdtri(q, (1 - probability) / 2)), 0, None)
    high = root * scale_high - special.ndtri(probability / 2)
    start = root - special.ndtri(probability) * np.sqrt(1 + root**2 / (2 * df))
    return solve_percentile(lambda delta: special.ncfdtr(q, df, delta**2, root**2 / q), probability, start, low, high)
