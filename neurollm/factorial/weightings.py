"""One-sided tests of weighted sums of cell means, whatever of the design varies within or between items.

Items that have the same cells form a group; an item's score is the weighted sum of its cells. With score mean m_g,
variance s²_g and n_g items of group g,

    t = Σ m_g / √(Σ s²_g / n_g),

on Satterthwaite's (1946) degrees of freedom. Variances of groups may differ. Within items there is one group, and t is
that of one sample. Covariates are not held constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from neurollm.designs import ItemTable
from neurollm.factorial.intervals import cell_groups

_ROUNDING = 1e-12  # share of the largest value below which a standard error is rounding


@dataclass(frozen=True)
class CellScores:
    """Items with their cells, in C columns.

    Attributes
    ----------
    groups : sequence of (ndarray of shape (M,), ndarray of shape (n_items, M, C))
        Cells and values of the items that have them.
    """

    groups: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, table: ItemTable) -> CellScores:
        """From the means of items, which must be dense."""
        values = np.asarray(table.values, float)
        return cls(tuple((cells, values[rows]) for cells, rows in cell_groups(table)))

    def p_positive(self, weights: np.ndarray) -> np.ndarray:
        """One-sided p that the weighted sum of the cell means is above 0.

        Parameters
        ----------
        weights : ndarray, shape (number of cells, C)
            Summing to 0 in every column.

        Returns
        -------
        ndarray, shape (C,)
            1 where nothing varies and the sum is 0; NaN where a value is not finite or a group has one item.

        Examples
        --------
        >>> scores = CellScores(((np.array([0, 1]), np.array([[[3.0], [1.0]], [[4.0], [1.0]], [[6.0], [2.0]]])),))
        >>> scores.p_positive(np.array([[1.0], [-1.0]])).round(3).tolist()  # of 2, 3 and 4: t = 5.196, df = 2
        [0.018]
        """
        columns = weights.shape[1]
        total, variance, spread, size = (np.zeros(columns) for _ in range(4))
        for cells, values in self.groups:
            score = np.einsum("nmc,mc->nc", values, weights[cells])
            if not weights[cells].any():
                continue
            n = len(score)
            with np.errstate(divide="ignore", invalid="ignore"):
                part = ((score - score.mean(axis=0)) ** 2).sum(axis=0) / np.float64(n * (n - 1))
                spread += part**2 / np.float64(n - 1)
            total, variance = total + score.mean(axis=0), variance + part
            size = np.maximum(size, np.abs(score).max(axis=0))
        still = variance <= (_ROUNDING * size) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            p = special.stdtr(variance**2 / spread, -total / np.sqrt(variance))
        constant = np.where(total > _ROUNDING * size, np.finfo(float).tiny, 1.0)
        return np.where(still, constant, p)
