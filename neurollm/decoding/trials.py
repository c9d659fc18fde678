"""Trials of a decoder: features, classes and items, checked."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.arrays import canonical_columns, dense, is_torch
from neurollm.validation import closest, listed, shown


@dataclass(frozen=True, eq=False)
class Trials:
    """What is decoded.

    Attributes
    ----------
    X : ndarray or CSC, shape (n_trials, V)
        Float64; features that are not finite somewhere are 0 throughout, and so never chosen.
    codes, items : ndarray of int, shape (n_trials,)
        Class and item of each trial.
    classes, item_names, feature : ndarray
    n_not_finite : int
    """

    X: Any
    codes: np.ndarray
    items: np.ndarray
    classes: np.ndarray
    item_names: np.ndarray
    feature: np.ndarray
    n_not_finite: int

    @classmethod
    def of(cls, X: Any, labels: Any, groups: Any, features: Any, item_reason: str) -> Trials:
        """Check what `Decoder.fit` was given."""
        values = matrix(X)
        features = column_ids(X) if features is None else features
        labels, groups = (column(X, given) for given in (labels, groups))
        n, width = values.shape
        if labels is None:
            raise InvalidInput(
                "Decoder: requires y to be passed, but the target y is None: give a label for each trial."
            )
        names = typed(complete(labels, "labels", n))
        if not isinstance(item_reason, str):
            raise InvalidInput(f"Decoder: item_reason must be text, found {shown(item_reason)}.")
        if groups is None and not item_reason.strip():
            raise InvalidInput(
                "Decoder: without groups every trial would count as an item of its own; give the item of each trial, "
                "or write down in item_reason why trials are independent."
            )
        if groups is not None and item_reason:
            raise InvalidInput("Decoder: item_reason is only for trials without groups; remove it or the groups.")
        groups = np.arange(n) if groups is None else complete(groups, "groups", n).astype(str)
        feature = np.arange(width) if features is None else np.asarray(features)
        if feature.shape != (width,):
            raise DataMismatch(f"Decoder: {feature.size} feature ids do not fit {width} features.")
        classes, codes = np.unique(names, return_inverse=True)
        item_names, items = np.unique(groups, return_inverse=True)
        values, n_not_finite = _finite(values)
        trials = cls(values, codes, items, classes, item_names, feature, n_not_finite)
        if classes.size < 2:
            raise InvalidInput(f"Decoder: at least two classes are needed, found {listed(classes)}.")
        if trials.items_per_class() < 2:
            few = [name for code, name in enumerate(classes) if np.unique(items[codes == code]).size < 2]
            raise InvalidInput(f"Decoder: every class needs at least 2 items, but {listed(few)} has one.")
        return trials

    def items_per_class(self) -> int:
        """Items of the class that has fewest."""
        return min(np.unique(self.items[self.codes == code]).size for code in range(self.classes.size))


def matrix(X: Any, where: str = "Decoder") -> Any:
    """Any array of trials × features as float64, dense or CSC; `where` begins the sentence of a refusal."""
    if _is_anndata(X):
        X = X.X
    try:
        values = X if sparse.issparse(X) else dense(X) if is_torch(X) else np.asarray(X)
    except ValueError:  # lists of unequal lengths
        raise InvalidInput(f"{where}: X must be a table of numbers, trials × features; its rows differ.") from None
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not values.shape[1]:
        raise InvalidInput(
            f"{where}: X must be a table of numbers, trials × features; found shape {values.shape} of {values.dtype}."
        )
    if sparse.issparse(values):
        return canonical_columns(values)
    return values.astype(np.float64, copy=False)


def _finite(values: Any) -> tuple[Any, int]:
    """Features that are not finite somewhere become 0 throughout; how many."""
    if sparse.issparse(values):
        broken = ~np.isfinite(values.data)
        columns = np.unique(np.repeat(np.arange(values.shape[1]), np.diff(values.indptr))[broken])
        if columns.size:
            kept = np.ones(values.shape[1])
            kept[columns] = 0
            data = np.where(np.repeat(kept, np.diff(values.indptr)) > 0, values.data, 0.0)
            values = sparse.csc_array((data, values.indices, values.indptr), shape=values.shape)
        return values, int(columns.size)
    columns = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if columns.size:
        values = values.copy()
        values[:, columns] = 0
    return values, int(columns.size)


def _is_anndata(X: Any) -> bool:
    return hasattr(X, "obs") and hasattr(X, "var")


def column_ids(X: Any) -> np.ndarray | None:
    """Ids of the columns of an AnnData or DataFrame; None of an array without names."""
    if _is_anndata(X):
        return np.asarray(X.var.get("feature", X.var_names))
    return np.asarray(X.columns) if hasattr(X, "columns") and hasattr(X, "iloc") else None


def column(X: Any, name: Any, where: str = "Decoder") -> Any:
    """A column of the trial table of an AnnData by its name; anything else as it is."""
    if not (isinstance(name, str) and _is_anndata(X)):
        return name
    obs = X.obs
    if name not in obs.columns:
        raise InvalidInput(
            f"{where}: the trial table has no column {shown(name)}{closest(name, obs.columns) or '.'} Its columns are "
            f"{listed(obs.columns)}."
        )
    return obs[name].to_numpy()


def complete(values: Any, what: str, n: int, where: str = "Decoder") -> np.ndarray:
    """One value for each of n trials, as objects, so that a missing one is not taken for a text.

    Raises
    ------
    DataMismatch
        There are more or fewer.
    InvalidInput
        One is missing (NaN, None).
    """
    import pandas as pd

    values = np.asarray(values, dtype=object)
    if values.shape != (n,):
        raise DataMismatch(f"{where}: {what} of shape {values.shape} do not fit {n} trials.")
    missing = np.flatnonzero(pd.isna(values))
    if missing.size:
        raise InvalidInput(
            f"{where}: {what} are missing (NaN or None) at {missing.size} trials, such as trial {missing[0]}; leave "
            "these trials out."
        )
    return values


def typed(labels: np.ndarray) -> np.ndarray:
    """Objects as values of one kind, so that numbers are sorted as numbers and all else as text.

    Examples
    --------
    >>> np.unique(typed(np.array([10, 9], dtype=object))).tolist()
    [9, 10]
    """
    if all(isinstance(value, (bool, np.bool_)) for value in labels):
        return labels.astype(bool)
    if all(isinstance(value, (int, np.integer)) for value in labels):
        return labels.astype(int)
    return labels.astype(float if all(isinstance(value, Real) for value in labels) else str)
