"""The estimator of mass-univariate contrasts: fit averages trials, a contrast tests all features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from neurollm.designs import CategoricalDesign, Contrast, ContrastPlan, Design
from neurollm.designs.table import ItemTable, trials_digest
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm.result import ContrastResult, Exchange
from neurollm.glm.sizes import effect_sizes
from neurollm.glm.tails import closed_form_p, robust_p, smallest_attainable_p
from neurollm.progress import Progress
from neurollm.stats import adjust, conditions, gpd_tail, permutation_test
from neurollm.stats.arrays import column_norms, combine_rows, is_torch, join_columns, take_rows
from neurollm.stats.conditions import Conditions
from neurollm.stats.linear import LinearFit, linear_fit
from neurollm.stats.ranks import rank_rows
from neurollm.stats.threads import in_parts
from neurollm.stats.transforms import TRANSFORMS
from neurollm.stats.welch import welch_contrast, welch_test
from neurollm.validation import listed, several

if TYPE_CHECKING:
    import pandas as pd

ALTERNATIVES = ("two-sided", "greater", "less")
STATS = ("t", "welch", "hc3")
FDRS = ("bh", "by", "bky")
FEW_SHUFFLINGS = 400  # 20 / .05
MOST_CONDITIONS = 40  # described one by one
UNEQUAL_SHARE = 0.1  # of the items may have unlike wordings before a warning


class FeatureGLM(BaseEstimator):
    """Test contrasts in every feature, correcting for the number of features.

    Parameters
    ----------
    design : Design, optional
        Default: a categorical design of the labels given to `fit`, in which every trial is an item of its own.
    n_perm : int, default=10_000
        Shufflings; if no more exist, all are used. 0: closed-form p and q only.
    alternative : {"two-sided", "greater", "less"}
        F contrasts have no direction and are always tested two-sided.
    random_state : int, default=0
    min_active_items : int, default=0
        Features active in fewer items of the contrast are not tested. The count does not look at
        labels, so the tests stay valid.
    testable_at : float, optional
        Leave out features whose p could not fall to this level under any labels (Tarone 1990): label-blind too, and
        exact where `min_active_items` is a rule of thumb. For differences of two conditions.
    scale : {"raw", "log1p", "binary", "rank"}
        Transform of the activations (a pipeline's ``transform``; scikit-learn reserves that name for a method).
        "log1p" and "binary" are applied to every trial before averaging, "rank" to the item means
        (`neurollm.stats.ranks`). Declare it before looking.
    stat : {"t", "welch", "hc3"}
        Standard error: pooled, or separate for every group of items. The last two apply where groups of items are
        compared without covariates; comparisons within items are one score per item and stay t.
    fdr : {"bh", "by", "bky"}
        False discovery rate of `q`: Benjamini–Hochberg, Benjamini–Yekutieli (any dependence), or the adaptive
        two-stage method of Benjamini, Krieger & Yekutieli.
    tail : {"permutation", "gpd"}
        "gpd" fits a generalised Pareto distribution to the largest statistics, for family-wise p below 1/n_perm.
    n_jobs : int, optional
        Threads over features (of dense data: in contrasts only); -1 for all cores. Results do not depend on it.
    verbose : int, default=0

    Attributes
    ----------
    table_ : ItemTable
        Item × cell means.
    design_ : Design
    parameters_ : tuple of str
        Names that a contrast may use.
    design_matrix_ : DataFrame
    feature_ : ndarray
        Feature ids.
    n_features_in_ : int
    trials_ : str
        Digest of the items and texts that were fitted.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
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
        design: Design | None = None,
        n_perm: int = 10_000,
        alternative: str = "two-sided",
        random_state: int = 0,
        min_active_items: int = 0,
        testable_at: float | None = None,
        scale: str = "raw",
        stat: str = "t",
        fdr: str = "bh",
        tail: str = "permutation",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.design = design
        self.n_perm = n_perm
        self.alternative = alternative
        self.random_state = random_state
        self.min_active_items = min_active_items
        self.testable_at = testable_at
        self.scale = scale
        self.stat = stat
        self.fdr = fdr
        self.tail = tail
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, features: Any = None) -> FeatureGLM:
        """Average the trials to item × cell means.

        Parameters
        ----------
        X : array or AnnData, shape (n_trials, V)
            numpy, memory map, scipy.sparse, torch, or trials as AnnData (then the rest is read from it).
        y : DataFrame or sequence of labels
            Trial table, one row per row of X; without a design, the label of every trial.
        features : sequence, optional
            Feature ids; default 0 … V−1.

        Returns
        -------
        self
        """
        self._check_parameters()
        X, obs, features = _unpack(X, y, features)
        self.design_, obs = self._design(X, obs)
        self.feature_ = np.arange(X.shape[1]) if features is None else np.asarray(features)
        if len(self.feature_) != X.shape[1]:
            raise DataMismatch(f"fit: {len(self.feature_)} feature ids were given for {X.shape[1]} columns.")
        self.table_ = self.design_.table(obs, X, self.scale, self.n_jobs or 1)
        self.parameters_ = self.design_.parameters(self.table_.obs)
        self.design_matrix_ = self.design_.design_matrix(obs)
        self.n_features_in_ = X.shape[1]
        self.trials_ = trials_digest(obs, self.design_.item)
        return self

    def compute_contrast(self, contrast: Any, name: str | None = None, output_type: str | None = None) -> Any:
        """Test a contrast in all features.

        Parameters
        ----------
        contrast : str, mapping, sequence, matrix or Contrast
            The name of an effect of the design, or see `neurollm.designs.Contrast.parse`.
        name : str, optional
            Default: the expression.
        output_type : str, optional
            As in nilearn: one array, or with "all" a dict of them (see `ContrastResult.output`).

        Returns
        -------
        ContrastResult
            Or, with `output_type`, ndarray or dict.

        Raises
        ------
        InvalidInput
            The contrast cannot be read, estimated, or tested by an exchange.
        """
        self._check_fitted()
        test, described, reasons = self._prepared(contrast, name)
        result = self._result(test, described, reasons)
        return result if output_type is None else result.output(output_type)

    def _prepared(self, contrast: Any, name: str | None) -> tuple[_Test, Any, dict[str, int]]:
        """What a contrast is tested on, its conditions in numbers, and why features are left out."""
        contrast = self.design_.contrast(contrast, self.table_.obs, name)
        plan = self.design_.plan(self.table_, contrast)

        def part(columns: slice) -> tuple[Any, LinearFit, Conditions, np.ndarray | None]:
            table = self.table_.take(columns)
            data, size = _rows(table, plan, self.scale)
            beyond_reach = None
            if self.testable_at is not None:
                beyond_reach = smallest_attainable_p(data, plan.hypothesis, self.alternative) > self.testable_at
            return data, linear_fit(data, plan.hypothesis, size), _described(table, plan), beyond_reach

        if is_torch(self.table_.values):
            parts = [part(slice(None))]
        else:
            parts = in_parts(part, self.n_features_in_, self.n_jobs or 1)
        data, fits, described, beyond_reach = zip(*parts, strict=True)
        fit, described = LinearFit.join(fits), Conditions.join(described)
        rare = described.n_active_items < self.min_active_items
        tested, reasons = _testable(fit.norm, rare, None if self.testable_at is None else np.concatenate(beyond_reach))
        return _Test(contrast, plan, join_columns(data), fit, tested), described, reasons

    def compute_contrasts(self, contrasts: dict[str, Any] | None = None) -> dict[str, ContrastResult]:
        """Test several contrasts, by name (default: the effects that the design asks by itself)."""
        self._check_fitted()
        if contrasts is None:
            contrasts = self.design_.effects(self.table_.obs)
        return {name: self.compute_contrast(spec, name) for name, spec in contrasts.items()}

    def compute_tfce(self, contrast: Any, graph: Any, n_perm: int = 1000) -> pd.DataFrame:
        """Test a contrast with threshold-free cluster enhancement: support from features that are neighbours.

        The graph must be made without the labels, e.g. from decoder directions
        (`neurollm.stats.nearest_neighbour_graph`). A significant feature has an effect somewhere in the clusters it
        belongs to, not necessarily an own one.

        Parameters
        ----------
        contrast : as for `compute_contrast`
        graph : scipy.sparse array, shape (V, V)
            Neighbours of features.
        n_perm : int, default=1000
            Shufflings; every one enhances a map of all features.

        Returns
        -------
        DataFrame
            ``feature, stat, tfce, p_fwer``, in the order of the data. `tfce` carries the sign of the statistic for the
            alternatives with a direction, and is a size for "two-sided".
        """
        import pandas as pd

        from neurollm.glm.clusters import enhanced_test

        self._check_fitted()
        test, _, _ = self._prepared(contrast, None)
        alternative = "two-sided" if test.contrast.rank > 1 else self.alternative
        norms = np.where(test.tested, test.fit.norm, np.nan)
        total = min(n_perm, test.plan.hypothesis.shuffling.n_possible)
        with Progress("enhanced maps", total, "maps", self.verbose) as progress:
            enhanced, p = enhanced_test(
                test.data,
                test.plan.hypothesis,
                norms,
                graph,
                alternative=alternative,
                n_perm=n_perm,
                random_state=int(self.random_state),
                on_maps=progress.advance,
            )
        stat = np.where(test.tested, test.fit.stat, np.nan)
        return pd.DataFrame({"feature": self.feature_, "stat": stat, "tfce": enhanced, "p_fwer": p})

    def effect_sizes(self, contrast: Any, features: Any = None) -> pd.DataFrame:
        """Every effect size of a contrast with its 95 % interval.

        Parameters
        ----------
        contrast : as for `compute_contrast`
        features : sequence of feature ids, optional
            Default: all.

        Returns
        -------
        DataFrame
            One row per feature; columns ``g, g_av, auc, rate, r, eta2`` with ``_low`` and ``_high``, and ``omega2``, as
            far as the contrast has them (see `neurollm.glm.details.size_columns`).
        """
        import pandas as pd

        from neurollm.glm.details import size_columns

        self._check_fitted()
        contrast = self.design_.contrast(contrast, self.table_.obs)
        table, ids = self.table_, self.feature_
        if features is not None:
            where = {feature: position for position, feature in enumerate(ids.tolist())}
            wanted = np.asarray(features).tolist()
            unknown = [feature for feature in wanted if feature not in where]
            if unknown:
                raise InvalidInput(f"effect_sizes: {listed(unknown)} is no feature.")
            columns = [where[feature] for feature in wanted]
            table = table.take(columns)
            ids = ids[columns]
        return pd.DataFrame({"feature": ids, **size_columns(table, self.design_.plan(table, contrast), contrast)})

    def _result(self, test: _Test, described: Any, reasons: dict[str, int]) -> ContrastResult:
        contrast, plan, tested = test.contrast, test.plan, test.tested
        alternative = "two-sided" if contrast.rank > 1 else self.alternative
        blank = np.where(tested, 0.0, np.nan)
        p, method = closed_form_p(test.data, plan.hypothesis, test.fit, alternative, self.n_jobs or 1)
        stat_kind, stat, df, se = self._statistic(test)
        if stat_kind in STATS[1:]:
            p, method = robust_p(p, stat, df, alternative)
        permuted = self._permuted(test, alternative, stat_kind)
        sizes = effect_sizes(test.data, plan, test.fit, df, se)
        exchange = plan.exchangeability
        n_perm = permuted.n_perm if self.n_perm else 0
        p = p + blank
        corrected, tail = self._family_wise(stat + blank, permuted, alternative)
        told = self._warn(contrast, plan, tested)
        return ContrastResult(
            contrast=contrast,
            feature=self.feature_,
            **{name: values + blank for name, values in sizes.arrays.items()},
            stat=stat + blank,
            df=df + blank,
            p=p,
            q=adjust(p, self.fdr),
            **corrected,
            conditions=_conditions(self.table_, plan)[0],
            **vars(described),
            valid=tested,
            stat_kind=stat_kind,
            effect_size_kind=sizes.kind,
            df_permuted=int(test.fit.df),
            unit=sizes.unit,
            p_method=method,
            fdr=self.fdr,
            tail=tail,
            n_tests=int(tested.sum()),
            n_items=exchange.n_units,
            n_items_dropped=plan.n_dropped,
            exchange=Exchange(
                **vars(exchange),
                n_perm=n_perm,
                exhaustive=bool(n_perm and permuted.exhaustive),
                random_state=int(self.random_state),
            ),
            alternative=alternative,
            transform=self.scale,
            trials=self.trials_,
            min_active_items=int(self.min_active_items),
            not_tested=reasons,
            warnings=told,
            null_max=permuted.null_max,
        )

    def _statistic(self, test: _Test) -> tuple[str, np.ndarray, Any, np.ndarray | None]:
        """Kind, values, degrees of freedom and (unless pooled) standard error of the reported statistic."""
        plan, fit = test.plan, test.fit
        if self.stat == "t" or plan.hypothesis.shuffling.kind == "sign_flip":
            return "F" if test.contrast.rank > 1 else "t", fit.stat, fit.df, None
        if plan.group_codes is None:
            raise InvalidInput(
                f"contrast '{test.contrast.name}': stat '{self.stat}' compares groups of "
                f"{several(plan.exchangeability.unit)} by one difference, without covariates or blocks; "
                "use stat 't' here."
            )
        robust = welch_contrast(test.data, plan.group_codes, plan.group_weights, self.stat)
        return self.stat, robust.stat, robust.df, robust.se

    def _permuted(self, test: _Test, alternative: str, kind: str) -> Any:
        """The permutation test, or blanks for ``n_perm=0``."""
        norms = np.where(test.tested, test.fit.norm, np.nan)
        if not self.n_perm:
            return _Nothing.like(norms)
        plan, shuffling = test.plan, test.plan.hypothesis.shuffling
        options = {"n_perm": int(self.n_perm), "alternative": alternative, "random_state": int(self.random_state)}
        if self.n_jobs is not None:
            options["n_jobs"] = self.n_jobs
        total = int(test.tested.sum()) * min(self.n_perm, shuffling.n_possible)
        with Progress("permutations", total, "statistics", self.verbose) as progress:
            options["on_block"] = progress.advance
            if kind in STATS[1:]:
                groups = (plan.group_codes, plan.group_weights, norms, shuffling)
                return welch_test(test.data, *groups, kind=kind, **options)
            return permutation_test(test.data, plan.hypothesis, norms, **options)

    def _family_wise(self, stat: np.ndarray, permuted: Any, alternative: str) -> tuple[dict[str, np.ndarray], str]:
        """Corrected p, by the fitted tail where that was asked for, and which of the two it was."""
        found, tail = {"p_fwer": permuted.p_fwer, "p_step_down": permuted.p_step_down}, "permutation"
        # A statistic without residual variation is infinite, and no tail can be fitted to infinite maxima.
        null = permuted.null_max
        if self.tail == "gpd" and null.size and not permuted.exhaustive and np.isfinite(null).all():
            size = {"two-sided": np.abs(stat), "greater": stat, "less": -stat}[alternative]
            p, used = gpd_tail(null, np.where(np.isfinite(size), size, np.nan), return_used=True)
            if used.any():
                fitted = np.where(used, p, permuted.p_fwer)
                found, tail = {"p_fwer": fitted, "p_step_down": np.minimum(fitted, permuted.p_step_down)}, "gpd"
        return found, tail

    def _warn(self, contrast: Contrast, plan: ContrastPlan, tested: np.ndarray) -> tuple[str, ...]:
        told = []
        n_items, n_possible = plan.exchangeability.n_units, plan.exchangeability.n_possible
        unit = plan.exchangeability.unit
        if plan.n_dropped:
            told.append(
                f"contrast '{contrast.name}': {plan.n_dropped} of {plan.n_dropped + n_items} {several(unit)} were left "
                "out because they miss a level."
            )
        if n_possible < FEW_SHUFFLINGS:
            told.append(
                f"contrast '{contrast.name}': only {n_possible} shufflings of {n_items} {several(unit)} exist, fewer "
                f"than {FEW_SHUFFLINGS}, so p values are coarse; more {several(unit)} are needed for p well below .05."
            )
        n_unequal = self._n_unequal(plan)
        if n_unequal > UNEQUAL_SHARE * n_items:
            told.append(
                f"contrast '{contrast.name}': in {n_unequal} of {n_items} {several(unit)} the conditions were averaged "
                "over different trials, so they may also differ in wording; "
                f"give every {unit} the same templates in all conditions."
            )
        if not tested.any():
            told.append(f"contrast '{contrast.name}': none of the {tested.size} features could be tested.")
        for sentence in told:
            warnings.warn(sentence, stacklevel=4)
        return tuple(told)

    def _n_unequal(self, plan: ContrastPlan) -> int:
        """Items whose conditions are means of unlike trials: in number, or in their templates where these are known."""
        items = self.table_.item_codes[plan.used]
        unlike = np.zeros(items.max() + 1, bool)
        for values in (self.table_.n_trials[plan.used], self.table_.wordings[plan.used]):
            most, least = np.zeros(unlike.size), np.full(unlike.size, np.inf)
            np.maximum.at(most, items, values)
            np.minimum.at(least, items, values)
            unlike |= most > least
        return int(unlike.sum())

    def _design(self, X: Any, obs: Any) -> tuple[Design, Any]:
        import pandas as pd

        if self.design is not None:
            if not isinstance(obs, pd.DataFrame):
                raise InvalidInput(
                    f"fit: with a design, y must be a table with one row per trial, found {type(obs).__name__}."
                )
            return self.design, obs
        if isinstance(obs, pd.DataFrame):
            raise InvalidInput("fit: a trial table was given but no design; FeatureGLM(design) says what is compared.")
        labels = np.asarray(obs)
        if labels.ndim == 2 and labels.shape[1] == 1:
            warnings.warn("A column-vector y was passed when a 1d array was expected.", stacklevel=3)
            labels = labels.ravel()
        if labels.ndim != 1 or len(labels) != X.shape[0]:
            raise InvalidInput(
                f"fit: expected one label for each of the {X.shape[0]} rows, found shape {labels.shape}."
            )
        reason = "labels were given without items"
        return CategoricalDesign("label", item=None, item_reason=reason), pd.DataFrame({"label": labels})

    def _check_fitted(self) -> None:
        if not hasattr(self, "table_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("compute_contrast: this FeatureGLM is not fitted yet; call fit first.")

    def _check_parameters(self) -> None:
        if self.design is not None and not isinstance(self.design, Design):
            raise InvalidInput(
                "FeatureGLM: design must be a design such as CategoricalDesign('outcome'), found "
                f"{type(self.design).__name__}."
            )
        for name in ("n_perm", "random_state", "min_active_items"):
            value = getattr(self, name)
            if not _is_whole(value) or value < 0:
                raise InvalidInput(f"FeatureGLM: {name} must be a whole number of at least 0, found {value!r}.")
        if self.n_jobs is not None and not (_is_whole(self.n_jobs) and (self.n_jobs == -1 or self.n_jobs > 0)):
            raise InvalidInput(
                f"FeatureGLM: n_jobs must be a positive number of threads, or -1 for all cores, found {self.n_jobs!r}."
            )
        choices = {
            "alternative": ALTERNATIVES,
            "scale": TRANSFORMS,
            "stat": STATS,
            "fdr": FDRS,
            "tail": ("permutation", "gpd"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidInput(f"FeatureGLM: {name} is {getattr(self, name)!r}; it must be one of {listed(known)}.")
        if self.testable_at is not None and not 0 < self.testable_at < 1:
            raise InvalidInput(f"FeatureGLM: testable_at must lie between 0 and 1, found {self.testable_at!r}.")
        if self.stat != "t" and self.scale == "rank":
            raise InvalidInput(f"FeatureGLM: scale 'rank' goes with stat 't', found {self.stat!r}.")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's checks need to know."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags


@dataclass(frozen=True)
class _Test:
    """One contrast on its way: what is asked, how it is tested, the rows, their fit, and which features take part."""

    contrast: Contrast
    plan: ContrastPlan
    data: Any
    fit: LinearFit
    tested: np.ndarray


@dataclass(frozen=True)
class _Nothing:
    """In place of a permutation test that was not asked for."""

    p_fwer: np.ndarray
    p_step_down: np.ndarray
    null_max: np.ndarray
    n_perm: int = 0
    exhaustive: bool = False

    @classmethod
    def like(cls, values: np.ndarray) -> _Nothing:
        blank = np.full(len(values), np.nan)
        return cls(blank, blank, np.empty(0))


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _rows(table: ItemTable, plan: ContrastPlan, scale: str) -> tuple[Any, np.ndarray | None]:
    """The rows that are tested, and the norm of what they are made of, against which rounding is judged."""
    data = size = combine_rows(plan.reduce, table.values)
    if table.sizes is not table.values or (plan.reduce.data < 0).any():
        size = combine_rows(abs(plan.reduce), table.sizes)
    if scale != "rank":
        return data, column_norms(size)
    shuffling = plan.hypothesis.shuffling
    return rank_rows(data, shuffling.kind, shuffling.rows_per_item, size), None


def _conditions(table: Any, plan: ContrastPlan) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the conditions that the contrast uses, and each row's; one for all where a formula makes many."""
    codes, rows = np.unique(table.cell_codes[plan.used], return_inverse=True)
    if len(codes) > MOST_CONDITIONS:
        return ("all",), np.zeros(len(rows), int)
    return tuple(table.cells[code] for code in codes), rows


def _described(table: ItemTable, plan: ContrastPlan) -> Conditions:
    """Means, rates and magnitudes of the conditions that the contrast uses."""
    values, shares = take_rows(table.values, plan.used), take_rows(table.shares, plan.used)
    return conditions(values, shares, _conditions(table, plan)[1], table.item_codes[plan.used])


def _unpack(X: Any, obs: Any, features: Any) -> tuple[Any, Any, Any]:
    """Read trials from an AnnData, or check the array and that labels or a table came with it."""
    if hasattr(X, "obs") and hasattr(X, "var"):
        if obs is not None or features is not None:
            raise InvalidInput("fit: trials given as AnnData bring their own table and feature ids; pass nothing else.")
        names = X.var.get("feature", X.var_names)
        return X.X, X.obs, np.asarray(names)
    if not is_torch(X):
        from sklearn.utils import check_array

        X = check_array(X, accept_sparse=("csr", "csc"), ensure_all_finite=False, dtype=None, ensure_min_samples=2)
        if X.dtype.kind not in "fiub":
            X = X.astype(float)
    elif X.ndim != 2:
        raise InvalidInput("fit: the activations must be a two-dimensional array, trials × features.")
    if obs is None:
        raise InvalidInput("fit: requires y to be passed, but the target y is None: give a trial table or labels.")
    return X, obs, features


def _testable(norm: np.ndarray, rare: np.ndarray, beyond_reach: np.ndarray | None) -> tuple[np.ndarray, dict[str, int]]:
    """Which features can be tested, and how many cannot for which reason (the first that applies)."""
    reasons = {"not finite": ~np.isfinite(norm), "constant": norm == 0, "too few active items": rare}
    if beyond_reach is not None:
        reasons["cannot be significant"] = beyond_reach
    tested, counts = np.ones(len(norm), bool), {}
    for reason, which in reasons.items():
        counts[reason] = int((tested & which).sum())
        tested &= ~which
    return tested, counts
