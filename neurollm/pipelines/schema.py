"""The schema of a pipeline file: one file, one study.

The pydantic models are the specification: their field descriptions are exported as
JSON Schema for editors (`Pipeline.model_json_schema`), and Python, YAML and the
command line share them. Unknown fields are errors.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from neurollm.errors import InvalidInput
from neurollm.validation import closest, read_yaml, shown, validate

if TYPE_CHECKING:
    from neurollm.dictionaries.sweeping import Grid
    from neurollm.dictionaries.training import Training

FEWEST_PERMUTATIONS = 19

Control = Literal["raw_units", "token_embeddings", "random_network", "random_directions"]
Alternative = Literal["two-sided", "greater", "less"]

SelectorName = Literal[
    "rsa_categorical",
    "rsa_discriminative",
    "rsa_coherence",
    "mean_difference",
    "welch_t",
    "auroc",
    "l1_path",
    "mutual_information",
    "maximum_activation",
    "random",
]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def once(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given more than once")
    return names


def _enough(n_perm: int, otherwise: str) -> int:
    if 0 < n_perm < FEWEST_PERMUTATIONS:
        raise ValueError(
            f"n_perm is {n_perm}; give at least {FEWEST_PERMUTATIONS}, which allow p = .05, or 0 for {otherwise}"
        )
    return n_perm


def folder_name(value: str) -> str:
    """The name of a study or dictionary if it can be that of a folder, and of no other place."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) is None:
        raise ValueError(f"{shown(value)} cannot be a folder name; use letters, digits, '.', '_' and '-'")
    return value


class SitePart(Part):
    """Where in the model."""

    layer: int = Field(ge=0, strict=True, description="Block, counted from 0.")
    stream: Literal["resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding", "mlp_in"] = Field(
        "resid_post", description="Block output, block input, MLP output, attention output, or the token embedding."
    )


class ModelPart(Part):
    """The language model."""

    name: str = Field("demo", min_length=1, description="demo, minilm, a folder, or any name on the transformers hub.")
    site: SitePart | None = Field(None, description="Needed when the dictionary does not bring a site of its own.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Number format of the model.")


class DictionaryPart(Part):
    """The dictionary that turns activations into features."""

    name: Literal["demo", "demo_seed0", "demo_seed1", "demo_seed2"] | None = Field(
        None, description="A dictionary that ships with neurollm."
    )
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


class FeaturesPart(Part):
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


class GLMPart(Part):
    """Mass-univariate contrasts with permutation inference."""

    n_perm: int = Field(
        10_000,
        ge=0,
        description="Permutations, 19 or more (all, if fewer exist); 0: only p and q, in closed form.",
    )
    alternative: Alternative = Field("two-sided", description="Direction of the test (F contrasts have none).")
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
        _enough(self.n_perm, "closed-form p only")
        if self.tail == "gpd" and not self.n_perm:
            raise ValueError("tail gpd needs permutations to be fitted to, but n_perm is 0")
        return self


class RSAPart(Part):
    """Every feature's distances between item × condition means against model RDMs."""

    models: list[str] = Field(
        default_factory=lambda: ["categorical"],
        min_length=1,
        description="categorical, discriminative[:level], coherence[:level], an effect of the design or effects, "
        "categorical:column, numeric:column, length, lexical.",
    )
    comparison: Literal[
        "pearson", "cosine", "whitened", "whitened_pearson", "half_rank", "spearman", "rho_a", "tau_a"
    ] = Field("pearson", description="How a feature's distances are compared with those of a model.")
    distance: Literal["squared", "absolute"] = Field("squared", description="Of a feature between two rows.")
    nuisance: list[str] = Field(
        default_factory=list, description="Models held constant by regression over pairs (approximate); item, too."
    )
    n_perm: int = Field(
        1000, ge=0, strict=True, description="Shufflings, 19 or more (all, if fewer exist); 0: scores only."
    )
    alternative: Alternative = Field("two-sided", description="Direction of the test.")
    min_active: int = Field(
        5, ge=0, strict=True, description="Features active in fewer rows are not tested (label-blind)."
    )

    @field_validator("models", "nuisance")
    @classmethod
    def _models_once(cls, value: list[str]) -> list[str]:
        return once(value)

    @field_validator("n_perm")
    @classmethod
    def _enough_permutations(cls, value: int) -> int:
        return _enough(value, "scores without p")


