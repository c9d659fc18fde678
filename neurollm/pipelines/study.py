"""The steps of a study: what each depends on, and what it writes."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, slug, write_json, write_text
from neurollm.pipelines.contexts import collect_contexts, read_corpora
from neurollm.pipelines.controls import control_rows, control_trials
from neurollm.pipelines.decode import decode_records, problems
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import Pipeline, read_pipeline, resolved

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from neurollm.designs import Contrast, ContrastPlan, Design
    from neurollm.dictionaries import Dictionary
    from neurollm.glm import ContrastResult
    from neurollm.models import LanguageModel
    from neurollm.rsa import RSAResult
    from neurollm.stimuli import StimulusSet
    from neurollm.stimuli.audit import AuditReport

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
    n_jobs : int
        Processes of permutations that refit a decoder.
    """

    project: Project
    file: Path
    pipeline: Pipeline
    verbose: int = 1
    n_jobs: int = 1

    @classmethod
    def read(cls, path: str | os.PathLike, verbose: int = 1) -> Study:
        """The study of a pipeline file."""
        return cls(Project.of(path), Path(path), read_pipeline(path), verbose)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.project.study(self.pipeline.name)

    @cached_property
    def stimuli(self) -> StimulusSet:
        from neurollm.stimuli import StimulusSet

        return StimulusSet.read_tsv(self.project.path(self.pipeline.stimuli))

    @cached_property
    def _design_file(self) -> tuple[Design, dict[str, Any]]:
        from neurollm.designs import read_design

        return read_design(self.project.path(self.pipeline.design))

    @property
    def design(self) -> Design:
        return self._design_file[0]

    @cached_property
    def contrasts(self) -> dict[str, Contrast]:
        """The questions by name: those of the design file, else the design's own effects."""
        asked = self._design_file[1] or self.design.effects(self.obs)
        return {name: self.design.contrast(spec, self.obs, name) for name, spec in asked.items()}

    @cached_property
    def model(self) -> LanguageModel:
        from neurollm.models import load_model

        part = self.pipeline.model
        return load_model(self._model_source(), device=part.device, dtype=part.dtype)

    @cached_property
    def dictionary(self) -> Dictionary:
        from neurollm.dictionaries import RandomDirections, RawUnits, load_dictionary
        from neurollm.models import Site

        part, site_part = self.pipeline.dictionary, self.pipeline.model.site
        site = None if site_part is None else Site(site_part.layer, site_part.stream)
        if part.kind is not None:
            self.model.module_at(site)  # refuses a site that the model does not have
        if part.kind == "raw_units":
            return RawUnits(site, self.model.d_model)
        if part.kind == "random_directions":
            return RandomDirections(site, self.model.d_model, 4 * self.model.d_model, self.pipeline.seed)
        dictionary = load_dictionary(part.name or self.project.path(part.path))
        if site is not None and site != dictionary.site:
            raise DataMismatch(
                f"{self.file}: model.site is {site}, but the dictionary was trained at {dictionary.site}; "
                "leave model.site out, or use a dictionary of that site"
            )
        return dictionary

    def _model_source(self) -> str:
        """The model's name, or its folder in the project; never a folder that merely lies where the user stands."""
        name = self.pipeline.model.name
        if name in ("demo", "minilm"):
            return name
        path = self.project.path(name)
        if not path.is_dir() and Path(name).is_dir():
            raise InvalidInput(
                f"{self.file}: model.name {name!r} is no folder of the project {self.project.root}; "
                "give its path from there, or an absolute path"
            )
        return str(path) if path.is_dir() else name

    def refuse_other_study(self) -> None:
        """Two pipeline files must not share one folder of results.

        Raises
        ------
        DataMismatch
            If the folder holds the results of another pipeline file.
        """
        try:
            other = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["pipeline"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        same = self.file.resolve() == (self.folder / "config.yaml").resolve()
        if not same and other != self.project.relative(self.file) and self.project.path(other).is_file():
            raise DataMismatch(
                f"{self.file}: the study {self.pipeline.name!r} already has results of {other} in {self.folder}; "
                "give this pipeline another name"
            )

    # Trials -----------------------------------------------------------------------------

    def trial_inputs(self) -> dict[str, Any]:
        """What the trials depend on."""
        return {
            "neurollm": version("neurollm"),
            "stimuli": self.stimuli.sha256,
            "model": [self.model.fingerprint, str(self.model.dtype), str(self.model.device)],
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

        self.plans()  # refuse a bad design or analysis before the model runs
        self.check_analyses()
        file = self.folder / "trials.h5ad"
        save_trials(self.masked(self.model, self.dictionary), file)
        return [file]

    def plans(self) -> dict[str, ContrastPlan]:
        """How every contrast is tested, from the stimuli alone."""
        table = self.design.table(self.obs)
        return {name: self.design.plan(table, contrast) for name, contrast in self.contrasts.items()}

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The stimulus table as trials will carry it."""
        from neurollm.masking import trial_table

        return trial_table(self.stimuli)

    @cached_property
    def trials(self) -> AnnData:
        import anndata

        return anndata.read_h5ad(self.folder / "trials.h5ad")

    # Stimulus audit ---------------------------------------------------------------------

    def audit_inputs(self) -> dict[str, Any]:
        """What the audit depends on: the table, and what the sidecar says of its columns."""
        return {
            "neurollm": version("neurollm"),
            "stimuli": self.stimuli.sha256,
            "item": self.design.item,
            "columns": self.stimuli.columns,
            "levels": {factor: self.stimuli.levels(factor) for factor in self.stimuli.factors},
        }

    def audit(self) -> AuditReport:
        """The confounds of the stimuli, for the items of the design."""
        return self.stimuli.audit(item=self.design.item or "item")

    def write_audit(self) -> list[Path]:
        """Measure the confounds of the stimuli and save ``audit.json``."""
        file = self.folder / "audit.json"
        write_json(file, self.audit().to_frame().to_dict(orient="records"))
        return [file]

    # Contrasts --------------------------------------------------------------------------

    def glm_inputs(self) -> dict[str, Any]:
        """What the contrasts depend on, beside the trials."""
        return {
            "design": self.design.to_dict(),
            "contrasts": {name: contrast.to_dict() for name, contrast in self.contrasts.items()},
            "glm": self.pipeline.analyses.glm.model_dump(),
            "transform": self.pipeline.features.transform,
            "min_active_items": self.pipeline.features.min_active_items,
            "testable_at": self.pipeline.features.testable_at,
            "seed": self.pipeline.seed,
        }

    def tested(self, trials: AnnData, transform: str) -> dict[str, ContrastResult]:
        """All contrasts on one set of trials."""
        from neurollm.glm import FeatureGLM

        part = self.pipeline.analyses.glm
        glm = FeatureGLM(
            self.design,
            n_perm=part.n_perm,
            alternative=part.alternative,
            random_state=self.pipeline.seed,
            min_active_items=self.pipeline.features.min_active_items,
            testable_at=self.pipeline.features.testable_at,
            scale=transform,
            stat=part.stat,
            fdr=part.fdr,
            tail=part.tail,
            verbose=self.verbose,
        ).fit(trials)
        return glm.compute_contrasts(self.contrasts)

    def write_glm(self) -> list[Path]:
        """Test the contrasts and save them with the design."""
        files = [self.folder / "design.json"]
        write_json(files[0], self._design_record())
        for result in self.tested(self.trials, self.pipeline.features.transform).values():
            result.save(self.folder / "glm")
            stem = slug(result.name)
            files += [self.folder / "glm" / f"{stem}{suffix}" for suffix in (".json", ".parquet", ".npz")]
        return files

    def _design_record(self) -> dict[str, Any]:
        obs = self.trials.obs
        matrix = self.design.design_matrix(obs)
        return self.design.to_dict() | {
            "variables": self._variables(obs),
            "matrix": {
                "columns": list(matrix.columns),
                "index": list(matrix.index),
                "rows": matrix.to_numpy(dtype=float).tolist(),
            },
            "cells": self._cells(obs),
            "n_items": len(set(self.design.item_labels(obs))),
            "contrasts": {name: contrast.expression for name, contrast in self.contrasts.items()},
        }

    def _variables(self, obs: pd.DataFrame) -> dict[str, list[str]]:
        """Levels of what is compared; none for the variables of a formula, which may be numbers."""
        levels = self.design.levels(obs) if hasattr(self.design, "levels") else {}
        return {name: list(levels.get(name, ())) for name in self.design.variables}

    def _cells(self, obs: pd.DataFrame) -> list[dict[str, Any]]:
        """Number of stimuli in every cell, by wording."""
        import pandas as pd

        names, codes = self.design.cells(obs)
        counts = pd.crosstab(codes, obs["template"].astype(str))
        return [
            {"level": names[code], "template": template, "n": int(counts.loc[code, template])}
            for code in counts.index
            for template in counts.columns
        ]

    @cached_property
    def results(self) -> dict[str, ContrastResult]:
        """The saved contrasts by name."""
        from neurollm.glm import ContrastResult

        return {name: ContrastResult.load(self.folder / "glm" / f"{slug(name)}.json") for name in self.contrasts}

    # RSA and decoding -------------------------------------------------------------------

    def check_analyses(self) -> dict[str, str]:
        """What RSA and decoding will do, in a sentence for each model and contrast, from the stimuli alone.

        Raises
        ------
        InvalidInput
            An unknown model, level or column; nothing to exchange or to decode.
        """
        told, analyses = {}, self.pipeline.analyses
        if analyses.rsa is not None:
            try:
                found = self._rsa(np.zeros((len(self.obs), 1)), self.obs, n_perm=0)
            except InvalidInput as error:
                raise InvalidInput(f"{self.file}: analyses.rsa: {error}") from None
            told |= {f"rsa {one.model}": f"{one.description}. {one.exchange}" for one in found.maps}
        if analyses.decode is not None:
            self._check_panel()
            for name, problem in problems(self, self.obs).items():
                told[f"decode {name}"] = problem if isinstance(problem, str) else problem.sentence
        return told

    def _check_panel(self) -> None:
        asked, there = self.pipeline.analyses.decode.n_features, self.dictionary.n_features
        if asked > there:
            raise InvalidInput(
                f"{self.file}: analyses.decode.n_features is {asked:,}, but the dictionary has {there:,} features."
            )

    def _rsa(self, X: Any, obs: pd.DataFrame | None, n_perm: int) -> RSAResult:
        from neurollm.rsa import FeatureRSA

        part = self.pipeline.analyses.rsa
        rsa = FeatureRSA(
            self.design,
            models=part.models,
            comparison=part.comparison,
            distance=part.distance,
            nuisance=part.nuisance,
            n_perm=n_perm,
            alternative=part.alternative,
            random_state=self.pipeline.seed,
            min_active=part.min_active,
            scale=self.pipeline.features.transform,
            verbose=self.verbose if n_perm else 0,
        )
        return rsa.fit(X, obs).result_

    def rsa_inputs(self) -> dict[str, Any]:
        """What RSA depends on, beside the trials."""
        return {
            "design": self.design.to_dict(),
            "rsa": self.pipeline.analyses.rsa.model_dump(),
            "transform": self.pipeline.features.transform,
            "seed": self.pipeline.seed,
        }

    def write_rsa(self) -> list[Path]:
        """Compare every feature with the model RDMs and save ``rsa/``."""
        self.check_analyses()
        file = self._rsa(self.trials, None, self.pipeline.analyses.rsa.n_perm).save(self.folder / "rsa")
        return [file.with_suffix(suffix) for suffix in (".json", ".parquet", ".npz")]

    def decode_inputs(self) -> dict[str, Any]:
        """What decoding depends on, beside the trials."""
        return {
            "design": self.design.to_dict(),
            "contrasts": {name: contrast.to_dict() for name, contrast in self.contrasts.items()},
            "decode": self.pipeline.analyses.decode.model_dump(),
            "controls": self.pipeline.controls,
            "transform": self.pipeline.features.transform,
            "seed": self.pipeline.seed,
        }

    def write_decode(self) -> list[Path]:
        """Decode the contrasts and save ``decode.json`` and the decisions about every trial in ``decode.parquet``."""
        self.check_analyses()
        records, predictions = decode_records(self)
        files = [self.folder / "decode.json", self.folder / "decode.parquet"]
        write_json(files[0], records)
        with atomic_path(files[1]) as partial:
            predictions.to_parquet(partial, index=False)
        return files

    # Contexts ---------------------------------------------------------------------------

    def context_inputs(self) -> dict[str, Any]:
        """What the top contexts depend on, beside the contrasts."""
        corpora = {source: corpus.sha256 for source, corpus in read_corpora(self).items()}
        return {"corpora": corpora, "top": self.pipeline.analyses.contexts.top, "features": self.pipeline.report.top}

    def write_contexts(self) -> list[Path]:
        """Find the top contexts of the features in the report and save ``contexts.json``."""
        file = self.folder / "contexts.json"
        write_json(file, collect_contexts(self))
        return [file]

    # Controls ---------------------------------------------------------------------------

    @cached_property
    def control_trials(self) -> dict[str, AnnData]:
        """The trials in every control representation by name."""
        return control_trials(self)

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
        stimuli = self.project.path(self.pipeline.stimuli)
        inputs = [self.file, stimuli, stimuli.with_suffix(".json"), self.project.path(self.pipeline.design)]
        return {
            "name": self.pipeline.name,
            "pipeline": self.project.relative(self.file),
            "command": f"neurollm run {self.project.relative(self.file)}",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            "seed": self.pipeline.seed,
            "inputs": {self.project.relative(file): sha256_file(file) for file in inputs if file.is_file()},
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
