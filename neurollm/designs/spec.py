"""The design file: one YAML mapping, one pydantic model per type of design."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from neurollm.designs.categorical import CategoricalDesign
from neurollm.errors import InvalidInput
from neurollm.validation import one_line, read_yaml, shown, validate

ContrastSpec = str | dict[str, float] | list[float]


class CategoricalSpec(BaseModel):
    """Comparison of the levels of one factor."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["categorical"] = Field(description="Kind of design.")
    description: str = Field("", description="What the study asks, for the report.")
    factor: str = Field(description="Column of the stimulus table whose levels are compared.", min_length=1)
    item: str = Field(
        "item", description="Column that names the content of a stimulus: the unit that is shuffled.", min_length=1
    )
    covariates: list[str] = Field(default_factory=list, description="Must be empty in this version.")
    contrasts: dict[str, ContrastSpec] = Field(
        description="Questions by name: an expression over levels ('success - failure'), weights by level, or weights "
        "in level order. Weights sum to zero.",
        min_length=1,
    )

    @field_validator("contrasts")
    @classmethod
    def _readable_names(cls, contrasts: dict[str, ContrastSpec]) -> dict[str, ContrastSpec]:
        for name in contrasts:
            if not name.strip():
                raise ValueError("a contrast has an empty name; give it one, it names the result")
            if one_line(name) != name:
                raise ValueError(f"the contrast name {shown(name)} contains a control character; use printable text")
        return contrasts

    def design(self) -> CategoricalDesign:
        """The design object these fields describe."""
        return CategoricalDesign(self.factor, self.item, tuple(self.covariates))


# With a second type of design this becomes a union discriminated by `type`.
DesignSpec = CategoricalSpec


def read_design(path: str | os.PathLike) -> tuple[CategoricalDesign, dict[str, Any]]:
    """Read a design file.

    Parameters
    ----------
    path : path-like
        YAML with the fields of `DesignSpec`.

    Returns
    -------
    design : CategoricalDesign
    contrasts : dict
        Name to expression or weights, in the order of the file; parsed when the levels are known.

    Raises
    ------
    InvalidInput
        One sentence that names the file and the field.
    """
    spec = validate(DesignSpec, read_yaml(path), path)
    try:
        return spec.design(), dict(spec.contrasts)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
