"""What is in a project: its studies and what came out of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from neurollm.errors import InvalidInput, NeurollmError
from neurollm.files import sha256_file
from neurollm.pipelines.factorial import FactorialRun
from neurollm.pipelines.grid import GridStudy
from neurollm.pipelines.opening import open_study
from neurollm.pipelines.study import Study


def list_studies(folder: str | os.PathLike = ".") -> str:
    """The pipelines of a project with the state and the verdicts of each.

    Parameters
    ----------
    folder : path-like
        Project folder.

    Returns
    -------
    str
        One block per pipeline file.

    Raises
    ------
    InvalidInput
        If the folder has no ``pipelines/``.
    """
    root = Path(folder)
    files = sorted((root / "pipelines").glob("*.yaml"))
    if not files:
        raise InvalidInput(
            f"{root / 'pipelines'}: no pipeline file there; `neurollm new NAME` makes a project with examples"
        )
    return "\n".join(_entry(file, root) for file in files)


def _entry(file: Path, root: Path) -> str:
    from neurollm.reporting import verdicts
    from neurollm.reporting.factorial_results import factorial_verdict
    from neurollm.reporting.grid import grid_verdict

    title = str(file.relative_to(root))
    try:
        study = open_study(file)
        study.refuse_other_study()
        if not (study.folder / "report.html").is_file():
            return f"{title}\n    not run yet"
        if isinstance(study, FactorialRun):
            told = factorial_verdict(study.folder)
        else:
            told = [grid_verdict(study.folder)] if isinstance(study, GridStudy) else verdicts(study.folder)
        lines = [*told, f"report: {study.project.relative(study.folder / 'report.html')}"]
    except NeurollmError as error:
        return f"{title}\n    not valid: {error}"
    changed = _changed_inputs(study)
    if changed:
        lines.insert(0, f"changed since the run: {', '.join(changed)}; run it again")
    return "\n    ".join([title, *lines])


def _changed_inputs(study: Study) -> list[str]:
    """Input files whose content is not what the results were made from."""
    recorded = json.loads((study.folder / "manifest.json").read_text(encoding="utf-8")).get("inputs", {})
    return [
        name
        for name, digest in recorded.items()
        if not study.project.path(name).is_file() or sha256_file(study.project.path(name)) != digest
    ]
