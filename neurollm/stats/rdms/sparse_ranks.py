"""Spearman's correlation and ρ_a of sparse features with a model, exactly, without writing out their pairs.

A feature that is active in k of n trials (the set A; Z are the others) has distances of three kinds: 0 between two of
Z (z(z − 1)/2 pairs), |x_i| between i ∈ A and Z (z pairs each) and |x_i − x_j| inside A. So k + k(k − 1)/2 + 1 different
values with known multiplicities carry all ranks. With R the ranks of the model and T their sum over all pairs, the sums
of R over the pairs of each value are

    A–A: R_ij,     A–Z: Σ_j R_ij − Σ_{j∈A} R_ij,     Z–Z: T − (A–Z) − (A–A),

so a feature costs O(k² log k). Features that are active in all trials but a few are no worse than dense ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neurollm.stats.arrays import canonical_columns
from neurollm.stats.linear import NOISE
from neurollm.stats.rdms.model import without_rounding


def sparse_rank_scores(X: Any, D: np.ndarray, comparison: str) -> np.ndarray:
    """Rank correlation of every sparse feature with a model of all pairs.

    Parameters
    ----------
    X : scipy.sparse, shape (n, V)
    D : ndarray, shape (n, n)
    comparison : {"spearman", "rho_a"}

    Returns
    -------
    ndarray, shape (V,)
        NaN for constant features.

    Examples
    --------
    >>> from scipy import sparse, stats
    >>> x, y = np.array([0, 0, 3.0, 0, 1]), np.array([5.0, 1, 2, 4, 9])
    >>> D = np.abs(y[:, None] - y)
    >>> pairs = np.triu_indices(5, 1)
    >>> r = sparse_rank_scores(sparse.csc_array(x[:, None]), D, "spearman")[0]
    >>> bool(np.isclose(r, stats.spearmanr(np.abs(x[:, None] - x)[pairs], D[pairs]).statistic))
    True
    """
    from scipy.stats import rankdata

    n = len(D)
    rows, columns = np.triu_indices(n, 1)
    m = rows.size
    ranks = np.zeros((n, n))
    ranks[rows, columns] = rankdata(without_rounding(D[rows, columns]))
    ranks += ranks.T
    middle = (m + 1) / 2
    model_spread = np.sqrt(np.sum((ranks[rows, columns] - middle) ** 2))
    model = _Model(ranks, ranks.sum(axis=1), m * middle)
    csc = canonical_columns(X)
    out = np.full(csc.shape[1], np.nan)
    for feature in range(csc.shape[1]):
        stored = slice(csc.indptr[feature], csc.indptr[feature + 1])
        x, active = csc.data[stored], csc.indices[stored]
        x, active = x[x != 0], active[x != 0]
        if not x.size or not np.isfinite(x).all():
            continue
        spread = np.ptp(x) if x.size == n else max(x.max(), 0) - min(x.min(), 0)
        if not spread > NOISE * np.abs(x).max():
            continue
        x = x / spread
        product, own = model.compare(x, active)
        if own > 0:
            out[feature] = product / (own * model_spread) if comparison == "spearman" else 12 * product / (m**3 - m)
    return out


class _Model:
    def __init__(self, ranks: np.ndarray, sums: np.ndarray, total: float) -> None:
        self._ranks, self._sums, self._total = ranks, sums, total

    def compare(self, x: np.ndarray, active: np.ndarray) -> tuple[float, float]:
        """Σ (R_x − R̄)(R_D − R̄) over all pairs, and √Σ (R_x − R̄)²."""
        n, k = len(self._ranks), x.size
        z = n - k
        inside = self._ranks[np.ix_(active, active)]
        first, second = np.triu_indices(k, 1)
        across = self._sums[active] - inside.sum(axis=1)
        values = without_rounding(np.concatenate([np.abs(x[first] - x[second]), np.abs(x), [0.0]]))
        counts = np.concatenate([np.ones(first.size), np.full(k, z), [z * (z - 1) / 2]])
        sums = np.concatenate([inside[first, second], across, [self._total - across.sum() - inside.sum() / 2]])
        if not z:
            sums[-k - 1 :] = 0.0
        _, which = np.unique(values, return_inverse=True)
        size, sums = np.bincount(which, counts), np.bincount(which, sums)
        rank = np.cumsum(size) - size + (size + 1) / 2 - (n * (n - 1) / 2 + 1) / 2
        used = size > 0
        middle = (n * (n - 1) / 2 + 1) / 2
        deviation = rank[used] @ (sums[used] - middle * size[used])
        own = np.sqrt(size[used] @ rank[used] ** 2) if np.count_nonzero(used) > 1 else 0.0
        return float(deviation), float(own)
