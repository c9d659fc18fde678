r"""Mutual information of many numbers with one class label, by nearest neighbours.

For trial i let d_i be the distance to its k-th nearest neighbour among the n_c trials of its own class (k at most
n_c − 1), and let k_i and m_i be the numbers of trials of its class, and of all trials, that are nearer than d_i; it
counts itself. In nats

    I = ψ(n) + ⟨ψ(k_i)⟩ − ⟨ψ(n_c(i))⟩ − ⟨ψ(m_i)⟩,

at least 0. Without equal values k_i = k, and this is the estimate of Ross (2014, PLoS ONE 9:e87357), that of
scikit-learn. Equal values are taken for what they are, a value with a probability of its own (Gao, Kannan, Oh &
Viswanath 2017, NeurIPS, arXiv:1709.06212): where d_i = 0, k_i and m_i are the numbers of trials with just this value.
The silence of a sparse feature is such a value. For a feature of few values I is the mutual information of the table
of counts less its bias (occupied cells − values − classes + 1)/2n (Miller 1955). No noise is added, so that neither
the order of the trials nor a seed matters.

In one dimension the k nearest neighbours of a point are a window of the sorted values around it, so that all columns
are done at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import digamma

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import column_blocks

_COLUMNS = 8  # at a time: the comparisons of all pairs of 200 trials stay in a core's cache


def mutual_information(X: Any, labels: Any, *, n_neighbors: int = 3) -> np.ndarray:
    """Mutual information of each column with a class label, in nats.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
        Finite values, of any mixture of equal and different ones.
    labels : array-like, shape (n,)
        Two or more classes of two or more trials.
    n_neighbors : int, default=3

    Returns
    -------
    ndarray, shape (V,)

    Raises
    ------
    InvalidInput
        A class has only one trial.

    Examples
    --------
    >>> labels = np.arange(40) % 2
    >>> noise = np.random.default_rng(0).standard_normal((40, 2))
    >>> noise_only, separate = mutual_information(noise + [0, 9] * labels[:, None], labels)
    >>> bool(noise_only < 0.1), round(float(separate), 1)
    (True, 0.7)
    """
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise InvalidInput(
            f"mutual_information: expected two or more classes of two or more trials, found sizes {counts.tolist()}."
        )
    n, out = len(codes), np.empty(X.shape[1])
    psi = digamma(np.arange(1, n + 1))
    members = [np.flatnonzero(codes == code) for code in range(len(classes))]
    for part, values in column_blocks(X, _COLUMNS):
        rows = np.ascontiguousarray(values.T)
        terms = np.empty(rows.shape)
        for own in members:
            of_class = rows[:, own]
            # Where the distance is 0 the smallest positive number in its place counts equal values.
            radius = np.maximum(_kth_distance(of_class, min(n_neighbors, own.size - 1)), np.finfo(float).tiny)
            terms[:, own] = psi[_nearer(of_class, of_class, radius) - 1] - psi[_nearer(of_class, rows, radius) - 1]
        out[part] = np.sort(terms, axis=1).mean(axis=1)  # sorted: sums of one order for any order of trials
    return np.maximum(out + psi[-1] - np.sum(counts * psi[counts - 1]) / n, 0)


def _nearer(points: np.ndarray, others: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How many of `others` (V, n) are nearer to each point than its radius, both (V, n_c)."""
    return np.count_nonzero(np.abs(points[:, :, None] - others[:, None]) < radius[:, :, None], axis=-1)


def _kth_distance(values: np.ndarray, k: int) -> np.ndarray:
    """Distance of each value to its k-th nearest neighbour in its row, shape of `values`."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    padded = np.pad(ordered, ((0, 0), (k, k)), constant_values=((0, 0), (-np.inf, np.inf)))
    n, nearest = values.shape[1], np.full(values.shape, np.inf)
    for below in range(k + 1):  # the window with so many neighbours below and the others above
        lower, upper = padded[:, k - below : k - below + n], padded[:, 2 * k - below : 2 * k - below + n]
        nearest = np.minimum(nearest, np.maximum(ordered - lower, upper - ordered))
    distances = np.empty_like(values)
    np.put_along_axis(distances, order, nearest, axis=1)
    return distances
