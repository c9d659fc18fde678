"""Cross-validated separability of two levels.

An L2-penalised logistic regression is trained on some items and scores the trials of others.
Its solution depends on the features only through inner products of trials, so features are
standardised with the training mean and deviation of each fold and then rotated to as many
coordinates as there are training trials: the same classifier, at a cost that hardly depends on
the number of features. The penalty is chosen inside the training part, by item as well.

The AUROC compares trials of the same test fold only (scores of different folds come from
different classifiers): concordant pairs of all folds over pairs of all folds.

Its 95 % interval is a Wilson interval with t quantiles, in which the number of observations is the one that gives
the variance of a jackknife over items, but at most the number of within-fold comparisons that share no item (n items
with both levels each, or n / 2 pairs of items with one level). That limit covers what the jackknife cannot see,
the variation of the classifiers, and keeps the interval wide when few items happen to be told apart without error:
56 of 56 gives .93 to 1. In simulations (6, 10, 20, 40 items, with both levels each or one, noise or a signal of
AUROC .6 to .7; 60 to 100 data sets each) 97 to 100 % of the intervals held the true mean; on noise 0 to 2 % lay
above .5. It is cautious by design, most of all with both levels in every item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.decoding.scores import cautious_interval, fold_areas, n_item_pairs
from neurollm.decoding.trials import complete, typed
from neurollm.errors import InvalidInput
from neurollm.stats.arrays import by_columns, column_blocks
from neurollm.stats.folds import item_folds
from neurollm.stats.linear import NOISE

if TYPE_CHECKING:
    import pandas as pd

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_INNER_FOLDS = 3


@dataclass(frozen=True, eq=False)
class Separability:
    """How well two levels are told apart on unseen items.

    Attributes
    ----------
    auroc, ci_low, ci_high : float
        With its 95 % interval over items, which is never a single point.
    balanced_accuracy : float
    n_items, n_trials, n_folds : int
    positive : str
        The level scored high (the second in sorted order).
    predictions : DataFrame
        Columns group, level, fold, score, predicted; one row per trial in the order given.
    """

    auroc: float
    ci_low: float
    ci_high: float
    balanced_accuracy: float
    n_items: int
    n_trials: int
    n_folds: int
    positive: str
    predictions: pd.DataFrame


def separability(X: Any, y: Any, groups: Any, *, cv: int = 5, random_state: int = 0) -> Separability:
    """Cross-validated AUROC of two levels, with all trials of an item on the same side of every split.

    Parameters
    ----------
    X : ndarray, scipy.sparse or torch.Tensor, shape (n_trials, V)
        Features with a value that is not finite are left out.
    y : sequence
        Level of each trial; exactly two different ones.
    groups : sequence
        Item of each trial.
    cv : int, default=5
        Folds; fewer if a level has fewer items.
    random_state : int, default=0

    Returns
    -------
    Separability
    """
    import pandas as pd

    random_state = int(random_state)
    y = typed(complete(y, "levels", X.shape[0], "separability"))
    groups = complete(groups, "items", X.shape[0], "separability").astype(str)
    levels = _check(y, cv)
    labels, y, levels = y == levels[1], y.astype(str), levels.astype(str)
    _, items = np.unique(groups, return_inverse=True)
    per_level = min(np.unique(items[labels]).size, np.unique(items[~labels]).size)
    if per_level < 2:
        raise InvalidInput(
            f"separability: '{levels[0]}' and '{levels[1]}' need at least 2 items each, found {per_level}."
        )
    folds = item_folds(labels, items, min(cv, per_level), random_state)
    X = by_columns(X)
    scores = np.empty(y.size)
    for fold in np.unique(folds):
        test = folds == fold
        scores[test] = _score_fold(X, labels, items, test, random_state)
    recalls = [np.mean((scores[labels == side] > 0) == side) for side in (True, False)]
    predictions = pd.DataFrame(
        {
            "group": groups,
            "level": y,
            "fold": folds,
            "score": scores,
            "predicted": np.where(scores > 0, levels[1], levels[0]),
        }
    )
    area = float(fold_areas(scores, labels, folds)[0])
    low, high = _interval(scores, labels, items, folds, area)
    return Separability(
        area,
        low,
        high,
        float(np.mean(recalls)),
        int(items.max()) + 1,
        y.size,
        int(folds.max()) + 1,
        str(levels[1]),
        predictions,
    )


def _check(y: np.ndarray, cv: int) -> np.ndarray:
    levels = np.unique(y)
    if levels.size != 2:
        raise InvalidInput(f"separability: exactly two levels can be separated, found {levels.size}.")
    if cv < 2:
        raise InvalidInput(f"separability: cv must be at least 2, found {cv!r}.")
    return levels


def _score_fold(X: Any, labels: np.ndarray, items: np.ndarray, test: np.ndarray, random_state: int) -> np.ndarray:
    """Decision values of the test trials."""
    train = ~test
    if labels[train].all() or not labels[train].any():
        return np.zeros(int(test.sum()))
    coordinates = _rotate(X, train)
    inner_items = np.unique(items[train], return_inverse=True)[1]
    n_inner = min(_INNER_FOLDS, *(np.unique(inner_items[labels[train] == side]).size for side in (True, False)))
    penalty = PENALTIES[len(PENALTIES) // 2]
    if n_inner >= 2:
        inner = item_folds(labels[train], inner_items, n_inner, random_state)
        penalty = _choose_penalty(coordinates[train], labels[train], inner)
    return _fit(coordinates[train], labels[train], penalty).decision_function(coordinates[test])


def _rotate(X: Any, train: np.ndarray) -> np.ndarray:
    """Standardise by the training trials, then rotate onto the space they span (rows have mean square norm 1)."""
    gram = np.zeros((train.size, train.size))
    n_used = 0
    for _, block in column_blocks(X):
        block = block[:, np.isfinite(block).all(axis=0)]
        mean, sd = block[train].mean(axis=0), block[train].std(axis=0)
        used = sd > NOISE * np.abs(block[train]).max(axis=0, initial=0)  # else constant up to rounding, as in the GLM
        scaled = (block[:, used] - mean[used]) / sd[used]
        gram += scaled @ scaled.T
        n_used += int(used.sum())
    gram /= max(n_used, 1)
    values, vectors = np.linalg.eigh(gram[np.ix_(train, train)])
    keep = values > 1e-10 * max(values.max(initial=0), 1e-300)
    if not keep.any():
        return np.zeros((train.size, 1))
    return gram[:, train] @ (vectors[:, keep] / np.sqrt(values[keep]))


def _choose_penalty(Z: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """The strongest penalty with the best inner AUROC."""
    areas = []
    for penalty in PENALTIES:
        scores = np.zeros(labels.size)
        for fold in np.unique(folds):
            test = folds == fold
            if labels[~test].any() and not labels[~test].all():
                scores[test] = _fit(Z[~test], labels[~test], penalty).decision_function(Z[test])
        areas.append(fold_areas(scores, labels, folds)[0])
    return PENALTIES[int(np.argmax(np.round(np.nan_to_num(areas, nan=0.5), 9)))]


def _fit(Z: np.ndarray, labels: np.ndarray, penalty: float):
    from sklearn.linear_model import LogisticRegression

    # Fewer coordinates than trials: Newton steps are exact and quick.
    model = LogisticRegression(C=penalty, class_weight="balanced", solver="newton-cholesky", tol=1e-6)
    return model.fit(Z, labels)


def _interval(
    scores: np.ndarray, labels: np.ndarray, items: np.ndarray, folds: np.ndarray, area: float
) -> tuple[float, float]:
    """Wilson interval of `area` with as many observations as the jackknife over items finds, at most the item pairs."""
    areas = fold_areas(scores, labels, folds, 1 - np.eye(int(items.max()) + 1)[:, items])  # one item left out in each
    areas = areas[np.isfinite(areas)]
    if not np.isfinite(area) or not areas.size:
        return float("nan"), float("nan")
    return cautious_interval(area, (areas.size - 1) * np.var(areas), n_item_pairs(labels, items, folds))
