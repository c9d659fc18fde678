"""What every design has: the unit of exchange, covariates, blocks, and the columns they stand in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neurollm.designs.contrast import Contrast
from neurollm.designs.table import ItemTable, average_trials, filled
from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.designs.planning import ContrastPlan


@dataclass(frozen=True)
class Exchangeability:
    """What is exchanged under the null hypothesis, in data and in words.

    Attributes
    ----------
    kind : {"sign_flip", "within_item", "whole_item"}
    unit : str
        What is exchanged as a whole or within: the column of the item, or ``"trial"`` without items.
    n_units : int
    n_possible : int
        Distinct shufflings, exactly.
    sentence : str
    residuals : bool
        Residuals of what is held constant are exchanged (Freedman & Lane 1983): the test is approximate.
    """

    kind: str
    unit: str
    n_units: int
    n_possible: int
    sentence: str
    residuals: bool = False


@dataclass(frozen=True, kw_only=True)
class Design(ABC):
    """Common part of all designs.

    Parameters
    ----------
    item : str or None, default="item"
        Column that names the content of a trial: the unit that is exchanged and generalised over. None makes
        every trial a unit of its own, and needs `item_reason`.
    item_reason : str, default=""
        Why trials are independent observations, for the report; only with ``item=None``.
    covariates : sequence of str
        Numeric columns that are held constant (averaged like the activations).
    template : str, optional
        Column that names the wording; averaged over, and checked to be the same in all conditions of an item.
    blocks : str, optional
        Column of exchangeability blocks: whole items are exchanged only within a block. Every item lies in one.
    """

    item: str | None = "item"
    item_reason: str = ""
    covariates: tuple[str, ...] = ()
    template: str | None = None
    blocks: str | None = None

    type: ClassVar[str]

    def __post_init__(self) -> None:
        if isinstance(self.covariates, str):
            raise InvalidInput(f"design: covariates must be a list of columns, found the text {self.covariates!r}.")
        object.__setattr__(self, "covariates", tuple(self.covariates))
        if self.item is None and not self.item_reason.strip():
            raise InvalidInput(
                "design: item is none, so every trial would count as an independent observation; give the item's "
                "column, or write down in item_reason why trials are independent."
            )
        if self.item is not None and self.item_reason:
            raise InvalidInput("design: item_reason is only for a design without items; remove it or set item to none.")
        roles = [*self.variables, *self.covariates, *filter(None, (self.item, self.template, self.blocks))]
        twice = sorted({name for name in roles if roles.count(name) > 1})
        if twice:
            raise InvalidInput(f"design: the column {listed(twice)} is given two roles; a column has one.")

    @property
    @abstractmethod
    def variables(self) -> tuple[str, ...]:
        """Columns whose values are compared."""

    @abstractmethod
    def cells(self, obs: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of all cells, and the number of each trial's cell."""

    @abstractmethod
    def design_matrix(self, obs: pd.DataFrame) -> pd.DataFrame:
        """The model's columns, one row per trial."""

    @abstractmethod
    def contrast(self, spec: Any, obs: pd.DataFrame, name: str | None = None) -> Contrast:
        """Read a contrast in the words of this design (see `Contrast.parse`)."""

    @abstractmethod
    def effects(self, obs: pd.DataFrame) -> dict[str, Contrast]:
        """The questions that the design asks by itself, by name."""

    @abstractmethod
    def model_rdm(self, obs: pd.DataFrame, effect: str | None = None) -> np.ndarray:
        """The dissimilarity that the design predicts for every pair of trials, shape (n_trials, n_trials).

        Between 0 and 1 with a zero diagonal; NaN for pairs of which the design says nothing.
        """

    @abstractmethod
    def plan(self, table: ItemTable, contrast: Contrast) -> ContrastPlan:
        """How a contrast is tested on the item × cell table: rows, model, and what is exchanged."""

    def parameters(self, obs: pd.DataFrame) -> tuple[str, ...]:
        """Names that a contrast may use."""
        return self.cells(obs)[0]

    def table(self, obs: pd.DataFrame, X: Any = None, transform: str = "raw", n_jobs: int = 1) -> ItemTable:
        """Average trials to item × cell means.

        Parameters
        ----------
        obs : DataFrame
            One row per trial.
        X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_trials, V), optional
            Without it the table describes the design only.
        transform : {"raw", "log1p", "binary"}
            Applied to every trial before averaging.
        n_jobs : int, default=1
            Threads over features; -1 for all cores.

        Returns
        -------
        ItemTable

        Raises
        ------
        InvalidInput
            A column is missing, empty somewhere, or not of the kind its role needs.
        """
        names, cells = self.cells(obs)
        for name in self.covariates:
            self._numbers(obs, name)
        items = self.item_labels(obs)
        if self.blocks is not None:
            self._check_blocks(obs, items)
        if self.template is not None:
            self.column(obs, self.template)
        table, averages = average_trials(obs, (items, cells), names, self.covariates, self.template)
        return table if X is None else filled(table, averages, X, transform, n_jobs)

    def item_labels(self, obs: pd.DataFrame) -> np.ndarray:
        """Every trial's item (its own number without items)."""
        if self.item is None:
            width = len(str(len(obs)))
            return np.array([f"{index:0{width}d}" for index in range(len(obs))])
        return self.column(obs, self.item).astype(str).to_numpy(str)

    def exchangeability(self, obs: pd.DataFrame, contrast: Any = None) -> Exchangeability:
        """What is exchanged for a contrast (default: the first question that the design asks by itself).

        Raises
        ------
        InvalidInput
            The contrast cannot be read, estimated, or tested by an exchange.
        """
        if contrast is None:
            contrast = next(iter(self.effects(obs).values()))
        return self.plan(self.table(obs), self.contrast(contrast, obs)).exchangeability

    def explain(self, obs: pd.DataFrame, contrasts: dict[str, Any] | None = None) -> str:
        """The design in words: one paragraph per contrast (default: its own questions).

        Examples
        --------
        >>> import pandas as pd
        >>> from neurollm.designs import CategoricalDesign
        >>> obs = pd.DataFrame({"outcome": ["good", "bad"] * 3, "item": list("aabbcc")})
        >>> print(CategoricalDesign("outcome").explain(obs))
        outcome: bad - good. Every item has both bad and good: the sign of the difference is flipped in each of \
the 3 items (8 possible shufflings).
        """
        contrasts = self.effects(obs) if contrasts is None else contrasts
        table, lines = self.table(obs), []
        for name, spec in contrasts.items():
            contrast = self.contrast(spec, obs, name)
            plan = self.plan(table, contrast)
            lines.append(f"{contrast.name}: {contrast.expression}. {plan.exchangeability.sentence}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a design file (defaults left out)."""
        from dataclasses import fields

        plain = {"type": self.type}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "item" or value != field.default:
                plain[field.name] = _plain(value)
        return plain

    def column(self, obs: pd.DataFrame, name: str) -> pd.Series:
        """A column of the trial table, which must be there and complete."""
        if name not in obs.columns:
            hint = closest(name, obs.columns) or "."
            raise InvalidInput(
                f"design: the trial table has no column '{name}'{hint} Its columns are {listed(obs.columns)}."
            )
        column = obs[name]
        if column.ndim > 1:
            raise InvalidInput(f"design: the trial table has {column.shape[1]} columns '{name}'; rename all but one.")
        if len(column) == 0:
            raise InvalidInput("design: the trial table is empty.")
        if column.isna().any():
            row = obs.index[int(np.argmax(column.isna().to_numpy()))]
            raise InvalidInput(
                f"design: column '{name}' is empty in {int(column.isna().sum())} trials, the first being '{row}'."
            )
        return column

    def level_codes(
        self, obs: pd.DataFrame, name: str, order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """Levels of a factor (in the given order, else category order, else sorted) and every trial's level."""
        column = self.column(obs, name)
        labels = column.astype(str)
        present = set(labels)
        if order:
            unknown = sorted(present - set(order))
            if unknown:
                raise InvalidInput(
                    f"design: '{name}' has the value {listed(unknown)}, but its levels are {listed(order)}."
                )
            levels = tuple(order)
        elif hasattr(column, "cat"):
            levels = tuple(str(level) for level in column.cat.categories if str(level) in present)
        else:
            levels = tuple(sorted(present))
        position = {level: code for code, level in enumerate(levels)}
        return levels, labels.map(position).to_numpy(int)

    def _numbers(self, obs: pd.DataFrame, name: str) -> None:
        column = self.column(obs, name)
        try:
            finite = np.isfinite(column.to_numpy(float)).all()
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise InvalidInput(
                f"design: the covariate '{name}' must hold finite numbers, found {column.iloc[0]!r}; "
                "code categories as a factor instead."
            )

    def _check_blocks(self, obs: pd.DataFrame, items: np.ndarray) -> None:
        blocks = self.column(obs, self.blocks).astype(str).to_numpy(str)
        pairs = np.unique(np.stack([items, blocks]), axis=1)
        names, counts = np.unique(pairs[0], return_counts=True)
        if (counts > 1).any():
            raise InvalidInput(
                f"design: the item '{names[counts > 1][0]}' lies in {counts.max()} values of '{self.blocks}'; "
                "items are exchanged as wholes within blocks, so every item must lie in one."
            )


def counted(possible: int) -> str:
    """A number of shufflings in words."""
    return f"{possible:,}" if possible < 10**9 else f"about 10^{math.log10(possible):.0f}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value
