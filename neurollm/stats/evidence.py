"""Evidence for an effect of no size that matters, and for or against an effect, of pre-declared regions.

* Equivalence: two one-sided t tests (Schuirmann 1987) against bounds in standard deviations. With t = effect/se and
  unit = se/sd, a bound δ is δ·sd in raw units, so its test is ``(effect − δ·sd)/se = t − δ/unit``; the p value is the
  larger of the two. As usual the sd of the bounds is the observed one, taken as known.
* Jeffreys–Zellner–Siow Bayes factor (Rouder et al. 2009, equation 1) of δ ~ Cauchy(r) against δ = 0, with ν degrees
  of freedom and N = n or n₁n₂/(n₁ + n₂):

      BF₁₀ = ∫ (1 + Ngr²)^(−1/2) (1 + t²/(ν(1 + Ngr²)))^(−(ν+1)/2) IG(g; 1/2, 1/2) dg / (1 + t²/ν)^(−(ν+1)/2).

  The integrand is smooth and falls exponentially in log g, where the trapezoid rule is exact to rounding; sums of
  logarithms keep it finite for any t.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput

_STEP = 0.1  # of log g
_BLOCK = 2048  # statistics at a time


def equivalence(t: np.ndarray, df: float, unit: float, bounds: tuple[float, float]) -> np.ndarray:
    """P value of two one-sided tests that a standardised effect lies inside `bounds`.

    Parameters
    ----------
    t : ndarray, shape (V,)
        Statistics of the test against zero.
    df : float
    unit : float
        ``1/√n`` for paired differences, ``√(1/n1 + 1/n2)`` for two groups.
    bounds : (float, float)
        Smallest effects of interest in standard deviations (of the differences, or within groups), declared before
        the data were seen, such as ``(-0.3, 0.3)``.

    Returns
    -------
    ndarray, shape (V,)
        Small values speak for equivalence. NaN where t is NaN.

    Raises
    ------
    InvalidInput
        Bounds that are not in increasing order, or `df` or `unit` not above 0.

    Examples
    --------
    >>> equivalence(np.array([0.2, 2.5]), df=99, unit=0.1, bounds=(-0.5, 0.5)).round(4).tolist()
    [0.0, 0.007]
    """
    low, high = bounds
    if not low < high:
        raise InvalidInput(f"bounds must be a lower and a higher effect, such as (-0.3, 0.3), found ({low}, {high}).")
    if not (df > 0 and unit > 0):
        raise InvalidInput(f"df and unit must be above 0, found df = {df}, unit = {unit}.")
    t = np.asarray(t, float)
    return np.maximum(special.stdtr(df, low / unit - t), special.stdtr(df, t - high / unit))


def bayes_factor(t: np.ndarray, n1: int, n2: int | None = None, r: float = 0.707, log: bool = False) -> np.ndarray:
    """JZS Bayes factor for an effect, BF₁₀.

    Parameters
    ----------
    t : ndarray, shape (V,)
    n1 : int
        Items of a paired or one-sample test, or of the first group.
    n2 : int, optional
        Items of the second group.
    r : float, default=0.707
        Scale of the Cauchy prior of the standardised effect.
    log : bool, default=False
        Return the natural logarithm, which is finite for any finite t.

    Returns
    -------
    ndarray, shape (V,)
        Above 1 for an effect, below 1 against it; NaN where t is NaN, infinite where t is.

    Raises
    ------
    InvalidInput
        No degrees of freedom left, or a scale not above 0.

    Examples
    --------
    >>> bayes_factor(np.array([3.5, 0.0]), 20, 20).round(3).tolist()
    [26.743, 0.309]
    """
    n, df = (n1, n1 - 1) if n2 is None else (n1 * n2 / (n1 + n2), n1 + n2 - 2)
    if min(n1, n1 if n2 is None else n2) < 1 or df < 1:
        raise InvalidInput(f"a Bayes factor needs at least one degree of freedom, found n1 = {n1}, n2 = {n2}.")
    if not r > 0:
        raise InvalidInput(f"the scale r of the prior must be above 0, such as 0.707, found {r}.")
    t = np.asarray(t, float)
    out = np.full(t.shape, np.nan)
    out[np.isinf(t)] = np.inf
    finite = np.isfinite(t)
    values = np.abs(t[finite])
    order = np.argsort(values)  # neighbours share the range of the integral
    parts = [_integrate(values[order[i : i + _BLOCK]], n * r**2, df) for i in range(0, order.size, _BLOCK)]
    sorted_back = np.empty(order.size)
    sorted_back[order] = np.concatenate([*parts, np.empty(0)])
    out[finite] = sorted_back
    with np.errstate(over="ignore"):
        return out if log else np.exp(out)


def _integrate(t: np.ndarray, scale: float, df: float) -> np.ndarray:
    """Trapezoid rule over u = log g, from where exp(−1/2g) vanishes to where the tail exp(−u) has."""
    log_t2 = 2 * np.log(np.maximum(t, 1e-150))[:, None]
    far = max(0.0, log_t2.max() - np.log(scale))
    u = np.arange(-7, far + 45, _STEP)
    log_spread = np.logaddexp(0, np.log(scale) + u)  # log(1 + N g r²)
    prior = -np.log(2 * np.pi) / 2 - u / 2 - np.exp(-u) / 2  # of g, times dg/du = g
    log_ratio = np.logaddexp(0, log_t2 - np.log(df) - log_spread) - np.logaddexp(0, log_t2 - np.log(df))
    return special.logsumexp(prior - log_spread / 2 - (df + 1) / 2 * log_ratio, axis=1) + np.log(_STEP)
