"""Dictionaries on disk: the SAELens inference layout with ``neurollm.json`` beside it.

``cfg.json`` and ``sae_weights.safetensors`` are, byte for byte, what
``SAE.save_model`` of SAELens 6.54 writes, so other tools read our dictionaries and
we read theirs. ``neurollm.json`` holds what that layout has no place for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from neurollm import datasets
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.controls import RandomDirections, RawUnits
from neurollm.dictionaries.topk import TopKSAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json, write_text
from neurollm.models import Site

FORMAT_VERSION = 1
SAELENS_VERSION = "6.54.12"  # the release whose layout is written
CONFIG_FILE, WEIGHTS_FILE, SIDE_FILE = "cfg.json", "sae_weights.safetensors", "neurollm.json"
CONTROLS = {"raw_units": RawUnits, "random_directions": RandomDirections}
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def write_saelens(sae: TopKSAE, folder: str | os.PathLike) -> None:
    """Write a folded SAE; ``neurollm.json`` comes last, so its presence says that all is there.

    Parameters
    ----------
    sae : TopKSAE
        Without normalisation of its own (`TopKSAE.fold`).
    folder : path-like
        Created when it is missing.
    """
    folder = Path(folder)
    tensors = {name: weight.cpu().to(_DTYPES[sae.dtype]).contiguous() for name, weight in sae.weights.items()}
    (folder / SIDE_FILE).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as partial:
        partial.write_bytes(save(tensors))  # save_file would make it unreadable for other users
    write_text(folder / CONFIG_FILE, json.dumps(_saelens_config(sae)))
    write_json(folder / SIDE_FILE, side_record(sae, sha256_file(folder / WEIGHTS_FILE)))


def side_record(sae: TopKSAE, weights_sha256: str) -> dict[str, Any]:
    """The content of ``neurollm.json``."""
    return {
        "format_version": FORMAT_VERSION,
        "architecture": sae.architecture,
        "site": sae.site.to_dict(),
        "model": {"name": sae.model_name, "fingerprint": sae.model_fingerprint},
        "d_in": sae.d_in,
        "n_features": sae.n_features,
        "k": sae.k,
        "weights_sha256": weights_sha256,
        "metrics": sae.metrics,
        "provenance": sae.provenance,
    }


def _saelens_config(sae: TopKSAE) -> dict[str, Any]:
    return {
        "d_in": sae.d_in,
        "d_sae": sae.n_features,
        "dtype": sae.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": SAELENS_VERSION,
            "model_name": sae.model_name,
            "hook_name": sae.site.saelens_hook_name,
            "hook_head_index": None,
            "context_size": sae.provenance.get("context"),
            "prepend_bos": True,
            "seqpos_slice": [None],
            "model_from_pretrained_kwargs": {},
        },
        "k": sae.k,
        "rescale_acts_by_decoder_norm": False,
        "architecture": sae.architecture,
    }


def load_dictionary(path: str | os.PathLike, format: str = "auto") -> Dictionary:
    """Load a dictionary.

    Parameters
    ----------
    path : str or path
        ``"demo"`` (embedded) or a folder: one written by neurollm, or by SAELens 6
        (architecture ``topk``).
    format : {"auto", "saelens", "neurollm"}, default="auto"

    Returns
    -------
    Dictionary

    Raises
    ------
    InvalidInput
        If the folder is not there, or holds something this edition does not read.
    DataMismatch
        If its files are damaged or do not belong together.
    """
    if format not in ("auto", "saelens", "neurollm"):
        raise InvalidInput(f"format {format!r} is unknown; use 'auto', 'saelens' or 'neurollm'")
    folder = datasets.demo_dictionary_path() if str(path) == "demo" else Path(path)
    if (folder / CONFIG_FILE).is_file():
        return _load_saelens(folder)
    if format != "saelens" and (folder / SIDE_FILE).is_file():
        return _load_control(folder)
    raise InvalidInput(
        f"dictionary {str(path)!r}: no {CONFIG_FILE} in {folder}; expected 'demo' or a folder with {CONFIG_FILE} and "
        f"{WEIGHTS_FILE} (SAELens layout)"
    )


def _load_control(folder: Path) -> Dictionary:
    side = _read_json(folder / SIDE_FILE)
    kind = CONTROLS.get(side.get("architecture"))
    if kind is None:
        raise InvalidInput(
            f"{folder / SIDE_FILE}: architecture {side.get('architecture')!r} without {CONFIG_FILE}; "
            f"alone it can only be one of {', '.join(CONTROLS)}"
        )
    model = {"model_name": side["model"]["name"], "model_fingerprint": side["model"]["fingerprint"]}
    dictionary = kind.from_parameters(Site.from_dict(side["site"]), side["d_in"], side["parameters"], **model)
    dictionary.metrics = side["metrics"]
    return dictionary


def _load_saelens(folder: Path) -> TopKSAE:
    where = folder / CONFIG_FILE
    config = _read_json(where)
    _refuse_unsupported(config, where)
    tensors = _read_tensors(folder / WEIGHTS_FILE, config["d_in"], config["d_sae"])
    dtype = str(config.get("dtype", "float32")).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise InvalidInput(f"{where}: dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")
    _to_plain_form(tensors, config)
    k = config.get("k", 100)
    if not isinstance(k, int) or not 1 <= k <= config["d_sae"]:
        raise InvalidInput(f"{where}: k is {k!r}; expected 1 to d_sae = {config['d_sae']}")
    metadata = config.get("metadata", {})
    side = _read_json(folder / SIDE_FILE) if (folder / SIDE_FILE).is_file() else {}
    if side:
        _check_side(side, folder)
        site = Site.from_dict(side["site"])
    else:
        site = _site_of(metadata, where)
    model = side.get("model", {"name": metadata.get("model_name") or "", "fingerprint": ""})
    sae = TopKSAE(site, k, tensors, model_name=model["name"], model_fingerprint=model["fingerprint"], dtype=dtype)
    sae.provenance = side.get("provenance", {"written_by": f"SAELens {metadata.get('sae_lens_version')}"})
    sae.metrics = side.get("metrics", {})
    return sae


def _refuse_unsupported(config: dict[str, Any], where: Path) -> None:
    architecture = config.get("architecture")
    if architecture != "topk":
        raise InvalidInput(f"{where}: architecture {architecture!r} is not supported; this edition reads 'topk'")
    for key in ("d_in", "d_sae"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise InvalidInput(f"{where}: {key} is {config.get(key)!r}; expected a positive whole number")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise InvalidInput(
                f"{where}: {key} is {config[key]!r}; only 'none' is supported: save the SAE in its inference form"
            )
    if config.get("metadata", {}).get("hook_head_index") is not None:
        raise InvalidInput(f"{where}: hook_head_index is set; SAEs of single attention heads are not supported")


def _to_plain_form(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Rewrite two SAELens options into the plain equations; both are exact identities."""
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if not config.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]


