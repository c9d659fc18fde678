"""The SAEs of GPT-2 by OpenAI (Gao et al. 2024): one PyTorch file each, for example ``6.pt``.

    u = (x - mean(x)) / (SD(x) + 1e-5)          only with TopK; u = x with ReLU
    f = activation(W_e (u - pre_bias) + latent_bias)
    x̂ = (W_d f + pre_bias) SD(x) + mean(x)

The file does not say where in the model it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neurollm.dictionaries.architectures import ARCHITECTURES
from neurollm.dictionaries.formats.reading import Given, checked_tensors, exact_dtype, matrix_shape, read_torch
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.sae import SAE
from neurollm.errors import InvalidInput

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_ACTIVATION = ("activation", "activation_state_dict")


def load_openai(path: Path, given: Given) -> SAE:
    """Read one file.

    Parameters
    ----------
    path : Path
    given : Given
        ``site`` is needed: Site(layer, 'resid_post') for ``resid_post_mlp``,
        Site(layer, 'mlp_out') for ``resid_delta_mlp``, Site(layer, 'attn_out') for
        ``resid_delta_attn``.

    Returns
    -------
    TopKSAE or ReLUSAE

    Raises
    ------
    InvalidInput
        If the site is missing, the activation is unknown, or the file holds more than tensors.
    DataMismatch
        If the file is damaged.
    """
    state = read_torch(path)
    f, d = matrix_shape(state, "encoder.weight", path)
    tied = "decoder.linear.weight" if "decoder.linear.weight" in state else None  # the encoder's, once more
    shapes = {"encoder.weight": (f, d), "latent_bias": (f,), "pre_bias": (d,)}
    shapes |= {tied: (f, d)} if tied else {"decoder.weight": (d, f)}
    tensors = checked_tensors(state, shapes, path, ignored=(*_STATISTICS, *_ACTIVATION), said_by="encoder.weight")
    weights = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["latent_bias"],
        "W_dec": tensors[tied] if tied else tensors["decoder.weight"].T,
        "b_dec": tensors["pre_bias"],
    }
    architecture, options = _activation(state, f, path, given)
    sae = ARCHITECTURES[architecture](
        given.settled_site(None, path),
        weights,
        **options,
        normalisation=Normalisation(per_token="layer_norm" if architecture == "topk" else "none"),
        model_name=given.settled_name("gpt2", path),
        dtype=exact_dtype(weights, state["encoder.weight"].dtype),
    )
    sae.provenance = {"written_by": "OpenAI sparse_autoencoder", "file": path.name}
    return sae


def _activation(state: dict[str, Any], f: int, path: Path, given: Given) -> tuple[str, dict[str, int]]:
    named, inner = state.get("activation", "ReLU"), state.get("activation_state_dict") or {}
    if named == "TopK":
        if inner.get("postact_fn", "ReLU") != "ReLU":
            raise InvalidInput(f"{path}: TopK followed by {inner['postact_fn']!r} is not supported; only 'ReLU' is")
        k = inner.get("k")
        return "topk", {"k": given.settled_k(int(k) if isinstance(k, torch.Tensor) else k, f, path)}
    if named != "ReLU":
        raise InvalidInput(f"{path}: activation {named!r} is not supported; expected 'TopK' or 'ReLU'")
    given.refuse_k("standard", path)
    return "standard", {}
