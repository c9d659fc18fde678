"""Linear mixed models of a few reported features, with items and templates as crossed random factors.

    value = β₀ + β·condition + covariates + I_i + c·S_i + T_t + c·U_t + e

by restricted maximum likelihood (`neurollm.stats.reml`). Condition is coded −½ and ½, so β is the difference of the
two conditions, or enters as the numbers given. The slopes S of items and U of templates are included where condition
varies within the factor and its cells hold more than one trial, for otherwise they cannot be told from the residual;
slopes and intercepts are uncorrelated (Barr et al. 2013; Matuschek et al. 2017). p is from the normal distribution
of β/se, which is liberal with few items or templates (found at .05: .066 with 24 items and 12 templates, .113 with
40 and 4): the tests of `neurollm.stats` stay the primary ones, this is a check of their robustness.
(The MixedLM of statsmodels often does not converge where a variance is zero, as it is for many sparse features:
`docs/calibration.md`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.reml import MixedFit, fit_mixed
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

MOST_FEATURES = 100  # models are fitted one by one; `neurollm.stats.crossed_anova` tests all features at once
_NO_VARIANCE = 1e-6  # of the residual


def mixed_model(
    values: Any,
    obs: pd.DataFrame,
    condition: str,
    *,
    item: str = "item",
    template: str | None = None,
    covariates: Sequence[str] = (),
    features: Sequence | None = None,
) -> pd.DataFrame:
    """Fit one mixed model per feature.

    Parameters
    ----------
    values : ndarray, shape (n_trials, m)
        At most 100 features.
    obs : pandas.DataFrame
        One row per trial.
    condition : str
        Column with two levels (the later one in sorted order, or in the order of a categorical, less the earlier) or
        with numbers.
    item : str, default="item"
        Column of the items.
    template : str, optional
        Column of the templates, crossed with items.
    covariates : sequence of str, default=()
        Numeric columns, entered as fixed effects.
    features : sequence, optional
        Names of the features, for the index.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``estimate``, ``se``, ``z``, ``p``, ``converged`` and ``message``, which is empty or tells
        what went wrong and which random effects were estimated to have no variance. A model that did not converge keeps
        its numbers, one that failed has NaN.

    Raises
    ------
    InvalidInput
        More than 100 features, or an unknown or unusable column.

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"condition": ["a", "b"] * 20, "item": np.repeat(np.arange(20), 2)})
    >>> values = rng.normal(size=(40, 1)) + 2 * (obs[["condition"]] == "b").to_numpy()
    >>> frame = mixed_model(values, obs, "condition")
    >>> bool(abs(frame["estimate"].iloc[0] - 2) < 1), bool(frame["converged"].iloc[0])
    (True, True)
    """
    import pandas as pd

    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[0] != len(obs):
        raise InvalidInput(f"values has shape {values.shape}; it must be trials × features with {len(obs)} trials.")
    if values.shape[1] > MOST_FEATURES:
        raise InvalidInput(
            f"mixed models are fitted one by one, to at most {MOST_FEATURES} features, found {values.shape[1]}; choose "
            "the reported ones, and test all of them by crossed_anova."
        )
    _check_columns(obs, [condition, item, *([template] if template is not None else []), *covariates])
    codes = _codes(obs[condition])
    exog = np.column_stack([np.ones(len(obs)), codes, *(_numbers(obs[name]) for name in covariates)])
    if np.linalg.matrix_rank(exog) < exog.shape[1]:
        raise InvalidInput(f"'{condition}' and the covariates are collinear or constant; leave one of them out.")
    factors = {item: _labels(obs[item])} | ({template: _labels(obs[template])} if template is not None else {})
    effects = _random_effects(factors, codes)
    rows = [(np.nan,) * 4 + (False, _unusable(y)) for y in values.T]
    usable = [j for j, row in enumerate(rows) if not row[-1]]
    for j, fit in zip(usable, _fits(values[:, usable], exog, list(effects.values())), strict=True):
        rows[j] = _row(fit, values[:, j].std(), list(effects))
    index = pd.Index(range(values.shape[1]) if features is None else list(features), name="feature")
    return pd.DataFrame(rows, index=index, columns=["estimate", "se", "z", "p", "converged", "message"])


def _check_columns(obs: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        if name not in obs:
            raise InvalidInput(
                f"the trials have no column '{name}'{closest(name, obs.columns)}; columns are {listed(obs.columns)}."
            )
        if obs[name].isna().any():
            raise InvalidInput(f"column '{name}' has empty cells; leave those trials out.")


def _codes(column: pd.Series) -> np.ndarray:
    """−½ and ½ for two levels, else the numbers themselves."""
    import pandas as pd

    used = column.cat.remove_unused_categories() if isinstance(column.dtype, pd.CategoricalDtype) else column
    labels, levels = pd.factorize(used, sort=True)
    if len(levels) == 2 and not (pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)):
        return labels - 0.5
    if len(levels) < 2 or not pd.api.types.is_numeric_dtype(column):
        raise InvalidInput(
            f"column '{column.name}' has {len(levels)} levels; a condition must have two, or be a column of numbers "
            "that codes a contrast."
        )
    return column.to_numpy(float)


def _numbers(column: pd.Series) -> np.ndarray:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        raise InvalidInput(f"covariate '{column.name}' must be a column of numbers.")
    return column.to_numpy(float)


def _labels(column: pd.Series) -> np.ndarray:
    import pandas as pd

    labels, levels = pd.factorize(column, sort=True)
    if len(levels) < 2 or len(levels) == len(labels):
        raise InvalidInput(
            f"column '{column.name}' has {len(levels)} levels in {len(labels)} trials; a random factor needs at least "
            "two, and some of them in several trials."
        )
    return labels


def _random_effects(factors: dict[str, np.ndarray], codes: np.ndarray) -> dict[str, np.ndarray]:
    """Design of the intercepts of each factor and, where they can be estimated, of its slopes."""
    effects = {}
    for factor, labels in factors.items():
        effects[factor] = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
        if _has_slope(labels, codes):
            effects[f"{factor}:condition"] = effects[factor] * codes[:, None]
    return effects


def _has_slope(labels: np.ndarray, codes: np.ndarray) -> bool:
    """Condition varies within levels of the factor, and a level has a condition more than once."""
    cells = np.unique(np.stack([labels, codes]), axis=1).shape[1]
    return labels.max() + 1 < cells < len(labels)


def _unusable(y: np.ndarray) -> str:
    if not np.isfinite(y).all():
        return "the feature holds values that are not finite"
    return "the feature is constant" if np.ptp(y) == 0 else ""


def _fits(values: np.ndarray, exog: np.ndarray, effects: list[np.ndarray]) -> list[MixedFit]:
    """In units of each feature's own spread, so that its scale does not matter to the optimiser."""
    return fit_mixed((values - values.mean(axis=0)) / values.std(axis=0), exog, effects)


def _row(fit: MixedFit, scale: float, effects: list[str]) -> tuple[float, float, float, float, bool, str]:
    """Estimates in the feature's units, and what there is to say about them."""
    z = fit.beta[1] / fit.se[1]
    messages = [] if fit.converged else ["not converged, or nothing is left for the residual"]
    absent = [
        name for name, variance in zip(effects, fit.variances, strict=True) if variance <= _NO_VARIANCE * fit.residual
    ]
    if absent:
        messages.append(f"no variance found of {listed(absent)}")
    return fit.beta[1] * scale, fit.se[1] * scale, z, 2 * special.ndtr(-abs(z)), fit.converged, "; ".join(messages)
