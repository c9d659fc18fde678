"""Distances between sequences of different length, without a window, and distance correlation with a model.

Dynamic time warping (Sakoe & Chiba 1978), symmetric steps: with the distance c_ij of token i of one sequence and j of
the other,

    g_ij = min(g_(i−1)j + c_ij,  g_i(j−1) + c_ij,  g_(i−1)(j−1) + 2 c_ij),    DTW = g_LM / (L + M).

Every path then has the same total weight L + M, so the division is by the length of the path whatever path is best,
and the result is the mean distance of aligned tokens. g_ij needs only the two anti-diagonals before its own, and cells
beyond the end of a sequence never reach its last one: all pairs are warped together on padded arrays.

===============  ================================================================  ===========================
distance         what                                                              what it ignores
===============  ================================================================  ===========================
``dtw``          mean distance of tokens that are aligned in order                 pauses, speed, shifts
``energy``       √(2 E|a − b| − E|a − a′| − E|b − b′|) of tokens drawn at random   order and length
``transport``    mean over features of ∫ |F_a − F_b|, the cost of moving values    order, length, and which
                 of one sequence onto those of the other                           values go together
``profile``      1 − distance correlation of the courses at equal relative         length, and which features
                 positions                                                         (or signs) carry the course
===============  ================================================================  ===========================

Energy distance: Székely & Rizzo (2013). Distance correlation (Székely, Rizzo & Bakirov 2007): with A the distances of
one and B of the other variable and H the centring matrix,

    dCor² = ⟨HAH, HBH⟩ / (‖HAH‖ ‖HBH‖).

For a number x of every row and a model B = D, ⟨HAH, HDH⟩ = Σ_ij (HDH)_ij |x_i − x_j|: RSA with absolute distances of
the doubly centred model. It is 0 in the long run only if x and the model are independent, but above 0 in any sample:
test it by permutation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import BLOCK, column_blocks
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.model import centred_kernel, pair_model
from neurollm.stats.rdms.pairs import pair_vectors

SEQUENCE_DISTANCES = ("dtw", "energy", "transport", "profile")
_CELLS = 1 << 22  # cells of cost matrices warped at a time
_FLAT = 1e-12


def sequence_distances(
    sequences: Sequence[np.ndarray], distance: str = "dtw", *, band: int | None = None
) -> np.ndarray:
    """Distances of all pairs of sequences.

    Parameters
    ----------
    sequences : sequence of n arrays, each (tokens, features)
    distance : {"dtw", "energy", "transport", "profile"}
        See the module for what each ignores.
    band : int, optional
        Only for ``dtw``: tokens are aligned at most so many positions apart (Sakoe–Chiba; at least the difference of
        the two lengths). Default: no limit.

    Returns
    -------
    ndarray, shape (n, n)
        NaN with a sequence that holds a value that is not finite, and for ``profile`` with one that has fewer than
        two tokens or does not change.

    Raises
    ------
    InvalidInput
        The distance is unknown, a sequence is empty, features differ in number, or the band is not one.

    Examples
    --------
    >>> early, late = np.array([[0.0], [5], [0], [0]]), np.array([[0.0], [0], [0], [5], [0]])
    >>> sequence_distances([early, late], "dtw").tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    sequences = _checked(sequences, distance, band)
    finite = np.array([np.isfinite(one).all() for one in sequences])
    kept = [one for one, whole in zip(sequences, finite, strict=True) if whole]
    out = np.full((len(sequences),) * 2, np.nan)
    if kept:
        compute = {"energy": _energy, "transport": _transport, "profile": _profile}
        found = _warped(kept, band) if distance == "dtw" else compute[distance](kept)
        out[np.ix_(finite, finite)] = found
    np.fill_diagonal(out, np.where(np.isnan(np.diag(out)), np.nan, 0.0))
    return out


