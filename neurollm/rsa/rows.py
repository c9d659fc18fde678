"""The rows of a model that is tested: item × condition means as the design exchanges them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.designs import Design, ItemTable
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.exchange import Exchange, exchange
from neurollm.rsa.models import ModelRDM, Rows, model_rdms
from neurollm.stats.arrays import by_columns, canonical_columns, column_blocks, combine_rows, take_rows
from neurollm.stats.shufflings import Draws, Shuffling
from neurollm.validation import closest, listed, shown

if TYPE_CHECKING:
    import pandas as pd

SCALES = ("raw", "log1p", "binary")  # of distances, ranks are a comparison
FEW_SHUFFLINGS = 20


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
        if not isinstance(scale, str) or scale not in SCALES:
            hint = closest(str(scale), SCALES) or "."
            raise InvalidInput(f"RSA: scale is {shown(scale)}; it is one of {listed(SCALES)}{hint}")
        table = design.table(obs, X, scale, n_jobs)
        found = one_model(model, Rows.of(design, obs, table))
        how = exchange(design, table, found)
        values, n_active = entering_rows(table, how, n_jobs)
        matrix = found.matrix[np.ix_(how.rows, how.rows)]
        return cls(values, matrix, table.item_codes[how.rows], n_active, found, how, table)


def one_model(model: str | ModelRDM, rows: Rows) -> ModelRDM:
    """Read a model where only one can be tested.

    Parameters
    ----------
    model : str or ModelRDM
        See `neurollm.rsa.models`.
    rows : Rows

    Returns
    -------
    ModelRDM

    Raises
    ------
    InvalidInput
        The model does not exist, or the name stands for several.
    """
    found = model_rdms([model], rows)
    if len(found) > 1:
        names = listed(one.name for one in found)
        raise InvalidInput(f"RSA: {model!r} stands for {len(found)} models; name one of {names}.")
    return found[0]


def drawn(shuffling: Shuffling, n_perm: int, random_state: int, stacklevel: int) -> Draws:
    """Shufflings of a test, with a warning if they are few.

    Parameters
    ----------
    shuffling : Shuffling
    n_perm, random_state : int
    stacklevel : int
        Frames between this function and the call that the warning is about.

    Returns
    -------
    Draws
    """
    draws = shuffling.draw(n_perm, random_state)
    if len(draws) < FEW_SHUFFLINGS:
        least = 1 / (len(draws) + (not draws.exhaustive))
        text = f"RSA: {len(draws)} shufflings are used, so no p is below {least:.2g}."
        warnings.warn(text, stacklevel=stacklevel + 1)
    return draws


def check_whole(where: str, name: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises
    ------
    InvalidInput
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidInput(f"{where}: {name} must be a whole number of at least {least}, found {shown(value)}.")


def read_trials(X: Any, obs: Any, features: Any, where: str) -> tuple[Any, pd.DataFrame, np.ndarray]:
    """Activations, trial table and feature ids, read from an AnnData or as given (ids default to 0 … V−1).

    Raises
    ------
    InvalidInput
        The trial table is missing, an AnnData comes with a second one, or X is not a table.
    DataMismatch
        Rows or ids do not go with the activations.
    """
    if hasattr(X, "obs") and hasattr(X, "var"):
        if obs is not None or features is not None:
            raise InvalidInput(f"{where}: trials given as AnnData bring their own table and ids; pass nothing else.")
        return X.X, X.obs, np.asarray(X.var.get("feature", X.var_names))
    if not hasattr(obs, "columns"):
        raise InvalidInput(f"{where}: expected a trial table with one row per trial, found {type(obs).__name__}.")
    shape = _shape(X)
    if len(shape) != 2:
        raise InvalidInput(f"{where}: X must be a table of trials × features, found shape {shape}.")
    if shape[0] != len(obs):
        raise DataMismatch(f"{where}: X has shape {shape} but the trial table has {len(obs)} rows.")
    X = by_columns(X)
    ids = np.arange(shape[1]) if features is None else np.asarray(features)
    if ids.ndim != 1:
        raise InvalidInput(f"{where}: features must be a list of ids, found {shown(features)}.")
    if len(ids) != shape[1]:
        raise DataMismatch(f"{where}: {len(ids)} feature ids were given for {shape[1]} columns.")
    return X, obs, ids


def _shape(X: Any) -> tuple[int, ...]:
    """Shape of an array or of lists; that of uneven lists is unknown."""
    try:
        return tuple(np.shape(X))
    except ValueError:
        return ()


def repeated_rows(design: Design, data: tuple[Any, pd.DataFrame], how: Exchange, table: ItemTable, scale: str) -> list:
    """The rows that enter, once for each template.

    Parameters
    ----------
    design : Design
        With a template.
    data : (array, DataFrame)
        Trials.
    how : Exchange
    table : ItemTable
        Means over templates.
    scale : str

    Returns
    -------
    list of ndarray or CSC, each (n, V)

    Raises
    ------
    InvalidInput
        The design names no template, or has one only.
    DataMismatch
        A row is missing in a template.
    """
    if design.template is None:
        raise InvalidInput(
            "RSA: crossvalidated distances need repeats; name the column of the wording, as in template='template'."
        )
    X, obs = data
    wording = design.column(obs, design.template).astype(str).to_numpy(str)
    names = np.unique(wording)
    if names.size < 2:
        raise InvalidInput(f"RSA: crossvalidated distances need two templates, found one: {listed(names)}.")
    items = np.array(table.items)
    cells = len(table.cells)
    wanted = table.item_codes[how.rows] * cells + table.cell_codes[how.rows]
    parts = []
    for name in names:
        here = np.flatnonzero(wording == name)
        part = design.table(obs.iloc[here], take_rows(X, here), scale)
        order = {cell: number for number, cell in enumerate(table.cells)}
        codes = np.array([order[cell] for cell in part.cells])[part.cell_codes]
        keys = np.searchsorted(items, np.array(part.items))[part.item_codes] * cells + codes
        place = {int(key): row for row, key in enumerate(keys)}
        missing = [key for key in wanted.tolist() if key not in place]
        if missing:
            raise DataMismatch(
                f"RSA: crossvalidated distances need every item and condition in every template, but "
                f"'{items[missing[0] // cells]}' in '{table.cells[missing[0] % cells]}' has no trial in '{name}'."
            )
        parts.append(_chosen_rows(part.values, np.array([place[key] for key in wanted.tolist()]), how.weights))
    return parts


def _chosen_rows(values: Any, rows: np.ndarray, weights: sparse.csr_array | None, n_jobs: int = 1) -> Any:
    """Rows in this order, multiplied by `weights`."""
    n = len(rows)
    chosen = sparse.csr_array((np.ones(n), (np.arange(n), rows)), shape=(n, values.shape[0]))
    values = combine_rows(chosen, values, n_jobs=n_jobs)
    return by_columns(values if weights is None else combine_rows(weights, values, n_jobs=n_jobs))


def entering_rows(table: ItemTable, how: Exchange, n_jobs: int = 1) -> tuple[Any, np.ndarray]:
    """Values of the rows that enter, and in how many of them each feature is active.

    Returns
    -------
    values : ndarray or CSC, shape (n, V)
    n_active : ndarray of int, shape (V,)
    """
    raw = _chosen_rows(table.values, how.rows, None, n_jobs)
    if sparse.issparse(raw):
        n_active = np.diff(canonical_columns(raw).indptr)
    else:
        parts = [np.count_nonzero(block, axis=0) for _, block in column_blocks(raw)]
        n_active = np.concatenate([np.empty(0, int), *parts])
    return raw if how.weights is None else by_columns(combine_rows(how.weights, raw, n_jobs=n_jobs)), n_active
