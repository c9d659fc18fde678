"""Tails of permutation distributions from their exact moments, without permutations.

Rows are exchanged inside blocks, P uniform over these permutations. x is a row vector, y a column of the
data, both centred inside blocks; r = xᵀPy/ν with ν = ‖y‖. Blocks b of n_b rows move independently, so
the cumulants of r are sums over blocks, and those of one block are those of sampling without replacement:

    E r² = Σ_b X2_b Y2_b / (n_b − 1) / ν²                          X2_b = Σ_{i∈b} x_i², …
    E r³ = Σ_b n_b X3_b Y3_b / ((n_b − 1)(n_b − 2)) / ν³           (0 in blocks of one or two rows)

The tail is that of the Pearson type III distribution (a shifted gamma) with these moments (Pitman 1937;
Kazi-Aoual et al. 1995; Winkler et al. 2016), or, for R² = Σ_j r_j² over q orthonormal rows, of the beta
distribution with the exact mean and variance. With H = XXᵀ, t_b = Σ H_aa, f_b = Σ H_ab² and h_b = Σ H_aa² over
the rows of block b, the fourth-order sums of H and of y over the index patterns aaaa, aaab, aabb, aabc and abcd
give E Q_b² for Q_b = yᵀPᵀH_bPy; the off-diagonal blocks of H add 2 Σ_{b≠c} tr(C_b C_c), C_b = cov(X_bᵀP_b y_b).

Limits. Three moments do not know where the distribution ends: the light tail of a skewed feature in unequal groups is
liberal below p = 1e-4 (a hundredfold for 5 of 80 rows), all other tails are conservative. For two groups
and for signs `neurollm.stats.two_groups` and `neurollm.stats.flips` are close to exact. The beta distribution
is liberal for skewed features in groups of unequal size (up to fivefold at p = 1e-4).

Freedman–Lane: ρ = r / √(1 − Σ_k (z_kᵀPy/ν)²) with the residual y. The numerator's moments are exact;
the denominator enters by its exact mean, so that with one block var ρ ≈ 1/(n − 1 − k). An approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.power_sums import RAW, Groups, add_up, group_rows, group_totals, within

Alternative = Literal["two-sided", "greater", "less"]

SMALLEST = float(np.finfo(float).tiny)  # a p value is never 0
_CONSTANT = 1e-24  # a sum of squares below this share of its raw one is rounding
_NEARLY_NORMAL = 0.02  # skewness up to which an expansion takes over; relative error below 1e-7


@dataclass(frozen=True)
class PermutationMoments:
    """Moments of the (partial) correlation of V features over all permutations.

    Attributes
    ----------
    variance, skewness : ndarray, shape (V,)
        Skewness is standardised: third moment over variance^1.5. The mean is 0. NaN for a constant or
        non-finite feature.
    """

    variance: np.ndarray
    skewness: np.ndarray


def label_moments(
    x: np.ndarray,
    Y: Any,
    blocks: np.ndarray | None = None,
    *,
    nuisance: np.ndarray | None = None,
    rest: np.ndarray | None = None,
) -> PermutationMoments:
    """Variance and skewness of the (partial) correlation of `x` with every column under permutation.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Unit norm, centred inside blocks.
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    blocks : ndarray, shape (n,), optional
        Rows with equal labels are exchanged; default: all rows.
    nuisance : ndarray, shape (n, k), optional
        Orthonormal, orthogonal to `x` and the block indicators; not shuffled (Freedman & Lane 1983).
    rest : ndarray, shape (n, s), optional
        Likewise orthonormal, shuffled along with `x`: the statistic is the partial correlation given it.

    Returns
    -------
    PermutationMoments
        Exact without `nuisance` and `rest`, else approximate (see the module).

    Raises
    ------
    InvalidInput
        `x` or another row is not centred inside blocks or not of unit norm, or shapes disagree.

    Examples
    --------
    >>> x = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    >>> moments = label_moments(x, np.array([[0.0], [0.0], [3.0]]))
    >>> moments.variance.round(12).tolist(), moments.skewness.round(12).tolist()
    ([0.5], [0.0])
    """
    groups = group_rows(blocks, Y.shape[0])
    x = _rows(x, groups, "x")
    removed = [_rows(rows, groups, name) for rows, name in ((nuisance, "nuisance"), (rest, "rest")) if rows is not None]
    n = groups.sizes
    # A block of one or two rows has no third moment; its denominator is made harmless.
    second = group_totals(x**2, groups)[:, 0] / np.maximum(n - 1, 1)
    third = np.where(n > 2, group_totals(x**3, groups)[:, 0] * n / np.maximum((n - 1) * (n - 2), 1), 0.0)
    shared = sum((group_totals(rows**2, groups).sum(axis=1) for rows in removed), np.zeros(n.size)) / np.maximum(
        n - 1, 1
    )

    def terms(g, sums):
        return [sums[RAW], sums[2], second[g] * sums[2], third[g] * sums[3], shared[g] * sums[2]]

    residual = removed[0] if nuisance is not None else None
    raw, norm2, variance, cube, lost = add_up(Y, groups, (2, 3), terms, residual)
    norm2 = varying(norm2, raw)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = cube / variance**1.5
        return PermutationMoments(variance / (norm2 - lost), np.where(np.isfinite(norm2), skewness, np.nan))


def quadratic_moments(X: np.ndarray, Y: Any, blocks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of R² = Σ_j (x_jᵀPy)²/ν² over all permutations inside blocks.

    Parameters
    ----------
    X : ndarray, shape (n, q)
        Orthonormal, centred inside blocks.
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    blocks : ndarray, shape (n,), optional

    Returns
    -------
    mean, variance : ndarray, shape (V,)
        NaN for a constant or non-finite feature.

    Raises
    ------
    InvalidInput
        `X` is not centred inside blocks or not orthonormal, or shapes disagree.

    Examples
    --------
    >>> X = np.linalg.qr([[1.0, 0], [0, 1], [-1, -1], [0, 0]])[0]
    >>> mean, variance = quadratic_moments(X, np.array([[0.0], [0.0], [1.0], [0.0]]))
    >>> round(mean[0], 12)
    np.float64(0.666666666667)
    """
    groups = group_rows(blocks, Y.shape[0])
    X = _rows(X, groups, "X")
    n = groups.sizes
    gram = group_totals(X[:, :, None] * X[:, None, :], groups)
    trace, square = np.einsum("bii->b", gram), np.sum(gram**2, axis=(1, 2))
    # Elements of the symmetric Gram matrix; those off the diagonal count twice in the squared norm.
    upper = np.triu_indices(X.shape[1])
    elements = gram[:, *upper] * np.where(upper[0] == upper[1], 1, np.sqrt(2))
    linear = np.divide(1, n - 1, where=n > 1, out=np.zeros(n.size))
    four, two_two = _fourth_order(trace, square, group_totals(np.sum(X**2, axis=1) ** 2, groups), n)

    def terms(g, sums):
        share = linear[g] * sums[2]
        own = four[g] * sums[4] + two_two[g] * sums[2] ** 2 - (trace[g] ** 2 + 2 * square[g]) * share**2
        return [
            sums[RAW],
            sums[2],
            trace[g] * share,
            own,
            *(elements[:, k][g] * share for k in range(elements.shape[1])),
        ]

    raw, norm2, mean, own, *cross = add_up(Y, groups, (2, 4), terms)
    norm2 = varying(norm2, raw)
    return mean / norm2, (own + 2 * sum(total**2 for total in cross)) / norm2**2


