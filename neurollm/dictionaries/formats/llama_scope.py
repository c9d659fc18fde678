"""The SAEs of Llama Scope (He et al. 2024) in the layout of lm-saes.

``hyperparams.json`` with ``checkpoints/final.safetensors``, or, in later releases,
``config.json`` with ``sae_weights.safetensors``. They were trained on normalised
activations u = s x with s = sqrt(d) / (average norm of x). For raw activations, in this
order, as lm-saes does it before inference:

    b_enc / s,  b_dec / s                                  f in raw units
    W_enc |d_i|,  b_enc |d_i|,  W_dec / |d_i|              if sparsity is judged with the decoder's norm
    f = pre [pre > threshold]

A threshold for all features (``jump_relu_threshold``) is in raw units; learned ones
(``log_jumprelu_threshold``) are those of training, so they are exp(.) / s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neurollm.dictionaries.architectures import ARCHITECTURES
from neurollm.dictionaries.formats.reading import (
    Given,
    checked_tensors,
    exact_dtype,
    parsed_site,
    positive,
    read_json,
    read_safetensors,
    unit_rows,
)
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.sae import SAE
from neurollm.errors import InvalidInput
from neurollm.models import Site

LAYOUTS = {"hyperparams.json": "checkpoints/final.safetensors", "config.json": "sae_weights.safetensors"}
_NORMS = "dataset_average_activation_norm"
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
_REFUSED = {"use_glu_encoder": "a gated (GLU) encoder", "skip_coefficients": "a skip connection"}


def load_llama_scope(folder: Path, given: Given) -> SAE:
    """Read a folder of Llama Scope.

    Parameters
    ----------
    folder : Path
    given : Given

    Returns
    -------
    SAE
        JumpReLU; TopK or ReLU where the configuration says so.

    Raises
    ------
    InvalidInput
        If it is a transcoder, or normalised in a way that is not supported.
    DataMismatch
        If files are damaged, or do not belong together.
    """
    name = next((name for name in LAYOUTS if (folder / name).is_file()), "hyperparams.json")
    where, path = folder / name, folder / LAYOUTS[name]
    config = read_json(where)
    for key, what in _REFUSED.items():
        if config.get(key):
            raise InvalidInput(f"{where}: {key} is set; {what} is not supported")
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise InvalidInput(f"{where}: a transcoder is not supported; it reads a stream normalised without its weights")
    found = read_safetensors(path)
    weights, learned = _weights(found, config, path, where)
    weights, scale = _raw(weights, found, config, where)
    architecture, threshold = _activation(config, learned, scale, where)
    f = len(weights["W_dec"])
    options: dict[str, Any] = {}
    if architecture == "jumprelu":
        weights["threshold"] = threshold.expand(f)
    if architecture == "topk":
        options["k"] = given.settled_k(config.get("top_k"), f, where)
    else:
        given.refuse_k(architecture, where)
    hook = config.get("hook_point_in")
    sae = ARCHITECTURES[architecture](
        given.settled_site(parsed_site(str(hook), Site.from_saelens, where) if hook else None, where),
        weights,
        **options,
        normalisation=Normalisation(per_token="unit_norm" if config.get("norm_activation") == "token-wise" else "none"),
        subtract_decoder_bias=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        model_name=given.settled_name(config.get("model_name"), where),
        dtype=exact_dtype(weights, found["encoder.weight"].dtype),
    )
    sae.provenance = {"written_by": "lm-saes", "hyperparams": config}
    return sae


def _weights(
    found: dict[str, torch.Tensor], config: dict[str, Any], path: Path, where: Path
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The tensors by our names, and the learned thresholds."""
    d = positive(config, "d_model", where)
    f = config.get("d_sae") or d * positive(config, "expansion_factor", where)
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (f, d), "encoder.bias": (f,), "decoder.weight": (d, f)}
    bias = config.get("use_decoder_bias", True)
    logarithm = next((name for name in _LOG_THRESHOLDS if name in found), None)
    shapes |= {"decoder.bias": (d,)} if bias else {}
    shapes |= {logarithm: tuple(found[logarithm].shape)} if logarithm else {}
    if logarithm and shapes[logarithm] not in ((), (f,)):
        shapes[logarithm] = (f,)
    norms = tuple(name for name in found if name.startswith(_NORMS))
    tensors = checked_tensors(found, shapes, path, ignored=norms, said_by=where.name)
    weights = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["decoder.bias"] if bias else torch.zeros(d),
    }
    return weights, tensors[logarithm].exp() if logarithm else None


def _raw(
    weights: dict[str, torch.Tensor], found: dict[str, torch.Tensor], config: dict[str, Any], where: Path
) -> tuple[dict[str, torch.Tensor], float]:
    """Weights for raw activations, and the factor s."""
    norm = config.get("norm_activation", "dataset-wise")
    if norm not in ("dataset-wise", "token-wise", "inference"):
        raise InvalidInput(
            f"{where}: norm_activation is {norm!r}; expected 'dataset-wise', 'token-wise' or 'inference'"
        )
    scale = 1.0
    if norm == "dataset-wise":
        scale = len(weights["b_dec"]) ** 0.5 / _average_norm(found, config, where)
        weights = {**weights, "b_enc": weights["b_enc"] / scale, "b_dec": weights["b_dec"] / scale}
    if config.get("sparsity_include_decoder_norm", True):
        weights, _ = unit_rows(weights)
    return weights, scale


def _average_norm(found: dict[str, torch.Tensor], config: dict[str, Any], where: Path) -> float:
    said = config.get(_NORMS) or {}
    keys = ("in", config.get("hook_point_in"))
    stored = [float(found[f"{_NORMS}.{key}"]) for key in keys if f"{_NORMS}.{key}" in found]
    values = [said[key] for key in keys if key in said] if isinstance(said, dict) else []
    value = next(iter((*values, *stored)), None)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidInput(f"{where}: {_NORMS} is {value!r}; expected a positive number for the input")
    return float(value)


def _activation(
    config: dict[str, Any], learned: torch.Tensor | None, scale: float, where: Path
) -> tuple[str, torch.Tensor]:
    """Our architecture and, for JumpReLU, its threshold."""
    named, fixed = str(config.get("act_fn", "jumprelu")).lower(), config.get("jump_relu_threshold") or 0.0
    if learned is not None:
        return "jumprelu", learned / scale
    if named == "relu":
        return "standard", torch.zeros(())
    if named == "jumprelu" or (named == "topk" and fixed > 0):  # the threshold that stands in for TopK
        return "jumprelu", torch.tensor(float(fixed))
    if named == "topk":
        return "topk", torch.zeros(())
    raise InvalidInput(f"{where}: act_fn is {config.get('act_fn')!r}; expected 'jumprelu', 'topk' or 'relu'")
