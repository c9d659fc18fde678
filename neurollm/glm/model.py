"""The estimator of mass-univariate contrasts: fit averages trials, a contrast tests all features."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import CategoricalDesign, Contrast, ContrastPlan, ItemTable
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm.result import ContrastResult
from neurollm.progress import Progress
from neurollm.stats import contrast_moments, hedges_g, permutation_test, sides, t_interval
from neurollm.stats.arrays import combine_rows, largest_values
from neurollm.stats.transforms import TRANSFORMS
from neurollm.validation import listed

if TYPE_CHECKING:
    import pandas as pd

ALTERNATIVES = ("two-sided", "greater", "less")
FEW_SHUFFLINGS = 400  # 20 / .05
UNEQUAL_SHARE = 0.1  # of the items may have unlike numbers of trials before a warning


class FeatureGLM:
    """Test contrasts of level means in every feature, correcting for the number of features.

    Parameters
    ----------
    design : CategoricalDesign
    n_perm : int, default=10_000
        Shufflings; if no more exist, all are used.
    alternative : {"two-sided", "greater", "less"}
    random_state : int, default=0
    min_active_items : int, default=0
        Features active in fewer items of the contrast are not tested. The count does not look at
        labels, so the tests stay valid.
    transform : {"raw", "log1p", "binary"}
        Applied to every trial before averaging.
    verbose : int, default=0

    Attributes
    ----------
    table_ : ItemTable
        Item × level means.
    levels_ : list of str
    design_matrix_ : DataFrame
    feature_ : ndarray
        Feature ids.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"outcome": ["success", "failure"] * 12, "item": np.repeat(np.arange(12), 2)})
    >>> X = rng.normal(size=(24, 50))
    >>> X[::2, 7] += 5
    >>> glm = FeatureGLM(CategoricalDesign("outcome"), n_perm=2000).fit(X, obs)
    >>> result = glm.compute_contrast("success - failure")
    >>> int(result.to_frame()["feature"][0]), bool(result.p_fwer[7] < 0.05)
    (7, True)
    """

    def __init__(
        self,
        design: CategoricalDesign,
        n_perm: int = 10_000,
        alternative: str = "two-sided",
        random_state: int = 0,
        min_active_items: int = 0,
        transform: str = "raw",
        verbose: int = 0,
    ) -> None:
        self.design = design
        self.n_perm = n_perm
        self.alternative = alternative
        self.random_state = random_state
        self.min_active_items = min_active_items
        self.transform = transform
        self.verbose = verbose

    def fit(self, X: Any, obs: pd.DataFrame | None = None, features: Any = None) -> FeatureGLM:
        """Average the trials to item × level means.

        Parameters
        ----------
        X : array or AnnData, shape (n_trials, V)
            numpy, memory map, scipy.sparse, torch, or trials as AnnData (then the rest is read from it).
        obs : DataFrame, optional
            Trial table, one row per row of X.
        features : sequence, optional
            Feature ids; default 0 … V−1.

        Returns
        -------
        self
        """
        self._check_parameters()
        X, obs, features = _unpack(X, obs, features)
        if getattr(X, "ndim", 2) != 2 or not hasattr(X, "shape"):
            raise InvalidInput("fit: the activations must be a two-dimensional array, trials × features.")
        self.feature_ = np.arange(X.shape[1]) if features is None else np.asarray(features)
        if len(self.feature_) != X.shape[1]:
            raise DataMismatch(f"fit: {len(self.feature_)} feature ids were given for {X.shape[1]} columns.")
        self.levels_ = self.design.levels(obs)
        self.design_matrix_ = self.design.design_matrix(obs)
        self.table_: ItemTable = self.design.items_table(X, obs, self.transform)
        return self

    def compute_contrast(self, contrast: Any, name: str | None = None) -> ContrastResult:
        """Test a contrast of level means in all features.

        Parameters
        ----------
        contrast : str, mapping, sequence of numbers or Contrast
            See `neurollm.designs.Contrast.parse`.
        name : str, optional
            Default: the expression.

        Returns
        -------
        ContrastResult
        """
        if not hasattr(self, "table_"):
            raise InvalidInput("compute_contrast: call fit first.")
        contrast = Contrast.parse(contrast, self.levels_, name)
        plan = self.design.plan(self.table_, contrast)
        selection = plan.selection(len(self.table_.level_codes))
        cells, shares = combine_rows(selection, self.table_.values), combine_rows(selection, self.table_.shares)
        data = combine_rows(plan.differences(), cells) if plan.shuffling.kind == "sign_flip" else cells
        moments = contrast_moments(data, plan.shuffling, plan.weights, largest_values(cells))
        described = sides(cells, plan.level_codes, plan.item_codes, plan.weights, shares)
        tested, reasons = _testable(moments.norm, described.n_active_items, self.min_active_items)
        norms = np.where(tested, moments.norm, np.nan)
        total = int(tested.sum()) * min(self.n_perm, plan.shuffling.n_possible)
        with Progress("permutations", total, "statistics", self.verbose) as progress:
            permuted = permutation_test(
                data,
                plan.shuffling,
                norms,
                n_perm=int(self.n_perm),
                alternative=self.alternative,
                random_state=int(self.random_state),
                on_block=progress.advance,
            )
        return self._result(contrast, plan, moments, described, permuted, (tested, reasons))

    def _result(self, contrast: Contrast, plan: ContrastPlan, moments, described, permuted, testable) -> ContrastResult:
        tested, reasons = testable
        told = self._warn(contrast, plan, tested)
        blank = np.where(tested, 0.0, np.nan)
        low, high = t_interval(moments.effect, moments.se, moments.df_effect)
        with np.errstate(divide="ignore", invalid="ignore"):
            standardised = moments.effect / moments.se + blank
        size, size_low, size_high = hedges_g(standardised, moments.df_effect, moments.unit)
        return ContrastResult(
            name=contrast.name,
            expression=contrast.expression,
            levels=contrast.levels,
            weights=contrast.weights,
            feature=self.feature_,
            effect=moments.effect,
            effect_ci_low=low + blank,
            effect_ci_high=high + blank,
            effect_size=size,
            effect_size_ci_low=size_low,
            effect_size_ci_high=size_high,
            stat=moments.stat + blank,
            df=moments.df + blank,
            p_value=permuted.p_value,
            p_fwer=permuted.p_fwer,
            **vars(described),
            valid=tested,
            effect_size_kind="hedges_g" if plan.shuffling.kind == "whole_item" else "hedges_g_z",
            n_tests=int(tested.sum()),
            n_items=plan.shuffling.n_items,
            n_items_dropped=plan.n_dropped,
            n_perm=permuted.n_perm,
            n_possible=plan.shuffling.n_possible,
            exhaustive=permuted.exhaustive,
            alternative=self.alternative,
            random_state=int(self.random_state),
            shuffling=plan.exchangeability.sentence,
            shuffling_kind=plan.shuffling.kind,
            transform=self.transform,
            min_active_items=int(self.min_active_items),
            not_tested=reasons,
            warnings=told,
            null_max=permuted.null_max,
        )

    def _warn(self, contrast: Contrast, plan: ContrastPlan, tested: np.ndarray) -> tuple[str, ...]:
        told = []
        n_items, n_possible = plan.shuffling.n_items, plan.shuffling.n_possible
        if plan.n_dropped:
            told.append(
                f"contrast '{contrast.name}': {plan.n_dropped} of {plan.n_dropped + n_items} items were left out "
                "because they miss a level."
            )
        if n_possible < FEW_SHUFFLINGS:
            told.append(
                f"contrast '{contrast.name}': only {n_possible} shufflings of {n_items} items exist, fewer than "
                f"{FEW_SHUFFLINGS}, so p values are coarse; more items are needed for p well below .05."
            )
        n_unequal = self._n_unequal(plan)
        if n_unequal > UNEQUAL_SHARE * n_items:
            told.append(
                f"contrast '{contrast.name}': in {n_unequal} of {n_items} items the levels were averaged over "
                "different numbers of trials, so the levels may also differ in wording; "
                "give every item the same templates in all levels."
            )
        if not tested.any():
            told.append(f"contrast '{contrast.name}': none of the {tested.size} features could be tested.")
        for sentence in told:
            warnings.warn(sentence, stacklevel=4)
        return tuple(told)

    def _n_unequal(self, plan: ContrastPlan) -> int:
        """Items whose levels are means of different numbers of trials (0 between items)."""
        if plan.shuffling.kind == "whole_item":
            return 0
        n_trials = self.table_.n_trials[plan.cells].reshape(plan.shuffling.n_items, -1)
        return int((np.ptp(n_trials, axis=1) > 0).sum())

    def _check_parameters(self) -> None:
        if not isinstance(self.design, CategoricalDesign):
            raise InvalidInput(f"FeatureGLM: design must be a CategoricalDesign, found {type(self.design).__name__}.")
        for name, least in (("n_perm", 1), ("random_state", 0), ("min_active_items", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise InvalidInput(f"FeatureGLM: {name} must be a whole number of at least {least}, found {value!r}.")
        for name, known in (("alternative", ALTERNATIVES), ("transform", TRANSFORMS)):
            if getattr(self, name) not in known:
                raise InvalidInput(f"FeatureGLM: {name} is {getattr(self, name)!r}; it must be one of {listed(known)}.")


def _unpack(X: Any, obs: Any, features: Any) -> tuple[Any, Any, Any]:
    """Read trials from an AnnData, or check that a table came with the array."""
    if hasattr(X, "obs") and hasattr(X, "var"):
        if obs is not None or features is not None:
            raise InvalidInput("fit: trials given as AnnData bring their own table and feature ids; pass nothing else.")
        names = X.var.get("feature", X.var_names)
        return X.X, X.obs, np.asarray(names)
    if obs is None:
        raise InvalidInput("fit: a trial table (obs) is needed with an array.")
    return X, obs, features


def _testable(norm: np.ndarray, n_active_items: np.ndarray, least: int) -> tuple[np.ndarray, dict[str, int]]:
    """Which features can be tested, and how many cannot for which reason."""
    broken = ~np.isfinite(norm)
    constant = ~broken & (norm == 0)
    rare = ~broken & ~constant & (n_active_items < least)
    counts = {"not finite": broken, "constant": constant, "too few active items": rare}
    return ~(broken | constant | rare), {reason: int(which.sum()) for reason, which in counts.items()}
