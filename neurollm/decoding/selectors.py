"""Rules by which a few features are chosen for a decoder: a score for every feature, the largest are taken.

A selector is a function ``score(X, y, random_state)`` of the *training* trials X (n × V, ndarray or
scipy.sparse), of y (n booleans, True = the class looked for) and of a seed. It returns V numbers,
larger = chosen earlier, NaN = never: a feature that is constant (up to the rounding of float32) or
not finite among these trials cannot tell them apart.

==================  ===============================================================================
rsa_categorical     r with the RDM "0 same class, 1 different"
rsa_discriminative  r with the RDM "0 within the class, 1 between it and the others" (others left out)
rsa_coherence       \\|r\\| with the RDM "0 within the class, 1 within the others" (pairs between left out)
mean_difference     \\|difference of class means\\| in units of the activation
welch_t             \\|t\\| of Welch
auroc               \\|AUROC - .5\\|
l1_path             features that enter the lasso path of the ±1 labels earlier
mutual_information  nearest-neighbour estimate (Ross 2014)
maximum_activation  the larger of the two class means (a baseline that compares nothing)
random              a random order
==================  ===============================================================================

Coherence is two-sided because its sign tells *which* class is more alike, not which class the feature is
about: a sparse feature that detects the class is silent among the others, who are then all alike, and has
r < 0; taking the largest r would leave out just the detectors. The first two are one-sided: a feature whose
distances are smaller between classes than within separates nothing.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.stats.arrays import canonical_columns, column_blocks, column_squares, dense
from neurollm.stats.linear import NOISE
from neurollm.stats.mutual_information import mutual_information
from neurollm.stats.ranks import rank_rows
from neurollm.validation import closest, listed, shown

Selector = Callable[[Any, np.ndarray, int], np.ndarray]

_DIGITS = 10  # scores that agree in so many digits of the largest are tied


def select(selector: str | Selector, X: Any, y: np.ndarray, n_features: int, random_state: int = 0) -> np.ndarray:
    """The features with the largest scores, strongest first; equal scores come in a random order.

    Parameters
    ----------
    selector : str or callable
        A name in `SELECTORS`, or a function of the same kind, which is given a copy of X.
    X : ndarray or scipy.sparse, shape (n, V)
        Training trials.
    y : ndarray of bool, shape (n,)
        True for the class looked for.
    n_features : int
    random_state : int, default=0

    Returns
    -------
    ndarray of int
        Columns of X; fewer than `n_features` where fewer have a score.

    Raises
    ------
    InvalidInput
        The name is unknown, a class is absent, or the scores do not fit the features.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(40, 6))
    >>> y = np.arange(40) < 20
    >>> X[y, 4] += 3
    >>> int(select("welch_t", X, y, 2)[0])
    4
    """
    y = np.asarray(y, bool)
    if y.shape != (X.shape[0],) or y.all() or not y.any():
        raise InvalidInput(
            f"select: features are chosen by comparing two classes; found {int(y.sum())} trials of the class and "
            f"{int((~y).sum())} others for {X.shape[0]} rows."
        )
    rule = scorer(selector)
    scores = rule(X.copy(), y.copy(), random_state) if callable(selector) else rule(X, y, random_state)
    try:
        scores = np.array(scores, dtype=float)
    except (TypeError, ValueError):
        raise InvalidInput(
            f"select: the selector gave {shown(scores)}; a number for each of {X.shape[1]} features is needed."
        ) from None
    if scores.shape != (X.shape[1],):
        raise InvalidInput(f"select: the selector gave scores of shape {scores.shape} for {X.shape[1]} features.")
    if callable(selector):
        scores = _where_usable(scores, X)
    size = np.abs(scores[np.isfinite(scores)]).max(initial=0)
    rounded = np.round(scores / size, _DIGITS) if size > 0 else scores
    tie_break = stream(random_state, "selector_ties").random(scores.size)
    order = np.lexsort((tie_break, -rounded))  # NaN comes last
    return order[: min(n_features, int((~np.isnan(scores)).sum()))]


def scorer(selector: str | Selector) -> Selector:
    """The function of a name in `SELECTORS`; a function of three arguments stays what it is."""
    if callable(selector):
        try:
            inspect.signature(selector).bind(None, None, 0)
        except TypeError:
            raise InvalidInput(
                f"decoding: the selector {shown(selector)} must take three arguments, score(X, y, random_state)."
            ) from None
        except ValueError:  # written in C, without a signature
            pass
        return selector
    if not isinstance(selector, str) or selector not in SELECTORS:
        raise InvalidInput(
            f"decoding: there is no selector {shown(selector)}{closest(selector, SELECTORS) or ';'} "
            f"known are {listed(SELECTORS)}."
        )
    return SELECTORS[selector]


def usable(X: Any) -> np.ndarray:
    """Which features are finite and vary by more than the rounding of float32, shape (V,)."""
    return _spread(X)[1]


def _spread(X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Largest size of each feature, and whether it is finite and varies."""
    if sparse.issparse(X):
        values = canonical_columns(X)
        stored = np.diff(values.indptr)
        low, high = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        filled = stored > 0
        if filled.any():
            starts = values.indptr[:-1][filled]
            low[filled], high[filled] = (which.reduceat(values.data, starts) for which in (np.minimum, np.maximum))
        zeros = stored < X.shape[0]
        low[zeros], high[zeros] = np.minimum(low[zeros], 0), np.maximum(high[zeros], 0)
    else:
        low, high = np.min(X, axis=0).astype(float), np.max(X, axis=0).astype(float)
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(invalid="ignore"):
        return size, np.isfinite(size) & (high - low > NOISE * size)


