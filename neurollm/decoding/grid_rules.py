"""The selectors of a grid: those of `neurollm.decoding.selectors`, two of them in a form that is fast enough.

``mutual_information`` is the same estimate for all columns at once. ``l1_path`` is the order in which columns enter the
lasso path of the ±1 labels, followed exactly by least angle regression (Efron et al. 2004, Annals of Statistics 32:407)
instead of a logistic path on a ladder of penalties, whose last rungs do not converge where classes overlap.
"""

from __future__ import annotations

import warnings

import numpy as np

from neurollm.decoding.selectors import SELECTORS, Selector, usable
from neurollm.stats.mutual_information import mutual_information


def _mutual_information(X: np.ndarray, y: np.ndarray, random_state: int) -> np.ndarray:
    scores = np.full(X.shape[1], np.nan)
    columns = np.flatnonzero(usable(X))
    scores[columns] = mutual_information(X[:, columns], y, random_state=random_state)
    return scores


def l1_path(X: np.ndarray, y: np.ndarray, random_state: int = 0) -> np.ndarray:
    """How early columns enter the lasso path: 1 for the first, less for every later one, 0 for those that never do.

    Columns are scaled by their deviation and both classes weigh the same.

    Parameters
    ----------
    X : ndarray, shape (n, V)
    y : ndarray of bool, shape (n,)
    random_state : int
        Not used: the path is exact.

    Returns
    -------
    ndarray, shape (V,)
        NaN for columns that are constant.

    Examples
    --------
    >>> y = np.arange(8) < 4
    >>> l1_path(np.stack([np.arange(8) % 2, y + 0.1 * np.arange(8)], axis=1), y).tolist()
    [0.5, 1.0]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path

    scores = np.full(X.shape[1], np.nan)
    columns = np.flatnonzero(usable(X))
    if not columns.size:
        return scores
    root = np.sqrt(len(y) / 2 / np.where(y, y.sum(), (~y).sum()))
    values = np.asarray(X[:, columns], dtype=float)
    values = root[:, None] * (values - root**2 @ values / len(y)) / values.std(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it ends early where columns depend on each other
        _, _, path = lars_path(values, np.where(y, root, -root), method="lasso", max_iter=len(y), copy_X=False)
    inside = path != 0
    entry = np.where(inside.any(axis=1), inside.argmax(axis=1), path.shape[1])
    order = np.unique(entry, return_inverse=True)[1]
    scores[columns] = np.where(entry < path.shape[1], 1 - order / columns.size, 0.0)
    return scores


RULES: dict[str, Selector] = SELECTORS | {"mutual_information": _mutual_information, "l1_path": l1_path}
