"""How alike two RDMs are, with missing pairs and any number of conditions.

==================  =============  ==========================================================================
comparison          rsatoolbox     for the upper triangles d, e of two RDMs over n conditions
==================  =============  ==========================================================================
``pearson``         corr           correlation
``cosine``          cosine         ``⟨d, e⟩ / (‖d‖ ‖e‖)``
``spearman``        spearman       correlation of ranks
``rho_a``           rho-a          expected Spearman correlation when ties are broken at random
``tau_a``           tau-a          Kendall's τ without a correction for ties
``whitened``        cosine_cov     ``⟨d, e⟩_V / (‖d‖_V ‖e‖_V)``, linear CKA for complete RDMs
``whitened_pearson``  corr_cov     the same after subtracting the mean of each RDM
==================  =============  ==========================================================================

V is the covariance of distances whose conditions have independent noise of equal variance (Diedrichsen et al. 2021,
arXiv 2007.02789). Its inverse needs no pairs × pairs matrix: with M marking the pairs that are there and the diagonal,
r = (M∘D)1 and A = diag(M1) + M,

    ⟨d, e⟩_V ∝ Σ_{i<j} d_ij e_ij − r_dᵀ A⁻¹ r_e,

because the missing distances take the values that make the quadratic form smallest, and what row and column effects
explain is removed. For complete RDMs that is ⟨HDH, HEH⟩. With a covariance S of the noise of conditions, it is
``tr(S⁻¹ K_D S⁻¹ K_E)`` with ``K = −½ H_S D H_Sᵀ`` and ``H_S = I − 1(1ᵀS⁻¹1)⁻¹1ᵀS⁻¹``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.toolbox import square
from neurollm.validation import closest, listed, shown

Comparison = Literal["pearson", "cosine", "spearman", "rho_a", "tau_a", "whitened", "whitened_pearson"]
COMPARISONS = {
    "pearson": "corr",
    "cosine": "cosine",
    "spearman": "spearman",
    "rho_a": "rho-a",
    "tau_a": "tau-a",
    "whitened": "cosine_cov",
    "whitened_pearson": "corr_cov",
}
WHITENED = ("whitened", "whitened_pearson")
_REFUSED = {
    "bures": "it has no noise ceiling and no values for RDMs with missing pairs",
    "bures_metric": "it has no noise ceiling and no values for RDMs with missing pairs",
    "neg_riem_dist": "it is not defined for RDMs of less than full rank, which most RDMs of models are",
}


def check_comparison(comparison: Any) -> str:
    """rsatoolbox's name of a comparison, or a sentence."""
    if comparison in COMPARISONS:
        return COMPARISONS[comparison]
    if comparison in _REFUSED:
        raise InvalidInput(f"comparison {shown(comparison)} is not offered: {_REFUSED[comparison]}.")
    ours = {theirs: name for name, theirs in COMPARISONS.items()}.get(comparison)
    hint = f"; here it is called '{ours}'" if ours else closest(str(comparison), COMPARISONS)
    raise InvalidInput(f"comparison {shown(comparison)} is unknown{hint}. The comparisons are {listed(COMPARISONS)}.")


def compare_rdms(
    first: Any, second: Any, comparison: Comparison = "pearson", *, noise_covariance: np.ndarray | None = None
) -> np.ndarray:
    """Compare each RDM of one set with each of another.

    Parameters
    ----------
    first, second : rsatoolbox.rdm.RDMs, or ndarray of upper triangles, shape (k, m)
        A pair that is NaN in any RDM is left out of all.
    comparison : {"pearson", "cosine", "spearman", "rho_a", "tau_a", "whitened", "whitened_pearson"}
    noise_covariance : ndarray, shape (n,) or (n, n), optional
        Variances, or covariance, of the noise of the conditions, for the whitened comparisons of complete RDMs.

    Returns
    -------
    ndarray, shape (k_first, k_second)
        NaN for an RDM whose distances are all alike (pearson, spearman, whitened) or all 0.

    Raises
    ------
    InvalidInput
        The comparison is unknown or not offered, or `noise_covariance` is not one.
    DataMismatch
        The RDMs differ in size, or fewer than three pairs are in all of them.

    Examples
    --------
    >>> compare_rdms(np.array([[1.0, 2, 3]]), np.array([[2.0, 4, 6], [3.0, 2, 1]])).round(6).tolist()
    [[1.0, -1.0]]
    """
    method = check_comparison(comparison)
    left, right, present = _vectors(first), _vectors(second), None
    if left.shape[1] != right.shape[1]:
        raise DataMismatch(f"RDMs with {left.shape[1]} pairs cannot be compared with RDMs with {right.shape[1]}.")
    present = ~(np.isnan(left).any(axis=0) | np.isnan(right).any(axis=0))
    if present.sum() < 3:
        raise DataMismatch(f"only {present.sum()} pairs of conditions are in all RDMs; at least 3 are needed.")
    if noise_covariance is not None:
        if comparison not in WHITENED:
            raise InvalidInput(f"noise_covariance is for the comparisons {listed(WHITENED)}, not {shown(comparison)}.")
        if not present.all():
            raise InvalidInput("noise_covariance needs complete RDMs; drop the conditions of the missing pairs first.")
        covariance = _covariance(noise_covariance, square(left[:1]).shape[1])
        left, right = (_centred(side, comparison == "whitened_pearson") for side in (left, right))
        return _normalised(_whiten(left, covariance), _whiten(right, covariance))
    left, right = left[:, present], right[:, present]
    defined = np.outer(varies(left, comparison), varies(right, comparison))
    if comparison in WHITENED:
        left, right = (_centred(side, comparison == "whitened_pearson") for side in (left, right))
        found = whitened_cosine(left, right, None, present)
    else:
        from rsatoolbox.rdm import compare

        found = compare(left, right, method=method)
    return np.where(defined, found, np.nan)


