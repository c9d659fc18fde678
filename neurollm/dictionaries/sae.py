"""Sparse autoencoders: the equations and the bookkeeping that all architectures share.

    u = N(x)                              normalisation, see `neurollm.dictionaries.normalisation`
    pre = (u − b_dec) · W_enc + b_enc     (or u · W_enc + b_enc)
    f = activation(pre)                   what the architectures differ in
    x̂ = N⁻¹(f · W_dec + b_dec)

A transcoder is the same with activations of another site on the left of x̂, and
possibly a skip connection x · W_skipᵀ.
"""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.normalisation import Normalisation, times
from neurollm.errors import InvalidInput
from neurollm.models import Site

ALL_WEIGHTS = {
    "W_enc": ("d_in", "F"),
    "W_dec": ("F", "d_out"),
    "b_enc": ("F",),
    "b_dec": ("d_out",),
    "threshold": ("F",),
    "b_gate": ("F",),
    "b_mag": ("F",),
    "r_mag": ("F",),
    "W_skip": ("d_out", "d_in"),
}


class SAE(Dictionary):
    """Base of all sparse autoencoders.

    Parameters
    ----------
    site : Site
    weights : dict of Tensor
        By their SAELens names; which ones, is said by `tensors` of the architecture.
        A transcoder may add ``W_skip`` (d_out, d_in).
    normalisation : Normalisation, optional
    subtract_decoder_bias : bool, default=True
        Whether b_dec is subtracted from the input of the encoder. Never in transcoders.
    target_site : Site, optional
        The site that is reconstructed, when it is not `site`: a transcoder.
    model_name, model_fingerprint : str
    dtype : str, default="float32"
        Of the weights on disk. They are held and computed with in float32, whatever it is, and what is loaded
        from a float64 file has dtype ``"float32"``.

    Raises
    ------
    InvalidInput
        If a tensor is missing, too many, not finite, or its shape does not fit.
    """

    tensors: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec", "b_enc", "b_dec")
    competitive: ClassVar[bool] = False  # whether a feature's activity depends on how large the others are

    def __init__(
        self,
        site: Site,
        weights: dict[str, torch.Tensor],
        *,
        normalisation: Normalisation | None = None,
        subtract_decoder_bias: bool = True,
        target_site: Site | None = None,
        model_name: str = "",
        model_fingerprint: str = "",
        dtype: str = "float32",
    ) -> None:
        self.weights = self._checked(weights)
        n_features, d_out = self.weights["W_dec"].shape
        d_in = self.weights["W_enc"].shape[0] if "W_enc" in self.weights else d_out
        super().__init__(
            site, d_in, n_features, model_name=model_name, model_fingerprint=model_fingerprint, dtype=dtype
        )
        self.d_out, self.target_site = d_out, target_site or site
        self.is_transcoder = target_site is not None
        self.subtract_decoder_bias = subtract_decoder_bias
        self.normalisation = (normalisation or Normalisation()).to(self.device)
        if self.is_transcoder and (subtract_decoder_bias or not self.normalisation.is_identity):
            raise InvalidInput("a transcoder neither subtracts its decoder bias from its input nor normalises it")
        if not self.is_transcoder and (d_out != d_in or "W_skip" in self.weights):
            raise InvalidInput(
                f"weights: they map {d_in} to {d_out} dimensions, or skip: that is a transcoder; give its target_site"
            )

    def _checked(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wanted = [*self.tensors, *(["W_skip"] if "W_skip" in weights else [])]
        missing, unknown = [sorted(a - b) for a, b in ((set(wanted), set(weights)), (set(weights), set(wanted)))]
        if missing or unknown:
            problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} does not belong there"
            raise InvalidInput(f"weights: {problem}; architecture {self.architecture!r} has {', '.join(wanted)}")
        checked = {name: torch.as_tensor(weights[name]).detach().to(torch.float32).contiguous() for name in wanted}
        if checked["W_dec"].ndim != 2 or 0 in checked["W_dec"].shape:
            raise InvalidInput(f"weights: W_dec has shape {tuple(checked['W_dec'].shape)}, expected (n_features, d)")
        sizes = dict(zip(("F", "d_out"), checked["W_dec"].shape, strict=True))
        encoder = checked.get("W_enc", checked["W_dec"].T)
        sizes["d_in"] = encoder.shape[0] if encoder.ndim == 2 else 0
        for name, tensor in checked.items():
            shape = tuple(sizes[letter] for letter in ALL_WEIGHTS[name])
            if tuple(tensor.shape) != shape:
                raise InvalidInput(
                    f"weights: {name} has shape {tuple(tensor.shape)}, expected {shape} to fit "
                    f"W_dec {tuple(checked['W_dec'].shape)}"
                )
            if not torch.isfinite(tensor).all():
                raise InvalidInput(f"weights: {name} contains NaN or infinite values")
        return checked

    @property
    def directions(self) -> torch.Tensor:
        """Decoder directions, shape (n_features, d_out), in raw activation units of a folded dictionary."""
        return self.weights["W_dec"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights["W_dec"].device

    @property
    def options(self) -> dict[str, Any]:
        """What the architecture's constructor takes beside the weights, as plain data (``k`` …)."""
        return {}

    @property
    def centre(self) -> torch.Tensor | None:
        """The point the encoder takes as the origin, in raw units; None where every token has its own."""
        if self.normalisation.needs_input:
            return None
        bias = self.weights["b_dec"] if self.subtract_decoder_bias else torch.zeros_like(self.weights["b_dec"])
        return None if self.is_transcoder else self.normalisation.undo(bias[None])[0]

    def to(self, device: str | torch.device) -> SAE:
        """The same dictionary with its weights on another device."""
        return self._like(
            {name: weight.to(device) for name, weight in self.weights.items()},
            normalisation=self.normalisation.to(device),
        )

    def fold(self) -> SAE:
        """The same map with the linear part of the normalisation taken into the weights.

        Reconstructions do not change. Features are multiplied by `Normalisation.unit`,
        so that decoder rows keep their length on the average.
        """
        norm = self.normalisation
        bare = Normalisation(per_token=norm.per_token)
        if norm.shift is None and norm.matrix.ndim == 0 and float(norm.matrix) == 1.0:
            return self
        unit, inverse, matrix = norm.unit, norm.inverse, norm.matrix.double()
        old = {name: weight.double() for name, weight in self.weights.items()}
        new = {name: old[name] * unit for name in ("b_enc", "threshold", "b_gate", "b_mag") if name in old}
        shift = torch.zeros_like(old["b_dec"]) if norm.shift is None else norm.shift.double()
        origin = times(old["b_dec"][None], inverse)[0]
        new["b_dec"] = shift + origin
        new["W_dec"] = times(old["W_dec"], inverse) / unit
        if "W_enc" in old:
            left = matrix @ old["W_enc"] if matrix.ndim == 2 else matrix.reshape(-1, 1) * old["W_enc"]
            new["W_enc"] = left * unit
        if "r_mag" in old:
            new["r_mag"] = old["r_mag"]
        if not self.subtract_decoder_bias:  # u · W = (x − shift) · A W: the shift goes to the encoder's biases
            offset = shift @ new["W_enc"]
            for name in new.keys() & {"b_enc", "b_gate", "b_mag"}:
                new[name] = new[name] - (offset * new["r_mag"].exp() if name == "b_mag" else offset)
        return self._like({name: weight.float() for name, weight in new.items()}, normalisation=bare)

    def with_normalisation(self, normalisation: Normalisation) -> SAE:
        """The same weights behind another normalisation: another map."""
        other = self._like(self.weights, normalisation=normalisation)
        other.provenance.pop("saelens_metadata", None)  # it tells of the old one
        return other

    def unit_decoder(self) -> SAE:
        """The same map with decoder rows of length 1: features are multiplied by the lengths they had.

        Raises
        ------
        InvalidInput
            For architectures in which features compete by their size, when the lengths differ.
        """
        lengths = self.weights["W_dec"].norm(dim=1)
        lengths = torch.where(lengths > 0, lengths, 1.0)
        if self.competitive:
            if not torch.allclose(lengths, lengths[:1], rtol=1e-3):
                raise InvalidInput(
                    f"{self} has decoder rows of different lengths; its features compete by their size, so making the "
                    "lengths equal would change which of them are active"
                )
            lengths = lengths.mean().expand_as(lengths)
        new = dict(self.weights)
        for name in new.keys() & {"W_enc", "b_enc", "threshold", "b_gate", "b_mag"}:
            new[name] = new[name] * lengths
        new["W_dec"] = new["W_dec"] / lengths[:, None]
        return self._like(new, normalisation=self.normalisation)

    def with_input_bias(self) -> SAE:
        """The same map with b_dec subtracted from the input of the encoder."""
        if self.subtract_decoder_bias or self.is_transcoder:
            return self
        new, offset = dict(self.weights), self.weights["b_dec"] @ self.weights["W_enc"]
        for name in new.keys() & {"b_enc", "b_gate", "b_mag"}:
            new[name] = new[name] + (offset * new["r_mag"].exp() if name == "b_mag" else offset)
        other = self._like(new, normalisation=self.normalisation)
        other.subtract_decoder_bias = True
        return other

    def _like(self, weights: dict[str, torch.Tensor], normalisation: Normalisation | None = None) -> SAE:
        other = type(self)(
            self.site,
            weights,
            **self.options,
            normalisation=normalisation,
            subtract_decoder_bias=self.subtract_decoder_bias,
            target_site=self.target_site if self.is_transcoder else None,
            model_name=self.model_name,
            model_fingerprint=self.model_fingerprint,
            dtype=self.dtype,
        )
        other.provenance, other.metrics = copy.deepcopy(self.provenance), copy.deepcopy(self.metrics)
        return other

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return self._features(self._input(x))

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        """What is multiplied with W_enc."""
        u = x if self.normalisation.is_identity else self.normalisation.apply(x)
        return u - self.weights["b_dec"] if self.subtract_decoder_bias else u

    def _pre(self, z: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.weights["b_enc"], z, self.weights["W_enc"])

    @abstractmethod
    def _features(self, z: torch.Tensor) -> torch.Tensor:
        """Features (n, F) of the encoder's input (n, d_in)."""

    def _decode(self, features: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        return self._finish(features @ self.weights["W_dec"], x)

    def _decode_csr(self, features: sp.csr_matrix, x: torch.Tensor | None) -> torch.Tensor:
        indices = torch.from_numpy(features.indices.astype(np.int64)).to(self.device)
        offsets = torch.from_numpy(features.indptr[:-1].astype(np.int64)).to(self.device)
        values = torch.from_numpy(features.data).to(self.device)
        sums = torch.nn.functional.embedding_bag(
            indices, self.weights["W_dec"], offsets, per_sample_weights=values, mode="sum"
        )
        return self._finish(sums, x)

    def _finish(self, sums: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        """Raw activations of the weighted sums of decoder rows, which are overwritten."""
        u = sums.float().add_(self.weights["b_dec"])
        if "W_skip" in self.weights:
            if x is None:
                raise InvalidInput(
                    "this transcoder has a skip connection: decode needs the activations the features come from as "
                    "its second argument"
                )
            u = u + x @ self.weights["W_skip"].T
        return u if self.normalisation.is_identity else self.normalisation.undo(u, x)

    def _identity(self) -> list[bytes]:
        folded = self.fold()
        parts = [f"{name}={value}\n" for name, value in sorted(folded.options.items())]
        if not folded.normalisation.is_identity or not self.subtract_decoder_bias or self.is_transcoder:
            parts.append(f"{folded.normalisation.per_token} {self.subtract_decoder_bias} {self.target_site}\n")
        weights = [weight.cpu().numpy().tobytes() for _, weight in sorted(folded.weights.items())]
        return ["".join(parts).encode(), *weights]

    def describe(self) -> dict[str, Any]:
        """What is written into results: identity, options, origin and quality."""
        return {**super().describe(), **self.options}

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``cfg.json``, ``sae_weights.safetensors`` (SAELens inference layout) and ``neurollm.json``."""
        from neurollm.dictionaries.formats.saelens import write_saelens

        write_saelens(self.fold(), folder)
