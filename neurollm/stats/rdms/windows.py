"""RSA of features over windows: a trial's pattern is what a feature does at T positions.

With the patterns z_t ∈ ℝⁿ of a feature at positions t = 1 … T and weights w_t, the squared distance of two trials is
d_ij = Σ_t w_t (z_ti − z_tj)². With centred z̃_t, g_i = Σ_t w_t z̃_ti² and L_D = diag(D1) − D,

    Σ d  = n Σ_i g_i                Σ d² = n Σ_i g_i² + (Σ_i g_i)² + 2 Σ_ts w_t w_s (z̃_t·z̃_s)²
    Σ dD = Σ_t w_t z̃_t′ L_D z̃_t

over pairs i < j: T × T Gram matrices instead of n × n distances. Whitened (Diedrichsen et al. 2021; linear CKA, with
K = −½ H D H):  Σ_t w_t z̃_t′ K z̃_t / ( ‖Σ_t w_t z̃_t z̃_t′‖ ‖K‖ ). T = 1 and w = 1 is RSA of single numbers; negative
weights give cross-validated distances (`neurollm.stats.rdms.crossvalidated`).

The correlation distance 1 − r over the window is ½ of the squared one after centring and scaling every trial's own
pattern. A trial whose pattern is flat, as of a feature that is silent in it, has no correlation with anything: its
pairs are left out for this feature (never set to 0), so that the sums run over the feature's own trials v,
D1 becomes Dv, and the model's mean and norm are those over the same pairs.

Under rearranged models with no pair left out only Σ dD changes, a sum of quadratic forms
(`neurollm.stats.rdms.forms`). Otherwise distances are formed pair by pair (`neurollm.stats.rdms.pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.arrays import BLOCK, dense
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.forms import form
from neurollm.stats.rdms.model import pair_model
from neurollm.stats.rdms.pairs import FEWEST_PAIRS, pair_correlations, pair_vectors

COMPARISONS = ("pearson", "cosine", "whitened")
DISTANCES = ("squared", "correlation")
_FEWEST_ROWS = 3
_FLAT = 1e-12


def window_scores(
    parts: Sequence[Any],
    D: np.ndarray,
    *,
    comparison: str = "pearson",
    distance: str = "squared",
    weights: Sequence[float] | None = None,
    index: np.ndarray | None = None,
) -> np.ndarray:
    """RSA of the pattern of every feature over T positions.

    Parameters
    ----------
    parts : sequence of T arrays, each (n, V)
        Dense or sparse: the features at every position, the same n trials in all of them.
    D : ndarray, shape (n, n)
        Model RDM; NaN: the pair is left out.
    comparison : {"pearson", "cosine", "whitened"}
    distance : {"squared", "correlation"}
    weights : sequence of T numbers, optional
        Of the positions; default: 1.
    index : ndarray of int, shape (P, n), optional
        Rearrangements: row i of the model is replaced by row ``index[p, i]``.

    Returns
    -------
    ndarray, shape (V,), or (P, V) with `index`
        NaN where a feature is not finite, does not vary, or has fewer than three trials with a pattern.

    Raises
    ------
    InvalidInput
        An unknown name, a model that is no RDM, a correlation over one position, or a whitened comparison of a model
        that leaves pairs out.
    DataMismatch
        Positions, model and weights do not fit together.

    Examples
    --------
    >>> first, second = np.array([[0.0], [0], [3], [3]]), np.array([[0.0], [1], [0], [1]])
    >>> D = np.array([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    >>> window_scores([first, second], D).round(2).tolist()
    [0.99]
    """
    _check(parts, D, comparison, distance, weights)
    D = np.where(np.eye(len(D), dtype=bool), 0.0, D)
    w = np.ones(len(parts)) if weights is None else np.asarray(weights, float)
    parts = [part.tocsc() if sparse.issparse(part) else part for part in parts]
    n_features = parts[0].shape[1]
    width = max(1, BLOCK // len(parts))
    found = []
    for start in range(0, n_features, width):
        columns = slice(start, min(start + width, n_features))
        Z = np.stack([dense(part[:, columns]) for part in parts])
        found.append(pattern_scores(Z, D, w, comparison, distance, index))
    empty = np.empty((0,) if index is None else (len(index), 0))
    return np.concatenate(found, axis=-1) if found else empty


def pattern_scores(
    Z: np.ndarray, D: np.ndarray, w: np.ndarray, comparison: str, distance: str, index: np.ndarray | None = None
) -> np.ndarray:
    """`window_scores` of one dense block, shape (T, n, b), whose arguments are known to be right."""
    Z, w, defined, finite = patterns(Z, w, distance)
    all_pairs = not np.isnan(D).any()
    if index is None:
        scores = _gram_scores(Z, w, defined, D, comparison) if all_pairs else None
    elif all_pairs and defined.all():
        scores = _rearranged(Z, w, defined, D, comparison, index)
    elif comparison == "whitened":
        scores = np.stack([_gram_scores(Z, w, defined, D[row][:, row], comparison) for row in index])
    else:
        scores = None
    if scores is None:
        scores = pair_correlations(np.atleast_2d(pair_vectors(D, index)), pair_distances(Z, w, defined), comparison)
        scores = scores[0] if index is None else scores
    return np.where(finite, scores, np.nan)


def undefined_rows(parts: Sequence[Any], weights: Sequence[float] | None = None) -> np.ndarray:
    """Number of trials in which each feature has no correlation distance, because its pattern there is flat.

    Parameters
    ----------
    parts : sequence of T arrays, each (n, V)
    weights : sequence of T numbers, optional

    Returns
    -------
    ndarray of int, shape (V,)

    Examples
    --------
    >>> undefined_rows([np.array([[1.0, 0], [0, 0]]), np.array([[2.0, 0], [1, 0]])]).tolist()
    [0, 2]
    """
    w = np.ones(len(parts)) if weights is None else np.asarray(weights, float)
    parts = [part.tocsc() if sparse.issparse(part) else part for part in parts]
    counts = []
    for start in range(0, parts[0].shape[1], BLOCK):
        Z = np.stack([dense(part[:, start : start + BLOCK]) for part in parts])
        counts.append((~patterns(Z, w, "correlation")[2]).sum(axis=0))
    return np.concatenate(counts or [np.empty(0, int)])


def patterns(Z: np.ndarray, w: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patterns whose weighted squared distance is the distance asked for.

    Returns
    -------
    Z : ndarray, shape (T, n, b)
        Centred over the trials that have a pattern, 0 elsewhere; a feature's size is 1.
    w : ndarray, shape (T,)
    defined : ndarray of bool, shape (n, b)
        Trials that have a pattern.
    finite : ndarray of bool, shape (b,)
        Features that are finite and vary.
    """
    finite = np.isfinite(Z).all(axis=(0, 1))
    Z = np.where(finite, Z, 0.0)
    Z /= np.maximum(np.abs(Z).max(axis=(0, 1)), np.finfo(float).tiny)
    defined = np.ones(Z.shape[1:], bool)
    if distance == "correlation":
        largest = np.abs(Z).max(axis=0)
        Z = Z - np.tensordot(w / w.sum(), Z, 1)
        norm = np.sqrt(np.tensordot(w, Z**2, 1))
        defined = norm > NOISE * largest * np.sqrt(w.sum())
        Z = np.where(defined, Z / np.where(defined, norm, 1), 0.0)
        w = w / 2
    size = np.sqrt(np.tensordot(np.abs(w), (Z**2).sum(axis=1), 1))
    count = defined.sum(axis=0)
    Z = np.where(defined, Z - Z.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0.0)
    spread = np.sqrt(np.tensordot(np.abs(w), (Z**2).sum(axis=1), 1))
    finite = finite & (spread > NOISE * size) & (count >= _FEWEST_ROWS)
    if distance == "squared":
        Z /= np.where(finite, spread, 1)
    return Z, w, defined, finite


def pair_distances(Z: np.ndarray, w: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Distances of all pairs i < j, shape (m, b); NaN where one of the two trials has no pattern."""
    first, second = np.triu_indices(Z.shape[1], 1)
    d = np.zeros((first.size, Z.shape[2]))
    for weight, z in zip(w, Z, strict=True):
        d += weight * (z[first] - z[second]) ** 2
    return d if defined.all() else np.where(defined[first] & defined[second], d, np.nan)


def _gram_scores(Z: np.ndarray, w: np.ndarray, defined: np.ndarray, D: np.ndarray, comparison: str) -> np.ndarray:
    """Scores by Gram matrices, for a model of all pairs."""
    norms, v = _squares(Z, w, defined), defined.astype(float)
    n = v.sum(axis=0)
    m, sum_d, sum_dd, gram = n * (n - 1) / 2, *norms
    Dv = D @ v
    crossed = np.einsum("t,tib,tib->b", w, Z, np.matmul(D, Z))
    sum_m, sum_mm = (v * Dv).sum(axis=0) / 2, (v * (D**2 @ v)).sum(axis=0) / 2
    safe = np.maximum(n, 1)
    if comparison == "whitened":
        product = -crossed / 2
        left = sum_mm / 2 - (v * Dv**2).sum(axis=0) / (2 * safe) + (sum_m / safe) ** 2
        right, reference = gram, sum_mm
    else:
        product = (v * Dv * np.tensordot(w, Z**2, 1)).sum(axis=0) - crossed
        left, right, reference = sum_mm, sum_dd, sum_mm
        if comparison == "pearson":
            per_pair = 1 / np.maximum(m, 1)
            product = product - sum_m * sum_d * per_pair
            left, right = left - sum_m**2 * per_pair, right - sum_d**2 * per_pair
    return _ratio(product, left, right, reference, sum_dd, m)


def _squares(Z: np.ndarray, w: np.ndarray, defined: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σ d, Σ d² and ‖Σ_t w_t z̃_t z̃_t′‖² of every feature."""
    g = np.tensordot(w, Z**2, 1)
    columns = Z.transpose(2, 0, 1)
    grams = columns @ columns.transpose(0, 2, 1)
    gram = np.einsum("t,s,bts->b", w, w, grams**2)
    n, total = defined.sum(axis=0), g.sum(axis=0)
    return n * total, n * (g**2).sum(axis=0) + total**2 + 2 * gram, gram


def _ratio(
    product: np.ndarray, left: np.ndarray, right: np.ndarray, model: np.ndarray, data: np.ndarray, m: np.ndarray
) -> np.ndarray:
    """product / √(left · right); NaN where a side is rounding of what its sum of squares was, or pairs are too few."""
    defined = (left > _FLAT * model) & (right > _FLAT * data) & (m >= FEWEST_PAIRS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, product / np.sqrt(left * right), np.nan)


def _rearranged(
    Z: np.ndarray, w: np.ndarray, defined: np.ndarray, D: np.ndarray, comparison: str, index: np.ndarray
) -> np.ndarray:
    """Scores under rearranged models of all pairs, of features that have a pattern in all trials; shape (P, b)."""
    n, T = len(D), len(w)
    m, (sum_d, sum_dd, gram) = n * (n - 1) / 2, _squares(Z, w, defined)
    values, right = D, sum_dd
    if comparison == "pearson":
        values = np.where(np.eye(n, dtype=bool), 0.0, D - pair_vectors(D).mean())
        right = sum_dd - sum_d**2 / m
    reference, left = np.asarray((D**2).sum() / 2), np.asarray((values**2).sum() / 2)
    if comparison == "whitened":
        centring = np.eye(n) - 1 / n
        model, left, right = form(-D / 2, np.zeros(n), centred=True), ((centring @ D @ centring) ** 2).sum() / 4, gram
    else:
        model = form(-values, values.sum(axis=1), centred=True)
        if len(model.rows) * T > n:  # then products over pairs are fewer
            return pair_correlations(pair_vectors(D, index), pair_distances(Z, w, defined), comparison)
    product = sum(weight * model.quadratic(index, z, z**2) for weight, z in zip(w, Z, strict=True))
    return _ratio(product, left, right, reference, sum_dd, np.asarray(m))


def _check(parts: Sequence[Any], D: np.ndarray, comparison: str, distance: str, weights: Any) -> None:
    if comparison not in COMPARISONS or distance not in DISTANCES:
        raise InvalidInput(
            f"window RSA: comparison {comparison!r} with distance {distance!r} is unknown; comparisons are "
            f"{', '.join(COMPARISONS)} and distances {', '.join(DISTANCES)}."
        )
    if not len(parts):
        raise InvalidInput("window RSA: there is no position; a window needs at least one.")
    if distance == "correlation" and len(parts) == 1:
        raise InvalidInput(
            "window RSA: there is no correlation over a single position; use distance='squared' or a longer window."
        )
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1 or len(parts[0].shape) != 2:
        raise DataMismatch(
            f"window RSA: positions of the shapes {sorted(shapes)} are not tables of the same trials × features."
        )
    n = parts[0].shape[0]
    model = pair_model(D, n)
    if comparison == "whitened" and not model.is_full:
        raise InvalidInput("window RSA: the whitened comparison needs all pairs; use 'pearson' for this model.")
    if weights is None:
        return
    w = np.asarray(weights, float)
    if w.shape != (len(parts),) or not np.isfinite(w).all():
        raise DataMismatch(f"window RSA: {w.size} weights do not fit {len(parts)} positions; give one number each.")
    if distance == "correlation" and ((w < 0).any() or (w > 0).sum() < 2):
        raise InvalidInput("window RSA: a correlation needs weights of at least 0, two of them positive.")
