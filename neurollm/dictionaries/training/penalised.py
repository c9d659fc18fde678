"""Architectures that are made sparse by a penalty: ReLU, Gated, JumpReLU.

ReLU with L1 (Bricken et al. 2023; Anthropic, April 2024 update):

    L = (‖r‖² + λ Σᵢ aᵢ ‖dᵢ‖) / (n d)

or with Kullback-Leibler sparsity (Ng 2011), ρᵢ = mean of aᵢ / (1 + aᵢ), target τ = k / F:

    L = ‖r‖² / (n d) + λ Σᵢ [τ log(τ / ρᵢ) + (1 − τ) log((1 − τ) / (1 − ρᵢ))] / d

Gated (Rajamanoharan et al. 2024a), v = z · W_eᵀ, gate π = v + b_gate, magnitude
m = v e^r + b_mag, a = ReLU(m) where π > 0; the third term, in which decoder and b count
as constants, teaches the gate:

    L = (‖r‖² + λ Σᵢ ReLU(πᵢ) ‖dᵢ‖ + ‖ReLU(π) · W_d + b − x̃‖²) / (n d)

JumpReLU (Rajamanoharan et al. 2024b), a = pre where pre > θ; L0 the active features on a
token, K(u) = 1 for |u| < ½, ε the bandwidth:

    L = ‖r‖² / (n d) + λ (L0 / k − 1)²
    ∂a / ∂θ = −(θ / ε) K((pre − θ) / ε),   ∂L0 / ∂θ = −(1 / ε) K((pre − θ) / ε)     pseudo-derivatives

Thresholds are float32, and learnt as log θ. Where λ of an L1 penalty is not given it is
steered: after every step log λ moves by a small multiple of log(L0 / k). Going on from a
dictionary, it begins where the gradient of its active features vanishes, λ = −2 r · dᵢ / ‖dᵢ‖.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from neurollm.dictionaries.architectures import GatedSAE, JumpReLUSAE, ReLUSAE
from neurollm.dictionaries.kernels import CROSSOVER, Code, DenseCode
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training.learner import Learner
from neurollm.dictionaries.training.options import GatedTraining, JumpReLUTraining, PenaltyTraining, ReLUTraining

STEER = 0.03  # change of log λ after a step for each unit of log(L0 / k) that is to be expected
SMOOTH, DAMPING = 0.03, 8.0  # what is to be expected: log(L0 / k) goes on changing as it did
START = 0.1  # λ before it is steered
MOST = 1e4  # λ at most; far beyond it nothing is active
FLOOR = 1e-6  # of a mean activation in the KL penalty


class PenaltyLearner(Learner):
    """What these architectures share: the code above a limit, and the weight of the penalty."""

    training: PenaltyTraining

    @property
    def steered(self) -> bool:
        """Whether λ follows L0."""
        return False

    def _carried(self) -> dict[str, torch.Tensor]:
        given = 1.0 if self.training.sparsity is None else self.training.sparsity
        return {
            "sparsity": torch.tensor(START if self.steered else float(given), device=self.device),
            "density": torch.ones((), dtype=torch.float64),  # share of places in the last code
        }

    def find(self, z: torch.Tensor, limit: torch.Tensor | float) -> tuple[Code, torch.Tensor]:
        """A code with at least all places above `limit`, and the pre-activations there: sparse where that is faster."""
        if float(self.carried["density"]) > CROSSOVER:
            code: Code = DenseCode(len(z), self.n_features)
            pre = self.encoder()(z)
            places = (pre > limit).sum().double()
        else:
            code = self.encoder().above(z, limit)
            pre = self.exact(code, z)
            places = torch.tensor(float(len(code.columns)), dtype=torch.float64)
        counts = torch.stack([places.cpu(), torch.tensor(float(len(z)), dtype=torch.float64)]).to(self.device)
        self.group.sum([counts])  # so that all processes go on in the same way
        self.carried["density"].copy_(counts[0] / (counts[1] * self.n_features))
        return code, pre

    def sparsity(self, progress: float) -> torch.Tensor:
        """Weight of the penalty now."""
        warmup = 0.0 if self.steered else self.training.sparsity_warmup  # a steered one begins small by itself
        return self.carried["sparsity"] * (min(1.0, progress / warmup) if warmup else 1.0)

    def norms(self) -> torch.Tensor:
        """Lengths of the decoder directions, (F,)."""
        return self.parameters["W_dec"].norm(dim=1).clamp_min_(1e-12)

    def penalise(
        self, gradients: dict[str, torch.Tensor], code: Code, acts: torch.Tensor, weight: torch.Tensor
    ) -> None:
        """Add the gradient of weight · Σ a ‖d‖ with respect to the decoder."""
        share = weight * code.column_sums(acts) / self.norms()
        gradients["W_dec"] += share[:, None] * self.parameters["W_dec"]

    def per_row(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of a sum over features, divided by n d."""
        return weight / (self.training.batch_size * self.d_in)


