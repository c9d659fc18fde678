"""Tail of the permutation distribution of a difference between two groups: exact for few nonzeros, else by saddlepoint.

For a row x of two values, ``r = xᵀPy/ν`` is a linear function of S, the sum of y over a random subset of
n₁ of the n rows. Let every row be in the subset independently with odds n₁/(n − n₁); given that n₁ are, the subset is
random. With ``K(θ, φ) = Σ log(1 − π + π exp(φ + θy_i))``, π = n₁/n, the tail is (Skovgaard 1987; Booth & Butler 1990)

    P(S ≥ s) ≈ Φ(−w − log(u/w)/w),      ∂K/∂θ = s,  ∂K/∂φ = n₁
    w = sign(θ) √(2(θs + φn₁ − K)),     u = θ √(det K'' / (nπ(1 − π)))

The relative error stays small in both tails, however skewed y and unequal the groups, where distributions that match a
few moments fail: Pearson III is liberal near the end of its support. Columns with few nonzeros are exact:
the sums of all subsets of the nonzeros, weighted by the number of ways to fill up with zeros. If all values are
multiples of the smallest, δ, s − δ/2 takes the place of s, and 2 sinh(θδ/2)/δ that of θ in u (Daniels 1987).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.moments import Alternative
from neurollm.stats.nonzeros import lattice_step, nonzero_rows

_MOST_STEPS = 200  # of Newton's method, halvings included; 5 to 30 are usual
_SOLVED = 1e-12  # Newton decrement
_CONSTANT = 1e-12  # a standard deviation below this share of the largest value is rounding
_NEAR = 3e-3
_TIES = 1e-6  # relative difference up to which two sums are called equal, as in the permutation kernel


def two_group_p(x: np.ndarray, Y: Any, r: np.ndarray, alternative: Alternative = "two-sided") -> np.ndarray:
    """P value of the correlation with a row of two values over all permutations of the rows, for every column.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Unit norm, centred, of two different values.
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    r : ndarray, shape (V,)
        The observed correlation of each column with `x`.
    alternative : {"two-sided", "greater", "less"}
        Two-sided is twice the tail on the side of r, at most 1.

    Returns
    -------
    ndarray, shape (V,)
        Exact for columns with at most 14 nonzeros. Never below the probability of the most extreme arrangement.
        NaN for a constant column and where r or a value is not finite.

    Raises
    ------
    InvalidInput
        `x` is not a centred unit row of two values, or shapes disagree.

    Examples
    --------
    >>> x = np.array([1.0, 1.0, -1.0, -1.0]) / 2
    >>> Y = np.array([[1.0], [2.0], [0.0], [0.0]])
    >>> two_group_p(x, Y, np.array([1.5 / np.sqrt(2.75)]), "greater").round(3).tolist()
    [0.167]
    """
    x, r = np.asarray(x, float), np.asarray(r, float)
    n, n1 = _groups(x, Y.shape[0])
    if r.shape != (Y.shape[1],):
        raise InvalidInput(f"r has shape {r.shape}; expected one statistic for each of the {Y.shape[1]} columns.")
    p = np.full(r.shape, np.nan)
    for part in nonzero_rows(Y, np.isfinite(r)):
        observed = r[part.features]
        side = {"two-sided": np.where(observed < 0, -1.0, 1.0), "greater": 1.0, "less": -1.0}[alternative]
        y = part.values * np.reshape(side, (-1, 1))
        # r has standard deviation 1/√(n − 1).
        mean, deviation = _mean_and_deviation(y, n, n1)
        unit = np.where(deviation > _CONSTANT * np.abs(y).max(axis=1), deviation, np.nan) * np.sqrt(n - 1)
        s = side * observed * unit + mean
        slack = (_TIES * np.abs(observed) + 1e-3 * _TIES) * unit
        tail = _enumerated(y, s - slack, n, n1) if part.few else _saddlepoint(y, s, slack, (n, n1))
        p[part.features] = np.where(np.isnan(unit), np.nan, tail)
    return np.minimum(2 * p, 1) if alternative == "two-sided" else p


def _groups(x: np.ndarray, n: int) -> tuple[int, int]:
    """Number of rows, and of those with the larger value."""
    if x.shape != (n,):
        raise InvalidInput(f"x has shape {x.shape}; expected one number for each of the {n} rows.")
    larger = x > 0
    n1 = int(larger.sum())
    if not 0 < n1 < n or np.ptp(x[larger]) > 1e-8 or np.ptp(x[~larger]) > 1e-8:
        raise InvalidInput("x must have two values, one above and one below 0.")
    if abs(x.sum()) > 1e-8 or abs(x @ x - 1) > 1e-8:
        raise InvalidInput("x must be centred and of unit norm.")
    return n, n1


def _enumerated(y: np.ndarray, s: np.ndarray, n: int, n1: int) -> np.ndarray:
    """Share of all subsets of n1 rows whose sum is at least s."""
    sums, members = np.zeros((len(y), 1)), np.zeros(1, int)
    for column in y.T:
        sums = np.concatenate([sums, sums + column[:, None]], axis=1)
        members = np.concatenate([members, members + 1])
    zeros = n - y.shape[1]
    ways = _log_ways(zeros, np.clip(n1 - members, 0, zeros)) - _log_ways(n, n1)
    return (sums >= s[:, None]) @ np.where((members <= n1) & (n1 - members <= zeros), np.exp(ways), 0)


def _log_ways(n: Any, k: Any) -> Any:
    return special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(n - k + 1.0)


def _saddlepoint(y: np.ndarray, s: np.ndarray, slack: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    n, n1 = sizes
    largest, probability = _largest_sum(y, n, n1)
    smallest = -_largest_sum(-y, n, n1)[0]
    half = lattice_step(y) / 2
    inside = (s < largest - slack) & (s - half > smallest + slack)
    target = _away_from_mean(y, np.where(inside, s - half, np.inf), n, n1)
    theta, _, objective, _, _, ff, tf, tt = _solve(y, target, n, n1)
    w = np.sign(theta) * np.sqrt(np.maximum(-2 * objective, 0))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = np.where(half > 0, np.sinh(theta * half) / half, theta)
        shift = np.log(slope * np.sqrt((ff * tt - tf**2) / (n1 * (1 - n1 / n))) / w) / w
    tail = special.ndtr(-w - np.where(np.isfinite(shift), shift, 0))
    return np.clip(np.where(inside, tail, s <= largest / 2 + smallest / 2), probability, 1)


def _away_from_mean(y: np.ndarray, s: np.ndarray, n: int, n1: int) -> np.ndarray:
    """Sums at least 0.003 standard deviations from their mean, where the formula is 0/0; there for an infinite one."""
    mean, deviation = _mean_and_deviation(y, n, n1)
    near = ~(np.abs(s - mean) >= _NEAR * deviation) | np.isinf(s)
    return np.where(near, mean + _NEAR * deviation, s)


def _mean_and_deviation(y: np.ndarray, n: int, n1: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the sum over n1 random rows."""
    mean = y.sum(axis=1) / n
    # The rows hold padding zeros, and n − width zeros are not even there.
    spread = np.sum((y - mean[:, None]) ** 2, axis=1) + (n - y.shape[1]) * mean**2
    return n1 * mean, np.sqrt(spread * n1 * (n - n1) / (n * (n - 1)))


