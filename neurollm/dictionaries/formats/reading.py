"""Reading the files of other packages: every damage and every contradiction is one sentence.

Nothing is ever unpickled: safetensors and JSON are plain data, NumPy archives are read
without objects, and PyTorch files with ``weights_only=True``, which takes tensors,
numbers and text only.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

if TYPE_CHECKING:
    from neurollm.dictionaries.sae import SAE

PICKLE = b"\x80"  # the first byte of a pickle of protocol 2 or later
_ALIASES = {"gpt2-small": "gpt2"}  # names of one model in two packages


@dataclass(frozen=True)
class Given:
    """What the caller says beside the files: it fills gaps and must not contradict them.

    Parameters
    ----------
    site : Site, optional
    k : int, optional
    model_name : str, default=""
    """

    site: Site | None = None
    k: int | None = None
    model_name: str = ""

    def settled_site(self, found: Site | None, where: Path, gap: str = "") -> Site:
        """The site; `gap` says why the files do not give it.

        Raises
        ------
        InvalidInput
            If nobody gives it.
        DataMismatch
            If both do, and differ.
        """
        if found is None and self.site is None:
            raise InvalidInput(
                f"{where}: {gap or 'the files do not say where in the model it was trained'}; "
                "give it, for example site=Site(6, 'resid_post')"
            )
        if found is not None and self.site is not None and found != self.site:
            raise DataMismatch(f"{where}: it was trained at {found}, but site={self.site} was given")
        return found or self.site

    def settled_k(self, found: int | None, n_features: int, where: Path) -> int:
        """The number of active features of a token.

        Raises
        ------
        InvalidInput
            If nobody gives it, or it is not between 1 and `n_features`.
        DataMismatch
            If both do, and differ.
        """
        k = self.k if found is None else found
        if k is None:
            raise InvalidInput(f"{where}: the files do not say how many features are active per token; give k")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_features:
            raise InvalidInput(f"{where}: k is {k!r}; expected 1 to d_sae = {n_features}")
        if self.k is not None and self.k != k:
            raise DataMismatch(f"{where}: k is {k}, but k={self.k} was given")
        return k

    def settled_name(self, found: str | None, where: Path) -> str:
        """The model's name, ``""`` if nobody gives it; an organisation before the slash does not matter.

        Raises
        ------
        DataMismatch
            If both give it, and differ.
        """
        if self.model_name and found and _bare(self.model_name) != _bare(found):
            raise DataMismatch(
                f"{where}: it was trained on model {found!r}, but model_name={self.model_name!r} was given"
            )
        return self.model_name or found or ""

    def refuse_k(self, architecture: str, where: Path) -> None:
        """Say that this dictionary has no k.

        Raises
        ------
        DataMismatch
            If one was given.
        """
        if self.k is not None:
            raise DataMismatch(f"{where}: architecture {architecture!r} has no k, but k={self.k} was given")


def _bare(name: str) -> str:
    bare = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return _ALIASES.get(bare, bare)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object.

    Raises
    ------
    InvalidInput
        If it is not there, not JSON, or something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: the file is missing") from None
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises
    ------
    InvalidInput
        If it is not there.
    DataMismatch
        If it is damaged.
    """
    _require(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataMismatch(f"{path}: damaged, cannot be read as safetensors ({error})") from error


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """All arrays of a NumPy archive, as tensors.

    Raises
    ------
    InvalidInput
        If it is not there, is something else than an archive, or holds something else than numbers.
    DataMismatch
        If it is damaged.
    """
    _require(path)
    start = path.open("rb").read(6)
    if start == b"\x93NUMPY":
        raise InvalidInput(f"{path}: a single NumPy array; expected an archive of arrays (numpy.savez)")
    if start.startswith(PICKLE):
        raise InvalidInput(f"{path}: a Python pickle, which could run code and is never loaded; expected numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if "allow_pickle" in str(error):
            raise InvalidInput(
                f"{path}: holds Python objects, which are never loaded; only arrays of numbers"
            ) from error
        raise DataMismatch(f"{path}: damaged, cannot be read as a NumPy archive ({error})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            found = getattr(array, "dtype", "no array")
            raise InvalidInput(f"{path}: {name} holds {found}; expected numbers of at most 64 bits")
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}


def read_torch(path: Path) -> dict[str, Any]:
    """A PyTorch file that holds a dictionary of tensors, numbers and text.

    Raises
    ------
    InvalidInput
        If it is not there, or holds anything else (a pickle can contain code).
    DataMismatch
        If it is damaged.
    """
    _require(path)
    start = path.open("rb").read(2)
    if start.startswith(PICKLE) and start != PICKLE + b"\x02":  # torch.save writes zip files, or pickles of protocol 2
        raise InvalidInput(f"{path}: a Python pickle, which could run code and is never loaded; expected torch.save's")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # An old file is a bare pickle: what it asks for is told from what is damaged by the message alone.
        if zipfile.is_zipfile(path) or "GLOBAL" in str(error):
            raise InvalidInput(
                f"{path}: holds Python objects that could run code, which are never loaded; save its state_dict instead"
            ) from error
        raise DataMismatch(f"{path}: damaged, cannot be read as a PyTorch file") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataMismatch(f"{path}: damaged, cannot be read as a PyTorch file") from error
    if not isinstance(state, dict):
        raise InvalidInput(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


def _require(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"{path}: the file is missing; a dictionary needs it")


def checked_tensors(
    found: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    path: Path,
    *,
    ignored: tuple[str, ...] = (),
    said_by: str = "the configuration",
) -> dict[str, torch.Tensor]:
    """The tensors named in `shapes`, as float32.

    Parameters
    ----------
    found : dict
        Content of a file.
    shapes : dict of tuple
        What must be there, by its name in the file.
    path : Path
        For the sentences.
    ignored : tuple of str
        Names that may be there as well.
    said_by : str
        Where the shapes come from, for the sentences.

    Raises
    ------
    InvalidInput
        If a tensor is missing, or one does not belong there.
    DataMismatch
        If a shape is wrong, or values are not finite.
    """
    for name, shape in shapes.items():
        if not isinstance(found.get(name), torch.Tensor):
            raise InvalidInput(f"{path}: tensor {name} is missing; found {', '.join(sorted(found)) or 'none'}")
        if tuple(found[name].shape) != shape:
            raise DataMismatch(f"{path}: {name} has shape {tuple(found[name].shape)}, but {said_by} says {shape}")
        if not found[name].is_floating_point():
            raise DataMismatch(f"{path}: {name} holds {found[name].dtype} values; expected floating-point numbers")
        if not torch.isfinite(found[name]).all():
            raise DataMismatch(f"{path}: {name} contains NaN or infinite values")
    unknown = sorted(set(found) - set(shapes) - set(ignored))
    if unknown:
        raise InvalidInput(f"{path}: {unknown[0]} does not belong there; expected only {', '.join(shapes)}")
    return {name: found[name].to(torch.float32) for name in shapes}


def exact_dtype(weights: dict[str, torch.Tensor], dtype: str | torch.dtype) -> str:
    """The dtype they came in, or ``"float32"`` if storing them in it would round, or if it is float64.

    Weights are held in float32: those of a float64 file have been rounded to it.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "float64":
        return "float32"
    exact = all(torch.equal(weight.to(getattr(torch, name)).float(), weight) for weight in weights.values())
    return name if exact else "float32"


def stored_weights(sae: SAE) -> dict[str, torch.Tensor]:
    """The weights of a dictionary in the dtype they are stored in, on the CPU.

    Raises
    ------
    InvalidInput
        If one is too large for that dtype.
    """
    tensors = {name: weight.cpu().to(getattr(torch, sae.dtype)).contiguous() for name, weight in sae.weights.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidInput(
                f"{sae}: {name} has values up to {float(sae.weights[name].abs().max()):.3g}, which {sae.dtype} cannot "
                f"hold (at most {torch.finfo(tensor.dtype).max:.3g}); set its dtype to 'float32' or 'bfloat16'"
            )
    return tensors


def switch(config: dict[str, Any], key: str, default: bool, where: Path) -> bool:
    """A true or false of a configuration.

    Raises
    ------
    InvalidInput
        If it is anything else, such as the text ``"false"``.
    """
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}: {key} is {value!r}; expected true or false")
    return value


def matrix_shape(found: dict[str, Any], name: str, path: Path) -> tuple[int, int]:
    """The two sizes of a matrix from which the file's other shapes follow.

    Raises
    ------
    InvalidInput
        If it is missing, or not a matrix.
    """
    tensor = found.get(name)
    if not isinstance(tensor, torch.Tensor):
        raise InvalidInput(f"{path}: tensor {name} is missing; found {', '.join(sorted(found)) or 'none'}")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DataMismatch(f"{path}: {name} has shape {tuple(tensor.shape)}; expected a matrix")
    return tuple(tensor.shape)


def positive(config: dict[str, Any], key: str, where: Path) -> int:
    """A positive whole number of a configuration.

    Raises
    ------
    InvalidInput
        If it is anything else.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"{where}: {key} is {value!r}; expected a positive whole number")
    return value


def module_site(name: str, end: str = "output") -> Site | None:
    """The site of what flows out of, or into, a native module; None if the name does not say it."""
    try:
        return Site.from_module(name, end)
    except InvalidInput:
        return None


def parsed_site(name: str, parse: Any, where: Path) -> Site:
    """``parse(name)``, with the file in front of the sentence if it fails."""
    try:
        return parse(name)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def unit_rows(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same map with decoder rows of length 1, their lengths taken into the encoder.

    Features are multiplied by the old lengths. Lengths under 1e-8 count as 1e-8.

    Returns
    -------
    weights : dict of Tensor
        Thresholds are left as they are.
    lengths : Tensor, shape (F,)
    """
    lengths = weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    new = {**weights, "W_enc": weights["W_enc"] * lengths, "W_dec": weights["W_dec"] / lengths[:, None]}
    return {**new, "b_enc": weights["b_enc"] * lengths}, lengths
