"""Designs whose parameters are cell means: one factor, or several crossed ones.

A named effect of a crossed design is built from two-level differences [1, −1] and averages [½, ½] (for more
levels: orthonormal differences, an F contrast). For a 2 × 2 design with cell means m that is

* main effect of A: ½[(m11 + m12) − (m21 + m22)],
* interaction A:B: m11 − m12 − m21 + m22,

first level minus last; weights of means, not of trials, so unequal cells do not mix effects (type III).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs.base import Design
from neurollm.designs.contrast import Contrast
from neurollm.designs.effects import plan_effect
from neurollm.designs.planning import (
    MIN_COMPLETE_SHARE,
    Between,
    ContrastPlan,
    Frame,
    Inside,
    centring,
    differences,
    is_balanced,
    joined,
    plan,
)
from neurollm.designs.table import ItemTable, rows_by_item
from neurollm.errors import InvalidInput
from neurollm.validation import listed

if TYPE_CHECKING:
    import pandas as pd


class CellDesign(Design):
    """Common part of the designs over cells; see `CategoricalDesign` and `FactorialDesign`."""

    def levels(self, obs: pd.DataFrame) -> dict[str, tuple[str, ...]]:
        """Levels of every factor, in the order in which effects subtract them."""
        return {name: self.level_codes(obs, name, self._order(name))[0] for name in self.variables}

    @property
    def _alike(self) -> bool:
        """The null hypothesis of a contrast of cells says that all of them are alike; not so if they are crossed."""
        return len(self.variables) == 1

    def _order(self, name: str) -> Sequence[str]:
        return ()

    def cells(self, obs: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of all combinations of levels, joined by ``:``, and the number of each trial's cell."""
        coded = [self.level_codes(obs, name, self._order(name)) for name in self.variables]
        names = tuple(":".join(cell) for cell in itertools.product(*(levels for levels, _ in coded)))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"design: two cells would be called '{twice}'; rename levels that contain ':'.")
        codes = np.ravel_multi_index([codes for _, codes in coded], [len(levels) for levels, _ in coded])
        return names, codes

    def design_matrix(self, obs: pd.DataFrame) -> pd.DataFrame:
        """One 0/1 column per cell and one per covariate, one row per trial."""
        import pandas as pd

        names, codes = self.cells(obs)
        matrix = pd.DataFrame(np.eye(len(names))[codes], index=obs.index, columns=list(names))
        for name in self.covariates:
            self._numbers(obs, name)
            matrix[name] = obs[name].to_numpy(float)
        return matrix

    def contrast(self, spec: Any, obs: pd.DataFrame, name: str | None = None) -> Contrast:
        """Read a contrast: the name of an effect, or an expression over cells.

        Raises
        ------
        InvalidInput
            See `Contrast.parse`.
        """
        parameters = self.parameters(obs)
        if isinstance(spec, str) and spec.strip() not in parameters:
            effect = self._effect_named(spec.strip(), obs)
            if effect is not None:
                return Contrast.parse(effect, parameters, name)
        return Contrast.parse(spec, parameters, name)

    def _effect_named(self, text: str, obs: pd.DataFrame) -> Contrast | None:
        wanted = frozenset(part.strip() for part in text.split(":"))
        for effect in self.effects(obs).values():
            if wanted == frozenset(effect.factors):
                return effect
        return None

    def effect(self, factors: Sequence[str], obs: pd.DataFrame) -> Contrast:
        """The main effect of one factor, or the interaction of several."""
        levels = self.levels(obs)
        short = sorted(name for name in factors if len(levels[name]) < 2)
        if short:
            raise InvalidInput(
                f"design: the column '{short[0]}' has the single level {listed(levels[short[0]])}; "
                "nothing can be compared."
            )
        parts = [_coding(len(levels[name]), name in factors) for name in self.variables]
        matrix = reduce(np.kron, parts)
        name = ":".join(factors)
        expression = ", ".join(_effect_text(matrix, levels, factors))
        weights = tuple(tuple(float(weight) for weight in row) for row in matrix)
        return Contrast(name, expression, self.parameters(obs), weights, tuple(factors))

    def plan(self, table: ItemTable, contrast: Contrast) -> ContrastPlan:
        """How a contrast is tested on the item × cell table.

        Raises
        ------
        InvalidInput
            Conditions vary within some items and between others, a cell is empty, or too few items remain.
        """
        if contrast.factors and len(self.variables) > 1:
            return plan_effect(self, table, contrast)
        return self._plan_cells(table, contrast)

    def frame(self, table: ItemTable, contrast: Contrast, rows: np.ndarray, n_dropped: int = 0) -> Frame:
        """What the table brings to the test of a contrast on these rows (items × cells)."""
        covariates = table.obs[list(self.covariates)].to_numpy(float).reshape(table.n_rows, -1)
        covariates = covariates - covariates.mean(axis=0)  # a large offset, as of dates, would drown what varies
        blocks = None
        if self.blocks is not None:
            labels = table.obs[self.blocks].astype(str).to_numpy(str)
            blocks = np.unique(labels[rows[:, 0]], return_inverse=True)[1]
        return Frame(contrast.name, self.item or "trial", rows, covariates, blocks, table.n_rows, n_dropped)

    def _plan_cells(self, table: ItemTable, contrast: Contrast) -> ContrastPlan:
        """A contrast of cells that are compared directly; cells of weight zero lend neither items nor variance."""
        matrix = contrast.matrix
        active = np.flatnonzero(matrix.any(axis=0))
        matrix, names = matrix[:, active], [contrast.parameters[cell] for cell in active]
        at = rows_by_item(table, active)
        at = at[(at >= 0).any(axis=1)]
        n_present = (at >= 0).sum(axis=1)
        complete = n_present == active.size
        missing = np.flatnonzero(~(at >= 0).any(axis=0))
        if missing.size:
            raise InvalidInput(f"contrast '{contrast.name}': no trial belongs to '{names[missing[0]]}'.")
        item, told = self.item or "trial", joined(names)
        if (n_present == 1).all():
            groups = (at >= 0).argmax(axis=1)
            frame = self.frame(table, contrast, at.max(axis=1)[:, None])
            between = Between(groups, matrix, shuffled_along=self._alike, compares=True)
            return plan(frame, Inside.score(np.ones(1)), between, f"Each {item} has one of {told}")
        if complete.mean() < MIN_COMPLETE_SHARE:
            names_of_effects = "" if self._alike else f"; effects go by their names, {listed(self.effects(table.obs))}"
            raise InvalidInput(
                f"contrast '{contrast.name}': {int(complete.sum())} of {complete.size} values of '{item}' occur with "
                f"all of the levels {listed(names)} and the others with some; either every item must have all of "
                f"them (compared within items) or each item exactly one (compared between items){names_of_effects}."
            )
        frame = self.frame(table, contrast, at[complete], int((~complete).sum()))
        words = f"Every {item} has {'both ' if len(names) == 2 else ''}{told}"
        if contrast.rank == 1 and is_balanced(matrix[0]):
            inside = Inside.score(matrix)
        else:
            space = differences(active.size)
            inside = Inside(centring(active.size), space, matrix @ space, (active.size,))
        return plan(frame, inside, Between.none(int(complete.sum()), self._alike), words)

    def model_rdm(self, obs: pd.DataFrame, effect: str | None = None) -> np.ndarray:
        """0 for pairs of trials that the effect codes alike, 1 for those it codes most unlike.

        Parameters
        ----------
        obs : DataFrame
        effect : str, optional
            Name of an effect; default: of the first. For an interaction of two-level factors, trials are alike when
            the product of their codes is (the exclusive-or model).

        Returns
        -------
        ndarray, shape (n_trials, n_trials)
        """
        effects = self.effects(obs)
        chosen = next(iter(effects.values())) if effect is None else self._effect_named(effect, obs)
        if chosen is None:
            raise InvalidInput(f"model_rdm: the design has no effect '{effect}'; it has {listed(effects)}.")
        codes = _orthonormal_rows(chosen.matrix).T[self.cells(obs)[1]]
        return squared_distances(codes)


def _coding(size: int, tested: bool) -> np.ndarray:
    """Weights over the levels of a factor: differences if it is tested, else the average."""
    if not tested:
        return np.full((1, size), 1 / size)
    return np.array([[1.0, -1.0]]) if size == 2 else differences(size).T


def _orthonormal_rows(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.qr(matrix.T)[0].T


def _effect_text(matrix: np.ndarray, levels: dict[str, tuple[str, ...]], factors: Sequence[str]) -> list[str]:
    """The effect in words: a difference for two-level factors, else how many differences."""
    if len(matrix) == 1:
        return [
            " × ".join(f"({levels[name][0]} - {levels[name][-1]})" for name in factors)
            if len(factors) > 1
            else f"{levels[factors[0]][0]} - {levels[factors[0]][-1]}"
        ]
    return [f"all {len(matrix)} differences of {' × '.join(factors)}"]


def squared_distances(codes: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between rows, the largest set to 1."""
    size = (codes**2).sum(axis=1)
    distances = np.clip(size[:, None] + size - 2 * codes @ codes.T, 0, None)
    np.fill_diagonal(distances, 0)
    largest = distances.max(initial=0)
    return np.where(distances > 1e-12 * largest, distances / largest, 0.0) if largest else distances