class SteeredLearner(PenaltyLearner):
    """An L1 penalty whose weight follows L0 where none is given."""

    @property
    def steered(self) -> bool:
        """Whether λ follows L0."""
        return self.training.sparsity is None

    def _carried(self) -> dict[str, torch.Tensor]:
        level = torch.tensor(float("nan"), device=self.device)  # log(L0 / k), smoothed; NaN: not seen yet
        return {**super()._carried(), "level": level}

    def _after_step(self, x: torch.Tensor, progress: float) -> None:
        if self.steered:
            now = torch.log((self.sums[2] / self.sums[3]).clamp_min(0.01 * self.k) / self.k).float()
            before = self.carried["level"]
            before.copy_(torch.where(before.isnan(), now, before))
            before += SMOOTH * (now - before)  # where it was about 1 / SMOOTH steps ago
            ahead = now + DAMPING * (now - before)
            weight = self.carried["sparsity"]
            weight.mul_(torch.exp(STEER * ahead.clamp(-1, 1))).clamp_(max=MOST)
        super()._after_step(x, progress)

    def adopt(self, x: torch.Tensor) -> None:
        """Begin with the λ at which the weights that were loaded are at rest."""
        if self.steered:
            code, residual, active = self._penalised(x)
            slope = code.dots(residual, self.parameters["W_dec"]) / code.at(self.norms())
            estimate = -2 * (slope * active).sum() / active.sum().clamp_min(1)
            self.carried["sparsity"].copy_(estimate.clamp(1e-3, MOST))

    @abstractmethod
    def _penalised(self, x: torch.Tensor) -> tuple[Code, torch.Tensor, torch.Tensor]:
        """Code, residual of what the penalty shortens, and where it is active."""


