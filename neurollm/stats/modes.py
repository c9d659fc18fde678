"""Whether a distribution has more than one mode.

Hartigan's dip: the largest distance between the empirical distribution function Fₙ and the closest
unimodal one, that is, one convex below its mode, concave above it, and with an atom at most at the mode.

On an interval [a, b] let G be the greatest convex minorant of the lower corners (xᵢ, Fₙ(xᵢ⁻)) and L the least
concave majorant of the upper corners (xᵢ, Fₙ(xᵢ)). The interval is narrowed to the two neighbouring points of
contact between which L − G is largest; what it loses on the left adds sup (Fₙ − G), on the right sup (L − Fₙ).
The dip is half the largest of these, once L − G is no larger than what was found. The slopes of G and L are the
isotonic regressions of those of the corners.

p is that of a uniform sample of the same size, which is asymptotically the least favourable unimodal distribution:
normal samples have smaller dips. √n · dip hardly depends on n in large samples, so that no more than
`LARGEST` values are simulated.

ΔBIC = BIC(1 normal) − BIC(2 normals). It is positive of everything that two normal distributions fit better than
one, for instance of a skewed distribution with a single mode: it needs a null beside it.

References
----------
Hartigan, Hartigan (1985), The dip test of unimodality, Annals of Statistics 13 (the algorithm and the null).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.random import stream

LARGEST = 2048
NEGLIGIBLE = 1e-6  # of the largest value: a smaller range is rounding in float32
TOUCH = 1e-12


@dataclass(frozen=True)
class DipTest:
    """Result of `dip_test`.

    Attributes
    ----------
    statistic : float
        The dip, 1 / (2n) to 1 / 4 for n different values; NaN of values that do not vary.
    p : float
        (b + 1) / (B + 1) of uniform samples with a dip as large.
    n, n_sim : int
    """

    statistic: float
    p: float
    n: int
    n_sim: int


def dip_statistic(values: np.ndarray) -> float:
    """Hartigan's dip of values, shape (n,); NaN if fewer than 4 or if they do not vary.

    Raises
    ------
    InvalidInput
        If a value is NaN or infinite.

    Examples
    --------
    >>> dip_statistic(np.arange(8.0)), round(dip_statistic(np.r_[np.arange(4.0), 100 + np.arange(4.0)]), 2)
    (0.0625, 0.24)
    """
    values = _checked(values)
    if not varies(values):
        return float("nan")
    x, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / len(values)
    lower = np.r_[0.0, upper[:-1]]
    first, last, dip = 0, len(x) - 1, 0.0
    while first < last:
        inside = slice(first, last + 1)
        left, right, width, below, above = _narrower(x[inside], lower[inside], upper[inside])
        if width <= dip:
            break
        if left == 0 and right == last - first:  # the mode is at one of the ends
            dip = max(dip, min(below[:-1].max(), above[1:].max()))
            break
        dip = max(dip, below[:left].max(initial=0.0), above[right + 1 :].max(initial=0.0))
        first, last = first + left, first + right
    return float(dip) / 2


def dip_test(values: np.ndarray, n_sim: int = 999, random_state: int = 0) -> DipTest:
    """Test values against unimodality.

    Parameters
    ----------
    values : ndarray, shape (n,)
    n_sim : int, default=999
        Uniform samples.
    random_state : int, default=0

    Raises
    ------
    InvalidInput
        If a value is NaN or infinite, or `n_sim` is below 1.

    Examples
    --------
    >>> two = np.r_[np.random.default_rng(0).normal(0, 1, 100), np.random.default_rng(1).normal(6, 1, 100)]
    >>> dip_test(two, n_sim=99).p
    0.01
    """
    if n_sim < 1:
        raise InvalidInput(f"dip_test: n_sim must be at least 1, found {n_sim}")
    dip = dip_statistic(values)
    n = len(np.ravel(values))
    if np.isnan(dip):
        return DipTest(dip, float("nan"), n, 0)
    size = min(n, LARGEST)
    null = _uniform_dips(size, int(n_sim), int(random_state))
    reached = int((null * size**0.5 >= dip * n**0.5 * (1 - NEGLIGIBLE)).sum())
    return DipTest(dip, (reached + 1) / (n_sim + 1), n, n_sim)


def mixture_delta_bic(values: np.ndarray, random_state: int = 0) -> float:
    """BIC of one normal distribution minus that of a mixture of two; above 0: two fit better.

    NaN of fewer than 4 values, and of values that do not vary.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(0, 1, 200)
    >>> mixture_delta_bic(x) < 0 < mixture_delta_bic(np.r_[x, x + 8])
    True
    """
    from sklearn.mixture import GaussianMixture

    values = _checked(values)
    if not varies(values):
        return float("nan")
    rows = ((values - values.mean()) / values.std())[:, None]  # the mixture's floor of the variance is absolute
    seed = int(stream(random_state, "mixture").integers(2**31))
    one, two = (GaussianMixture(k, n_init=3 if k > 1 else 1, random_state=seed).fit(rows).bic(rows) for k in (1, 2))
    return float(one - two)


def varies(values: np.ndarray) -> bool:
    """Whether there are at least 4 values, and they differ by more than rounding."""
    return len(values) >= 4 and float(np.ptp(values)) > NEGLIGIBLE * float(np.abs(values).max())


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.ravel(np.asarray(values, float))
    if not np.isfinite(values).all():
        raise InvalidInput("modes of a distribution: a value is NaN or infinite")
    return values


def _narrower(x: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[int, int, float, np.ndarray, np.ndarray]:
    """The points of contact around the largest L − G, its size, and Fₙ − G and L − Fₙ at every point."""
    minorant, majorant = _hull(x, lower, True), _hull(x, upper, False)
    gap = majorant - minorant
    convex, concave = lower - minorant <= TOUCH, majorant - upper <= TOUCH
    at_convex, at_concave = (int(np.argmax(np.where(touch, gap, -1.0))) for touch in (convex, concave))
    if gap[at_convex] > gap[at_concave]:
        left, later = at_convex, np.flatnonzero(concave[at_convex + 1 :])
        right = left + 1 + int(later[0]) if later.size else len(x) - 1
    else:
        right, earlier = at_concave, np.flatnonzero(convex[:at_concave])
        left = int(earlier[-1]) if earlier.size else 0
    return left, right, float(max(gap[at_convex], gap[at_concave])), upper - minorant, majorant - lower


def _hull(x: np.ndarray, y: np.ndarray, convex: bool) -> np.ndarray:
    """Greatest convex minorant, or least concave majorant, of points, at these points."""
    from sklearn.isotonic import isotonic_regression

    steps = np.diff(x)
    slopes = isotonic_regression(np.diff(y) / steps, sample_weight=steps, increasing=convex)
    return np.r_[y[0], y[0] + np.cumsum(slopes * steps)]


@lru_cache(maxsize=64)
def _uniform_dips(n: int, n_sim: int, random_state: int) -> np.ndarray:
    from sklearn import config_context

    with config_context(assume_finite=True, skip_parameter_validation=True):  # its checks take longer than its work
        return np.array([dip_statistic(stream(random_state, f"dip.{n}", draw).random(n)) for draw in range(n_sim)])
