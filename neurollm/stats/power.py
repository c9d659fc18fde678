"""How large an effect must be to be found, and how often it would be.

* Smallest detectable effect: the standardised effect δ whose noncentral t, with noncentrality δ/unit, exceeds the
  threshold in the share `power` of studies. The threshold is the one in use, such as the critical value of the
  largest |t| over all features, not that of a single test.
* Items and templates both random (Westfall, Kenny and Judd 2014): with condition coded c = ±1, a value is
  ``c·effect/2 + I + c·IC + T + c·TC + IT + e``. With p items and q templates the difference of the means has variance

      4 V_IC/p + 4 V_TC/q + 2 V_e/(pq)                      items in both conditions,
      4 (V_I + V_IC)/p + 4 V_TC/q + 4 (V_IT + V_e)/(pq)     half of the items in each condition.

  Power follows from the noncentral t with Satterthwaite degrees of freedom at these variances. Simulated studies
  show it for each of the analyses of `neurollm.stats.crossed`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.crossed import crossed_anova
from neurollm.stats.effects import noncentrality_interval
from neurollm.stats.inversion import solve_percentile

Alternative = Literal["two-sided", "greater", "less"]
_OTHER_TAIL = 7.0  # a noncentrality beyond which the wrong sign has a probability below 1e-11
_PER_STREAM = 100  # simulated studies per random stream


def smallest_detectable(
    critical_t: np.ndarray, df: float, unit: float, power: float = 0.8, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """Standardised effect that passes a threshold of t with a given probability.

    Parameters
    ----------
    critical_t : ndarray or float
        Positive thresholds: of |t|, of t, or of −t, as `alternative` says.
    df : float
    unit : float
        ``1/√n`` for paired differences, ``√(1/n1 + 1/n2)`` for two groups.
    power : float, default=0.8
    alternative : {"two-sided", "greater", "less"}, default="two-sided"

    Returns
    -------
    ndarray
        Effects in standard deviations, negative for "less"; 0 where chance alone passes as often, infinite where
        the threshold is, NaN where it is.

    Raises
    ------
    InvalidInput
        A threshold below 0, or `df`, `unit` or `power` out of range.

    Examples
    --------
    >>> smallest_detectable(np.array([2.093, 6.0]), df=19, unit=20**-0.5).round(2).tolist()
    [0.66, 1.59]
    """
    critical = np.asarray(critical_t, float)
    if (critical < 0).any():
        raise InvalidInput(f"a threshold of t must be at least 0, found {np.nanmin(critical):.4g}.")
    if not (df > 0 and unit > 0 and 0 < power < 1):
        raise InvalidInput(f"df and unit must be above 0 and power between 0 and 1, found {df}, {unit} and {power}.")
    if alternative not in ("two-sided", "greater", "less"):
        raise InvalidInput(f"alternative is {alternative!r}; it must be 'two-sided', 'greater' or 'less'.")
    two_sided = alternative == "two-sided"
    noncentrality = np.where(np.isnan(critical), np.nan, np.inf)
    finite = np.isfinite(critical)
    c = critical[finite]
    chance = special.stdtr(df, -c) * (2 if two_sided else 1)
    found = np.zeros_like(c)
    some = chance < power
    found[some] = _noncentrality(c[some], df, power, two_sided)
    noncentrality[finite] = found
    return noncentrality * unit * (-1 if alternative == "less" else 1)


def _noncentrality(critical: np.ndarray, df: float, power: float, two_sided: bool) -> np.ndarray:
    """The noncentrality with which t passes the threshold with probability `power`."""
    low, high = noncentrality_interval(critical, df, abs(2 * power - 1))
    one_sided = high if power >= 0.5 else low
    near = two_sided & (one_sided < _OTHER_TAIL)
    c, bound = critical[near], one_sided[near]
    one_sided[near] = solve_percentile(
        lambda nc: 1 - _passes(nc, c, df, two_sided), 1 - power, bound, np.zeros_like(bound), bound
    )
    return one_sided


def _passes(nc: np.ndarray, critical: np.ndarray, df: float, two_sided: bool) -> np.ndarray:
    """Probability that a noncentral t with nc ≥ 0 exceeds the threshold, on either side if `two_sided`."""
    passes = 1 - special.nctdtr(df, nc, critical)
    # Where the other tail is below 1e-13 the distribution function may be NaN.
    return passes + np.nan_to_num(special.nctdtr(df, nc, -critical)) if two_sided else passes


@dataclass(frozen=True)
class Variances:
    """Variances of values over items and templates; in Westfall's form they sum to 1.

    Attributes
    ----------
    item, item_condition : float
        Of the items' means, and of half the items' differences between conditions.
    template, template_condition : float
        Likewise of templates.
    residual : float
        Of single values.
    item_template : float, default=0.0
        Of item × template pairs; matters only for items nested in conditions.
    """

    item: float
    item_condition: float
    template: float
    template_condition: float
    residual: float
    item_template: float = 0.0


@dataclass(frozen=True)
class CrossedPower:
    """Shares of simulated studies with p ≤ α.

    Attributes
    ----------
    by_items, by_templates : float
        F₁ and F₂, each of which takes the other factor as fixed.
    both : float
        F₁ and F₂ both. Liberal too where items and templates vary: found .105 at α = .05 with 16 of each and equal
        item × condition and template × condition variances.
    min_f, quasi_f : float
        min F′ and F′.
    closed_form : float
        Approximation of Westfall, Kenny and Judd; their analysis is closest to F′.
    n_simulations : int
    """

    by_items: float
    by_templates: float
    both: float
    min_f: float
    quasi_f: float
    closed_form: float
    n_simulations: int


def crossed_power(
    n_items: int,
    n_templates: int,
    effect: float,
    variances: Variances,
    *,
    nested: bool = False,
    alpha: float = 0.05,
    n_simulations: int = 2000,
    random_state: int = 0,
) -> CrossedPower:
    """Power to find a difference of two conditions over random items and templates.

    Parameters
    ----------
    n_items : int
        Of the whole design; with `nested` half of them in each condition.
    n_templates : int
    effect : float
        Difference of the condition means, in units of the square roots of the variances.
    variances : Variances
    nested : bool, default=False
        Whether each item occurs in one condition only.
    alpha : float, default=0.05
    n_simulations : int, default=2000
    random_state : int, default=0

    Returns
    -------
    CrossedPower

    Raises
    ------
    InvalidInput
        Fewer than two items (per condition) or templates, a negative variance, no residual variance, or `alpha` or
        `n_simulations` out of range.

    Examples
    --------
    >>> variances = Variances(item=0.3, item_condition=0.1, template=0.1, template_condition=0.1, residual=0.4)
    >>> power = crossed_power(40, 10, effect=0.5, variances=variances, n_simulations=200)
    >>> power.both <= min(power.by_items, power.by_templates), round(power.closed_form, 2)
    (True, 0.53)
    """
    _check_design(n_items, n_templates, nested, variances)
    if not (0 < alpha < 1 and n_simulations >= 1):
        raise InvalidInput(
            f"alpha must lie between 0 and 1 and n_simulations be at least 1, found {alpha} and {n_simulations}."
        )
    shape = (2, n_items // 2 if nested else n_items, n_templates)
    condition, item, template = (x.ravel() for x in np.indices(shape))
    counts = np.zeros(5)
    for index, start in enumerate(range(0, n_simulations, _PER_STREAM)):
        rng = stream(random_state, "crossed_power", index)
        cells = _simulate(rng, shape, effect, variances, nested)[..., : n_simulations - start]
        result = crossed_anova(
            cells.reshape(condition.size, -1), condition, item + nested * condition * n_items, template
        )
        both = np.maximum(result.p_items, result.p_templates)
        p = np.stack([result.p_items, result.p_templates, both, result.p_min_f, result.p_quasi_f])
        counts += (p <= alpha).sum(axis=1)
    closed = _closed_form(n_items, n_templates, effect, variances, nested, alpha)
    return CrossedPower(*(counts / n_simulations).tolist(), closed, n_simulations)


def _check_design(n_items: int, n_templates: int, nested: bool, variances: Variances) -> None:
    if nested and n_items % 2:
        raise InvalidInput(f"items nested in two conditions must be an even number, found {n_items}.")
    if min(n_items // 2 if nested else n_items, n_templates) < 2:
        raise InvalidInput(
            f"power over items and templates needs at least two of each (two items per condition), found {n_items} "
            f"items and {n_templates} templates."
        )
    if min(astuple(variances)) < 0 or not variances.residual > 0:
        raise InvalidInput(f"variances cannot be negative, and the residual must be above 0, found {variances}.")


def _simulate(
    rng: np.random.Generator, shape: tuple[int, int, int], effect: float, variances: Variances, nested: bool
) -> np.ndarray:
    """Studies of shape (2, items per condition, templates, _PER_STREAM)."""
    _, n_items, n_templates = shape
    per_condition = 2 if nested else 1  # draws of an item: other items in the other condition
    sd = {name: np.sqrt(value) for name, value in vars(variances).items()}

    def draw(name: str, *size: int) -> np.ndarray:
        return sd[name] * rng.standard_normal((*size, _PER_STREAM))

    sign = np.array([-1.0, 1.0])[:, None, None, None]
    values = sign * (effect / 2 + draw("item_condition", per_condition, n_items, 1))
    values = values + draw("item", per_condition, n_items, 1) + draw("template", 1, 1, n_templates)
    values = values + sign * draw("template_condition", 1, 1, n_templates)
    return values + draw("item_template", per_condition, n_items, n_templates) + draw("residual", *shape)


def _closed_form(p: int, q: int, effect: float, variances: Variances, nested: bool, alpha: float) -> float:
    """Two-sided noncentral t power at the expected mean squares of items, templates and residual."""
    if nested:
        residual = variances.residual + variances.item_template
        items, templates = q * (variances.item + variances.item_condition), p * variances.template_condition
        df, scale = np.array([p - 2, q - 1, (p - 2) * (q - 1)]), 4 / (p * q)
    else:
        residual = variances.residual
        items, templates = 2 * q * variances.item_condition, 2 * p * variances.template_condition
        df, scale = np.array([p - 1, q - 1, (p - 1) * (q - 1)]), 2 / (p * q)
    squares = np.array([items + residual, templates + residual, residual])
    total = items + templates + residual
    df_total = total**2 / (squares**2 / df).sum()
    critical = special.stdtrit(df_total, 1 - alpha / 2)
    return float(_passes(abs(effect) / np.sqrt(scale * total), critical, df_total, two_sided=True))
