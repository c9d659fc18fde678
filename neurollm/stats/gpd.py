"""P values below one in the number of permutations, from a generalised Pareto tail.

Exceedances over a high threshold follow nearly a generalised Pareto distribution, ``P(X > x) = (1 − kx/a)^(1/k)``
(``exp(−x/a)`` for k = 0; with k > 0 it ends at a/k). As in Knijnenburg et al. (2009) and Winkler et al. (2016):
a and k by the method of moments (Hosking & Wallis 1987), the threshold raised from the 75 % quantile in steps
of 1 % until an Anderson–Darling test no longer rejects the fit at 5 %. Critical values depend on k
(Choulakian & Stephens 2001 for maximum likelihood); those below were simulated for fits by moments, 200
exceedances, 20,000 samples each.

The fit is used only where the permutation p is below .10; elsewhere, and when no threshold fits, the permutation p
stays.
"""

from __future__ import annotations

import numpy as np

from neurollm.errors import InvalidInput

_USED_BELOW = 0.10
_QUANTILES = np.arange(0.75, 0.991, 0.01)
_FEWEST = 20  # exceedances
_EXPONENTIAL = 1e-8  # k below which the distribution is taken for exponential
# 95th percentile of A² for a fit by moments; beyond the ends the value at the end holds, which is strict.
_SHAPES = np.array([-0.24, -0.17, -0.08, 0.01, 0.11, 0.20, 0.30])
_CRITICAL = np.array([1.66, 1.27, 1.08, 0.96, 0.89, 0.91, 1.01])


def gpd_tail(
    null: np.ndarray,
    observed: np.ndarray,
    *,
    exhaustive: bool = False,
    floor: float | None = None,
    return_used: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Upper-tail p values of `observed` in the distribution of which `null` is a sample.

    Parameters
    ----------
    null : ndarray, shape (B,)
        Statistics of the permutations; larger is more extreme.
    observed : ndarray, shape (V,)
    exhaustive : bool, default=False
        `null` is the whole distribution: then b/B is the answer and no tail is fitted.
    floor : float, optional
        Least p returned from a fit. Default: ``0.1/(B + 1)``, the reach of a fit: for maxima of normal
        variables it is right within a factor of two at p = 1/B, and a tenth of the true p in every third sample
        at p = 0.1/B.
    return_used : bool, default=False
        Return also which p come from the fit.

    Returns
    -------
    ndarray, shape (V,), or a tuple with an ndarray of bool
        NaN where `observed` is.

    Raises
    ------
    InvalidInput
        `null` is empty or holds a value that is not finite.

    Examples
    --------
    >>> null = -np.log(np.arange(1, 1001) / 1001)
    >>> bool(2e-4 < gpd_tail(null, np.array([-np.log(4e-4)]))[0] < 8e-4)
    True
    """
    null, observed = np.sort(np.asarray(null, float)), np.asarray(observed, float)
    if null.ndim != 1 or not null.size or not np.isfinite(null).all():
        raise InvalidInput("null must be a list of finite statistics, one per permutation.")
    n, plus = null.size, 0 if exhaustive else 1
    # Statistics of the same arrangement may differ by rounding and are still tied.
    beyond = n - np.searchsorted(null, observed - 1e-9 * np.maximum(np.abs(observed), 1), side="left")
    p = np.where(np.isnan(observed), np.nan, (beyond + plus) / (n + plus))
    fit = None if exhaustive else _threshold(null)
    used = np.zeros(p.shape, bool)
    if fit is not None:
        threshold, share, scale, shape = fit
        used = (p < _USED_BELOW) & (observed > threshold)
        tail = share * np.exp(_log_tail(observed[used] - threshold, scale, shape))
        p[used] = np.clip(tail, 0.1 / (n + 1) if floor is None else floor, _USED_BELOW)
    return (p, used) if return_used else p


def _threshold(null: np.ndarray) -> tuple[float, float, float, float] | None:
    """Lowest threshold whose exceedances fit, the share beyond it, and the scale and shape; None if there is none."""
    for threshold in np.quantile(null, _QUANTILES):
        excess = null[null > threshold] - threshold
        if excess.size < _FEWEST or excess[0] == excess[-1]:
            return None
        ratio = excess.mean() ** 2 / excess.var(ddof=1)
        scale, shape = excess.mean() * (ratio + 1) / 2, (ratio - 1) / 2
        if _anderson_darling(excess, scale, shape) <= np.interp(shape, _SHAPES, _CRITICAL):
            return float(threshold), (excess.size + 1) / (null.size + 1), float(scale), float(shape)
    return None


def _log_tail(x: np.ndarray, scale: float, shape: float) -> np.ndarray:
    """log P(X > x); −∞ beyond the end of a bounded tail."""
    if abs(shape) < _EXPONENTIAL:
        return -x / scale
    with np.errstate(divide="ignore"):
        return np.log1p(-np.minimum(shape * x / scale, 1)) / shape


def _anderson_darling(excess: np.ndarray, scale: float, shape: float) -> float:
    """A² of a rising sample; infinite if it leaves the fitted range."""
    n, tail = excess.size, _log_tail(excess, scale, shape)
    odd = 2 * np.arange(1, n + 1) - 1
    return -n - float(np.mean(odd * (np.log(-np.expm1(tail)) + tail[::-1])))
