"""Cell means of items and their intervals.

Between items the interval of a cell is that of a mean of items. Where an item has several cells, the differences
between items do not enter the comparison of its cells, so they do not belong into the bars either: an item's mean is
taken from its values and the mean of all items put back (Cousineau 2005), and the variance is multiplied by
M/(M − 1) for M cells per item (Morey 2008). Such an interval is about differences within items; for groups of items
it says nothing about their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from neurollm.designs import FactorialDesign, ItemTable

if TYPE_CHECKING:
    import pandas as pd

WITHIN, BETWEEN = "within items (Cousineau–Morey)", "between items"


def cell_groups(table: ItemTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """Items that have the same cells: the cells, and the rows of the table as items × cells.

    Items that lack a cell which others of their group have are left out.
    """
    present = np.full((len(table.items), len(table.cells)), -1)
    present[table.item_codes, table.cell_codes] = np.arange(table.n_rows)
    counts = (present >= 0).sum(axis=1)
    whole = present[counts == counts.max()]
    groups = []
    for pattern in np.unique(whole >= 0, axis=0)[::-1]:
        cells = np.flatnonzero(pattern)
        groups.append((cells, whole[((whole >= 0) == pattern).all(axis=1)][:, cells]))
    return groups


def cell_intervals(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of cells over items and their intervals.

    Parameters
    ----------
    values : ndarray, shape (n_items, M, C)
        Means of every item's M cells in C columns.
    confidence : float, default=0.95

    Returns
    -------
    mean, low, high : ndarray, shape (M, C)
        Without an interval (NaN) for a single item.

    Examples
    --------
    >>> values = np.array([[[1.0], [2.0]], [[11.0], [12.0]], [[21.0], [22.0]]])  # items differ, cells by 1 in each
    >>> mean, low, high = cell_intervals(values)
    >>> (mean.ravel().tolist(), (high - low).ravel().tolist())
    ([11.0, 12.0], [0.0, 0.0])
    """
    n, m = values.shape[:2]
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    if m > 1:
        values = values - values.mean(axis=1, keepdims=True) + values.mean(axis=(0, 1))
    se = values.std(axis=0, ddof=1) * np.sqrt(m / (m - 1) if m > 1 else 1.0) / np.sqrt(n)
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * se
    return mean, mean - half, mean + half


def cell_frames(
    table: ItemTable, design: FactorialDesign, features: Sequence[Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cell means with intervals, and the items' own means, in long form.

    Parameters
    ----------
    table : ItemTable
        With dense values of these columns.
    design : FactorialDesign
    features : sequence, length C

    Returns
    -------
    cells : DataFrame
        ``column``, one column per factor, ``mean, ci_low, ci_high, n_items, interval``.
    items : DataFrame
        ``column, item``, one column per factor, ``mean``.
    """
    import itertools

    import pandas as pd

    levels = design.levels(table.obs)
    names = list(itertools.product(*levels.values()))
    features, labels = np.asarray(features), np.array(table.items)
    values, cells, items, order = np.asarray(table.values, float), [], [], []
    for numbers, rows in cell_groups(table):
        own = values[rows]
        mean, low, high = cell_intervals(own)
        item = labels[table.item_codes[rows[:, 0]]]
        for place, number in enumerate(numbers):
            cell = dict(zip(levels, names[number], strict=True))
            told = {"n_items": len(rows), "interval": WITHIN if len(numbers) > 1 else BETWEEN}
            interval = {"mean": mean[place], "ci_low": low[place], "ci_high": high[place]}
            cells.append(pd.DataFrame({"column": features, **cell, **interval, **told}))
            order.append(len(table.cells) * np.arange(len(features)) + number)
            flat = {"column": np.repeat(features, len(item)), "item": np.tile(item, len(features))}
            items.append(pd.DataFrame({**flat, **cell, "mean": own[:, place].T.ravel()}))
    frame = pd.concat(cells, ignore_index=True).iloc[np.argsort(np.concatenate(order), kind="stable")]
    return frame.reset_index(drop=True), pd.concat(items, ignore_index=True)
