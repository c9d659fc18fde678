"""Restricted maximum likelihood of a linear model with independent random effects, crossed or nested.

    y = Xβ + Σ_k Z_k b_k + e,   var(b_k) = φ_k σ²,   var(e) = σ²

With every vector projected off X (tildes) the likelihood of n − p values is left, V = I + Z̃ΦZ̃ᵀ, and up to constants

    deviance = log|V| + (n − p) log(ỹᵀV⁻¹ỹ),
    ∂/∂φ_k  = tr(Z̃_kᵀV⁻¹Z̃_k) − (n − p) |Z̃_kᵀV⁻¹ỹ|² / (ỹᵀV⁻¹ỹ),

which needs only the cross products Z̃ᵀZ̃ and Z̃ᵀỹ (matrices of the size of all levels together, whatever n is). It is
minimised over x_k = log(1 + g_k φ_k) ≥ 0, g_k the mean diagonal of Z̃_kᵀZ̃_k: on this scale a variance of zero is
an ordinary point with a slope, so that such features converge like others. σ² and var(β) follow by generalised least
squares. In balanced data with positive estimates the result equals that of the analysis of variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

_LARGEST = np.log(1e10)  # of x
_RESIDUAL = 1e-9  # a residual below this share of the sum of squares of y is rounding
_FLAT = 1e-4  # largest slope of the deviance, per unit of x, at a solution


@dataclass(frozen=True)
class MixedFit:
    """Estimates of one feature.

    Attributes
    ----------
    beta, se : ndarray, shape (p,)
        Fixed effects and their standard errors.
    variances : ndarray, shape (K,)
        Of the random effects.
    residual : float
    converged : bool
        Whether the slope is zero, or upwards at a variance of zero, and some residual is left.
    """

    beta: np.ndarray
    se: np.ndarray
    variances: np.ndarray
    residual: float
    converged: bool


def fit_mixed(Y: np.ndarray, X: np.ndarray, Z: list[np.ndarray]) -> list[MixedFit]:
    """Fit the same model to every column.

    Parameters
    ----------
    Y : ndarray, shape (n, m)
        Finite and not constant.
    X : ndarray, shape (n, p)
        Fixed effects, of full rank, with p < n.
    Z : list of ndarray, shape (n, levels)
        Design of each random effect.

    Returns
    -------
    list of MixedFit, of length m

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(np.eye(30), 4, axis=0)
    >>> Y = 5 + group @ rng.normal(size=(30, 1)) + rng.normal(size=(120, 1))
    >>> fit = fit_mixed(Y, np.ones((120, 1)), [group])[0]
    >>> fit.converged, bool(abs(fit.beta[0] - 5) < 3 * fit.se[0])
    (True, True)
    """
    basis = np.linalg.qr(X)[0]
    joined = np.hstack(Z)
    effect = np.repeat(np.arange(len(Z)), [z.shape[1] for z in Z])
    free = joined - basis @ (basis.T @ joined)
    rest = Y - basis @ (basis.T @ Y)
    gram, products, squares = free.T @ free, free.T @ rest, np.square(rest).sum(axis=0)
    size = np.bincount(effect, np.diag(gram)) / np.bincount(effect)
    fits = []
    for y, product, total in zip(Y.T, products.T, squares, strict=True):
        problem = _Deviance(gram, product, float(total), len(Y) - X.shape[1], effect, size)
        ratios, sum_of_squares, flat = problem.minimise()
        residual = sum_of_squares / problem.df
        beta, unscaled = _generalised_least_squares(y, X, joined, ratios[effect])
        converged = flat and bool(sum_of_squares > _RESIDUAL * np.square(y).sum())
        fits.append(MixedFit(beta, np.sqrt(residual * np.diag(unscaled)), ratios * residual, residual, converged))
    return fits


@dataclass(frozen=True)
class _Deviance:
    """The function of one feature to be minimised over x = log(1 + g φ)."""

    gram: np.ndarray
    product: np.ndarray
    total: float
    df: int
    effect: np.ndarray
    size: np.ndarray

    def minimise(self) -> tuple[np.ndarray, float, bool]:
        """φ, the generalised sum of squares, and whether the solution is flat."""
        bounds = [(0, _LARGEST)] * self.size.size
        starts = (np.full(self.size.size, x) for x in (np.log(2), np.log(1.1)))
        options = {"ftol": 1e-14, "gtol": _FLAT / 100, "maxiter": 500}
        found = [
            optimize.minimize(self, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in starts
        ]
        best = min(found, key=lambda result: result.fun)
        slope = np.where((best.x <= 0) & (best.jac > 0) | (best.x >= _LARGEST) & (best.jac < 0), 0, best.jac)
        ratios = np.expm1(best.x) / self.size
        return ratios, self._solve(ratios)[2], bool(np.abs(slope).max() < _FLAT * max(1, self.df / 100))

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        ratios = np.expm1(x) / self.size
        log_determinant, inner, sum_of_squares, slopes = self._solve(ratios)
        per_ratio = np.bincount(self.effect, inner) - self.df * np.bincount(self.effect, slopes**2) / sum_of_squares
        return log_determinant + self.df * np.log(sum_of_squares), per_ratio * np.exp(x) / self.size

    def _solve(self, ratios: np.ndarray) -> tuple[float, np.ndarray, float, np.ndarray]:
        """log|V|, the diagonal of Z̃ᵀV⁻¹Z̃, ỹᵀV⁻¹ỹ and Z̃ᵀV⁻¹ỹ."""
        scale = np.sqrt(ratios[self.effect])
        factor = linalg.cholesky(np.eye(scale.size) + scale[:, None] * self.gram * scale, lower=True)
        half = linalg.solve_triangular(factor, scale[:, None] * np.column_stack([self.gram, self.product]), lower=True)
        inner = np.diag(self.gram) - np.square(half[:, :-1]).sum(axis=0)
        sum_of_squares = self.total - np.square(half[:, -1]).sum()
        slopes = self.product - half[:, :-1].T @ half[:, -1]
        # Rounding must not make the sum of squares negative where nothing is left for the residual.
        return 2 * np.log(np.diag(factor)).sum(), inner, max(sum_of_squares, 1e-14 * self.total), slopes


def _generalised_least_squares(
    y: np.ndarray, X: np.ndarray, Z: np.ndarray, ratios: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """β and (XᵀV⁻¹X)⁻¹ with V = I + Z diag(ratios) Zᵀ."""
    scaled = Z * np.sqrt(ratios)
    factor = linalg.cho_factor(np.eye(Z.shape[1]) + scaled.T @ scaled)
    targets = np.column_stack([X, y])
    whitened = targets - scaled @ linalg.cho_solve(factor, scaled.T @ targets)  # V⁻¹ [X y]
    unscaled = np.linalg.inv(X.T @ whitened[:, :-1])
    return unscaled @ (X.T @ whitened[:, -1]), unscaled
