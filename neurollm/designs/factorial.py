"""Designs that cross two or more factors: main effects and interactions, not only cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neurollm.designs.cells import CellDesign
from neurollm.designs.contrast import Contrast
from neurollm.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

MAX_FACTORS = 5


@dataclass(frozen=True)
class FactorialDesign(CellDesign):
    """Cross factors of two or more levels each.

    Contrasts are the effects by name (``"formality"``, ``"formality:emotion"``) or expressions over cells
    (``"formal:sad - formal:glad"``). Each factor may vary within items or between them.

    Parameters
    ----------
    factors : sequence of str, or mapping from str to sequence of str
        Columns; with a mapping also the order of their levels. Effects of two-level factors are first minus last.
    item, item_reason, covariates, template, blocks
        See `Design`.

    Examples
    --------
    >>> import pandas as pd
    >>> cells = [("formal", "sad"), ("formal", "glad"), ("casual", "sad"), ("casual", "glad")]
    >>> obs = pd.DataFrame(cells * 3, columns=["formality", "emotion"]).assign(item=[i // 4 for i in range(12)])
    >>> design = FactorialDesign({"formality": ["formal", "casual"], "emotion": ["sad", "glad"]})
    >>> list(design.effects(obs))
    ['formality', 'emotion', 'formality:emotion']
    >>> design.effects(obs)["formality:emotion"].weights
    ((1.0, -1.0, -1.0, 1.0),)
    """

    factors: Sequence[str] | Mapping[str, Sequence[str]]

    type: ClassVar[str] = "factorial"

    def __post_init__(self) -> None:
        if isinstance(self.factors, Mapping):
            fixed = tuple((str(name), tuple(map(str, levels))) for name, levels in self.factors.items())
        elif isinstance(self.factors, str):
            raise InvalidInput(f"design: factors must be a list of columns, found the text {self.factors!r}.")
        else:
            fixed = tuple(
                (str(entry), ()) if isinstance(entry, str) else (str(entry[0]), tuple(entry[1]))
                for entry in self.factors
            )
        object.__setattr__(self, "factors", fixed)
        if not 2 <= len(fixed) <= MAX_FACTORS:
            raise InvalidInput(
                f"design: a factorial design crosses 2 to {MAX_FACTORS} factors, found {len(fixed)}"
                + ("; use a categorical design for one." if len(fixed) == 1 else ".")
            )
        for name, levels in fixed:
            if ":" in name:
                raise InvalidInput(
                    f"design: the factor {name!r} contains ':', which joins the names of an interaction."
                )
            if levels and (len(set(levels)) != len(levels) or len(levels) < 2):
                raise InvalidInput(f"design: the levels of '{name}' must be two or more different names.")
        super().__post_init__()

    @property
    def variables(self) -> tuple[str, ...]:
        """The factors' columns."""
        return tuple(name for name, _ in self.factors)

    def _order(self, name: str) -> Sequence[str]:
        return dict(self.factors)[name]

    def effects(self, obs: pd.DataFrame) -> dict[str, Contrast]:
        """Main effects, then interactions of two, three, … factors."""
        chosen = [
            factors
            for size in range(1, len(self.variables) + 1)
            for factors in itertools.combinations(self.variables, size)
        ]
        return {":".join(factors): self.effect(factors, obs) for factors in chosen}

    def to_dict(self) -> dict:
        """Plain data, as in a design file."""
        plain = super().to_dict()
        ordered = any(levels for _, levels in self.factors)
        plain["factors"] = {name: list(levels) for name, levels in self.factors} if ordered else list(self.variables)
        return plain
