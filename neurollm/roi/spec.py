"""The ``roi`` field of a pipeline file: where a region comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurollm.designs.spec import ContrastSpec, read_design
from neurollm.errors import InvalidInput
from neurollm.roi.contents import text_keys
from neurollm.roi.greedy import greedy_roi
from neurollm.roi.region import ROI
from neurollm.roi.selection import localize, select_roi
from neurollm.roi.stability import stability_roi
from neurollm.rsa import FeatureRSA
from neurollm.rsa.rows import read_trials

if TYPE_CHECKING:
    import pandas as pd


class ROISpec(BaseModel):
    """A region that is declared, or chosen on a localizer's trials by a contrast or by RSA."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str = Field(
        alias="from", min_length=1, description="Design file of a localizer with stimuli of its own, or 'declared'."
    )
    contrast: ContrastSpec | None = Field(
        None, description="Contrast that chooses the features: one of the localizer's file by its name, or any other."
    )
    model: str | None = Field(None, min_length=1, description="Instead: model RDM that chooses them, by its name.")
    method: Literal["rsa", "greedy", "stability"] = Field(
        "rsa",
        description="How a model chooses: each feature by itself, feature by feature for the best region, or what "
        "halves of the items agree on.",
    )
    comparison: Literal["pearson", "whitened"] = Field("pearson", description="Of RDMs, for a model.")
    n_features: int | None = Field(None, ge=1, description="How many features with the largest statistics.")
    alpha: float | None = Field(None, gt=0, lt=1, description="Instead: all features significant at this level.")
    by: Literal["p_fwer", "q"] = Field("p_fwer", description="Which corrected p is compared with alpha.")
    max_false: float = Field(1.0, gt=0, description="Method stability: most features of noise that are expected.")
    features: list[int | str] | None = Field(None, min_length=1, description="Feature ids of a declared region.")
    reason: str = Field("", description="Where the features of a declared region come from.")
    items: Literal["disjoint"] = Field(
        "disjoint", description="The test uses no item and no text of the selection; there is no other choice."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ROISpec:
        given = {name for name in ("contrast", "model", "n_features", "alpha") if getattr(self, name) is not None}
        counts = given & {"n_features", "alpha"}
        if self.source == "declared":
            if given:
                raise ValueError(f"a declared region is not chosen by data, so leave out {', '.join(sorted(given))}")
            if self.features is None or not self.reason.strip():
                raise ValueError("a declared region needs features and a reason, which says where they come from")
        elif self.features is not None or self.reason:
            raise ValueError("features and reason are only for 'from: declared'; a localizer chooses its features")
        elif len(given & {"contrast", "model"}) != 1 or (self.model is None and len(counts) != 1):
            raise ValueError("a localizer needs a contrast, and either n_features or alpha; or a model instead")
        elif self.model is not None:
            self._check_model(counts)
        elif self.model_fields_set & {"method", "comparison", "max_false"}:
            raise ValueError("method, comparison and max_false say how a model chooses; a contrast needs none of them")
        return self

    def _check_model(self, counts: set[str]) -> None:
        if self.method == "rsa" and len(counts) != 1:
            raise ValueError("method 'rsa' needs either n_features or alpha")
        if self.method == "greedy" and counts != {"n_features"}:
            raise ValueError("method 'greedy' needs n_features, and no alpha")
        if self.method == "stability" and counts:
            raise ValueError("method 'stability' chooses by max_false; leave out n_features and alpha")


def make_roi(
    spec: ROISpec,
    name: str,
    X: Any = None,
    obs: pd.DataFrame | None = None,
    *,
    features: Any = None,
    folder: str | os.PathLike = ".",
    **options: Any,
) -> ROI:
    """Make the region that a pipeline file describes.

    Parameters
    ----------
    spec : ROISpec
    name : str
    X, obs, features
        Trials of the localizer (see `localize`); not needed for a declared region.
    folder : path-like, default="."
        Where relative paths start.
    **options
        Of `FeatureGLM`; with a model of `FeatureRSA`, `greedy_roi` or `stability_selection`.

    Returns
    -------
    ROI

    Examples
    --------
    >>> spec = ROISpec.model_validate({"from": "declared", "features": [3, 5], "reason": "labelled 'negation'"})
    >>> make_roi(spec, "negation").feature
    (3, 5)
    """
    if spec.source == "declared":
        return ROI.declared(name, spec.features, spec.reason)
    if X is None:
        raise InvalidInput(f"ROI '{name}': the localizer {spec.source} was given no trials.")
    design, contrasts = read_design(Path(folder) / spec.source)
    rule = {"n_features": spec.n_features, "alpha": spec.alpha, "by": spec.by}
    if spec.model is None:
        contrast = contrasts.get(spec.contrast, spec.contrast) if isinstance(spec.contrast, str) else spec.contrast
        return localize(design, contrast, X, obs, name=name, features=features, **rule, **options)
    how = {"model": spec.model, "comparison": spec.comparison, "features": features, "name": name, **options}
    if spec.method == "greedy":
        return greedy_roi(design, X, obs, n_features=spec.n_features, **how)
    if spec.method == "stability":
        return stability_roi(design, X, obs, max_false=spec.max_false, **how)
    X, obs, features = read_trials(X, obs, features, "make_roi")
    text_keys(obs)  # refuse a table without texts before the work, not after
    rsa = FeatureRSA(design, models=(spec.model,), comparison=spec.comparison, **options).fit(X, obs, features)
    return select_roi(rsa.result_, obs, name, **rule)
