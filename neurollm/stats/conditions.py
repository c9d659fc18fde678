"""What lies behind a difference of means: how often a feature is active, and how strongly when it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.stats.arrays import combine_rows, dense


@dataclass(frozen=True)
class Conditions:
    """Means, activation rates and magnitudes of C conditions, for V features.

    ``mean = rate × magnitude``: `rate` is the share of trials in which the feature is not zero, averaged over item ×
    condition cells like the mean, and `magnitude` is ``mean / rate``: the mean of the active trials where cells have
    equally many trials (NaN if there is none).

    Attributes
    ----------
    mean, rate, magnitude : ndarray, shape (C, V)
    n_active_items : ndarray of int, shape (V,)
        Items with an active trial in any of the conditions.
    """

    mean: np.ndarray
    rate: np.ndarray
    magnitude: np.ndarray
    n_active_items: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Conditions]) -> Conditions:
        """The conditions of the features of all parts."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def conditions(values: Any, shares: Any, cell_codes: np.ndarray, item_codes: np.ndarray) -> Conditions:
    """Describe the conditions of an item × condition table.

    Parameters
    ----------
    values, shares : array of any supported kind, shape (n, V)
        Means of the rows, and share of active trials in each.
    cell_codes, item_codes : ndarray of int, shape (n,)
        Condition (0 … C−1, each present) and item of every row.

    Returns
    -------
    Conditions
    """
    counts = np.bincount(cell_codes)
    rows = np.arange(cell_codes.size)
    averages = sparse.csr_array((1 / counts[cell_codes], (cell_codes, rows)))
    items = np.unique(item_codes, return_inverse=True)[1]
    by_item = sparse.csr_array((np.ones(items.size), (items, rows)))
    mean, rate = dense(combine_rows(averages, values)), dense(combine_rows(averages, shares))
    active = combine_rows(by_item, shares)
    if sparse.issparse(active):
        n_active = np.diff(active.indptr)  # exact zeros are not stored
    else:
        n_active = np.asarray((active != 0).sum(0)) if isinstance(active, np.ndarray) else dense((active != 0).sum(0))
    with np.errstate(invalid="ignore"):
        magnitude = np.where(rate > 0, mean / np.where(rate > 0, rate, 1), np.nan)
    return Conditions(mean, rate, magnitude, n_active.astype(np.int64))
