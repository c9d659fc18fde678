"""Training dictionaries on an activation store, one or several in one pass over the data.

The finished dictionaries work on raw activations: the normalisation that was used in
training is folded into the weights where it does not depend on the token.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurollm._version import __version__
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.formats import load_dictionary
from neurollm.dictionaries.formats.native import SIDE_FILE
from neurollm.dictionaries.formats.saelens import CONFIG_FILE
from neurollm.dictionaries.kernels import threads
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training import start
from neurollm.dictionaries.training.checkpoints import POINTER, Checkpoint, refuse_other_run
from neurollm.dictionaries.training.distributed import Group
from neurollm.dictionaries.training.learner import Learner
from neurollm.dictionaries.training.options import Training
from neurollm.dictionaries.training.penalised import GatedLearner, JumpReLULearner, ReLULearner
from neurollm.dictionaries.training.selected import BatchTopKLearner, MatryoshkaLearner, TopKLearner
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore

NOT_PART_OF_RESULT = ("checkpoint_every",)
SNAPSHOTS = "snapshots"
EARLY = (10, 30, 100)  # steps at which there is something to see, however seldom the history is written
LEARNERS: dict[str, type[Learner]] = {
    "topk": TopKLearner,
    "batchtopk": BatchTopKLearner,
    "matryoshka": MatryoshkaLearner,
    "relu": ReLULearner,
    "gated": GatedLearner,
    "jumprelu": JumpReLULearner,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one dictionary is trained to be.

    Parameters
    ----------
    architecture : {"topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"}
    n_features : int
    k : int
        Active features on a token: exactly at most so many (topk), on average in a batch
        (batchtopk, matryoshka), the target of L0 (relu, gated, jumprelu).
    n_tokens : int
        More than the store has means several epochs, each in another order.
    random_state : int
        Seed of the initial weights.
    training : Training, optional
        Options; of the class that belongs to the architecture.
    out : path-like, optional
        Folder of the finished dictionary, its snapshots, and checkpoints.
    init_from : Dictionary or path-like, optional
        Go on from the weights of this dictionary.
    snapshots : sequence of float
        Fractions of the tokens after which the dictionary as it is then is kept, in ``out/snapshots``.
    """

    architecture: str = "topk"
    n_features: int = 4096
    k: int = 32
    n_tokens: int = 5_000_000
    random_state: int = 0
    training: Training | None = None
    out: str | os.PathLike | None = None
    init_from: Dictionary | str | os.PathLike | None = None
    snapshots: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.architecture not in LEARNERS:
            raise InvalidInput(f"architecture {self.architecture!r} is unknown; use one of {', '.join(LEARNERS)}")
        for name in ("n_features", "k", "n_tokens", "random_state"):
            try:
                object.__setattr__(self, name, operator.index(getattr(self, name)))
            except TypeError:
                raise InvalidInput(f"{name} must be a whole number, got {getattr(self, name)!r}") from None
        if not 1 <= self.k <= self.n_features or self.n_tokens < 1:
            raise InvalidInput(
                f"n_features is {self.n_features}, k {self.k}, n_tokens {self.n_tokens}; expected "
                "1 <= k <= n_features and n_tokens >= 1"
            )
        wanted = LEARNERS[self.architecture].options
        if self.training is not None and type(self.training) is not wanted:
            raise InvalidInput(
                f"training: architecture {self.architecture!r} takes options of class {wanted.__name__}, got "
                f"{type(self.training).__name__}"
            )
        object.__setattr__(self, "snapshots", tuple(float(share) for share in self.snapshots))
        if any(not 0 < share <= 1 for share in self.snapshots):
            raise InvalidInput(f"snapshots are fractions of the tokens above 0, at most 1; got {list(self.snapshots)}")
        if self.snapshots and self.out is None:
            raise InvalidInput("snapshots need a folder: give out")
        if self.out is not None and Path(self.out).exists() and not Path(self.out).is_dir():
            raise InvalidInput(f"{self.out} is a file; give the folder that the dictionary shall be written to")