def _class_means(X: Any, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the class and of the others."""
    weights = np.stack([y / y.sum(), ~y / (~y).sum()])
    with np.errstate(invalid="ignore"):  # of features that are not finite
        means = np.asarray((X.T @ weights.T).T if sparse.issparse(X) else weights @ X, dtype=float)
    return means[0], means[1]


def _where_usable(scores: np.ndarray, X: Any) -> np.ndarray:
    return np.where(usable(X), scores, np.nan)


def _mean_difference(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    own, other = _class_means(X, y)
    with np.errstate(invalid="ignore"):
        return _where_usable(np.abs(own - other), X)


def _maximum_activation(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    """The larger class mean: what is most active, whether or not the classes differ. A baseline, not a contrast."""
    return _where_usable(np.maximum(*_class_means(X, y)), X)


def _welch_t(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    """Welch's t; a feature that varies only between the classes has an infinite one."""
    if min(y.sum(), (~y).sum()) < 2:
        return np.full(X.shape[1], np.nan)
    means = _class_means(X, y)
    variance = np.zeros(X.shape[1])
    squares = np.zeros(X.shape[1])
    values = canonical_columns(X) if sparse.issparse(X) else np.asarray(X, dtype=float)
    for rows, mean in zip((y, ~y), means, strict=True):
        n = int(rows.sum())
        if sparse.issparse(values):
            # Σ (x − m)² over what is stored, and m² for every zero: no difference of two large numbers.
            column = np.repeat(np.arange(X.shape[1]), np.diff(values.indptr))
            own = rows[values.indices]
            with np.errstate(invalid="ignore"):
                stored = (values.data[own] - mean[column[own]]) ** 2
                zeros = n - np.bincount(column[own], minlength=X.shape[1])
                deviations = np.bincount(column[own], stored, minlength=X.shape[1]) + mean**2 * zeros
        else:
            with np.errstate(invalid="ignore"):
                deviations = column_squares(values[rows] - mean)
        variance += deviations / (n * (n - 1))
        squares += deviations
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = np.sqrt(squares / len(y)) <= NOISE * _spread(X)[0]  # inside the classes
        t = np.where(flat, np.inf, np.abs(means[0] - means[1]) / np.sqrt(variance))
    return _where_usable(t, X)


def _auroc(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    """``AUROC − ½ = (mean rank of the class − mean rank of the others) / n``, whatever the origin of the ranks."""
    own, other = _class_means(rank_rows(X, "whole_item"), y)
    return _where_usable(np.abs(own - other) / len(y), X)


def _rsa(kind: str) -> Selector:
    def score(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
        from neurollm.stats.rdms import categorical_rdm, coherence_rdm, discriminative_rdm, rsa_scores

        if kind == "categorical":
            return _where_usable(rsa_scores(X, categorical_rdm(y)), X)
        if kind == "discriminative":
            return _where_usable(rsa_scores(X, discriminative_rdm(y, True)), X)
        return _where_usable(np.abs(rsa_scores(X, coherence_rdm(y, True))), X)

    return score


def _l1_path(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    """How early features enter the lasso path of the ±1 labels: 1 for the first, 0 for those that never do.

    Followed exactly by least angle regression (Efron et al. 2004, Annals of Statistics 32:407), with features scaled by
    their deviation and classes of the same weight; a logistic path takes a ladder of penalties whose last rungs do not
    converge where classes overlap.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path

    scores = np.full(X.shape[1], np.nan)
    columns = np.flatnonzero(usable(X))
    if not columns.size:
        return scores
    root = np.sqrt(len(y) / 2 / np.where(y, y.sum(), (~y).sum()))
    values = dense(X[:, columns])
    values = root[:, None] * (values - root**2 @ values / len(y)) / values.std(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it ends early where features depend on each other
        _, _, path = lars_path(values, np.where(y, root, -root), method="lasso", max_iter=len(y), copy_X=False)
    inside = path != 0
    entry = np.where(inside.any(axis=1), inside.argmax(axis=1), path.shape[1])
    order = np.unique(entry, return_inverse=True)[1]
    scores[columns] = np.where(entry < path.shape[1], 1 - order / columns.size, 0.0)
    return scores


def _mutual_information(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    scores = np.full(X.shape[1], np.nan)
    columns = np.flatnonzero(usable(X))
    for part, block in column_blocks(X[:, columns]):
        scores[columns[part]] = mutual_information(block, y)
    return scores


def _random(X: Any, y: np.ndarray, random_state: int) -> np.ndarray:
    return _where_usable(stream(random_state, "random_selector").random(X.shape[1]), X)


SELECTORS: dict[str, Selector] = {
    "rsa_categorical": _rsa("categorical"),
    "rsa_discriminative": _rsa("discriminative"),
    "rsa_coherence": _rsa("coherence"),
    "mean_difference": _mean_difference,
    "welch_t": _welch_t,
    "auroc": _auroc,
    "l1_path": _l1_path,
    "mutual_information": _mutual_information,
    "maximum_activation": _maximum_activation,
    "random": _random,
}
