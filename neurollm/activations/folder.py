"""A folder of shards that any number of runs fill: who may write, what is planned, what is done.

``manifest.json`` is written before the first shard: it holds the settings, and the
rows of every shard, which follow from the tokenised text alone. A shard exists or it
does not (it is written under another name and renamed), so to resume is to list the
folder. The manifest is completed when the last shard is there.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from neurollm.activations.tensorfile import TensorFile
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import exclusive, sha256_file, write_json, writing

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
TOKENS = ".tokens.safetensors"
SCHEMA_VERSION = 1
_PARTIAL = (
    r"\.(shard-\d+\.safetensors|manifest\.json|documents\.jsonl|\.tokens\.safetensors|summary\.safetensors)\.\d+\.tmp"
)


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def read_manifest(path: str | os.PathLike) -> dict[str, Any] | None:
    """The manifest of a folder, or None when there is none."""
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise DataMismatch(f"{file}: the manifest cannot be read ({error}); delete the folder and run again") from None
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise DataMismatch(f"{file}: this is not a manifest that neurollm wrote; choose another folder")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise DataMismatch(
            f"{file}: its format has version {manifest['schema_version']}, this neurollm reads version "
            f"{SCHEMA_VERSION}; use the neurollm that wrote it, or delete the folder and run again"
        )
    return manifest


def open_complete(path: str | os.PathLike, kind: str, command: str) -> tuple[dict[str, Any], list[TensorFile]]:
    """Manifest and shards of a finished folder, with every shard's size checked.

    Raises
    ------
    InvalidInput
        If there is no such folder.
    DataMismatch
        If it is something else, is not finished, or a shard is missing or truncated.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise InvalidInput(f"{path}: there is no {kind} here (no {MANIFEST}); make one with {command}")
    if manifest["kind"] != kind:
        raise DataMismatch(f"{path}: this folder holds {a(manifest['kind'])}, expected {a(kind)}")
    names = [shard["file"] for shard in manifest["shards"]]
    if not manifest["complete"]:
        done = sum((path / name).exists() for name in names)
        raise DataMismatch(
            f"{path}: this {kind} is not finished ({done} of {len(names)} shards); run {command} again with the same "
            "settings: it continues where it stopped"
        )
    cure = f"delete it and run {command} again to restore it"
    return manifest, [TensorFile(path / name, cure) for name in names]


def verify(path: Path, manifest: dict[str, Any], command: str) -> None:
    """Compare every shard with its SHA-256; raise DataMismatch for the first that differs."""
    for shard in manifest["shards"]:
        if sha256_file(path / shard["file"]) != shard["sha256"]:
            raise DataMismatch(
                f"{path / shard['file']}: the contents are not what was written (sha256 differs); "
                f"delete it and run {command} again to restore it"
            )


class ShardFolder:
    """A folder while it is being filled; use it as a context manager, which keeps other writers out.

    Parameters
    ----------
    path : path-like
    kind : str
        What the folder holds, for the manifest and for sentences.
    command : str
        What makes it, for sentences.
    settings : dict
        Everything the rows depend on. A folder with other settings is refused.
    """

    def __init__(self, path: str | os.PathLike, kind: str, command: str, settings: dict[str, Any]) -> None:
        self.path, self.kind, self.command, self.settings = Path(path), kind, command, settings
        self.manifest: dict[str, Any] | None = None

    def __enter__(self) -> ShardFolder:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = exclusive(self.path)
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.__exit__(None, None, None)

    def _prepare(self) -> None:
        self.manifest = read_manifest(self.path)
        if self.manifest is None:
            if any(self.path.glob("shard-*.safetensors")):
                raise DataMismatch(
                    f"{self.path}: this folder holds shards but no {MANIFEST}, so nothing says what they are; "
                    "choose another folder or delete them"
                )
        else:
            self._compare()
            if self.manifest["complete"]:
                (self.path / TOKENS).unlink(missing_ok=True)  # killed between the last manifest and this
        for partial in self.path.glob(".*.tmp"):
            if re.fullmatch(_PARTIAL, partial.name):
                partial.unlink(missing_ok=True)  # of a run that was killed: no other run holds the lock

    def _compare(self) -> None:
        if self.manifest["kind"] != self.kind:
            raise DataMismatch(
                f"{self.path}: this folder holds {a(self.manifest['kind'])}, not {a(self.kind)}; choose another folder"
            )
        there, asked = self.manifest["settings"], self.settings
        differing = [name for name in asked if name not in there or there[name] != asked[name]]
        if differing:
            tell = "; ".join(
                f"{name}: {_short(there.get(name))} there, {_short(asked[name])} here" for name in differing
            )
            raise DataMismatch(
                f"{self.path}: this folder holds {a(self.kind)} with other settings ({tell}); "
                "choose another folder or delete this one"
            )

    def plan(self, about: dict[str, Any], shards: list[dict[str, Any]]) -> None:
        """Write down what will be in the folder, before the first shard is computed."""
        self.manifest = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "complete": False,
            **about,
            "settings": self.settings,
            "shards": [{"file": shard_name(i), **shard, "sha256": None} for i, shard in enumerate(shards)],
        }
        self.write_manifest()

    def write_manifest(self) -> None:
        """Write the manifest as it is now."""
        write_json(self.path / MANIFEST, self.manifest)

    def missing(self) -> list[int]:
        """Shards still to be computed; a damaged one counts as missing, and is reported."""
        missing = []
        for index, shard in enumerate(self.manifest["shards"]):
            file = self.path / shard["file"]
            if file.exists():
                try:
                    TensorFile(file)
                    continue
                except DataMismatch as error:
                    logger.warning("%s; it is computed again", str(error).split(";")[0])
            missing.append(index)
        return missing

    def finish(self, computed: dict[int, str], **results: Any) -> None:
        """Complete the manifest with the hashes of all shards and `results`.

        Parameters
        ----------
        computed : dict of int to str
            SHA-256 of the shards written by this run; those of earlier, interrupted
            runs are hashed now, those of a finished folder are kept.
        """
        for index, shard in enumerate(self.manifest["shards"]):
            shard["sha256"] = computed.get(index) or shard["sha256"] or sha256_file(self.path / shard["file"])
        self.manifest.update(results, complete=True)
        self.write_manifest()
        (self.path / TOKENS).unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
