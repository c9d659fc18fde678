"""The RDM of all features together, and how its score divides into features.

Squared distances add over features, so the numerator of a layer's score is the sum of its features', and

    share_f = numerator_f / (spread of the layer's distances · spread of the model)

adds up to the layer's score exactly: features are neither averaged nor fitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import by_columns, column_blocks
from neurollm.stats.rdms.explicit import tau_a
from neurollm.stats.rdms.model import centred_kernel, pair_model, ranked, without_rounding
from neurollm.validation import listed

_CENTRED = ("pearson", "half_rank")
ADDITIVE = ("pearson", "half_rank", "cosine", "whitened")


def layer_score(squared: np.ndarray, D: np.ndarray, comparison: str = "pearson", distance: str = "squared") -> float:
    """Score of the RDM of all features (squared Euclidean, or Euclidean for absolute distances).

    Parameters
    ----------
    squared : ndarray, shape (n, n)
        `layer_distances`.
    D : ndarray, shape (n, n)
    comparison, distance
        See `neurollm.stats.rdms.feature_scores`.

    Returns
    -------
    float
        NaN if all trials are alike.

    Examples
    --------
    >>> from neurollm.stats.rdms import categorical_rdm
    >>> X = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 3.0], [1.0, 3.0]])
    >>> round(layer_score(layer_distances(X), categorical_rdm(["a", "a", "b", "b"])), 12)
    1.0
    """
    from scipy.stats import rankdata

    model = pair_model(D, len(squared))
    distances = np.sqrt(squared) if distance == "absolute" else squared
    if comparison.startswith("whitened"):
        return _whitened(model.values, distances, comparison == "whitened_pearson")
    upper = np.triu(model.pairs, 1)
    d, m = distances[upper], model.values[upper]
    if np.ptp(d) <= 1e-12 * max(np.abs(d).max(), 1e-300):
        return float("nan")
    if comparison == "cosine":
        return float(d @ m / (np.linalg.norm(d) * np.linalg.norm(m)))
    if comparison == "tau_a":
        return float(tau_a(without_rounding(m), without_rounding(d)[:, None])[0])
    if comparison in ("spearman", "rho_a"):
        d, m = rankdata(without_rounding(d)), rankdata(without_rounding(m))
        if comparison == "rho_a":
            middle = (d.size + 1) / 2
            return float((d - middle) @ (m - middle) * 12 / (d.size**3 - d.size))
    if comparison == "half_rank":
        m = rankdata(without_rounding(m))
    return float(np.corrcoef(d, m)[0, 1])


def attribution(X: Any, D: np.ndarray, comparison: str = "pearson") -> np.ndarray:
    """Every feature's part of the layer's score.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
    comparison : {"pearson", "half_rank", "cosine", "whitened"}

    Returns
    -------
    ndarray, shape (V,)
        Adds up to `layer_score`; 0 for constant features, NaN for those with a value that is not finite.

    Raises
    ------
    InvalidInput
        The comparison does not divide.

    Examples
    --------
    >>> from neurollm.stats.rdms import categorical_rdm
    >>> X, D = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 3.0], [1.0, 4.0]]), categorical_rdm(["a", "a", "b", "b"])
    >>> bool(np.isclose(attribution(X, D).sum(), layer_score(layer_distances(X), D)))
    True
    """
    if comparison not in ADDITIVE:
        raise InvalidInput(
            f"attribution: the comparison {comparison!r} does not divide into features; use one of {listed(ADDITIVE)}."
        )
    model = pair_model(D, X.shape[0])
    model = ranked(model) if comparison == "half_rank" else model
    squared = layer_distances(X)
    if comparison == "whitened":
        matrix = centred_kernel(model.values)
        size = np.linalg.norm(matrix) * np.linalg.norm(centred_kernel(squared))
    else:
        values = np.where(model.pairs, model.values - (model.mean if comparison in _CENTRED else 0.0), 0.0)
        matrix = np.diag(values.sum(axis=1)) - values
        upper = np.triu(model.pairs, 1)
        d = squared[upper]
        d = d - d.mean() if comparison in _CENTRED else d
        size = np.linalg.norm(d) * np.linalg.norm(values[upper])
    out = np.empty(X.shape[1])
    for columns, block in column_blocks(by_columns(X)):
        with np.errstate(invalid="ignore"):
            block -= block.mean(axis=0)
            out[columns] = np.einsum("nb,nb->b", block, matrix @ block) / size
    return out


def layer_distances(X: Any) -> np.ndarray:
    """Squared Euclidean distances between trials over all features, shape (n, n).

    Centred first, so that a common offset costs no digits.
    """
    n = X.shape[0]
    gram = np.zeros((n, n))
    for _, block in column_blocks(by_columns(X)):
        block = block[:, np.isfinite(block).all(axis=0)]
        block -= block.mean(axis=0)
        gram += block @ block.T
    size = np.diag(gram)
    distances = np.maximum(size[:, None] + size - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    return distances


def _whitened(D: np.ndarray, distances: np.ndarray, corrected: bool) -> float:
    """Cosine of the centred kernels, or their correlation."""
    n = len(D)
    a, b = centred_kernel(D), centred_kernel(distances)
    if corrected:
        a, b = (one - np.trace(one) / (n - 1) * (np.eye(n) - 1 / n) for one in (a, b))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / size) if size > 0 else float("nan")