class DecodePart(Part):
    """Which side of a contrast a trial is of, judged by a few features, on items that were not trained on."""

    estimator: Literal["logistic_l1", "logistic_l2", "svc_linear", "ridge", "lda", "naive_bayes", "svc_rbf"] = Field(
        "logistic_l1", description="Classifier."
    )
    selector: SelectorName | None = Field(
        "rsa_categorical", description="Chooses features in every training part; null: all features."
    )
    n_features: int = Field(8, ge=1, strict=True, description="Features that the selector takes.")
    cv: int = Field(5, ge=2, strict=True, description="Folds; fewer if a side has fewer units.")
    n_perm: int = Field(
        199, ge=0, strict=True, description="Runs of the whole procedure with exchanged labels, 19 or more; 0: no p."
    )
    unit: str | None = Field(
        None,
        min_length=1,
        description="Column: its trials stay on one side of every split. Default: the design's item.",
    )

    @field_validator("n_perm")
    @classmethod
    def _enough_permutations(cls, value: int) -> int:
        return _enough(value, "no p")


class ContextsPart(Part):
    """Top contexts of the reported features."""

    corpus: list[str] = Field(
        default_factory=lambda: ["resting_state", "stimuli"],
        description="resting_state (ships with the demo model), stimuli (of this study), or paths of text files.",
    )
    top: int = Field(5, ge=1, le=50, description="Contexts per feature from each source.")

    @field_validator("corpus")
    @classmethod
    def _sources_once(cls, value: list[str]) -> list[str]:
        return once(value)


class AnalysesPart(Part):
    """What is computed."""

    glm: GLMPart = Field(default_factory=GLMPart, description="Contrasts of every feature.")
    rsa: RSAPart | None = Field(None, description="Representational similarity of every feature; null: not run.")
    decode: DecodePart | None = Field(None, description="Decoding of every contrast of two sides; null: not run.")
    contexts: ContextsPart | None = Field(
        default_factory=ContextsPart, description="Top contexts of the reported features; null: none."
    )


class ReportPart(Part):
    """The HTML report."""

    top: int = Field(50, ge=1, le=500, description="Features in the table of each contrast.")


