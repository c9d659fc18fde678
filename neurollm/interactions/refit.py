"""The best linear use of a code, alone and beside learned columns: ridge regression in closed form.

The error e of a dictionary is regressed on the code s and on columns φ that were learned
from it (all centred; s̄, φ̄, ē are means over the fitted tokens):

    minimise  Σ ‖e − s·W − φ·A − b‖² + λ·t ‖W‖² + μ Σ_j v_j ‖A_j‖²

t is the median over features of what centring leaves of Σ s_i², so that one large feature does not decide
how much the others are penalised. With G = SᵀS + λt·I, one Cholesky factor of which
serves all columns ever added to it, ψ = φ − s·G⁻¹Sᵀφ, what the code does not know of φ, and v_j = Σ φ_j ψ_j:

    A = (φᵀψ + μ v)⁻¹ (φᵀe − φᵀS G⁻¹ Sᵀe),     W = G⁻¹ (Sᵀe − Sᵀφ·A)

So a model with φ contains the one without it (μ = ∞), with the same penalty on the code,
and what it explains beyond is due to φ. λ and μ are those of a grid that explain most of
other documents; both grids hold ∞, and that of λ goes on below its end as long as that is better.

Up to `MOST_EXACT` features G is held and factored (8 F² bytes); above, products with G⁻¹ are found by conjugate
gradients on the codes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.errors import InvalidInput
from neurollm.interactions.rows import CodedBatch, CodedRows

logger = logging.getLogger("neurollm")

PENALTIES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3)
SMALLEST_PENALTY = 1e-12
ROUNDING = 1e-10  # share of Σ s² below which what centring leaves is rounding
COLUMN_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, np.inf)
MOST_EXACT = 16_384
BATCH = 8192
AT_ONCE = 4  # batches whose SᵀS is added to G at once, because adding takes as long as multiplying
TOLERANCE, MOST_STEPS = 1e-6, 200  # of conjugate gradients

Columns = Callable[[sp.csr_matrix], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights of a regression of errors.

    Attributes
    ----------
    W : ndarray, shape (F, d)
    A : ndarray, shape (K, d)
        K is 0 without columns.
    b : ndarray, shape (d,)
    penalty, column_penalty : float
        λ and μ.
    """

    W: np.ndarray
    A: np.ndarray
    b: np.ndarray
    penalty: float
    column_penalty: float = np.inf

    def predict(self, batch: CodedBatch, columns: Columns | None = None) -> np.ndarray:
        """Predicted errors of a batch, (n, d); `columns` are the functions of a code that A belongs to."""
        found = batch.code @ self.W + self.b
        return found if columns is None else found + _double(columns(batch.pairing)) @ self.A


