"""Where in a model activations are read or changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from neurollm.errors import InvalidInput

STREAMS = ("resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding")


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
    stream : {"resid_post", "resid_pre", "mlp_out", "attn_out", "token_embedding"}
        The block's output, its input, the output of its MLP or attention module, or
        the token embedding alone (no position, no context; layer must be 0).

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
        return f"blocks.{self.layer}.hook_{self.stream}"

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
        match = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_post|resid_pre|mlp_out|attn_out)", hook_name)
        if match is None:
            raise InvalidInput(
                f"hook name {hook_name!r} is not a site neurollm knows; expected for example 'blocks.3.hook_resid_post'"
            )
        return cls(int(match[1]), match[2])
