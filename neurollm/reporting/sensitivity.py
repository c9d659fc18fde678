"""The smallest effect that a test finds: what "nothing was found" can mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from neurollm.reporting.formatting import decimal, exact
from neurollm.stats.power import smallest_detectable
from neurollm.validation import several

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult

POWER = 0.8
LARGEST = 50.0
"""Standard deviations; larger effects count as never found."""


def detectable(critical: float, df: float, unit: float, alternative: str) -> float:
    """The standardised difference, as a size, that a t test finds with 80 % power; infinite if none does."""
    size = abs(float(smallest_detectable(np.array([critical]), df, unit, POWER, alternative)[0]))
    return size if size < LARGEST else math.inf


def bonferroni(alpha: float, n_tests: int, df: float, alternative: str) -> float:
    """The t that one of `n_tests` must exceed."""
    sides = 2 if alternative == "two-sided" else 1
    return float(stats.t.isf(alpha / (sides * n_tests), df))


def sensitivity(result: ContrastResult, alpha: float) -> str:
    """One sentence: the smallest effect that the test of a contrast would have found, at the threshold it used."""
    if not result.n_tests:
        return ""
    if math.isnan(result.unit):
        return "The smallest detectable effect is given for differences of conditions only."
    critical, df = result.critical_value(alpha), float(np.median(result.df[result.valid]))
    how = f"critical value {decimal(critical)}"
    if not result.exchange.n_perm:
        critical = bonferroni(alpha, result.n_tests, df, result.alternative)
        how = f"Bonferroni threshold {decimal(critical)} of p ≤ {exact(alpha)}"
    size = detectable(critical, df, result.unit, result.alternative)
    if math.isinf(size):
        return f"No effect, whatever its size, had a power of {POWER:.0%} with these {several(result.exchange.unit)}."
    symbol = "g_z" if result.effect_size_kind == "hedges_g_z" else "g"
    return (
        f"The test had a power of {POWER:.0%} for effects of {symbol} = {decimal(size)} and more "
        f"({how}, noncentral t with {decimal(df, 0)} degrees of freedom); smaller ones may have gone unseen."
    )