def _largest_sum(y: np.ndarray, n: int, n1: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest sum over n1 rows, and its probability."""
    full = np.zeros((len(y), n))
    full[:, : y.shape[1]] = y
    full.partition(n - n1, axis=1)
    least = full[:, n - n1]
    above, equal = (full > least[:, None]).sum(axis=1), (full == least[:, None]).sum(axis=1)
    return full[:, n - n1 :].sum(axis=1), np.exp(_log_ways(equal, n1 - above) - _log_ways(n, n1))


def _solve(y: np.ndarray, s: np.ndarray, n: int, n1: int) -> np.ndarray:
    """Minimise the convex K − θs − φn1 by Newton's method with halved steps; the rows of `_terms` at the minimum."""
    mean, deviation = _mean_and_deviation(y, n, n1)
    theta = np.divide(s - mean, deviation**2, where=deviation > 0, out=np.zeros_like(s))
    state = _terms(theta, -theta * mean / n1, y, s, (n, n1))
    start = _terms(np.zeros_like(theta), np.zeros_like(theta), y, s, (n, n1))
    state = np.where(state[2] < 0, state, start)
    live, factor = np.arange(len(y)), np.ones(len(y))
    for _ in range(_MOST_STEPS):
        theta, phi, objective, number, total, ff, tf, tt = state[:, live]
        with np.errstate(divide="ignore", invalid="ignore"):
            more, members = s[live] - total, n1 - number
            step = np.stack([ff * more - tf * members, tt * members - tf * more]) / (ff * tt - tf**2)
        decrement = step[0] * more + step[1] * members
        going = (decrement > _SOLVED) & (factor[live] > 1e-9)
        if not going.any():
            break
        live, step, size = live[going], step[:, going], factor[live[going]]
        trial = _terms(theta[going] + size * step[0], phi[going] + size * step[1], y[live], s[live], (n, n1))
        better = trial[2] <= objective[going] - 1e-4 * size * decrement[going] + 1e-13 * np.abs(objective[going])
        state[:, live[better]] = trial[:, better]
        factor[live] = np.where(better, 1.0, size / 2)
    return state


def _terms(theta: np.ndarray, phi: np.ndarray, y: np.ndarray, s: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """θ, φ, the objective, and the derivatives of K: by φ, by θ, and twice by φφ, θφ and θθ."""
    n, n1 = sizes
    odds, zeros = np.log(n1 / (n - n1)), n - y.shape[1]

    def logistic(v):
        decay = np.exp(-np.abs(v))
        return np.maximum(v, 0) + np.log1p(decay), np.where(v > 0, 1, decay) / (1 + decay), decay / (1 + decay) ** 2

    value, share, slope = logistic(theta[:, None] * y + (phi + odds)[:, None])
    value0, share0, slope0 = logistic(phi + odds)
    cumulant = value.sum(axis=1) + zeros * value0 - n * np.log1p(n1 / (n - n1))
    weighted = slope * y
    return np.stack(
        [
            theta,
            phi,
            cumulant - theta * s - phi * n1,
            share.sum(axis=1) + zeros * share0,
            np.sum(share * y, axis=1),
            slope.sum(axis=1) + zeros * slope0,
            weighted.sum(axis=1),
            np.sum(weighted * y, axis=1),
        ]
    )
