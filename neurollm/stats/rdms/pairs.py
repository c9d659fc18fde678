"""Correlations of RDMs, explicitly over pairs, where either side may leave pairs out.

For distances d and a model D, over the pairs that both have,

    Pearson  r = Σ (d − d̄)(D − D̄) / √( Σ (d − d̄)² Σ (D − D̄)² ),    cosine  r = Σ d D / √( Σ d² Σ D² ).

With pairs left out, every mean and norm depends on the model *and* on the distances, so each of them is a product of
matrices over pairs: P models with b sets of distances cost about six products P × m × b, m = n(n − 1)/2.
Positive r: distances are larger where the model says so.
"""

from __future__ import annotations

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.rdms.model import centred_kernel

FEWEST_PAIRS = 3
_FLAT = 1e-12  # of the sum of squares: what is left by rounding is no variance


def pair_vectors(D: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
    """Upper triangles of an RDM with its rows rearranged.

    Parameters
    ----------
    D : ndarray, shape (n, n)
    index : ndarray of int, shape (P, n), optional
        Row i is replaced by row ``index[p, i]``; default: the RDM as it is.

    Returns
    -------
    ndarray, shape (P, m), or (m,) without `index`
    """
    first, second = np.triu_indices(len(D), 1)
    return D[first, second] if index is None else D[index[:, first], index[:, second]]


def pair_correlations(models: np.ndarray, distances: np.ndarray, comparison: str = "pearson") -> np.ndarray:
    """Correlate every model with every set of distances over the pairs that both have.

    Parameters
    ----------
    models : ndarray, shape (P, m)
        NaN: the model says nothing about the pair.
    distances : ndarray, shape (m, b)
        NaN: the distance is not defined.
    comparison : {"pearson", "cosine"}

    Returns
    -------
    ndarray, shape (P, b)
        NaN with fewer than three pairs, or if one side does not vary over them.

    Examples
    --------
    >>> pair_correlations(np.array([[0.0, 1, 1, np.nan]]), np.array([[1.0], [3], [3], [9]])).round(3).tolist()
    [[1.0]]
    """
    m0, has_model = _filled(models, 1, comparison)
    d0, has_distance = _filled(distances, 0, comparison)
    # One row or column stands for all of them when nothing is left out.
    has_model = has_model[:1] if has_model.all() else has_model
    has_distance = has_distance[:, :1] if has_distance.all() else has_distance
    count = has_model @ has_distance
    sum_mm, sum_dd, product = m0**2 @ has_distance, has_model @ d0**2, m0 @ d0
    left, right = sum_mm, sum_dd
    if comparison == "pearson":
        sum_m, sum_d, per_pair = m0 @ has_distance, has_model @ d0, 1 / np.maximum(count, 1)
        product -= sum_m * sum_d * per_pair
        left, right = sum_mm - sum_m**2 * per_pair, sum_dd - sum_d**2 * per_pair
    defined = (count >= FEWEST_PAIRS) & _varies(left, sum_mm, count) & _varies(right, sum_dd, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, product / np.sqrt(left * right), np.nan)


def rdm_scores(
    rdms: np.ndarray, D: np.ndarray, comparison: str = "pearson", index: np.ndarray | None = None
) -> np.ndarray:
    """Compare whole RDMs, as of regions, with a model, as it is or with its rows rearranged.

    Parameters
    ----------
    rdms : ndarray, shape (K, n, n)
        NaN: the distance is not defined.
    D : ndarray, shape (n, n)
        NaN: the pair is left out.
    comparison : {"pearson", "cosine", "whitened"}
        Whitened (linear CKA) needs all pairs of both.
    index : ndarray of int, shape (P, n), optional

    Returns
    -------
    ndarray, shape (K,), or (P, K) with `index`

    Raises
    ------
    InvalidInput
        A whitened comparison of a model that leaves pairs out.

    Examples
    --------
    >>> D = 1 - np.eye(4)
    >>> D[0, 1] = D[1, 0] = 0
    >>> rdm_scores(np.stack([3 * D, 5 - D]), D).round(6).tolist()
    [1.0, -1.0]
    """
    models = np.atleast_2d(pair_vectors(D, index))
    if comparison != "whitened":
        scores = pair_correlations(models, np.stack([pair_vectors(rdm) for rdm in rdms], axis=1), comparison)
    else:
        if np.isnan(models).any():
            raise InvalidInput("RSA: the whitened comparison needs all pairs; use 'pearson' for this model.")
        # A NaN anywhere reaches every centred distance, so an RDM with gaps has no whitened score.
        centred = np.stack([-2 * centred_kernel(rdm) for rdm in rdms])
        size = np.sqrt((centred**2).sum(axis=(1, 2)) * 4 * (centred_kernel(D) ** 2).sum())
        scores = (
            2 * models @ np.stack([pair_vectors(rdm) for rdm in centred], axis=1) / np.where(size > 0, size, np.nan)
        )
    return scores[0] if index is None else scores


def _filled(values: np.ndarray, axis: int, comparison: str) -> tuple[np.ndarray, np.ndarray]:
    """Each row or column scaled to a largest value of 1 (and centred), 0 where it has none; and where it has one."""
    has = np.isfinite(values)
    filled = np.where(has, values, 0.0)
    size = np.abs(filled).max(axis=axis, keepdims=True, initial=0)
    filled /= np.where(size > 0, size, 1)
    if comparison == "pearson":
        mean = filled.sum(axis=axis, keepdims=True) / np.maximum(has.sum(axis=axis, keepdims=True), 1)
        filled = np.where(has, filled - mean, 0.0)
    return filled, has.astype(float)


def _varies(squares: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return squares > _FLAT * total + _FLAT**2 * count
