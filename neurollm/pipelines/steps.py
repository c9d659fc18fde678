"""Steps of a study, cached by the content of what goes into them."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurollm.files import sha256_file, sha256_json, write_json

logger = logging.getLogger("neurollm")


class StepCache:
    """Run a step only when its inputs or its results changed.

    A step is known by the hash of its inputs; it is finished when ``steps.json`` names
    that hash and the SHA-256 of every file it wrote. An interrupted step leaves no entry
    and is run again, so what is in the folder always equals an uninterrupted run.

    Parameters
    ----------
    folder : Path
        The study's folder.

    Attributes
    ----------
    seconds : dict
        Wall-clock time of the steps that were computed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._file = folder / "steps.json"
        try:
            self._done = json.loads(self._file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            self._done = {}
        self._current: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What the steps of this run warned about, now or when they were computed."""
        return [sentence for name in self._current for sentence in self._done[name]["warnings"]]

    def run(self, name: str, inputs: Any, function: Callable[[], list[Path]]) -> str:
        """Make sure that a step is done.

        Parameters
        ----------
        name : str
        inputs : JSON-able
            Everything that the result depends on.
        function : callable
            Does the work and returns the files it wrote (inside the study's folder).

        Returns
        -------
        str
            Key of the step's result, to be an input of later steps.
        """
        key = sha256_json({"step": name, "inputs": inputs})
        self._current.append(name)
        if self._is_current(name, key):
            return key
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            files = function()
        sentences = sorted({str(entry.message) for entry in caught if entry.category is UserWarning})
        for sentence in sentences:
            logger.warning("%s", sentence)
        self.seconds[name] = round(time.monotonic() - start, 2)
        self._done[name] = {
            "key": key,
            "files": {str(file.relative_to(self.folder)): sha256_file(file) for file in sorted(files)},
            "warnings": sentences,
        }
        write_json(self._file, dict(sorted(self._done.items())))
        logger.info("%s: done in %.1f s", name, self.seconds[name])
        return key

    def _is_current(self, name: str, key: str) -> bool:
        entry = self._done.get(name)
        return (
            entry is not None
            and entry["key"] == key
            and all(
                (self.folder / file).is_file() and sha256_file(self.folder / file) == digest
                for file, digest in entry["files"].items()
            )
        )