class ReLULearner(SteeredLearner):
    """Learns a ReLU SAE with an L1 or KL penalty."""

    dictionary, options = ReLUSAE, ReLUTraining

    @property
    def steered(self) -> bool:
        """Whether λ follows L0. Under the KL penalty it is the mean activation, not L0, that has a target."""
        return super().steered and self.training.penalty == "l1"

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        decoder = self.parameters["W_dec"]
        z = x - self.parameters["b_dec"]
        code, pre = self.find(z, 0.0)
        acts = pre.relu_()
        residual = code.decode(acts, decoder).add_(self.parameters["b_dec"]).sub_(x)
        self.count(x, residual, code, acts)
        upstream = self.upstream(residual)
        d_acts = code.dots(upstream, decoder)
        weight = self.sparsity(progress)
        l1 = self.training.penalty == "l1"
        if l1:
            weight = self.per_row(weight)
            d_acts += code.at(weight * self.norms())
        else:
            d_acts += self._kl_gradient(code, acts, weight / self.d_in)
        gradients = self.assemble(code, z, acts, d_acts * (acts > 0), upstream)
        if l1:
            self.penalise(gradients, code, acts, weight)
        self.add_auxk(gradients, z, -residual)
        return gradients

    def _kl_gradient(self, code: Code, acts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor(float(code.n_rows), device=acts.device)
        mean = code.column_sums(acts / (1 + acts))
        self.group.sum([mean, rows])
        mean = (mean / rows).clamp(FLOOR, 1 - FLOOR)
        target = self.k / self.n_features
        slope = weight * ((1 - target) / (1 - mean) - target / mean)
        return code.at(slope) / (self.training.batch_size * (1 + acts).square())

    def _penalised(self, x: torch.Tensor) -> tuple[Code, torch.Tensor, torch.Tensor]:
        code, pre = self.find(x - self.parameters["b_dec"], 0.0)
        acts = pre.relu_()
        return code, code.decode(acts, self.parameters["W_dec"]) + self.parameters["b_dec"] - x, acts > 0

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        return self._penalised(x)[1]


class GatedLearner(SteeredLearner):
    """Learns a Gated SAE."""

    dictionary, options, bias = GatedSAE, GatedTraining, "b_gate"

    def _initial(self) -> dict[str, torch.Tensor]:
        zeros = {name: torch.zeros(self.n_features) for name in ("r_mag", "b_mag")}
        return {**super()._initial(), **zeros}

    def _fresh(self, alive: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = torch.zeros((), device=self.device)
        return {**super()._fresh(alive), "b_mag": zero, "r_mag": zero}

    def _values(self, code: Code, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """v · e^r, the gated magnitudes a, and ReLU(π)."""
        v = gate - code.at(self.parameters["b_gate"])
        scaled = v * code.at(self.parameters["r_mag"].exp())
        acts = (scaled + code.at(self.parameters["b_mag"])).relu_() * (gate > 0)
        return scaled, acts, gate.relu()

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        decoder, b_dec = self.parameters["W_dec"], self.parameters["b_dec"]
        z = x - b_dec
        code, gate = self.find(z, 0.0)
        scaled, acts, opened = self._values(code, gate)
        residual = code.decode(acts, decoder).add_(b_dec).sub_(x)
        self.count(x, residual, code, acts)
        upstream = self.upstream(residual)
        d_magnitude = code.dots(upstream, decoder) * (acts > 0)
        auxiliary = self.upstream(code.decode(opened, decoder).add_(b_dec).sub_(x))
        weight = self.per_row(self.sparsity(progress))
        d_gate = (code.dots(auxiliary, decoder) + code.at(weight * self.norms())) * (gate > 0)
        d_v = d_magnitude * code.at(self.parameters["r_mag"].exp()) + d_gate
        gradients = self.assemble(code, z, acts, d_v, upstream)
        gradients |= {
            "b_gate": code.column_sums(d_gate),
            "b_mag": code.column_sums(d_magnitude),
            "r_mag": code.column_sums(d_magnitude * scaled),
        }
        self.penalise(gradients, code, opened, weight)
        self.add_auxk(gradients, z, -residual)
        return gradients

    def _penalised(self, x: torch.Tensor) -> tuple[Code, torch.Tensor, torch.Tensor]:
        code, gate = self.find(x - self.parameters["b_dec"], 0.0)
        opened = gate.relu()
        return code, code.decode(opened, self.parameters["W_dec"]) + self.parameters["b_dec"] - x, gate > 0

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        code, gate = self.find(x - self.parameters["b_dec"], 0.0)
        _, acts, _ = self._values(code, gate)
        return code.decode(acts, self.parameters["W_dec"]) + self.parameters["b_dec"] - x


class JumpReLULearner(PenaltyLearner):
    """Learns a JumpReLU SAE with straight-through thresholds and a target for L0."""

    dictionary, options = JumpReLUSAE, JumpReLUTraining
    training: JumpReLUTraining
    resampled_norm = 1.0

    def _fresh(self, alive: torch.Tensor) -> dict[str, torch.Tensor]:
        threshold = self.parameters["log_threshold"]
        return {**super()._fresh(alive), "log_threshold": threshold[alive].mean() if alive.any() else threshold.mean()}

    def _initial(self) -> dict[str, torch.Tensor]:
        given = self.training.threshold
        start = torch.full((self.n_features,), 1.0 if given is None else float(given))
        return {**super()._initial(), "log_threshold": start.log()}

    def calibrate(self, x: torch.Tensor) -> None:
        """Put the thresholds where k features are active on a token."""
        if self.training.threshold is None:
            pre = self.encoder()(x[:1024] - self.parameters["b_dec"]).relu().reshape(-1)
            wanted = min(self.k * len(x[:1024]), len(pre))
            limit = pre.topk(wanted, sorted=True).values[-1].clamp_min(1e-3 * float(self.carried["size"]))
            self.parameters["log_threshold"].fill_(limit.log())
        super().calibrate(x)

    def _rescale(self, factor: torch.Tensor) -> None:
        super()._rescale(factor)
        if self.training.threshold is None:
            self.parameters["log_threshold"] += factor.log()

    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """See `Learner.gradients`."""
        decoder, width = self.parameters["W_dec"], self.training.bandwidth * float(self.carried["size"])
        theta = self.parameters["log_threshold"].exp()
        z = x - self.parameters["b_dec"]
        code, pre = self.find(z, theta - width / 2)
        open_ = pre > code.at(theta)
        acts = pre * open_
        residual = code.decode(acts, decoder).add_(self.parameters["b_dec"]).sub_(x)
        self.count(x, residual, code, acts)
        upstream = self.upstream(residual)
        d_acts = code.dots(upstream, decoder)
        gradients = self.assemble(code, z, acts, d_acts * open_, upstream)
        near = ((pre - code.at(theta)).abs() < width / 2).float() / width
        counts = torch.stack([self.sums[2], self.sums[3]])
        self.group.sum([counts])
        l0 = (counts[0] / counts[1]).float()
        slope = self.sparsity(progress) * 2 * (l0 / self.k - 1) / self.k / self.training.batch_size
        d_theta = -code.column_sums(near * (code.at(theta) * d_acts + slope))
        gradients["log_threshold"] = d_theta * theta
        self.add_auxk(gradients, z, -residual)
        return gradients

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.parameters["log_threshold"].exp()
        code, pre = self.find(x - self.parameters["b_dec"], theta)
        acts = pre * (pre > code.at(theta))
        return code.decode(acts, self.parameters["W_dec"]) + self.parameters["b_dec"] - x

    def weights(self) -> dict[str, torch.Tensor]:
        """See `Learner.weights`."""
        weights = super().weights()
        weights["threshold"] = weights.pop("log_threshold").exp()
        return weights

    def load(self, sae: SAE) -> None:
        """See `Learner.load`."""
        super().load(sae)
        self.parameters["log_threshold"].copy_(sae.weights["threshold"].clamp_min(1e-6).log())
