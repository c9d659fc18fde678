"""A factorial study of interactions: what each of its steps depends on, and what it writes.

stimulus audit → interaction model (and the dictionary of its dimensions) → trials of all representations in one pass →
a factorial study of each, with the same items in discovery and test → the same with controls → manifest → report.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm import datasets
from neurollm.errors import InvalidInput
from neurollm.files import sha256_file, sha256_json, write_json, write_text
from neurollm.pipelines.contexts import RESTING_STATE
from neurollm.pipelines.controls import _representation
from neurollm.pipelines.factorial_schema import FactorialFile, read_factorial
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import resolved
from neurollm.pipelines.steps import StepCache
from neurollm.pipelines.study import _PACKAGES, Study
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.activations import Corpus
    from neurollm.dictionaries import Dictionary
    from neurollm.factorial import FactorialStudy
    from neurollm.interactions.model import NFM
    from neurollm.interactions.rows import CodedRows
    from neurollm.interactions.secondary import SecondaryFit

SIZES = "sizes"
RANDOM, RANDOM_COMPONENT, RANDOM_SECONDARY = "random_nfm", "random_nfm_component", "random_nfm_secondary"
SHUFFLED = "shuffled_labels"
OTHER_COLUMNS = ("raw_units", "token_embeddings", "random_network")
"""Controls with columns of their own."""
FEWEST_WORDS = 4
"""A shorter stimulus may stand in any text: it is refused only as a document of its own."""


@dataclass
class FactorialRun(Study):
    """The file of a factorial study with its inputs; stimuli, model and dictionary are those of a study.

    Attributes
    ----------
    pipeline : FactorialFile
    """

    pipeline: FactorialFile

    @classmethod
    def read(cls, path: str | os.PathLike, verbose: int = 1) -> FactorialRun:
        """The factorial study of a pipeline file."""
        return cls(Project.of(path), Path(path), read_factorial(path), verbose)

    # Inputs -----------------------------------------------------------------------------

    def check_inputs(self) -> FactorialStudy:
        """Refuse what cannot be studied, before anything is trained; a study of random numbers is what it would be.

        Raises
        ------
        InvalidInput
            The design does not cross two factors of two levels, or has too few items; the dictionary is a
            transcoder; the corpus holds stimuli.
        DataMismatch
            The interaction model is of another dictionary.
        """
        from neurollm.designs import FactorialDesign
        from neurollm.interactions.features import InteractionFeatures

        design, where = self.design, f"{self.file}: design {self.pipeline.design}"
        if not isinstance(design, FactorialDesign):
            raise InvalidInput(f"{where} has type {design.type}; a factorial study needs type: factorial")
        levels = design.levels(self.obs)
        if len(levels) != 2:
            raise InvalidInput(f"{where} crosses {len(levels)} factors; a factorial study needs two of two levels each")
        for name, found in levels.items():
            if len(found) != 2:
                raise InvalidInput(f"{where}: factor {name!r} has {len(found)} levels, {listed(found)}; it needs two")
        if self.dictionary.is_transcoder:
            raise InvalidInput(
                f"{self.file}: {self.dictionary} is a transcoder; interaction models are of dictionaries of one site"
            )
        self.dictionary.check(self.model)
        if self.pipeline.interactions.path is not None:
            InteractionFeatures(self.dictionary, self.nfm)
        else:
            self._refuse_stimuli_in_corpus()
        nothing = stream(0, "factorial.check").standard_normal((len(self.obs), 1))
        return self._study(nothing, self.obs, [0])

    @cached_property
    def corpus(self) -> Corpus:
        """The texts of `interactions.corpus`, one after the other."""
        from neurollm.activations import Corpus

        names = self.pipeline.interactions.corpus
        paths = [datasets.demo_corpus_path() if name == RESTING_STATE else self.project.path(name) for name in names]
        parts = [Corpus.read(path) for path in paths]
        return Corpus([document for part in parts for document in part], ", ".join(names))

    def _refuse_stimuli_in_corpus(self) -> None:
        documents = [_plain(text) for _, text in self.corpus]
        whole, alone = "\n".join(documents), set(documents)
        for text in self.stimuli.table["text"]:
            plain = _plain(text)
            if plain in alone or (len(plain.split()) >= FEWEST_WORDS and plain in whole):
                raise InvalidInput(
                    f"{self.file}: interactions.corpus holds the stimulus {shown(text)}; the interaction model must "
                    "be trained on other texts"
                )

    # Interaction model ------------------------------------------------------------------

    @cached_property
    def nfm(self) -> NFM:
        """The saved interaction model, or the one that is trained under ``stores/``."""
        from neurollm.interactions.model import NFM
        from neurollm.interactions.training import train_nfm

        part = self.pipeline.interactions
        if part.path is not None:
            return NFM.load(self.project.path(part.path))
        options = part.model_dump(exclude={"path", "corpus"})
        return train_nfm(self.rows, out=self._store("nfm", self.nfm_inputs()), verbose=self.verbose, **options)

    @cached_property
    def rows(self) -> CodedRows:
        """Activations and codes of the corpus, kept under ``stores/``."""
        from neurollm.activations import harvest
        from neurollm.interactions.rows import CodedRows

        source = [self.model.fingerprint, str(self.model.dtype), self.corpus.sha256, str(self.dictionary.site)]
        folder = self._store("activations", source)
        store = harvest(self.model, self.corpus, self.dictionary.site, folder, verbose=self.verbose)
        codes = self._store("codes", [*source, self.dictionary.fingerprint])
        return CodedRows.of(store, self.dictionary, codes, verbose=self.verbose)

    def _store(self, kind: str, inputs: Any) -> Path:
        return self.project.stores / f"{kind}-{sha256_json(inputs)[:16]}"

    def nfm_inputs(self) -> dict[str, Any]:
        """What the interaction model depends on."""
        part = self.pipeline.interactions
        if part.path is not None:
            return {"nfm": self.nfm.fingerprint}
        return {
            "neurollm": version("neurollm"),
            "model": [self.model.fingerprint, str(self.model.dtype)],
            "dictionary": self.dictionary.fingerprint,
            "corpus": self.corpus.sha256,
            "training": part.model_dump(exclude={"path", "corpus"}),
        }

    def write_nfm(self) -> list[Path]:
        """Train the interaction model, or read it, and save ``nfm.json``: its sizes and what it explains."""
        nfm, made = self.nfm, self.nfm.provenance
        history = [entry["explained"] for entry in made.get("history") or []]
        record: dict[str, Any] = {
            "fingerprint": nfm.fingerprint,
            **{name: getattr(nfm, name) for name in ("n_features", "rank", "top_n", "readout", "has_refit")},
            "explained_validation": made.get("explained_validation"),
            "explained_of_rest": max(history) if history else None,
            "n_validation_documents": len(made.get("validation_documents") or []) or None,
            "corpus": None,
        }
        if self.pipeline.interactions.path is None:
            sources = self.pipeline.interactions.corpus
            record["corpus"] = {"sources": sources, "n_documents": len(self.corpus), "n_tokens": self.rows.n_rows}
        file = self.folder / "nfm.json"
        write_json(file, record)
        return [file]

    @cached_property
    def secondary(self) -> SecondaryFit:
        """The dictionary of the interaction dimensions and its nulls."""
        from neurollm.interactions.secondary import train_secondary

        options = {name: value for name, value in self.pipeline.secondary.model_dump().items() if value is not None}
        folder = self._secondary_folder
        seed = self.pipeline.interactions.random_state
        return train_secondary(self.nfm, self.rows, random_state=seed, out=folder, verbose=self.verbose, **options)

    @property
    def _secondary_folder(self) -> Path:
        return self._store("secondary", [self.nfm_inputs(), self.pipeline.secondary.model_dump()])

    def write_secondary(self) -> list[Path]:
        """Train the dictionary of the interaction dimensions and save ``secondary.json``: what it explains."""
        file = self.folder / "secondary.json"
        write_json(file, {"verdict": self.secondary.verdict()})
        return [file]

    # Trials -----------------------------------------------------------------------------

    def representations(self) -> dict[str, Dictionary]:
        """What is studied, in order, each with columns of the same tokens."""
        from neurollm.interactions.features import ComponentFeatures, InteractionFeatures
        from neurollm.pipelines.factorial_columns import ComponentSizes

        own: dict[str, Dictionary] = {"features": self.dictionary}
        own["interactions"] = InteractionFeatures(self.dictionary, self.nfm)
        if self.pipeline.secondary is not None:
            own["secondary"] = self.secondary.dictionary
        for name in ("dictionary", *(("linear",) if self.nfm.has_refit else ()), "interaction"):
            own[f"component_{name}"] = ComponentFeatures(self.dictionary, self.nfm, name)
        return own | {SIZES: ComponentSizes(self.dictionary, self.nfm)}

    def write_trials(self) -> list[Path]:
        """Run the stimuli and save ``trials.h5ad``: all representations side by side."""
        from neurollm.masking import save_trials

        file = self.folder / "trials.h5ad"
        save_trials(self._stacked(self.representations()), file)
        return [file]

    def _stacked(self, parts: dict[str, Dictionary]) -> Any:
        from neurollm.pipelines.factorial_columns import Stacked

        stacked = Stacked(parts)
        trials = self.masked(self.model, stacked)
        trials.var["representation"], trials.var["column"] = stacked.labels()
        return trials

    @cached_property
    def names(self) -> list[str]:
        """The representations in the saved trials."""
        return list(dict.fromkeys(self.trials.var["representation"].astype(str)))

    # Studies ----------------------------------------------------------------------------

    def factorial_inputs(self) -> dict[str, Any]:
        """What a factorial study depends on, beside the trials."""
        part = self.pipeline
        return {
            "design": self.design.to_dict(),
            "factorial": part.factorial.model_dump(exclude={"n_random", "n_shuffled"}),
            "min_active_items": part.features.min_active_items,
            "seed": part.seed,
        }

    def _study(self, X: Any, obs: pd.DataFrame, columns: Sequence[Any]) -> FactorialStudy:
        from neurollm.factorial import factorial_study

        part = self.pipeline
        options = part.factorial.model_dump(exclude={"n_random", "n_shuffled"})
        options |= {"min_active_items": part.features.min_active_items, "random_state": part.seed}
        if isinstance(columns[0], str):  # components, not numbers: so few that all are tested
            options["n_candidates"] = max(options["n_candidates"], len(columns))
        return factorial_study(X, obs, self.design, features=columns, **options)

    def columns(self, trials: Any, name: str | None = None) -> tuple[Any, list[Any]]:
        """Values and ids of the columns of a representation; of norms only those of components."""
        from neurollm.pipelines.factorial_columns import ERROR, REST

        if name is None:
            return trials.X, list(range(trials.n_vars))
        mine = (trials.var["representation"] == name).to_numpy()
        if name != SIZES:
            return trials.X[:, mine], list(range(int(mine.sum())))
        mine &= ~trials.var["column"].isin([ERROR, REST]).to_numpy()
        return trials.X[:, mine], trials.var["column"][mine].astype(str).tolist()

    def write_study(self, name: str) -> list[Path]:
        """Study one representation and save ``factorial/<name>/``."""
        return self._save(name, self.trials.obs, *self.columns(self.trials, name))

    def write_other_columns(self, control: str) -> list[Path]:
        """The same with the columns of a control."""
        trials = self.masked(*_representation(self, control))
        return self._save(control, trials.obs, *self.columns(trials))

    def _save(self, name: str, obs: pd.DataFrame, X: Any, columns: Sequence[Any]) -> list[Path]:
        folder = self.folder / "factorial" / name
        try:
            study = self._study(X, obs, columns)
        except InvalidInput as error:  # about these columns: the design was looked at before
            for file in folder.glob("*"):
                file.unlink()
            write_json(folder / "reason.json", {"n_columns": len(columns), "reason": str(error)})
            return [folder / "reason.json"]
        (folder / "reason.json").unlink(missing_ok=True)
        study.save(folder)
        return sorted(folder.glob("*"))

    # Controls of chance -----------------------------------------------------------------

    def write_random(self) -> list[Path]:
        """Dimensions and interaction component of untrained models: ``random_nfm.json``; those of the first in full."""
        from neurollm.dictionaries import load_dictionary
        from neurollm.interactions.features import ComponentFeatures, InteractionFeatures
        from neurollm.interactions.model import NFM
        from neurollm.interactions.secondary import SecondaryDictionary

        seed, n = self.pipeline.interactions.random_state, self.pipeline.factorial.n_random
        models = [NFM.random(self.nfm, seed + index) for index in range(n)]
        parts: dict[str, Dictionary] = {}
        for index, model in enumerate(models):
            parts[f"{RANDOM} {index}"] = InteractionFeatures(self.dictionary, model)
            parts[f"{RANDOM_COMPONENT} {index}"] = ComponentFeatures(self.dictionary, model, "interaction")
        if self.pipeline.secondary is not None:
            _ = self.secondary  # trains its null too
            sae = load_dictionary(self._secondary_folder / "random")
            parts[RANDOM_SECONDARY] = SecondaryDictionary(self.dictionary, models[0], sae)
        trials = self._stacked(parts)
        draws: dict[str, list[Any]] = {RANDOM: [], RANDOM_COMPONENT: []}
        with Progress("untrained embeddings", n, "draws", self.verbose) as progress:
            for index in range(n):
                for name, found in draws.items():
                    found.append(self._counts(trials.obs, *self.columns(trials, f"{name} {index}")))
                progress.advance(1)
        file = self.folder / "random_nfm.json"
        write_json(file, draws)
        first = {f"{name} 0": name for name in draws} | {RANDOM_SECONDARY: RANDOM_SECONDARY}
        saved = [
            self._save(name, trials.obs, *self.columns(trials, key))
            for key, name in first.items()
            if name in draws or key in parts
        ]
        return [file, *(path for paths in saved for path in paths)]

    def write_shuffled(self) -> list[Path]:
        """The study of every representation with exchanged labels: ``shuffled.json``."""
        from neurollm.pipelines.factorial_columns import exchange_labels

        n, trials, names = self.pipeline.factorial.n_shuffled, self.trials, self.names
        draws: dict[str, list[Any]] = {name: [] for name in names}
        with Progress("shuffled labels", n * len(names), "studies", self.verbose) as progress:
            for index in range(n):
                obs = exchange_labels(trials.obs, self.design, self.pipeline.seed, index)
                for name in names:
                    draws[name].append(self._counts(obs, *self.columns(trials, name)))
                    progress.advance(1)
        file = self.folder / "shuffled.json"
        write_json(file, draws)
        return [file]

    def _counts(self, obs: pd.DataFrame, X: Any, columns: Sequence[Any]) -> dict[str, Any] | None:
        """What one study found, in numbers; None if there was nothing to test."""
        import warnings

        from neurollm.reporting.factorial_results import counts

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the study itself has told
            try:
                return counts(self._study(X, obs, columns))
            except InvalidInput:
                return None

    # Summary and manifest ---------------------------------------------------------------

    def write_sizes(self) -> list[Path]:
        """Mean squared norms on the stimuli, by component: ``sizes.json``."""
        mine = (self.trials.var["representation"] == SIZES).to_numpy()
        means = np.asarray(self.trials.X[:, mine].mean(axis=0), float).ravel()
        names = self.trials.var["column"][mine].astype(str)
        file = self.folder / "sizes.json"
        write_json(file, {name: float(f"{value:.6g}") for name, value in zip(names, means, strict=True)})
        return [file]

    def manifest(self) -> dict[str, Any]:
        """Everything the report says about how the study was made; no time of day in it."""
        from neurollm.masking import provenance

        part, made = self.pipeline, provenance(self.trials)
        stimuli = self.project.path(part.stimuli)
        inputs = [self.file, stimuli, stimuli.with_suffix(".json"), self.project.path(part.design)]
        corpora = [name for name in part.interactions.corpus or [] if name != RESTING_STATE]
        inputs += [self.project.path(name) for name in corpora]
        return {
            "type": "factorial_study",
            "name": part.name,
            "pipeline": self.project.relative(self.file),
            "command": f"neurollm run {self.project.relative(self.file)}",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            "seed": part.seed,
            "inputs": {self.project.relative(file): sha256_file(file) for file in inputs if file.is_file()},
            "model": made["model"],
            "site": made["site"],
            "dictionary": self.dictionary.describe(),
            "nfm": json.loads((self.folder / "nfm.json").read_text(encoding="utf-8")),
            "representations": self.names,
            "tokens": made["tokens"],
            "pool": made["pool"],
            "alpha": part.factorial.alpha,
            "n_stimuli": made["stimuli"]["n"],
            "dropped": made["dropped"],
        }

    def write_manifest(self, manifest: dict[str, Any]) -> list[Path]:
        """Save ``manifest.json`` and the resolved configuration."""
        import yaml

        files = [self.folder / name for name in ("manifest.json", "config.yaml")]
        write_json(files[0], manifest)
        write_text(files[1], yaml.safe_dump(resolved(self.pipeline), sort_keys=False, allow_unicode=True))
        return files


def run_factorial(study: FactorialRun, cache: StepCache) -> None:
    """Do what of a factorial study is not up to date."""
    from neurollm.reporting.factorial import build_factorial_report

    part, asked = study.pipeline, study.factorial_inputs()
    study.check_inputs()
    keys = [cache.run("audit", study.audit_inputs(), study.write_audit)]
    made = [cache.run("nfm", study.nfm_inputs(), study.write_nfm)]
    if part.secondary is not None:
        made.append(cache.run("secondary", [made, part.secondary.model_dump()], study.write_secondary))
    trials = cache.run("trials", [made, study.trial_inputs()], study.write_trials)
    keys += [*made, cache.run("sizes", [trials], study.write_sizes)]
    for name in study.names:
        inputs, write = [trials, asked], lambda name=name: study.write_study(name)
        keys.append(cache.run(f"factorial {name}", inputs, write))
    for name in [name for name in OTHER_COLUMNS if name in part.controls]:
        inputs, write = [study.trial_inputs(), asked], lambda name=name: study.write_other_columns(name)
        keys.append(cache.run(f"factorial {name}", inputs, write))
    if RANDOM in part.controls:
        keys.append(cache.run(RANDOM, [trials, asked, part.factorial.n_random], study.write_random))
    if SHUFFLED in part.controls:
        keys.append(cache.run(SHUFFLED, [trials, asked, part.factorial.n_shuffled], study.write_shuffled))
    manifest = study.manifest() | {"warnings": list(dict.fromkeys(cache.warnings))}
    keys.append(cache.run("manifest", [keys, manifest], lambda: study.write_manifest(manifest)))
    if cache.seconds:
        cache.forget_others()
    top = part.report.top
    cache.run("report", [keys, top], lambda: [build_factorial_report(study.folder)])


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
