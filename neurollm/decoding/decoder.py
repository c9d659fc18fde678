"""Decoding: which class is a text of, judged by a few features of it, on items that nobody has looked at.

Everything that looks at labels happens inside the training part of a fold: choosing features, scaling them, choosing
their number and the penalty (in folds of the training items, with features chosen anew in each), fitting, stacking. All
trials of an item are on one side of every split. What is reported comes from trials that were not trained on; how well
the decoder does on its own training trials is never reported.

AUROC compares trials of one fold only, since each fold has a classifier of its own: concordant pairs of all folds
over pairs of all folds. Classes weigh the same whatever their sizes. With more than two classes each is told from the
rest, and AUROC is the mean over classes.

p is that of the whole pipeline under exchanged labels (Ojala & Garriga 2010, test 1; `neurollm.decoding.permutation`),
folds included, which are balanced for the labels of each run. It is small if the labels have anything to do with the
features. `Decoder.dependence_test` (test 2) asks more: does the decoder use how features hang together inside
classes, or would the same features, each by itself, do as well?
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if

from neurollm.decoding.classifiers import CLASSIFIERS
from neurollm.decoding.direction import check_direction
from neurollm.decoding.ensembles import ENSEMBLES, Ensemble
from neurollm.decoding.panels import Part, Plan, cross_validate, fit_part
from neurollm.decoding.patterns import activation_patterns
from neurollm.decoding.permutation import DependenceTest, label_draws, null_scores, p_value, score_once, tested_rows
from neurollm.decoding.scores import (
    area_interval,
    balanced_accuracy,
    balanced_accuracy_interval,
    fold_areas,
    jaccard,
    mean_area,
    one_against_rest,
)
from neurollm.decoding.selectors import Selector, usable
from neurollm.decoding.trials import Trials, column_ids, matrix
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.arrays import dense
from neurollm.stats.folds import Folding, Split
from neurollm.validation import listed, shown

_ALPHA = 0.05  # of the verdict


def _has_probabilities(decoder: Decoder) -> bool:
    """Whether decisions are log odds; stacking makes them so."""
    names = [decoder.estimator] if isinstance(decoder.estimator, str) else decoder.estimator
    if decoder.ensemble == "stacking" or not isinstance(names, (list, tuple)):
        return decoder.ensemble == "stacking"
    return all(isinstance(name, str) and name in CLASSIFIERS and CLASSIFIERS[name].probabilities for name in names)


class Decoder(ClassifierMixin, BaseEstimator):
    """Tell classes apart by a few features, cross-validated over items.

    Parameters
    ----------
    estimator : str or sequence of str, default="logistic_l1"
        A name in `neurollm.decoding.classifiers.CLASSIFIERS`; several for stacking.
    selector : str, callable, None or sequence, default=None
        A name in `neurollm.decoding.selectors.SELECTORS` or a function of the same kind; None uses all features.
        Several for stacking: every classifier goes with every selector.
    n_features : int or sequence of int, default=8
        Features that the selector takes; of several numbers the best one is chosen inside the training part.
    cv : int, splitter or iterable of (train, test), default=5
        Folds (fewer if a class has fewer items), or any splitter of scikit-learn, which is given the items as groups
        and refused if it divides an item or tests one twice (`neurollm.stats.folds.check_folds`).
    ensemble : {"bagging", "single", "stacking"}
        Who decides about new trials: the mean of the folds' classifiers; one classifier trained on all trials; or
        several members trained on all trials, weighted by a logistic regression of decisions about training
        trials that they had not seen.
    n_perm : int, default=199
        Runs of the whole pipeline with exchanged labels; all if there are no more. 0: no p.
    item_reason : str, default=""
        Why every trial is an item of its own; needed if `fit` is given no groups.
    random_state : int, default=0
    n_jobs : int, optional
        Processes for the permutations; -1 for all cores. Results do not depend on it.
    verbose : int, default=0

    Attributes
    ----------
    classes_ : ndarray
        Sorted; of two classes high decisions mean the second.
    score_, score_ci_ : float, (float, float)
        AUROC on unseen items, with its 95 % interval over items.
    balanced_accuracy_, balanced_accuracy_ci_ : float, (float, float)
        Mean over classes of the share of a class's trials that is recognised, likewise.
    cv_scores_ : ndarray, shape (n_folds,)
        AUROC of each fold; NaN if a class is missing.
    p_value_, n_perm_, exhaustive_, null_scores_ : float, int, bool, ndarray
        ``(b + 1) / (n_perm_ + 1)``, or ``b / n_perm_`` if all arrangements were run, and their AUROCs.
    selected_features_ : ndarray, or dict of class to ndarray with more than two classes
        Ids of the features chosen on all trials, strongest first; without a selector those of non-zero weight, or all.
    fold_features_ : list of ndarray (or of dict)
        Ids chosen in each fold.
    stability_, stability_chance_ : float
        Mean Jaccard overlap of the folds' features, and its expectation for random ones; NaN without a selector. Folds
        share training items, so noise overlaps by more than chance, too.
    coef_, intercept_ : ndarray, shape (1 or n_classes, V) and (1 or n_classes,)
        Weights of what decides about new trials, in units of the features. Linear classifiers only.
    patterns_ : ndarray, or dict, like `selected_features_`
        Activation pattern of each selected feature (Haufe et al. 2014), for the decoder trained on all trials:
        its change per unit of decision. Linear classifiers only.
    predictions_ : DataFrame
        Of unseen trials: trial, item, label, fold, decision (``decision_<class>`` for each of several classes),
        predicted.
    n_items_, n_features_in_, n_not_finite_ : int
        The last counts features with a value that is not finite, which are left out.
    feature_ : ndarray, shape (V,)
    feature_names_in_ : ndarray, shape (V,)
        Columns of a DataFrame whose names are all text.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> items, labels = np.repeat(np.arange(20), 2), np.tile(["bad", "good"], 20)
    >>> X = rng.normal(size=(40, 50))
    >>> X[labels == "good", 7] += 4
    >>> decoder = Decoder("ridge", selector="welch_t", n_features=2, n_perm=9).fit(X, labels, groups=items)
    >>> int(decoder.selected_features_[0]), bool(decoder.score_ > 0.9), decoder.p_value_
    (7, True, 0.1)
    """

    def __init__(
        self,
        estimator: str | Sequence[str] = "logistic_l1",
        selector: str | Selector | Sequence | None = None,
        n_features: int | Sequence[int] = 8,
        cv: Any = 5,
        ensemble: str = "bagging",
        n_perm: int = 199,
        item_reason: str = "",
        random_state: int = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.selector = selector
        self.n_features = n_features
        self.cv = cv
        self.ensemble = ensemble
        self.n_perm = n_perm
        self.item_reason = item_reason
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, groups: Any = None, features: Any = None) -> Decoder:
        """Cross-validate, test, and train what decides about new trials.

        Parameters
        ----------
        X : ndarray, scipy.sparse, torch.Tensor, DataFrame or AnnData, shape (n_trials, V)
        y : sequence, or name of a column of an AnnData
            Class of each trial.
        groups : sequence, or name of a column of an AnnData
            Item of each trial. Without it every trial is an item, which `item_reason` must justify.
        features : sequence, optional
            Feature ids; default 0 … V−1, or those of the AnnData or DataFrame.

        Returns
        -------
        Decoder

        Raises
        ------
        InvalidInput
            A parameter is not possible, a label is missing, or a class has fewer than two items.
        DataMismatch
            The arrays do not fit together, or folds divide an item or lack a class.
        """
        trials = Trials.of(X, y, groups, features, self.item_reason)
        plan, folding = self._plan(trials), self._folding(trials)
        splits = folding.checked(trials.codes, trials.items, "Decoder", trials.classes)
        n_classes = trials.classes.size
        decisions, parts = self._run(trials, splits, plan)
        whole = [fit_part(trials.X, own, trials.items, plan) for own in one_against_rest(trials.codes, n_classes)]
        self.classes_, self.feature_ = trials.classes, trials.feature
        self.n_features_in_, self.n_not_finite_ = trials.X.shape[1], trials.n_not_finite
        self.n_items_ = int(trials.items.max()) + 1
        self._ensemble = Ensemble(parts if self.ensemble == "bagging" else [whole])
        self._describe_scores(trials, splits, decisions)
        self._describe_features(trials, parts, whole, plan)
        names = column_ids(X)
        self._columns = trials.feature if names is None and features is not None else names
        if hasattr(X, "iloc") and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = names
        self._test(trials, plan, folding)
        return self

    def _run(self, trials: Trials, splits: list[Split], plan: Plan) -> tuple[np.ndarray, list[list[Part]]]:
        from sklearn import config_context

        with config_context(assume_finite=True, skip_parameter_validation=True):
            return cross_validate(trials.X, trials.codes, trials.items, splits, trials.classes.size, plan)

    def _describe_scores(self, trials: Trials, splits: list[Split], decisions: np.ndarray) -> None:
        import pandas as pd

        rows, folds = tested_rows(splits)
        codes, items, n_classes = trials.codes[rows], trials.items[rows], trials.classes.size
        predicted = _predicted(decisions)
        args = (decisions, codes, folds, n_classes)
        self.score_ = mean_area(*args)
        self.cv_scores_ = np.array(
            [mean_area(*(values[folds == fold] for values in args[:3]), n_classes) for fold in range(len(splits))]
        )
        self.score_ci_ = area_interval(decisions, codes, items, folds, n_classes, self.random_state)
        correct = predicted == codes
        self.balanced_accuracy_ = balanced_accuracy(correct, codes, n_classes)
        self.balanced_accuracy_ci_ = balanced_accuracy_interval(correct, codes, items, n_classes, self.random_state)
        columns = {"trial": rows, "item": trials.item_names[items], "label": trials.classes[codes], "fold": folds}
        names = ["decision"] if n_classes == 2 else [f"decision_{name}" for name in trials.classes]
        columns |= dict(zip(names, decisions.T, strict=True)) | {"predicted": trials.classes[predicted]}
        self.predictions_ = pd.DataFrame(columns).sort_values(["trial", "fold"], ignore_index=True)

    def _describe_features(self, trials: Trials, parts: list[list[Part]], whole: list[Part], plan: Plan) -> None:
        linear = all(CLASSIFIERS[name].linear for name, _ in plan.members)
        n = self.n_features_in_
        self.fold_features_ = [self._by_class([self.feature_[part.features] for part in own]) for own in parts]
        self.stability_ = self.stability_chance_ = float("nan")
        if any(selector is not None for _, selector in plan.members):
            available = int(usable(trials.X).sum())
            pairs = [jaccard([own[k].features for own in parts], available) for k in range(len(whole))]
            self.stability_, self.stability_chance_ = (float(np.mean(values)) for values in zip(*pairs, strict=True))
        chosen, patterns = [], []
        for part in whole:
            columns = part.features
            if linear:
                coef, _ = part.coef(n)
                if all(selector is None for _, selector in plan.members):
                    sd = np.std(dense(trials.X[:, columns]), axis=0)
                    columns = columns[np.argsort(-np.abs(coef[columns] * sd), kind="stable")]
                    columns = columns[coef[columns] != 0]
                patterns.append(activation_patterns(dense(trials.X[:, columns]), coef[columns]))
            chosen.append(columns)
        self.selected_features_ = self._by_class([self.feature_[columns] for columns in chosen])
        for name in ("coef_", "intercept_", "patterns_", "feature_names_in_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        if linear:
            self.coef_, self.intercept_ = self._ensemble.coef(n)
            self.patterns_ = self._by_class(patterns)

    def _test(self, trials: Trials, plan: Plan, folding: Folding) -> None:
        self.null_scores_, self.p_value_, self.n_perm_, self.exhaustive_ = np.zeros(0), float("nan"), 0, False
        if not self.n_perm:
            return
        draws, self.exhaustive_ = label_draws(trials.codes, trials.items, self.n_perm, self.random_state)
        run = partial(_permuted, trials, plan, folding)
        self.null_scores_ = null_scores(run, draws, self.n_jobs, self.verbose)
        self.n_perm_ = len(draws)
        self.p_value_ = p_value(self.score_, self.null_scores_, self.exhaustive_)

    def decision_function(self, X: Any) -> np.ndarray:
        """Decisions about trials: (n,), high for the second of two classes; else (n, n_classes)."""
        X = self._new(X)
        decisions = self._ensemble.decide(X)
        return decisions[:, 0] if len(self.classes_) == 2 else decisions

    def predict(self, X: Any) -> np.ndarray:
        """Class of each trial."""
        X = self._new(X)
        return self.classes_[_predicted(self._ensemble.decide(X))]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class as if all were equally frequent, (n, n_classes), from the mean decision.

        Only with classifiers whose decisions are log odds, and with stacking.
        """
        from scipy.special import expit

        X = self._new(X)
        found = expit(self._ensemble.decide(X))
        if len(self.classes_) == 2:
            return np.hstack([1 - found, found])
        return found / found.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: Any) -> float:
        """AUROC on new trials (mean over classes); of trials that were trained on it says nothing."""
        X = self._new(X)
        decisions = self._ensemble.decide(X)
        labels = np.asarray(y)
        unknown = np.unique(labels[~np.isin(labels, self.classes_)].astype(str))
        if labels.shape != decisions.shape[:1] or unknown.size:
            raise InvalidInput(
                f"score: one label out of {listed(self.classes_)} is needed for each of {len(decisions)} rows; found "
                f"shape {labels.shape}{f' and {listed(unknown)}' if unknown.size else ''}."
            )
        problems = [labels == name for name in (self.classes_[1:] if len(self.classes_) == 2 else self.classes_)]
        areas = [fold_areas(decisions[:, k], own, np.zeros(len(own)))[0] for k, own in enumerate(problems)]
        return float(np.mean(areas))

    def check_direction(self, X: Any, labels: Any, target: Any = None, n_rows: int | None = None) -> None:
        """Make sure, on labelled trials, that the highest decisions for a class are of that class.

        Parameters
        ----------
        X, labels
            Trials that were not trained on.
        target : object, optional
            The class; default: every class.
        n_rows : int, optional
            See `neurollm.decoding.direction.check_direction`.

        Raises
        ------
        DataMismatch
            The class is no more frequent among the highest than among the lowest rows.
        """
        X = self._new(X)
        decisions = self._ensemble.decide(X)
        if len(self.classes_) == 2:
            decisions = np.hstack([-decisions, decisions])
        names = self.classes_.tolist()
        if target is not None and target not in names:
            raise InvalidInput(f"check_direction: {shown(target)} is no class; classes are {listed(names)}.")
        for name, column in zip(names, decisions.T, strict=True):
            if target is None or name == target:
                check_direction(column, labels, name, n_rows)

    def dependence_test(self, X: Any, y: Any = None, groups: Any = None, n_perm: int | None = None) -> DependenceTest:
        """Whether the pipeline uses how features depend on each other inside classes (Ojala & Garriga 2010, test 2).

        Each feature is exchanged by itself among items with the same labels. A decoder that does as well on such
        data only adds up features.

        Parameters
        ----------
        X, y, groups
            As for `fit`; a fit before is not needed.
        n_perm : int, optional
            Default: that of the decoder.

        Returns
        -------
        DependenceTest
        """
        n_perm = self.n_perm if n_perm is None else n_perm
        if isinstance(n_perm, bool) or not isinstance(n_perm, (int, np.integer)):
            raise InvalidInput(f"dependence_test: n_perm must be a whole number, found {shown(n_perm)}.")
        trials = Trials.of(X, y, groups, None, self.item_reason)
        plan = self._plan(trials)
        splits = self._folding(trials).checked(trials.codes, trials.items, "Decoder", trials.classes)
        return DependenceTest.of(trials, plan, splits, n_perm, self.n_jobs, self.verbose)

    def verdict(self) -> str:
        """What was found, in one sentence with its numbers."""
        self._check_fitted()
        low, high = self.score_ci_
        names = listed(self.classes_)
        p = ""
        if self.n_perm_:
            reached = int((~(self.null_scores_ < self.score_ - 1e-12)).sum())
            of = f"all {self.n_perm_}" if self.exhaustive_ else f"{self.n_perm_} random"
            p = (
                f"; with exchanged labels {reached} of {of} runs of the whole procedure do as well "
                f"(p = {self.p_value_:.2g})"
            )
            least = 1 / (self.n_perm_ + (not self.exhaustive_))
            if least > _ALPHA:
                p += f", and with so few runs p cannot be below {least:.2g}, so this test can show nothing"
            elif self.p_value_ > _ALPHA:
                p += ", so nothing shows that the features tell these classes apart"
        return (
            f"{names}: AUROC {self.score_:.2f} (95% interval {low:.2f} to {high:.2f}) and balanced accuracy "
            f"{self.balanced_accuracy_:.2f} on unseen trials of {self.predictions_['item'].nunique()} items in "
            f"{len(self.cv_scores_)} folds{p}."
        )

    def _by_class(self, values: list) -> Any:
        return values[0] if len(self.classes_) == 2 else dict(zip(self.classes_.tolist(), values, strict=True))

    def _folding(self, trials: Trials) -> Folding:
        return Folding.of(self.cv, trials.items_per_class(), int(self.random_state), "Decoder")

    def _plan(self, trials: Trials) -> Plan:
        """Check the parameters."""
        for name in ("n_perm", "random_state", "n_jobs"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if (name != "n_jobs" or value is not None) and (not whole or (name == "n_perm" and value < 0)):
                raise InvalidInput(f"Decoder: {name} must be a whole number, n_perm at least 0, found {shown(value)}.")
        if self.ensemble not in ENSEMBLES:
            raise InvalidInput(f"Decoder: ensemble is {shown(self.ensemble)}; it must be one of {listed(ENSEMBLES)}.")
        plan = Plan.of(self.estimator, self.selector, self.n_features, trials.X.shape[1], self.random_state)
        if (len(plan.members) > 1) != (self.ensemble == "stacking"):
            raise InvalidInput(
                f"Decoder: {len(plan.members)} combinations of estimators and selectors with ensemble "
                f"{self.ensemble!r}; 'stacking' combines several, the others have one."
            )
        return plan

    def _new(self, X: Any) -> Any:
        self._check_fitted()
        columns, X = column_ids(X), matrix(X)
        if X.shape[1] != self.n_features_in_:
            raise InvalidInput(
                f"Decoder: X has {X.shape[1]} features, but the decoder was fitted to {self.n_features_in_}."
            )
        if columns is not None and self._columns is not None:
            other = np.flatnonzero(columns.astype(str) != self._columns.astype(str))
            if other.size:
                raise DataMismatch(
                    f"Decoder: column {other[0]} of X is {listed(columns[other[:1]])}, but the decoder was fitted to "
                    f"{listed(self._columns[other[:1]])} there; give the same features in the same order."
                )
        if not np.isfinite(dense(X[:, self._ensemble.features()])).all():
            raise InvalidInput("Decoder: a feature that the decoder uses has a value that is not finite.")
        return X

    def _check_fitted(self) -> None:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's checks need to know."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        return tags


def _predicted(decisions: np.ndarray) -> np.ndarray:
    """Number of the class: the sign of the decision, or the largest of several."""
    return (decisions[:, 0] > 0).astype(int) if decisions.shape[1] == 1 else decisions.argmax(axis=1)


def _permuted(trials: Trials, plan: Plan, folding: Folding, codes: np.ndarray) -> float:
    """AUROC of the whole pipeline with these labels, and folds for them."""
    splits = folding.splits(codes, trials.items)
    return score_once(trials.X, codes, trials.items, splits, trials.classes.size, plan)
