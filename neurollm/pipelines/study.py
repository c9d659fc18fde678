"""The steps of a study: what each depends on, and what it writes."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.files import sha256_file, slug, write_json, write_text
from neurollm.pipelines.contexts import collect_contexts, corpus_of
from neurollm.pipelines.controls import control_rows
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import Pipeline, resolved

if TYPE_CHECKING:
    from anndata import AnnData

    from neurollm.designs import CategoricalDesign
    from neurollm.dictionaries import Dictionary
    from neurollm.glm import ContrastResult
    from neurollm.models import LanguageModel
    from neurollm.stimuli import StimulusSet

_PACKAGES = ("neurollm", "numpy", "scipy", "pandas", "torch", "transformers", "scikit-learn", "anndata")


@dataclass
class Study:
    """One pipeline file with its inputs, loaded when first needed.

    Attributes
    ----------
    project : Project
    file : Path
        The pipeline file.
    pipeline : Pipeline
    verbose : int
    """

    project: Project
    file: Path
    pipeline: Pipeline
    verbose: int = 1

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.project.study(self.pipeline.name)

    @cached_property
    def stimuli(self) -> StimulusSet:
        from neurollm.stimuli import StimulusSet

        return StimulusSet.read_tsv(self.project.path(self.pipeline.stimuli))

    @cached_property
    def _design_file(self) -> tuple[CategoricalDesign, dict[str, Any]]:
        from neurollm.designs import read_design

        return read_design(self.project.path(self.pipeline.design))

    @property
    def design(self) -> CategoricalDesign:
        return self._design_file[0]

    @property
    def contrasts(self) -> dict[str, Any]:
        """Contrast expressions by name."""
        return self._design_file[1]

    @cached_property
    def model(self) -> LanguageModel:
        from neurollm.models import load_model

        part = self.pipeline.model
        return load_model(self._local(part.name), device=part.device, dtype=part.dtype)

    @cached_property
    def dictionary(self) -> Dictionary:
        from neurollm.dictionaries import RandomDirections, RawUnits, load_dictionary
        from neurollm.errors import DataMismatch
        from neurollm.models import Site

        part, site_part = self.pipeline.dictionary, self.pipeline.model.site
        site = None if site_part is None else Site(site_part.layer, site_part.stream)
        if part.kind == "raw_units":
            return RawUnits(site, self.model.d_model)
        if part.kind == "random_directions":
            return RandomDirections(site, self.model.d_model, 4 * self.model.d_model, self.pipeline.seed)
        dictionary = load_dictionary(part.name or self._local(part.path))
        if site is not None and site != dictionary.site:
            raise DataMismatch(
                f"{self.file}: model.site is {site}, but the dictionary was trained at {dictionary.site}; "
                "leave model.site out, or use a dictionary of that site"
            )
        return dictionary

    def _local(self, name: str) -> str:
        """A name, or the path it stands for inside the project."""
        path = self.project.path(name)
        return str(path) if path.exists() else name

    # Trials -----------------------------------------------------------------------------

    def trial_inputs(self) -> dict[str, Any]:
        """What the trials depend on."""
        return {
            "neurollm": version("neurollm"),
            "stimuli": self.stimuli.sha256,
            "model": self.model.describe(),
            "dictionary": self.dictionary.fingerprint,
            "site": self.dictionary.site.to_dict(),
            "tokens": self.pipeline.features.tokens,
            "pool": self.pipeline.features.pool,
        }

    def masked(self, model: LanguageModel, dictionary: Dictionary) -> AnnData:
        """The stimuli's trials in one representation."""
        from neurollm.masking import FeatureMasker

        part = self.pipeline.features
        masker = FeatureMasker(model, dictionary, tokens=part.tokens, pool=part.pool, verbose=self.verbose)
        return masker.fit_transform(self.stimuli)

    def write_trials(self) -> list[Path]:
        """Run the stimuli and save ``trials.h5ad``."""
        from neurollm.masking import save_trials

        self.design.design_matrix(self.stimuli.table.set_index("stimulus_id"))  # refuse a bad design first
        file = self.folder / "trials.h5ad"
        save_trials(self.masked(self.model, self.dictionary), file)
        return [file]

    @cached_property
    def trials(self) -> AnnData:
        import anndata

        return anndata.read_h5ad(self.folder / "trials.h5ad")

    # Stimulus audit ---------------------------------------------------------------------

    def write_audit(self) -> list[Path]:
        """Measure the confounds of the stimuli and save ``audit.json``."""
        file = self.folder / "audit.json"
        write_json(file, self.stimuli.audit().to_frame().to_dict(orient="records"))
        return [file]

    # Contrasts --------------------------------------------------------------------------

    def glm_inputs(self) -> dict[str, Any]:
        """What the contrasts depend on, beside the trials."""
        return {
            "design": self.design.to_dict(),
            "contrasts": self.contrasts,
            "glm": self.pipeline.analyses.glm.model_dump(),
            "transform": self.pipeline.features.transform,
            "min_active_items": self.pipeline.features.min_active_items,
            "seed": self.pipeline.seed,
        }

    def tested(self, trials: AnnData) -> dict[str, ContrastResult]:
        """All contrasts on one set of trials."""
        from neurollm.glm import FeatureGLM

        part = self.pipeline.analyses.glm
        glm = FeatureGLM(
            self.design,
            n_perm=part.n_perm,
            alternative=part.alternative,
            random_state=self.pipeline.seed,
            min_active_items=self.pipeline.features.min_active_items,
            transform=self.pipeline.features.transform,
            verbose=self.verbose,
        ).fit(trials)
        return {name: glm.compute_contrast(expression, name=name) for name, expression in self.contrasts.items()}

    def write_glm(self) -> list[Path]:
        """Test the contrasts and save them with the design."""
        files = [self.folder / "design.json"]
        write_json(files[0], self._design_record())
        for result in self.tested(self.trials).values():
            result.save(self.folder / "glm")
            stem = slug(result.name)
            files += [self.folder / "glm" / f"{stem}{suffix}" for suffix in (".json", ".parquet", ".npz")]
        return files

    def _design_record(self) -> dict[str, Any]:
        obs = self.trials.obs
        matrix = self.design.design_matrix(obs)
        exchange = self.design.exchangeability(obs)
        cells = obs.groupby([self.design.factor, "template"], observed=True).size().reset_index(name="n")
        return self.design.to_dict() | {
            "levels": list(self.design.levels(obs)),
            "matrix": {
                "columns": list(matrix.columns),
                "index": list(matrix.index),
                "rows": matrix.to_numpy(dtype=float).tolist(),
            },
            "cells": cells.rename(columns={self.design.factor: "level"}).to_dict(orient="records"),
            "exchangeability": {
                "kind": exchange.kind,
                "sentence": exchange.sentence,
                "n_units": exchange.n_units,
                "n_possible": exchange.n_possible,
            },
            "contrasts": self.contrasts,
        }

    @cached_property
    def results(self) -> dict[str, ContrastResult]:
        """The saved contrasts by name."""
        from neurollm.glm import ContrastResult

        return {name: ContrastResult.load(self.folder / "glm" / f"{slug(name)}.json") for name in self.contrasts}

    # Contexts ---------------------------------------------------------------------------

    def context_inputs(self) -> dict[str, Any]:
        """What the top contexts depend on, beside the contrasts."""
        part = self.pipeline.analyses.contexts
        corpus = corpus_of(part.corpus, self.project, self.pipeline)
        return {"corpus": corpus.sha256, "top": part.top, "features": self.pipeline.report.top}

    def write_contexts(self) -> list[Path]:
        """Find the top contexts of the features in the report and save ``contexts.json``."""
        file = self.folder / "contexts.json"
        write_json(file, collect_contexts(self))
        return [file]

    # Controls ---------------------------------------------------------------------------

    def control_inputs(self) -> dict[str, Any]:
        """What the control rows depend on, beside the contrasts."""
        return {"controls": self.pipeline.controls, "seed": self.pipeline.seed}

    def write_controls(self) -> list[Path]:
        """Put every control representation beside the result and save ``controls.json``."""
        file = self.folder / "controls.json"
        write_json(file, control_rows(self))
        return [file]

    # Manifest ---------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """Everything the report says about how the study was made; no time of day in it."""
        from neurollm.masking import provenance

        made = provenance(self.trials)
        inputs = [self.file, self.project.path(self.pipeline.stimuli), self.project.path(self.pipeline.design)]
        return {
            "name": self.pipeline.name,
            "command": f"neurollm run {self.project.relative(self.file)}",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            "seed": self.pipeline.seed,
            "inputs": {self.project.relative(file): sha256_file(file) for file in inputs},
            "model": made["model"],
            "site": made["site"],
            "dictionary": made["dictionary"],
            "tokens": made["tokens"],
            "pool": made["pool"],
            "transform": self.pipeline.features.transform,
            "min_active_items": self.pipeline.features.min_active_items,
            "alpha": self.pipeline.analyses.glm.alpha,
            "n_stimuli": made["stimuli"]["n"],
            "dropped": made["dropped"],
        }

    def write_manifest(self, manifest: dict[str, Any]) -> list[Path]:
        """Save ``manifest.json``, ``dictionary.json`` and the resolved configuration."""
        import yaml

        files = [self.folder / name for name in ("manifest.json", "dictionary.json", "config.yaml")]
        write_json(files[0], manifest)
        write_json(files[1], self.dictionary.describe().get("metrics") or {})
        write_text(files[2], yaml.safe_dump(resolved(self.pipeline), sort_keys=False, allow_unicode=True))
        return files
