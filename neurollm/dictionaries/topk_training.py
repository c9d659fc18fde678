"""One training step of a TopK SAE, with its gradients written out.

For a batch x̃ (n, d) of centred activations scaled to E‖x̃‖² = d, z = x̃ − b:

    I  = the k largest of z W_e + c              (selection; no gradient)
    a  = ReLU(z · W_e[I] + c[I]),   r = a W_d + b − x̃,   L = ‖r‖² / (n d)
    G  = 2 r / (n d)
    ∂a = (G · W_d[I]) ⊙ 1[a > 0],   ∂W_d = aᵀ G,   ∂W_e = ∂aᵀ z,   ∂c = Σ ∂a,   ∂b = Σ G − ∂cᵀ W_e

All products but the selection have k instead of F terms per token. With bfloat16 only
the selection is computed in bfloat16; the selected values, the gradients, the weights
and Adam's moments are float32.

AuxK (Gao et al. 2024, appendix A.2): features that were silent for long reconstruct
what the living ones left over, e = x̃ − x̂ (no gradient): with ê from the `auxk` largest
dead pre-activations, α · min(1, n_dead / auxk) · ‖ê − e‖² / ‖e‖² is added to the loss.
Its gradient reaches W_e, c and W_d of dead features only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from neurollm.dictionaries.controls import unit_rows
from neurollm.dictionaries.kernels import Transposed, sampled_dot, sparse_decode

# Pre-activations held at a time.
MAX_PRE_VALUES = 2**26
ADAM = {"betas": (0.9, 0.999), "eps": 6.25e-10}  # Gao et al. 2024


class TopKTrainer:
    """Weights, optimiser and step of a TopK SAE.

    Parameters
    ----------
    d_in, n_features, k : int
    training : TopKTraining
        Resolved: nothing left to ``None`` or ``"auto"``.
    random_state : int
        Seed of the decoder directions. The encoder starts as their transpose.
    """

    def __init__(self, d_in: int, n_features: int, k: int, training, random_state: int) -> None:
        self.d_in, self.n_features, self.k, self.training = d_in, n_features, k, training
        device = torch.device(training.device)
        rows = torch.from_numpy(unit_rows(random_state, "decoder_init", n_features, d_in)).to(device)
        self.parameters = {
            "W_enc": rows.clone(),  # kept as (F, d), like W_dec
            "W_dec": rows,
            "b_enc": torch.zeros(n_features, device=device),
            "b_dec": torch.zeros(d_in, device=device),
        }
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=0.0, fused=True, **ADAM)
        for weight in self.parameters.values():  # created here so that a checkpoint can be loaded into them
            self.optimizer.state[weight] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.silent = torch.zeros(n_features, dtype=torch.int64, device=device)
        # Squared error, squared norm, active features, tokens since they were last read.
        self.window = torch.zeros(4, dtype=torch.float64, device=device)

    def step(self, x: torch.Tensor, learning_rate: float) -> None:
        """Learn from one batch of centred and scaled activations (n, d)."""
        for name, gradient in self.gradients(x).items():
            self.parameters[name].grad = gradient
        decoder = self.parameters["W_dec"]
        if self.training.unit_norm_decoder:
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        if self.training.unit_norm_decoder:
            decoder /= decoder.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def gradients(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gradients of the loss; also counts activity and error of the batch."""
        encoder, decoder, b_dec = (self.parameters[name] for name in ("W_enc", "W_dec", "b_dec"))
        z = x - b_dec
        values, indices = self._select(z)
        transposed = Transposed(indices, self.n_features)
        residual = sparse_decode(values, indices, decoder).add_(b_dec).sub_(x)
        self._count(x, residual, values, indices)
        upstream = residual * (2.0 / (self.training.batch_size * self.d_in))
        d_values = sampled_dot(upstream, decoder, indices) * (values > 0)
        d_b_enc = transposed.sum(d_values)
        gradients = {
            "W_enc": transposed.dot(d_values, z),
            "W_dec": transposed.dot(values, upstream),
            "b_enc": d_b_enc,
            "b_dec": upstream.sum(0) - d_b_enc @ encoder,
        }
        dead = torch.nonzero(self.silent >= self.training.dead_after_tokens).reshape(-1)
        if len(dead) and self.training.auxk_coefficient:
            for name, gradient in self._auxk_gradients(z, -residual, dead).items():
                gradients[name].index_add_(0, dead, gradient)
        return gradients

    def _select(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (n, k), rectified, and indices (n, k) of the k largest pre-activations."""
        encoder, b_enc = self.parameters["W_enc"], self.parameters["b_enc"]
        low = self.training.precision == "bfloat16"
        weight, bias = (encoder.bfloat16(), b_enc.bfloat16()) if low else (encoder, b_enc)
        chunk = max(1, MAX_PRE_VALUES // self.n_features)
        parts = [
            torch.nn.functional.linear(piece.to(weight.dtype), weight, bias).topk(self.k, dim=1, sorted=False)
            for piece in z.split(chunk)
        ]
        indices = torch.cat([part.indices for part in parts])
        if low:
            return (sampled_dot(z, encoder, indices) + b_enc[indices]).relu_(), indices
        return torch.cat([part.values for part in parts]).relu_(), indices

    def _auxk_gradients(self, z: torch.Tensor, error: torch.Tensor, dead: torch.Tensor) -> dict[str, torch.Tensor]:
        encoder, decoder = self.parameters["W_enc"][dead], self.parameters["W_dec"][dead]
        pre = self._product(z, encoder.T) + self.parameters["b_enc"][dead]
        acts = pre.relu_()
        if len(dead) > self.training.auxk:
            values, indices = acts.topk(self.training.auxk, dim=1, sorted=False)
            acts = torch.zeros_like(acts).scatter_(1, indices, values)
        share = min(1.0, len(dead) / self.training.auxk) * len(z) / self.training.batch_size
        scale = 2.0 * self.training.auxk_coefficient * share / error.square().sum().clamp_min(1e-12)
        upstream = (self._product(acts, decoder) - error) * scale
        d_acts = self._product(upstream, decoder.T) * (acts > 0)
        return {
            "W_enc": self._product(d_acts.T, z),
            "W_dec": self._product(acts.T, upstream),
            "b_enc": d_acts.sum(0),
        }

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.training.precision == "bfloat16":
            return (a.bfloat16() @ b.bfloat16()).float()
        return a @ b

    def _count(self, x: torch.Tensor, residual: torch.Tensor, values: torch.Tensor, indices: torch.Tensor) -> None:
        fired = values > 0
        self.silent += len(x)
        self.silent[indices[fired]] = 0
        sums = [residual.square().sum(), x.square().sum(), fired.sum()]
        self.window[:3] += torch.stack([value.double() for value in sums])
        self.window[3] += len(x)

    def read_window(self) -> dict[str, float]:
        """Explained variance, L0 and dead features since the last call, which this one forgets."""
        error, norm, active, tokens = self.window.tolist()
        self.window.zero_()
        dead = int((self.silent >= self.training.dead_after_tokens).sum())
        return {"explained_variance": round(1 - error / norm, 5), "l0": round(active / tokens, 3), "dead": dead}

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights in SAELens shapes, on the CPU."""
        weights = {name: weight.detach().cpu() for name, weight in self.parameters.items()}
        weights["W_enc"] = weights["W_enc"].T.contiguous()
        return weights

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that the next step depends on, by name."""
        for name, weight in self.parameters.items():
            yield name, weight
            for key, moment in self.optimizer.state[weight].items():
                yield f"{name}.{key}", moment
        yield "silent", self.silent
        yield "window", self.window
