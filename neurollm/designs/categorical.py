"""Designs that compare the levels of one factor: all of them, or one with the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neurollm.designs.cells import CellDesign
from neurollm.designs.contrast import Contrast
from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CategoricalDesign(CellDesign):
    """Compare the levels of one factor.

    Parameters
    ----------
    factor : str
        Column of the trial table whose levels are compared.
    item, item_reason, covariates, template, blocks
        See `Design`.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"outcome": ["success", "failure"] * 3, "item": list("aabbcc")})
    >>> CategoricalDesign("outcome").exchangeability(obs).kind
    'sign_flip'
    """

    factor: str

    type: ClassVar[str] = "categorical"

    @property
    def variables(self) -> tuple[str, ...]:
        """The factor."""
        return (self.factor,)

    def effects(self, obs: pd.DataFrame) -> dict[str, Contrast]:
        """Whether levels differ at all: a difference for two levels, an F contrast for more."""
        return {self.factor: self.effect((self.factor,), obs)}


@dataclass(frozen=True)
class DiscriminativeDesign(CellDesign):
    """Compare one level of a factor with all others.

    The contrast is the target's mean minus the mean of the other levels' means. Trials of other levels are not
    expected to resemble each other: the model RDM says nothing of their pairs.

    Parameters
    ----------
    factor : str
    target : str
        The level.
    item, item_reason, covariates, template, blocks
        See `Design`.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"emotion": ["joy", "fear", "anger"] * 3, "item": list("aaabbbccc")})
    >>> design = DiscriminativeDesign("emotion", "joy")
    >>> design.effects(obs)["joy - others"].weights
    ((-0.5, -0.5, 1.0),)
    >>> design.model_rdm(obs)[0, 1:3].tolist(), design.model_rdm(obs)[1, 2:5].tolist()
    ([1.0, 1.0], [nan, 1.0, nan])
    """

    factor: str
    target: str

    type: ClassVar[str] = "discriminative"

    @property
    def variables(self) -> tuple[str, ...]:
        """The factor."""
        return (self.factor,)

    def effects(self, obs: pd.DataFrame) -> dict[str, Contrast]:
        """The target against the others."""
        levels = self.levels(obs)[self.factor]
        if self.target not in levels:
            hint = closest(self.target, levels) or "."
            raise InvalidInput(
                f"design: the target '{self.target}' is no level of '{self.factor}'{hint} "
                f"Its levels are {listed(levels)}."
            )
        if len(levels) < 2:
            raise InvalidInput(f"design: the column '{self.factor}' has the single level '{self.target}'.")
        weights = {level: 1.0 if level == self.target else -1.0 / (len(levels) - 1) for level in levels}
        parsed = Contrast.parse(weights, levels)
        name = f"{self.target} - others"
        return {name: Contrast(name, parsed.expression, parsed.parameters, parsed.weights)}

    def contrast(self, spec: Any, obs: pd.DataFrame, name: str | None = None) -> Contrast:
        """Read a contrast; the target's name, alone or as ``"joy - others"``, is the design's own question."""
        own = (self.target,) if "others" in self.parameters(obs) else (self.target, f"{self.target} - others")
        if isinstance(spec, str) and spec.strip() in own:
            spec = self.effects(obs)[f"{self.target} - others"]
        return super().contrast(spec, obs, name)

    def model_rdm(self, obs: pd.DataFrame, effect: str | None = None) -> np.ndarray:
        """0 for two targets, 1 for a target and another level, NaN for two others."""
        effects = self.effects(obs)
        if effect is not None and effect not in effects:
            raise InvalidInput(f"model_rdm: the design has no effect '{effect}'; it has {listed(effects)}.")
        target = self.column(obs, self.factor).astype(str).to_numpy(str) == self.target
        rdm = np.where(target[:, None] & target, 0.0, np.where(target[:, None] | target, 1.0, np.nan))
        np.fill_diagonal(rdm, 0.0)
        return rdm
