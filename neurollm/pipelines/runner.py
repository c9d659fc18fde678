"""Running one study: stimuli → trials → contrasts, RSA, decoding → contexts and controls → report."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from neurollm.files import write_json
from neurollm.pipelines.factorial import FactorialRun, run_factorial
from neurollm.pipelines.grid import GridStudy, run_steps
from neurollm.pipelines.opening import open_study
from neurollm.pipelines.steps import StepCache
from neurollm.pipelines.study import Study

LOG_ENTRIES = 100


@dataclass(frozen=True)
class StudyRun:
    """What `run_pipeline` did.

    Attributes
    ----------
    folder : Path
        The study's results.
    report : Path
        The HTML report.
    computed : tuple of str
        Steps that were computed; empty when everything was up to date.
    verdicts : tuple of str
        What the report says first: one statement per contrast.
    """

    folder: Path
    report: Path
    computed: tuple[str, ...]
    verdicts: tuple[str, ...]


def run_pipeline(path: str | os.PathLike, *, verbose: int = 1, n_jobs: int = 1) -> StudyRun:
    """Run a study, a method grid or a factorial study, or the part of it that is not up to date.

    Every step is skipped when neither its inputs nor its results have changed, so an
    interrupted run goes on where it was, and a second run does nothing.

    Parameters
    ----------
    path : path-like
        Pipeline file.
    verbose : int, default=1
        0 shows no progress.
    n_jobs : int, default=1
        Processes of a method grid and of a decoder's permutations; -1: one per core. Results do not depend on it.

    Returns
    -------
    StudyRun

    Raises
    ------
    InvalidInput, DataMismatch
        One sentence; nothing that was finished is lost.
    """
    from neurollm.reporting import verdicts
    from neurollm.reporting.factorial_results import factorial_verdict
    from neurollm.reporting.grid import grid_verdict

    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    study = open_study(path, verbose)
    study.n_jobs = n_jobs
    study.refuse_other_study()
    with StepCache.open(study.folder) as cache:
        if isinstance(study, GridStudy):
            run_steps(study, cache, n_jobs)
            told = [grid_verdict(study.folder)]
        elif isinstance(study, FactorialRun):
            run_factorial(study, cache)
            told = factorial_verdict(study.folder)
        else:
            _run_steps(study, cache)
            told = verdicts(study.folder)
        if cache.seconds:
            _log_run(study.folder, started, cache.seconds)
        return StudyRun(study.folder, study.folder / "report.html", tuple(cache.seconds), tuple(told))


def _run_steps(study: Study, cache: StepCache) -> None:
    from neurollm.reporting import build_report

    trials = cache.run("trials", study.trial_inputs(), study.write_trials)
    audit = cache.run("audit", study.audit_inputs(), study.write_audit)
    glm = cache.run("glm", [trials, study.glm_inputs()], study.write_glm)
    keys = [trials, audit, glm]
    if study.pipeline.analyses.contexts is not None:
        keys.append(cache.run("contexts", [glm, study.context_inputs()], study.write_contexts))
    if study.pipeline.controls:
        keys.append(cache.run("controls", [glm, study.control_inputs()], study.write_controls))
    if study.pipeline.analyses.rsa is not None:
        keys.append(cache.run("rsa", [trials, study.rsa_inputs()], study.write_rsa))
    if study.pipeline.analyses.decode is not None:
        keys.append(cache.run("decode", [trials, study.decode_inputs()], study.write_decode))
    manifest = study.manifest() | {"warnings": cache.warnings}
    keys.append(cache.run("manifest", [keys, manifest], lambda: study.write_manifest(manifest)))
    top = study.pipeline.report.top
    if cache.seconds:
        cache.forget_others()
    cache.run("report", [keys, top], lambda: [build_report(study.folder, top=top)])


def _log_run(folder: Path, started: str, seconds: dict[str, float]) -> None:
    """Append to ``log.json``: the only file of a study that knows the time of day."""
    file = folder / "log.json"
    try:
        entries = list(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        entries = []
    write_json(file, [*entries, {"started": started, "seconds": seconds}][-LOG_ENTRIES:])
