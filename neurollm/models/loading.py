"""Loading any transformers language model, by name or path, without a whitelist."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurollm import datasets
from neurollm.errors import InvalidInput
from neurollm.models.site import Site

FINGERPRINT_SAMPLE = 1024
_VOLATILE_CONFIG = ("pad_token_id", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
# Names under which transformers models keep the two halves of a block.
_MLP_NAMES = ("mlp", "feed_forward", "ffn")
_CHILD_NAMES = {
    "mlp_in": _MLP_NAMES,
    "mlp_out": _MLP_NAMES,
    "attn_out": ("attn", "self_attn", "attention", "self_attention"),
}
# Blocks that normalise what their halves return before adding it to the residual stream have the first of one of
# these pairs (Gemma 2 and 3, OLMo 2; GLM-4); what is added is then the norm's output.
_POST_NORMS = (
    {"mlp_out": "post_feedforward_layernorm", "attn_out": "post_attention_layernorm"},
    {"mlp_out": "post_mlp_layernorm", "attn_out": "post_self_attn_layernorm"},
)


@dataclass(eq=False)
class LanguageModel:
    """A transformers model with what neurollm needs to know about it.

    Use `load_model`; or wrap a model and tokenizer that are already in memory with
    ``LanguageModel(name, model, tokenizer, is_causal=True)``.

    Attributes
    ----------
    name : str
    model : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase
    is_causal : bool
        False for encoders such as BERT: they have no next-token prediction, so no
        cross-entropy and no generation.
    random_init : int or None
        Seed of the random weights when the model is the untrained control.
    """

    name: str
    model: Any
    tokenizer: Any
    is_causal: bool
    random_init: int | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        # transformers warns about missing attention masks when a batch contains the padding id; here
        # padding always follows the text, where no causal token can see it.
        self.model.config.pad_token_id = None
        self.blocks = _block_list(self.model.base_model, self.n_layers, self.name)[1]
        self.prepends_bos = _lacks_start_token(self.tokenizer)
        self._fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and so of the activations."""
        return next(self.model.parameters()).dtype

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def context(self) -> int:
        """Longest sequence the model takes, special tokens included."""
        limits = [
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            self.tokenizer.model_max_length,
        ]
        return min(limit for limit in limits if limit)

    @property
    def tokens_per_batch(self) -> int:
        """Padded tokens per forward pass where none are asked for.

        On a CPU few enough that the C library keeps the memory of a small model's
        temporary tensors instead of returning it to the system after every use.
        """
        return 4096 if self.device.type == "cpu" else 8192

    @property
    def fingerprint(self) -> str:
        """64 hex digits that identify architecture and weights.

        SHA-256 of the configuration and of up to 1,024 evenly spaced values of every
        weight matrix, rounded to bfloat16, so that it does not depend on the dtype the
        model was loaded in and takes well under a second for billions of parameters.
        """
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self.model)
        return self._fingerprint

    def module_at(self, site: Site) -> nn.Module:
        """The native module whose output (or, for ``resid_pre`` and ``mlp_in``, input) is the site.

        ``mlp_out`` and ``attn_out`` are what is added to the residual stream: where a block normalises the output of
        its halves before adding it, the module is that norm. A constant the block multiplies it with before adding
        it (Granite) is not included.

        Raises
        ------
        InvalidInput
            If the model has no such layer or stream.
        """
        if site.layer >= self.n_layers:
            raise InvalidInput(
                f"site {site}: model {self.name!r} has {self.n_layers} blocks, so layer must be "
                f"0 to {self.n_layers - 1}"
            )
        if site.stream == "token_embedding":
            return self.model.get_input_embeddings()
        block = self.blocks[site.layer]
        if site.stream in ("resid_post", "resid_pre"):
            return block
        for norms in _POST_NORMS:
            if site.stream in norms and hasattr(block, norms["mlp_out"]):
                return getattr(block, norms[site.stream])
        for child in _CHILD_NAMES[site.stream] if self.is_causal else ():
            if hasattr(block, child):
                return getattr(block, child)
        raise InvalidInput(f"site {site}: model {self.name!r} has no such stream; use resid_post or resid_pre")

    def module_named(self, name: str) -> nn.Module | None:
        """The native module of that name in the whole model or its base model; None if there is none."""
        for root in (self.model, self.model.base_model):
            try:
                return root.get_submodule(name)
            except AttributeError:
                continue
        return None

    def describe(self) -> dict[str, Any]:
        """What is written into results: name, fingerprint, dtype, device, random_init."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "architecture": self.model.config.model_type,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "random_init": self.random_init,
        }


def load_model(
    name: str | os.PathLike = "demo", *, device: str = "auto", dtype: str = "auto", random_init: int | None = None
) -> LanguageModel:
    """Load a causal language model or an encoder.

    Parameters
    ----------
    name : str or path, default="demo"
        ``"demo"`` (embedded), ``"minilm"`` (extra ``neurollm[minilm]``), a folder, or
        any name on the transformers hub.
    device : str, default="auto"
        ``"auto"`` takes CUDA when there is one.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        ``"auto"`` takes bfloat16 on CUDA and on CPUs with bfloat16 instructions, else float32.
    random_init : int, optional
        Seed. The weights are drawn anew from the architecture's own initialisation:
        the control that knows nothing.

    Returns
    -------
    LanguageModel

    Raises
    ------
    InvalidInput
        If there is no such model, or it is an encoder-decoder.

    Examples
    --------
    >>> lm = load_model("demo", device="cpu", dtype="float32")
    >>> lm.is_causal
    True
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    source = _resolve(name)
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # damaged files raise whatever their parser raises
        where = f"no readable one in folder {source}" if Path(source).is_dir() else "not a folder, not found on the hub"
        raise InvalidInput(
            f"model {str(name)!r} is not a transformers model ({where}: {_first_line(error)}); "
            "use 'demo', a folder, or a hub name"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInput(
            f"model {str(name)!r} is an encoder-decoder; use a causal language model or an encoder such as BERT"
        )
    is_causal = _is_causal(config)
    torch_device = _choose_device(device)
    torch_dtype = _choose_dtype(dtype, torch_device)
    factory = AutoModelForCausalLM if is_causal else AutoModel
    if random_init is None:
        model = _trained(factory, source, torch_dtype, str(name))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_init)
            model = factory.from_config(config).to(torch_dtype)
    return LanguageModel(str(name), model.to(torch_device), tokenizer, is_causal, random_init)


