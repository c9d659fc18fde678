"""Interrupted trainings: what is on disk is always one complete state.

``checkpoint.json`` names the tensor file it belongs to and is replaced atomically
after that file is complete; only then the file before it is deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from neurollm.errors import DataMismatch
from neurollm.files import atomic_path, write_json

POINTER = "checkpoint.json"
FORMAT_VERSION = 1


class Checkpoint:
    """The checkpoint of one training in one folder.

    Parameters
    ----------
    folder : Path
    run : dict
        What the result depends on. A checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run

    def save(self, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Replace the checkpoint."""
        name = f"checkpoint-{counters['tokens']:015d}.safetensors"
        with atomic_path(self.folder / name) as partial:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, partial)
        write_json(
            self.folder / POINTER,
            {"format_version": FORMAT_VERSION, "tensors": name, "counters": counters, "run": self.run},
        )
        self._remove(keep=name)

    def load(self, tensors: dict[str, torch.Tensor]) -> dict[str, Any] | None:
        """Copy the saved state into `tensors` and return the counters; None when there is no checkpoint.

        Raises
        ------
        DataMismatch
            If the checkpoint belongs to another run, or is damaged.
        """
        pointer = self.folder / POINTER
        if not pointer.is_file():
            return None
        again = "delete the checkpoint files in this folder to train from the start"
        try:
            record = json.loads(pointer.read_text(encoding="utf-8"))
            refuse_other_run(record["run"], self.run, pointer)
            saved = load_file(self.folder / record["tensors"])
            for key, tensor in tensors.items():
                tensor.copy_(saved[key])
            return record["counters"]
        except DataMismatch:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DataMismatch(f"{pointer}: the checkpoint is damaged ({error}); {again}") from error

    def clear(self) -> None:
        """Remove the checkpoint: the training is finished."""
        (self.folder / POINTER).unlink(missing_ok=True)
        self._remove(keep=None)

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for partial in self.folder.glob(".*.tmp"):
            partial.unlink(missing_ok=True)

    def _remove(self, keep: str | None) -> None:
        for path in self.folder.glob("checkpoint-*.safetensors"):
            if path.name != keep:
                path.unlink(missing_ok=True)


def refuse_other_run(found: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Raise DataMismatch naming every difference between two runs."""
    differences = [
        f"{name} is {before!r} there and {after!r} here" for name, before, after in _differences(found, wanted)
    ]
    if differences:
        raise DataMismatch(
            f"{where} belongs to another training: {'; '.join(differences)}; choose another folder, or delete this one"
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    differences = []
    for name in dict.fromkeys([*found, *wanted]):
        before, after = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            differences += _differences(before, after)
        elif before != after:
            differences.append((name, before, after))
    return differences
