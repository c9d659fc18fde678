"""What `neurollm train` and `neurollm sweep` do with their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import DictionaryToTrain, SweepFile, TrainingFile
from neurollm.validation import read_yaml, validate

if TYPE_CHECKING:
    from neurollm.dictionaries import SAE, DictionaryMetrics, Plan


def run_training(file: str | os.PathLike, *, verbose: int = 1) -> list[str]:
    """Train the dictionaries of a training file, and measure them if it names held-out data.

    Started by `torchrun`, all processes train together and the first one measures.

    Parameters
    ----------
    file : path-like
        See `TrainingFile`.
    verbose : int, default=1

    Returns
    -------
    list of str
        One line per dictionary; none in other processes than the first.

    Raises
    ------
    InvalidInput, DataMismatch
        One sentence with file and field, or about what does not belong together.
    """
    from neurollm.activations import ActivationStore
    from neurollm.dictionaries.held_out import check_held_out, measure
    from neurollm.dictionaries.training import torchrun, train_dictionaries

    settings = validate(TrainingFile, read_yaml(file), file)
    project = Project.of(file)
    store = ActivationStore(project.path(settings.store))
    held_out = None if settings.held_out is None else ActivationStore(project.path(settings.held_out))
    if held_out is not None:
        check_held_out(store, held_out)
    plans = _plans(settings, project)
    with torchrun() as group:
        dictionaries = train_dictionaries(store, plans, verbose=verbose)
    if group.rank:
        return []
    told = []
    for plan, dictionary in zip(plans, dictionaries, strict=True):
        metrics = None if held_out is None else measure(dictionary, plan.out, held_out)
        told.append(_line(plan, dictionary, metrics))
    return told


def run_sweep(file: str | os.PathLike, *, verbose: int = 1) -> tuple[str, Path] | None:
    """Train and measure the dictionaries of a sweep file, and write the report.

    Parameters
    ----------
    file : path-like
        See `SweepFile`.
    verbose : int, default=1

    Returns
    -------
    tuple of str and Path, or None
        The table with the law below it, and the report; None in other processes than the first of `torchrun`.

    Raises
    ------
    InvalidInput, DataMismatch
        As `run_training`.
    """
    from neurollm.activations import ActivationStore
    from neurollm.dictionaries.held_out import check_held_out
    from neurollm.dictionaries.sweeping import sweep_dictionaries
    from neurollm.dictionaries.training import torchrun, train_dictionaries
    from neurollm.reporting import build_dictionary_report

    settings = validate(SweepFile, read_yaml(file), file)
    project = Project.of(file)
    store, held_out = (ActivationStore(project.path(name)) for name in (settings.store, settings.held_out))
    check_held_out(store, held_out)
    grid, out = settings.grid(), project.path(settings.out)
    with torchrun() as group:
        train_dictionaries(store, grid.plans(out), verbose=verbose)
    if group.rank:
        return None
    result = sweep_dictionaries(store, held_out, out=out, verbose=verbose, **vars(grid))
    columns = ["n_features", "k", "n_tokens", "random_state", "ev", "fvu", "l0", "dead", "gini"]
    table = result.table[columns].to_string(index=False, float_format=lambda value: f"{value:.4f}")
    lines = [table, f"FVU {result.law.describe()} (95% CI)", result.doubt]
    return "\n".join(filter(None, lines)), build_dictionary_report(out)


def _plans(settings: TrainingFile, project: Project) -> list[Plan]:
    out = project.path(settings.out)
    if settings.dictionaries is None:
        return [_plan(settings, out, project)]
    return [_plan(entry, out / entry.name, project) for entry in settings.dictionaries]


def _plan(wanted: DictionaryToTrain, out: Path, project: Project) -> Plan:
    from neurollm.dictionaries import Plan

    return Plan(
        architecture=wanted.architecture,
        n_features=wanted.n_features,
        k=wanted.k,
        n_tokens=wanted.n_tokens,
        random_state=wanted.random_state,
        training=wanted.options(),
        out=out,
        init_from=None if wanted.init_from is None else project.path(wanted.init_from),
        snapshots=wanted.snapshots,
    )


def _line(plan: Plan, dictionary: SAE, metrics: DictionaryMetrics | None) -> str:
    """What is printed about a finished dictionary."""
    what = f"{short_path(Path(plan.out))}: {plan.architecture}, {dictionary.n_features:,} features at {dictionary.site}"
    if metrics is None:
        return what
    figures = {"EV": f"{metrics.ev:.4f}", "L0": f"{metrics.l0:.1f}", "dead": f"{metrics.dead:.1%}"}
    told = "  ".join(f"{name} {value}" for name, value in figures.items())
    return f"{what}: {told}  Gini {metrics.gini:.2f}  (held out, {metrics.n_tokens:,} tokens)"


def short_path(path: Path) -> Path:
    """The path as seen from here, when it lies below."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