def _read_tensors(path: Path, d_in: int, n_features: int) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InvalidInput(f"{path}: the file is missing; a dictionary needs {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataMismatch(f"{path}: damaged, cannot be read as safetensors ({error})") from error
    shapes = {"W_enc": (d_in, n_features), "W_dec": (n_features, d_in), "b_enc": (n_features,), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        if name not in tensors:
            raise InvalidInput(f"{path}: tensor {name} is missing; found {', '.join(sorted(tensors)) or 'none'}")
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise DataMismatch(f"{path}: {name} has shape {found}, but {CONFIG_FILE} says {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise DataMismatch(f"{path}: {name} contains NaN or infinite values")
    return {name: tensors[name].to(torch.float32) for name in shapes}


def _check_side(side: dict[str, Any], folder: Path) -> None:
    if side.get("format_version") != FORMAT_VERSION:
        raise InvalidInput(
            f"{folder / SIDE_FILE}: format_version is {side.get('format_version')!r}; "
            f"this edition reads {FORMAT_VERSION}"
        )
    found = sha256_file(folder / WEIGHTS_FILE)
    if side.get("weights_sha256") != found:
        raise DataMismatch(
            f"{folder / SIDE_FILE} describes other weights than {WEIGHTS_FILE} beside it (sha256 "
            f"{str(side.get('weights_sha256'))[:12]}, found {found[:12]}); restore the pair, or delete {SIDE_FILE}"
        )


def _site_of(metadata: dict[str, Any], where: Path) -> Site:
    if not metadata.get("hook_name"):
        raise InvalidInput(f"{where}: metadata.hook_name is missing; expected for example 'blocks.3.hook_resid_post'")
    try:
        return Site.from_saelens(metadata["hook_name"])
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
