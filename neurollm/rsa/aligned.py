"""Item × condition means at every position, and what is exchanged where not every trial has every position.

A mean exists at a position only if all its trials do: otherwise long wordings would stand for all of them. An item
exists there if all its conditions do. Items change places only with items that exist at the same positions, so every
position keeps its own numbers of rows per condition under every arrangement: how long trials are is never what is
tested. Where length and condition go together completely, nothing can be exchanged, and that is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.designs import Design
from neurollm.designs.base import counted
from neurollm.errors import InvalidInput
from neurollm.rsa.exchange import Exchange, exchange
from neurollm.rsa.models import ModelRDM, Rows
from neurollm.rsa.rows import one_model
from neurollm.rsa.windows import Windows
from neurollm.stats.arrays import by_columns, combine_rows
from neurollm.stats.shufflings import Shuffling, whole_item, within_item
from neurollm.stats.transforms import TRANSFORMS
from neurollm.validation import several


@dataclass(frozen=True)
class AlignedRows:
    """Rows of an analysis over positions.

    Attributes
    ----------
    model : ModelRDM
        Over the rows.
    present : ndarray of bool, shape (n, T)
    averages : csr_array, shape (n, n_trials)
        Trials averaged in each row.
    weights : csr_array or None
        What is subtracted from the rows first; see `Exchange`.
    shuffling : Shuffling
        Of the rows.
    n_items, n_dropped : int
        Items that enter, and those without all conditions at any (for a whole window: at every) position.
    sentence : str
        What is exchanged.
    """

    model: ModelRDM
    present: np.ndarray
    averages: sparse.csr_array
    weights: sparse.csr_array | None
    shuffling: Shuffling
    n_items: int
    n_dropped: int
    sentence: str

    def values(self, windows: Windows, column: int, rows: np.ndarray, scale: str) -> tuple[Any, np.ndarray]:
        """Means of rows at a position, shape (n_rows, V), dense or CSC; and in how many each feature is active."""
        chosen = self.averages[rows].tocoo()
        tokens = windows.rows[chosen.col, column]
        shape = (rows.size, windows.data.shape[0])
        means = combine_rows(
            sparse.csr_array((chosen.data, (chosen.row, tokens)), shape=shape), windows.data, TRANSFORMS[scale]
        )
        n_active = np.diff(means.indptr) if sparse.issparse(means) else np.count_nonzero(means, axis=0)
        if self.weights is not None:
            means = combine_rows(self.weights[rows][:, rows], means)
        return by_columns(means), n_active

    def n_trials(self, rows: np.ndarray) -> int:
        """Trials averaged in these rows."""
        return int(np.diff(self.averages.indptr)[rows].sum())


def aligned_rows(design: Design, windows: Windows, model: str | ModelRDM, whole: bool) -> AlignedRows:
    """Rows, model and exchange for trials by positions.

    Parameters
    ----------
    design : Design
    windows : Windows
    model : str or ModelRDM
        See `neurollm.rsa.models`.
    whole : bool
        Only items that exist at every position.

    Returns
    -------
    AlignedRows

    Raises
    ------
    InvalidInput
        No item exists, the model is unknown or stands for several, or nothing can be exchanged.
    """
    table = design.table(windows.obs)
    rows = Rows.of(design, windows.obs, table)
    chosen = one_model(model, rows)
    how = exchange(design, table, chosen)
    n_present = np.zeros((table.n_rows, len(windows.positions)), int)
    np.add.at(n_present, rows.row, windows.present)
    width = how.shuffling.rows_per_item
    items = (n_present == table.n_trials[:, None])[how.rows].reshape(-1, width, len(windows.positions)).all(axis=1)
    kept = items.all(axis=1) if whole else items.any(axis=1)
    unit = several(design.item or "trial")
    if not kept.any():
        raise InvalidInput(
            f"time-resolved RSA: none of the {len(items)} {unit} has all its trials at "
            f"{'all positions' if whole else 'any position'} of the span; choose a shorter one."
        )
    patterns = np.unique(items[kept], axis=0, return_inverse=True)[1].ravel()
    shuffling = _kept_shuffling(how.shuffling, kept, patterns)
    if shuffling.n_possible < 2:
        raise InvalidInput(
            f"time-resolved RSA: {unit} that exist at the same positions do not differ in condition, so nothing can be "
            "exchanged: the length of the trials says what their condition is; choose a span that all of them have."
        )
    inside = np.flatnonzero(np.repeat(kept, width))
    weights = None if how.weights is None else how.weights[inside][:, inside]
    taken = how.rows[inside]
    order = np.argsort(rows.row, kind="stable")
    sizes = table.n_trials
    averages = sparse.csr_array(
        (1 / sizes[rows.row[order]], order, np.concatenate([[0], np.cumsum(sizes)])),
        shape=(table.n_rows, len(rows.row)),
    )[taken]
    matrix = chosen.matrix[np.ix_(taken, taken)]
    return AlignedRows(
        model=ModelRDM(chosen.name, matrix, chosen.description, chosen.factors),
        present=np.repeat(items[kept], width, axis=0),
        averages=averages,
        weights=weights,
        shuffling=shuffling,
        n_items=int(kept.sum()),
        n_dropped=how.n_dropped + int((~kept).sum()),
        sentence=_told(how, shuffling, unit, int(kept.sum()), patterns),
    )


def _kept_shuffling(scheme: Shuffling, kept: np.ndarray, patterns: np.ndarray) -> Shuffling:
    """The same exchange of the items that are left, between those with the same positions."""
    if scheme.kind == "within_item":
        return within_item(int(kept.sum()), scheme.shape)
    codes, blocks = np.array(scheme.codes)[kept], np.array(scheme.blocks)[kept]
    blocks = np.unique(np.stack([blocks, patterns]), axis=1, return_inverse=True)[1].ravel()
    return whole_item(codes, blocks, scheme.rows_per_item)


def _told(how: Exchange, shuffling: Shuffling, unit: str, n: int, patterns: np.ndarray) -> str:
    words = f"conditions are exchanged inside each of the {n} {unit}"
    if shuffling.kind == "whole_item":
        words = f"the {n} {unit} are exchanged as wholes"
        if patterns.max() > 0:
            words += ", only between those that exist at the same positions"
    return f"{words} ({counted(shuffling.n_possible)} possible shufflings)"
