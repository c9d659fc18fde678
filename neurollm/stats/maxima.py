"""From null maxima to family-wise p values, in a single step and step by step downwards.

Single step: a feature's p is the share of arrangements whose largest statistic over all features
reaches its own. Step down (Westfall & Young 1993, algorithm 4.1): the largest over the features that
are not more extreme than it, then the running maximum of p from the most extreme feature downwards.
The m most extreme features (at most 512) get that in full. Those below them share the largest
statistic of all that are below, which is conservative.

Two statistics are called tied within a relative 1e-6 and an absolute 1e-9, because the same arrangement
computed in another order of summation differs by rounding. Features that tie at the end of the
m most extreme are not separated: all of them are below.

p = (b + 1) / (B + 1) for B random arrangements; b / B for all arrangements, the observed one among
them (Phipson & Smyth 2010). Never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RELATIVE, ABSOLUTE = 1e-6, 1e-9
N_TOP = 512


@dataclass(frozen=True)
class PermutationResult:
    """What a permutation test found; NaN where a feature is not tested.

    Attributes
    ----------
    r : ndarray, shape (V,)
        Observed (partial) correlation with the contrast; multiple and so ≥ 0 when several columns are tested.
    p_fwer : ndarray, shape (V,)
        Corrected for all tested features by the largest statistic, in a single step.
    p_step_down : ndarray, shape (V,)
        The same by steps downwards; never above `p_fwer`.
    p_permutation : ndarray, shape (V,), or None
        Uncorrected; only if asked for.
    null_max : ndarray, shape (n_perm,)
        Largest statistic over features in each arrangement: t in the direction of the alternative, or F. To 26 bits.
        Empty when no feature is tested.
    n_perm : int
        Arrangements used.
    exhaustive : bool
        They are all there are, the observed one included.
    """

    r: np.ndarray
    p_fwer: np.ndarray
    p_step_down: np.ndarray
    p_permutation: np.ndarray | None
    null_max: np.ndarray
    n_perm: int
    exhaustive: bool


def above_ties(r: np.ndarray) -> np.ndarray:
    """The smallest statistic that is not called tied with `r`."""
    return (r + ABSOLUTE) / (1 - RELATIVE * np.sign(r))


def tied_down(statistic: np.ndarray) -> np.ndarray:
    """The smallest value that counts as reaching `statistic`; infinite statistics are left alone."""
    finite = np.isfinite(statistic)
    return np.subtract(
        statistic, RELATIVE * np.abs(statistic) + ABSOLUTE, out=np.array(statistic, dtype=float), where=finite
    )


def share(counts: np.ndarray, n_perm: int, exhaustive: bool) -> np.ndarray:
    """p values of numbers of exceedances."""
    plus = 0 if exhaustive else 1
    return (counts + plus) / (n_perm + plus)


class StepDown:
    """Counts what the null statistics reach, batch by batch.

    Parameters
    ----------
    observed : ndarray, shape (V,)
        Statistics of the tested features, larger is more extreme; no NaN.

    Attributes
    ----------
    top : ndarray of int
        The m most extreme features, in this order; their null statistics are needed in full.
    below : ndarray of int
        All others, ascending; only the largest of their null statistics is needed.
    thresholds : ndarray, shape (V,)
        What null statistics are compared with.
    """

    def __init__(self, observed: np.ndarray) -> None:
        self.thresholds = tied_down(observed)
        order = np.argsort(-observed, kind="stable")
        size = order.size
        if size > N_TOP:
            first = order[: N_TOP + 1]
            cuts = np.flatnonzero(self.thresholds[first[:-1]] > observed[first[1:]])
            size = cuts[-1] + 1 if cuts.size else 0
        self.top, self.below = order[:size], np.sort(order[size:])
        self._reached = np.zeros(size, dtype=np.int64)
        self._maxima: list[np.ndarray] = []
        self._rest: list[np.ndarray] = []

    def add(self, top: np.ndarray, rest: np.ndarray) -> None:
        """Take in a batch of b arrangements.

        Parameters
        ----------
        top : ndarray, shape (b, m)
            Null statistics of `top`.
        rest : ndarray, shape (b,)
            Largest null statistic of `below`; −inf when there are none.
        """
        running = np.empty((top.shape[1] + 1, len(rest)))
        running[0], running[1:] = rest, top.T[::-1]
        np.maximum.accumulate(running, axis=0, out=running)
        thresholds = self.thresholds[self.top][::-1, None]
        self._reached += np.count_nonzero(running[1:] >= thresholds, axis=1)[::-1]
        self._maxima.append(running[-1].copy())
        self._rest.append(rest)

    @property
    def largest(self) -> np.ndarray:
        """Largest null statistic over all features, in the order of `add`."""
        return np.concatenate(self._maxima)

    def p_values(self, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        """Single-step and step-down p values of the tested features."""
        maxima = self.largest
        single = share(_reached(maxima, self.thresholds), maxima.size, exhaustive)
        down = np.empty(single.size)
        down[self.top] = np.maximum.accumulate(share(self._reached, maxima.size, exhaustive))
        rest = share(_reached(np.concatenate(self._rest), self.thresholds[self.below]), maxima.size, exhaustive)
        down[self.below] = np.maximum(rest, down[self.top].max(initial=0))
        return single, down

    def result(
        self,
        tested: np.ndarray,
        r: np.ndarray,
        null_max: np.ndarray,
        counts: np.ndarray | None,
        exhaustive: bool,
    ) -> PermutationResult:
        """Put the result together.

        Parameters
        ----------
        tested : ndarray of bool, shape (all features,)
        r : ndarray, shape (V,)
            Of the tested features, as are `counts` (exceedances of each; None: not counted).
        null_max : ndarray
            The largest statistics on the scale to report.
        counts : ndarray of int, shape (V,), or None
        exhaustive : bool

        Returns
        -------
        PermutationResult
        """

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.full(tested.size, np.nan)
            full[tested] = values
            return full

        n_perm = self.largest.size
        single, down = self.p_values(exhaustive)
        uncorrected = None if counts is None else spread(share(counts, n_perm, exhaustive))
        null_max = _short(null_max) if tested.any() else np.empty(0)
        return PermutationResult(spread(r), spread(single), spread(down), uncorrected, null_max, n_perm, exhaustive)


def _short(values: np.ndarray) -> np.ndarray:
    """Rounded to 26 bits, far inside the width of a tie.

    The last bits of a product differ between runs, with the place of the data in memory; saved results should not.
    """
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, 26)), exponent - 26)


def _reached(maxima: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return maxima.size - np.searchsorted(np.sort(maxima), thresholds, side="left")
