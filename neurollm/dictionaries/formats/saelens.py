"""The layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors`` in one folder.

Written is, byte for byte, what ``SAE.save_model`` of SAELens 6.54 writes. Read are that
inference form, the training form (``TrainingSAE.save_model``), and the flat
configurations from before SAELens 6. All of them are brought into the equations of
`neurollm.dictionaries.sae` exactly:

* ``batchtopk`` and ``matryoshka_batchtopk`` become JumpReLU with the learned threshold;
* ``rescale_acts_by_decoder_norm`` goes into the weights, and so do
  ``expected_average_only_in`` and ``covariance_whitening`` with the statistics that
  training leaves in ``activation_scaler.json`` and ``activation_whitening.safetensors``;
* ``constant_norm_rescale`` and ``layer_norm`` become a `Normalisation` of every token.

Centred residual streams. TransformerLens can load a model with
``center_writing_weights``: whatever is written into the residual stream then has mean
zero over its dimensions. An SAE trained on such activations must be given x − mean(x).
That is done where the configuration says so (``model_from_pretrained_kwargs:
{"center_writing_weights": true}``), and for SAEs of GPT-2 from before SAELens 3, which
always loaded models that way and did not say so: a flat configuration with the key
``hook_point`` and without ``architecture`` and ``model_from_pretrained_kwargs``. Such are
the ``res-jb`` SAEs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from neurollm.dictionaries.architectures import ARCHITECTURES
from neurollm.dictionaries.formats.native import SIDE_FILE, check_weights, side_record
from neurollm.dictionaries.formats.reading import (
    Given,
    checked_tensors,
    exact_dtype,
    module_site,
    parsed_site,
    positive,
    read_json,
    read_safetensors,
    stored_weights,
    switch,
    unit_rows,
)
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.sae import ALL_WEIGHTS, SAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json, write_text
from neurollm.models import Site

SAELENS_VERSION = "6.54.12"  # the release whose layout is written
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
SCALER_FILE, WHITENING_FILE = "activation_scaler.json", "activation_whitening.safetensors"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
# Architectures by their SAELens names: ours, and whether it is a transcoder.
_KINDS = {
    "standard": ("standard", False),
    "gated": ("gated", False),
    "topk": ("topk", False),
    "abstopk": ("abstopk", False),
    "jumprelu": ("jumprelu", False),
    "batchtopk": ("jumprelu", False),
    "matryoshka_batchtopk": ("jumprelu", False),
    "matching_pursuit": ("matching_pursuit", False),
    "transcoder": ("standard", True),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
_UNSUPPORTED = {
    "temporal": "its features depend on the tokens before",
}
_PER_TOKEN = {"none": "none", "constant_norm_rescale": "unit_norm", "layer_norm": "layer_norm"}
_STATISTICS = ("expected_average_only_in", "covariance_whitening")
_OPTIONS = {
    "topk": ("k",),
    "abstopk": ("k",),
    "matching_pursuit": ("residual_threshold", "max_iterations", "stop_on_duplicate_support"),
}
_DEFAULTS = {"k": 100, "residual_threshold": 1e-2, "max_iterations": None, "stop_on_duplicate_support": True}


@dataclass
class _Layout:
    """What a ``cfg.json`` says, in one form for all releases of SAELens."""

    where: Path
    named: str
    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    transcoder: bool
    dtype: str
    subtract: bool
    rescale: bool
    normalize: str
    centred: bool
    scaled_features: bool
    flat: bool
    metadata: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.where.parent

    @property
    def per_token(self) -> str:
        """What is done to every token by itself."""
        per_token = _PER_TOKEN.get(self.normalize, "none")
        return "centre" if self.centred and per_token == "none" else per_token  # layer_norm centres as well

    @property
    def provenance(self) -> dict[str, Any]:
        """The metadata are kept as they are, so that saving gives the same file."""
        if self.flat:
            return {"written_by": "SAELens before 6"}
        return {"written_by": f"SAELens {self.metadata.get('sae_lens_version')}", "saelens_metadata": self.metadata}


def write_saelens(sae: SAE, folder: str | os.PathLike) -> None:
    """Write a folded SAE; ``neurollm.json`` comes last, so its presence says that all is there.

    Two things have no place in the equations of SAELens. Centring of every token before
    encoding (``per_token="centre"``) is written as ``center_writing_weights``: SAELens
    leaves it to the model it is used with. Transcoders of other architectures than
    ``standard`` and ``jumprelu`` it takes for autoencoders, or refuses if they have a skip
    connection. `load_dictionary` reads both exactly.

    Parameters
    ----------
    sae : SAE
        Without a linear normalisation of its own (`SAE.fold`).
    folder : path-like
        Created when it is missing.

    Raises
    ------
    InvalidInput
        If a weight is too large for the dtype it is to be stored in; then nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from neurollm import load_dictionary
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_saelens(load_dictionary("demo"), folder)
    ...     print(sorted(path.name for path in Path(folder).iterdir()))
    ['cfg.json', 'neurollm.json', 'sae_weights.safetensors']
    """
    folder = Path(folder)
    tensors = stored_weights(sae)
    (folder / SIDE_FILE).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as partial:
        partial.write_bytes(save(tensors))  # save_file would make it unreadable for other users
    write_text(folder / CONFIG_FILE, json.dumps(_config(sae)))
    write_json(folder / SIDE_FILE, side_record(sae, sha256_file(folder / WEIGHTS_FILE)))


def _config(sae: SAE) -> dict[str, Any]:
    named = sae.architecture
    if sae.is_transcoder and named in ("standard", "jumprelu"):
        stem = "" if named == "standard" else "jumprelu_"
        named = f"{stem}skip_transcoder" if "W_skip" in sae.weights else f"{stem}transcoder"
    normalize = {ours: theirs for theirs, ours in _PER_TOKEN.items()}.get(sae.normalisation.per_token, "none")
    return {
        "d_in": sae.d_in,
        "d_sae": sae.n_features,
        "dtype": sae.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_decoder_bias,
        "normalize_activations": normalize,
        "reshape_activations": "none",
        "metadata": sae.provenance.get("saelens_metadata") or _metadata(sae),
        **sae.options,
        **({"rescale_acts_by_decoder_norm": False} if named in ("topk", "abstopk") else {}),
        **({"d_out": sae.d_out} if sae.is_transcoder else {}),
        "architecture": named,
    }


def _metadata(sae: SAE) -> dict[str, Any]:
    return {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": SAELENS_VERSION,
        "model_name": sae.model_name,
        "hook_name": sae.site.saelens_hook_name,
        "hook_head_index": None,
        "context_size": sae.provenance.get("context"),
        "prepend_bos": True,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": (
            {"center_writing_weights": True} if sae.normalisation.per_token == "centre" else {}
        ),
        **({"hook_name_out": sae.target_site.saelens_hook_name} if sae.is_transcoder else {}),
    }


def load_saelens(folder: Path, given: Given, record: dict[str, Any] | None = None) -> SAE:
    """Read a folder in the SAELens layout.

    Parameters
    ----------
    folder : Path
    given : Given
    record : dict, optional
        Content of the ``neurollm.json`` beside the files, in a dictionary that neurollm wrote.

    Returns
    -------
    SAE

    Raises
    ------
    InvalidInput
        If the configuration says something that is not supported.
    DataMismatch
        If files are damaged, or do not belong together.
    """
    layout = _layout(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    weights = _plain_form(_read_weights(layout), layout)
    if record is not None:
        check_weights(record, folder, WEIGHTS_FILE)
        _check_record(record, layout)
    record = record or {}
    if layout.architecture in ("topk", "abstopk"):
        layout.options["k"] = given.settled_k(layout.options["k"], layout.d_sae, layout.where)
    else:
        given.refuse_k(layout.architecture, layout.where)
    site, target = _sites(layout, record, given)
    model = record.get("model", {"name": layout.metadata.get("model_name"), "fingerprint": ""})
    sae = ARCHITECTURES[layout.architecture](
        site,
        weights,
        **layout.options,
        normalisation=Normalisation(per_token=layout.per_token),
        subtract_decoder_bias=layout.subtract or layout.architecture == "matching_pursuit",
        target_site=target,
        model_name=given.settled_name(model["name"], layout.where),
        model_fingerprint=model["fingerprint"],
        dtype=exact_dtype(weights, layout.dtype),
    )
    sae.provenance = record.get("provenance", layout.provenance)
    module = _target_module(layout.metadata, target is not None)
    if module and not record:
        sae.provenance["module"] = module
    sae.metrics = record.get("metrics", {})
    return sae


def _check_record(record: dict[str, Any], layout: _Layout) -> None:
    """Refuse a ``neurollm.json`` that says something else than ``cfg.json``."""
    site = _hook(layout.metadata.get("hook_name"), layout.metadata.get("hf_hook_name"), layout.where, True)
    said = {"architecture": layout.architecture, "d_in": layout.d_in, "n_features": layout.d_sae, **layout.options}
    said |= {"per_token": layout.per_token, **({"site": site.to_dict()} if site else {})}
    for key, value in said.items():
        found = record.get(key, "none" if key == "per_token" else None)
        if found != value:
            raise DataMismatch(
                f"{layout.folder / SIDE_FILE}: {key} is {found!r}, but {CONFIG_FILE} says {value!r}; restore the pair"
            )


def _sites(layout: _Layout, record: dict[str, Any], given: Given) -> tuple[Site, Site | None]:
    """Where activations are read, and, for a transcoder, what is reconstructed."""
    if record:
        target = record.get("target_site")
        site = Site.from_dict(record["site"])
        return given.settled_site(site, layout.where), Site.from_dict(target) if target else None
    metadata = layout.metadata
    gap = "metadata.hook_name is missing; expected for example 'blocks.3.hook_resid_post'"
    found = _hook(metadata.get("hook_name"), metadata.get("hf_hook_name"), layout.where, given.site is not None)
    site = given.settled_site(found, layout.where, gap)
    if not layout.transcoder:
        return site, None
    target = _hook(metadata.get("hook_name_out"), metadata.get("hf_hook_name_out"), layout.where, False)
    if target is None:
        raise InvalidInput(f"{layout.where}: metadata.hook_name_out is missing; a transcoder needs its output's hook")
    return site, target


def _hook(name: str | None, module: str | None, where: Path, optional: bool) -> Site | None:
    """The site of a hook; the name of the native module, where it is there, is the exact one."""
    if not (name or module):
        return None
    try:
        if not module:
            return parsed_site(name, Site.from_saelens, where)
        stem, end = module.rsplit(".", 1) if module.endswith((".input", ".output")) else (module, "output")
        return parsed_site(stem, lambda stem: Site.from_module(stem, end), where)
    except InvalidInput:
        if optional:
            return None
        raise


def _target_module(metadata: dict[str, Any], transcoder: bool) -> str:
    """The native module whose output is reconstructed, where it is named."""
    name = str(metadata.get("hf_hook_name_out" if transcoder else "hf_hook_name")).removesuffix(".output")
    return name if module_site(name) is not None else ""


def _layout(config: dict[str, Any], where: Path) -> _Layout:
    """One form for all releases, or a sentence that says what is not supported."""
    flat = "metadata" not in config
    config = _since_six(config) if flat else config
    metadata = config["metadata"]
    if not isinstance(metadata, dict):
        raise InvalidInput(f"{where}: metadata is {metadata!r}; expected a JSON object")
    named = config.get("architecture")
    if named not in _KINDS:
        reason = _UNSUPPORTED.get(named, f"known are {', '.join(_KINDS)}")
        raise InvalidInput(f"{where}: architecture {named!r} is not supported: {reason}")
    architecture, transcoder = _KINDS[named]
    transcoder = transcoder or "d_out" in config
    d_in, d_sae = positive(config, "d_in", where), positive(config, "d_sae", where)
    layout = _Layout(
        where=where,
        named=named,
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=positive(config, "d_out", where) if transcoder else d_in,
        transcoder=transcoder,
        dtype=str(config.get("dtype", "float32")).removeprefix("torch."),
        subtract=switch(config, "apply_b_dec_to_input", True, where),
        rescale=bool(config.get("rescale_acts_by_decoder_norm", False)),
        normalize=config.get("normalize_activations") or "none",
        centred=_is_centred(metadata, config.get("before_three", False)),
        scaled_features=bool(config.get("finetuning_scaling_factor", False)),
        flat=flat,
        metadata=metadata,
        options={key: config.get(key, _DEFAULTS[key]) for key in _OPTIONS.get(architecture, ())},
    )
    _refuse_unsupported(layout, config)
    return layout


def _refuse_unsupported(layout: _Layout, config: dict[str, Any]) -> None:
    where = layout.where
    if layout.dtype not in DTYPES:
        raise InvalidInput(f"{where}: dtype {layout.dtype!r}; expected one of {', '.join(DTYPES)}")
    if layout.normalize not in (*_PER_TOKEN, *_STATISTICS):
        raise InvalidInput(
            f"{where}: normalize_activations is {layout.normalize!r}; expected one of "
            f"{', '.join((*_PER_TOKEN, *_STATISTICS))}"
        )
    if layout.transcoder and (layout.normalize != "none" or layout.subtract):
        raise InvalidInput(f"{where}: a transcoder that normalises its input, or subtracts b_dec, is not supported")
    if layout.centred and (layout.transcoder or layout.per_token == "unit_norm"):
        raise InvalidInput(
            f"{where}: activations centred by TransformerLens, in a transcoder or together with {layout.normalize!r}, "
            "are not supported"
        )
    if config.get("reshape_activations", "none") != "none":
        raise InvalidInput(
            f"{where}: reshape_activations is {config['reshape_activations']!r}; SAEs of attention heads are not "
            "supported"
        )
    if layout.metadata.get("hook_head_index") is not None:
        raise InvalidInput(f"{where}: hook_head_index is set; SAEs of single attention heads are not supported")
    if config.get("activation_fn") not in (None, "relu", "topk"):
        raise InvalidInput(f"{where}: activation_fn is {config['activation_fn']!r}; expected 'relu' or 'topk'")


def _since_six(config: dict[str, Any]) -> dict[str, Any]:
    """A flat configuration from before SAELens 6 with the names and the nesting of today."""
    renamed = {"hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    new = {renamed.get(key, key): value for key, value in config.items()}
    new.setdefault("hook_name", new.get("hook_point"))
    if new.get("activation_fn") == "topk":
        new["architecture"] = "topk"
        new["k"] = (new.get("activation_fn_kwargs") or {}).get("k", new.get("k"))
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    if new.get("reshape_activations") is None:
        new["reshape_activations"] = "hook_z" if "hook_z" in str(new["hook_name"]) else "none"
    kept = ("model_name", "hook_name", "hook_name_out", "hook_head_index", "context_size", "sae_lens_version")
    metadata = {key: new.get(key) for key in (*kept, "hf_hook_name", "hf_hook_name_out")}
    metadata["model_from_pretrained_kwargs"] = new.get("model_from_pretrained_kwargs") or {}
    return {"architecture": "standard", **new, "metadata": metadata, "before_three": _before_three(config)}


def _before_three(flat: dict[str, Any]) -> bool:
    """Whether a flat configuration comes from before SAELens 3."""
    return "hook_point" in flat and not flat.keys() & {"architecture", "model_from_pretrained_kwargs"}


def _is_centred(metadata: dict[str, Any], before_three: bool) -> bool:
    """Whether activations were those of a model with centred writing weights (see the module docstring)."""
    said = (metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
    return bool(said) or (before_three and str(metadata.get("model_name")).startswith("gpt2"))


def _read_weights(layout: _Layout) -> dict[str, torch.Tensor]:
    path = layout.folder / WEIGHTS_FILE
    found = read_safetensors(path)
    if "log_threshold" in found:  # training form of older releases
        found["threshold"] = found.pop("log_threshold").exp()
    if "finetuning_scaling_factor" in found:  # two names of one thing
        found["scaling_factor"] = found.pop("finetuning_scaling_factor")
    ours = layout.transcoder and layout.named == layout.architecture  # a transcoder SAELens has no name for
    skip = "skip" in layout.named or (ours and "W_skip" in found)
    names = [*ARCHITECTURES[layout.architecture].tensors, *(["W_skip"] if skip else [])]
    sizes = {"F": layout.d_sae, "d_in": layout.d_in, "d_out": layout.d_out}
    shapes = {name: tuple(sizes[letter] for letter in ALL_WEIGHTS[name]) for name in names}
    if "topk_threshold" in found and layout.named in ("batchtopk", "matryoshka_batchtopk"):
        shapes["topk_threshold"] = ()
        del shapes["threshold"]
    if "scaling_factor" in found:
        shapes["scaling_factor"] = (layout.d_sae,)
    weights = checked_tensors(found, shapes, path, said_by=CONFIG_FILE)
    if "topk_threshold" in weights:
        weights["threshold"] = weights.pop("topk_threshold").expand(layout.d_sae)
    return weights


def _plain_form(weights: dict[str, torch.Tensor], layout: _Layout) -> dict[str, torch.Tensor]:
    """Rewrite the options of SAELens into plain weights, in the order in which SAELens does it."""
    factor = weights.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        if not layout.scaled_features:
            raise DataMismatch(
                f"{layout.folder / WEIGHTS_FILE}: scaling_factor is not 1, but {CONFIG_FILE} does not say "
                "finetuning_scaling_factor"
            )
        weights["W_dec"] = weights["W_dec"] * factor[:, None]
    if layout.architecture == "matching_pursuit" and not layout.subtract:
        weights["b_dec"] = torch.zeros_like(weights["b_dec"])  # then SAELens does not add it either
    if layout.normalize == "covariance_whitening":
        if layout.rescale:
            weights, _ = unit_rows(weights)
        return _without_whitening(weights, layout)
    if layout.normalize == "expected_average_only_in":
        weights = _without_scale(weights, layout)
    return unit_rows(weights)[0] if layout.rescale else weights


def _without_scale(weights: dict[str, torch.Tensor], layout: _Layout) -> dict[str, torch.Tensor]:
    """Weights for raw activations of an SAE that was trained on s x."""
    scale = _statistics(layout).get("scaling_factor")
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise InvalidInput(f"{layout.folder / SCALER_FILE}: scaling_factor is {scale!r}; expected a positive number")
    new = {**weights, "b_dec": weights["b_dec"] / scale}
    if layout.architecture == "matching_pursuit":  # encoder and decoder are one: features take the scale
        layout.options["residual_threshold"] /= scale
        return new
    new["W_enc"], new["W_dec"] = weights["W_enc"] * scale, weights["W_dec"] / scale
    if layout.rescale and "threshold" in new:  # it is compared with features times the length of their row
        new["threshold"] = new["threshold"] / scale
    return new


def _without_whitening(weights: dict[str, torch.Tensor], layout: _Layout) -> dict[str, torch.Tensor]:
    """Weights for raw activations of an SAE that was trained on (x - mean) M."""
    if layout.architecture == "matching_pursuit":
        raise InvalidInput(f"{layout.where}: matching_pursuit cannot be combined with covariance_whitening")
    _statistics(layout)
    path, d = layout.folder / WHITENING_FILE, layout.d_in
    shapes = {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)}
    found = read_safetensors(path)
    checked_tensors(found, shapes, path, said_by=CONFIG_FILE)
    mean, matrix, inverse = (found[name].double() for name in shapes)
    new = {**weights, "W_enc": (matrix @ weights["W_enc"].double()).float()}
    if not layout.subtract:
        offset = (mean @ new["W_enc"].double()).float()
        for name in new.keys() & {"b_enc", "b_gate", "b_mag"}:
            new[name] = weights[name] - (offset * weights["r_mag"].exp() if name == "b_mag" else offset)
    new["W_dec"] = (weights["W_dec"].double() @ inverse).float()
    new["b_dec"] = (weights["b_dec"].double() @ inverse + mean).float()
    return new


def _statistics(layout: _Layout) -> dict[str, Any]:
    path = layout.folder / SCALER_FILE
    if not path.is_file():
        raise InvalidInput(
            f"{layout.where}: normalize_activations is {layout.normalize!r}, but {SCALER_FILE} with its statistics is "
            "missing; save the SAE in its inference form"
        )
    return read_json(path)
