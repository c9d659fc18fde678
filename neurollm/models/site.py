"""Where in a model activations are read or changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from neurollm.errors import InvalidInput

STREAMS = ("resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding", "mlp_in")
_TRANSFORMER_LENS = {
    "hook_resid_post": "resid_post",
    "hook_resid_pre": "resid_pre",
    "hook_mlp_out": "mlp_out",
    "hook_attn_out": "attn_out",
    "mlp.hook_in": "mlp_in",
}
_MLP = ("mlp", "feed_forward", "ffn")
# What flows out of, or into, a native module of a block; "" is the block itself.
_MODULES = {
    ("", "output"): "resid_post",
    ("", "input"): "resid_pre",
    **{(name, "output"): "mlp_out" for name in (*_MLP, "post_feedforward_layernorm", "post_mlp_layernorm")},
    **{
        (name, "output"): "attn_out"
        for name in ("attn", "self_attn", "attention", "self_attention", "post_self_attn_layernorm")
    },
    **{(name, "input"): "mlp_in" for name in _MLP},
    ("pre_feedforward_layernorm", "output"): "mlp_in",
}


@dataclass(frozen=True)
class Site:
    """One place in a language model.

    The same site harvests and intervenes, so what is read is exactly what is changed.

    Parameters
    ----------
    layer : int
        Index of the block, counted from 0. The residual stream after block `l` is
        ``hidden_states[l + 1]`` in transformers, except for the last block, whose
        entry there is taken after the final norm.
    stream : {"resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding", "mlp_in"}
        The block's output, its input, the output of its MLP or attention module, the
        token embedding alone (no position, no context; layer must be 0), or the input
        of its MLP module, after the norm before it.

    Raises
    ------
    InvalidInput
        If the layer is negative or the stream unknown.

    Examples
    --------
    >>> str(Site(3))
    'resid_post.3'
    >>> Site.from_saelens("blocks.3.hook_mlp_out")
    Site(layer=3, stream='mlp_out')
    """

    layer: int
    stream: str = "resid_post"

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise InvalidInput(f"site: unknown stream {self.stream!r}; use one of {', '.join(STREAMS)}")
        if not isinstance(self.layer, int) or self.layer < 0:
            raise InvalidInput(f"site: layer must be a whole number from 0 on, got {self.layer!r}")
        if self.stream == "token_embedding" and self.layer != 0:
            raise InvalidInput(f"site: token_embedding exists only at layer 0, got layer {self.layer}")

    def __str__(self) -> str:
        return f"{self.stream}.{self.layer}"

    def to_dict(self) -> dict[str, Any]:
        """The site as plain data, as written in pipeline files and manifests."""
        return {"layer": self.layer, "stream": self.stream}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Site:
        """Inverse of `to_dict`."""
        return cls(layer=value["layer"], stream=value.get("stream", "resid_post"))

    @property
    def saelens_hook_name(self) -> str:
        """The name of this site in SAELens and TransformerLens configurations."""
        if self.stream == "token_embedding":
            return "hook_embed"
        hook = next(hook for hook, stream in _TRANSFORMER_LENS.items() if stream == self.stream)
        return f"blocks.{self.layer}.{hook}"

    @classmethod
    def from_saelens(cls, hook_name: str) -> Site:
        """The site of a SAELens hook name.

        Raises
        ------
        InvalidInput
            If the name does not belong to a supported stream.
        """
        if hook_name == "hook_embed":
            return cls(0, "token_embedding")
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        if match is None or match[2] not in _TRANSFORMER_LENS:
            raise InvalidInput(
                f"hook name {hook_name!r} is not a site neurollm knows; expected for example 'blocks.3.hook_resid_post'"
            )
        return cls(int(match[1]), _TRANSFORMER_LENS[match[2]])

    @classmethod
    def from_module(cls, name: str, end: str = "output") -> Site:
        """The site of what flows out of (or into) a module of a transformers model.

        Parameters
        ----------
        name : str
            For example ``"model.layers.6"``, ``"h.6.mlp"``, ``"wte"``.
        end : {"output", "input"}

        Raises
        ------
        InvalidInput
            If it does not belong to a supported stream.

        Examples
        --------
        >>> Site.from_module("gpt_neox.layers.6"), Site.from_module("h.6.mlp", "input")
        (Site(layer=6, stream='resid_post'), Site(layer=6, stream='mlp_in'))
        """
        if end == "output" and re.fullmatch(r"(.+\.)?(embed_tokens|embed_in|wte)", name):
            return cls(0, "token_embedding")
        match = re.fullmatch(r"(?:.+\.)?(?:layers|layer|h|blocks)\.(\d+)(?:\.(\w+))?", name)
        stream = _MODULES.get((match[2] or "", end)) if match else None
        if stream is None:
            raise InvalidInput(
                f"the {end} of module {name!r} is not a site neurollm knows; expected for example the output of "
                "'layers.3' or 'h.3.mlp'"
            )
        return cls(int(match[1]), stream)
