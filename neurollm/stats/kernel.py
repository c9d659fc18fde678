"""The permutation kernel: blocked matrix products, a running maximum, exact decisions.

The statistic is that of `neurollm.stats.hypothesis`; as t and F are monotone in ρ, the largest t or F
over features is that of the largest ρ. Three steps, all over blocks of columns, never
permutations × features in memory:

1. **Observed** ρ of all features, in float64. The most extreme ones (at most 512) are set aside for the
   steps downwards (`neurollm.stats.maxima`); their null statistics are computed in full, in float64.
2. **Screen** the others: float32 products give an upper bound of the largest statistic of every
   arrangement in every segment of up to 1024 columns (`neurollm.stats.products` derives the bound). With one tested
   column and nothing else in the denominator this is one product and its largest and smallest
   element. Where the rearranged columns hold only a few different numbers (signs, two groups), large
   products on a CPU are sums looked up in tables, which is faster (`neurollm.stats.lookup`).
3. **Confirm**: each arrangement is computed again in float64 in the segment with the highest bound.
   The maximum found there is the arrangement's, unless a bound of another segment lies above it
   *and* an observed statistic lies between the two: only then could the other segments change a decision,
   and those above are computed too. Ties of discrete data do not lie between, as an
   observed statistic tied with the maximum is reached already.

Every decision (does this arrangement reach that observed statistic?) is therefore made by float64 numbers,
and ties are generous (`tied_down`): p values are identical for every block size, number of jobs,
storage and device. `null_max` is exact but where several segments come within the bound of float32 of the
maximum; there it may miss it by the rounding of float32 (about 1e-7 in ρ).

Arithmetic that is less exact than float32 (TF32, bfloat16) is noticed, because confirmed maxima
then exceed their bounds; all products are float64 in that case, and when uncorrected p values are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import is_torch
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.maxima import PermutationResult
from neurollm.stats.products import ResidualColumns, Statistic
from neurollm.stats.scan import Scan
from neurollm.stats.threads import workers

Alternative = Literal["two-sided", "greater", "less"]
_PERFECT = 1e-12
ALTERNATIVES = ("two-sided", "greater", "less")


def permutation_test(
    Y: Any,
    hypothesis: Hypothesis,
    norms: np.ndarray,
    *,
    n_perm: int = 10_000,
    alternative: Alternative = "two-sided",
    random_state: int = 0,
    n_jobs: int = 1,
    count: bool = False,
    block: tuple[int, int] = (256, 2048),
    on_block: Callable[[int], None] | None = None,
) -> PermutationResult:
    """Test every column of `Y` and correct for the number of columns by the largest statistic.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_rows, V)
        Tensors are computed on their device.
    hypothesis : Hypothesis
    norms : ndarray, shape (V,)
        The norm ν of each column without group means and nuisance; NaN or 0 leaves a column out of the test
        and of the maximum.
    n_perm : int, default=10_000
        If no more arrangements exist, all are enumerated.
    alternative : {"two-sided", "greater", "less"}
        Several tested columns (F) have no direction: "two-sided" only.
    random_state : int, default=0
    n_jobs : int, default=1
        Threads over blocks of columns, each with one BLAS thread; -1: one per core. With 1 the products
        have as many threads as BLAS (or torch, where sums are looked up) is given. Tensors always use torch's own.
    count : bool, default=False
        Count uncorrected p values too; all products are then float64, about three times as slow.
    block : (int, int)
        Arrangements and columns per product; no influence on the result.
    on_block : callable, optional
        Called with the number of statistics computed since the last call.

    Returns
    -------
    PermutationResult

    Raises
    ------
    InvalidInput
        Shapes, `alternative` or numbers that do not fit.

    Examples
    --------
    >>> from neurollm.stats.shufflings import sign_flip
    >>> y = np.array([[1.0, 1.0], [2.0, -1.0], [3.0, 0.5], [2.0, -0.5]])
    >>> none = np.empty((4, 0))
    >>> mean = Hypothesis(np.full((4, 1), 0.5), none, none, None, 3, sign_flip(4))
    >>> permutation_test(y, mean, np.linalg.norm(y, axis=0)).p_fwer.tolist()
    [0.25, 1.0]
    """
    norms = np.asarray(norms, dtype=float)
    check(Y, hypothesis, norms, alternative, n_perm, n_jobs)
    tested = np.isfinite(norms) & (norms > 0)
    draws = hypothesis.shuffling.draw(n_perm, random_state)
    columns, statistic = ResidualColumns(Y, norms, hypothesis), Statistic(hypothesis, alternative)
    with workers(1 if is_torch(Y) else n_jobs) as run:
        scan = Scan(columns, statistic, draws, np.flatnonzero(tested), block, run)
        maxima, counts = scan.through(count, on_block or (lambda number: None))
    df, q = hypothesis.df, hypothesis.rank
    # Rounding decides whether a correlation of 1 comes out as 1, with an infinite t, or just below.
    largest = np.where(maxima.largest > 1 - _PERFECT, 1.0, maxima.largest)
    null_max = r_to_t(largest, df) if q == 1 else r_to_f(largest, df, q)
    # The statistic turns the contrast round for "less", so larger is always more extreme; undo it here.
    r = -scan.observed if alternative == "less" else scan.observed
    return maxima.result(tested, r, null_max, counts if count else None, draws.exhaustive)


def r_to_t(r: np.ndarray, df: float) -> np.ndarray:
    """t statistic of a (partial) correlation; infinite for ±1.

    Examples
    --------
    >>> r_to_t(np.array([0.0, 1.0]), 16).tolist()
    [0.0, inf]
    """
    r = np.clip(r, -1, 1)
    with np.errstate(divide="ignore"):
        return r * np.sqrt(df) / np.sqrt((1 - r) * (1 + r))


def t_to_r(t: np.ndarray, df: float) -> np.ndarray:
    """Inverse of `r_to_t`."""
    t = np.asarray(t, float)
    with np.errstate(over="ignore"):
        return np.sign(t) / np.sqrt(1 + df / np.maximum(t**2, np.finfo(float).tiny))


def r_to_f(r: np.ndarray, df: float, q: int) -> np.ndarray:
    """F statistic with (q, df) degrees of freedom of a multiple (partial) correlation; infinite for 1.

    Examples
    --------
    >>> r_to_f(np.array([0.0, 1.0]), 16, 2).tolist()
    [0.0, inf]
    """
    return r_to_t(r, df) ** 2 / q


def check(Y: Any, hypothesis: Hypothesis, norms: np.ndarray, alternative: str, n_perm: int, n_jobs: int) -> None:
    """Refuse arguments of a permutation test that do not fit together."""
    rows, columns = Y.shape
    if rows != hypothesis.n_rows or rows != hypothesis.shuffling.n_rows or norms.shape != (columns,):
        raise InvalidInput(
            f"permutation_test: data of {rows} rows and {columns} columns do not fit a hypothesis about "
            f"{hypothesis.n_rows} rows, a shuffling of {hypothesis.shuffling.n_rows} rows and {norms.size} norms; "
            "expected the same rows and one norm per column."
        )
    if alternative not in ALTERNATIVES:
        raise InvalidInput(f"alternative is {alternative!r}; it must be one of {', '.join(ALTERNATIVES)}.")
    if hypothesis.rank > 1 and alternative != "two-sided":
        raise InvalidInput(f"alternative is {alternative!r}; an F test has no direction, so it must be 'two-sided'.")
    if n_perm < 1:
        raise InvalidInput(f"n_perm is {n_perm}; it must be at least 1.")
    if n_jobs < 1 and n_jobs != -1:
        raise InvalidInput(f"n_jobs is {n_jobs}; it must be a positive number of threads, or -1 for all cores.")
