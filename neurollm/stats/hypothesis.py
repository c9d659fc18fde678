"""A linear hypothesis about the rows of a table, and how the rows are shuffled under it.

For a feature y (a column) and a shuffling G (a signed rearrangement of the rows), with
R = the projection that removes group means and `nuisance`, the statistic is

    ρ² = Σ_j ((R G t_j)·y)² / (ν² − Σ_s ((R G u_s)·y)² − Σ_k ((R G z_k)·y)²),    ν² = ‖R y‖²

over the columns t of `tested`, u of `rest` and z of `nuisance`; ``F = ρ²/(1 − ρ²) · df/q``, and
``t = ±√F`` when there is one tested column. Two ways of treating what is not tested meet here:

* `rest` is shuffled along with `tested`: the null hypothesis says that it vanishes too (all levels of
  a contrast are exchangeable). The test is exact.
* `nuisance` is not: its estimate is kept and the residuals are shuffled (Freedman & Lane 1983), written
  on the side of the rows so that the data are only read (Winkler et al. 2014, table 2).

Group means need no rows of their own: a shuffling exchanges rows inside the groups, which leaves
the means where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurollm.stats.shufflings import Shuffling


@dataclass(frozen=True)
class Hypothesis:
    """What is tested and what is exchanged.

    Attributes
    ----------
    tested : ndarray, shape (n, q)
        Orthonormal columns. With q = 1 the positive direction is that of the contrast.
    rest : ndarray, shape (n, s)
        Orthonormal, orthogonal to `tested`; shuffled along.
    nuisance : ndarray, shape (n, k)
        Orthonormal, orthogonal to `tested`, `rest` and the indicators of `groups`.
    groups : ndarray of int, shape (n,), or None
        Rows with the same number lose their common mean (items, or blocks of exchange).
        None: nothing is removed, as for signs.
    df : int
        Residual degrees of freedom.
    shuffling : Shuffling
    """

    tested: np.ndarray
    rest: np.ndarray
    nuisance: np.ndarray
    groups: np.ndarray | None
    df: int
    shuffling: Shuffling

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return len(self.tested)

    @property
    def rank(self) -> int:
        """Tested degrees of freedom q."""
        return self.tested.shape[1]
