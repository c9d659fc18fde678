"""The rows of a contrast's feature table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.sides import compares_cells, contrast_sides, decisive_p, has_sides, side_name
from neurollm.reporting.contexts import Context
from neurollm.reporting.formatting import is_number

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult

SHARED = (
    "feature", "effect", "effect_low", "effect_high", "effect_size", "effect_size_low", "effect_size_high",
    "stat", "df", "p", "q", "p_fwer", "p_step_down", "n_active_items",
)  # fmt: skip
"""Fields of every row, as named in the result."""
MOST_GROUPS = 4
"""Conditions that get columns of their own; of more, the strongest of each feature are named."""
STRONGEST = 3


@dataclass(frozen=True)
class Groups:
    """Conditions with the same weight in a contrast, taken together: its levels, sides or cells.

    Attributes
    ----------
    names : tuple of str
    rate, magnitude : ndarray, shape (number of groups, V)
    """

    names: tuple[str, ...]
    rate: np.ndarray
    magnitude: np.ndarray

    @property
    def has_columns(self) -> bool:
        """Whether there are few enough for columns."""
        return len(self.names) <= MOST_GROUPS


@dataclass(frozen=True)
class FeatureRow:
    """One feature of one contrast.

    Attributes
    ----------
    values : dict
        By the names in `SHARED`, and ``rate_0, magnitude_0, …`` in the order of the groups.
    strongest : list of (str, float, float)
        Name, rate and magnitude of the strongest groups, where there are too many for columns.
    """

    feature: int
    values: dict[str, float | int | None]
    significant: bool
    strongest: list[tuple[str, float | None, float | None]] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)

    def __getitem__(self, name: str) -> float | int | None:
        return self.values[name]


def condition_groups(result: ContrastResult) -> Groups:
    """Rates and magnitudes of what the contrast compares: two sides, else the conditions that it tells apart."""
    if has_sides(result):
        sides = result.sides()
        return Groups(
            contrast_sides(result.contrast),
            np.stack([sides.rate_positive, sides.rate_negative]),
            np.stack([sides.magnitude_positive, sides.magnitude_negative]),
        )
    if not compares_cells(result):
        return Groups(result.conditions, result.rate, result.magnitude)
    weights = dict(zip(result.contrast.parameters, map(tuple, result.contrast.matrix.T), strict=True))
    members: dict[tuple, list[int]] = {}
    for index, name in enumerate(result.conditions):
        members.setdefault(weights[name], []).append(index)
    mean, rate = (
        np.stack([values[alike].mean(axis=0) for alike in members.values()]) for values in (result.mean, result.rate)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitude = np.where(rate > 0, mean / rate, np.nan)
    names = [side_name([result.conditions[index] for index in alike], result.contrast) for alike in members.values()]
    return Groups(tuple(names), rate, magnitude)


def feature_row(
    result: ContrastResult, index: int, alpha: float, groups: Groups, contexts: list[Context]
) -> FeatureRow:
    """The row of the feature at `index` (its place in the result's arrays)."""
    values = {name: _plain(getattr(result, name)[index]) for name in SHARED}
    decisive = _plain(decisive_p(result)[0][index])
    pairs = [(_plain(r), _plain(m)) for r, m in zip(groups.rate[:, index], groups.magnitude[:, index], strict=True)]
    strongest = []
    if groups.has_columns:
        for number, (rate, magnitude) in enumerate(pairs):
            values |= {f"rate_{number}": rate, f"magnitude_{number}": magnitude}
    else:
        mean = np.array([(rate or 0) * (magnitude or 0) for rate, magnitude in pairs])
        order = np.argsort(-mean, kind="stable")[:STRONGEST]
        strongest = [(groups.names[number], *pairs[number]) for number in order]
    significant = decisive is not None and decisive <= alpha
    return FeatureRow(int(result.feature[index]), values, significant, strongest, contexts)


def table_data(rows: list[FeatureRow], groups: Groups, size: str) -> dict[str, Any]:
    """The table at full precision, for sorting and copying; what is not finite is null.

    Parameters
    ----------
    rows : list of FeatureRow
    groups : Groups
    size : str
        What the effect size is called in the heading of a copied table.
    """
    keys = list(rows[0].values) if rows else list(SHARED)
    titles = [_title(key, groups.names).replace("effect_size", size) for key in keys]
    return {"columns": keys, "titles": titles, "rows": [[row[key] for key in keys] for row in rows]}


def _title(key: str, names: tuple[str, ...]) -> str:
    """A column's name in a copied table: one line, with the name of its group."""
    kind, _, number = key.partition("_")
    return f"{kind}[{' '.join(names[int(number)].split())}]" if number.isdigit() else key


def _plain(value: Any) -> float | int | None:
    """A number for JSON."""
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if is_number(value) else None
