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
from scipy import sparse, special

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, column_blocks
from neurollm.stats.moments import Alternative
from neurollm.stats.power_sums import SPARSE_BLOCK, canonical_columns

MOST_ENUMERATED = 14  # nonzeros of a column whose signs are all tried
_MOST_STEPS = 200  # of Newton's method; 5 to 25 are usual
_CELLS = 1 << 20  # numbers in one work array
_TIES = 1e-6  # relative difference up to which two sums are called equal, as in the permutation kernel
_MULTIPLES = 1e-6  # how far a ratio of differences may be from a whole number


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
    for columns, block in _nonzeros(Y):
        p[columns] = _upper(block, extreme[columns])
    return np.minimum(2 * p, 1) if alternative == "two-sided" else p


def _nonzeros(Y: Any):
    """Blocks of columns as CSC without zeros."""
    if sparse.issparse(Y):
        csc = canonical_columns(Y)
        blocks = (
            (slice(start, start + SPARSE_BLOCK), csc[:, start : start + SPARSE_BLOCK].copy())
            for start in range(0, csc.shape[1], SPARSE_BLOCK)
        )
    else:
        blocks = ((columns, sparse.csc_array(block)) for columns, block in column_blocks(Y, BLOCK))
    for columns, block in blocks:
        block.eliminate_zeros()
        yield columns, block


def _upper(block: sparse.csc_array, z: np.ndarray) -> np.ndarray:
    """P(Z ≥ z) of each column, by groups of similar numbers of nonzeros."""
    p = np.full(z.shape, np.nan)
    counts = np.diff(block.indptr)
    finite = np.isfinite(z) & (counts > 0) & np.isfinite(np.ones(block.shape[0]) @ block)
    order = np.flatnonzero(finite)[np.argsort(counts[finite], kind="stable")]
    while order.size:
        few = counts[order[0]] <= MOST_ENUMERATED
        width = 2 ** counts[order[0]] if few else counts[order[-1]]
        size = max(1, int(_CELLS // width))
        part = order[:size]
        if few:  # one number of nonzeros at a time
            part = part[counts[part] == counts[part[0]]]
        a = np.zeros((part.size, counts[part[-1]]))
        filled = np.arange(a.shape[1]) < counts[part, None]
        a[filled] = np.abs(block.data[(block.indptr[part, None] + np.arange(a.shape[1]))[filled]])
        a /= a.max(axis=1, keepdims=True)  # before squaring, so that nothing under- or overflows
        a /= np.sqrt(np.sum(a**2, axis=1, keepdims=True))
        p[part] = _enumerated(a, z[part]) if few else _saddlepoint(a, z[part], counts[part])
        order = order[part.size :]
    return p


def _enumerated(a: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Share of all signs with a sum of at least z."""
    sums = np.zeros((len(a), 1))
    for column in a.T:
        sums = np.concatenate([sums - column[:, None], sums + column[:, None]], axis=1)
    return np.mean(sums >= (z - _TIES * (np.abs(z) + 1e-3))[:, None], axis=1)


def _saddlepoint(a: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Barndorff-Nielsen's tail of Σ s a; a may be padded with zeros."""
    step = _lattice(a)
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


def _lattice(a: np.ndarray) -> np.ndarray:
    """The smallest of the nonzeros of each row where all are multiples of it, else 0."""
    smallest = np.min(np.where(a > 0, a, np.inf), axis=1)
    ratio = a / smallest[:, None]
    multiples = (np.abs(ratio - np.round(ratio)) < _MULTIPLES).all(axis=1) & (ratio.max(axis=1) < 1000)
    return np.where(multiples, smallest, 0)
