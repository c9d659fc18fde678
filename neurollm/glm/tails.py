"""The uncorrected p of a hypothesis, in closed form: no permutations, the right tail for sparse features.

The first that applies:

================  =======================================================  ====================================
`p_method`        where                                                    observed / nominal rate, as found
================  =======================================================  ====================================
``saddlepoint``   sign flips; two groups of items, nothing held constant   .8 to 1.2 down to 1e-4, less with few
                                                                           active items (exact for at most 14
                                                                           values that are not zero)
``pearson3``      one degree of freedom: covariates, blocks, more levels,  below 1, but in the light tail of
                  labels within items                                      skewed features in unequal groups
``beta``          several degrees of freedom; between items not below      below 1
                  the Bonferroni p of one level against the rest
``robust``        Welch and HC3: the larger of the t distribution's with the  as the better of the two
                  statistic's own df and `saddlepoint` or `pearson3`
``t``, ``F``      signs flipped on residuals; labels of several factors    parametric
================  =======================================================  ====================================

The last column is for null zero-inflated lognormal features (`docs/calibration.md`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats import moments, testability
from neurollm.stats.arrays import (
    BLOCK,
    by_columns,
    canonical_columns,
    column_blocks,
    combine_rows,
    dense,
    is_torch,
    largest_values,
)
from neurollm.stats.flips import sign_flip_p
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.linear import LinearFit
from neurollm.stats.parametric import f_to_z, t_to_z
from neurollm.stats.threads import in_parts
from neurollm.stats.two_groups import two_group_p

_MOST_LEVELS = 12  # each is compared with the rest
_ROUNDING = 1e-10  # share of a feature's largest value


def closed_form_p(
    Y: Any, hypothesis: Hypothesis, fit: LinearFit, alternative: str, n_jobs: int = 1
) -> tuple[np.ndarray, str]:
    """p of every feature under the permutation distribution.

    Parameters
    ----------
    Y : array of any supported kind, shape (n_rows, V)
    hypothesis : Hypothesis
    fit : LinearFit
    alternative : {"two-sided", "greater", "less"}
    n_jobs : int, default=1
        Threads over features, as in the permutation kernel.

    Returns
    -------
    p : ndarray, shape (V,)
    method : str
        See the table above.
    """
    Y = by_columns(Y)

    def part(columns: slice) -> tuple[np.ndarray, str]:
        return _closed_form(Y[:, columns], hypothesis, fit.take(columns), alternative)

    found = in_parts(part, Y.shape[1], 1 if is_torch(Y) else n_jobs)
    return np.concatenate([p for p, _ in found]), found[0][1]


def _closed_form(Y: Any, hypothesis: Hypothesis, fit: LinearFit, alternative: str) -> tuple[np.ndarray, str]:
    if hypothesis.rank == 1:
        return _one_degree(Y, hypothesis, fit.rho, alternative) or _by_t(fit, alternative)
    if _exchanges_rows(hypothesis) and not (hypothesis.nuisance.shape[1] or hypothesis.rest.shape[1]):
        mean, variance = moments.quadratic_moments(hypothesis.tested, Y, _blocks(hypothesis))
        p = moments.beta_p(fit.rho**2, mean, variance, _floor(hypothesis))
        if hypothesis.shuffling.kind == "whole_item" and _one_block(hypothesis) and hypothesis.rank < _MOST_LEVELS:
            p = np.maximum(p, _one_against_the_rest(Y, np.array(hypothesis.shuffling.codes), fit.norm))
        return p, "beta"
    return f_to_z(fit.stat, hypothesis.rank, fit.df)[1], "F"


def smallest_attainable_p(Y: Any, hypothesis: Hypothesis, alternative: str) -> np.ndarray:
    """The closed-form p that every feature would have under its most extreme shuffling; it does not look at labels.

    Parameters
    ----------
    Y, hypothesis, alternative
        As for `closed_form_p`.

    Returns
    -------
    ndarray, shape (V,)

    Raises
    ------
    InvalidInput
        The hypothesis has several tested degrees of freedom, or anything beside them in the model.
    """
    if hypothesis.rank > 1 or hypothesis.rest.shape[1] or hypothesis.nuisance.shape[1]:
        raise InvalidInput("testable_at needs a difference of two conditions without covariates; leave it out.")
    if hypothesis.shuffling.kind == "sign_flip":
        most = testability.largest_flip_statistic(Y)
        return _one_degree(Y, hypothesis, -most if alternative == "less" else most, alternative)[0]
    # Both ends are tried for two sides: the larger |r| may lie on that of the longer tail.
    p = []
    for side in ("greater", "less") if alternative == "two-sided" else (alternative,):
        most = testability.largest_statistic(hypothesis.tested[:, 0], Y, hypothesis.groups, side)
        p.append(_one_degree(Y, hypothesis, -most if side == "less" else most, alternative)[0])
    return np.min(p, axis=0)


def _one_degree(Y: Any, hypothesis: Hypothesis, rho: np.ndarray, alternative: str) -> tuple[np.ndarray, str] | None:
    """From the distribution of one tested row; None where it is not known."""
    plain = not (hypothesis.nuisance.shape[1] or hypothesis.rest.shape[1])
    x = hypothesis.tested[:, 0]
    if hypothesis.shuffling.kind == "sign_flip":
        return (sign_flip_p(without_rounding(Y), rho, alternative), "saddlepoint") if plain else None
    if not _exchanges_rows(hypothesis):
        return None
    one_block = hypothesis.shuffling.kind == "whole_item" and _one_block(hypothesis)
    if plain and one_block and len(np.unique(np.round(x, 9))) == 2:
        return _two_groups(x, Y, rho, alternative), "saddlepoint"
    nuisance = hypothesis.nuisance if hypothesis.nuisance.shape[1] else None
    rest = hypothesis.rest if hypothesis.rest.shape[1] else None
    found = moments.label_moments(x, Y, _blocks(hypothesis), nuisance=nuisance, rest=rest)
    p = moments.pearson3_p(rho, found.variance, found.skewness, alternative, _floor(hypothesis))
    return p, "pearson3"


def _two_groups(x: np.ndarray, Y: Any, rho: np.ndarray, alternative: str) -> np.ndarray:
    """`two_group_p` with the most frequent value of every feature at zero, where few values are enumerated exactly.

    Differences of an additive effect repeat a constant where raw activations repeat zero.
    """
    Y = without_rounding(Y)
    counts = np.diff(Y.indptr) if sparse.issparse(Y) else np.count_nonzero(Y, axis=0)
    p, busy = np.empty(len(rho)), counts > Y.shape[0] / 2
    quiet = np.flatnonzero(~busy)
    if quiet.size:
        p[quiet] = two_group_p(x, Y[:, quiet] if busy.any() else Y, rho[quiet], alternative)
    for part in np.array_split(np.flatnonzero(busy), np.ceil(busy.sum() / BLOCK)) if busy.any() else ():
        block = dense(Y[:, part])
        with np.errstate(invalid="ignore"):
            # The median is the most frequent value, if that is more than half of all.
            shifted = without_rounding(block - np.median(block, axis=0))
            fewer = np.count_nonzero(shifted, axis=0) < np.count_nonzero(block, axis=0)
        p[part] = two_group_p(x, np.where(fewer, shifted, block), rho[part], alternative)
    return np.minimum(p, 1)


def without_rounding(Y: Any) -> Any:
    """What is zero but for the rounding of sums is zero: exact tails count the values that are not.

    Parameters
    ----------
    Y : array of any supported kind, shape (n, V)

    Returns
    -------
    CSC for sparse input, else ndarray
    """
    if sparse.issparse(Y):
        csc = canonical_columns(Y)
        rounding = np.abs(csc.data) <= _ROUNDING * np.repeat(largest_values(csc), np.diff(csc.indptr))
        if rounding.any():
            csc = csc.copy()
            csc.data[rounding] = 0
            csc.eliminate_zeros()
        return csc
    out = np.empty(Y.shape)
    for columns, block in column_blocks(Y):
        with np.errstate(invalid="ignore"):
            out[:, columns] = np.where(np.abs(block) <= _ROUNDING * np.abs(block).max(axis=0), 0.0, block)
    return out


def _one_against_the_rest(Y: Any, codes: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Bonferroni over the levels: valid by itself, so the larger of this and another p is."""
    levels, smallest = np.unique(codes), np.ones(len(norm))
    with np.errstate(divide="ignore", invalid="ignore"):
        for level in levels:
            x = (codes == level) - np.mean(codes == level)
            x /= np.linalg.norm(x)
            smallest = np.fmin(smallest, _two_groups(x, Y, _product(x, Y) / norm, "two-sided"))
    return np.minimum(1, len(levels) * smallest)


