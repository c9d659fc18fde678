"""The rows of a model that is tested: item × condition means as the design exchanges them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.designs import Design, ItemTable
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.exchange import Exchange, exchange
from neurollm.rsa.models import ModelRDM, Rows, model_rdms
from neurollm.stats.arrays import by_columns, canonical_columns, column_blocks, combine_rows
from neurollm.stats.transforms import TRANSFORMS
from neurollm.validation import listed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ModelRows:
    """One model and the data it is compared with.

    Attributes
    ----------
    values : ndarray or CSC, shape (n, V)
        Item × condition means; for an interaction without the means of its factors.
    matrix : ndarray, shape (n, n)
        The model over these rows.
    item : ndarray of int, shape (n,)
        Position of each row's item in ``table.items``.
    n_active : ndarray of int, shape (V,)
        Rows in which each feature is not zero.
    model : ModelRDM
    exchange : Exchange
    table : ItemTable
    """

    values: Any
    matrix: np.ndarray
    item: np.ndarray
    n_active: np.ndarray
    model: ModelRDM
    exchange: Exchange
    table: ItemTable

    @classmethod
    def of(
        cls, design: Design, model: str | ModelRDM, X: Any, obs: pd.DataFrame, scale: str = "raw", n_jobs: int = 1
    ) -> ModelRows:
        """Average the trials, read the model and find what may be exchanged.

        Parameters
        ----------
        design : Design
        model : str or ModelRDM
            See `neurollm.rsa.models`.
        X : array, shape (n_trials, V)
        obs : DataFrame
        scale : {"raw", "log1p", "binary"}
        n_jobs : int, default=1

        Returns
        -------
        ModelRows

        Raises
        ------
        InvalidInput
            The scale or the model does not exist, or nothing can be exchanged.
        """
        if scale not in TRANSFORMS:
            raise InvalidInput(f"RSA: scale is {scale!r}; it is one of {listed(TRANSFORMS)}.")
        table = design.table(obs, X, scale, n_jobs)
        found = model_rdms([model], Rows.of(design, obs, table))
        if len(found) > 1:
            names = listed(one.name for one in found)
            raise InvalidInput(f"RSA: {model!r} stands for {len(found)} models; name one of {names}.")
        how = exchange(design, table, found[0])
        values, n_active = entering_rows(table, how, n_jobs)
        matrix = found[0].matrix[np.ix_(how.rows, how.rows)]
        return cls(values, matrix, table.item_codes[how.rows], n_active, found[0], how, table)


def read_trials(X: Any, obs: Any, features: Any, where: str) -> tuple[Any, pd.DataFrame, np.ndarray]:
    """Activations, trial table and feature ids, read from an AnnData or as given (ids default to 0 … V−1).

    Raises
    ------
    InvalidInput
        The trial table is missing, or an AnnData comes with a second one.
    DataMismatch
        Rows or ids do not go with the activations.
    """
    if hasattr(X, "obs") and hasattr(X, "var"):
        if obs is not None or features is not None:
            raise InvalidInput(f"{where}: trials given as AnnData bring their own table and ids; pass nothing else.")
        return X.X, X.obs, np.asarray(X.var.get("feature", X.var_names))
    if not hasattr(obs, "columns"):
        raise InvalidInput(f"{where}: expected a trial table with one row per trial, found {type(obs).__name__}.")
    X = by_columns(X)
    if X.ndim != 2 or X.shape[0] != len(obs):
        raise DataMismatch(f"{where}: X has shape {tuple(X.shape)} but the trial table has {len(obs)} rows.")
    ids = np.arange(X.shape[1]) if features is None else np.asarray(features)
    if len(ids) != X.shape[1]:
        raise DataMismatch(f"{where}: {len(ids)} feature ids were given for {X.shape[1]} columns.")
    return X, obs, ids


def entering_rows(table: ItemTable, how: Exchange, n_jobs: int = 1) -> tuple[Any, np.ndarray]:
    """Values of the rows that enter, and in how many of them each feature is active.

    Returns
    -------
    values : ndarray or CSC, shape (n, V)
    n_active : ndarray of int, shape (V,)
    """
    n = len(how.rows)
    chosen = sparse.csr_array((np.ones(n), (np.arange(n), how.rows)), shape=(n, table.n_rows))
    values = combine_rows(chosen, table.values, n_jobs=n_jobs)
    if sparse.issparse(values):
        n_active = np.diff(canonical_columns(values).indptr)
    else:
        parts = [np.count_nonzero(block, axis=0) for _, block in column_blocks(values)]
        n_active = np.concatenate([np.empty(0, int), *parts])
    if how.weights is not None:
        values = combine_rows(how.weights, values, n_jobs=n_jobs)
    return by_columns(values), n_active
