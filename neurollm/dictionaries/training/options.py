"""How dictionaries are trained: one set of options for each architecture.

Lengths are fractions of all tokens of the training, never steps: a schedule does not
change its shape when the batch size or the number of tokens does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from neurollm.errors import InvalidInput
from neurollm.models import has_fast_bfloat16

WHOLE = ("batch_size", "auxk", "dead_after_tokens", "log_every", "checkpoint_every")
MAX_DEAD_AFTER = 10_000_000  # tokens; Gao et al. 2024
CHOICES = {
    "normalisation": ("mean_square", "z_score", "whiten", "layer_norm", "unit_norm", "none"),
    "bias_init": ("mean", "geometric_median", "zero"),
    "encoder_init": ("transpose", "fitted", "random"),
    "decoder_norm": ("unit", "free"),
    "precision": ("auto", "bfloat16", "float32"),
    "penalty": ("l1", "kl"),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of every architecture; saved with the dictionary.

    Parameters
    ----------
    learning_rate : float, optional
        Default: 2e-3 · sqrt(4096 / n_features).
    batch_size : int, default=1024
        Tokens per step. For small dictionaries many steps are worth more than large ones; Adam's own
        work per step grows with the dictionary, so large ones are cheaper per token with 4,096.
    warmup : float, default=0.02
        Fraction of the tokens over which the learning rate rises from 0.
    decay : float, default=0.2
        Fraction of the tokens, at the end, over which it falls linearly to 0.
    normalisation : str, default="mean_square"
        What the network sees; the finished dictionary takes raw activations in any case.
        ``"mean_square"``: centred, one factor so that E‖x̃‖² = d. ``"z_score"``: a factor for each dimension.
        ``"whiten"``: no correlations. ``"layer_norm"``, ``"unit_norm"``: each token by itself. ``"none"``.
    bias_init : {"mean", "geometric_median", "zero"}
        Where b_dec begins.
    encoder_init : {"transpose", "fitted", "random"}
        The encoder begins as the transpose of the decoder; as its transpose times the factor with which the first
        reconstructions fit best, which is better after few steps, and leaves more features rare or dead after many; or
        on its own.
    decoder_norm : {"unit", "free"}
        ``"unit"``: decoder directions keep length 1, and the part of their gradient that would change it is removed.
        ``"free"``: they do not; penalties count a feature by its activation times its direction's length.
    nonnegative : bool, default=False
        Decoder weights are kept at 0 or above, as in non-negative matrix factorisation.
    auxk_coefficient : float, default=1/32
        Weight of the loss that revives dead features (Gao et al. 2024); 0 switches it off.
    auxk : int, optional
        Dead features used on a token. Default: d / 2.
    dead_after_tokens : int, optional
        A feature silent for so many tokens is dead. Default: a tenth of all tokens, at least 16 batches and at most
        10 million tokens.
    resample_every : float, default=0.0
        Fraction of the tokens after which dead features are given new directions, those of tokens with a large
        error (Bricken et al. 2023), again and again until half of the tokens are seen; below 0.5, 0: never.
    precision : {"auto", "bfloat16", "float32"}
        Precision in which active features are *found*; their values, gradients, weights and thresholds are float32.
        ``"auto"``: bfloat16 where the processor multiplies it faster.
    device : str, default="auto"
    log_every : int, default=200
        Steps between two entries of the training history; steps 10, 30 and 100 always have one.
    checkpoint_every : int, default=1000
        Steps between two checkpoints. Does not change the result.
    """

    learning_rate: float | None = None
    batch_size: int = 1024
    warmup: float = 0.02
    decay: float = 0.2
    normalisation: str = "mean_square"
    bias_init: str = "mean"
    encoder_init: str = "transpose"
    decoder_norm: str = "unit"
    nonnegative: bool = False
    auxk_coefficient: float = 1 / 32
    auxk: int | None = None
    dead_after_tokens: int | None = None
    resample_every: float = 0.0
    precision: str = "auto"
    device: str = "auto"
    log_every: int = 200
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices = CHOICES.get(field.name)
            if choices is not None and value not in choices:
                raise InvalidInput(f"training: {field.name} {value!r}; use one of {', '.join(choices)}")
        self._require("positive", lambda v: v is None or v > 0, self._positive())
        self._require("a fraction from 0 to 1", lambda v: 0 <= v <= 1, self._fractions())
        self._require("0 or more", lambda v: v >= 0, ("auxk_coefficient",))
        self._require("below 0.5", lambda v: v < 0.5, ("resample_every",))
        if self.nonnegative and self.normalisation == "whiten":
            raise InvalidInput(
                "training: nonnegative with normalisation 'whiten' would not stay so: un-whitening mixes the dimensions"
            )

    def _positive(self) -> tuple[str, ...]:
        return ("learning_rate", "batch_size", "auxk", "dead_after_tokens", "log_every", "checkpoint_every")

    def _fractions(self) -> tuple[str, ...]:
        return ("warmup", "decay", "resample_every")

    def _require(self, what: str, holds: Any, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            number = value is None or (isinstance(value, Real) and not isinstance(value, bool))
            if not (number and holds(value)):
                raise InvalidInput(f"training: {name} must be {what}, got {value!r}")
            if name in WHOLE and value is not None and value != int(value):
                raise InvalidInput(f"training: {name} must be a whole number, got {value!r}")
            if value is not None:  # plain numbers, that can be written as JSON
                object.__setattr__(self, name, int(value) if name in WHOLE else float(value))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        """Build from plain data; an unknown name is an error."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InvalidInput(f"training: unknown option {unknown[0]!r}; the options are {', '.join(known)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def resolve(self, d_in: int, n_features: int, n_tokens: int) -> Training:
        """The same with every default worked out."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidInput(f"training: device {device!r} cannot be used here: {reason}") from error
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
        return dataclasses.replace(
            self,
            learning_rate=self.learning_rate or 2e-3 * (4096 / n_features) ** 0.5,
            auxk=self.auxk or max(1, d_in // 2),
            dead_after_tokens=self.dead_after_tokens or min(MAX_DEAD_AFTER, max(16 * self.batch_size, n_tokens // 10)),
            precision=precision,
            device=device,
        )

    def rate(self, progress: float) -> float:
        """Learning rate when a fraction `progress` of the tokens has been seen."""
        rise = min(1.0, (progress + 1e-3) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (1 - progress) / self.decay) if self.decay else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True, kw_only=True)
class TopKTraining(Training):
    """Options of a TopK SAE: those of `Training`."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKTraining(Training):
    """Options of a BatchTopK SAE: those of `Training`, and

    Parameters
    ----------
    threshold_rate : float, default=0.01
        Weight of a new batch in the running mean of the smallest activation that was kept: the threshold of the
        finished dictionary.
    """

    threshold_rate: float = 0.01

    def _fractions(self) -> tuple[str, ...]:
        return (*super()._fractions(), "threshold_rate")


@dataclass(frozen=True, kw_only=True)
class MatryoshkaTraining(BatchTopKTraining):
    """Options of a Matryoshka-BatchTopK SAE: those of `BatchTopKTraining`, and

    Parameters
    ----------
    widths : tuple of float, default=(1/16, 1/8, 1/4, 1/2, 1)
        Nested dictionaries, as shares of the features: each must reconstruct the activations with the first
        features alone. Rising, the last is 1.
    """

    widths: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip((0.0, *self.widths), self.widths, strict=False))
        if not self.widths or not rising or self.widths[-1] != 1:
            raise InvalidInput(f"training: widths must rise from above 0 to 1, got {list(self.widths)}")


@dataclass(frozen=True, kw_only=True)
class PenaltyTraining(Training):
    """Options shared by the architectures that are made sparse by a penalty.

    Parameters
    ----------
    sparsity : float, optional
        Weight of the penalty. Default: it is steered so that about k features are active on a token; with the KL
        penalty 1.
    sparsity_warmup : float, default=0.1
        Fraction of the tokens over which a given penalty rises from 0; a steered one begins small by itself.
    """

    decoder_norm: str = "free"
    sparsity: float | None = None
    sparsity_warmup: float = 0.1

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "sparsity")

    def _fractions(self) -> tuple[str, ...]:
        return (*super()._fractions(), "sparsity_warmup")


@dataclass(frozen=True, kw_only=True)
class ReLUTraining(PenaltyTraining):
    """Options of a ReLU SAE: those of `PenaltyTraining`, and

    Parameters
    ----------
    penalty : {"l1", "kl"}, default="l1"
        ``"l1"``: Σᵢ fᵢ ‖dᵢ‖ on every token. ``"kl"``: Σᵢ KL(k / F ‖ ρᵢ), where ρᵢ is the mean over the batch of
        fᵢ / (1 + fᵢ), the activation pressed into 0 to 1.
    """

    penalty: str = "l1"


@dataclass(frozen=True, kw_only=True)
class GatedTraining(PenaltyTraining):
    """Options of a Gated SAE: those of `PenaltyTraining`."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUTraining(PenaltyTraining):
    """Options of a JumpReLU SAE: those of `PenaltyTraining`, and

    Parameters
    ----------
    sparsity : float, optional
        Weight of (L0 / k − 1)². Default: 1.
    sparsity_warmup : float, default=0.0
    bandwidth : float, default=0.1
        Width of the kernel through which thresholds get a gradient, in units of the RMS of a dimension of x̃ (with
        normalisation "none", of the first batch).
    threshold : float, optional
        Where thresholds begin. Default: where k features are active on a token of the first batch.
    """

    sparsity_warmup: float = 0.0
    bandwidth: float = 0.1
    threshold: float | None = None

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "bandwidth", "threshold")
