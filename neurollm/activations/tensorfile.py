"""The safetensors format, written as a stream that is hashed on the way and read by memory map.

An 8-byte little-endian length, a JSON header ``{name: {dtype, shape, data_offsets}}``
padded with spaces to a multiple of 8, then the tensors without gaps. The files are
ordinary safetensors; what this module adds to the library is that a shard is hashed
while it is written instead of being read again, that nothing is copied, and that a
truncated file is noticed from its header alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import torch

from neurollm.errors import DataMismatch
from neurollm.files import atomic_path

# bfloat16 has no numpy type: its bits are handled as int16.
_NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<i2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_LABELS = {np.dtype(code): label for label, code in _NUMPY_TYPES.items() if label != "BF16"}
_WRITE_BYTES = 1 << 17  # hashed and written while it is in the cache


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, np.ndarray | torch.Tensor], needed: int | None = None
) -> str:
    """Write a safetensors file atomically.

    Parameters
    ----------
    path : path-like
    tensors : dict of str to ndarray or CPU Tensor
        Laid out in this order; put wide types first so that each is aligned.
    needed : int, optional
        Bytes still to be written in all, for the sentence about a full disk; default: this file's.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    header, arrays, offset = {}, [], 0
    for name, tensor in tensors.items():
        label, array = _as_array(tensor)
        header[name] = {"dtype": label, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
        arrays.append(array)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_path(path, needed or offset) as partial, open(partial, "wb", buffering=0) as file:
        for piece in [np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8), *arrays]:
            view = memoryview(piece.reshape(-1).view(np.uint8))
            for start in range(0, len(view), _WRITE_BYTES):
                block = view[start : start + _WRITE_BYTES]
                digest.update(block)
                _write_all(file, block)
    return digest.hexdigest()


def _write_all(file, block: memoryview) -> None:
    """Write every byte: a nearly full disk may take only some of them before it reports the error."""
    while len(block):
        block = block[file.write(block) :]


def leave_cache(path: str | os.PathLike) -> None:
    """Keep a file that has been flushed on disk only, where the system offers that.

    The next shard then goes through the same pages of memory. Fresh ones cost more than the disk on a virtual
    machine, and a store larger than the memory would push out everything else.
    """
    if hasattr(os, "posix_fadvise"):
        # A file system may not know the hint.
        with open(path, "rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _as_array(tensor: np.ndarray | torch.Tensor) -> tuple[str, np.ndarray]:
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return "BF16", tensor.view(torch.int16).numpy()
        tensor = tensor.numpy()
    array = np.ascontiguousarray(tensor)
    return _LABELS[array.dtype], array


class TensorFile:
    """A safetensors file read by memory map.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    DataMismatch
        If the file is missing, is not safetensors, or is not exactly as long as its
        header says. The sentence ends with `cure`.
    """

    def __init__(self, path: str | os.PathLike, cure: str = "delete it and run the same command again") -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < size else None
            self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            expected = 8 + length + max((entry["data_offsets"][1] for entry in self._entries.values()), default=0)
        except FileNotFoundError:
            raise DataMismatch(f"{self.path}: the file is missing; run the same command again to restore it") from None
        except (ValueError, struct.error, AttributeError, KeyError, TypeError):
            raise DataMismatch(f"{self.path}: the file is damaged (its header cannot be read); {cure}") from None
        if size != expected:
            raise DataMismatch(
                f"{self.path}: the file is truncated or damaged ({size:,} bytes, {expected:,} expected); {cure}"
            )
        self._start = 8 + length
        self._map: np.memmap | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The tensors of the file, in its order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._entries[name]["shape"])

    def label(self, name: str) -> str:
        """Safetensors name of a tensor's dtype, e.g. ``"BF16"``."""
        return self._entries[name]["dtype"]

    def array(self, name: str) -> np.ndarray:
        """A tensor as a memory-mapped array (private: changes do not reach the file); bfloat16 as int16 bits."""
        entry = self._entries[name]
        if self._map is None:
            self._map = np.memmap(self.path, dtype=np.uint8, mode="c")
        start, stop = (self._start + offset for offset in entry["data_offsets"])
        return np.asarray(self._map[start:stop]).view(_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as torch sees it, memory-mapped like `array`."""
        tensor = torch.from_numpy(self.array(name))
        return tensor.view(torch.bfloat16) if self.label(name) == "BF16" else tensor
