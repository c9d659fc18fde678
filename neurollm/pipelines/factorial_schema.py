"""The schema of the file of a factorial study of interactions: ``type: factorial_study``."""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurollm.pipelines.schema import (
    FEWEST_PERMUTATIONS,
    DictionaryPart,
    FeaturesPart,
    ModelPart,
    Part,
    folder_name,
    once,
)
from neurollm.validation import read_yaml, validate

FactorialControl = Literal["random_nfm", "raw_units", "token_embeddings", "random_network", "shuffled_labels"]
Size = Annotated[int, Field(ge=1, strict=True)]


class WindowPart(Part):
    """From tokens to one row per trial."""

    tokens: str = Field("content", description="Token window: content, last, target, left:n, centre:n or all.")
    pool: Literal["mean", "max", "sum", "last"] = Field("mean", description="How the tokens of a window are pooled.")
    min_active_items: int = Field(
        5, ge=0, strict=True, description="Columns active in fewer items of discovery are no candidates (label-blind)."
    )

    @field_validator("tokens")
    @classmethod
    def _known_window(cls, value: str) -> str:
        return FeaturesPart.model_validate({"tokens": value}).tokens


class InteractionsPart(Part):
    """The interaction model: a saved one, or one trained on texts that are none of the stimuli."""

    path: str | None = Field(None, min_length=1, description="Folder of a saved interaction model.")
    corpus: list[str] | None = Field(
        None, min_length=1, description="resting_state (ships with the demo model), or paths of text files: train one."
    )
    rank: Size = Field(64, description="Dimensions of an embedding.")
    readout: Literal["linear", "mlp"] = Field("linear", description="From dimensions to activations.")
    n_tokens: Size | None = Field(None, description="Length of the training; null: four times the tokens to fit.")
    top_n: Annotated[int, Field(ge=2, strict=True)] | None = Field(
        None, description="Entries of a code that count; null: all of the largest code."
    )
    random_state: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of the training.")

    @field_validator("corpus")
    @classmethod
    def _sources_once(cls, value: list[str] | None) -> list[str] | None:
        return value if value is None else once(value)

    @model_validator(mode="after")
    def _saved_or_trained(self) -> InteractionsPart:
        given = [name for name in ("path", "corpus") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give either path or corpus, found {' and '.join(given) or 'none'}")
        # A file with every default written out names them all, so only values that differ are refused.
        other = [name for name in self.model_fields_set - {"path", "corpus"} if self._changed(name)]
        if self.path is not None and other:
            raise ValueError(f"{min(other)} is of a training; with path the saved model is used as it is")
        return self

    def _changed(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default


class SecondaryPart(Part):
    """A sparse dictionary of the interaction dimensions."""

    n_features: Size = Field(256, description="Number of secondary features.")
    k: Size = Field(8, description="Active features per token.")
    n_tokens: Size | None = Field(None, description="Length of the training; null: a million.")

    @model_validator(mode="after")
    def _possible(self) -> SecondaryPart:
        if self.k > self.n_features:
            raise ValueError(f"k is {self.k}, more than n_features {self.n_features}")
        return self


class FactorialPart(Part):
    """Discovery on some items, tests on the others."""

    n_candidates: Size = Field(20, description="Columns per effect that go on to the test.")
    discovery: float = Field(0.5, ge=0.05, le=0.95, description="Share of the items in which candidates are sought.")
    n_perm: int = Field(5000, ge=FEWEST_PERMUTATIONS, strict=True, description="Shufflings of each test.")
    alpha: float = Field(0.05, gt=0, lt=1, description="Family-wise error rate of each effect.")
    n_random: Size = Field(19, description="Interaction models with untrained embeddings, for random_nfm.")
    n_shuffled: Size = Field(10, description="Shufflings of the labels, for shuffled_labels.")


class FactorialReportPart(Part):
    """The HTML report."""

    top: int = Field(10, ge=1, le=100, description="Candidates in the table of each representation.")


class FactorialFile(Part):
    """The file of a factorial study: two factors in features, interaction dimensions and components."""

    type: Literal["factorial_study"] = Field(description="Says that this file is a factorial study of interactions.")
    name: str = Field(description="Name of the study and of its folder under reports/.")
    stimuli: str = Field(min_length=1, description="TSV file, relative to the project folder.")
    design: str = Field(
        min_length=1, description="YAML file: a factorial design of two factors with two levels; contrasts are its own."
    )
    model: ModelPart = Field(default_factory=ModelPart)
    dictionary: DictionaryPart
    features: WindowPart = Field(default_factory=WindowPart)
    interactions: InteractionsPart
    secondary: SecondaryPart | None = Field(None, description="Features of the interaction dimensions; null: none.")
    factorial: FactorialPart = Field(default_factory=FactorialPart)
    controls: list[FactorialControl] = Field(
        default_factory=lambda: list(get_args(FactorialControl)),
        description="Shown beside the result; random_nfm, untrained embeddings, is what findings in B are measured by.",
    )
    report: FactorialReportPart = Field(default_factory=FactorialReportPart)
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of the item split and every random draw.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return folder_name(value)

    @field_validator("controls")
    @classmethod
    def _controls_once(cls, value: list[str]) -> list[str]:
        return once(value)

    @model_validator(mode="after")
    def _fits_together(self) -> FactorialFile:
        if self.dictionary.kind is not None:
            raise ValueError(
                f"interactions are those of a trained dictionary (dictionary.name or path), not of kind "
                f"{self.dictionary.kind}"
            )
        if self.secondary is not None and self.interactions.path is not None:
            raise ValueError("secondary is trained on interactions.corpus, which does not go with interactions.path")
        return self


def read_factorial(path: str | os.PathLike) -> FactorialFile:
    """Read and validate the file of a factorial study.

    Raises
    ------
    InvalidInput
        As `read_pipeline`.
    """
    return validate(FactorialFile, read_yaml(path), path)
