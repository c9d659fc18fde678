"""A method grid: what each of its steps depends on, and what it writes.

One step for each concept and representation, so that an interrupted run goes on there; then the shuffled labels, the
table with the contrasts, the manifest and the report.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json, write_text
from neurollm.pipelines.grid_schema import ConceptPart, MethodGrid, read_grid
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import resolved
from neurollm.pipelines.steps import StepCache
from neurollm.pipelines.study import _PACKAGES, Study
from neurollm.progress import Progress
from neurollm.validation import closest, listed

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.decoding.grid import GridPlan, GridScores
    from neurollm.dictionaries import Dictionary
    from neurollm.models import LanguageModel
    from neurollm.stimuli import StimulusSet

RANDOM = ("random_network", "random_directions", "random_sae")
"""Representations of which every repetition has a draw of its own."""
BASELINES = ("words", "length")
"""Rows without a model: the words of a sentence, and its length."""


@dataclass
class GridStudy(Study):
    """The file of a method grid with its inputs; model and dictionary are those of a study.

    Attributes
    ----------
    pipeline : MethodGrid
    """

    pipeline: MethodGrid
    _stimuli: dict[str, StimulusSet] = field(default_factory=dict)
    _trials: dict[tuple, tuple] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike, verbose: int = 1) -> GridStudy:
        """The grid of a pipeline file."""
        return cls(Project.of(path), Path(path), read_grid(path), verbose)

    def concept_stimuli(self, concept: ConceptPart) -> StimulusSet:
        """The stimuli of a concept.

        Raises
        ------
        InvalidInput
            The file has no such factor, level or unit.
        """
        from neurollm.stimuli import StimulusSet

        if concept.stimuli not in self._stimuli:
            self._stimuli[concept.stimuli] = StimulusSet.read_tsv(self.project.path(concept.stimuli))
        stimuli = self._stimuli[concept.stimuli]
        table, where = stimuli.table, f"{self.file}: concept {concept.name!r}"
        for name in (concept.factor, concept.unit):
            if name not in table:
                hint = closest(name, table.columns) or f"; its columns are {listed(table.columns)}"
                raise InvalidInput(f"{where}: {concept.stimuli} has no column {name!r}{hint}")
        levels = set(table[concept.factor].astype(str))
        if concept.target not in levels or len(levels) < 2:
            raise InvalidInput(
                f"{where}: target is {concept.target!r}, but {concept.factor!r} has the levels {listed(sorted(levels))}"
            )
        return stimuli

    @property
    def plan(self) -> GridPlan:
        """What is crossed in every concept and representation."""
        from neurollm.decoding.grid import GridPlan

        part = self.pipeline
        return GridPlan(tuple(part.selectors), tuple(part.k), part.n_folds, part.n_repeats, part.seed)

    # Trials -----------------------------------------------------------------------------

    def labels_and_units(self, concept: ConceptPart, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Whether each trial is of the concept, and its unit of cross-validation."""
        return (obs[concept.factor].astype(str) == concept.target).to_numpy(), obs[concept.unit].astype(str).to_numpy()

    def trials(self, concept: ConceptPart, name: str) -> tuple[Any, pd.DataFrame]:
        """Values of a representation, one matrix or one for each repetition, and the trial table.

        The last ones are kept: concepts of the same sentences follow each other.
        """
        key = concept.stimuli, concept.tokens, name
        if key not in self._trials:
            self._trials = {key: self._represent(concept, name)}
        return self._trials[key]

    def _represent(self, concept: ConceptPart, name: str) -> tuple[Any, pd.DataFrame]:
        from neurollm.masking import FeatureMasker

        part, stimuli = self.pipeline, self.concept_stimuli(concept)
        found = []
        for repeat in range(part.n_repeats if name in RANDOM else 1):
            model, dictionary = self._source(name, part.seed + repeat, stimuli)
            masker = FeatureMasker(model, dictionary, tokens=concept.tokens, pool=part.pool, verbose=0)
            found.append(masker.fit_transform(stimuli))
        matrices = [trials.X for trials in found]
        return matrices if name in RANDOM else matrices[0], found[0].obs

    def _source(self, name: str, seed: int, stimuli: StimulusSet) -> tuple[LanguageModel, Dictionary]:
        """The model and the dictionary whose features are a representation."""
        from neurollm.dictionaries import RandomDirections, RawUnits, random_sae
        from neurollm.models import Site, load_model

        model, dictionary, part = self.model, self.dictionary, self.pipeline.model
        units = RawUnits(dictionary.site, model.d_model)
        if name == "sae":
            return model, dictionary
        if name == "token_embeddings":
            return model, RawUnits(Site(0, "token_embedding"), model.d_model)
        if name == "random_directions":
            return model, RandomDirections.matching(dictionary, seed)
        if name == "random_sae":
            return model, random_sae(dictionary, seed, self._rows(units, stimuli))
        if name == "random_network":
            source = self._model_source()
            return load_model(source, device=part.device, dtype=part.dtype, random_init=seed), units
        return model, units

    def _rows(self, units: Dictionary, stimuli: StimulusSet) -> np.ndarray | None:
        """Activations on which an untrained SAE gets the L0 of the trained one; of the sentences, without labels."""
        from neurollm.masking import FeatureMasker

        if "k" in getattr(self.dictionary, "options", {}):
            return None
        rows = FeatureMasker(self.model, units, tokens="content", pool="none", verbose=0).fit_transform(stimuli)
        return rows.X.toarray()

    # Scores -----------------------------------------------------------------------------

    def score_inputs(self, concept: ConceptPart, name: str) -> dict[str, Any]:
        """What the scores of one concept and representation depend on."""
        part = self.pipeline
        inputs: dict[str, Any] = {
            "versions": [version("neurollm"), version("scikit-learn")],
            "stimuli": self.concept_stimuli(concept).sha256,
            "concept": concept.model_dump(exclude={"stimuli", "control"}),
            "representation": name,
            "grid": [part.n_folds, part.n_repeats, part.seed],
            "model": [self.model.fingerprint, str(self.model.dtype), str(self.model.device)],
            "dictionary": [self.dictionary.fingerprint, self.dictionary.site.to_dict()],
            "pool": part.pool,
        }
        return inputs | ({} if name in BASELINES else {"cells": [part.selectors, part.k]})

    def write_scores(self, concept: ConceptPart, name: str, n_jobs: int, report: Callable[[int], None]) -> list[Path]:
        """Out-of-fold scores and feature sets of one concept and representation."""
        from neurollm.decoding.grid import grid_scores

        if name in BASELINES:
            found, obs, labels, units = self._baseline(concept, name, report)
        else:
            X, obs = self.trials(concept, name)
            labels, units = self.labels_and_units(concept, obs)
            found = grid_scores(X, labels, units, self.plan, components=name == "pca", n_jobs=n_jobs, report=report)
        return self._save_scores(concept, name, found, obs, labels, units)

    def _baseline(
        self, concept: ConceptPart, name: str, report: Callable[[int], None]
    ) -> tuple[GridScores, pd.DataFrame, np.ndarray, np.ndarray]:
        """Scores of a baseline on the folds of the grid, for the texts of the trials that have a token."""
        from neurollm.decoding.baselines import ROWS, baselines
        from neurollm.decoding.grid import GridPlan, GridScores
        from neurollm.masking import FeatureMasker, trial_table

        part, stimuli = self.pipeline, self.concept_stimuli(concept)
        masker = FeatureMasker(self.model, self.dictionary, tokens=concept.tokens, pool=part.pool, verbose=0).fit()
        obs = trial_table(stimuli)[[len(where) > 0 for where in masker.positions(stimuli)]]
        labels, units = self.labels_and_units(concept, obs)
        plan = GridPlan((), (), part.n_folds, part.n_repeats, part.seed)
        folds, scores = plan.folds(labels, units), []
        for row in folds:
            found = baselines(obs["text"], labels, units, folds=row, n_boot=100)  # levels sort False, True
            scores.append(found.scores[[ROWS.index(name)]])
            report(part.n_folds)
        n_columns = np.zeros((len(folds), int(folds.max()) + 1), int)
        rankings = np.empty((*n_columns.shape, 0, 0), int)
        return GridScores(plan, folds, np.array(scores), rankings, n_columns, {}), obs, labels, units

    def _save_scores(
        self,
        concept: ConceptPart,
        name: str,
        found: GridScores,
        obs: pd.DataFrame,
        labels: np.ndarray,
        units: np.ndarray,
    ) -> list[Path]:
        import pandas as pd

        from neurollm.decoding.grid import cell_name

        R, n_cells, n = found.scores.shape
        frame = pd.DataFrame(
            {
                "concept": concept.name,
                "representation": name,
                "repeat": np.repeat(np.arange(R), n),
                "stimulus_id": np.tile(obs["stimulus_id"].astype(str), R),
                "unit": np.tile(units, R),
                "label": np.tile(labels, R),
                "fold": found.folds.ravel(),
            }
        )
        values = found.scores.transpose(0, 2, 1).reshape(R * n, n_cells).astype(np.float32)
        cells = pd.DataFrame(values, columns=[cell_name(cell) for cell in found.plan.cells])
        # All files have the same columns, so that the folder can be read as one table.
        cells = cells.reindex(columns=[cell_name(cell) for cell in self.plan.cells])
        files = [self._file(concept, name, suffix) for suffix in (".parquet", ".sets.parquet", ".json")]
        _write_parquet(files[0], pd.concat([frame, cells.astype(np.float32)], axis=1))
        _write_parquet(files[1], found.selected())
        left_out = [{"selector": s, "k": k, "reason": why} for (s, k), why in found.left_out.items()]
        write_json(files[2], {"n_columns": found.n_columns.tolist(), "left_out": left_out})
        return files

    def _file(self, concept: ConceptPart, name: str, suffix: str) -> Path:
        return self.folder / "scores" / f"{concept.name}-{name}{suffix}"

    def read_scores(self, concept: ConceptPart, name: str) -> pd.DataFrame:
        """The saved scores of one concept and representation, see `write_scores`."""
        import pandas as pd

        return pd.read_parquet(self._file(concept, name, ".parquet"))

    def read_sets(self, concept: ConceptPart, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The saved feature sets, and what was recorded with them."""
        import pandas as pd

        record = json.loads(self._file(concept, name, ".json").read_text(encoding="utf-8"))
        return pd.read_parquet(self._file(concept, name, ".sets.parquet")), record

    # Shuffled labels --------------------------------------------------------------------

    def write_shuffled(self, n_jobs: int, report: Callable[[int], None]) -> list[Path]:
        """The whole procedure on shuffled labels: AUROC of each shuffling."""
        from neurollm.decoding.grid import GridPlan, areas, grid_scores, shuffle_labels

        part, rows = self.pipeline.shuffled, []
        for concept, name in self.steps(part.representations):
            X, obs = self.trials(concept, name)
            labels, units = self.labels_and_units(concept, obs)
            found = []
            for index in range(part.n):
                plan = GridPlan(tuple(part.selectors), (part.k,), self.pipeline.n_folds, 1, self.pipeline.seed + index)
                shuffled = shuffle_labels(labels, units, self.pipeline.seed, index)
                matrix = X[index % len(X)] if isinstance(X, list) else X
                scores = grid_scores(
                    matrix, shuffled, units, plan, components=name == "pca", n_jobs=n_jobs, report=report
                )
                found.append(areas(scores.scores[0], shuffled, scores.folds[0]))
            for place, selector in enumerate(part.selectors):
                auroc = [round(float(one[place]), 6) for one in found if np.isfinite(one[place])]
                row = {"concept": concept.name, "representation": name, "selector": selector, "k": part.k}
                rows.append(row | {"auroc": auroc})
        file = self.folder / "shuffled.json"
        write_json(file, rows)
        return [file]

    def steps(self, representations: Sequence[str]) -> list[tuple[ConceptPart, str]]:
        """Concepts × representations in an order in which concepts of the same sentences share their trials."""
        groups: dict[tuple[str, str], list[ConceptPart]] = {}
        for concept in self.pipeline.concepts:
            groups.setdefault((concept.stimuli, concept.tokens), []).append(concept)
        return [(concept, name) for group in groups.values() for name in representations for concept in group]

    # Manifest ---------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """Everything the report says about how the grid was made; no time of day in it."""
        part = self.pipeline
        stimuli = [self.project.path(concept.stimuli) for concept in part.concepts]
        inputs = [self.file, *(file for one in dict.fromkeys(stimuli) for file in (one, one.with_suffix(".json")))]
        return {
            "type": "method_grid",
            "name": part.name,
            "pipeline": self.project.relative(self.file),
            "command": f"neurollm run {self.project.relative(self.file)}",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            "seed": part.seed,
            "inputs": {self.project.relative(file): sha256_file(file) for file in inputs if file.is_file()},
            "model": self.model.describe(),
            "site": self.dictionary.site.to_dict(),
            "dictionary": self.dictionary.describe(),
            "pool": part.pool,
        }

    def write_manifest(self, manifest: dict[str, Any]) -> list[Path]:
        """Save ``manifest.json`` and the resolved configuration."""
        import yaml

        files = [self.folder / name for name in ("manifest.json", "config.yaml")]
        write_json(files[0], manifest)
        write_text(files[1], yaml.safe_dump(resolved(self.pipeline), sort_keys=False, allow_unicode=True))
        return files


def run_steps(study: GridStudy, cache: StepCache, n_jobs: int) -> None:
    """Do what of a grid is not up to date."""
    from neurollm.pipelines.grid_table import write_table
    from neurollm.reporting.grid import build_grid_report

    part, keys = study.pipeline, []
    for concept in part.concepts:  # refuse what is wrong before the model runs
        study.concept_stimuli(concept)
    steps = study.steps((*part.representations, *BASELINES))
    of_step = part.n_folds * part.n_repeats
    shuffled = part.shuffled
    of_shuffled = len(part.concepts) * len(shuffled.representations) * shuffled.n * part.n_folds
    with Progress("method grid", len(steps) * of_step + of_shuffled, "folds", study.verbose) as progress:
        for concept, name in steps:
            done = progress.done
            write = lambda c=concept, r=name: study.write_scores(c, r, n_jobs, progress.advance)  # noqa: E731
            keys.append(cache.run(f"{concept.name} {name}", study.score_inputs(concept, name), write))
            if progress.done == done:
                progress.skip(of_step)
        if shuffled.n:
            inputs = [keys, shuffled.model_dump(), part.n_folds, part.seed]
            done = progress.done
            keys.append(cache.run("shuffled", inputs, lambda: study.write_shuffled(n_jobs, progress.advance)))
            if progress.done == done:
                progress.skip(of_shuffled)
    controls = [concept.control for concept in part.concepts]
    inputs = [keys, controls, part.n_boot, part.seed, part.alpha]
    keys = [*keys, cache.run("table", inputs, lambda: write_table(study))]
    manifest = study.manifest() | {"warnings": cache.warnings}
    keys.append(cache.run("manifest", [keys, manifest], lambda: study.write_manifest(manifest)))
    if cache.seconds:
        cache.forget_others()
    cache.run("report", keys, lambda: [build_grid_report(study.folder)])


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as partial:
        frame.to_parquet(partial, index=False)
