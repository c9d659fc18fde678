"""Writing files so that they are either complete or absent, and hashing what is in them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput

logger = logging.getLogger("neurollm")


@contextmanager
def atomic_path(path: str | os.PathLike, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Parameters
    ----------
    path : path-like
        The file to write. Its folder is created.
    needed : int, optional
        As in `writing`.

    Yields
    ------
    pathlib.Path
        Write here. After an exception the temporary file is removed and `path` is untouched.

    Raises
    ------
    InvalidInput
        As `writing`: the disk is full, or this place may not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically (two-space indent, keys in the order given, newline at the end)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Python's number for one of NumPy, which counts and seeds often are."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def slug(text: str) -> str:
    """Turn any text into a safe file name; different texts give different names.

    Examples
    --------
    >>> slug("success - failure")
    'success-failure-f6e0fa'
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "unnamed"
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


@contextmanager
def writing(path: str | os.PathLike, needed: int | None = None) -> Iterator[None]:
    """Tell a full disk or a folder that may not be written in one sentence.

    Parameters
    ----------
    path : path-like
        What is being written.
    needed : int, optional
        Bytes still to be written, for the sentence.

    Raises
    ------
    InvalidInput
        In place of the `OSError` for a full disk, an exceeded quota, a read-only disk
        or a missing permission; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = f" (about {needed / 1e6:,.0f} MB needed, {_free_bytes(path) / 1e6:,.0f} MB free)" if needed else ""
            raise InvalidInput(
                f"{path}: the disk is full{size}; free space or choose another folder, then run the same command "
                "again: what was finished is kept"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InvalidInput(
                f"{path}: this place may not be written ({error.strerror.lower()}); choose another folder or change "
                "its permissions, then run the same command again: what was finished is kept"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InvalidInput(f"{path}: a file is in the way of this folder; choose another folder") from error
        raise


@contextmanager
def exclusive(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from writing in a folder; the system lets go however the process ends.

    Raises
    ------
    InvalidInput
        If another process is writing there.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"{folder}: another process is writing here; wait for it or choose another folder"
            ) from None
        except OSError:
            logger.debug("%s is on a disk without locks", folder)
        yield
    finally:
        os.close(handle)


def _free_bytes(path: str | os.PathLike) -> int:
    """Free bytes on the disk of `path` or of its nearest folder that exists."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