def train_dictionary(
    store: ActivationStore,
    architecture: str = "topk",
    n_features: int = 4096,
    k: int = 32,
    n_tokens: int = 5_000_000,
    random_state: int = 0,
    *,
    order: int = 0,
    verbose: int = 1,
    **plan: Any,
) -> SAE:
    """Train a dictionary.

    With `out`, a training that is interrupted at any moment goes on from its last
    checkpoint when the same call is made again, and ends with the same files, byte for
    byte, as one that was never interrupted; when it is finished the call only loads it.

    Parameters
    ----------
    store : ActivationStore
    architecture : {"topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"}
    n_features, k, n_tokens, random_state
        See `Plan`.
    order : int, default=0
        Seed of the order of the data, independent of that of the weights.
    verbose : int, default=1
    **plan
        ``training``, ``out``, ``init_from``, ``snapshots``: see `Plan`.

    Returns
    -------
    SAE
        It takes raw activations. Also saved in `out`.

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the store contains NaN or infinite values.
    DataMismatch
        If `out` holds another training, or `init_from` does not fit.
    """
    plans = Plan(
        architecture=architecture,
        n_features=n_features,
        k=k,
        n_tokens=n_tokens,
        random_state=random_state,
        **plan,
    )
    return train_dictionaries(store, [plans], order=order, verbose=verbose)[0]


def train_dictionaries(store: ActivationStore, plans: Sequence[Plan], *, order: int = 0, verbose: int = 1) -> list[SAE]:
    """Train several dictionaries in one pass over the data.

    Each becomes what `train_dictionary` would have made of it alone, bit for bit.

    Parameters
    ----------
    store : ActivationStore
    plans : sequence of Plan
        Seeds, widths and architectures at will; the batch size must be one for all.
    order : int, default=0
    verbose : int, default=1

    Returns
    -------
    list of SAE

    Raises
    ------
    InvalidInput, DataMismatch
        See `train_dictionary`.
    """
    folders = [Path(plan.out).resolve() for plan in plans if plan.out is not None]
    if len(set(folders)) < len(folders):
        raise InvalidInput("two of the dictionaries have the same out; give each a folder of its own")
    group = Group()
    return train_runs(store, [Run(store, plan, order, group) for plan in plans], verbose=verbose)


def train_runs(store: ActivationStore, runs: Sequence[Run], *, verbose: int = 1) -> list[SAE]:
    """Take runs of one order and group to their ends in one pass over the data.

    Raises
    ------
    InvalidInput
        If their batch sizes differ, the store contains NaN or infinite values, or a training diverges.
    """
    sizes = {run.training.batch_size for run in runs}
    if len(sizes) > 1:
        raise InvalidInput(f"dictionaries trained in one pass share their batches; batch_size is {sorted(sizes)}")
    unfinished = [run for run in runs if run.result is None]
    if unfinished:
        unfinished[0].group.check(sizes.pop())
        _Pass(store, unfinished).go(verbose)
    return [run.finish(store) for run in runs]


