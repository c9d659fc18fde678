"""The activations by which architectures differ, at inference.

BatchTopK and Matryoshka SAEs are JumpReLU SAEs once trained: their threshold is that of
training, averaged over batches. So are the SAEs of Gemma Scope.

References
----------
standard: Bricken et al. (2023), Towards monosemanticity.
topk: Makhzani, Frey (2013); Gao et al. (2024), https://arxiv.org/abs/2406.04093.
jumprelu: Rajamanoharan et al. (2024), https://arxiv.org/abs/2407.14435.
gated: Rajamanoharan et al. (2024), https://arxiv.org/abs/2404.16014.
matching pursuit: Mallat, Zhang (1993); Costa et al. (2025), https://arxiv.org/abs/2506.03093.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from neurollm.dictionaries.kernels import sparse_decode, topk_of_relu
from neurollm.dictionaries.sae import SAE
from neurollm.errors import InvalidInput
from neurollm.models import Site


class ReLUSAE(SAE):
    """f = ReLU(pre). Parameters: see `SAE`."""

    architecture = "standard"

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        return self._pre(z).relu_()


class TopKSAE(SAE):
    """f = the k largest positive pre-activations of a token; of equal ones the lower feature wins.

    Parameters
    ----------
    site : Site
    weights : dict of Tensor
        ``W_enc``, ``W_dec``, ``b_enc``, ``b_dec``.
    k : int
        At most this many features are active on a token; zeros never count.
    **options
        See `SAE`.

    Raises
    ------
    InvalidInput
        If k is not between 1 and the number of features.
    """

    architecture, competitive = "topk", True

    def __init__(self, site: Site, weights: dict[str, torch.Tensor], k: int, **options: Any) -> None:
        super().__init__(site, weights, **options)
        if not 1 <= k <= self.n_features:
            raise InvalidInput(f"k: expected 1 to {self.n_features:,} (the number of features), got {k}")
        self.k = int(k)

    @property
    def options(self) -> dict[str, Any]:
        """``{"k": k}``."""
        return {"k": self.k}

    def active(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The active features of each row of `x`: values (n, k), zero where fewer are active, and indices (n, k)."""
        return topk_of_relu(self._pre(self._input(x)), self.k)

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        values, indices = topk_of_relu(self._pre(z), self.k)
        return torch.zeros(len(z), self.n_features, device=z.device).scatter_(1, indices, values)

    def _encode_csr(self, x: torch.Tensor) -> sp.csr_matrix:
        values, indices = (part.cpu().numpy() for part in self.active(x))
        keep = values != 0
        pointers = np.concatenate([[0], np.cumsum(keep.sum(1))])
        csr = sp.csr_matrix((values[keep], indices[keep], pointers), shape=(len(values), self.n_features))
        csr.sort_indices()
        return csr

    def _reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self._finish(sparse_decode(*self.active(x), self.weights["W_dec"]), x)


