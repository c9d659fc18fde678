"""Designs that compare the levels of one factor, with the item as the unit of exchange.

Trials are averaged to item × level means first (over templates and every other factor):
wordings of one content are not independent observations. What may then be exchanged under
the null hypothesis follows from how levels and items cross, and from nothing else:

============================  ==============  =================================
the levels of the contrast    exchanged       scheme
============================  ==============  =================================
two, both in every item       signs           ``sign_flip``
three or more, in every item  labels in item  ``within_item``
one per item                  whole items     ``whole_item``
============================  ==============  =================================

Levels with weight zero are left out: they lend neither items to be exchanged nor variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.designs.contrast import Contrast
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.arrays import combine_rows
from neurollm.stats.shufflings import Shuffling, sign_flip, whole_item, within_item
from neurollm.stats.transforms import TRANSFORMS
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

MIN_COMPLETE_SHARE = 0.5  # with fewer complete items the design is mixed, not incomplete


@dataclass(frozen=True)
class Exchangeability:
    """What is exchanged under the null hypothesis, in data and in words."""

    kind: str
    unit: str
    n_units: int
    n_possible: int
    sentence: str


@dataclass(frozen=True)
class ItemTable:
    """Item × level means of all features (cells in the order of items, then levels).

    Attributes
    ----------
    values : CSC, ndarray or torch.Tensor, shape (n_cells, V)
        Float64, after the transform.
    shares : like `values`
        Share of the cell's trials in which the feature is not zero.
    items, levels : tuple of str
    item_codes, level_codes : ndarray of int, shape (n_cells,)
    n_trials : ndarray of int, shape (n_cells,)
        Trials averaged in each cell.
    """

    values: Any
    shares: Any
    items: tuple[str, ...]
    levels: tuple[str, ...]
    item_codes: np.ndarray
    level_codes: np.ndarray
    n_trials: np.ndarray


@dataclass(frozen=True)
class ContrastPlan:
    """How one contrast is tested on an item table.

    Attributes
    ----------
    cells : ndarray of int
        Rows of the item table that are used, item by item.
    item_codes, level_codes : ndarray of int
        Of those cells; level codes count the levels in the contrast only.
    weights : ndarray
        Weights of those levels.
    shuffling : Shuffling
    n_dropped : int
        Items left out because they miss a level.
    exchangeability : Exchangeability
    """

    cells: np.ndarray
    item_codes: np.ndarray
    level_codes: np.ndarray
    weights: np.ndarray
    shuffling: Shuffling
    n_dropped: int
    exchangeability: Exchangeability

    def selection(self, n_cells: int) -> sparse.csr_array:
        """Matrix that takes the used cells out of the item table."""
        shape = (self.cells.size, n_cells)
        return sparse.csr_array((np.ones(self.cells.size), (np.arange(self.cells.size), self.cells)), shape=shape)

    def differences(self) -> sparse.csr_array:
        """Matrix that turns the used cells into one weighted difference per item."""
        shape = (self.shuffling.n_items, self.cells.size)
        weights = self.weights[self.level_codes]
        return sparse.csr_array((weights, (self.item_codes, np.arange(self.cells.size))), shape=shape)


@dataclass(frozen=True)
class CategoricalDesign:
    """Compare the levels of one factor.

    Parameters
    ----------
    factor : str
        Column of the trial table whose levels are compared.
    item : str, default="item"
        Column that names the content of a trial: the unit that is exchanged and generalised over.
    covariates : tuple of str
        Must be empty in this version.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"outcome": ["success", "failure"] * 3, "item": list("aabbcc")})
    >>> CategoricalDesign("outcome").exchangeability(obs).kind
    'sign_flip'
    """

    factor: str
    item: str = "item"
    covariates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "covariates", tuple(self.covariates))
        if self.covariates:
            raise InvalidInput(
                f"design: covariates {listed(self.covariates)} were given, but this version tests contrasts without "
                "covariates only; remove them or match the stimuli on them."
            )
        if self.factor == self.item:
            raise InvalidInput(f"design: the factor and the item cannot both be the column '{self.item}'.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a design file."""
        return {"type": "categorical", "factor": self.factor, "item": self.item, "covariates": list(self.covariates)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> CategoricalDesign:
        """Inverse of `to_dict`."""
        fields = {key: value[key] for key in ("factor", "item", "covariates") if key in value}
        return cls(**fields)

    def levels(self, obs: pd.DataFrame) -> list[str]:
        """Levels that occur: in category order for a categorical column, else sorted."""
        column = self._column(obs, self.factor)
        present = set(column.astype(str))
        if hasattr(column, "cat"):
            return [str(level) for level in column.cat.categories if str(level) in present]
        return sorted(present)

    def design_matrix(self, obs: pd.DataFrame) -> pd.DataFrame:
        """One 0/1 column per level, one row per trial."""
        import pandas as pd

        labels = self._column(obs, self.factor).astype(str)
        return pd.DataFrame({level: (labels == level).astype(float) for level in self.levels(obs)}, index=obs.index)

    def items_table(self, X: Any, obs: pd.DataFrame, transform: str = "raw") -> ItemTable:
        """Average trials to item × level means.

        Parameters
        ----------
        X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_trials, V)
        obs : DataFrame
            One row per trial.
        transform : {"raw", "log1p", "binary"}
            Applied to every trial before averaging.

        Returns
        -------
        ItemTable
        """
        if X.shape[0] != len(obs):
            raise DataMismatch(f"the activations have {X.shape[0]} rows but the trial table has {len(obs)}.")
        items, levels, trial_items, trial_levels = self._codes(obs)
        keys, cell = np.unique(trial_items * len(levels) + trial_levels, return_inverse=True)
        n_trials = np.bincount(cell)
        averages = sparse.csr_array(
            (1 / n_trials[cell], (cell, np.arange(len(obs)))), shape=(keys.size, len(obs)), dtype=np.float64
        )
        values = combine_rows(averages, X, TRANSFORMS[transform])
        shares = values if transform == "binary" else combine_rows(averages, X, TRANSFORMS["binary"])
        return ItemTable(values, shares, items, levels, keys // len(levels), keys % len(levels), n_trials)

    def exchangeability(self, obs: pd.DataFrame, contrast: Any = None) -> Exchangeability:
        """What is exchanged for a contrast.

        Without a contrast the question is about all levels at once. It has no answer, and raises, in a design
        whose levels do not all cross the items alike (some within items, others between): give the contrast then.

        Parameters
        ----------
        obs : DataFrame
            One row per trial.
        contrast : str, mapping, sequence of numbers or Contrast, optional

        Raises
        ------
        InvalidInput
            As for `plan`, or the factor has one level.
        """
        _, levels, trial_items, trial_levels = self._codes(obs)
        if len(levels) < 2:
            raise InvalidInput(
                f"design: the column '{self.factor}' has the single level {listed(levels)}; nothing can be compared."
            )
        if contrast is None:
            contrast = [1.0] + [-1.0 / (len(levels) - 1)] * (len(levels) - 1)
        keys = np.unique(trial_items * len(levels) + trial_levels)
        contrast = Contrast.parse(contrast, levels)
        return self._plan(contrast, keys // len(levels), keys % len(levels)).exchangeability

    def plan(self, table: ItemTable, contrast: Contrast) -> ContrastPlan:
        """Choose the cells and the scheme of exchange for one contrast.

        Raises
        ------
        InvalidInput
            The factor varies within some items and between others, or too few items remain.
        """
        return self._plan(contrast, table.item_codes, table.level_codes)

    def _plan(self, contrast: Contrast, item_codes: np.ndarray, level_codes: np.ndarray) -> ContrastPlan:
        active = np.flatnonzero(contrast.weights)
        weights = np.array(contrast.weights)[active]
        used = np.isin(level_codes, active)
        cell_at = np.full((item_codes.max() + 1, active.size), -1)
        cell_at[item_codes[used], np.searchsorted(active, level_codes[used])] = np.flatnonzero(used)
        cell_at = cell_at[(cell_at >= 0).any(axis=1)]
        n_present = (cell_at >= 0).sum(axis=1)
        names = [contrast.levels[level] for level in active]
        complete = n_present == active.size
        between = bool((n_present == 1).all())
        if not between:
            self._check_crossing(complete, names, contrast)
            cell_at = cell_at[complete]
        items, levels = np.nonzero(cell_at >= 0)
        if between:
            shuffling = self._whole_items(levels, weights, names, contrast)
        else:
            if len(cell_at) < 2:
                raise InvalidInput(
                    f"contrast '{contrast.name}': only {len(cell_at)} item has all of the levels {listed(names)}; "
                    "at least 2 are needed."
                )
            shuffling = sign_flip(len(cell_at)) if active.size == 2 else within_item(len(cell_at), weights)
        dropped = 0 if between else int((~complete).sum())
        told = _describe(shuffling, names, self.item)
        return ContrastPlan(cell_at[items, levels], items, levels, weights, shuffling, dropped, told)

    def _check_crossing(self, complete: np.ndarray, names: Sequence[str], contrast: Contrast) -> None:
        if complete.mean() < MIN_COMPLETE_SHARE:
            raise InvalidInput(
                f"contrast '{contrast.name}': {int(complete.sum())} of {complete.size} values of '{self.item}' occur "
                f"with all of the levels {listed(names)} and the others with some; either every item must have all of "
                "them (compared within items) or each item exactly one (compared between items)."
            )

    def _whole_items(
        self, levels: np.ndarray, weights: np.ndarray, names: Sequence[str], contrast: Contrast
    ) -> Shuffling:
        if levels.size <= weights.size:
            raise InvalidInput(
                f"contrast '{contrast.name}': {levels.size} items for the {weights.size} levels {listed(names)} leave "
                f"no degrees of freedom; every level needs several values of '{self.item}' (items with only one level "
                "each are compared between items)."
            )
        return whole_item(levels, weights)

    def _codes(self, obs: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, np.ndarray]:
        levels = self.levels(obs)
        items, item_codes = np.unique(self._column(obs, self.item).astype(str).to_numpy(str), return_inverse=True)
        position = {level: code for code, level in enumerate(levels)}
        level_codes = self._column(obs, self.factor).astype(str).map(position).to_numpy(int)
        return tuple(str(item) for item in items), tuple(levels), item_codes, level_codes

    def _column(self, obs: pd.DataFrame, name: str) -> pd.Series:
        if name not in obs.columns:
            hint = closest(name, obs.columns) or "."
            raise InvalidInput(
                f"design: the trial table has no column '{name}'{hint} Its columns are {listed(obs.columns)}."
            )
        column = obs[name]
        if len(column) == 0:
            raise InvalidInput("design: the trial table is empty.")
        if column.isna().any():
            row = obs.index[int(np.argmax(column.isna().to_numpy()))]
            raise InvalidInput(
                f"design: column '{name}' is empty in {int(column.isna().sum())} trials, the first being '{row}'."
            )
        return column


def _describe(shuffling: Shuffling, names: Sequence[str], item: str) -> Exchangeability:
    n, possible = shuffling.n_items, shuffling.n_possible
    levels = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) <= 6 else f"the levels {listed(names)}"
    count = f"{possible:,}" if possible < 10**9 else f"about 10^{math.log10(possible):.0f}"
    text = {
        "sign_flip": f"Every {item} has both {levels}: the sign of the difference is flipped in each of the {n} items",
        "within_item": f"Every {item} has {levels}: these labels are exchanged inside each of the {n} items",
        "whole_item": f"Each {item} has one of {levels}: the labels are exchanged between the {n} items as wholes",
    }[shuffling.kind]
    return Exchangeability(shuffling.kind, "item", n, possible, f"{text} ({count} possible shufflings).")