class Refit:
    """Ridge regression of the errors of some tokens on their codes.

    Parameters
    ----------
    fit, validation : CodedRows
        Tokens to fit, and those of other documents by which the penalties are chosen.
    by_pairing : bool, default=False
        Regress on the codes that shuffled rows are paired with, instead of the tokens' own: a null.

    Attributes
    ----------
    bias : ndarray, shape (d,)
        Mean error: the model without codes.
    constant : ndarray of bool, shape (F,)
        Features that are never active, or always alike: their weights are 0.
    linear : Solution
        The model with codes alone.
    """

    def __init__(self, fit: CodedRows, validation: CodedRows, *, by_pairing: bool = False) -> None:
        self.fit, self.validation, self.by_pairing = fit, validation, by_pairing
        self._accumulate()
        self.linear = self._choose()
        self._prepare(self.linear.penalty)

    def _code(self, batch: CodedBatch) -> sp.csr_matrix:
        return batch.pairing if self.by_pairing else batch.code

    def _accumulate(self) -> None:
        """Sums over the tokens to fit."""
        F, d = self.fit.n_features, self.fit.d
        exact = F <= MOST_EXACT
        gram = np.zeros((F, F) if exact else 0)
        held: list[sp.csr_matrix] = []
        products, codes, errors, diagonal = np.zeros((F, d)), np.zeros(F), np.zeros(d), np.zeros(F)
        for batch in self.fit.in_order(BATCH):
            code, error = self._code(batch).astype(np.float64), _double(batch.error)
            held.append(code if exact else code.astype(np.float32))
            if exact and len(held) == AT_ONCE:
                _add_gram(gram, held)
                held = []
            products += code.T @ error
            codes += np.asarray(code.sum(0)).ravel()
            errors += error.sum(0)
            diagonal += np.asarray(code.multiply(code).sum(0)).ravel()
        self.n = self.fit.n_rows
        self.code_mean, self.bias = codes / self.n, errors / self.n
        with np.errstate(invalid="ignore"):  # refused below
            self._products = products - np.outer(codes, self.bias)
        spread = diagonal - self.n * self.code_mean**2
        self.constant = spread <= ROUNDING * diagonal
        if self.constant.all():
            raise InvalidInput("the codes do not vary: no feature is active, or all tokens are alike")
        self.unit = float(np.median(spread[~self.constant]))
        if not (np.isfinite(self.unit) and np.isfinite(self._products).all()):
            raise InvalidInput("codes or errors contain NaN or infinite values, or values too large to square")
        self._products[self.constant] = 0.0
        self._held = None
        if exact:
            _add_gram(gram, held)
            gram -= np.outer(codes, self.code_mean)
            gram[self.constant] = gram[:, self.constant] = 0.0
            self._gram = gram
        else:
            varies = sp.diags(np.float32(~self.constant))
            self._held = sp.csr_matrix(sp.vstack(held, format="csr") @ varies)

    def _choose(self) -> Solution:
        """The penalty that explains most of the validation tokens."""
        zero = np.zeros((0, self.fit.d))
        best = Solution(np.zeros_like(self._products), zero, self.bias, np.inf)
        least, W, penalty = self._error(best), None, PENALTIES[0]
        while True:
            try:
                self._prepare(penalty)
            except np.linalg.LinAlgError:  # features that depend on each other, and no penalty to speak of
                return best
            W = self._solve(self._products, W)
            one = Solution(W, zero, self.bias - self.code_mean @ W, penalty)
            error = self._error(one)
            if error < least:
                best, least = one, error
            below = penalty / 10
            if below < SMALLEST_PENALTY or (below < 0.5 * PENALTIES[-1] and best is not one):
                return best
            penalty = below

    def _error(self, solution: Solution) -> float:
        """Squared error on the validation tokens."""
        return sum(
            float(np.square(_double(batch.error) - self._code(batch) @ solution.W - solution.b).sum())
            for batch in self.validation.in_order(BATCH)
        )

    def _prepare(self, penalty: float) -> None:
        """Make `_solve` multiply with G⁻¹ of this penalty."""
        from scipy.linalg import cho_factor, cho_solve

        if np.isinf(penalty):
            self._solve = lambda right, start=None: np.zeros_like(right)
        elif self._held is None:
            gram = self._gram.T.copy(order="F")  # symmetric, and in the order of LAPACK
            np.fill_diagonal(gram, gram.diagonal() + penalty * self.unit)
            root = np.sqrt(gram.diagonal())[:, None]  # all features alike, so that large ones do not drown small ones
            gram /= root
            gram /= root.T
            factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
            self._solve = lambda right, start=None: cho_solve(factor, right / root) / root
        else:
            ridge = penalty * self.unit
            self._solve = lambda right, start=None: self._conjugate_gradients(right, ridge, start)

    def _conjugate_gradients(self, right: np.ndarray, ridge: float, start: np.ndarray | None = None) -> np.ndarray:
        """G⁻¹ · right, column by column at once, from where another penalty ended."""
        code, mean = self._held, self.code_mean
        scale = ridge + np.asarray(code.multiply(code).sum(0)).ravel()[:, None]  # Jacobi preconditioner

        def times(p: np.ndarray) -> np.ndarray:
            return code.T @ (code @ p) - self.n * np.outer(mean, mean @ p) + ridge * p

        solution = np.zeros_like(right) if start is None else start.copy()
        residual = right - times(solution) if start is not None else right.copy()
        z = residual / scale
        p, rho = z.copy(), (residual * z).sum(0)
        target = TOLERANCE * np.sqrt(np.square(right).sum(0))
        for _ in range(MOST_STEPS):
            if (np.sqrt(np.square(residual).sum(0)) <= target).all():
                break
            image = times(p)
            step = rho / np.maximum((p * image).sum(0), 1e-300)
            solution += step * p
            residual -= step * image
            z = residual / scale
            rho, before = (residual * z).sum(0), rho
            p = z + p * (rho / np.maximum(before, 1e-300))
        else:
            share = float((np.sqrt(np.square(residual).sum(0)) / np.maximum(target, 1e-300)).max() * TOLERANCE)
            logger.warning("refit: conjugate gradients stopped after %d steps at a residual of %.1e", MOST_STEPS, share)
        return solution

    def with_columns(
        self, columns: Columns, fit: CodedRows | None = None, validation: CodedRows | None = None
    ) -> Solution:
        """The regression on code and columns.

        Parameters
        ----------
        columns : callable
            Code (n, F), as `CodedBatch.pairing`, → φ (n, K).
        fit, validation : CodedRows, optional
            The same tokens with shuffled pairing.

        Returns
        -------
        Solution
            With the penalty of `linear`; μ is chosen by the validation tokens.
        """
        moments = _Moments(self.fit.n_features, self.fit.d)
        for batch in (fit or self.fit).in_order(BATCH):
            moments.add(batch.code, _double(columns(batch.pairing)), _double(batch.error))
        cross, inner, outer, mean = moments.centred(self.code_mean, self.bias)
        cross[self.constant] = 0.0
        known = self._solve(cross)  # G⁻¹ Sᵀφ
        inner = inner - cross.T @ known
        outer = outer - known.T @ self._products
        spread = np.maximum(np.diag(inner), np.diag(inner).max() * 1e-12 + 1e-300)

        def solution(penalty: float) -> Solution:
            if np.isinf(penalty):  # `linear` to the last bit, so that a gain of 0 is 0
                return replace(self.linear, A=np.zeros_like(outer))
            root = np.sqrt(spread)
            scaled = inner / np.outer(root, root) + penalty * np.eye(len(root))
            A = np.linalg.solve(scaled, outer / root[:, None]) / root[:, None]
            W = self.linear.W - known @ A
            return Solution(W, A, self.bias - self.code_mean @ W - mean @ A, self.linear.penalty, penalty)

        candidates = [solution(penalty) for penalty in COLUMN_PENALTIES]
        errors = self._validate(columns, known, mean, candidates, validation or self.validation)
        return candidates[int(np.argmin(errors))]

    def _validate(
        self, columns: Columns, known: np.ndarray, mean: np.ndarray, candidates: list[Solution], rows: CodedRows
    ) -> np.ndarray:
        """Squared error of each candidate, from the moments of ψ and of what the code leaves."""
        K, d = candidates[0].A.shape
        inner, outer, total = np.zeros((K, K)), np.zeros((K, d)), 0.0
        for batch in rows.in_order(BATCH):
            new = _double(columns(batch.pairing)) - mean - batch.code @ known + self.code_mean @ known
            left = _double(batch.error) - self.linear.predict(batch)
            inner += new.T @ new
            outer += new.T @ left
            total += np.square(left).sum()
        return np.array([total - 2 * np.vdot(one.A, outer) + np.vdot(one.A, inner @ one.A) for one in candidates])