def whitened_cosine(
    left: np.ndarray, right: np.ndarray, sigma_k: None = None, present: np.ndarray | None = None
) -> np.ndarray:
    """Whitened cosine of RDMs with missing pairs, without a matrix over pairs.

    Parameters
    ----------
    left, right : ndarray, shape (k, number of pairs that are there)
    sigma_k : None
        In the place where rsatoolbox gives the noise covariance; its bootstraps have none.
    present : ndarray of bool, shape (m,), optional
        Which pairs these are; default: all.

    Returns
    -------
    ndarray, shape (k_left, k_right)
    """
    if sigma_k is not None:
        raise InvalidInput("a noise covariance of conditions can be used only in compare_rdms.")
    present = np.ones(left.shape[1], bool) if present is None else present
    mask = square(present.astype(float))[0]
    np.fill_diagonal(mask, 1.0)
    effects = np.diag(mask.sum(axis=1)) + mask
    full = np.zeros((len(left) + len(right), present.size))
    full[:, present] = np.concatenate([left, right])
    sums = square(full).sum(axis=2)
    solved = np.linalg.solve(effects, sums.T).T
    here = slice(0, len(left)), slice(len(left), None)
    own = (full**2).sum(axis=1) - (sums * solved).sum(axis=1)
    inner = full[here[0]] @ full[here[1]].T - sums[here[0]] @ solved[here[1]].T
    own = np.where(own > 1e-12 * (full**2).sum(axis=1), own, np.nan)
    return inner / np.sqrt(np.outer(own[here[0]], own[here[1]]))


def _whiten(vectors: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Flat L⁻¹ K L⁻ᵀ of each RDM, with K = −½ H_S D H_Sᵀ and S = L Lᵀ."""
    n = len(covariance)
    inverse = np.linalg.inv(covariance)
    weights = inverse.sum(axis=0) / inverse.sum()
    H = np.eye(n) - weights  # row i: e_i less the weighted mean
    whitening = np.linalg.solve(np.linalg.cholesky(covariance), H)
    return (-0.5 * whitening @ square(vectors) @ whitening.T).reshape(len(vectors), -1)


def _covariance(noise_covariance: np.ndarray, n: int) -> np.ndarray:
    found = np.asarray(noise_covariance, float)
    found = np.diag(found) if found.ndim == 1 else found
    if found.shape != (n, n) or not np.allclose(found, found.T) or (np.linalg.eigvalsh(found) <= 0).any():
        raise InvalidInput(
            f"noise_covariance must hold {n} positive variances or a symmetric, positive definite {n} × {n} matrix."
        )
    return found


def _normalised(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = (side / np.sqrt((side**2).sum(axis=1, keepdims=True)) for side in (left, right))
    return left @ right.T


def _centred(vectors: np.ndarray, centre: bool) -> np.ndarray:
    return vectors - vectors.mean(axis=1, keepdims=True) if centre else vectors


def varies(vectors: np.ndarray, comparison: str) -> np.ndarray:
    """Whether the comparison is defined for RDMs (k, m), NaN in the same pairs; rsatoolbox gives 0 where it is not."""
    vectors = vectors[:, ~np.isnan(vectors[0])]
    largest = np.abs(vectors).max(axis=1)
    if comparison in ("cosine", "whitened"):
        return largest > 0
    return np.ptp(vectors, axis=1) > 1e-12 * largest


def _vectors(rdms: Any) -> np.ndarray:
    vectors = np.atleast_2d(np.asarray(getattr(rdms, "dissimilarities", rdms), float))
    n = round((1 + np.sqrt(1 + 8 * vectors.shape[1])) / 2)
    if vectors.ndim != 2 or n * (n - 1) // 2 != vectors.shape[1]:
        raise InvalidInput(f"an array of shape {vectors.shape} does not hold the upper triangles of RDMs.")
    return vectors
