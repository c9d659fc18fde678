"""The layout of dictionary_learning (Marks, Karvonen, Mueller): ``ae.pt`` and ``config.json``.

    class                    f                                            x̂
    AutoEncoder              ReLU(W_e (x - bias) + b_e), unit decoder     W_d f + bias
    AutoEncoderNew           ReLU(W_e x + b_e)                            W_d f + b_d
    GatedAutoEncoder         [v + b_gate > 0] ReLU(e^r v + b_mag)         W_d f + b_dec,  v = W_e (x - b_dec)
    AutoEncoderTopK          the k largest ReLU(W_e (x - b_dec) + b_e)    W_d f + b_dec
    BatchTopKSAE,
    MatryoshkaBatchTopKSAE   those of them above the learned threshold    W_d f + b_dec
    JumpReluAutoEncoder      pre [pre > threshold], pre = x W_e + b_e     f W_d + b_dec

AutoEncoder is brought to decoder columns of length 1, as that package's own loader does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from neurollm.dictionaries.architectures import ARCHITECTURES
from neurollm.dictionaries.formats.reading import (
    Given,
    checked_tensors,
    exact_dtype,
    matrix_shape,
    module_site,
    read_json,
    read_torch,
    unit_rows,
)
from neurollm.dictionaries.sae import SAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"
# Classes: our architecture, names of the file by ours, whether b_dec is subtracted from the input.
_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_GATED = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias"}
_CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("standard", {**_LINEAR, "b_dec": "bias"}, True),
    "AutoEncoderNew": ("standard", {**_LINEAR, "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": ("gated", {**_GATED, "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"}, True),
    "AutoEncoderTopK": ("topk", {**_LINEAR, "b_dec": "b_dec"}, True),
    "BatchTopKSAE": ("jumprelu", {**_LINEAR, "b_dec": "b_dec"}, True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", _PLAIN, True),
    "JumpReluAutoEncoder": ("jumprelu", {**_PLAIN, "threshold": "threshold"}, False),
}
_STREAMS = "resid_post|resid_pre|mlp_out|attn_out"
_STREAM_OF_LAYER = rf"({_STREAMS})_layer_(\d+)"
_GAP = "trainer.submodule_name is not that of a stream such as 'resid_post_layer_6'"


def load_dictionary_learning(path: Path, given: Given) -> SAE:
    """Read ``ae.pt`` with its ``config.json``.

    Parameters
    ----------
    path : Path
        The folder, or a checkpoint in it (``checkpoints/ae_1000.pt``).
    given : Given
        ``site`` is needed where ``submodule_name`` is not that of a stream.

    Returns
    -------
    SAE

    Raises
    ------
    InvalidInput
        If the class is unknown, the site is not known, or the file holds more than tensors.
    DataMismatch
        If files are damaged, or do not belong together.
    """
    weights_file = path if path.suffix == ".pt" else path / WEIGHTS_FILE
    folders = (weights_file.parent, weights_file.parent.parent)
    where = next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).is_file()), None)
    where = where or weights_file.parent / CONFIG_FILE
    config = read_json(where)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise InvalidInput(f"{where}: trainer is {trainer!r}; expected a JSON object")
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise InvalidInput(f"{where}: dict_class {name!r} is not supported; expected one of {', '.join(_CLASSES)}")
    architecture, names, subtract = _CLASSES[name]
    state = read_torch(weights_file)
    weights, k = _weights(state, trainer, name, weights_file)
    options: dict[str, Any] = {}
    if architecture == "topk":
        options["k"] = given.settled_k(k, len(weights["W_dec"]), where)
    elif given.k != k:  # that of a BatchTopK SAE is an average, and may be given
        given.refuse_k(architecture, where)
    sae = ARCHITECTURES[architecture](
        given.settled_site(_site(trainer, config, where), where, _GAP),
        weights,
        **options,
        subtract_decoder_bias=subtract,
        model_name=given.settled_name(trainer.get("lm_name"), where),
        dtype=exact_dtype(weights, state[names["W_dec"]].dtype),
    )
    sae.provenance = {"written_by": "dictionary_learning", "trainer": trainer}
    module = str(trainer.get("submodule_name"))
    if module_site(module) is not None:
        sae.provenance["module"] = module
    return sae


def _weights(
    state: dict[str, Any], trainer: dict[str, Any], name: str, path: Path
) -> tuple[dict[str, torch.Tensor], int | None]:
    """The tensors by our names, and k where the class has one."""
    _, names, _ = _CLASSES[name]
    transposed = names["W_enc"] == "encoder.weight"
    rows, columns = matrix_shape(state, names["W_enc"], path)
    f, d = (rows, columns) if transposed else (columns, rows)
    for key, size in (("dict_size", f), ("activation_dim", d)):
        if trainer.get(key, size) != size:
            raise DataMismatch(f"{path}: {names['W_enc']} has {size} for {key}, but {CONFIG_FILE} says {trainer[key]}")
    sizes = {"W_enc": (f, d) if transposed else (d, f), "W_dec": (d, f) if transposed else (f, d), "b_dec": (d,)}
    shapes = {theirs: sizes.get(ours, (f,)) for ours, theirs in names.items()}
    batch = "BatchTopK" in name
    ignored = ("k", "group_sizes", "threshold") if batch or name == "AutoEncoderTopK" else ()
    checked = checked_tensors(state, shapes | ({"threshold": ()} if batch else {}), path, ignored=ignored)
    weights = {ours: checked[theirs] for ours, theirs in names.items()}
    if transposed:
        weights |= {"W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}
    if batch:
        if checked["threshold"] < 0:
            raise InvalidInput(
                f"{path}: its threshold was never set (-1), so its features depend on the batch; "
                "take a checkpoint from after threshold_start_step"
            )
        weights["threshold"] = checked["threshold"].expand(f)
    if name == "AutoEncoder":
        weights, _ = unit_rows(weights)
    return weights, _stored_k(state, trainer, path)


def _stored_k(state: dict[str, Any], trainer: dict[str, Any], path: Path) -> int | None:
    k = int(state["k"]) if isinstance(state.get("k"), torch.Tensor) and state["k"].numel() == 1 else None
    said = trainer.get("k")
    if k is not None and said is not None and k != said:
        raise DataMismatch(f"{path}: k is {k}, but {CONFIG_FILE} says {said}")
    return said if k is None else k


def _site(trainer: dict[str, Any], config: dict[str, Any], where: Path) -> Site | None:
    """The site from ``submodule_name``; without one, outputs of a block are its residual stream."""
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    if name is None:
        io = (config.get("buffer") or {}).get("io", "out")
        return Site(layer) if io == "out" and isinstance(layer, int) and layer >= 0 else None
    match = re.fullmatch(_STREAM_OF_LAYER, str(name))
    try:
        site = Site(int(match[2]), match[1]) if match else Site.from_module(str(name))
    except InvalidInput:
        return None
    if layer is not None and layer != site.layer:
        raise DataMismatch(f"{where}: submodule_name is {name!r}, but layer is {layer!r}")
    return site
