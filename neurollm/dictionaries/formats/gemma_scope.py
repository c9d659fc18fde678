"""The JumpReLU SAEs and transcoders of Gemma Scope (Lieberum et al. 2024) and Gemma Scope 2.

    f = pre [pre > threshold],  pre = x W_enc + b_enc
    y = f W_dec + b_dec (+ x W_skip in affine transcoders)

Gemma Scope: ``layer_L/width_W/average_l0_X/params.npz``; the folders' names are all it says
about the site, and the kind (``res``, ``mlp``) is in the repository's name only. The SAEs of
attention read all heads before their output projection, and the transcoders read a
normalised stream without the norm's weights: neither is a site of neurollm.

Embedding SAEs (``embedding/width_W/...``) were trained on the rows of the embedding matrix,
x / sqrt(d); Gemma multiplies them with sqrt(d), and that is what the site reads, so
W_enc / sqrt(d), W_dec sqrt(d) and b_dec sqrt(d) stand in for them.

Gemma Scope 2: ``config.json`` with native module names beside ``params.safetensors``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from neurollm.dictionaries.architectures import JumpReLUSAE
from neurollm.dictionaries.formats.reading import (
    Given,
    checked_tensors,
    exact_dtype,
    matrix_shape,
    parsed_site,
    read_json,
    read_npz,
    read_safetensors,
)
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

ARCHIVE, CONFIG_FILE, WEIGHTS_FILE = "params.npz", "config.json", "params.safetensors"
_REPOSITORY = r"gemma-scope-(\d+b)-(pt|it)-(\w+)"
_STREAMS = {"res": "resid_post", "mlp": "mlp_out"}
_SKIP = "affine_skip_connection"


def load_gemma_scope(path: Path, given: Given) -> JumpReLUSAE:
    """Read a ``params.npz`` of Gemma Scope.

    Parameters
    ----------
    path : Path
        The folder, or the file.
    given : Given
        ``site`` is needed unless a folder above is named like the repository
        (``gemma-scope-2b-pt-res``).

    Returns
    -------
    JumpReLUSAE

    Raises
    ------
    InvalidInput
        If the site is not known, not supported, or the archive holds more than arrays.
    DataMismatch
        If files are damaged, or contradict the folders' names or `given`.
    """
    path = path if path.suffix == ".npz" else path / ARCHIVE
    found = {f"W_{name[2:]}" if name.startswith("w_") else name: array for name, array in read_npz(path).items()}
    tensors = _checked(found, path, "the others'")
    folders = path.absolute().parent.parts  # not resolved: files in the hub's cache are links
    _check_width(folders, len(tensors["W_dec"]), path)
    repository = next(filter(None, (re.search(_REPOSITORY, name) for name in reversed(folders))), None)
    site = given.settled_site(_site_of(folders, repository, path, given), path, _GAP)
    if "embedding" in folders:
        root = tensors["W_enc"].shape[0] ** 0.5
        tensors |= {name: tensors[name] * root for name in ("W_dec", "b_dec")}
        tensors["W_enc"] = tensors["W_enc"] / root
    name = f"google/gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}" if repository else None
    given.refuse_k("jumprelu", path)
    sae = JumpReLUSAE(
        site,
        tensors,
        subtract_decoder_bias=False,
        model_name=given.settled_name(name, path),
        dtype=exact_dtype(tensors, found["W_dec"].dtype),
    )
    sae.provenance = {"written_by": "Gemma Scope", "folder": "/".join(folders[-3:])}
    return sae


_GAP = (
    "the folders' names do not say where it was trained; expected layer_L/width_W/average_l0_X "
    "in a folder such as gemma-scope-2b-pt-res"
)


def _site_of(folders: tuple[str, ...], repository: re.Match | None, path: Path, given: Given) -> Site | None:
    layer = next((int(m[1]) for name in reversed(folders) if (m := re.fullmatch(r"layer_(\d+)", name))), None)
    if "embedding" in folders:
        return Site(0, "token_embedding")
    if repository and repository[3] not in _STREAMS:
        raise InvalidInput(
            f"{path}: {repository[0]} is not supported: its SAEs read no stream of the model as it is; "
            f"supported are {', '.join(_STREAMS)}"
        )
    if layer is not None and given.site is not None and given.site.layer != layer:
        raise DataMismatch(f"{path}: it was trained at layer {layer}, but site={given.site} was given")
    return Site(layer, _STREAMS[repository[3]]) if layer is not None and repository else None


def _check_width(folders: tuple[str, ...], n_features: int, path: Path) -> None:
    """``width_16k`` is 2^14 features and ``width_131k`` 2^17: both ways of counting are used."""
    for name in folders:
        match = re.fullmatch(r"width_(\d+)([km])", name)
        units = (1000, 1024) if match and match[2] == "k" else (1000**2, 1024**2)
        if match and int(match[1]) not in {n_features // unit for unit in units}:
            raise DataMismatch(f"{path}: it has {n_features:,} features, but its folder is named {name}")


def load_gemma_scope_2(folder: Path, given: Given) -> JumpReLUSAE:
    """Read ``config.json`` and ``params.safetensors`` of Gemma Scope 2.

    Parameters
    ----------
    folder : Path
    given : Given

    Returns
    -------
    JumpReLUSAE
        With a `target_site` where it predicts the output of another module.

    Raises
    ------
    InvalidInput
        If the architecture or a hook point is not supported, or cross-layer.
    DataMismatch
        If files are damaged, or contradict each other or `given`.
    """
    where, path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_json(where)
    if config.get("architecture") != "jump_relu":
        raise InvalidInput(
            f"{where}: architecture {config.get('architecture')!r} is not supported; only 'jump_relu' is"
        )
    found = {f"W_{name[2:]}" if name.startswith("w_") else name: t for name, t in read_safetensors(path).items()}
    if isinstance(found.get("W_dec"), torch.Tensor) and found["W_dec"].ndim == 3:
        raise InvalidInput(f"{path}: a cross-layer transcoder is not supported; it reconstructs several layers at once")
    tensors = _checked(found, path, "W_enc", skip=_SKIP in found)
    if config.get("width", len(tensors["W_dec"])) != len(tensors["W_dec"]):
        raise DataMismatch(
            f"{path}: it has {len(tensors['W_dec']):,} features, but {CONFIG_FILE} says {config['width']:,}"
        )
    site = given.settled_site(_hook(config, "hf_hook_point_in", where), where)
    target = _hook(config, "hf_hook_point_out", where) or site
    if _SKIP in tensors:
        tensors["W_skip"] = tensors.pop(_SKIP).T
    given.refuse_k("jumprelu", where)
    sae = JumpReLUSAE(
        site,
        tensors,
        subtract_decoder_bias=False,
        target_site=target if target != site else None,
        model_name=given.settled_name(config.get("model_name"), where),
        dtype=exact_dtype(tensors, found["W_dec"].dtype),
    )
    sae.provenance = {"written_by": "Gemma Scope 2", "configuration": config}
    return sae


def _hook(config: dict[str, Any], key: str, where: Path) -> Site | None:
    name = config.get(key)
    if name is None:
        return None
    stem, _, end = str(name).rpartition(".")
    return parsed_site(str(name), lambda _: Site.from_module(stem, end), where)


def _checked(found: dict[str, Any], path: Path, said_by: str, skip: bool = False) -> dict[str, torch.Tensor]:
    d_in, f = matrix_shape(found, "W_enc", path)
    _, d_out = matrix_shape(found, "W_dec", path)
    shapes = {"W_enc": (d_in, f), "W_dec": (f, d_out), "b_enc": (f,), "b_dec": (d_out,), "threshold": (f,)}
    return checked_tensors(found, shapes | ({_SKIP: (d_in, d_out)} if skip else {}), path, said_by=said_by)
