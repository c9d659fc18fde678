"""Trials averaged to item × cell means: the table on which everything confirmatory runs.

Wordings of one content are not independent observations, so templates are averaged (pseudobulk) before
anything is tested. A cell is a combination of the levels that the design compares.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.errors import DataMismatch
from neurollm.stats.arrays import canonical_columns, combine_rows, has_negative
from neurollm.stats.transforms import TRANSFORMS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ItemTable:
    """Item × cell means of all features, in the order of items, then cells.

    Attributes
    ----------
    values : CSC, ndarray or torch.Tensor, shape (n_rows, V), or None
        Float64, after the transform. None in a table that only describes the design.
    shares : like `values`
        Share of the row's trials in which the feature is not zero.
    sizes : like `values`
        Mean absolute value of the row's trials: what rounding is judged against, also where trials cancel.
    items : tuple of str
    cells : tuple of str
        Names of all cells of the design, whether they occur or not.
    item_codes, cell_codes : ndarray of int, shape (n_rows,)
    n_trials : ndarray of int, shape (n_rows,)
        Trials averaged in each row.
    wordings : ndarray of int, shape (n_rows,)
        Rows with the same number average the same set of templates (all 0 without templates).
    obs : DataFrame, n_rows rows
        Covariates (averaged) and the other columns of the design (those of the row's first trial).
    """

    values: Any
    shares: Any
    sizes: Any
    items: tuple[str, ...]
    cells: tuple[str, ...]
    item_codes: np.ndarray
    cell_codes: np.ndarray
    n_trials: np.ndarray
    wordings: np.ndarray
    obs: pd.DataFrame

    @property
    def n_rows(self) -> int:
        """Number of item × cell means."""
        return len(self.item_codes)

    def take(self, columns: Any) -> ItemTable:
        """The table of some features."""
        values = self.values[:, columns]
        sizes = values if self.sizes is self.values else self.sizes[:, columns]
        return replace(self, values=values, shares=self.shares[:, columns], sizes=sizes)


def trials_digest(obs: pd.DataFrame, item: str | None) -> str:
    """SHA-256 over the items (of this column) and texts of all trials, in any order."""
    items = obs[item].astype(str) if item is not None else [""] * len(obs)
    texts = obs["text"].astype(str) if "text" in obs.columns else [""] * len(obs)
    lines = sorted(f"{item}\x1f{text}" for item, text in zip(items, texts, strict=True))
    return hashlib.sha256("\x1e".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def average_trials(
    obs: pd.DataFrame,
    codes: tuple[np.ndarray, np.ndarray],
    names: tuple[str, ...],
    covariates: tuple[str, ...],
    template: str | None = None,
) -> tuple[ItemTable, sparse.csr_array]:
    """The table's rows without values, and the matrix that averages trials into them.

    Parameters
    ----------
    obs : DataFrame
        One row per trial.
    codes : (ndarray of str, ndarray of int), shape (n_trials,)
        Item and cell of every trial.
    names : tuple of str
        Name of each cell number.
    covariates : tuple of str
        Columns that are averaged like the values.
    template : str, optional
        Column of the wording.

    Returns
    -------
    table : ItemTable
    averages : csr_array, shape (n_rows, n_trials)
    """
    items, cells = codes
    labels, item_codes = np.unique(items, return_inverse=True)
    keys, first, row = np.unique(item_codes * len(names) + cells, return_index=True, return_inverse=True)
    n_trials = np.bincount(row)
    averages = sparse.csr_array((1 / n_trials[row], (row, np.arange(len(obs)))), shape=(keys.size, len(obs)))
    frame = obs.iloc[first].reset_index(drop=True)
    for name in covariates:
        frame[name] = averages @ obs[name].to_numpy(float)
    wordings = np.zeros(keys.size, int)
    if template is not None:
        sets: list[set[str]] = [set() for _ in range(keys.size)]
        for index, wording in zip(row, obs[template].astype(str), strict=True):
            sets[index].add(wording)
        known: dict[frozenset[str], int] = {}
        wordings = np.array([known.setdefault(frozenset(found), len(known)) for found in sets], dtype=int)
    item_of, cell_of = keys // len(names), keys % len(names)
    table = ItemTable(None, None, None, tuple(map(str, labels)), names, item_of, cell_of, n_trials, wordings, frame)
    return table, averages


def filled(table: ItemTable, averages: sparse.csr_array, X: Any, transform: str, n_jobs: int = 1) -> ItemTable:
    """The table with the values of all features.

    Raises
    ------
    DataMismatch
        If activations and trials differ in number.
    """
    if X.shape[0] != averages.shape[1]:
        raise DataMismatch(f"the activations have {X.shape[0]} rows but the trial table has {averages.shape[1]}.")
    X = canonical_columns(X) if sparse.issparse(X) else X
    values = combine_rows(averages, X, TRANSFORMS[transform], n_jobs)
    shares = values if transform == "binary" else combine_rows(averages, X, TRANSFORMS["binary"], n_jobs)
    signed = TRANSFORMS[transform] is None and has_negative(X)
    sizes = combine_rows(averages, X, np.abs, n_jobs) if signed else values
    return replace(table, values=values, shares=shares, sizes=sizes)


def rows_by_item(table: ItemTable, cells: np.ndarray) -> np.ndarray:
    """Row of the table for each item and each of these cells; −1 where the item has none."""
    used = np.isin(table.cell_codes, cells)
    at = np.full((len(table.items), cells.size), -1)
    at[table.item_codes[used], np.searchsorted(cells, table.cell_codes[used])] = np.flatnonzero(used)
    return at