class AbsTopKSAE(TopKSAE):
    """f = the k pre-activations of a token that are largest without their sign, with it; features are signed.

    Parameters: see `TopKSAE`.
    """

    architecture = "abstopk"

    def active(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The active features of each row of `x`: signed values (n, k), and indices (n, k)."""
        return self._largest(self._pre(self._input(x)))

    def _largest(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, indices = topk_of_relu(pre.abs(), self.k)
        return pre.gather(1, indices), indices

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        values, indices = self._largest(self._pre(z))
        return torch.zeros(len(z), self.n_features, device=z.device).scatter_(1, indices, values)


class JumpReLUSAE(SAE):
    """f = pre where pre > threshold and pre > 0, else 0. Parameters: see `SAE`; weights include ``threshold`` (F,)."""

    architecture = "jumprelu"
    tensors = (*SAE.tensors, "threshold")

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        pre = self._pre(z)
        return pre.relu() * (pre > self.weights["threshold"])


class GatedSAE(SAE):
    """f = ReLU(v · exp(r_mag) + b_mag) where v + b_gate > 0, else 0, with v = (u − b_dec) · W_enc.

    Parameters: see `SAE`; weights are ``W_enc, W_dec, b_gate, b_mag, r_mag, b_dec``.
    """

    architecture = "gated"
    tensors = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        v = z @ self.weights["W_enc"]
        magnitude = (v * self.weights["r_mag"].exp() + self.weights["b_mag"]).relu_()
        return magnitude * (v + self.weights["b_gate"] > 0)


class MatchingPursuitSAE(SAE):
    """Features picked one after the other, each from what the ones before have left.

    Starting from r = u − b_dec, every step adds ReLU(r · d_i) to the feature whose decoder
    row d_i has the largest product with r, and subtracts as much of d_i from r.

    Parameters
    ----------
    site : Site
    weights : dict of Tensor
        ``W_dec``, ``b_dec``.
    residual_threshold : float, default=0.01
        A token is done when ‖r‖ is below it; 0 switches this off.
    max_iterations : int, optional
        Most steps. Default: d.
    stop_on_duplicate_support : bool, default=True
        Whether a token is done when a step adds no new feature.
    **options
        See `SAE`; b_dec is always subtracted, and the normalisation may scale by one
        positive factor only, since the rows that decode also encode.

    Raises
    ------
    InvalidInput
        If an option is out of range or does not fit this architecture.
    """

    architecture = "matching_pursuit"
    tensors = ("W_dec", "b_dec")

    def __init__(
        self,
        site: Site,
        weights: dict[str, torch.Tensor],
        residual_threshold: float = 1e-2,
        max_iterations: int | None = None,
        stop_on_duplicate_support: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(site, weights, **options)
        matrix = self.normalisation.matrix
        if self.is_transcoder or not self.subtract_decoder_bias or matrix.ndim or float(matrix) <= 0:
            raise InvalidInput(
                "matching_pursuit: the same rows encode and decode, so it cannot be a transcoder, leave out b_dec, or "
                "normalise by anything else than one positive factor"
            )
        if not residual_threshold >= 0 or (max_iterations is not None and max_iterations < 1):
            raise InvalidInput(
                f"matching_pursuit: residual_threshold must be at least 0 and max_iterations at least 1, got "
                f"{residual_threshold!r} and {max_iterations!r}"
            )
        self.residual_threshold, self.max_iterations = float(residual_threshold), max_iterations
        self.stop_on_duplicate_support = bool(stop_on_duplicate_support)

    @property
    def options(self) -> dict[str, Any]:
        """``residual_threshold``, ``max_iterations`` and ``stop_on_duplicate_support``."""
        return {
            "residual_threshold": self.residual_threshold,
            "max_iterations": self.max_iterations,
            "stop_on_duplicate_support": self.stop_on_duplicate_support,
        }

    def fold(self) -> SAE:
        """The same map with the linear part of the normalisation taken into the weights; see `SAE.fold`."""
        folded = super().fold()
        if folded is not self:
            folded.residual_threshold = self.residual_threshold * self.normalisation.unit  # ‖r‖ in raw units
        return folded

    def _features(self, z: torch.Tensor) -> torch.Tensor:
        rows, residual = self.weights["W_dec"], z.clone()
        features = z.new_zeros(len(z), self.n_features)
        going = torch.arange(len(z), device=z.device)
        for _ in range(self.max_iterations or self.d_in):
            left = residual[going]
            best = (left @ rows.T).argmax(1)
            value = (left * rows[best]).sum(1).relu()
            grew = (features[going, best] == 0) & (value > 0)
            features[going, best] += value
            left -= value[:, None] * rows[best]
            residual[going] = left
            keep = torch.ones_like(grew)
            if self.stop_on_duplicate_support:
                keep &= grew
            if self.residual_threshold > 0:
                keep &= left.norm(dim=1) >= self.residual_threshold
            going = going[keep]
            if not len(going):
                break
        return features


ARCHITECTURES: dict[str, type[SAE]] = {
    kind.architecture: kind for kind in (ReLUSAE, TopKSAE, AbsTopKSAE, JumpReLUSAE, GatedSAE, MatchingPursuitSAE)
}
