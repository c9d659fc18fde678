"""How a named effect of a crossed design is tested, whichever of its factors vary within items.

Factors that vary within items are worked into each item's rows (averaged if they take no part in the effect), factors
that vary between items make groups of items; see `neurollm.designs.planning`. So a 2 × 2 design with both
factors within items becomes one ± score per item and effect, and with one factor between items the
interaction becomes a comparison of the items' differences between two groups.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from neurollm.designs.contrast import Contrast
from neurollm.designs.planning import (
    MIN_COMPLETE_SHARE,
    Between,
    ContrastPlan,
    Inside,
    centring,
    differences,
    joined,
    plan,
)
from neurollm.designs.table import ItemTable, rows_by_item
from neurollm.errors import InvalidInput
from neurollm.validation import listed, several

if TYPE_CHECKING:
    from neurollm.designs.cells import CellDesign


def plan_effect(design: CellDesign, table: ItemTable, contrast: Contrast) -> ContrastPlan:
    """Test the main effect or interaction `contrast.factors`."""
    levels = design.levels(table.obs)
    names = design.variables
    shape = tuple(len(levels[name]) for name in names)
    within = [name for name in names if _varies_within(design, table, shape, name, contrast)]
    between = [name for name in names if name not in within]
    cells = np.arange(int(np.prod(shape))).reshape(shape)
    order = [names.index(name) for name in (*between, *within)]
    grid = cells.transpose(order).reshape(int(np.prod([len(levels[name]) for name in between], dtype=int)), -1)
    at = rows_by_item(table, np.arange(cells.size))[:, grid]  # items × groups × cells within
    group = (at >= 0).sum(axis=2).argmax(axis=1)
    rows = at[np.arange(len(at)), group]
    complete = (rows >= 0).all(axis=1)
    present = np.bincount(group[complete], minlength=len(grid))
    if (present == 0).any() or complete.mean() < MIN_COMPLETE_SHARE:
        empty = next((table.cells[cell] for cell in cells.ravel() if cell not in table.cell_codes), None)
        why = f"no trial belongs to the cell '{empty}'" if empty else "too few items have all cells they need"
        raise InvalidInput(
            f"contrast '{contrast.name}': {why}; an effect needs every combination of {listed(names)} "
            "(write a contrast of the cells that exist instead)."
        )
    frame = design.frame(table, contrast, rows[complete], int((~complete).sum()))
    inside = _inside([name for name in within], levels, contrast.factors)
    compared = [name for name in between if name in contrast.factors]
    weights = reduce(np.kron, [_between_part(len(levels[n]), n in compared) for n in between], np.ones((1, 1)))
    halves = Between(group[complete], weights, compares=bool(compared))
    return plan(frame, inside, halves, _words(design, levels, within, between, contrast))


def _varies_within(design: CellDesign, table: ItemTable, shape: tuple, name: str, contrast: Contrast) -> bool:
    level = np.unravel_index(table.cell_codes, shape)[design.variables.index(name)]
    pairs = np.unique(np.stack([table.item_codes, level]), axis=1)
    several = np.bincount(pairs[0], minlength=len(table.items)) > 1
    if several.any() and several.mean() < MIN_COMPLETE_SHARE:
        raise InvalidInput(
            f"contrast '{contrast.name}': '{name}' varies within {int(several.sum())} of {several.size} values of "
            f"'{design.item or 'trial'}' and is constant in the others; it must vary in all of them or in none."
        )
    return bool(several.any())


def _inside(within: list[str], levels: dict[str, tuple[str, ...]], factors: tuple[str, ...]) -> Inside:
    """Average over factors that take no part, subtract two levels, centre more."""
    sizes = {name: len(levels[name]) for name in within}
    weights = space = np.ones((1, 1))
    many: list[int] = []
    for name in within:
        size = sizes[name]
        if name not in factors:
            part = np.full((1, size), 1 / size)
        elif size == 2:
            part = np.array([[1.0, -1.0]])
        else:
            part, space = centring(size), np.kron(space, differences(size))
            many.append(size)
        weights = np.kron(weights, part)
    return Inside(weights, space, np.eye(space.shape[1]), tuple(many))


def _between_part(size: int, compared: bool) -> np.ndarray:
    if not compared:
        return np.full((1, size), 1 / size)
    return np.array([[1.0, -1.0]]) if size == 2 else differences(size).T


def _words(design: CellDesign, levels: dict, within: list[str], between: list[str], contrast: Contrast) -> str:
    item = design.item or "trial"
    inside = [name for name in within if name in contrast.factors]
    outside = [name for name in between if name in contrast.factors]
    told = {name: f"{name} ({joined(levels[name])})" for name in contrast.factors}
    if not outside:
        return (
            f"{' and '.join(told[name] for name in inside)} {'varies' if len(inside) == 1 else 'vary'} in every {item}"
        )
    groups = f"{several(item)} differ in {' and '.join(told[name] for name in outside)}"
    if not inside:
        return groups[0].upper() + groups[1:]
    return (
        f"The difference in {' and '.join(told[name] for name in inside)} inside each {item} is compared, as {groups}"
    )