class Run:
    """One dictionary on its way: learner, normalisation, counters, files.

    Parameters
    ----------
    store : ActivationStore
    plan : Plan
    order : int
        Seed of the order of the data.
    group : Group
    """

    def __init__(self, store: ActivationStore, plan: Plan, order: int, group: Group) -> None:
        self.plan, self.order, self.group = plan, order, group
        kind = LEARNERS[plan.architecture]
        self.training = (plan.training or kind.options()).resolve(store.d, plan.n_features, plan.n_tokens)
        origin = plan.init_from
        if origin is not None and not isinstance(origin, Dictionary):
            origin = load_dictionary(origin)
        self.description = {
            "architecture": plan.architecture,
            "n_features": plan.n_features,
            "k": plan.k,
            "n_tokens": plan.n_tokens,
            "random_state": plan.random_state,
            "order": order,
            "store_sha256": store.sha256,
            "training": {key: v for key, v in self.training.to_dict().items() if key not in NOT_PART_OF_RESULT},
            **({} if origin is None else {"init_from": origin.fingerprint}),
            **({"snapshots": list(plan.snapshots)} if plan.snapshots else {}),
            **self._described(),
        }
        self.folder = None if plan.out is None else Path(plan.out)
        asked = plan.training or kind.options()
        automatic = [name for name in ("precision", "device") if getattr(asked, name) == "auto"]
        self.result = None if self.folder is None else _finished(self.folder, self.description, automatic)
        if self.result is not None:
            return
        self.checkpoint = None if self.folder is None else Checkpoint(self.folder, self.description)
        self.at: dict[str, Any] = {"tokens": 0, "step": 0, "history": []}
        self.norm = start.normalisation(store, self.training.normalisation)
        self.learner = self._new_learner(store.d)
        self.saved = self._load()
        if not self.saved:
            bias = start.initial_bias(store, self.norm, self.training.bias_init)
            self.learner.parameters["b_dec"].copy_(bias)
            if origin is not None:
                if not isinstance(origin, SAE):
                    raise DataMismatch(f"init_from: {origin} is not a sparse autoencoder; only these are trained")
                start.continue_from(self.learner, origin, self.norm)
        self.norm = self.norm.to(self.training.device)
        self.fresh = not self.saved and origin is None

    def _described(self) -> dict[str, Any]:
        """What the result depends on beside the plan."""
        return {}

    def _new_learner(self, d: int) -> Learner:
        plan = self.plan
        kind = LEARNERS[plan.architecture]
        return kind(d, plan.n_features, plan.k, self.training, plan.random_state, self.group)

    def _load(self) -> bool:
        if self.checkpoint is None:
            return False
        if self.group.rank == 0:
            self.checkpoint.sweep()
        self.group.barrier()
        found = self.checkpoint.load(dict(self.learner.state()))
        self.at.update(found or {})
        self.learner.refresh()
        return found is not None

    def save(self) -> None:
        """Write a checkpoint."""
        self._refuse_divergence()
        if self.checkpoint is not None and self.group.rank == 0:
            self.checkpoint.save(self.at, dict(self.learner.state()))
        self.group.barrier()

    def learn(self, batch: torch.Tensor) -> str:
        """One step; what to show, when it is time to show something."""
        at, total = self.at, self.plan.n_tokens
        batch = batch[: total - at["tokens"]]
        x = self.norm.apply(batch.to(self.training.device, torch.float32, non_blocking=True))
        if at["step"] == 0:
            self.learner.start(x)
            if self.fresh:
                self.learner.calibrate(x)
            else:
                self.learner.adopt(x)
        before = at["tokens"]
        self.learner.step(self.group.share(x), before / total)
        at["tokens"] += len(batch)
        at["step"] += 1
        for share in self.plan.snapshots:
            if before < share * total <= at["tokens"]:
                self._snapshot()
        note = self._log()
        if self.checkpoint is not None and at["step"] % self.training.checkpoint_every == 0:
            self.save()
        return note

    def _log(self) -> str:
        at = self.at
        due = at["step"] % self.training.log_every == 0 or at["step"] in EARLY
        if not due and at["tokens"] < self.plan.n_tokens:
            return ""
        self._refuse_divergence()
        entry = {"tokens": at["tokens"], **self.learner.read_window()}
        at["history"].append(entry)
        ev = "" if entry["explained_variance"] is None else f"EV {entry['explained_variance']:.4f}  "
        return f"{ev}loss {entry['loss']:.4f}  L0 {entry['l0']:.1f}  dead {entry['dead']}"

    def _refuse_divergence(self) -> None:
        """Stop before numbers that are none replace the last good checkpoint."""
        if self.learner.diverged():
            raise InvalidInput(
                f"training of {self.plan.architecture} ({self.plan.n_features} features) diverged: by step "
                f"{self.at['step']} its loss is not a finite number; choose a learning_rate below "
                f"{self.training.learning_rate:g}"
            )

    def _snapshot(self) -> None:
        if self.group.rank == 0:
            self._dictionary().save(self.folder / SNAPSHOTS / f"tokens-{self.at['tokens']:015d}")
        self.group.barrier()

    def _dictionary(self) -> SAE:
        learner = self.learner
        sae = learner.dictionary(
            self.site,
            learner.weights(),
            **learner.dictionary_options(),
            normalisation=self.norm.to("cpu"),
            **self.model,
        ).fold()
        if not sae.competitive:
            sae = sae.unit_decoder()
        sae.provenance = {
            "made_by": f"neurollm {__version__}, torch {torch.__version__}",
            "run": self.description,
            "tokens": self.at["tokens"],
            "normalisation": {"kind": self.training.normalisation, "folded": self.norm.foldable},
            "history": self.at["history"],
        }
        return sae

    def describe_store(self, store: ActivationStore) -> None:
        """Remember what the finished dictionary says of its data."""
        self.site = store.site
        model = store.manifest.get("model", {})
        self.model = {"model_name": model.get("name", ""), "model_fingerprint": store.model_fingerprint}

    def finish(self, store: ActivationStore) -> SAE:
        """The finished dictionary, saved."""
        if self.result is None:
            sae = self._dictionary()
            epochs = self.plan.n_tokens / store.n_rows
            sae.provenance |= {
                "store_rows": store.n_rows,
                "epochs": round(epochs, 4),
                "data": "every token at most once" if epochs <= 1 else f"every token about {epochs:.1f} times",
                "context": store.manifest.get("settings", {}).get("context"),
            }
            if self.folder is not None and self.group.rank == 0:
                self._write(sae)
                self.checkpoint.clear()
            self.group.barrier()
            self.result = sae
        return self.result

    def _write(self, sae: SAE) -> None:
        """Save what was learned; the dictionary last, because with it the training counts as finished."""
        sae.save(self.folder)


