"""Linear mixed models of a few reported features, with items and templates as crossed random factors.

    value = β₀ + β·condition + covariates + I_i + c·S_i + T_t + c·U_t + e

by restricted maximum likelihood (statsmodels ``MixedLM``). Condition is coded −½ and ½, so β is the difference of the
two conditions, or enters as the numbers given. The slopes S of items and U of templates are included where condition
varies within the factor and its cells hold more than one trial, for otherwise they cannot be told from the residual;
slopes and intercepts are uncorrelated (Barr et al. 2013; Matuschek et al. 2017). p is from the normal distribution
of β/se, which is liberal with few items or templates: the tests of `neurollm.stats` stay the primary ones, this is
a check of their robustness.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

MOST_FEATURES = 100  # a model takes seconds; all features are tested by `neurollm.stats.crossed_anova`
_NO_VARIANCE = 1e-6  # of the feature's own variance


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
        More than 100 features, an unknown or unusable column, or statsmodels is not installed.

    Examples
    --------
    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"condition": ["a", "b"] * 20, "item": np.repeat(np.arange(20), 2)})
    >>> values = rng.normal(size=(40, 1)) + 2 * (obs[["condition"]] == "b").to_numpy()
    >>> frame = mixed_model(values, obs, "condition")
    >>> abs(frame["estimate"].iloc[0] - 2) < 1, bool(frame["converged"].iloc[0])
    (True, True)
    """
    import pandas as pd

    try:
        from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
    except ImportError:
        raise InvalidInput("a mixed model needs the package statsmodels; install it with pip.") from None
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[0] != len(obs):
        raise InvalidInput(f"values has shape {values.shape}; it must be trials × features with {len(obs)} trials.")
    if values.shape[1] > MOST_FEATURES:
        raise InvalidInput(
            f"a mixed model takes seconds per feature, so at most {MOST_FEATURES} are fitted, found "
            f"{values.shape[1]}; choose the reported ones, and test all of them by crossed_anova."
        )
    _check_columns(obs, [condition, item, *([template] if template is not None else []), *covariates])
    codes = _codes(obs[condition])
    exog = np.column_stack([np.ones(len(obs)), codes, *(_numbers(obs[name]) for name in covariates)])
    if np.linalg.matrix_rank(exog) < exog.shape[1]:
        raise InvalidInput(f"'{condition}' and the covariates are collinear or constant; leave one of them out.")
    factors = {item: _labels(obs[item])} | ({template: _labels(obs[template])} if template is not None else {})
    groups, spec = _random_effects(factors, codes)
    rows = [_fit(lambda y: MixedLM(y, exog, groups, exog_vc=VCSpec(*spec)), y, spec[0]) for y in values.T]
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


def _random_effects(factors: dict[str, np.ndarray], codes: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Groups, and names, column names and matrices of the variance components.

    A single factor groups the trials, which keeps the matrices small; crossed factors are components of one group.
    """
    crossed = len(factors) > 1
    first = next(iter(factors.values()))
    groups = np.zeros(len(codes), int) if crossed else first
    names, columns, matrices = [], [], []
    for factor, labels in factors.items():
        dummies = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
        parts = {factor: dummies}
        if _has_slope(labels, codes):
            parts[f"{factor}:condition"] = dummies * codes[:, None]
        for name, matrix in parts.items():
            by_group = [matrix[groups == group] for group in np.unique(groups)]
            if not crossed:
                by_group = [part[:, [group]] for group, part in enumerate(by_group)]
            names.append(name)
            matrices.append(by_group)
            columns.append([[str(j) for j in range(part.shape[1])] for part in by_group])
    return groups, (names, columns, matrices)


def _has_slope(labels: np.ndarray, codes: np.ndarray) -> bool:
    """Condition varies within levels of the factor, and a level has a condition more than once."""
    cells = np.unique(np.stack([labels, codes]), axis=1).shape[1]
    return labels.max() + 1 < cells < len(labels)


def _fit(model: Callable, y: np.ndarray, components: list[str]) -> tuple[float, float, float, float, bool, str]:
    """One row of the table; whatever goes wrong becomes its message."""
    nan = float("nan")
    if not np.isfinite(y).all():
        return nan, nan, nan, nan, False, "the feature holds values that are not finite"
    scale = y.std()
    if scale == 0:
        return nan, nan, nan, nan, False, "the feature is constant"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Optimisers stop at absolute tolerances, so every feature is fitted in units of its own spread.
            fitted = model((y - y.mean()) / scale).fit(reml=True, method=["bfgs", "lbfgs", "powell"])
            estimate, se, p = fitted.fe_params[1] * scale, fitted.bse_fe[1] * scale, fitted.pvalues[1]
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            return nan, nan, nan, nan, False, f"the model could not be fitted ({error})"
    messages = [] if fitted.converged else [str(warning.message).split("\n")[0] for warning in caught]
    absent = [name for name, variance in zip(components, fitted.vcomp, strict=True) if variance < _NO_VARIANCE]
    if absent:
        messages.append(f"no variance found of {listed(absent)}")
    return estimate, se, estimate / se, p, bool(fitted.converged), "; ".join(dict.fromkeys(messages))
