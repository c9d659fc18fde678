"""Classifiers of a decoder: two classes that weigh the same whatever their sizes, and one knob each.

`strength` is the weight of the penalty beside the mean loss (scikit-learn's C is 1 / (strength · n)), so that it means
the same in parts of any size, and copies of all trials change nothing. Support vectors, lda and naive Bayes are
scikit-learn's; the others are minimised here, because a permutation test fits tens of thousands of small models.

============  =======================================================  =======================================
name          classifier                                               strength
============  =======================================================  =======================================
logistic_l1   logistic regression with an L1 penalty                   of the penalty
logistic_l2   logistic regression with an L2 penalty                   of the penalty
svc_linear    support vectors, squared hinge                           of the penalty
ridge         least squares of ±1                                      of the penalty
lda           linear discriminants                                     share of the spherical covariance
naive_bayes   independent normal features                              variance added, per largest variance
svc_rbf       support vectors with a Gaussian kernel (not linear)      1 / C
============  =======================================================  =======================================

The linear ones with an L2 penalty depend on the features through inner products of trials alone. With more features
than trials they are fitted in as many coordinates as there are trials, the features divided by the root of their
number, and their weights are carried back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.decoding.l1_logistic import l1_logistic_path

_MOST_STEPS, _SMALL_GRADIENT = 50, 1e-8  # of Newton's method
_PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class Fitted:
    """A trained linear classifier: weights in the space of the given features."""

    coef: np.ndarray
    intercept: float

    @classmethod
    def linear(cls, coef: Any, intercept: Any) -> Fitted:
        """From weights of any shape."""
        return cls(np.ravel(coef).astype(float), float(np.ravel(intercept)[0]))

    def decide(self, Z: np.ndarray) -> np.ndarray:
        """Decisions about rows, above 0 for the class looked for."""
        return Z @ self.coef + self.intercept


@dataclass(frozen=True)
class FittedModel:
    """A trained classifier of scikit-learn that is not linear."""

    model: Any

    def decide(self, Z: np.ndarray) -> np.ndarray:
        """Decisions about rows: those of the model, or its log odds."""
        if hasattr(self.model, "decision_function"):
            return self.model.decision_function(Z)
        logs = self.model.predict_joint_log_proba(Z)
        return logs[:, 1] - logs[:, 0]


Fit = Callable[[np.ndarray, np.ndarray, Sequence[float], int], list]


@dataclass(frozen=True)
class Classifier:
    """One kind of classifier.

    Attributes
    ----------
    fit : callable
        ``fit(Z, y, strengths, random_state)`` of standardised trials and booleans: a list of `Fitted` or `FittedModel`.
    strengths : tuple of float
        What is tried, the strongest first.
    linear, rotates, probabilities : bool
        It has weights; depends on inner products alone; its decisions are log odds.
    """

    fit: Fit
    strengths: tuple[float, ...]
    linear: bool = True
    rotates: bool = True
    probabilities: bool = False

    def fit_all(self, Z: np.ndarray, y: np.ndarray, strengths: Sequence[float], random_state: int = 0) -> list:
        """One classifier for each strength, in few coordinates if features are many."""
        n, width = Z.shape
        if not (self.rotates and width > n):
            return self.fit(Z, y, strengths, random_state)
        values, vectors = np.linalg.eigh(Z @ Z.T / width)
        keep = values > 1e-10 * max(values.max(initial=0), 1e-300)
        roots = np.sqrt(values[keep])
        back = vectors[:, keep] / roots
        return [
            Fitted.linear(Z.T @ (back @ inner.coef) / width, inner.intercept)
            for inner in self.fit(vectors[:, keep] * roots, y, strengths, random_state)
        ]


def _each(fit: Callable[[np.ndarray, np.ndarray, float, int], Any]) -> Fit:
    """From a function of one strength to one of several."""

    def fit_all(Z: np.ndarray, y: np.ndarray, strengths: Sequence[float], random_state: int) -> list:
        return [fit(Z, y, strength, random_state) for strength in strengths]

    return fit_all


def _logistic_l1(Z: np.ndarray, y: np.ndarray, strengths: Sequence[float], random_state: int) -> list[Fitted]:
    return [Fitted.linear(*found) for found in zip(*l1_logistic_path(Z, y, strengths), strict=True)]


@_each
def _logistic_l2(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> Fitted:
    """Newton's method with halved steps on the mean loss + strength/2 |coef|²."""
    from scipy.special import expit

    rows = np.hstack([Z, np.ones((len(y), 1))])
    penalty = np.append(np.full(Z.shape[1], strength), 0.0)
    weights, sign = _class_weights(y) / len(y), np.where(y, 1.0, -1.0)

    def loss(beta: np.ndarray) -> float:
        return float(weights @ np.logaddexp(0, -sign * (rows @ beta)) + penalty @ beta**2 / 2)

    beta = np.zeros(rows.shape[1])
    value = loss(beta)
    for _ in range(_MOST_STEPS):
        p = expit(rows @ beta)
        gradient = rows.T @ (weights * (p - y)) + penalty * beta
        if np.abs(gradient).max() < _SMALL_GRADIENT:
            break
        curvature = (rows.T * (weights * p * (1 - p))) @ rows + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        size, before = 1.0, value
        while (value := loss(beta - size * step)) > before - 1e-4 * size * (gradient @ step) and size > 1e-6:
            size /= 2
        beta = beta - size * step
    return Fitted.linear(beta[:-1], beta[-1:])


