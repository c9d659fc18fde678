"""From a pipeline file to the kind of study that it is."""

from __future__ import annotations

import os

from neurollm.errors import InvalidInput
from neurollm.pipelines.factorial import FactorialRun
from neurollm.pipelines.grid import GridStudy
from neurollm.pipelines.study import Study
from neurollm.validation import read_yaml, shown

KINDS: dict[str, type[Study]] = {"method_grid": GridStudy, "factorial_study": FactorialRun}
"""By the field ``type`` of the file; a study has none."""


def open_study(path: str | os.PathLike, verbose: int = 1) -> Study:
    """The study, method grid or factorial study of a pipeline file.

    Raises
    ------
    InvalidInput
        The file is no YAML mapping, has a type that is unknown, or a field that is wrong.
    """
    found = read_yaml(path).get("type")
    if found is None:
        return Study.read(path, verbose)
    if not isinstance(found, str) or found not in KINDS:
        known = " or ".join(map(repr, KINDS))
        raise InvalidInput(f"{path}: field 'type' is {shown(found)}; it must be {known}, or left out for a study.")
    return KINDS[found].read(path, verbose)
