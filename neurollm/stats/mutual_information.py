r"""Mutual information of many numbers with one class label, by nearest neighbours.

For trial i let d_i be the distance to its k-th nearest neighbour among the n_c trials of its own class, and m_i the
number of all trials, itself included, that are nearer than d_i. In nats

    I = ψ(n) + ⟨ψ(k_i)⟩ − ⟨ψ(n_c(i))⟩ − ⟨ψ(m_i)⟩,        k_i = min(k, n_c − 1),

at least 0 (Ross 2014, PLoS ONE 9:e87357). In one dimension the k nearest neighbours of a point are a window of the
sorted values around it, so that all columns are done at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import digamma

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.arrays import column_blocks

_COLUMNS = 8  # at a time: the comparisons of all pairs of 200 trials stay in a core's cache
_NOISE = 1e-10


def mutual_information(X: Any, labels: Any, *, n_neighbors: int = 3, random_state: int = 0) -> np.ndarray:
    """Mutual information of each column with a class label, in nats.

    Equal values have no order of distances, so that noise of 1e-10 of a column's size is added, as scikit-learn
    does.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
        Finite values.
    labels : array-like, shape (n,)
        Two or more classes of two or more trials.
    n_neighbors : int, default=3
    random_state : int, default=0
        Of the noise.

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
    neighbors = np.minimum(n_neighbors, counts - 1)
    fixed = digamma(n) + np.mean(digamma(neighbors[codes])) - np.mean(digamma(counts[codes]))
    for part, values in column_blocks(X, _COLUMNS):
        scale = values.std(axis=0)
        values = values / np.where(scale > 0, scale, 1)
        noise = stream(random_state, "mutual_information", part.start).standard_normal(values.shape)
        values = values + _NOISE * np.maximum(1, np.abs(values).mean(axis=0)) * noise
        radius = np.empty_like(values)
        for code, k in enumerate(neighbors):
            radius[codes == code] = _kth_distance(values[codes == code], int(k))
        rows, limits = np.ascontiguousarray(values.T), np.ascontiguousarray(radius.T)
        nearer = np.count_nonzero(np.abs(rows[:, :, None] - rows[:, None]) < limits[:, :, None], axis=-1)
        out[part] = fixed - digamma(nearer).mean(axis=1)
    return np.maximum(out, 0)


def _kth_distance(values: np.ndarray, k: int) -> np.ndarray:
    """Distance of each value to its k-th nearest neighbour in its column, shape of `values`."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    padded = np.pad(ordered, ((k, k), (0, 0)), constant_values=((-np.inf, np.inf), (0, 0)))
    n, nearest = len(values), np.full(values.shape, np.inf)
    for below in range(k + 1):  # the window with so many neighbours below and the others above
        lower, upper = padded[k - below : k - below + n], padded[2 * k - below : 2 * k - below + n]
        nearest = np.minimum(nearest, np.maximum(ordered - lower, upper - ordered))
    distances = np.empty_like(values)
    np.put_along_axis(distances, order, nearest, axis=0)
    return distances
