"""Every effect size of a contrast, and analyses that take templates as random too, for reported features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.designs import Contrast, ContrastPlan, Design, ItemTable
from neurollm.errors import InvalidInput
from neurollm.glm.mixed import mixed_model
from neurollm.glm.sizes import effect_sizes
from neurollm.stats import linear_fit
from neurollm.stats.arrays import combine_rows, dense
from neurollm.stats.auc_effect import auc_interval, paired_auc
from neurollm.stats.crossed import crossed_anova
from neurollm.stats.paired import hedges_g_av
from neurollm.stats.rates import paired_rate_difference, rate_difference
from neurollm.stats.transforms import TRANSFORMS
from neurollm.stats.variance_explained import partial_eta_squared, partial_omega_squared, partial_r

if TYPE_CHECKING:
    import pandas as pd

_SIDE = "side of the contrast"


def size_columns(table: ItemTable, plan: ContrastPlan, contrast: Contrast) -> dict[str, np.ndarray]:
    """Effect sizes by name, each with ``_low`` and ``_high``, for all columns of a table.

    ========  =============================================================================================
    g         Hedges' g: between items of the pooled standard deviation, within items (g_z) of the differences'
    g_av      within items: of the average standard deviation of the two sides
    auc       chance that an item of the positive side is higher (within items: that its difference is positive)
    rate      difference of activation rates
    r         partial correlation with the contrast
    eta2      partial η²; ``omega2`` (without interval) is less biased
    ========  =============================================================================================

    For an F contrast: eta2 and omega2 only.
    """
    data = combine_rows(plan.reduce, table.values)
    fit = linear_fit(data, plan.hypothesis)
    sizes = effect_sizes(data, plan, fit, fit.df)
    f = fit.stat if fit.rank > 1 else fit.stat**2
    columns: dict[str, Any] = {}
    if fit.rank == 1:
        if plan.is_difference:
            columns["g"] = tuple(sizes.arrays[f"effect_size{end}"] for end in ("", "_low", "_high"))
        columns |= _side_columns(table, plan, contrast, data)
        columns["r"] = partial_r(fit.stat, fit.df)
    columns["eta2"] = partial_eta_squared(f, fit.rank, fit.df)
    out = {
        f"{name}{end}": values
        for name, triple in columns.items()
        for end, values in zip(("", "_low", "_high"), triple, strict=True)
    }
    out["omega2"] = partial_omega_squared(f, fit.rank, fit.df)
    blank = np.where(fit.norm > 0, 0.0, np.nan)
    return {name: values + blank for name, values in out.items()}


def _side_columns(table: ItemTable, plan: ContrastPlan, contrast: Contrast, data: Any) -> dict[str, tuple]:
    """AUC, rate difference and g_av, from the two sides of a t contrast."""
    weight = dict(zip(contrast.parameters, contrast.weights[0], strict=True))
    cells = [table.cells[code] for code in table.cell_codes[plan.used]]
    weights = np.array([weight.get(cell, 0.0) for cell in cells])
    items = np.unique(table.item_codes[plan.used], return_inverse=True)[1]
    if not weights.any():
        return {}  # a formula's coefficient has no sides
    sides = [np.bincount(items[weights * sign > 0], minlength=items.max() + 1) > 0 for sign in (1, -1)]
    between = plan.hypothesis.shuffling.kind == "whole_item"
    if not between and (sides[0] & sides[1]).all():
        scores = data if plan.scores is None else combine_rows(plan.scores, data)
        a, b = (_side(table.values, plan, items, np.clip(sign * weights, 0, None)) for sign in (1, -1))
        rates = [_side(table.shares, plan, items, np.clip(sign * weights, 0, None)) for sign in (1, -1)]
        spread = [side.std(axis=0, ddof=1) for side in (a, b, a - b)]
        found = {"auc": paired_auc(scores), "rate": paired_rate_difference(*np.clip(rates, 0, 1))}
        if len(a) > 2:
            found["g_av"] = hedges_g_av((a - b).mean(axis=0), *spread, len(a))
        return found
    if between and (sides[0] ^ sides[1]).all():
        one = sparse.csr_array((np.ones(items.size), (np.arange(items.size), plan.used)), (items.size, table.n_rows))
        rates = np.clip(dense(combine_rows(one, table.shares)), 0, 1)
        return {"auc": auc_interval(data, sides[0]), "rate": rate_difference(rates, sides[0])}
    return {}  # an interaction of factors within and between items


def _side(values: Any, plan: ContrastPlan, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of each item's cells on one side."""
    total = np.bincount(items, weights)
    matrix = sparse.csr_array((weights / total[items], (items, plan.used)), shape=(items.max() + 1, values.shape[0]))
    return dense(combine_rows(matrix, values))


def robustness(
    design: Design, contrast: Any, X: Any, obs: pd.DataFrame, features: Sequence[int], transform: str = "raw"
) -> pd.DataFrame:
    """Does a difference hold with templates random too, and in a mixed model? For up to 100 reported features.

    Parameters
    ----------
    design : Design
        Categorical, with `template` if there is one.
    contrast : str or other contrast of two levels
    X : array of any supported kind, shape (n_trials, V)
    obs : DataFrame
    features : sequence of int
        Columns of `X`.
    transform : {"raw", "log1p", "binary"}

    Returns
    -------
    DataFrame
        One row per feature. Mixed model (items, and templates, random; by restricted maximum likelihood):
        ``estimate, se, z, p_mixed, converged, message``. With a template and a balanced design also ``f_items,
        f_templates, min_f, p_min_f, quasi_f, p_quasi_f`` (Clark 1973).

    Raises
    ------
    InvalidInput
        The contrast is not between two levels of one factor, or more than 100 features are asked for.
    """
    import pandas as pd

    contrast = design.contrast(contrast, obs)
    active = [name for name, weight in zip(contrast.parameters, contrast.matrix.any(axis=0), strict=True) if weight]
    if len(design.variables) != 1 or contrast.rank > 1 or len(active) != 2:
        raise InvalidInput(
            f"robustness: the contrast '{contrast.name}' must compare two levels of one factor; "
            f"it involves {len(active)} parameters."
        )
    if design.item is None:
        raise InvalidInput("robustness: the design has no items, so there is nothing to take as random.")
    levels = design.column(obs, design.variables[0]).astype(str).to_numpy(str)
    used = np.flatnonzero(np.isin(levels, active))
    weight = dict(zip(contrast.parameters, contrast.weights[0], strict=True))
    values = dense(X[used][:, list(features)])
    if TRANSFORMS[transform] is not None:
        values = TRANSFORMS[transform](values)
    positive = np.array([weight[level] > 0 for level in levels[used]])
    table = obs.iloc[used].assign(**{_SIDE: np.where(positive, "positive", "negative")})
    frame = mixed_model(
        values,
        table,
        _SIDE,
        item=design.item,
        template=design.template,
        covariates=design.covariates,
        features=features,
    )
    frame = frame.rename(columns={"p": "p_mixed"}).rename_axis("feature").reset_index()
    if design.template is None:
        return frame
    try:
        anova = crossed_anova(values, positive, *(table[name].astype(str) for name in (design.item, design.template)))
    except InvalidInput:
        return frame  # unbalanced: no quasi-F exists
    names = ("f_items", "f_templates", "min_f", "p_min_f", "quasi_f", "p_quasi_f")
    return pd.concat([frame, pd.DataFrame({name: getattr(anova, name) for name in names})], axis=1)
