"""TopK sparse autoencoder.

    pre = (x − b_dec) · W_enc + b_enc
    f   = TopK(ReLU(pre)),   x̂ = f · W_dec + b_dec

References
----------
Makhzani, Frey (2013), k-Sparse Autoencoders. Gao et al. (2024), Scaling and evaluating
sparse autoencoders, https://arxiv.org/abs/2406.04093.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.kernels import sparse_decode, topk_of_relu
from neurollm.errors import InvalidInput
from neurollm.models import Site


class TopKSAE(Dictionary):
    """A sparse autoencoder that keeps the k largest positive pre-activations of a token.

    While it is trained, the network sees x̃ = (x − mean) · scale. `fold` turns this into
    an equal SAE on raw activations, because x̃ − b = scale · (x − (mean + b / scale)).
    Features are always given in raw units (divided by `scale`), so folding changes
    neither features nor reconstructions.

    Parameters
    ----------
    site : Site
    k : int
        At most this many features are active on a token; zeros never count.
    weights : dict of Tensor
        ``W_enc`` (d_in, F), ``W_dec`` (F, d_in), ``b_enc`` (F,), ``b_dec`` (d_in,).
    mean : Tensor, shape (d_in,), optional
    scale : float, default=1.0
    model_name, model_fingerprint : str
    dtype : str, default="float32"

    Raises
    ------
    InvalidInput
        If the shapes do not fit, or k is not between 1 and F.
    """

    architecture = "topk"

    def __init__(
        self,
        site: Site,
        k: int,
        weights: dict[str, torch.Tensor],
        *,
        mean: torch.Tensor | None = None,
        scale: float = 1.0,
        model_name: str = "",
        model_fingerprint: str = "",
        dtype: str = "float32",
    ) -> None:
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            torch.as_tensor(weights[name]).detach().to(torch.float32).contiguous()
            for name in ("W_enc", "W_dec", "b_enc", "b_dec")
        )
        d_in, n_features = self.W_enc.shape if self.W_enc.ndim == 2 else (0, 0)
        expected = {"W_enc": (d_in, n_features), "W_dec": (n_features, d_in), "b_enc": (n_features,), "b_dec": (d_in,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape or not n_features:
                raise InvalidInput(f"weights: {name} has shape {found}, expected {shape} to fit W_enc")
        if not 1 <= k <= n_features:
            raise InvalidInput(f"k: expected 1 to {n_features:,} (the number of features), got {k}")
        super().__init__(
            site, d_in, n_features, model_name=model_name, model_fingerprint=model_fingerprint, dtype=dtype
        )
        self.k = int(k)
        self.mean = torch.zeros(d_in) if mean is None else torch.as_tensor(mean, dtype=torch.float32)
        self.mean = self.mean.to(self.W_enc.device)
        self.scale = float(scale)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The four tensors by their SAELens names."""
        return {name: getattr(self, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}

    @property
    def directions(self) -> torch.Tensor:
        """Decoder directions, shape (n_features, d_in)."""
        return self.W_dec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    def to(self, device: str | torch.device) -> TopKSAE:
        """The same dictionary with its weights on another device."""
        moved = {name: weight.to(device) for name, weight in self.weights.items()}
        return self._with(moved, mean=self.mean.to(device), scale=self.scale)

    def fold(self) -> TopKSAE:
        """The same map without `mean` and `scale`: they are taken into the weights."""
        folded = {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": (self.b_enc.double() / self.scale).float(),
            "b_dec": (self.mean.double() + self.b_dec.double() / self.scale).float(),
        }
        return self._with(folded)

    def active(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The active features of each row of `x`: values (n, k), zero where fewer are active, and indices (n, k)."""
        z = (x - self.mean) * self.scale - self.b_dec
        values, indices = topk_of_relu(torch.addmm(self.b_enc, z, self.W_enc), self.k)
        return values / self.scale, indices

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        values, indices = self.active(x)
        return torch.zeros(len(x), self.n_features, device=x.device).scatter_(1, indices, values)

    def _encode_csr(self, x: torch.Tensor) -> sp.csr_matrix:
        values, indices = (part.cpu().numpy() for part in self.active(x))
        keep = values > 0
        pointers = np.concatenate([[0], np.cumsum(keep.sum(1))])
        csr = sp.csr_matrix((values[keep], indices[keep], pointers), shape=(len(values), self.n_features))
        csr.sort_indices()
        return csr

    def _decode(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.W_dec + self._offset

    def _decode_csr(self, features: sp.csr_matrix) -> torch.Tensor:
        indices = torch.from_numpy(features.indices.astype(np.int64)).to(self.device)
        offsets = torch.from_numpy(features.indptr[:-1].astype(np.int64)).to(self.device)
        values = torch.from_numpy(features.data).to(self.device)
        bags = torch.nn.functional.embedding_bag(indices, self.W_dec, offsets, per_sample_weights=values, mode="sum")
        return bags + self._offset

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """decode(encode(x)) without the dense features in between."""
        rows = self._as_rows(x, self.d_in, "activations")
        parts = [sparse_decode(*self.active(rows[piece]), self.W_dec) for piece in self._pieces(len(rows))]
        return (torch.cat(parts) + self._offset).to(x.device)

    @property
    def _offset(self) -> torch.Tensor:
        return self.mean + self.b_dec / self.scale

    def _with(self, weights: dict[str, torch.Tensor], **normalisation: Any) -> TopKSAE:
        other = TopKSAE(
            self.site,
            self.k,
            weights,
            model_name=self.model_name,
            model_fingerprint=self.model_fingerprint,
            dtype=self.dtype,
            **normalisation,
        )
        other.provenance, other.metrics = self.provenance, self.metrics
        return other

    def _identity(self) -> list[bytes]:
        folded = self.fold()
        return [f"k={self.k}\n".encode()] + [w.cpu().numpy().tobytes() for _, w in sorted(folded.weights.items())]

    def describe(self) -> dict[str, Any]:
        """What is written into results: identity, k, origin and quality."""
        return {**super().describe(), "k": self.k}

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``cfg.json``, ``sae_weights.safetensors`` (SAELens inference layout) and ``neurollm.json``."""
        from neurollm.dictionaries.saelens import write_saelens

        write_saelens(self.fold(), folder)
