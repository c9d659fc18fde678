"""The user's project: five folders, and where a pipeline's files lie."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from neurollm import datasets
from neurollm.errors import InvalidInput
from neurollm.files import writing

FOLDERS = ("stimuli", "designs", "pipelines", "dictionaries", "reports")


@dataclass(frozen=True)
class Project:
    """A folder with ``stimuli/``, ``designs/``, ``pipelines/``, ``dictionaries/`` and ``reports/``.

    Attributes
    ----------
    root : Path
    """

    root: Path

    @classmethod
    def of(cls, pipeline_file: str | os.PathLike) -> Project:
        """The project of a file: the nearest folder above it that holds ``pipelines/``, else the file's own folder."""
        folder = Path(os.path.abspath(pipeline_file)).parent
        return cls(next((above for above in (folder, *folder.parents) if (above / "pipelines").is_dir()), folder))

    def path(self, relative: str) -> Path:
        """A path of a pipeline file: relative ones start at the project's root."""
        return self.root / relative

    def relative(self, path: Path) -> str:
        """A path as it is written in a pipeline file; paths outside the project lose their folders."""
        path = Path(os.path.abspath(path))
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def study(self, name: str) -> Path:
        """The folder of a study's results."""
        return self.root / "reports" / name

    @property
    def stores(self) -> Path:
        """Feature indices and other things that can be computed again."""
        return self.root / "stores"


def new_project(folder: str | os.PathLike) -> Project:
    """Create a project with working examples.

    Parameters
    ----------
    folder : path-like
        Must not exist, or be empty.

    Returns
    -------
    Project

    Raises
    ------
    InvalidInput
        If the folder has something in it.
    """
    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InvalidInput(f"{target} exists and is not an empty folder; choose another name")
    source = datasets.example_project_path()
    with writing(target):
        for name in FOLDERS:
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((source / name).glob("*")) if name != "reports" else ():
                if file.suffix in (".tsv", ".json", ".yaml"):
                    shutil.copyfile(file, target / name / file.name)
    return Project(target.resolve())
