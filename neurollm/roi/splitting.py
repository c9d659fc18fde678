"""Dividing trials into parts that share no item and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.random import stream
from neurollm.roi.contents import item_keys, linked, text_keys
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import check_whole
from neurollm.stats.arrays import by_columns

if TYPE_CHECKING:
    import pandas as pd


def split_half(
    obs: pd.DataFrame,
    item: str | None = "item",
    random_state: int = 0,
    stratify: str | Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of a trial table: one to select features on, one to test them on.

    Items are never divided, and items that share a text stay together. The order of the trials does not matter.

    Parameters
    ----------
    obs : DataFrame
        With a column ``text``.
    item : str or None, default="item"
        Column that names the items; None: every text is an item.
    random_state : int, default=0
    stratify : str or sequence of str
        Columns of conditions: items with the same conditions are shared out evenly.

    Returns
    -------
    first, second : ndarray of bool, shape (n_trials,)

    Raises
    ------
    InvalidInput
        A column is missing or incomplete, or shared texts tie all items together.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"item": list("aabbcc"), "text": ["1", "2", "2", "3", "4", "5"]})
    >>> first, second = split_half(obs)  # a and b share the text "2"
    >>> sorted([set(obs["item"][first]), set(obs["item"][second])], key=len)[0]
    {'c'}
    """
    columns = [stratify] if isinstance(stratify, str) else list(stratify)
    unknown = [name for name in columns if name not in obs]
    if unknown:
        raise InvalidInput(f"split_half: the trial table has no column '{unknown[0]}' to stratify by.")
    conditions = obs[columns].astype(str).agg("\x1f".join, axis=1).to_numpy() if columns else np.zeros(len(obs))
    fold = folds(obs, item, 2, random_state, conditions)
    return fold == 0, fold == 1


def folds(obs: pd.DataFrame, item: str | None, n_splits: int, random_state: int, conditions: np.ndarray) -> np.ndarray:
    """Number of the fold of every trial; folds share no item and no text and are alike in size and conditions.

    Parameters
    ----------
    obs : DataFrame
    item : str or None
    n_splits : int
    random_state : int
    conditions : ndarray, shape (n_trials,)
        The stratum of a group of items is the set of its conditions.

    Returns
    -------
    ndarray of int, shape (n_trials,)

    Raises
    ------
    InvalidInput
        There are fewer groups of items than folds, or `random_state` is not a whole number.
    """
    check_whole("roi", "random_state", random_state, 0)
    texts = text_keys(obs)
    items = texts if item is None else item_keys(obs, item)
    group = linked(items, texts)
    n_groups = group.max() + 1
    if n_groups < n_splits:
        raise InvalidInput(
            f"roi: {len(set(items))} items make {n_groups} group{'' if n_groups == 1 else 's'} that share no text, too "
            f"few for {n_splits} parts; give more items, or fewer texts in common."
        )
    rng = stream(random_state, "roi_folds")
    codes = np.unique(conditions, return_inverse=True)[1]
    members = [np.flatnonzero(group == number) for number in range(n_groups)]
    sizes = np.array([len(set(items[rows])) for rows in members])
    strata: dict[tuple, list[int]] = {}
    for number, rows in enumerate(members):
        strata.setdefault(tuple(np.unique(codes[rows])), []).append(number)
    fold_of, filled = np.empty(n_groups, int), np.zeros(n_splits)
    for stratum in sorted(strata):
        numbers = rng.permutation(strata[stratum])
        own = np.zeros(n_splits)
        for number in numbers[np.argsort(-sizes[numbers], kind="stable")]:  # large groups first: they fit worst
            fold = np.lexsort((rng.random(n_splits), filled, own))[0]
            fold_of[number] = fold
            own[fold] += sizes[number]
            filled[fold] += sizes[number]
    return fold_of[group]


def in_order(X: Any, obs: pd.DataFrame) -> tuple[Any, pd.DataFrame, np.ndarray]:
    """Trials in the order of what their table says of them, so that no draw or rounding depends on the order given.

    Parameters
    ----------
    X : array, shape (n_trials, V)
    obs : DataFrame

    Returns
    -------
    X, obs
    order : ndarray of int, shape (n_trials,)
        Where each trial was before.

    Examples
    --------
    >>> import pandas as pd
    >>> in_order(np.array([[1.0], [2.0], [3.0]]), pd.DataFrame({"item": list("bca")}))[2].tolist()
    [2, 0, 1]
    """
    names = [str(name) for name in obs.columns]
    columns = [obs.iloc[:, place].tolist() for place in sorted(range(len(names)), key=names.__getitem__)]
    lines = ["\x1f".join(map(str, row)) for row in zip(*columns, strict=True)]
    order = np.array(sorted(range(len(lines)), key=lines.__getitem__), dtype=int)
    if (np.diff(order) > 0).all():
        return X, obs, order
    X = by_columns(X)
    return (X.tocsr()[order].tocsc() if hasattr(X, "tocsr") else X[order]), obs.iloc[order], order


def moved(model: str | ModelRDM, order: np.ndarray) -> str | ModelRDM:
    """A model over trials, for the trials in another order."""
    matrix = np.asarray(model.matrix, float) if isinstance(model, ModelRDM) else np.empty(0)
    if matrix.shape != (len(order), len(order)):  # a name, or a table that is refused later
        return model
    return replace(model, matrix=matrix[np.ix_(order, order)])
