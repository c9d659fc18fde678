"""From training trials to a classifier on a few features: select, scale, tune, fit, all inside the training part.

A *member* is a classifier with a selector. Its number of features and the strength of its penalty are those with
the best AUROC in folds of the training items; in each of these folds features are chosen and scaled
anew. A *part* is what one training part leaves: a panel (features, their means and deviations, the classifier) for
each member, and with several members a logistic regression of their out-of-fold decisions in these same inner folds
(stacking: Wolpert 1992; the trials that are later tested have no share in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.decoding.classifiers import CLASSIFIERS, Fitted, FittedModel
from neurollm.decoding.scores import fold_areas, one_against_rest
from neurollm.decoding.selectors import Selector, scorer, select, usable
from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.arrays import dense, take_rows
from neurollm.stats.folds import Split, item_folds
from neurollm.validation import closest, listed, shown

INNER_FOLDS = 3
_STACK_STRENGTH = 0.01


@dataclass(frozen=True)
class Plan:
    """What is done in every training part.

    Attributes
    ----------
    members : tuple of (str, selector or None)
        Classifiers with their selectors; None takes all features.
    sizes : tuple of int
        Numbers of features that are tried, the smallest first.
    random_state : int
    """

    members: tuple[tuple[str, str | Selector | None], ...]
    sizes: tuple[int, ...]
    random_state: int

    @classmethod
    def of(cls, estimator: Any, selector: Any, n_features: Any, n_available: int, random_state: int) -> Plan:
        """Every classifier with every selector, from what `Decoder` was given.

        Raises
        ------
        InvalidInput
            A name is unknown, or a number of features is not from 1 to `n_available`.
        """
        names = [estimator] if isinstance(estimator, str) else estimator
        if not isinstance(names, (list, tuple)) or not names:
            raise InvalidInput(f"Decoder: estimator must be a name out of {listed(CLASSIFIERS)}, found {shown(names)}.")
        for name in names:
            if not isinstance(name, str) or name not in CLASSIFIERS:
                hint = closest(name, CLASSIFIERS) or ";"
                raise InvalidInput(
                    f"Decoder: there is no estimator {shown(name)}{hint} known are {listed(CLASSIFIERS)}."
                )
        several = isinstance(selector, (list, tuple))
        if several and not selector:
            raise InvalidInput("Decoder: the list of selectors is empty; None uses all features.")
        selectors = list(selector) if several else [selector]
        for one in selectors:
            if one is not None:
                scorer(one)
        try:
            sizes = np.unique(n_features)
        except (TypeError, ValueError):
            sizes = np.zeros(0)
        if (
            sizes.size == 0
            or sizes.dtype.kind not in "iu"
            or not 1 <= sizes[0] <= sizes[-1]
            or (sizes[-1] > n_available and any(one is not None for one in selectors))
        ):
            raise InvalidInput(
                f"Decoder: n_features must be whole numbers from 1 to {n_available} (the features there are), "
                f"found {shown(n_features)}."
            )
        return cls(tuple(product(names, selectors)), tuple(sizes.tolist()), int(random_state))

    def of_fold(self, fold: int) -> Plan:
        """With a seed of its own, so that chance (random features, ties) is not the same in every fold."""
        return replace(self, random_state=int(stream(self.random_state, "fold_seed", fold).integers(2**31)))


@dataclass(frozen=True)
class Panel:
    """A few features, how they are scaled, and a classifier of them."""

    features: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    fitted: Fitted | FittedModel | None

    def decide(self, X: Any) -> np.ndarray:
        """Decisions for the rows of X, above 0 for the class looked for; 0 where no feature could be used."""
        if self.fitted is None:
            return np.zeros(X.shape[0])
        return self.fitted.decide((dense(X[:, self.features]) - self.mean) / self.sd)

    def weights(self) -> tuple[np.ndarray, float]:
        """Weights in units of the features, and the intercept."""
        if self.fitted is None:
            return np.zeros(self.features.size), 0.0
        coef = self.fitted.coef / self.sd
        return coef, self.fitted.intercept - float(coef @ self.mean)


@dataclass(frozen=True)
class Part:
    """The panels of one training part and how much each counts: its decision is ``Σ weight · decision + intercept``."""

    panels: tuple[Panel, ...]
    weights: np.ndarray
    intercept: float

    def decide(self, X: Any) -> np.ndarray:
        """Decisions for the rows of X, shape (n,)."""
        return np.stack([panel.decide(X) for panel in self.panels], axis=1) @ self.weights + self.intercept

    @property
    def features(self) -> np.ndarray:
        """Columns used, those of the first member first, without repeats."""
        together = np.concatenate([panel.features for panel in self.panels])
        _, first = np.unique(together, return_index=True)
        return together[np.sort(first)]

    def coef(self, n_features: int) -> tuple[np.ndarray, float]:
        """Weights of all features in their own units, shape (n_features,), and the intercept."""
        coef, intercept = np.zeros(n_features), self.intercept
        for panel, weight in zip(self.panels, self.weights, strict=True):
            own, constant = panel.weights()
            coef[panel.features] += weight * own
            intercept += weight * constant
        return coef, float(intercept)


def fit_part(X: Any, y: np.ndarray, items: np.ndarray, plan: Plan) -> Part:
    """Select, tune and fit every member on training trials.

    Parameters
    ----------
    X : ndarray or CSC, shape (n, V)
        Training trials.
    y : ndarray of bool, shape (n,)
    items : ndarray of int, shape (n,)
    plan : Plan

    Returns
    -------
    Part
    """
    if y.all() or not y.any():  # a permutation may leave a class out of a user's own folds
        nothing = Panel(np.zeros(0, int), np.zeros(0), np.ones(0), None)
        return Part((nothing,) * len(plan.members), np.ones(len(plan.members)), 0.0)
    per_class = min(np.unique(items[y]).size, np.unique(items[~y]).size)
    inner = item_folds(y, items, min(INNER_FOLDS, per_class), plan.random_state) if per_class > 1 else None
    panels, decisions = [], []
    for name, selector in plan.members:
        panel, own = _tuned(X, y, inner, (name, selector), plan)
        panels.append(panel)
        decisions.append(own)
    if len(panels) == 1:
        return Part(tuple(panels), np.ones(1), 0.0)
    return Part(tuple(panels), *_stacked(decisions, y))


def cross_validate(
    X: Any, codes: np.ndarray, items: np.ndarray, splits: Sequence[Split], n_classes: int, plan: Plan
) -> tuple[np.ndarray, list[list[Part]]]:
    """Decisions about the test trials of every fold, and what made them.

    Returns
    -------
    decisions : ndarray, shape (rows of all test parts, n_problems)
    parts : list of list of Part
        ``parts[fold][problem]``.

    Raises
    ------
    InvalidInput
        A decision is not finite.
    """
    decisions, parts = [], []
    for fold, (train, test) in enumerate(splits):
        seen, unseen, own_plan = _rows(X, train), _rows(X, test), plan.of_fold(fold)
        own = [fit_part(seen, y[train], items[train], own_plan) for y in one_against_rest(codes, n_classes)]
        parts.append(own)
        decisions.append(np.stack([part.decide(unseen) for part in own], axis=1))
        if not np.isfinite(decisions[-1]).all():
            raise InvalidInput(
                f"Decoder: decisions about the trials of fold {fold + 1} are not finite; numbers in its test part are "
                "out of all proportion to those in its training part."
            )
    return np.concatenate(decisions), parts


def _rows(X: Any, rows: np.ndarray) -> Any:
    return take_rows(X, rows) if sparse.issparse(X) else X[rows]


def _tuned(
    X: Any, y: np.ndarray, inner: np.ndarray | None, member: tuple[str, Any], plan: Plan
) -> tuple[Panel, np.ndarray | None]:
    """The panel with the best number of features and strength, and its decisions in the inner folds."""
    name, selector = member
    strengths = CLASSIFIERS[name].strengths
    sizes = plan.sizes if selector is not None else plan.sizes[:1]
    best, own = (sizes[-1], strengths[len(strengths) // 2]), None
    several = len(plan.members) > 1 or len(sizes) * len(strengths) > 1
    if inner is not None and several:
        tried = [(size, strength) for size in sizes for strength in strengths]
        decisions = np.zeros((len(tried), y.size))
        for fold in np.unique(inner):
            train, test = np.flatnonzero(inner != fold), np.flatnonzero(inner == fold)
            if y[train].any() and not y[train].all():
                seen, unseen = _rows(X, train), _rows(X, test)
                panels = _panels(seen, y[train], member, sizes, strengths, plan.random_state)
                decisions[:, test] = [panel.decide(unseen) for panel in panels]
        areas = [fold_areas(row, y, inner)[0] for row in decisions]
        # Of equally good ones the first: the fewest features, the strongest penalty.
        place = int(np.argmax(np.round(np.nan_to_num(areas, nan=0.5), 9)))
        best, own = tried[place], decisions[place]
    return _panels(X, y, member, best[:1], best[1:], plan.random_state)[0], own


def _panels(
    X: Any, y: np.ndarray, member: tuple[str, Any], sizes: Sequence[int], strengths: Sequence[float], random_state: int
) -> list[Panel]:
    """A panel for each size and strength; all from one ranking of the features."""
    name, selector = member
    if selector is None:
        ranking = np.flatnonzero(usable(X))
        sizes = [ranking.size]
    else:
        ranking = select(selector, X, y, max(sizes), random_state)
    values = dense(X[:, ranking])
    mean, sd = values.mean(axis=0), values.std(axis=0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        values -= mean
        values /= sd
    if not (np.isfinite(sd).all() and np.isfinite(values).all()):
        raise InvalidInput("Decoder: numbers in X are too large or too small to be squared; scale the features first.")
    found = []
    for size in sizes:
        own = slice(0, min(size, ranking.size))
        fits = (
            CLASSIFIERS[name].fit_all(values[:, own], y, strengths, random_state)
            if ranking.size
            else [None] * len(strengths)
        )
        found += [Panel(ranking[own], mean[own], sd[own], fitted) for fitted in fits]
    return found


def _stacked(decisions: list[np.ndarray | None], y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of the members and an intercept, from their decisions about training trials that they had not seen."""
    if any(own is None for own in decisions):  # too few items for inner folds: all count the same
        return np.full(len(decisions), 1 / len(decisions)), 0.0
    table = np.stack(decisions, axis=1)
    sd = table.std(axis=0)
    sd[sd == 0] = 1.0
    fitted = CLASSIFIERS["logistic_l2"].fit(table / sd, y, [_STACK_STRENGTH], 0)[0]
    return fitted.coef / sd, fitted.intercept
