"""The largest score that any single feature could have: without it, one feature always looks weak beside a model.

For the whitened comparison it is exact: r = xᵀK_D x/(S2 ‖K_D‖) is at most λ₁/‖K_D‖, reached by the leading eigenvector.
Others have no closed form. There it is searched for: thresholds and leading eigenvectors of K_D and all divisions of
the model's classes in two are tried, and the best are improved by gradient ascent where scores are smooth. What is
found is reached by some feature, so it is never too high; it could be too low.
"""

from __future__ import annotations

import itertools

import numpy as np

from neurollm.random import stream
from neurollm.stats.rdms.explicit import RANKS, ExplicitScores
from neurollm.stats.rdms.forms import pair_classes
from neurollm.stats.rdms.model import centred_kernel, pair_model
from neurollm.stats.rdms.scores import feature_scores
from neurollm.stats.rdms.squared import SquaredScores

_VECTORS = 8  # eigenvectors searched
_CLASSES = 8  # classes of which all divisions are tried
_DIVISIONS = 48  # of the rows in two, along each of the first eigenvectors
_STARTS = 2


def ceiling(D: np.ndarray, comparison: str = "pearson", distance: str = "squared") -> float:
    """Largest score of a single feature with a model.

    Parameters
    ----------
    D : ndarray, shape (n, n)
        Model RDM; NaN leaves a pair out.
    comparison, distance
        See `neurollm.stats.rdms.feature_scores`.

    Returns
    -------
    float

    Examples
    --------
    >>> from neurollm.stats.rdms import categorical_rdm
    >>> round(ceiling(categorical_rdm([0, 0, 1, 1, 2, 2, 3, 3]), "whitened"), 6)  # 1/√3: four balanced classes
    0.57735
    """
    model = pair_model(D)
    n = len(model.values)
    filled = np.where(model.pairs, model.values, model.mean)
    np.fill_diagonal(filled, 0.0)
    kernel = centred_kernel(filled)
    values, vectors = np.linalg.eigh(kernel)
    if comparison == "whitened":
        return float(values[-1] / np.linalg.norm(kernel))
    leading = vectors[:, ::-1][:, : min(_VECTORS, n - 1)]
    candidates = np.hstack([leading, *(_thresholds(vector) for vector in leading.T[:3])])
    labels = pair_classes(np.where(model.pairs, model.values, -1.0))
    basis = leading
    if labels is not None:
        basis = np.eye(labels.max() + 1)[labels]
        candidates = np.hstack([candidates, *_divisions(basis)])
    scores = feature_scores(candidates, D, comparison, distance)
    r = scores.observed()
    best = float(np.nanmax(r))
    return best if comparison in RANKS else max(best, _improved(scores, basis, candidates[:, np.nanargmax(r)]))


def _thresholds(vector: np.ndarray) -> np.ndarray:
    """Divisions of the rows in two by their place in a vector, at most `_DIVISIONS` of them."""
    n = len(vector)
    rank = np.argsort(np.argsort(vector, kind="stable"), kind="stable")
    cuts = np.unique(np.linspace(0, n - 2, min(n - 1, _DIVISIONS)).round().astype(int))
    return (rank[:, None] > cuts).astype(float)


def _divisions(indicators: np.ndarray) -> list[np.ndarray]:
    """All divisions of a few classes in two."""
    classes = indicators.shape[1]
    if not 2 <= classes <= _CLASSES:
        return []
    codes = itertools.islice(itertools.product((0.0, 1.0), repeat=classes), 1, 2 ** (classes - 1))
    return [indicators @ np.array(code)[:, None] for code in codes]


def _improved(scores: SquaredScores | ExplicitScores, basis: np.ndarray, start: np.ndarray) -> float:
    """Ascent over features in the span of the basis, from the best candidate and from random ones."""
    from scipy.optimize import minimize

    step = 1e-6 * np.eye(basis.shape[1])

    def falling(weights: np.ndarray) -> tuple[float, np.ndarray]:
        weights = weights / max(np.linalg.norm(weights), 1e-300)
        moved = np.column_stack([weights, weights[:, None] + step, weights[:, None] - step])
        r = np.nan_to_num(scores.on(basis @ moved).observed(), nan=-1.0)
        size = basis.shape[1]
        return -r[0], -(r[1 : size + 1] - r[size + 1 :]) / 2e-6

    first = np.linalg.lstsq(basis, start, rcond=None)[0]
    rng = stream(0, "rsa_ceiling")
    starts = [first, *rng.normal(size=(_STARTS, basis.shape[1]))]
    return float(
        max(-minimize(falling, one, jac=True, method="L-BFGS-B", options={"maxiter": 50}).fun for one in starts)
    )
