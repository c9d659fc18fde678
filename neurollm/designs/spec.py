"""The design file: one YAML mapping, one pydantic model per type of design."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from neurollm.designs.base import Design
from neurollm.designs.categorical import CategoricalDesign, DiscriminativeDesign
from neurollm.designs.factorial import FactorialDesign
from neurollm.designs.formula import FormulaDesign
from neurollm.errors import InvalidInput
from neurollm.files import write_text
from neurollm.validation import closest, listed, one_line, read_yaml, shown, validate

ContrastSpec = str | dict[str, float] | list[float] | list[str] | list[list[float]]


class _DesignPart(BaseModel):
    """Fields of every design."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field("", description="What the study asks, for the report.")
    item: str | None = Field(
        "item",
        description="Column that names the content of a stimulus: the unit that is exchanged. 'none' makes every "
        "stimulus a unit of its own and needs item_reason.",
        min_length=1,
    )
    item_reason: str = Field("", description="Why stimuli are independent observations; only with item: none.")
    covariates: list[str] = Field(default_factory=list, description="Numeric columns that are held constant.")
    template: str | None = Field(
        None, description="Column that names the wording, which is averaged over.", min_length=1
    )
    blocks: str | None = Field(
        None, description="Column of exchangeability blocks: items are exchanged only within a block.", min_length=1
    )
    contrasts: dict[str, ContrastSpec] = Field(
        default_factory=dict,
        description="Questions by name: the name of an effect, an expression ('success - failure'; several, separated "
        "by commas, for an F contrast), weights by level, a vector or a matrix of weights. Left out: the design's own.",
    )

    @field_validator("item")
    @classmethod
    def _none_in_words(cls, value: str | None) -> str | None:
        return None if value == "none" else value

    @field_validator("contrasts")
    @classmethod
    def _readable_names(cls, contrasts: dict[str, ContrastSpec]) -> dict[str, ContrastSpec]:
        for name in contrasts:
            if not name.strip():
                raise ValueError("a contrast has an empty name; give it one, it names the result")
            if one_line(name) != name:
                raise ValueError(f"the contrast name {shown(name)} contains a control character; use printable text")
        return contrasts

    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("item", "item_reason", "covariates", "template", "blocks")}


class CategoricalSpec(_DesignPart):
    """Comparison of the levels of one factor."""

    type: Literal["categorical"] = Field(
        description="Kind of design: categorical, discriminative, factorial or formula."
    )
    factor: str = Field(description="Column of the stimulus table whose levels are compared.", min_length=1)

    def design(self) -> CategoricalDesign:
        """The design object these fields describe."""
        return CategoricalDesign(self.factor, **self._common())


class DiscriminativeSpec(_DesignPart):
    """Comparison of one level with all others."""

    type: Literal["discriminative"] = Field(description="Kind of design.")
    factor: str = Field(description="Column of the stimulus table.", min_length=1)
    target: str = Field(description="The level that is compared with all others.", min_length=1)

    def design(self) -> DiscriminativeDesign:
        """The design object these fields describe."""
        return DiscriminativeDesign(self.factor, self.target, **self._common())


class FactorialSpec(_DesignPart):
    """Crossed factors: main effects and interactions."""

    type: Literal["factorial"] = Field(description="Kind of design.")
    factors: list[str] | dict[str, list[str]] = Field(
        description="Columns, or columns with the order of their levels; effects of two levels are first minus last."
    )

    def design(self) -> FactorialDesign:
        """The design object these fields describe."""
        return FactorialDesign(self.factors, **self._common())


class FormulaSpec(_DesignPart):
    """A linear model as a Wilkinson formula."""

    type: Literal["formula"] = Field(description="Kind of design.")
    formula: str = Field(description="Right-hand side, such as 'outcome * n_words'.", min_length=1)

    def design(self) -> FormulaDesign:
        """The design object these fields describe."""
        return FormulaDesign(self.formula, **self._common())


SPECS = {
    "categorical": CategoricalSpec,
    "discriminative": DiscriminativeSpec,
    "factorial": FactorialSpec,
    "formula": FormulaSpec,
}
# For JSON Schema; a file is validated by the model that its type names, so that messages name its fields.
DesignSpec = Annotated[CategoricalSpec | DiscriminativeSpec | FactorialSpec | FormulaSpec, Field(discriminator="type")]


def design_spec(fields: Mapping[str, Any], where: str | os.PathLike) -> _DesignPart:
    """Validate the fields of a design file.

    Raises
    ------
    InvalidInput
        One sentence that names `where` and the field.
    """
    kind = fields.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in SPECS):
        hint = closest(str(kind), SPECS) or "."
        raise InvalidInput(f"{where}: field 'type' is {shown(kind)}{hint} It must be one of {listed(SPECS)}.")
    return validate(SPECS.get(kind, CategoricalSpec), fields, where)


def read_design(path: str | os.PathLike) -> tuple[Design, dict[str, Any]]:
    """Read a design file.

    Parameters
    ----------
    path : path-like
        YAML with the fields of `DesignSpec`.

    Returns
    -------
    design : Design
    contrasts : dict
        Name to expression or weights, in the order of the file (empty: the design's own effects); parsed when the
        levels are known.

    Raises
    ------
    InvalidInput
        One sentence that names the file and the field.
    """
    spec = design_spec(read_yaml(path), path)
    try:
        return spec.design(), dict(spec.contrasts)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def write_design(
    path: str | os.PathLike, design: Design, contrasts: Mapping[str, Any] | None = None, description: str = ""
) -> None:
    """Write a design file that `read_design` reads back to an equal design.

    Parameters
    ----------
    path : path-like
    design : Design
    contrasts : mapping, optional
        Name to expression or weights.
    description : str, default=""

    Raises
    ------
    InvalidInput
        `design` is not a design.
    """
    if not isinstance(design, Design):
        raise InvalidInput(f"write_design: after the path comes a design, found {type(design).__name__}.")
    plain = design.to_dict()
    plain["item"] = "none" if plain["item"] is None else plain["item"]
    if description:
        plain["description"] = description
    if contrasts:
        plain["contrasts"] = dict(contrasts)
    design_spec(plain, path)
    write_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
