"""What is in a project: its studies and what came out of them."""

from __future__ import annotations

import os
from pathlib import Path

from neurollm.errors import InvalidInput, NeurollmError
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import read_pipeline


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

    title = file.relative_to(root)
    try:
        study = Project.of(file).study(read_pipeline(file).name)
    except NeurollmError as error:
        return f"{title}\n    not valid: {error}"
    if not (study / "report.html").is_file():
        return f"{title}\n    not run yet"
    return "\n    ".join([str(title), *verdicts(study), f"report: {study.relative_to(root.resolve()) / 'report.html'}"])
