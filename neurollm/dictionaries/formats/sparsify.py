"""The layout of sparsify (EleutherAI): ``cfg.json`` and ``sae.safetensors`` in a folder named like a module.

    f = the k largest ReLU(W_e (x - b_dec) + b_e)        x instead of x - b_dec in transcoders
    y = f W_dec + b_dec (+ W_skip x)

The folder's name is the module's name in the transformers model: autoencoders read and
reconstruct its output; transcoders read its input and predict its output. The name is kept in
``provenance["module"]``, and `Dictionary.check` refuses models in which that output is not the
site. The number of features is that of the tensors, since ``num_latents`` may be 0.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from neurollm.dictionaries.architectures import TopKSAE
from neurollm.dictionaries.formats.reading import (
    Given,
    checked_tensors,
    exact_dtype,
    matrix_shape,
    module_site,
    positive,
    read_json,
    read_safetensors,
    stored_weights,
)
from neurollm.dictionaries.sae import SAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_text
from neurollm.models import Site

CONFIG_FILE, WEIGHTS_FILE, RUN_FILE = "cfg.json", "sae.safetensors", "config.json"


def load_sparsify(folder: Path, given: Given) -> SAE:
    """Read a folder written by sparsify; keys that older or newer releases add are ignored.

    Parameters
    ----------
    folder : Path
    given : Given
        ``site`` is needed where the folder's name is not that of a module.

    Returns
    -------
    TopKSAE

    Raises
    ------
    InvalidInput
        If the activation is another one than TopK, or the site is not known.
    DataMismatch
        If files are damaged, or do not belong together.
    """
    where, path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_json(where)
    transcode, skip = bool(config.get("transcode", False)), bool(config.get("skip_connection", False))
    activation = "signed TopK" if config.get("signed") else config.get("activation", "topk")
    if activation != "topk":
        raise InvalidInput(f"{where}: activation {activation!r} is not supported; only 'topk' is")
    if skip and not transcode:
        raise InvalidInput(f"{where}: an autoencoder with a skip connection is not supported")
    found = read_safetensors(path)
    f, _ = matrix_shape(found, "encoder.weight", path)
    d = positive(config, "d_in", where)
    wanted = config.get("num_latents") or d * config.get("expansion_factor", 0)
    if wanted and wanted != f:
        raise DataMismatch(f"{path}: encoder.weight has {f} rows, but {CONFIG_FILE} says {wanted} latents")
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "W_dec": (f, d), "b_dec": (d,)}
    tensors = checked_tensors(found, shapes | ({"W_skip": (d, d)} if skip else {}), path, said_by=CONFIG_FILE)
    weights = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
    weights |= {name: tensors[name] for name in ("W_dec", "b_dec", "W_skip") if name in tensors}
    site, target = _sites(folder, where, given, transcode)
    sae = TopKSAE(
        site,
        weights,
        given.settled_k(config.get("k", 32), f, where),
        subtract_decoder_bias=not transcode,
        target_site=target,
        model_name=given.settled_name(_model_name(folder.parent), where),
        dtype=exact_dtype(weights, found["W_dec"].dtype),
    )
    sae.provenance = {"written_by": "sparsify"}
    module = folder.absolute().name
    if module_site(module) is not None:
        sae.provenance["module"] = module
    return sae


def _sites(folder: Path, where: Path, given: Given, transcode: bool) -> tuple[Site, Site | None]:
    name = folder.absolute().name
    gap = f"the folder's name {name!r} is not that of a module such as 'layers.6' or 'h.6.mlp'"
    site, target = module_site(name, "input" if transcode else "output"), module_site(name)
    if transcode and (site is None or target is None):
        raise InvalidInput(f"{where}: {gap}; a transcoder needs it")
    return given.settled_site(site, where, gap), target if transcode else None


def _model_name(run: Path) -> str:
    """The model of a training run, where its configuration lies above the folder."""
    name = read_json(run / RUN_FILE).get("model") if (run / RUN_FILE).is_file() else None
    return name if isinstance(name, str) else ""


def save_sparsify(sae: SAE, folder: str | os.PathLike) -> Path:
    """Write a TopK SAE, or TopK transcoder, so that sparsify loads it and computes the same features.

    Parameters
    ----------
    sae : TopKSAE
        A linear normalisation is taken into the weights.
    folder : path-like
        The run. The files go into a subfolder that is named like the module, as sparsify does it
        (``layers.6``, ``layers.6.mlp`` …). The model is not at hand here, and names differ between
        families, so rename it where the blocks are called otherwise. In models that normalise what
        a half of a block returns before adding it (Gemma 2 and 3, OLMo 2, GLM-4), the sites
        ``mlp_out`` and ``attn_out`` are the output of that norm, and ``layers.6.mlp`` is another tensor:
        rename the folder to the norm (``layers.6.post_feedforward_layernorm``).

    Returns
    -------
    Path
        The subfolder.

    Raises
    ------
    InvalidInput
        If sparsify has no place for it: another architecture, per-token normalisation, a site
        that is not the output of a module, an encoder without b_dec, or weights too large for
        their dtype; then nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from neurollm import load_dictionary
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save_sparsify(load_dictionary("demo"), folder)
    ...     print(saved.name, sorted(path.name for path in saved.iterdir()))
    layers.3 ['cfg.json', 'sae.safetensors']
    """
    if type(sae) is not TopKSAE:
        raise InvalidInput(f"{sae}: sparsify stores only 'topk' dictionaries, not {sae.architecture!r}")
    sae = sae.fold()
    if not sae.normalisation.is_identity:
        raise InvalidInput(f"{sae}: sparsify has no place for normalisation token by token")
    if sae.subtract_decoder_bias == sae.is_transcoder or sae.d_in != sae.d_out:
        raise InvalidInput(f"{sae}: sparsify subtracts b_dec in every autoencoder, and keeps the width in transcoders")
    target = Path(folder) / _module_name(sae)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    tensors = {
        names.get(name, name): (weight.T if name == "W_enc" else weight).contiguous()
        for name, weight in stored_weights(sae).items()
    }
    with atomic_path(target / WEIGHTS_FILE) as partial:
        partial.write_bytes(save(tensors))
    write_text(target / CONFIG_FILE, json.dumps(_config(sae)))
    return target


def _config(sae: TopKSAE) -> dict[str, Any]:
    return {
        "activation": "topk",
        "expansion_factor": max(1, sae.n_features // sae.d_in),
        "normalize_decoder": bool(torch.allclose(sae.weights["W_dec"].norm(dim=1), torch.ones(1), atol=1e-3)),
        "num_latents": sae.n_features,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": "W_skip" in sae.weights,
        "transcode": sae.is_transcoder,
        "d_in": sae.d_in,
    }


def _module_name(sae: TopKSAE) -> str:
    suffixes = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}
    ends = (sae.site.stream, sae.target_site.stream, sae.site.layer == sae.target_site.layer)
    if sae.is_transcoder and ends in (("mlp_in", "mlp_out", True), ("resid_pre", "resid_post", True)):
        return f"layers.{sae.site.layer}{suffixes[sae.target_site.stream]}"
    if not sae.is_transcoder and sae.site.stream == "token_embedding":
        return "embed_tokens"
    if sae.is_transcoder or sae.site.stream not in suffixes:
        raise InvalidInput(f"{sae}: its sites are not the input and the output of one module, as sparsify needs it")
    return f"layers.{sae.site.layer}{suffixes[sae.site.stream]}"