class _Moments:
    """Sums of products of code, columns and errors."""

    def __init__(self, n_features: int, d: int) -> None:
        self.n_features, self.d, self.n = n_features, d, 0

    def add(self, code: sp.csr_matrix, columns: np.ndarray, errors: np.ndarray) -> None:
        if self.n == 0:
            K = columns.shape[1]
            self.cross, self.inner = np.zeros((self.n_features, K)), np.zeros((K, K))
            self.outer, self.sums = np.zeros((K, self.d)), np.zeros(K)
        self.cross += code.T @ columns
        self.inner += columns.T @ columns
        self.outer += columns.T @ errors
        self.sums += columns.sum(0)
        self.n += len(columns)

    def centred(self, code_mean: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sᵀφ, φᵀφ, φᵀe without the means, and the mean of φ."""
        mean = self.sums / self.n
        return (
            self.cross - self.n * np.outer(code_mean, mean),
            self.inner - self.n * np.outer(mean, mean),
            self.outer - self.n * np.outer(mean, bias),
            mean,
        )


def _add_gram(gram: np.ndarray, codes: list[sp.csr_matrix]) -> None:
    """Add SᵀS of some tokens to G, row by row: three times as fast as by pairs of indices."""
    if not codes:
        return
    code = sp.csr_matrix(sp.vstack(codes, format="csr"))
    inner = sp.csr_matrix(code.T.tocsr() @ code)
    for row, start, stop in zip(gram, inner.indptr, inner.indptr[1:], strict=False):
        row[inner.indices[start:stop]] += inner.data[start:stop]  # no place twice


def _double(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