def _trained(factory: Any, source: str, dtype: torch.dtype, name: str) -> Any:
    """The model with its weights; none may be missing, because transformers would draw them at random."""
    try:
        with _without_bars():
            model, report = factory.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except Exception as error:  # damaged files raise whatever their parser raises
        raise InvalidInput(f"model {name!r}: its weights cannot be read ({_first_line(error)})") from error
    wrong = [key for key in [*report["missing_keys"], *report["mismatched_keys"]] if "pooler" not in str(key)]
    if wrong:
        raise InvalidInput(
            f"model {name!r}: its files lack {len(wrong)} of the weights that its config.json asks for, such as "
            f"{wrong[0]}; they would be random numbers"
        )
    depth = model.config.get_text_config().num_hidden_layers
    list_name = _block_list(model.base_model, depth, name)[0].rpartition(".")[2]
    numbers = re.findall(rf"(?:^|[. ]){list_name}\.(\d+)\.", " ".join(map(str, report["unexpected_keys"])))
    beyond = max(map(int, numbers), default=-1)
    if beyond >= depth:
        raise InvalidInput(
            f"model {name!r}: its files hold weights of {beyond + 1} blocks, but its config.json names {depth}; "
            "the model would be cut short"
        )
    return model


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the bars of transformers from breaking into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _resolve(name: str | os.PathLike) -> str:
    if str(name) == "demo":
        return str(datasets.demo_model_path())
    if str(name) == "minilm":
        return str(datasets.minilm_path())
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InvalidInput(f"model folder {path}: config.json is missing; expected a transformers model folder")
    return str(path) if path.is_dir() else str(name)


def _is_causal(config: Any) -> bool:
    """Encoders appear in both tables of transformers; what they are without `is_decoder` is an encoder."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    return kind not in MODEL_FOR_MASKED_LM_MAPPING or bool(getattr(config, "is_decoder", False))


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise InvalidInput(f"device {device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use 'auto'")
    return torch.device(device)


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in names:
        return names[dtype]
    if dtype != "auto":
        raise InvalidInput(f"dtype {dtype!r} is unknown; use 'auto' or one of {', '.join(names)}")
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not in every torch
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _block_list(backbone: nn.Module, n_layers: int, name: str) -> tuple[str, nn.ModuleList]:
    """The outermost list of modules that has one entry per layer, and its path."""
    lists = [
        (path.count("."), path, module)
        for path, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InvalidInput(
            f"model {name!r}: no list of {n_layers} blocks found; it is not a transformer neurollm can read"
        )
    return min(lists, key=lambda entry: entry[:2])[1:]


def _lacks_start_token(tokenizer: Any) -> bool:
    """True when the tokenizer has a start token but does not put it in front of a text."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return ids[0] not in tokenizer.all_special_ids


def _fingerprint(model: Any) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE_CONFIG}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // FINGERPRINT_SAMPLE)
        sample = flat[::step][:FINGERPRINT_SAMPLE].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
