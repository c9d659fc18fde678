"""Least squares of all features on one hypothesis: norms, projections and residuals, in float64.

For every feature y, with R the projection that removes group means and nuisance (`neurollm.stats.hypothesis`):
``ν² = ‖R y‖²``, the tested projections ``t_j·y``, and the residual sum of squares of the full model
``ν² − Σ (t_j·y)² − Σ (u_s·y)²``. Then ``t = t₁·y / √(rss/df)`` and ``F = (Σ (t_j·y)²/q) / (rss/df)``.

Sparse features are never made dense: sums of squares are taken over the values that are there. Where the difference of
two large numbers would lose digits (a feature that hardly varies around its mean), the column is computed
again from centred values.

Activations are float32, so equal activations differ by rounding, in a way that may follow the condition
(another place in a batch, another sequence length). A feature whose norm is at most ``32 eps(float32)`` times the
norm of what its rows are made of (``Σ|w||y|`` where a row is ``Σ w y``), i.e. that varies by less than 4e-6 of its
size, is called constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import by_columns, canonical_columns, column_blocks, column_norms, column_squares, dense
from neurollm.stats.hypothesis import Hypothesis

NOISE = 32 * float(np.finfo(np.float32).eps)  # of equal activations, as a share of them; seen: up to 5 eps
_EXACT = 1e-24  # residuals below this share are rounding, not variation
_CANCELLED = 1e-6  # share of the sum of squares below which it is computed again from centred values


@dataclass(frozen=True)
class LinearFit:
    """Least squares of V features.

    Attributes
    ----------
    projection : ndarray, shape (q, V)
        ``t_j·y``.
    norm : ndarray, shape (V,)
        ν; 0 for a feature that is constant up to the rounding of float32, NaN for a non-finite one.
    residual : ndarray, shape (V,)
        Residual sum of squares of the full model.
    df : int
    """

    projection: np.ndarray
    norm: np.ndarray
    residual: np.ndarray
    df: int

    def take(self, columns: Any) -> LinearFit:
        """The fit of some features."""
        return LinearFit(self.projection[:, columns], self.norm[columns], self.residual[columns], self.df)

    @classmethod
    def join(cls, parts: Sequence[LinearFit]) -> LinearFit:
        """The fit of the features of all parts."""
        arrays = ([getattr(part, name) for part in parts] for name in ("projection", "norm", "residual"))
        return cls(*(np.concatenate(values, axis=-1) for values in arrays), parts[0].df)

    @property
    def rank(self) -> int:
        """Tested degrees of freedom."""
        return len(self.projection)

    @property
    def stat(self) -> np.ndarray:
        """t with one tested degree of freedom, else F; infinite where nothing varies besides the effect."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.rank == 1:
                return _ratio(self.projection[0], np.sqrt(self.residual / self.df))
            return _ratio((self.projection**2).sum(axis=0) / self.rank, self.residual / self.df)

    @property
    def rho(self) -> np.ndarray:
        """Partial correlation with the tested part: signed with one tested degree of freedom."""
        explained = (self.projection**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.sqrt(_ratio(explained, explained + self.residual))
        return np.sign(self.projection[0]) * size if self.rank == 1 else size


def linear_fit(Y: Any, hypothesis: Hypothesis, size: np.ndarray | None = None) -> LinearFit:
    """Fit the model of `hypothesis` to every column of `Y`.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_rows, V)
    hypothesis : Hypothesis
    size : ndarray, shape (V,), optional
        Norm of what each feature's rows are made of (of a difference: of the sums), against which rounding is judged;
        default: of `Y`. Differences do not show it.

    Returns
    -------
    LinearFit
    """
    Y = by_columns(Y)
    blocks = _sparse_blocks(Y) if sparse.issparse(Y) else column_blocks(Y)
    projection = np.empty((hypothesis.rank, Y.shape[1]))
    norm2, residual = np.empty((2, Y.shape[1]))
    model = _Model.of(hypothesis)
    with np.errstate(invalid="ignore", over="ignore"):
        for columns, block in blocks:
            projection[:, columns], norm2[columns], residual[columns] = model.fit(block)
    size = column_norms(Y) if size is None else np.asarray(size, float)
    norm = np.sqrt(norm2)
    norm[~np.isfinite(norm)] = np.nan
    norm[norm <= NOISE * size] = 0.0  # a NaN norm compares False and stays
    return LinearFit(projection, norm, residual, hypothesis.df)


@dataclass(frozen=True)
class _Model:
    """The columns of a hypothesis, side by side."""

    tested: np.ndarray
    rest: np.ndarray
    nuisance: np.ndarray
    means: sparse.csr_array | None  # group means of the rows
    groups: np.ndarray | None

    @classmethod
    def of(cls, hypothesis: Hypothesis) -> _Model:
        groups, means = hypothesis.groups, None
        if groups is not None:
            groups = np.unique(groups, return_inverse=True)[1]
            rows = np.arange(groups.size)
            means = sparse.csr_array((1 / np.bincount(groups)[groups], (groups, rows)))
        return cls(hypothesis.tested, hypothesis.rest, hypothesis.nuisance, means, groups)

    def fit(self, block: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projections, ν² and residual sum of squares of a block of columns."""
        total = column_squares(block)
        norm2 = total.copy()
        if self.means is not None:
            means = self.means @ block
            counts = np.bincount(self.groups)
            norm2 -= column_squares(means, counts)
        norm2 -= column_squares(self.nuisance.T @ block)
        tested = self.tested.T @ block
        residual = norm2 - column_squares(tested) - column_squares(self.rest.T @ block)
        again = np.flatnonzero((residual < _CANCELLED * total) & (total > 0))
        if again.size:
            tested[:, again], norm2[again], residual[again] = self._centred(dense(block[:, again]))
        return tested, norm2, residual

    def _centred(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = (y**2).sum(axis=0)
        if self.means is not None:
            y = y - (self.means @ y)[self.groups]
        y = _without(y, self.nuisance)
        norm2 = (y**2).sum(axis=0)
        norm2 = np.where(norm2 > _EXACT * total, norm2, np.where(np.isfinite(norm2), 0.0, np.nan))
        rest = (_without(y, np.hstack([self.tested, self.rest])) ** 2).sum(axis=0)
        rest = np.where(rest > _EXACT * norm2, rest, np.where(np.isfinite(rest), 0.0, np.nan))
        return self.tested.T @ y, norm2, rest


def _without(y: np.ndarray, basis: np.ndarray) -> np.ndarray:
    return y - basis @ (basis.T @ y)


def _sparse_blocks(Y: Any, size: int = 1 << 16) -> Any:
    Y = canonical_columns(Y)  # squares are those of values, not of their parts
    for start in range(0, Y.shape[1], size):
        columns = slice(start, min(start + size, Y.shape[1]))
        yield columns, Y[:, columns]


def _ratio(effect: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """effect / scale, with 0/0 = 0: no effect and nothing that varies."""
    return np.where((effect == 0) & (scale == 0), 0.0, effect / scale)