def _product(x: np.ndarray, Y: Any) -> np.ndarray:
    return dense(combine_rows(sparse.csr_array(x[None]), Y))[0]


def robust_p(p: np.ndarray, stat: np.ndarray, df: np.ndarray, alternative: str) -> tuple[np.ndarray, str]:
    """p of a statistic with its own standard error: not below its t distribution's, nor below `p` of the pooled one.

    The first is wrong for sparse features, the second for groups of unequal variance; the larger errs in neither case.
    """
    return np.maximum(p, _t_tail(stat, df, alternative)), "robust"


def _by_t(fit: LinearFit, alternative: str) -> tuple[np.ndarray, str]:
    return _t_tail(fit.stat, fit.df, alternative), "t"


def _t_tail(stat: np.ndarray, df: np.ndarray | float, alternative: str) -> np.ndarray:
    upper, lower = t_to_z(stat, df)[1], t_to_z(-stat, df)[1]
    two_sided = np.minimum(1, 2 * np.minimum(upper, lower))
    return {"greater": upper, "less": lower, "two-sided": two_sided}[alternative]


def _exchanges_rows(hypothesis: Hypothesis) -> bool:
    """Whether single rows are exchanged freely inside blocks, as the moments assume."""
    shuffling = hypothesis.shuffling
    if shuffling.kind == "within_item":
        return len(shuffling.shape) == 1
    return shuffling.kind == "whole_item" and shuffling.rows_per_item == 1


def _blocks(hypothesis: Hypothesis) -> np.ndarray | None:
    shuffling = hypothesis.shuffling
    if shuffling.kind == "within_item":
        return np.repeat(np.arange(shuffling.n_items), shuffling.rows_per_item)
    return hypothesis.groups


def _one_block(hypothesis: Hypothesis) -> bool:
    return hypothesis.groups is not None and len(np.unique(hypothesis.groups)) == 1


def _floor(hypothesis: Hypothesis) -> float:
    return max(1 / min(hypothesis.shuffling.n_possible, 10**300), moments.SMALLEST)
