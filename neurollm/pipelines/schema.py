"""The schema of a pipeline file: one file, one study.

The pydantic models are the specification: their field descriptions are exported as
JSON Schema for editors (`Pipeline.model_json_schema`), and Python, YAML and the
command line share them. Unknown fields are errors.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from neurollm.validation import read_yaml, validate

FEWEST_PERMUTATIONS = 19

Control = Literal["raw_units", "token_embeddings", "random_network", "random_directions"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _once(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given more than once")
    return names


class SitePart(_Part):
    """Where in the model."""

    layer: int = Field(ge=0, strict=True, description="Block, counted from 0.")
    stream: Literal["resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding", "mlp_in"] = Field(
        "resid_post", description="Block output, block input, MLP output, attention output, or the token embedding."
    )


class ModelPart(_Part):
    """The language model."""

    name: str = Field("demo", min_length=1, description="demo, minilm, a folder, or any name on the transformers hub.")
    site: SitePart | None = Field(None, description="Needed when the dictionary does not bring a site of its own.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Number format of the model.")


class DictionaryPart(_Part):
    """The dictionary that turns activations into features."""

    name: Literal["demo"] | None = Field(None, description="A dictionary that ships with neurollm.")
    path: str | None = Field(None, min_length=1, description="Folder of a dictionary (SAELens inference layout).")
    kind: Literal["raw_units", "random_directions"] | None = Field(
        None, description="Instead of a trained dictionary: the units themselves, or random directions."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> DictionaryPart:
        given = [field for field in ("name", "path", "kind") if getattr(self, field) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of name, path and kind, found {', '.join(given) or 'none'}")
        return self


class FeaturesPart(_Part):
    """From tokens to one row per trial."""

    tokens: str = Field("content", description="Token window: content, last, target, left:n, centre:n or all.")
    pool: Literal["mean", "max", "sum", "last"] = Field("mean", description="How the tokens of a window are pooled.")
    transform: Literal["raw", "log1p", "binary", "rank"] = Field(
        "raw", description="log1p and binary: of the pooled values; rank: of the item means, for rank tests."
    )
    min_active_items: int = Field(0, ge=0, description="Features active in fewer items are not tested (label-blind).")
    testable_at: float | None = Field(
        None, gt=0, lt=1, description="Features whose p could not fall to this level under any labels are not tested."
    )

    @field_validator("tokens")
    @classmethod
    def _known_window(cls, value: str) -> str:
        from neurollm.masking import Window

        return Window(value).spec


class GLMPart(_Part):
    """Mass-univariate contrasts with permutation inference."""

    n_perm: int = Field(
        10_000,
        ge=0,
        description="Permutations, 19 or more (all, if fewer exist); 0: only p and q, in closed form.",
    )
    alternative: Literal["two-sided", "greater", "less"] = Field(
        "two-sided", description="Direction of the test (F contrasts have none)."
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Family-wise error rate; without permutations the false discovery rate."
    )
    stat: Literal["t", "welch", "hc3"] = Field(
        "t", description="Standard error: pooled, or separate for every group of items (Welch, HC3)."
    )
    fdr: Literal["bh", "by", "bky"] = Field(
        "bh", description="False discovery rate of q: Benjamini-Hochberg, Benjamini-Yekutieli, or adaptive (BKY)."
    )
    tail: Literal["permutation", "gpd"] = Field(
        "permutation", description="gpd: family-wise p below 1/n_perm from a generalised Pareto tail."
    )

    @model_validator(mode="after")
    def _enough_permutations(self) -> GLMPart:
        if 0 < self.n_perm < FEWEST_PERMUTATIONS:
            raise ValueError(
                f"n_perm is {self.n_perm}; give at least {FEWEST_PERMUTATIONS}, which allow p = .05, "
                "or 0 for closed-form p only"
            )
        if self.tail == "gpd" and not self.n_perm:
            raise ValueError("tail gpd needs permutations to be fitted to, but n_perm is 0")
        return self


class ContextsPart(_Part):
    """Top contexts of the reported features."""

    corpus: list[str] = Field(
        default_factory=lambda: ["resting_state", "stimuli"],
        description="resting_state (ships with the demo model), stimuli (of this study), or paths of text files.",
    )
    top: int = Field(5, ge=1, le=50, description="Contexts per feature from each source.")

    @field_validator("corpus")
    @classmethod
    def _sources_once(cls, value: list[str]) -> list[str]:
        return _once(value)


class AnalysesPart(_Part):
    """What is computed."""

    glm: GLMPart = Field(default_factory=GLMPart)
    contexts: ContextsPart | None = Field(default_factory=ContextsPart)


class ReportPart(_Part):
    """The HTML report."""

    top: int = Field(50, ge=1, le=500, description="Features in the table of each contrast.")


class Pipeline(_Part):
    """One study."""

    name: str = Field(description="Name of the study and of its folder under reports/.")
    stimuli: str = Field(min_length=1, description="TSV file, relative to the project folder.")
    design: str = Field(min_length=1, description="YAML file, relative to the project folder.")
    model: ModelPart = Field(default_factory=ModelPart)
    dictionary: DictionaryPart
    features: FeaturesPart = Field(default_factory=FeaturesPart)
    analyses: AnalysesPart = Field(default_factory=AnalysesPart)
    controls: list[Control] = Field(
        default_factory=lambda: ["raw_units", "token_embeddings", "random_network", "random_directions"],
        description="Control representations, shown as rows beside the result.",
    )
    report: ReportPart = Field(default_factory=ReportPart)
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of every random draw.")

    @field_validator("controls")
    @classmethod
    def _controls_once(cls, value: list[str]) -> list[str]:
        return _once(value)

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) is None:
            raise ValueError(f"{value!r} cannot be a folder name; use letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Pipeline:
        if self.dictionary.kind is not None and self.model.site is None:
            raise ValueError(f"model.site is missing: dictionary kind {self.dictionary.kind} has no site of its own")
        stat = self.analyses.glm.stat
        if self.features.transform == "rank" and stat != "t":
            raise ValueError(f"features.transform rank goes with analyses.glm.stat t, found {stat}")
        return self


class TrainingFile(_Part):
    """The file of `neurollm train`: one dictionary."""

    store: str = Field(min_length=1, description="Folder of an activation store made by neurollm harvest.")
    out: str = Field(
        min_length=1, description="Folder of the finished dictionary; checkpoints are kept beside it while training."
    )
    architecture: Literal["topk"] = Field("topk", description="Kind of sparse autoencoder.")
    n_features: int = Field(4096, ge=1, description="Number of features.")
    k: int = Field(32, ge=1, description="Active features per token.")
    n_tokens: int = Field(5_000_000, ge=1, description="Training length; the store is repeated when it is shorter.")
    random_state: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed.")


def read_pipeline(path: str | os.PathLike) -> Pipeline:
    """Read and validate a pipeline file.

    Raises
    ------
    InvalidInput
        One sentence with file, field, what was found and what would be right.
    """
    return validate(Pipeline, read_yaml(path), path)


def resolved(pipeline: Pipeline) -> dict[str, Any]:
    """The pipeline with every default written out: this alone re-runs the study."""
    return pipeline.model_dump(mode="json")