def _fourth_order(t: np.ndarray, f: np.ndarray, h: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of Σy⁴ and (Σy²)² in E(yᵀPᵀHPy)² for symmetric H with zero row sums."""
    falling = np.cumprod([n, n - 1, n - 2, n - 3], axis=0)
    e4, e2, e3, e1 = (np.divide(1, np.maximum(row, 1)) * (row > 0) for row in falling)
    aaab, aabb, aabc = -4 * h, t**2 + 2 * f - 3 * h, 12 * h - 2 * t**2 - 4 * f
    abcd = t**2 + 2 * f - 6 * h
    return h * e4 - (aaab + aabb) * e2 + 2 * aabc * e3 - 6 * abcd * e1, aabb * e2 - aabc * e3 + 3 * abcd * e1


def pearson3_p(
    r: np.ndarray,
    variance: np.ndarray,
    skewness: np.ndarray,
    alternative: Alternative = "two-sided",
    floor: float = SMALLEST,
) -> np.ndarray:
    """Tail probability of the Pearson type III distribution with mean 0.

    Parameters
    ----------
    r, variance, skewness : ndarray, shape (V,)
    alternative : {"two-sided", "greater", "less"}
        Two-sided is twice the smaller tail, at most 1.
    floor : float, default=smallest float
        Least p returned; one over the number of possible arrangements is a bound of every permutation p. The
        fitted distribution ends at ``mean − 2 sd/skewness``, where the permutation distribution need not.

    Returns
    -------
    ndarray, shape (V,)
        NaN where an input is.

    Examples
    --------
    >>> pearson3_p(np.array([0.0, 1.96]), np.ones(2), np.zeros(2)).round(3).tolist()
    [1.0, 0.05]
    """
    r, variance, skewness = np.broadcast_arrays(*(np.asarray(value, float) for value in (r, variance, skewness)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = r / np.sqrt(variance)
        upper, lower = (
            None if alternative == side else _gamma_tail(sign * z, sign * skewness)
            for side, sign in (("less", 1), ("greater", -1))
        )
    return combine_tails(upper, lower, floor)


def beta_p(r2: np.ndarray, mean: np.ndarray, variance: np.ndarray, floor: float = SMALLEST) -> np.ndarray:
    """Upper tail probability of the beta distribution with the given mean and variance.

    Parameters
    ----------
    r2, mean, variance : ndarray, shape (V,)
    floor : float, default=smallest float
        Least p returned.

    Returns
    -------
    ndarray, shape (V,)
        NaN where an input is, or where no beta distribution has these moments.

    Examples
    --------
    >>> beta_p(np.array([0.25]), np.array([0.5]), np.array([1 / 12])).round(12).tolist()
    [0.75]
    """
    r2, mean, variance = (np.asarray(value, float) for value in (r2, mean, variance))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = mean * (1 - mean) / variance - 1
        size = np.where(size > 0, size, np.nan)
    p = special.betaincc(mean * size, (1 - mean) * size, np.clip(r2, 0, 1))
    return np.clip(p, floor, 1)


def combine_tails(upper: np.ndarray | None, lower: np.ndarray | None, floor: float) -> np.ndarray:
    """One tail, or twice the smaller of two; between `floor` and 1."""
    p = upper if lower is None else lower if upper is None else 2 * np.minimum(upper, lower)
    return np.clip(p, floor, 1)


def varying(norm2: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Sums of squares about the mean, with NaN where only rounding is left of the raw sum of squares."""
    with np.errstate(invalid="ignore"):
        return np.where(norm2 > _CONSTANT * raw, norm2, np.nan)


def _gamma_tail(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """P(Z ≥ z) for the standardised Pearson III distribution: Z = (G − a)·skewness/2, G ~ gamma(a), a = 4/skewness²."""
    tail = np.empty(z.shape)
    # With large a the incomplete gamma functions of scipy lose the lower tail entirely.
    near = ~(np.abs(skewness) > _NEARLY_NORMAL)
    tail[near] = _nearly_normal_tail(z[near], skewness[near])
    z, skewness = z[~near], skewness[~near]
    a = 4 / skewness**2
    g = np.maximum(a + 2 * z / skewness, 0)
    tail[~near] = np.where(skewness > 0, special.gammaincc(a, g), special.gammainc(a, g))
    return tail


def _nearly_normal_tail(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Uniform expansion of the incomplete gamma functions for large a (Temme 1979); normal for skewness 0."""
    mu = np.maximum(z * skewness / 2, -1 + 1e-12)  # g/a − 1
    small = np.abs(mu) < 1e-2
    series = np.polyval([1331 / 12960, -73 / 540, 7 / 36, -1 / 3, 1], np.where(small, mu, 0))
    safe = np.where(small, 1, mu)
    ratio = np.where(small, series, np.sqrt(2 * (safe - np.log1p(safe))) / np.abs(safe))  # η/μ
    eta, w = mu * ratio, z * ratio
    correction = np.where(
        small,
        np.polyval([1 / 2835, 1 / 864, -2 / 135, 1 / 12, -1 / 3], eta),
        (1 - 1 / np.where(small, 1, ratio)) / safe,
    )
    return special.ndtr(-w) + skewness / 2 * np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi) * correction


def _rows(rows: np.ndarray, groups: Groups, name: str) -> np.ndarray:
    """Rows as n × k in the sorted order, checked."""
    rows = np.asarray(rows, float)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.shape[0] != groups.order.size:
        raise InvalidInput(f"{name} has {rows.shape[0]} rows; expected {groups.order.size}, as the data.")
    centred = within(rows, groups)
    if not np.allclose(centred, rows[groups.order], atol=1e-8):
        raise InvalidInput(f"{name} must be centred inside blocks; subtract the mean of each block.")
    if not np.allclose(centred.T @ centred, np.eye(rows.shape[1]), atol=1e-8):
        raise InvalidInput(f"{name} must have orthonormal columns; divide each by its norm.")
    return centred
