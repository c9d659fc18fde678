"""Controls on disk: ``neurollm.json``, and ``control.safetensors`` where there are arrays."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json, writing
from neurollm.models import Site

TENSORS_FILE = "control.safetensors"


class Control(Dictionary):
    """A dictionary that is not learned like an SAE; base of the classes in `CONTROLS`."""

    @abstractmethod
    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Parameters (plain data) and float32 tensors from which `from_parameters` makes it again."""

    @classmethod
    @abstractmethod
    def from_parameters(
        cls, site: Site, d_in: int, parameters: dict[str, Any], tensors: dict[str, torch.Tensor], **model: str
    ) -> Control:
        """Inverse of `_stored`; `model` are model_name and model_fingerprint."""

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``neurollm.json``, and ``control.safetensors`` where there are arrays; see `write_control`."""
        write_control(self, folder, *self._stored())

    @classmethod
    def load(cls, folder: str | os.PathLike, side: dict[str, Any]) -> Control:
        """Read what `save` wrote.

        Parameters
        ----------
        folder : path-like
        side : dict
            Content of ``neurollm.json``.

        Returns
        -------
        Control

        Raises
        ------
        InvalidInput
            If d_in or n_features is not a positive whole number.
        DataMismatch
            If ``control.safetensors`` is missing, damaged or another one, or a field is missing or wrong.
        """
        from neurollm.dictionaries.formats.native import SIDE_FILE
        from neurollm.dictionaries.formats.reading import positive

        where = Path(folder) / SIDE_FILE
        for key in ("d_in", "n_features"):
            positive(side, key, where)
        try:
            model = {"model_name": side["model"]["name"], "model_fingerprint": side["model"]["fingerprint"]}
            site, parameters = Site.from_dict(side["site"]), side["parameters"]
            tensors = _read_tensors(Path(folder) / TENSORS_FILE, side.get("weights_sha256"))
            dictionary = cls.from_parameters(site, side["d_in"], parameters, tensors, **model)
        except KeyError as error:
            raise DataMismatch(f"{where}: damaged, {error} is missing") from None
        except (InvalidInput, TypeError, ValueError) as error:
            if isinstance(error, DataMismatch):
                raise
            raise DataMismatch(f"{where}: damaged ({error})") from error
        if dictionary.d_in != side["d_in"]:
            raise DataMismatch(f"{where}: d_in is {side['d_in']}, but {TENSORS_FILE} has {dictionary.d_in} dimensions")
        if dictionary.n_features != side["n_features"]:
            raise DataMismatch(
                f"{where}: n_features is {side['n_features']}, but the other fields give {dictionary.n_features}"
            )
        dictionary.metrics, dictionary.provenance = side.get("metrics", {}), side.get("provenance", {})
        return dictionary


def write_control(
    dictionary: Dictionary,
    folder: str | os.PathLike,
    parameters: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a control; ``neurollm.json`` comes last, so its presence says that all is there.

    Parameters
    ----------
    dictionary : Dictionary
    folder : path-like
        Created when it is missing.
    parameters : dict
        Plain data.
    tensors : dict of Tensor, optional
        Written as float32 to ``control.safetensors``.

    Raises
    ------
    InvalidInput
        If the folder holds an SAE: what is loaded from there would be that.
    """
    from safetensors.torch import save

    from neurollm.dictionaries.formats.native import FORMAT_VERSION, SIDE_FILE
    from neurollm.dictionaries.formats.saelens import CONFIG_FILE

    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise InvalidInput(f"{folder}: there is another dictionary here ({CONFIG_FILE}); choose another folder")
    with writing(folder):
        (folder / SIDE_FILE).unlink(missing_ok=True)
        (folder / TENSORS_FILE).unlink(missing_ok=True)
    record = {
        "format_version": FORMAT_VERSION,
        "architecture": dictionary.architecture,
        "site": dictionary.site.to_dict(),
        "model": {"name": dictionary.model_name, "fingerprint": dictionary.model_fingerprint},
        "d_in": dictionary.d_in,
        "n_features": dictionary.n_features,
        "parameters": parameters,
    }
    if tensors:
        with atomic_path(folder / TENSORS_FILE) as partial:
            partial.write_bytes(save({name: tensor.cpu().float().contiguous() for name, tensor in tensors.items()}))
        record["weights_sha256"] = sha256_file(folder / TENSORS_FILE)
    write_json(folder / SIDE_FILE, {**record, "metrics": dictionary.metrics, "provenance": dictionary.provenance})


def _read_tensors(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """The arrays of a control; none if none were written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256 is None:
        return {}
    if not path.is_file():
        raise DataMismatch(f"{path}: the file is missing; restore it, or make this control anew")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataMismatch(f"{path}: damaged, cannot be read as safetensors ({error})") from error
    found = sha256_file(path)
    if found != sha256:
        raise DataMismatch(
            f"{path}: not the file that was written with the neurollm.json beside it (sha256 {sha256[:12]} there, "
            f"{found[:12]} here); restore the pair, or make this control anew"
        )
    return tensors
