"""Tails of sign-flip distributions without drawing signs: exact for few nonzeros, else by saddlepoint.

For differences d with equally likely signs, ``z = Σ s_i d_i / ν`` with ν² = Σ d² has mean 0 and variance 1; it is
√n times r, the product of d/ν with a row of signs ``±1/√n``. Its cumulant generating function is known for every
column, ``K(θ) = Σ log cosh(θ a_i)`` with a = |d|/ν, and the tail is (Barndorff-Nielsen 1986; Robinson 1982)

    P(Z ≥ z) ≈ Φ(−w − log(u/w)/w),    K'(θ) = z,    w = √(2(θz − K(θ))),    u = θ√K''(θ)

If all differences of a column are multiples of the smallest, δ (two-valued activations), z moves in steps of 2δ
and Daniels' (1987) correction is used: z − δ in place of z, and sinh(θδ)/δ in place of θ in u. No distribution
matched to variance and kurtosis will do: with lognormal differences Pearson II is liberal a hundredfold at 1e-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.moments import Alternative
from neurollm.stats.nonzeros import lattice_step, nonzero_rows

_MOST_STEPS = 200  # of Newton's method; 5 to 25 are usual
_TIES = 1e-6  # relative difference up to which two sums are called equal, as in the permutation kernel


def sign_flip_p(Y: Any, r: np.ndarray, alternative: Alternative = "two-sided") -> np.ndarray:
    """P value of ``r = Σ s_i d_i / (√n ν)`` over all signs, for every column.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
        Differences d.
    r : ndarray, shape (V,)
        The observed statistic of each column, as from the permutation kernel: between −1 and 1.
    alternative : {"two-sided", "greater", "less"}

    Returns
    -------
    ndarray, shape (V,)
        Exact for columns with at most 14 nonzeros. Never below 1/2^nonzeros (two-sided: twice that).
        NaN for a column of zeros and where r or a difference is not finite.

    Raises
    ------
    InvalidInput
        There is not one r per column.

    Examples
    --------
    >>> sign_flip_p(np.array([[1.0], [2.0], [4.0]]), np.array([7 / np.sqrt(3 * 21)])).tolist()
    [0.25]
    """
    z = np.asarray(r, float) * np.sqrt(Y.shape[0])
    if z.shape != (Y.shape[1],):
        raise InvalidInput(f"r has shape {z.shape}; expected one statistic for each of the {Y.shape[1]} columns.")
    extreme = {"two-sided": np.abs(z), "greater": z, "less": -z}[alternative]
    p = np.full(z.shape, np.nan)
    for part in nonzero_rows(Y, np.isfinite(z), lambda number: 2 ** (number - number // 2)):
        a = np.abs(part.values)
        a /= np.sqrt(np.sum(a**2, axis=1, keepdims=True))
        here = extreme[part.features]
        p[part.features] = _enumerated(a, here) if part.few else _saddlepoint(a, here, part.counts)
    return np.minimum(2 * p, 1) if alternative == "two-sided" else p


def _enumerated(a: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Share of all signs with a sum of at least z: pairs of sums over either half of the values, one of them sorted."""
    middle = a.shape[1] // 2
    left, right = _all_sums(a[:, :middle]), np.sort(_all_sums(a[:, middle:]), axis=1)
    missing = (z - _TIES * (np.abs(z) + 1e-3))[:, None] - np.sort(left, axis=1)[:, ::-1]
    # One search for all rows: each in an interval of its own, wider than the sums of a row of norm 1 can be.
    reach = 1 + np.sqrt(a.shape[1])
    row = np.arange(len(a))[:, None]
    keys = np.clip(missing, -reach, reach) + 2 * reach * row
    below = np.searchsorted((right + 2 * reach * row).ravel(), keys.ravel()).reshape(keys.shape) - row * right.shape[1]
    return 1 - below.mean(axis=1) / right.shape[1]


def _all_sums(a: np.ndarray) -> np.ndarray:
    """Sums of each row with all signs."""
    sums = np.zeros((len(a), 1))
    for column in a.T:
        sums = np.concatenate([sums - column[:, None], sums + column[:, None]], axis=1)
    return sums


def _saddlepoint(a: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Barndorff-Nielsen's tail of Σ s a; a may be padded with zeros."""
    step = lattice_step(a)
    least = 0.5**counts
    target = np.abs(z - step)  # by symmetry, where it is negative
    inside = target < a.sum(axis=1) * (1 - 1e-9)
    theta = _solve(a, np.where(inside, target, 0))
    x = theta[:, None] * a
    cumulant = np.sum(x + np.log1p(np.exp(-2 * x)) - np.log(2), axis=1)
    curvature = np.sum((a * _sech(x)) ** 2, axis=1)
    w = np.sqrt(2 * np.maximum(theta * target - cumulant, 0))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = np.where(step > 0, np.sinh(theta * step) / step, theta)
        shift = np.log(slope * np.sqrt(curvature) / w) / w
    # The shift vanishes at z = 0, where it is 0/0.
    tail = special.ndtr(-w - np.where((w > 1e-4) & np.isfinite(shift), shift, 0))
    tail = np.clip(np.where(inside, tail, 0), least, 1)
    return np.where(z - step >= 0, tail, 1 - tail)


def _sech(x: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(x))
    return 2 * decay / (1 + decay**2)


def _solve(a: np.ndarray, target: np.ndarray) -> np.ndarray:
    """θ ≥ 0 with Σ a tanh(θa) = target: Newton's method, which from the left never oversteps as K' is concave."""
    theta, left = target.copy(), np.flatnonzero(target > 0)
    for _ in range(_MOST_STEPS):
        if not left.size:
            break
        here = a[left]
        x = theta[left, None] * here
        miss = target[left] - np.sum(here * np.tanh(x), axis=1)
        theta[left] += np.maximum(miss, 0) / np.sum((here * _sech(x)) ** 2, axis=1)
        left = left[miss > 1e-10 * target[left]]
    return theta
