"""Effects of a contrast in units of activation and standardised, with intervals, for all features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.designs import ContrastPlan
from neurollm.stats import Hypothesis, hedges_g, partial_eta_squared, partial_r, sign_flip, t_interval
from neurollm.stats.arrays import combine_rows
from neurollm.stats.linear import LinearFit, linear_fit


@dataclass(frozen=True)
class Sizes:
    """Arrays by the names of `ContrastResult`, what the standardised size is, and its unit."""

    arrays: dict[str, np.ndarray]
    kind: str
    unit: float


def effect_sizes(data: Any, plan: ContrastPlan, fit: LinearFit, df: Any, se: np.ndarray | None = None) -> Sizes:
    """Effects and their intervals.

    Parameters
    ----------
    data : array of any supported kind, shape (n_rows, V)
    plan : ContrastPlan
    fit : LinearFit
        Of `data`.
    df, se : float or ndarray, optional
        Of the reported statistic, where its standard error is not the pooled one.

    Returns
    -------
    Sizes
    """
    if fit.rank > 1:
        nothing = np.full(len(fit.norm), np.nan)
        effect = np.sqrt((fit.projection**2).sum(axis=0) / plan.hypothesis.n_rows)
        size = partial_eta_squared(fit.stat, fit.rank, fit.df)
        return _named(effect, (nothing, nothing), nothing, size, "partial_eta2", float("nan"))
    effect = plan.scale * fit.projection[0]
    pooled = plan.scale * np.sqrt(fit.residual / fit.df)
    if plan.scores is not None:
        # The items' own scores give an interval without assuming sphericity; the permuted t uses the additive model.
        n = plan.scores.shape[0]
        scores = linear_fit(combine_rows(plan.scores, data), _mean_of(n))
        interval = t_interval(effect, np.sqrt(scores.residual / (n - 1) / n), n - 1)
        return _named(effect, interval, pooled, hedges_g(scores.stat, n - 1, n**-0.5), "hedges_g_z", n**-0.5)
    se = pooled if se is None else se
    if not plan.is_difference:
        return _named(effect, t_interval(effect, se, df), se, partial_r(fit.stat, fit.df), "partial_r", float("nan"))
    between = plan.exchangeability.kind == "whole_item"
    size = hedges_g(fit.stat, fit.df, plan.scale)
    return _named(effect, t_interval(effect, se, df), se, size, "hedges_g" if between else "hedges_g_z", plan.scale)


def _named(effect: np.ndarray, interval: tuple, se: np.ndarray, size: tuple, kind: str, unit: float) -> Sizes:
    names = ("effect_size", "effect_size_low", "effect_size_high")
    arrays = {"effect": effect, "effect_low": interval[0], "effect_high": interval[1], "se": se}
    return Sizes(arrays | dict(zip(names, size, strict=True)), kind, float(unit))


def _mean_of(n: int) -> Hypothesis:
    """That n scores have mean zero."""
    none = np.zeros((n, 0))
    return Hypothesis(np.full((n, 1), n**-0.5), none, none, None, n - 1, sign_flip(n))