def _class_weights(y: np.ndarray) -> np.ndarray:
    """Weights of trials with which both classes count the same, 1 on average."""
    return np.where(y, 0.5 / y.mean(), 0.5 / (~y).mean())


@_each
def _svc_linear(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> Fitted:
    from sklearn.svm import LinearSVC

    C = 1 / (strength * len(y))
    options = {"dual": len(y) < Z.shape[1], "intercept_scaling": 10.0, "random_state": random_state % 2**32}
    return _linear(LinearSVC(C=C, class_weight="balanced", **options), Z, y)


@_each
def _ridge(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> Fitted:
    weights = _class_weights(y) / len(y)
    mean = weights @ Z
    centred = Z - mean
    moments = (centred.T * weights) @ centred
    moments[np.diag_indices_from(moments)] += strength
    coef = np.linalg.solve(moments, centred.T @ (weights * np.where(y, 1.0, -1.0)))
    return Fitted.linear(coef, -mean @ coef)


@_each
def _lda(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> Fitted:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _linear(LinearDiscriminantAnalysis("lsqr", shrinkage=strength, priors=[0.5, 0.5]), Z, y)


@_each
def _naive_bayes(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> FittedModel:
    from sklearn.naive_bayes import GaussianNB

    return FittedModel(GaussianNB(priors=[0.5, 0.5], var_smoothing=strength).fit(Z, y))


@_each
def _svc_rbf(Z: np.ndarray, y: np.ndarray, strength: float, random_state: int) -> FittedModel:
    from sklearn.svm import SVC

    return FittedModel(SVC(C=1 / strength, class_weight="balanced").fit(Z, y))


def _linear(model: Any, Z: np.ndarray, y: np.ndarray) -> Fitted:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest penalties, which are then not chosen
        model.fit(Z, y)
    return Fitted.linear(model.coef_, model.intercept_)


CLASSIFIERS: dict[str, Classifier] = {
    "logistic_l1": Classifier(_logistic_l1, (0.2, 0.1, 0.05, 0.02, 0.01), rotates=False, probabilities=True),
    "logistic_l2": Classifier(_logistic_l2, _PENALTIES, probabilities=True),
    "svc_linear": Classifier(_svc_linear, _PENALTIES),
    "ridge": Classifier(_ridge, _PENALTIES),
    "lda": Classifier(_lda, (0.9, 0.5, 0.1, 0.01), probabilities=True),
    "naive_bayes": Classifier(_naive_bayes, (1.0, 0.1, 0.01), linear=False, rotates=False, probabilities=True),
    "svc_rbf": Classifier(_svc_rbf, (10.0, 1.0, 0.1), linear=False, rotates=False),
}
