"""Contrasts of group means whose standard error does not assume equal variances.

For groups l with n_l rows, means m_l and sums of squares SS_l about them,

    t = Σ w_l m_l / √(Σ w_l² v_l),

with ``v_l = SS_l / (n_l (n_l − 1))`` (Welch 1947; df after Satterthwaite 1946:
``(Σ w_l² v_l)² / Σ (w_l² v_l)² / (n_l − 1)``), or with ``v_l = SS_l / (n_l − 1)²``, which is HC3 (MacKinnon
& White 1985) in the model of group means, where every leverage is 1/n_l.

The permutation test exchanges items as wholes. All arrangements come from products of 0/1 rows with
Y and Y² (float64), the last group from the totals. It is exact when the groups are exchangeable, and for
large groups it keeps its level for equal means with unequal variances (Janssen 1997).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import column_blocks, is_torch, namespace
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import Alternative, check, t_to_r
from neurollm.stats.maxima import PermutationResult
from neurollm.stats.products import ResidualColumns, as_in
from neurollm.stats.scan import Scan
from neurollm.stats.shufflings import Draws, Shuffling
from neurollm.stats.threads import workers

Kind = Literal["welch", "hc3"]

_NOTHING = 1e-8  # of a column's sum of squares: below it, rounding hides whether a group varies
_NO_EFFECT = 1e-12


@dataclass(frozen=True)
class WelchContrast:
    """A contrast of group means for V features.

    Attributes
    ----------
    effect, se : ndarray, shape (V,)
    stat : ndarray, shape (V,)
        t statistic; infinite where no group varies, 0 where there is no effect either.
    df : ndarray, shape (V,)
        Satterthwaite's degrees of freedom; rows − groups for HC3 and where no group varies.
    """

    effect: np.ndarray
    se: np.ndarray
    stat: np.ndarray
    df: np.ndarray


def welch_contrast(Y: Any, codes: np.ndarray, weights: np.ndarray, kind: Kind = "welch") -> WelchContrast:
    """Estimate a contrast of group means with a heteroscedastic standard error.

    Parameters
    ----------
    Y : array of any supported kind, shape (n, V)
    codes : ndarray of int, shape (n,)
        Group of each row, 0 … k−1.
    weights : ndarray, shape (k,)
    kind : {"welch", "hc3"}

    Returns
    -------
    WelchContrast

    Raises
    ------
    InvalidInput
        A group with a weight has fewer than two rows, or lengths or `kind` do not fit.

    Examples
    --------
    >>> found = welch_contrast(np.array([[1.0], [3.0], [2.0], [2.0]]), [0, 0, 1, 1], [1, -1])
    >>> found.effect.tolist(), found.se.tolist(), found.df.tolist()
    ([0.0], [1.0], [1.0])
    """
    codes, weights, counts = _groups(codes, weights, kind)
    effect, se, df = np.zeros((3, Y.shape[1]))
    for columns, block in column_blocks(Y):
        parts = []
        for level in np.flatnonzero(weights):
            rows = block[codes == level]
            mean = rows.mean(axis=0)
            effect[columns] += weights[level] * mean
            squares = np.sum((rows - mean) ** 2, axis=0)
            # A group of equal numbers leaves a rest of rounding.
            squares[squares <= 1e-24 * np.sum(rows**2, axis=0)] = 0
            parts.append(squares * _factor(weights, counts, kind)[level])
        parts, free = np.array(parts), counts[weights != 0][:, None] - 1
        se[columns] = np.sqrt(parts.sum(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            df[columns] = parts.sum(axis=0) ** 2 / (parts**2 / free).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        stat = np.where((effect == 0) & (se == 0), 0.0, effect / se)
    df = np.where((se == 0) | (kind == "hc3"), float(codes.size - weights.size), df)
    return WelchContrast(effect, se, stat, np.where(np.isnan(se), np.nan, df))


def welch_test(
    Y: Any,
    codes: np.ndarray,
    weights: np.ndarray,
    norms: np.ndarray,
    shuffling: Shuffling,
    *,
    kind: Kind = "welch",
    n_perm: int = 10_000,
    alternative: Alternative = "two-sided",
    random_state: int = 0,
    n_jobs: int = 1,
    count: bool = False,
    block: tuple[int, int] = (256, 1024),
    on_block: Callable[[int], None] | None = None,
) -> PermutationResult:
    """Permutation test of a contrast of group means with a heteroscedastic standard error.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    codes : ndarray of int, shape (n,)
        Group of each row, 0 … k−1.
    weights : ndarray, shape (k,)
    norms : ndarray, shape (V,)
        Norm of each column about its mean; NaN or 0 leaves a column out.
    shuffling : Shuffling
        Of whole items.
    kind : {"welch", "hc3"}
    n_perm, alternative, random_state, n_jobs, count, block, on_block
        As in `permutation_test`.

    Returns
    -------
    PermutationResult
        `r` is ``t / √(t² + n − k)``, so that ``r_to_t(r, n − k)`` is t; `null_max` holds t.

    Raises
    ------
    InvalidInput
        As `welch_contrast` and `permutation_test`; or another shuffling than of whole items.
    """
    codes, weights, counts = _groups(codes, weights, kind)
    if shuffling.kind != "whole_item":
        raise InvalidInput(f"welch_test: the shuffling is '{shuffling.kind}'; it must be 'whole_item'.")
    norms, n = np.asarray(norms, dtype=float), codes.size
    tested = np.isfinite(norms) & (norms > 0)
    none = np.empty((n, 0))
    means = Hypothesis((weights / counts)[codes][:, None], none, none, np.zeros(n, int), n - weights.size, shuffling)
    check(Y, means, norms, alternative, n_perm, n_jobs)
    draws = shuffling.draw(n_perm, random_state)
    statistic = _WelchStatistic(codes, -weights if alternative == "less" else weights, counts, kind, alternative)
    with workers(1 if is_torch(Y) else n_jobs) as run:
        scan = Scan(ResidualColumns(Y, norms, means), statistic, draws, np.flatnonzero(tested), block, run)
        maxima, reached = scan.through(True, on_block or (lambda number: None))
    t = -scan.observed if alternative == "less" else scan.observed
    return maxima.result(tested, t_to_r(t, means.df), maxima.largest, reached if count else None, draws.exhaustive)


class _WelchStatistic:
    """t of arrangements × columns, with the interface of `neurollm.stats.products.Statistic`."""

    def __init__(
        self, codes: np.ndarray, weights: np.ndarray, counts: np.ndarray, kind: Kind, alternative: str
    ) -> None:
        self.two_sided = alternative == "two-sided"
        self._factor, self._slope, self._counts = _factor(weights, counts, kind), weights / counts, counts
        levels = np.flatnonzero(weights)
        # When all groups take part the sums of the last one follow from the totals.
        self._last = levels[-1] if levels.size == weights.size else None
        self._rows = {level: (codes == level).astype(float) for level in levels if level != self._last}

    @property
    def n_products(self) -> int:
        """Products per statistic."""
        return 2 * len(self._rows)

    def exact(self, draws: Draws | None, which: np.ndarray | None, X: Any) -> Any:
        """t of arrangements (None: the observed one) for columns X of mean 0 and unit norm."""
        xp, X2 = namespace(X), X * X
        effect, squares, rest_sum, rest_square = 0.0, 0.0, X.sum(0), X2.sum(0)
        for level, indicator in self._rows.items():
            rows = as_in(X, indicator[None] if draws is None else draws.rows(indicator, which))
            total, square = rows @ X, rows @ X2
            effect, squares = self._added(level, total, square, effect, squares, xp)
            if self._last is not None:
                rest_sum, rest_square = rest_sum - total, rest_square - square
        if self._last is not None:
            effect, squares = self._added(self._last, rest_sum, rest_square, effect, squares, xp)
        still = squares == 0
        t = effect / xp.sqrt(xp.where(still, 1 + squares, squares))
        with np.errstate(invalid="ignore"):
            return xp.where(still, xp.where(abs(effect) < _NO_EFFECT, 0 * effect, np.inf * effect), t)

    def _added(self, level: int, total: Any, square: Any, effect: Any, squares: Any, xp: Any) -> tuple[Any, Any]:
        own = square - total**2 / float(self._counts[level])
        own = xp.where(own > _NOTHING, own, 0 * own)
        return effect + float(self._slope[level]) * total, squares + float(self._factor[level]) * own

    def extremity(self, t: Any) -> Any:
        """Larger is more extreme."""
        return abs(t) if self.two_sided else t


def _factor(weights: np.ndarray, counts: np.ndarray, kind: Kind) -> np.ndarray:
    """What a group's sum of squares contributes to the squared standard error."""
    return weights**2 / np.maximum((counts if kind == "welch" else counts - 1) * (counts - 1), 1)


def _groups(codes: np.ndarray, weights: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes, weights = np.asarray(codes, dtype=int), np.asarray(weights, dtype=float)
    if kind not in ("welch", "hc3"):
        raise InvalidInput(f"kind is {kind!r}; it must be 'welch' or 'hc3'.")
    counts = np.bincount(codes, minlength=weights.size)
    if counts.size != weights.size or (counts == 0).any() or (counts[weights != 0] < 2).any():
        raise InvalidInput(
            f"a contrast of {weights.size} weights over groups of {', '.join(map(str, counts))} rows; "
            "expected a weight per group, and at least two rows in every group with a weight."
        )
    if not weights.any() or abs(weights.sum()) > 1e-9 * np.abs(weights).max():
        raise InvalidInput(f"the weights {weights.tolist()} must sum to 0 and not all be 0, to be a contrast of means.")
    return codes, weights, counts