def distance_correlation(X: object, D: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
    """Squared distance correlation of every feature with a model.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM of all pairs. A Euclidean one makes the value lie between 0 and 1; others may give less than 0.
    index : ndarray of int, shape (P, n), optional
        Rearrangements: row i of the model is replaced by row ``index[p, i]``.

    Returns
    -------
    ndarray, shape (V,), or (P, V) with `index`
        NaN where a feature is constant or not finite.

    Raises
    ------
    InvalidInput
        The model is no RDM, leaves pairs out, or does not vary.

    Examples
    --------
    >>> x = np.array([[-2.0], [-1], [0], [1], [2]])
    >>> D = np.abs(x**2 - x[:, 0] ** 2)  # depends on x, without any correlation
    >>> distance_correlation(x, D).round(3).tolist()
    [0.266]
    """
    n = X.shape[0]
    model = pair_model(D, n)
    if not model.is_full:
        raise InvalidInput("distance correlation: the model must have a distance for every pair of rows.")
    centred = -2 * centred_kernel(model.values)
    size = np.linalg.norm(centred)
    if not size > _FLAT * np.linalg.norm(model.values):
        raise InvalidInput("distance correlation: the model does not vary.")
    first, second = np.triu_indices(n, 1)
    models = np.atleast_2d(pair_vectors(centred, index))
    found = []
    for _, block in column_blocks(X, max(1, BLOCK // 4)):
        finite = np.isfinite(block).all(axis=0)
        block = np.where(finite, block, 0.0)
        spread = np.ptp(block, axis=0)
        varies = finite & (spread > NOISE * np.abs(block).max(axis=0, initial=0))
        block = (block - block[:1]) / np.where(varies, spread, 1)
        distances = np.abs(block[first] - block[second])
        sums = np.zeros((n, block.shape[1]))
        for row in range(n):
            sums[row] = np.abs(block - block[row]).sum(axis=0)
        # ‖HAH‖² = Σ A² − 2/n Σ (row sums)² + (total)²/n²
        norm2 = 2 * (distances**2).sum(axis=0) - 2 / n * (sums**2).sum(axis=0) + (sums.sum(axis=0) / n) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(varies, 2 * models @ distances / (size * np.sqrt(norm2)), np.nan))
    joined = np.concatenate([np.empty((len(models), 0)), *found], axis=1)
    return joined[0] if index is None else joined


def _warped(sequences: list[np.ndarray], band: int | None) -> np.ndarray:
    """DTW of all pairs, many at a time."""
    lengths = np.array([len(one) for one in sequences])
    n, longest = len(sequences), int(lengths.max())
    padded = np.zeros((n, longest, sequences[0].shape[1]))
    for row, one in enumerate(sequences):
        padded[row, : len(one)] = one
    first, second = np.triu_indices(n, 1)
    out = np.zeros((n, n))
    step = max(1, _CELLS // longest**2)
    for start in range(0, first.size, step):
        a, b = first[start : start + step], second[start : start + step]
        out[a, b] = out[b, a] = _warp(_token_distances(padded, a, b), lengths[a], lengths[b], band)
    return out


def _token_distances(padded: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of the tokens of pairs of sequences, shape (B, L, L)."""
    if padded.shape[2] == 1:
        return np.abs(padded[a] - padded[b].transpose(0, 2, 1))
    from scipy.spatial.distance import cdist

    return np.stack([cdist(padded[i], padded[j]) for i, j in zip(a, b, strict=True)])


def _warp(cost: np.ndarray, left: np.ndarray, right: np.ndarray, band: int | None) -> np.ndarray:
    """DTW of B pairs from their token distances, (B, L, L), by anti-diagonals i + j = k."""
    count, longest = cost.shape[:2]
    reach = None if band is None else np.maximum(band, np.abs(left - right))[:, None]
    # Cell i of a diagonal stands at i + 1; the first place is the outside.
    before, last = np.full((2, count, longest + 1), np.inf)
    out = np.empty(count)
    for k in range(int((left + right).max()) - 1):
        i = np.arange(max(0, k - longest + 1), min(k, longest - 1) + 1)
        own = cost[:, i, k - i]
        steps = np.minimum(last[:, i], last[:, i + 1]) + own
        crossing = before[:, i] + 2 * own if k else 2 * own
        g = np.minimum(steps, crossing)
        if reach is not None:
            g = np.where(np.abs(2 * i - k) <= reach, g, np.inf)
        before, last = last, np.full((count, longest + 1), np.inf)
        last[:, i + 1] = g
        done = left + right - 2 == k
        out[done] = last[done, left[done]]
    return out / (left + right)


def _energy(sequences: list[np.ndarray]) -> np.ndarray:
    from scipy.spatial.distance import cdist

    tokens, starts = np.concatenate(sequences), np.cumsum([0, *(len(one) for one in sequences)])
    lengths = np.diff(starts)
    sums = np.stack([np.add.reduceat(cdist(one, tokens).sum(axis=0), starts[:-1]) for one in sequences])
    means = sums / lengths / lengths[:, None]
    means, own = means + means.T, np.diag(means)
    return np.sqrt(np.clip(means - (own + own[:, None]), 0, None))


def _transport(sequences: list[np.ndarray]) -> np.ndarray:
    """Mean over features of the area between distribution functions, which step at the tokens' values only."""
    from scipy.spatial.distance import pdist, squareform

    owner = np.repeat(np.arange(len(sequences)), [len(one) for one in sequences])
    tokens, lengths = np.concatenate(sequences), np.bincount(owner)
    total = np.zeros((len(sequences),) * 2)
    for values in tokens.T:
        grid, place = np.unique(values, return_inverse=True)
        share = np.zeros((len(sequences), grid.size))
        np.add.at(share, (owner, place.ravel()), 1 / lengths[owner])
        total += squareform(pdist(np.cumsum(share, axis=1)[:, :-1] * np.diff(grid), "cityblock"))
    return total / tokens.shape[1]


def _profile(sequences: list[np.ndarray]) -> np.ndarray:
    """1 − dCor of courses read at as many relative positions as the median sequence has tokens."""
    from scipy.spatial.distance import pdist, squareform

    points = max(int(np.median([len(one) for one in sequences])), 3)
    centred = np.full((len(sequences), points**2), np.nan)
    for row, one in enumerate(sequences):
        if len(one) < 2:
            continue
        where = np.linspace(0, len(one) - 1, points)
        low = np.minimum(where.astype(int), len(one) - 2)
        course = one[low] + (where - low)[:, None] * (one[low + 1] - one[low])
        flat = -2 * centred_kernel(squareform(pdist(course))).ravel()
        size = np.linalg.norm(flat)
        if size > NOISE * points * np.abs(one).max():
            centred[row] = flat / size
    return 1 - np.sqrt(np.clip(centred @ centred.T, 0, 1))


def _checked(sequences: Sequence[np.ndarray], distance: str, band: int | None) -> list[np.ndarray]:
    if distance not in SEQUENCE_DISTANCES:
        raise InvalidInput(
            f"sequences: distance {distance!r} is unknown; it is one of {', '.join(SEQUENCE_DISTANCES)}."
        )
    if band is not None and (distance != "dtw" or isinstance(band, bool) or int(band) != band or band < 0):
        raise InvalidInput(f"sequences: band is a whole number of at least 0, and for 'dtw' only; found {band!r}.")
    arrays = [np.asarray(one, float) for one in sequences]
    if len(arrays) < 2:
        raise InvalidInput(f"sequences: distances need at least two sequences, found {len(arrays)}.")
    for number, one in enumerate(arrays):
        if one.ndim != 2 or not one.size or one.shape[1] != arrays[0].shape[1]:
            raise InvalidInput(
                f"sequences: number {number} has shape {one.shape}; each is tokens × features, none is empty, and all "
                "have the same features."
            )
    return arrays
