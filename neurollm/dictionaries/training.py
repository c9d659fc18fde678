"""Training a dictionary on an activation store.

The activations are centred by their mean and scaled so that E‖x̃‖² = d, both taken
from the store's float64 statistics, so that the defaults suit any model and layer; the
finished dictionary works on raw activations again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurollm._version import __version__
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.checkpoints import POINTER, Checkpoint, refuse_other_run
from neurollm.dictionaries.saelens import CONFIG_FILE, SIDE_FILE, load_dictionary
from neurollm.dictionaries.topk import TopKSAE
from neurollm.dictionaries.topk_training import TopKTrainer
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import has_fast_bfloat16
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

MAX_DEAD_AFTER = 10_000_000  # tokens; Gao et al. 2024
NOT_PART_OF_RESULT = ("checkpoint_every",)


@dataclass(frozen=True, kw_only=True)
class TopKTraining:
    """How a TopK SAE is trained; the same object is saved with it.

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
    auxk_coefficient : float, default=1/32
        Weight of the loss that revives dead features; 0 switches it off.
    auxk : int, optional
        Dead features used on a token. Default: d / 2.
    dead_after_tokens : int, optional
        A feature silent for so many tokens is dead. Default: a tenth of all tokens, at most 10 million.
    unit_norm_decoder : bool, default=True
        Keep decoder directions at length 1, and remove the part of their gradient that would change it.
    precision : {"auto", "bfloat16", "float32"}, default="auto"
        Precision in which the k features of a token are selected; everything else is float32.
        ``"auto"``: bfloat16 where the processor multiplies it faster.
    device : str, default="auto"
    log_every : int, default=200
        Steps between two entries of the training history.
    checkpoint_every : int, default=1000
        Steps between two checkpoints. Does not change the result.
    """

    learning_rate: float | None = None
    batch_size: int = 1024
    warmup: float = 0.02
    decay: float = 0.2
    auxk_coefficient: float = 1 / 32
    auxk: int | None = None
    dead_after_tokens: int | None = None
    unit_norm_decoder: bool = True
    precision: str = "auto"
    device: str = "auto"
    log_every: int = 200
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        positive = ("learning_rate", "batch_size", "auxk", "dead_after_tokens", "log_every", "checkpoint_every")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"training: {name} must be positive, got {value!r}")
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.auxk_coefficient >= 0):
            raise InvalidInput("training: warmup and decay are fractions from 0 to 1, auxk_coefficient is 0 or more")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise InvalidInput(f"training: precision {self.precision!r}; use 'auto', 'bfloat16' or 'float32'")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TopKTraining:
        """Build from plain data; an unknown name is an error."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InvalidInput(f"training: unknown option {unknown[0]!r}; the options are {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    def resolve(self, d_in: int, n_features: int, n_tokens: int) -> TopKTraining:
        """The same with every default worked out."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
        return dataclasses.replace(
            self,
            learning_rate=self.learning_rate or 2e-3 * (4096 / n_features) ** 0.5,
            auxk=self.auxk or max(1, d_in // 2),
            dead_after_tokens=self.dead_after_tokens or min(MAX_DEAD_AFTER, max(1, n_tokens // 10)),
            precision=precision,
            device=device,
        )


@dataclass(frozen=True)
class Architecture:
    """What makes an architecture trainable: its dictionary, its trainer, its options."""

    dictionary: type[Dictionary]
    trainer: type
    training: type


ARCHITECTURES = {"topk": Architecture(TopKSAE, TopKTrainer, TopKTraining)}


def train_dictionary(
    store: ActivationStore,
    architecture: str = "topk",
    n_features: int = 4096,
    k: int = 32,
    n_tokens: int = 5_000_000,
    random_state: int = 0,
    out: str | os.PathLike | None = None,
    training: TopKTraining | None = None,
    verbose: int = 1,
) -> Dictionary:
    """Train a dictionary.

    With `out`, a training that is interrupted at any moment goes on from its last
    checkpoint when the same call is made again, and ends with the same files, byte for
    byte, as one that was never interrupted; when it is finished the call only loads it.

    Parameters
    ----------
    store : ActivationStore
    architecture : {"topk"}
    n_features, k : int
    n_tokens : int, default=5_000_000
        More than the store has means several epochs, each in another order.
    random_state : int, default=0
    out : path-like, optional
        Folder of the finished dictionary and of the checkpoints.
    training : TopKTraining, optional
    verbose : int, default=1

    Returns
    -------
    TopKSAE
        Folded: it takes raw activations. Also saved in `out`.

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the store contains NaN or infinite values.
    DataMismatch
        If `out` holds another training.
    """
    if architecture not in ARCHITECTURES:
        raise InvalidInput(f"architecture {architecture!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
    if not 1 <= k <= n_features or n_tokens < 1:
        raise InvalidInput(
            f"n_features is {n_features}, k {k}, n_tokens {n_tokens}; expected 1 <= k <= n_features and n_tokens >= 1"
        )
    chosen = ARCHITECTURES[architecture]
    training = (training or chosen.training()).resolve(store.d, n_features, n_tokens)
    run = {
        "architecture": architecture,
        "n_features": n_features,
        "k": k,
        "n_tokens": n_tokens,
        "random_state": random_state,
        "store_sha256": store.sha256,
        "training": {key: value for key, value in training.to_dict().items() if key not in NOT_PART_OF_RESULT},
    }
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give the folder that the dictionary shall be written to")
    if folder is not None and (finished := _finished(folder, run)) is not None:
        return finished
    trainer = chosen.trainer(store.d, n_features, k, training, random_state)
    checkpoint = None if folder is None else Checkpoint(folder, run)
    history = _Loop(store, trainer, checkpoint, n_tokens, random_state).run(verbose)
    dictionary = _finish(store, trainer, run, history)
    if folder is not None:
        dictionary.save(folder)
        checkpoint.clear()
    return dictionary


class _Loop:
    """Batches through the trainer, with checkpoints."""

    def __init__(
        self,
        store: ActivationStore,
        trainer: TopKTrainer,
        checkpoint: Checkpoint | None,
        n_tokens: int,
        random_state: int,
    ) -> None:
        self.store, self.trainer, self.checkpoint = store, trainer, checkpoint
        self.n_tokens, self.random_state = n_tokens, random_state
        self.training = trainer.training
        self.counters: dict[str, Any] = {"tokens": 0, "step": 0, "epoch": 0, "batch": 0, "history": []}
        self.mean, self.scale = normalisation(store)
        self.mean = self.mean.to(self.training.device)

    def run(self, verbose: int) -> list[dict[str, float]]:
        """Train to the end; the history of explained variance, L0 and dead features."""
        at = self.counters
        with Progress("train dictionary", self.n_tokens, "tokens", verbose) as progress:
            if self.checkpoint is not None:
                self.checkpoint.sweep()
                at.update(self.checkpoint.load(dict(self.trainer.state())) or {})
                progress.skip(at["tokens"])
            for batch in self._batches():
                rate = learning_rate(at["tokens"] / self.n_tokens, self.training)
                self.trainer.step(self._normalised(batch), rate)
                at["tokens"] += len(batch)
                at["step"] += 1
                progress.advance(len(batch), self._log())
                if self.checkpoint is not None and at["step"] % self.training.checkpoint_every == 0:
                    self.checkpoint.save(at, dict(self.trainer.state()))
            if self.checkpoint is not None:  # so that a kill while the result is written loses nothing
                self.checkpoint.save(at, dict(self.trainer.state()))
        return at["history"]

    def _batches(self) -> Iterator[torch.Tensor]:
        """Epoch after epoch from where the counters stand; the last batch is cut to the number of tokens."""
        at = self.counters
        while at["tokens"] < self.n_tokens:
            for batch in self.store.batches(
                self.training.batch_size, random_state=self.random_state, epoch=at["epoch"], start_batch=at["batch"]
            ):
                at["batch"] += 1
                yield batch[: self.n_tokens - at["tokens"]]
                if at["tokens"] >= self.n_tokens:
                    return
            at["epoch"], at["batch"] = at["epoch"] + 1, 0

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        x = (batch.to(self.training.device, torch.float32) - self.mean) * self.scale
        if not torch.isfinite(x).all():
            raise InvalidInput(_where_not_finite(self.store))
        return x

    def _log(self) -> str:
        at = self.counters
        if at["step"] % self.training.log_every and at["tokens"] < self.n_tokens:
            return ""
        entry = {"tokens": at["tokens"], **self.trainer.read_window()}
        at["history"].append(entry)
        return f"EV {entry['explained_variance']:.4f}  L0 {entry['l0']:.1f}  dead {entry['dead']}"


def normalisation(store: ActivationStore) -> tuple[torch.Tensor, float]:
    """Mean (d,) of the stored activations, and the factor that gives the centred ones E‖x̃‖² = d."""
    mean = torch.as_tensor(store.mean, dtype=torch.float64)
    variance = float(store.mean_squared_norm) - float(mean.square().sum())
    if not variance > 0:
        raise InvalidInput(f"the activation store has total variance {variance}: all rows alike, or not finite")
    return mean.float(), (store.d / variance) ** 0.5


def learning_rate(progress: float, training: TopKTraining) -> float:
    """Learning rate when a fraction `progress` of the tokens has been seen."""
    rise = min(1.0, (progress + 1e-3) / training.warmup) if training.warmup else 1.0
    fall = min(1.0, (1 - progress) / training.decay) if training.decay else 1.0
    return training.learning_rate * rise * fall


def _finish(
    store: ActivationStore, trainer: TopKTrainer, run: dict[str, Any], history: list[dict[str, float]]
) -> TopKSAE:
    mean, scale = normalisation(store)
    model = store.manifest.get("model", {})
    sae = TopKSAE(
        store.site,
        run["k"],
        trainer.weights(),
        mean=mean,
        scale=scale,
        model_name=model.get("name", ""),
        model_fingerprint=store.model_fingerprint,
    ).fold()
    epochs = run["n_tokens"] / store.n_rows
    sae.provenance = {
        "made_by": f"neurollm {__version__}, torch {torch.__version__}",
        "run": run,
        "store_rows": store.n_rows,
        "epochs": round(epochs, 4),
        "data": "every token at most once" if epochs <= 1 else f"every token about {epochs:.1f} times",
        "normalisation": {"scale": scale, "folded": True},
        "context": store.manifest.get("settings", {}).get("context"),
        "history": history,
    }
    return sae


def _finished(folder: Path, run: dict[str, Any]) -> Dictionary | None:
    """The dictionary of this very run if the folder already holds it."""
    side = folder / SIDE_FILE
    if not side.is_file():
        if (folder / CONFIG_FILE).is_file() and not (folder / POINTER).is_file():
            raise DataMismatch(f"{folder} holds a dictionary that was not trained here; choose another folder")
        return None
    try:
        found = json.loads(side.read_text(encoding="utf-8"))["provenance"]["run"]
    except (ValueError, KeyError, TypeError):
        found = {"architecture": "unknown"}
    refuse_other_run(found, run, side)
    dictionary = load_dictionary(folder)
    checkpoint = Checkpoint(folder, run)
    checkpoint.sweep()
    checkpoint.clear()
    return dictionary


def _where_not_finite(store: ActivationStore) -> str:
    advice = "delete it and run harvest again to restore it"
    for index, shard in enumerate(store.shards):
        if not torch.isfinite(torch.as_tensor(store.shard(index)["acts"]).float()).all():
            return f"activation store: shard {shard.get('file', index)} contains NaN or infinite values; {advice}"
    return f"the activation store's statistics are not finite; {advice}"
