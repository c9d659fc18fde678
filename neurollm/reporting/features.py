"""The rows of a contrast's feature table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.reporting.contexts import Context
from neurollm.reporting.formatting import is_number

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult

COLUMNS = (
    "feature",
    "effect",
    "effect_ci_low",
    "effect_ci_high",
    "effect_size",
    "effect_size_ci_low",
    "effect_size_ci_high",
    "rate_positive",
    "rate_negative",
    "magnitude_positive",
    "magnitude_negative",
    "stat",
    "df",
    "p_value",
    "p_fwer",
)
"""Fields of a row, as named in the result's own table."""


@dataclass(frozen=True)
class FeatureRow:
    """One feature of one contrast."""

    feature: int
    values: dict[str, float | int | None]
    significant: bool
    contexts: list[Context] = field(default_factory=list)

    def __getitem__(self, name: str) -> float | int | None:
        return self.values[name]


def feature_row(result: ContrastResult, index: int, alpha: float, contexts: list[Context]) -> FeatureRow:
    """The row of the feature at `index` (its place in the result's arrays)."""
    values = {name: _plain(getattr(result, name), index) for name in COLUMNS}
    return FeatureRow(
        feature=int(result.feature[index]),
        values=values,
        significant=bool(is_number(values["p_fwer"]) and values["p_fwer"] <= alpha),
        contexts=contexts,
    )


def table_data(rows: list[FeatureRow]) -> dict[str, Any]:
    """The table at full precision, for sorting and copying; what is not finite is null."""
    return {"columns": list(COLUMNS), "rows": [[row[name] for name in COLUMNS] for row in rows]}


def _plain(values: Any, index: int) -> float | int | None:
    """One entry of an array (or a scalar that holds for all features) as a JSON number."""
    value = values if np.ndim(values) == 0 else np.asarray(values)[index]
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if is_number(value) else None
