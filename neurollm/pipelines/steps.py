"""Steps of a study, cached by the content of what goes into them."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neurollm.files import exclusive, sha256_file, sha256_json, write_json, writing

logger = logging.getLogger("neurollm")

_RESULTS = ("glm/*", "rsa/*", "scores/*", "factorial/*/*", "*.json", "*.parquet")
"""Where steps write: of these files, those that no step has written go."""
_NOT_FOR_USERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning, ImportWarning)


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
        self._done = _read(self._file)
        self._current: list[str] = []

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[StepCache]:
        """The cache of a study's folder, which is locked meanwhile; what killed runs left half-written goes."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            for partial in folder.rglob(".*.tmp"):
                partial.unlink(missing_ok=True)
            yield cls(folder)

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
            Hash of the step's inputs and results, to be an input of later steps.
        """
        key = sha256_json({"step": name, "inputs": inputs})
        self._current.append(name)
        if not self._is_current(name, key):
            self._compute(name, key, function)
        return sha256_json([key, self._done[name]["files"]])

    def _compute(self, name: str, key: str, function: Callable[[], list[Path]]) -> None:
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            files = function()
        sentences = sorted({str(entry.message) for entry in caught if not issubclass(entry.category, _NOT_FOR_USERS)})
        for sentence in sentences:
            logger.warning("%s", sentence)
        self.seconds[name] = round(time.monotonic() - start, 2)
        self._done[name] = {
            "key": key,
            "files": {file.relative_to(self.folder).as_posix(): sha256_file(file) for file in sorted(files)},
            "warnings": sentences,
        }
        write_json(self._file, dict(sorted(self._done.items())))
        logger.info("%s: done in %.1f s", name, self.seconds[name])

    def forget_others(self) -> None:
        """Remove the results of steps, contrasts, analyses and controls that are no longer part of the study."""
        self._done = {name: entry for name, entry in self._done.items() if name in self._current}
        kept = {file for entry in self._done.values() for file in entry["files"]}
        for file in [found for pattern in _RESULTS for found in self.folder.glob(pattern)]:
            name = file.relative_to(self.folder).as_posix()
            if name not in kept and name not in ("steps.json", "log.json"):
                file.unlink()
        with suppress(OSError):  # not there, or not empty
            (self.folder / "rsa").rmdir()
        write_json(self._file, dict(sorted(self._done.items())))

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


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The finished steps; nothing when the file is absent or damaged, so that all is computed again."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    shape = {"key": str, "files": dict, "warnings": list}
    return {
        name: entry
        for name, entry in (value.items() if isinstance(value, dict) else ())
        if isinstance(entry, dict) and all(isinstance(entry.get(field), kind) for field, kind in shape.items())
    }