class Pipeline(Part):
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
        return once(value)

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return folder_name(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Pipeline:
        if self.dictionary.kind is not None and self.model.site is None:
            raise ValueError(f"model.site is missing: dictionary kind {self.dictionary.kind} has no site of its own")
        stat = self.analyses.glm.stat
        if self.features.transform == "rank" and stat != "t":
            raise ValueError(f"features.transform rank goes with analyses.glm.stat t, found {stat}")
        if self.features.transform == "rank" and self.analyses.rsa is not None:
            raise ValueError("features.transform rank does not go with analyses.rsa; use its comparison spearman")
        return self


Architecture = Literal["topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"]


class _Trained(Part):
    """What is the same for one dictionary and for a sweep."""

    architecture: Architecture = Field("topk", description="Kind of sparse autoencoder.")
    training: dict[str, Any] = Field(
        default_factory=dict, description="Options of the architecture, e.g. batch_size, learning_rate (see Training)."
    )

    @field_validator("training")
    @classmethod
    def _known_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "architecture" in info.data:
            _options(info.data["architecture"], value)
        return value

    def options(self) -> Training:
        """The options, of the class that belongs to the architecture."""
        return _options(self.architecture, self.training)


def _options(architecture: str, values: dict[str, Any]) -> Training:
    from neurollm.dictionaries.training import LEARNERS

    kind = LEARNERS[architecture].options
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise ValueError(
            f"{shown(unknown[0])} is no option of architecture {architecture}{closest(unknown[0], known)}; "
            f"the options are {', '.join(known)}"
        )
    try:
        validate(kind, values, "training")  # types, which the class itself does not look at
        return kind.from_dict(values)
    except InvalidInput as error:
        raise ValueError(str(error).replace("training: ", "").replace("the top level: ", "").rstrip(".")) from None


class DictionaryToTrain(_Trained):
    """One dictionary."""

    n_features: int = Field(4096, ge=1, strict=True, description="Number of features.")
    k: int = Field(32, ge=1, strict=True, description="Active features per token; of penalties the target.")
    n_tokens: int = Field(
        5_000_000, ge=1, strict=True, description="Training length; the store is repeated when it is shorter."
    )
    random_state: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of the weights.")
    init_from: str | None = Field(None, min_length=1, description="Folder of a dictionary to go on from.")
    snapshots: list[float] = Field(
        default_factory=list, description="Shares of the training after which the dictionary is kept as it is then."
    )

    @model_validator(mode="after")
    def _possible(self) -> DictionaryToTrain:
        if self.k > self.n_features:
            raise ValueError(f"k is {self.k}, more than n_features {self.n_features}")
        if any(not 0 <= share <= 1 for share in self.snapshots):
            raise ValueError(f"snapshots are shares of the training from 0 to 1, found {self.snapshots}")
        return self


class NamedDictionary(DictionaryToTrain):
    """One of several dictionaries."""

    name: str = Field(description="Name of its folder in out.")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        return folder_name(value)


class TrainingFile(DictionaryToTrain):
    """The file of `neurollm train`: one dictionary, or several that are trained in one pass over the data."""

    store: str = Field(min_length=1, description="Folder of an activation store made by neurollm harvest.")
    held_out: str | None = Field(
        None, min_length=1, description="Store of other texts, on which every finished dictionary is measured."
    )
    out: str = Field(
        min_length=1, description="Folder of the finished dictionary and its checkpoints; of several: of their folders."
    )
    dictionaries: list[NamedDictionary] | None = Field(
        None, min_length=1, description="Several dictionaries, instead of the fields of one."
    )

    @field_validator("dictionaries")
    @classmethod
    def _names_once(cls, value: list[NamedDictionary] | None) -> list[NamedDictionary] | None:
        once([entry.name.casefold() for entry in value or ()])  # some disks do not tell A from a
        return value

    @model_validator(mode="after")
    def _one_or_several(self) -> TrainingFile:
        if self.dictionaries is not None:
            of_one = sorted(self.model_fields_set & set(DictionaryToTrain.model_fields))
            if of_one:
                raise ValueError(f"{of_one[0]} stands beside dictionaries; write it into each of them")
        return self


class SweepFile(_Trained):
    """The file of `neurollm sweep`: every width with every number of tokens and every seed."""

    store: str = Field(min_length=1, description="Folder of an activation store made by neurollm harvest.")
    held_out: str = Field(min_length=1, description="Store of other texts, on which the dictionaries are measured.")
    out: str = Field(min_length=1, description="Folder of the dictionaries, the table and the report.")
    widths: list[Annotated[int, Field(ge=1, strict=True)]] = Field(description="Numbers of features, four or more.")
    tokens: list[Annotated[int, Field(ge=1, strict=True)]] = Field(
        default_factory=lambda: [5_000_000], description="Lengths of the trainings."
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63, strict=True)]] = Field(
        default_factory=lambda: [0, 1], description="Seeds of the weights."
    )
    k: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)] = Field(
        32, description="Active features per token; below 1: their share of the features."
    )

    @model_validator(mode="after")
    def _a_grid(self) -> SweepFile:
        self.grid()
        return self

    def grid(self) -> Grid:
        """The dictionaries of the sweep."""
        from neurollm.dictionaries.sweeping import Grid

        grid = Grid(
            widths=self.widths,
            tokens=self.tokens,
            seeds=self.seeds,
            k=self.k,
            architecture=self.architecture,
            training=self.options(),
        )
        grid.plans("")  # refuses a k that is larger than a width
        return grid


def read_pipeline(path: str | os.PathLike) -> Pipeline:
    """Read and validate a pipeline file.

    Raises
    ------
    InvalidInput
        One sentence with file, field, what was found and what would be right.
    """
    return validate(Pipeline, read_yaml(path), path)


def resolved(pipeline: BaseModel) -> dict[str, Any]:
    """The pipeline with every default written out: this alone re-runs the study."""
    return pipeline.model_dump(mode="json")
