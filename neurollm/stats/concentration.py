"""How unevenly the entries of vectors, or the eigenvalues of a matrix, share their sum.

With w = |v| of n entries, p = w / Σ w, and w₍ᵢ₎ in ascending order:

    Gini                  2 Σ i w₍ᵢ₎ / (n Σ w) − (n + 1) / n       0 = all equal, 1 − 1/n = one entry has all
    effective rank        exp(−Σ p ln p)                          n = all equal, 1 = one entry has all
    participation ratio   (Σ λ)² / Σ λ²                           the same range, of eigenvalues λ ≥ 0

Entries drawn from a normal distribution are uneven already: their Gini coefficient is
√2 − 1 = .414 on average, and the largest of many vectors is far above that.

References
----------
Roy, Vetterli (2007), The effective rank, EUSIPCO (with singular values for w).
"""

from __future__ import annotations

import numpy as np

ROWS = 4096  # worked on at a time


def gini(values: np.ndarray) -> np.ndarray | float:
    """Gini coefficient of the absolute values along the last axis; NaN where all are 0.

    Parameters
    ----------
    values : ndarray, shape (n,) or (..., n)

    Returns
    -------
    float or ndarray, shape (...)
        0 when all are equal, 1 − 1/n when one has everything.

    Examples
    --------
    >>> gini(np.array([2.0, 2.0, 2.0])), gini(np.array([0.0, 0.0, 0.0, 7.0]))
    (0.0, 0.75)
    """
    ordered = np.sort(np.abs(np.asarray(values, float)), axis=-1)
    n = ordered.shape[-1]
    weights = 2 * np.arange(1, n + 1) - n - 1
    return _ratio(ordered @ weights, n * ordered.sum(-1))


def effective_rank(values: np.ndarray) -> np.ndarray | float:
    """Exponential of the entropy of the shares of the absolute values along the last axis; NaN where all are 0.

    Parameters
    ----------
    values : ndarray, shape (n,) or (..., n)

    Returns
    -------
    float or ndarray, shape (...)

    Examples
    --------
    >>> round(effective_rank(np.array([3.0, -3.0, 0.0, 3.0])), 9)
    3.0
    """
    from scipy.special import xlogy

    sizes = np.abs(np.asarray(values, float))
    total = sizes.sum(-1, keepdims=True)
    shares = sizes / np.where(total > 0, total, np.nan)
    rank = np.exp(-xlogy(shares, shares).sum(-1))
    return float(rank) if np.ndim(rank) == 0 else rank


def participation_ratio(values: np.ndarray) -> float:
    """(Σ λ)² / Σ λ² of values that are not negative, shape (n,); NaN if all are 0.

    Examples
    --------
    >>> participation_ratio(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    values = np.asarray(values, float)
    return float(_ratio(values.sum() ** 2, np.square(values).sum()))


def vector_statistics(rows: np.ndarray, zero: float = 1e-8) -> dict[str, np.ndarray]:
    """Concentration and size of each row.

    Parameters
    ----------
    rows : ndarray, shape (n, m)
    zero : float, default=1e-8
        Absolute values up to it count as zero.

    Returns
    -------
    dict of ndarray, shape (n,)
        ``gini``, ``effective_rank`` (both NaN for a row of zeros), ``l0`` (share of entries that are not zero), ``l1``,
        ``l2`` and ``max`` (of the absolute values).

    Examples
    --------
    >>> found = vector_statistics(np.array([[3.0, -4.0, 0.0, 0.0]]))
    >>> {name: values.round(2).tolist() for name, values in found.items()}
    {'gini': [0.54], 'effective_rank': [1.98], 'l0': [0.5], 'l1': [7.0], 'l2': [5.0], 'max': [4.0]}
    """
    parts = [_statistics(np.abs(np.asarray(rows[i : i + ROWS], float)), zero) for i in range(0, len(rows), ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _statistics(sizes: np.ndarray, zero: float) -> dict[str, np.ndarray]:
    return {
        "gini": gini(sizes),
        "effective_rank": effective_rank(sizes),
        "l0": (sizes > zero).mean(-1),
        "l1": sizes.sum(-1),
        "l2": np.sqrt(np.square(sizes).sum(-1)),
        "max": sizes.max(-1),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(b > 0, a / b, np.nan)
    return float(ratio) if ratio.ndim == 0 else ratio
