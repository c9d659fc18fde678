"""Effects between items without the assumption that all groups of items vary alike.

Sparse features vary more where they are active. With the pooled variance of all cells, an effect of one factor then
makes tests of the others too liberal, the more so the more unequal the cells are. Where a test has one value per item
and the model is nothing but means of groups of items, the estimate is Σ w_g m_g, and t takes Welch's standard error
(`neurollm.stats.welch`). p is the larger of this and the pooled test's, so that it errs only where both do.
Very skewed values in groups of about ten items can remain somewhat liberal.

With covariates or blocks there is no such test: the pooled one stays, and unequal groups are told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from neurollm.designs import Contrast, FactorialDesign, ItemTable
from neurollm.glm.tails import robust_p
from neurollm.stats import adjust
from neurollm.stats.arrays import column_norms, combine_rows
from neurollm.stats.welch import welch_contrast, welch_test

if TYPE_CHECKING:
    from neurollm.designs import ContrastPlan
    from neurollm.glm import ContrastResult

UNEQUAL = 1.25  # ratio of the largest to the smallest group of items from which a pooled variance is warned of


def unequal_variances(
    result: ContrastResult, table: ItemTable, design: FactorialDesign, effect: Contrast, n_perm: int, random_state: int
) -> ContrastResult:
    """The result with Welch's standard error, where groups of items are compared; else as it is.

    Parameters
    ----------
    result : ContrastResult
        Of the pooled test.
    table : ItemTable
        With dense values.
    design : FactorialDesign
    effect : Contrast
    n_perm, random_state : int
        As in the pooled test, so that both shuffle alike.

    Returns
    -------
    ContrastResult
        With a warning where the groups are unequal and covariates or blocks leave only the pooled variance.
    """
    plan = design.plan(table, effect)
    shuffling = plan.hypothesis.shuffling
    if shuffling.kind == "sign_flip":
        return result
    codes, counts = _groups(plan, table)
    if design.covariates or design.blocks is not None or shuffling.kind != "whole_item" or shuffling.rows_per_item > 1:
        if counts.max() <= UNEQUAL * counts.min():
            return result
        sizes = ", ".join(map(str, counts))
        told = (
            f"contrast '{effect.name}': groups of {sizes} items are compared with a pooled variance, the only one "
            "beside covariates or blocks; where small groups vary more, p is too small."
        )
        return replace(result, warnings=(*result.warnings, told))
    if counts.min() < 2:
        return result
    Y = combine_rows(plan.reduce, np.asarray(table.values, float))
    weights = plan.scale * np.bincount(codes, plan.hypothesis.tested[:, 0])
    found = welch_contrast(Y, codes, weights)
    norms = np.where(result.valid, column_norms(Y - Y.mean(axis=0)), np.nan)
    permuted = welch_test(Y, codes, weights, norms, shuffling, n_perm=n_perm, random_state=random_state)
    blank = np.where(result.valid, 0.0, np.nan)
    p, method = robust_p(result.p, found.stat, found.df, "two-sided")
    half = special.stdtrit(found.df, 0.975) * found.se
    return replace(
        result,
        stat=found.stat + blank,
        df=found.df + blank,
        effect_low=found.effect - half + blank,
        effect_high=found.effect + half + blank,
        p=p + blank,
        q=adjust(p + blank),
        p_fwer=np.maximum(result.p_fwer, permuted.p_fwer),
        p_method=method,
        stat_kind="welch",
    )


def _groups(plan: ContrastPlan, table: ItemTable) -> tuple[np.ndarray, np.ndarray]:
    """Group of every row of a test, items with the same cells being one, and their sizes."""
    patterns = np.zeros((plan.reduce.shape[0], len(table.cells)), bool)
    rows, columns = plan.reduce.nonzero()
    patterns[rows, table.cell_codes[columns]] = True
    codes = np.unique(patterns, axis=0, return_inverse=True)[1].ravel()
    return codes, np.bincount(codes)
