"""Paired effects in units of the raw data: Hedges' g_av.

``g_av = J · mean(a − b) / s_av`` with ``s_av = √((s_a² + s_b²) / 2)`` (Cumming 2012; Lakens 2013 takes the mean of
the two standard deviations, which is the same where they are equal). Unlike g_z it does not grow with the
correlation of the two conditions, so it compares with the g of independent groups.

* Interval (Algina and Keselman 2003): the noncentrality interval of the paired t, times
  ``√((s_a² + s_b² − 2 s_ab) / (n (s_a² + s_b²) / 2))``. It is approximate, as the standard deviations in that
  factor are estimates. J shrinks the estimate only: the interval is for the population value, and shrinking it
  too would lose up to four points of coverage with eight items.
* J uses the degrees of freedom of s_av² by Satterthwaite, ``(n − 1)(s_a² + s_b²)² / (s_a⁴ + s_b⁴ + 2 s_ab²)``; with
  equal variances 2(n − 1)/(1 + r²) (Cousineau 2020).
"""

from __future__ import annotations

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.effects import noncentrality_interval


def hedges_g_av(
    difference: np.ndarray,
    sd_a: np.ndarray,
    sd_b: np.ndarray,
    sd_difference: np.ndarray,
    n: int,
    confidence: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paired difference standardised by the average standard deviation, with its interval.

    Parameters
    ----------
    difference : ndarray, shape (V,)
        Mean of the item differences a − b.
    sd_a, sd_b, sd_difference : ndarray, shape (V,)
        Standard deviations over items (n − 1 in the denominator) of each condition and of the differences.
    n : int
        Items.
    confidence : float, default=0.95

    Returns
    -------
    g_av, low, high : ndarray, shape (V,)
        NaN where an input is NaN or where both conditions are constant and equal; infinite without an interval
        where both are constant and differ. Without an interval where all differences are the same.

    Raises
    ------
    InvalidInput
        Fewer than three items, or a negative standard deviation.

    Examples
    --------
    >>> g, low, high = hedges_g_av(np.array([0.5]), np.array([1.0]), np.array([1.0]), np.array([0.8]), 30)
    >>> [round(float(x[0]), 3) for x in (g, low, high)]
    [0.49, 0.183, 0.81]
    """
    if n < 3:
        raise InvalidInput(f"g_av needs at least three items, found {n}.")
    difference, sd_a, sd_b, sd_difference = (np.asarray(x, float) for x in (difference, sd_a, sd_b, sd_difference))
    if min(np.nanmin(x, initial=0) for x in (sd_a, sd_b, sd_difference)) < 0:
        raise InvalidInput("a standard deviation cannot be negative; give the standard deviations over items.")
    total = sd_a**2 + sd_b**2
    covariance = (total - sd_difference**2) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        df = (n - 1) * total**2 / (sd_a**4 + sd_b**4 + 2 * covariance**2)
        factor = np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)
        g = np.where(total == 0, 1, factor) * difference / np.sqrt(total / 2)
        low, high = noncentrality_interval(difference / (sd_difference / np.sqrt(n)), n - 1, confidence)
        unit = np.sqrt(2 * sd_difference**2 / (n * total))
        return g, low * unit, high * unit
