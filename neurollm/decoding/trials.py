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
        if hasattr(X, "obs") and hasattr(X, "var"):
            if features is None:
                features = np.asarray(X.var.get("feature", X.var_names))
            labels, groups = (_column(X.obs, name) for name in (labels, groups))
        n, width = values.shape
        if labels is None:
            raise InvalidInput(
                "Decoder: requires y to be passed, but the target y is None: give a label for each trial."
            )
        names = _sorted(_complete(labels, "labels", n))
        if groups is None and not item_reason.strip():
            raise InvalidInput(
                "Decoder: without groups every trial would count as an item of its own; give the item of each trial, "
                "or write down in item_reason why trials are independent."
            )
        if groups is not None and item_reason:
            raise InvalidInput("Decoder: item_reason is only for trials without groups; remove it or the groups.")
        groups = np.arange(n) if groups is None else _complete(groups, "groups", n).astype(str)
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


def matrix(X: Any) -> Any:
    """Any array of trials × features as float64, dense or CSC."""
    if hasattr(X, "obs") and hasattr(X, "var"):
        X = X.X
    if sparse.issparse(X):
        return canonical_columns(X)
    values = dense(X) if is_torch(X) else np.asarray(X)
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise InvalidInput(
            f"Decoder: X must be a table of numbers, trials × features; found shape {values.shape} of {values.dtype}."
        )
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


def _column(obs: Any, name: Any) -> Any:
    """A column of the trial table by its name; anything else as it is."""
    if not isinstance(name, str):
        return name
    if name not in obs.columns:
        raise InvalidInput(
            f"Decoder: the trial table has no column {shown(name)}{closest(name, obs.columns) or '.'} Its columns are "
            f"{listed(obs.columns)}."
        )
    return obs[name].to_numpy()


def _complete(values: Any, what: str, n: int) -> np.ndarray:
    """The values as objects, so that a missing one is not taken for a text."""
    import pandas as pd

    values = np.asarray(values, dtype=object)
    if values.shape != (n,):
        raise DataMismatch(f"Decoder: {what} of shape {values.shape} do not fit {n} trials.")
    missing = np.flatnonzero(pd.isna(values))
    if missing.size:
        raise InvalidInput(
            f"Decoder: {what} are missing (NaN or None) at {missing.size} trials, such as trial {missing[0]}; leave "
            "these trials out."
        )
    return values


def _sorted(labels: np.ndarray) -> np.ndarray:
    """Labels of one kind, so that numbers are sorted as numbers."""
    if all(isinstance(value, (bool, np.bool_)) for value in labels):
        return labels.astype(bool)
    if all(isinstance(value, (int, np.integer)) for value in labels):
        return labels.astype(int)
    return labels.astype(float if all(isinstance(value, Real) for value in labels) else str)
