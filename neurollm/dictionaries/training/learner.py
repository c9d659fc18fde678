"""What learning is made of in every architecture: weights, Adam, dead features, bookkeeping.

x̃ (n, d) are normalised activations, z = x̃ − b, a the code, r = a W_d + b − x̃ and
L = ‖r‖² / (n d) + what the architecture adds. Gradients are written out, because all
products but the one that finds the code have as many terms per token as there are
active features, not F:

    G  = 2 r / (n d)                         upstream
    ∂a = G · W_dᵀ at the places of a         (+ penalty)
    ∂W_d = aᵀ G,   ∂W_e = ∂preᵀ z,   ∂c = Σ ∂pre,   ∂b = Σ G − ∂cᵀ W_e

AuxK (Gao et al. 2024, appendix A.2): features that were silent for long reconstruct
what the living ones left over, e = x̃ − x̂ (no gradient): with ê from the `auxk` largest
dead pre-activations, α · min(1, n_dead / auxk) · ‖ê − e‖² / ‖e‖² is added to the loss.
Its gradient reaches W_e, c and W_d of dead features only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from neurollm.dictionaries.controls import unit_rows
from neurollm.dictionaries.kernels import Code, Encoder, each, product
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training.distributed import Group
from neurollm.dictionaries.training.options import Training
from neurollm.random import stream

ADAM = {"betas": (0.9, 0.999), "eps": 6.25e-10}  # Gao et al. 2024
CENTRED = ("mean_square", "z_score", "whiten")  # normalisations that leave a mean of zero
DEAD_EVERY = 10  # steps after which it is looked up again which features are dead


class Learner(ABC):
    """Weights, optimiser and step of one dictionary.

    Parameters
    ----------
    d_in, n_features : int
    k : int
        Features that shall be active on a token.
    training : Training
        Resolved: nothing left to ``None`` or ``"auto"``.
    random_state : int
        Seed of the initial directions.
    group : Group, optional
        Processes that learn together.
    """

    dictionary: ClassVar[type[SAE]]
    options: ClassVar[type[Training]] = Training
    bias: ClassVar[str] = "b_enc"  # what is added to z · W_enc to find the code
    shared: ClassVar[tuple[str, ...]] = ("b_dec",)  # weights that have no row for each feature
    # Length of a resampled encoder direction, in mean lengths of the others. Bricken et al. (2023) take .2 with ReLU;
    # a feature so weak would pass no threshold and win no competition.
    resampled_norm: ClassVar[float] = 0.2

    def __init__(
        self,
        d_in: int,
        n_features: int,
        k: int,
        training: Training,
        random_state: int = 0,
        group: Group | None = None,
    ) -> None:
        self.d_in, self.n_features, self.k, self.training = d_in, n_features, k, training
        self.random_state, self.group = random_state, group or Group()
        self.device = torch.device(training.device)
        self.parameters = {name: tensor.to(self.device) for name, tensor in self._initial().items()}
        # One for each weight, so that they can run side by side.
        self.optimizers = {
            name: torch.optim.Adam([weight], lr=0.0, fused=True, **ADAM) for name, weight in self.parameters.items()
        }
        for name, weight in self.parameters.items():  # created here so that a checkpoint can be loaded into them
            self.optimizers[name].state[weight] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.silent = torch.zeros(n_features, dtype=torch.int64, device=self.device)
        self.is_dead = torch.zeros(n_features, dtype=torch.bool, device=self.device)
        self.dead = torch.zeros(0, dtype=torch.int64, device=self.device)
        # Squared error, squared norm, active features, tokens: of this step, and since they were last read.
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.window = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.fired = torch.zeros(n_features, device=self.device)
        # What goes from step to step beside: counts, the mean of x̃, and what an architecture adds.
        self.carried = {
            "steps": torch.zeros((), dtype=torch.int64),
            "resampled": torch.zeros((), dtype=torch.int64),
            "origin": torch.zeros(d_in, device=self.device),
            "size": torch.ones(()),  # RMS of a dimension of x̃
            **self._carried(),
        }

    def _initial(self) -> dict[str, torch.Tensor]:
        """Initial weights; W_enc is kept as (F, d), like W_dec."""
        shape = (self.n_features, self.d_in)
        decoder = torch.from_numpy(unit_rows(self.random_state, "decoder_init", *shape))
        if self.training.nonnegative:
            decoder = decoder.abs()
        own = self.training.encoder_init == "random"
        encoder = torch.from_numpy(unit_rows(self.random_state, "encoder_init", *shape)) if own else decoder.clone()
        return {
            "W_enc": encoder,
            "W_dec": decoder,
            self.bias: torch.zeros(self.n_features),
            "b_dec": torch.zeros(self.d_in),
        }

    def _carried(self) -> dict[str, torch.Tensor]:
        return {}

    def start(self, x: torch.Tensor) -> None:
        """Look at the first batch before the first step."""
        if self.training.normalisation not in CENTRED:
            self.carried["origin"].copy_(x.mean(0))
        if self.training.normalisation == "none":
            self.carried["size"].copy_((x - x.mean(0)).square().mean().sqrt().clamp_min(1e-30))

    def calibrate(self, x: torch.Tensor) -> None:
        """Fit what depends on the data to the first batch, when the weights are random.

        An encoder that is the transpose of the decoder overshoots, because active directions overlap. On request
        it is multiplied by the factor <z, y> / ‖y‖² with which the first reconstructions y fit best.
        """
        if self.training.encoder_init == "fitted":
            z = x - self.parameters["b_dec"]
            y = self._residual(x) + z
            size = y.square().sum()
            if size > 0:
                self._rescale(((z * y).sum() / size).clamp(1e-3, 1.0))

    def _rescale(self, factor: torch.Tensor) -> None:
        """Multiply all pre-activations, biases being zero."""
        self.parameters["W_enc"] *= factor

    def adopt(self, x: torch.Tensor) -> None:  # noqa: B027 - only steered penalties need it
        """Fit what is not a weight to the first batch, when the weights are those of a dictionary."""

    @abstractmethod
    def gradients(self, x: torch.Tensor, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """Gradients of the loss at a batch (n, d), for this process's rows; also counts activity and error."""

    def dictionary_options(self) -> dict[str, Any]:
        """What the dictionary's constructor takes beside the weights."""
        return {}

    @torch.no_grad()
    def step(self, x: torch.Tensor, progress: float) -> None:
        """Learn from one batch of normalised activations (n, d), when a fraction `progress` of all has been seen."""
        gradients = self.gradients(x, progress)
        self.group.sum([*gradients.values(), self.sums, self.fired])
        decoder = self.parameters["W_dec"]
        if self.training.decoder_norm == "unit":
            gradient = gradients["W_dec"]
            gradient -= (gradient * decoder).sum(1, keepdim=True) * decoder
        rate = self.training.rate(progress)
        each(lambda name: self._update(name, gradients[name], rate), gradients)
        if self.training.nonnegative:
            decoder.clamp_(min=0)
        if self.training.decoder_norm == "unit":
            decoder /= decoder.norm(dim=1, keepdim=True).clamp_min_(1e-12)
        self._after_step(x, progress)

    def _update(self, name: str, gradient: torch.Tensor, rate: float) -> None:
        self.parameters[name].grad = gradient
        self.optimizers[name].param_groups[0]["lr"] = rate
        self.optimizers[name].step()

    def _after_step(self, x: torch.Tensor, progress: float) -> None:
        self.silent += self.sums[3].long()
        self.silent.masked_fill_(self.fired > 0, 0)
        self.window += self.sums
        self.carried["steps"] += 1
        if self._due(progress):
            self._resample(x)
        if int(self.carried["steps"]) % DEAD_EVERY == 0:
            self.is_dead = self.silent >= self.training.dead_after_tokens
            self.refresh()

    def refresh(self) -> None:
        """Bring what is derived from the state up to date with it."""
        self.dead = torch.nonzero(self.is_dead).reshape(-1)

    # --- pieces of the gradients ---

    def encoder(self) -> Encoder:
        """The product that finds the code."""
        return Encoder(self.parameters["W_enc"], self.parameters[self.bias], self.training.precision == "bfloat16")

    def exact(self, code: Code, z: torch.Tensor) -> torch.Tensor:
        """Pre-activations at the places of a code, in float32."""
        return code.dots(z, self.parameters["W_enc"]).add_(code.at(self.parameters[self.bias]))

    def count(self, x: torch.Tensor, residual: torch.Tensor, code: Code, acts: torch.Tensor) -> None:
        """Note error and activity of the batch."""
        fired = acts > 0
        sums = [residual.square().sum(), (x - self.carried["origin"]).square().sum(), fired.sum()]
        self.sums[:3] = torch.stack([value.double() for value in sums])
        self.sums[3] = len(x)
        self.fired = code.active_columns(acts).float()

    def upstream(self, residual: torch.Tensor) -> torch.Tensor:
        """Gradient of ‖r‖² / (n d) with respect to r, n being the batch of all processes."""
        return residual * (2.0 / (self.training.batch_size * self.d_in))

    def assemble(
        self, code: Code, z: torch.Tensor, acts: torch.Tensor, d_pre: torch.Tensor, upstream: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Gradients of the four common weights."""
        d_bias = code.column_sums(d_pre)
        return {
            "W_enc": code.gram(d_pre, z),
            "W_dec": code.gram(acts, upstream),
            self.bias: d_bias,
            "b_dec": upstream.sum(0) - d_bias @ self.parameters["W_enc"],
        }

    def add_auxk(self, gradients: dict[str, torch.Tensor], z: torch.Tensor, error: torch.Tensor) -> None:
        """Add the gradients of the AuxK loss; `error` is x̃ − x̂."""
        training, dead = self.training, self.dead
        if not len(dead) or not training.auxk_coefficient:
            return
        encoder, decoder = self.parameters["W_enc"][dead], self.parameters["W_dec"][dead]
        acts = (self._product(z, encoder.T) + self.parameters[self.bias][dead]).relu_()
        if len(dead) > training.auxk:
            values, indices = acts.topk(training.auxk, dim=1, sorted=False)
            acts = torch.zeros_like(acts).scatter_(1, indices, values)
        total = torch.stack([error.square().sum(), error.new_tensor(float(len(error)))])
        self.group.sum([total])
        weight = training.auxk_coefficient * min(1.0, len(dead) / training.auxk)
        scale = 2.0 * weight * (total[1] / training.batch_size) / total[0].clamp_min(1e-12)
        upstream = (self._product(acts, decoder) - error) * scale
        d_acts = self._product(upstream, decoder.T) * (acts > 0)
        gradients["W_enc"].index_add_(0, dead, self._product(d_acts.T, z))
        gradients["W_dec"].index_add_(0, dead, self._product(acts.T, upstream))
        gradients[self.bias].index_add_(0, dead, d_acts.sum(0))

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.training.precision == "bfloat16":
            return product(a.bfloat16(), b.bfloat16()).float()
        return product(a, b)

    # --- resampling ---

    def _due(self, progress: float) -> bool:
        every = self.training.resample_every
        if not every or progress > 0.5:
            return False
        done = int(progress / every)
        due = done > int(self.carried["resampled"])
        self.carried["resampled"].fill_(done)
        return due

    def _resample(self, x: torch.Tensor) -> None:
        """Give dead features the directions of rows with a large error, drawn in proportion to its square."""
        dead = torch.nonzero(self.silent >= self.training.dead_after_tokens).reshape(-1)
        if not len(dead):
            return
        z = x - self.parameters["b_dec"]
        loss = self._residual(x).square().sum(1).double()
        place = self.group.rank + self.group.size * torch.arange(len(x), device=x.device)  # see Group.share
        order = self.group.gather(place).argsort()
        rows = self.group.gather(z.reshape(-1)).reshape(-1, self.d_in)[order]
        loss = self.group.gather(loss)[order]
        chance = loss.square().cpu().numpy()
        draw = stream(self.random_state, "resample", int(self.carried["steps"]))
        chosen = draw.choice(len(chance), len(dead), p=chance / chance.sum())
        directions = torch.nn.functional.normalize(rows[torch.from_numpy(chosen).to(rows.device)], dim=1)
        if self.training.nonnegative:
            directions = torch.nn.functional.normalize(directions.clamp(min=0), dim=1)
        alive = self.silent < self.training.dead_after_tokens
        norms = self.parameters["W_enc"].norm(dim=1)
        norm = norms[alive].mean() if alive.any() else norms.mean()
        new = {**self._fresh(alive), "W_dec": directions, "W_enc": directions * norm * self.resampled_norm}
        for name, value in new.items():
            self.parameters[name][dead] = value
        for name, weight in self.parameters.items():
            if name not in self.shared:
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.optimizers[name].state[weight][moment][dead] = 0
        self.silent[dead] = 0
        self.is_dead[dead] = False
        self.refresh()

    def _fresh(self, alive: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a resampled feature begins with beside its directions; `alive` are the other features."""
        return {self.bias: torch.zeros((), device=self.device)}

    @abstractmethod
    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        """x̂ − x̃ with the present weights."""

    # --- what is read from outside ---

    def read_window(self) -> dict[str, float | None]:
        """Explained variance, loss per dimension, L0 and dead features since the last call, which this one forgets."""
        error, norm, active, tokens = self.window.tolist()
        self.window.zero_()
        tokens = max(tokens, 1.0)
        dead = int((self.silent >= self.training.dead_after_tokens).sum())
        return {
            "explained_variance": round(1 - error / norm, 5) if norm > 0 else None,
            "loss": round(error / (tokens * self.d_in), 6),
            "l0": round(active / tokens, 3),
            "dead": dead,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights of the finished dictionary, SAELens names and shapes, on the CPU."""
        weights = {name: weight.detach().cpu() for name, weight in self.parameters.items()}
        weights["W_enc"] = weights["W_enc"].T.contiguous()
        return weights

    def load(self, sae: SAE) -> None:
        """Begin with the weights of a dictionary in normalised units."""
        for name in self.parameters.keys() & sae.weights.keys():
            weight = sae.weights[name]
            self.parameters[name].copy_(weight.T if name == "W_enc" else weight)

    def diverged(self) -> bool:
        """Whether the loss is not a finite number any more."""
        return not bool(torch.isfinite(self.window).all())

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that the next step depends on, by name."""
        for name, weight in self.parameters.items():
            yield name, weight
            for key, moment in self.optimizers[name].state[weight].items():
                yield f"{name}.{key}", moment
        yield from (("silent", self.silent), ("is_dead", self.is_dead), ("window", self.window))
        yield from self.carried.items()
