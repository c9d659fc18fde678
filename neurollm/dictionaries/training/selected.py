"""Architectures that keep a fixed number of the largest activations: TopK, BatchTopK, Matryoshka.

TopK keeps k on every token. BatchTopK keeps the k n largest of a batch of n tokens
(Bussmann et al. 2024, https://arxiv.org/abs/2412.06410); after training a feature is
active above a threshold, the running mean of the smallest activation that was kept.
Matryoshka (Bussmann et al. 2025, https://arxiv.org/abs/2503.17547) adds nested
dictionaries: the loss is the mean of the reconstruction losses of the first m₁ < m₂ < …
features,

    L = Σⱼ ‖r⁽ʲ⁾‖² / (J n d),   r⁽ʲ⁾ = Σ_{i ≤ mⱼ} aᵢ dᵢ + b − x̃,

so a feature between mⱼ₋₁ and mⱼ learns from Σ_{l ≥ j} r⁽ˡ⁾.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.architectures import JumpReLUSAE, TopKSAE
from neurollm.dictionaries.kernels import SparseCode
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training.learner import Learner
from neurollm.dictionaries.training.options import BatchTopKTraining, MatryoshkaTraining, TopKTraining
from neurollm.errors import DataMismatch, InvalidInput

GUESS = 0.8  # of the last batch's threshold: where the search for the next one begins


class TopKLearner(Learner):
    """Learns a TopK SAE."""

    dictionary, options = TopKSAE, TopKTraining
    resampled_norm = 1.0

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        z = x - self.parameters["b_dec"]
        code, acts = self.find(z)
        residual = code.decode(acts, self.parameters["W_dec"]).add_(self.parameters["b_dec"]).sub_(x)
        self.count(x, residual, code, acts)
        upstream = self.upstream(residual)
        d_pre = code.dots(upstream, self.parameters["W_dec"]) * (acts > 0)
        gradients = self.assemble(code, z, acts, d_pre, upstream)
        self.add_auxk(gradients, z, -residual)
        return gradients

    def find(self, z: torch.Tensor) -> tuple[SparseCode, torch.Tensor]:
        """The code of a batch and its values."""
        code = self.encoder().largest(z, self.k)
        return code, self.exact(code, z).relu_()

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        code, acts = self.find(x - self.parameters["b_dec"])
        return code.decode(acts, self.parameters["W_dec"]) + self.parameters["b_dec"] - x

    def dictionary_options(self) -> dict[str, Any]:
        """``{"k": k}``."""
        return {"k": self.k}


class BatchTopKLearner(TopKLearner):
    """Learns a BatchTopK SAE."""

    dictionary, options = JumpReLUSAE, BatchTopKTraining

    def _carried(self) -> dict[str, torch.Tensor]:
        # The running threshold (-1: none yet), and the last batch's.
        return {"threshold": torch.tensor(-1.0), "last_threshold": torch.tensor(-1.0)}

    def calibrate(self, x: torch.Tensor) -> None:
        """Guess the threshold from some rows of the first batch."""
        pre = self.encoder()(x[:256] - self.parameters["b_dec"])
        values = pre.relu().reshape(-1).sort(descending=True).values
        self.carried["last_threshold"].copy_(values[min(self.k * len(pre), len(values) - 1)])
        super().calibrate(x)

    def _rescale(self, factor: torch.Tensor) -> None:
        super()._rescale(factor)
        self.carried["last_threshold"] *= factor.cpu()

    def find(self, z: torch.Tensor) -> tuple[SparseCode, torch.Tensor]:
        """The k n largest activations of the batch of all processes: exactly, not by a sample."""
        guess = max(0.0, GUESS * float(self.carried["last_threshold"]))
        while True:
            code = self.encoder().above(z, guess)
            values = self.exact(code, z).relu_()
            everyone = self.group.gather(values)
            rows = self.group.gather(torch.full((1,), float(len(z)), device=z.device)).sum()
            wanted = self.k * int(rows)
            if guess == 0.0 or int((everyone > 0).sum()) >= wanted:
                break
            guess = 0.5 * guess if guess > 1e-3 else 0.0
        positive = everyone[everyone > 0].cpu().numpy()
        if len(positive) > wanted:
            limit = float(np.partition(positive, len(positive) - wanted)[len(positive) - wanted])
            keep = values >= limit
        else:
            keep = values > 0
            limit = float(positive.min()) if len(positive) else 0.0
        self._note(limit)
        return code.subset(keep), values[keep]

    def _note(self, limit: float) -> None:
        # At first the mean of the last fifth of the steps: early thresholds are those of other weights.
        rate = max(self.training.threshold_rate, 5 / (5 + int(self.carried["steps"])))
        running = self.carried["threshold"]
        self.carried["last_threshold"].fill_(limit)
        running.copy_(torch.where(running < 0, limit, (1 - rate) * running + rate * limit))

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        kept = {name: self.carried[name].clone() for name in ("threshold", "last_threshold")}
        residual = super()._residual(x)
        self.carried.update(kept)  # a look at the error is not a step
        return residual

    def dictionary_options(self) -> dict[str, Any]:
        """Nothing: the threshold is a weight."""
        return {}

    def weights(self) -> dict[str, torch.Tensor]:
        """See `Learner.weights`; one threshold for all features."""
        threshold = self.carried["threshold"].clamp_min(0.0)
        return {**super().weights(), "threshold": threshold.expand(self.n_features).clone()}

    def load(self, sae: SAE) -> None:
        """See `Learner.load`."""
        super().load(sae)
        if "threshold" in sae.weights:
            thresholds = sae.weights["threshold"]
            if not torch.allclose(thresholds, thresholds.mean(), rtol=1e-3):
                raise DataMismatch(
                    f"init_from: {sae} has a threshold for each feature; this training has one for all, by which its "
                    "features compete (dictionaries trained with decoder_norm 'free' end with different ones)"
                )
            self._note(float(thresholds.mean()))


class MatryoshkaLearner(BatchTopKLearner):
    """Learns a Matryoshka-BatchTopK SAE."""

    options = MatryoshkaTraining

    def edges(self) -> list[int]:
        """Where the nested dictionaries end."""
        edges = [round(share * self.n_features) for share in self.training.widths]
        if edges[0] < 1 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise InvalidInput(
                f"training: widths {list(self.training.widths)} of {self.n_features} features give dictionaries of "
                f"{edges} features; they must grow"
            )
        return edges

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        decoder, b_dec = self.parameters["W_dec"], self.parameters["b_dec"]
        z = x - b_dec
        code, acts = self.find(z)
        edges = self.edges()
        level = torch.bucketize(code.columns, torch.tensor(edges, device=z.device), right=True)
        parts = [(level == j, code.subset(level == j)) for j in range(len(edges))]
        residuals, sofar = [], b_dec - x
        for mask, part in parts:
            sofar = sofar + part.decode(acts[mask], decoder)
            residuals.append(sofar)
        self.count(x, residuals[-1], code, acts)
        d_pre, d_decoder = torch.empty_like(acts), torch.zeros_like(decoder)
        upstream = torch.zeros_like(x)
        for (mask, part), residual in zip(reversed(parts), reversed(residuals), strict=True):
            upstream += self.upstream(residual) / len(edges)
            d_pre[mask] = part.dots(upstream, decoder)
            d_decoder += part.gram(acts[mask], upstream)
        d_pre *= acts > 0
        gradients = self.assemble(code, z, acts, d_pre, upstream)
        gradients["W_dec"] = d_decoder
        self.add_auxk(gradients, z, -residuals[-1])
        return gradients
