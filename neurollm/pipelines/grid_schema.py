"""The schema of a method grid's file.

A pipeline file with ``type: method_grid`` is a grid; a study has no type.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurollm.pipelines.schema import DictionaryPart, FeaturesPart, ModelPart, Part, SelectorName, folder_name, once
from neurollm.validation import read_yaml, validate

Representation = Literal[
    "sae", "raw_units", "pca", "token_embeddings", "random_network", "random_directions", "random_sae"
]


class ConceptPart(Part):
    """One thing to be decoded."""

    name: str = Field(description="Name in tables and files.")
    stimuli: str = Field(min_length=1, description="TSV file, relative to the project folder.")
    factor: str = Field(min_length=1, description="Column of the stimuli.")
    target: str = Field(min_length=1, description="Level that is the concept; all others are what it is told from.")
    unit: str = Field("item", min_length=1, description="Column: its rows stay on one side of every split.")
    tokens: str = Field("content", description="Token window, as in a study.")
    control: bool = Field(False, description="The right answer is .5: reported apart, and in no contrast.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return folder_name(value)

    @field_validator("tokens")
    @classmethod
    def _known_window(cls, value: str) -> str:
        return FeaturesPart.model_validate({"tokens": value}).tokens


class ShuffledPart(Part):
    """The whole procedure once more with labels shuffled by item, so that chance is seen."""

    n: int = Field(20, ge=0, le=10_000, strict=True, description="Shufflings; 0: none.")
    representations: list[Representation] = Field(default_factory=lambda: ["sae", "raw_units"])
    selectors: list[SelectorName] = Field(
        default_factory=lambda: ["rsa_categorical", "rsa_discriminative", "rsa_coherence", "maximum_activation"]
    )
    k: Annotated[int, Field(ge=1, strict=True)] = Field(8, description="Number of features.")

    @field_validator("representations", "selectors")
    @classmethod
    def _eachonce(cls, value: list[str]) -> list[str]:
        return once(value)


class MethodGrid(Part):
    """The file of a method grid: representations × selectors × numbers of features, for several concepts."""

    type: Literal["method_grid"] = Field(description="Says that this file is a grid and no study.")
    name: str = Field(description="Name of the grid and of its folder under reports/.")
    model: ModelPart = Field(default_factory=ModelPart)
    dictionary: DictionaryPart
    pool: Literal["mean", "max", "sum", "last"] = Field("mean", description="How the tokens of a window are pooled.")
    concepts: list[ConceptPart] = Field(min_length=1, description="What is decoded.")
    representations: list[Representation] = Field(
        default_factory=lambda: list(get_args(Representation)),
        min_length=1,
        description="What features are chosen from.",
    )
    selectors: list[SelectorName] = Field(
        default_factory=lambda: list(get_args(SelectorName)), min_length=1, description="How they are chosen."
    )
    k: list[Annotated[int, Field(ge=1, strict=True)]] = Field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64], min_length=1, description="How many are chosen."
    )
    n_folds: int = Field(5, ge=2, strict=True, description="Folds of the cross-validation.")
    n_repeats: int = Field(5, ge=1, strict=True, description="Repetitions: other folds, other random representations.")
    n_boot: int = Field(2000, ge=100, strict=True, description="Bootstrap replicates over items.")
    shuffled: ShuffledPart = Field(default_factory=ShuffledPart)
    alpha: float = Field(0.05, gt=0, lt=1, description="Level of the three declared contrasts, after Holm.")
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of every random draw.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return folder_name(value)

    @field_validator("representations", "selectors")
    @classmethod
    def _eachonce(cls, value: list[str]) -> list[str]:
        return once(value)

    @field_validator("k")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        once([str(size) for size in value])
        return sorted(value)

    @model_validator(mode="after")
    def _fits_together(self) -> MethodGrid:
        once([concept.name.casefold() for concept in self.concepts])  # some disks do not tell A from a
        trained = {"sae", "random_sae"} & {*self.representations, *self.shuffled.representations}
        if trained and self.dictionary.kind is not None:
            raise ValueError(f"representation {min(trained)} needs a trained dictionary, not {self.dictionary.kind}")
        if self.dictionary.kind is not None and self.model.site is None:
            raise ValueError(f"model.site is missing: dictionary kind {self.dictionary.kind} has no site of its own")
        units: dict[str, str] = {}
        for concept in self.concepts:
            if units.setdefault(concept.stimuli, concept.unit) != concept.unit:
                raise ValueError(
                    f"concepts of {concept.stimuli} have the units {units[concept.stimuli]} and {concept.unit}; "
                    "give them one, since they are resampled together"
                )
        return self


def read_grid(path: str | os.PathLike) -> MethodGrid:
    """Read and validate the file of a method grid.

    Raises
    ------
    InvalidInput
        As `read_pipeline`.
    """
    return validate(MethodGrid, read_yaml(path), path)