class _Pass:
    """Batches of the store, given to every run that still needs them."""

    def __init__(self, store: ActivationStore, runs: list[Run]) -> None:
        self.store, self.runs = store, runs
        self.order, self.group = runs[0].order, runs[0].group
        for run in runs:
            run.describe_store(store)

    def go(self, verbose: int) -> None:
        """Train all to their ends. Runs that were interrupted at different places wait for the others."""
        runs, total = self.runs, max(run.plan.n_tokens for run in self.runs)
        position = min((run.at["tokens"] for run in runs if run.at["tokens"] < run.plan.n_tokens), default=total)
        what = "train dictionary" if len(runs) == 1 else f"train {len(runs)} dictionaries"
        shown = verbose if self.group.rank == 0 else 0
        with threads(), Progress(what, total, "tokens", shown) as progress:
            progress.skip(position)
            for batch in self._batches(position, total):
                notes = []
                for run in runs:
                    if run.at["tokens"] == position and position < run.plan.n_tokens:
                        notes.append(run.learn(batch))
                progress.advance(min(len(batch), total - position), next(filter(None, notes), ""))
                position += len(batch)
        for run in runs:  # so that a kill while the result is written loses nothing
            run.save()

    def _batches(self, position: int, total: int) -> Iterator[torch.Tensor]:
        """Epoch after epoch from where the counters stand."""
        size = self.runs[0].training.batch_size
        epoch, offset = divmod(position, self.store.n_rows)
        first = offset // size
        while position < total:
            for batch in self.store.batches(size, random_state=self.order, epoch=epoch, start_batch=first):
                if not torch.isfinite(batch.sum()):  # on the CPU, before anything waits for a device
                    self._refuse(batch)
                yield batch
                position += len(batch)
                if position >= total:
                    return
            epoch, first = epoch + 1, 0

    def _refuse(self, batch: torch.Tensor) -> None:
        if torch.isfinite(batch).all():
            return  # a sum of large numbers
        advice = "delete it and run harvest again to restore it"
        for index, shard in enumerate(self.store.shards):
            if not torch.isfinite(torch.as_tensor(self.store.shard(index)["acts"]).float()).all():
                name = shard.get("file", index)
                raise InvalidInput(f"activation store: shard {name} contains NaN or infinite values; {advice}")
        raise InvalidInput("activation store: a batch contains NaN or infinite values")


def _finished(folder: Path, run: dict[str, Any], automatic: list[str]) -> Dictionary | None:
    """The dictionary of this very run if the folder already holds it, whatever the `automatic` options were there."""
    side = folder / SIDE_FILE
    if not side.is_file():
        if (folder / CONFIG_FILE).is_file() and not (folder / POINTER).is_file():
            raise DataMismatch(f"{folder} holds a dictionary that was not trained here; choose another folder")
        return None
    try:
        found = json.loads(side.read_text(encoding="utf-8"))["provenance"]["run"]
    except (ValueError, KeyError, TypeError):
        found = {"architecture": "unknown"}
    there = found.get("training", {})
    same = {**run, "training": run["training"] | {name: there[name] for name in automatic if name in there}}
    refuse_other_run(found, same, side)
    dictionary = load_dictionary(folder)
    checkpoint = Checkpoint(folder, run)
    checkpoint.sweep()
    checkpoint.clear()
    return dictionary


def trajectory(folder: str | os.PathLike) -> dict[int, Dictionary]:
    """The snapshots of a training: tokens seen → the dictionary as it was then.

    Parameters
    ----------
    folder : path-like
        The `out` of the training.
    """
    found = sorted((Path(folder) / SNAPSHOTS).glob("tokens-*"))
    return {int(path.name.removeprefix("tokens-")): load_dictionary(path) for path in found}
