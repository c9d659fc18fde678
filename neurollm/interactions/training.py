"""Training interaction models from a store, as fast as it is read.

Stages, each on documents of its own kind: tokens to *fit*, and *validation* tokens of
other documents, by which penalties and the moment to stop are chosen.

1. The decoder is refit in closed form (`neurollm.interactions.refit`): what is left has no
   linear relation to the code that ridge regression could find.
2. Columns φ of the code (`neurollm.interactions.expansions`) and a read-out A learn to predict what is left,
   by Adam (Kingma and Ba, 2015) on the mean squared error. A begins at zero, that is at the refit.
   Embeddings are learned row by row, only where features are active. The state with the smallest error
   on the validation tokens is kept, the one before the first step included.
3. Refit and read-out are solved together in closed form, φ as it is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.adam import adam

from neurollm._version import __version__
from neurollm.activations.reader import read_ahead
from neurollm.dictionaries.kernels import one_thread_less
from neurollm.dictionaries.training.checkpoints import Checkpoint, refuse_other_run
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import exclusive
from neurollm.interactions.expansions import EMBEDDING_SCALE, ActiveCode, Expansion
from neurollm.interactions.model import CONFIG_FILE, NFM
from neurollm.interactions.refit import Refit, Solution
from neurollm.interactions.rows import CodedBatch, CodedRows, coded
from neurollm.models import has_fast_bfloat16
from neurollm.progress import Progress
from neurollm.random import stream

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore
    from neurollm.dictionaries import Dictionary

SHORTEST = 1e-30
SMALLEST = float(np.finfo(float).tiny)  # of sums of squares that are divided by
AHEAD = 16  # batches read ahead at most: as many as are learned while the reader fills its next buffer
AHEAD_BYTES = 2**28
FEWEST_STEPS = 1000
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
ADAM |= {"amsgrad": False, "maximize": False, "fused": True}


@dataclass(frozen=True, kw_only=True)
class InteractionTraining:
    """Options of the training of interactions.

    Parameters
    ----------
    learning_rate : float, default=1e-2
    batch_size : int, default=1024
        Tokens per step.
    warmup, decay : float
        Fractions of the tokens over which the learning rate rises from 0 at the start, and falls to 0 at the end.
    evaluations : int, default=10
        How often the validation error is looked at; the best state is kept.
    validation : float, default=0.1
        Share of the documents by which penalties and the best state are chosen.
    precision : {"auto", "bfloat16", "float32"}
        Of the products with read-out and hidden layer; sums over features are float32. ``"auto"``: bfloat16 where the
        processor multiplies it faster.
    device : str, default="auto"
    """

    learning_rate: float = 1e-2
    batch_size: int = 1024
    warmup: float = 0.05
    decay: float = 0.5
    evaluations: int = 10
    validation: float = 0.1
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup", "decay", "validation"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), Real):
                raise InvalidInput(f"training: {name} must be a number, got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < np.inf:
            raise InvalidInput(f"training: learning_rate must be above 0 and finite, got {self.learning_rate!r}")
        check_counts(where="training: ", batch_size=self.batch_size, evaluations=self.evaluations)
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"training: {name} is a share from 0 to 1, got {getattr(self, name)!r}")
        if not 0 < self.validation < 1:
            raise InvalidInput(f"training: validation is a share above 0 and below 1, got {self.validation!r}")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise InvalidInput(f"training: precision {self.precision!r}; use auto, bfloat16 or float32")

    def resolve(self) -> InteractionTraining:
        """The same with every default worked out."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidInput(f"training: device {device!r} cannot be used here: {reason}") from None
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
        return dataclasses.replace(self, device=str(device), precision=precision)

    def rate(self, progress: float) -> float:
        """Learning rate when a fraction `progress` of the tokens has been seen."""
        rise = min(1.0, (progress + 1e-3) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (1 - progress) / self.decay) if self.decay else 1.0
        return self.learning_rate * rise * fall


class Learner:
    """Learns an expansion and its read-out to predict the errors of some tokens.

    Parameters
    ----------
    expansion : Expansion
    fit, validation : CodedRows
        Their errors are what shall be predicted.
    training : InteractionTraining
        Resolved.
    random_state : int
        Of the order of the tokens.
    """

    def __init__(
        self,
        expansion: Expansion,
        fit: CodedRows,
        validation: CodedRows,
        training: InteractionTraining,
        random_state: int = 0,
    ) -> None:
        self.expansion, self.training, self.random_state = expansion, training, random_state
        self.fit, self.validation = fit, validation
        self.readout = torch.zeros(expansion.n_columns, fit.d, device=training.device)
        first = next(iter(fit.in_order(16_384))).error
        self.scale = max(float(first.double().square().mean().sqrt()), SHORTEST)  # targets have about unit variance
        if not np.isfinite(self.scale):
            raise InvalidInput("errors of the tokens to fit contain NaN or infinite values")
        learned = self._learned()
        self.moments = {name: torch.zeros(2, *weight.shape, device=weight.device) for name, weight in learned.items()}
        self._tables = {name: [weight, *self.moments[name]] for name, weight in learned.items()}
        self.best = {name: weight.clone() for name, weight in learned.items()}
        self.counters: dict[str, Any] = {"tokens": 0, "step": 0, "best": None, "history": []}

    def _learned(self) -> dict[str, torch.Tensor]:
        return {"readout": self.readout, "V": self.expansion.embeddings, **self.expansion.weights}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes."""
        found = {**self._learned(), **{f"best.{name}": tensor for name, tensor in self.best.items()}}
        return found | {f"{name}.moments": moments for name, moments in self.moments.items()}

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[CodedBatch, ActiveCode]]:
        """The tokens to fit in random order, read and sorted by feature in a thread of its own."""

        def read() -> Iterator[tuple[CodedBatch, ActiveCode]]:
            torch.set_num_threads(1)  # of this thread, and of those that begin later; `one_thread_less` undoes that
            order = (self.training.batch_size, self.random_state, epoch, start_batch)
            for batch in self.fit.batches(*order, prefetch=False):
                yield batch, self.expansion.active(batch.pairing)

        row_bytes = 8 * self.fit.d + 40 * self.expansion.top_n  # of activations and errors, and of the code
        return read_ahead(read(), max(2, min(AHEAD, AHEAD_BYTES // (row_bytes * self.training.batch_size))))

    def step(self, batch: CodedBatch, code: ActiveCode, n_tokens: int) -> None:
        """Learn from a batch and its code as the expansion takes it."""
        expansion = self.expansion
        rows = [part.index_select(0, code.present) for part in self._tables["V"]]
        sums = expansion.sums(code, rows[0])
        upstream, *gradients = self._gradients(sums[-1], batch.error.to(self.readout.device))
        gradients.append(expansion.embedding_gradient(code, sums, upstream, rows[0]))
        dense = [table for name, table in self._tables.items() if name != "V"]
        self._adam([*dense, rows], gradients, self.training.rate(self.counters["tokens"] / n_tokens))
        for part, changed in zip(self._tables["V"], rows, strict=True):
            part.index_copy_(0, code.present, changed)
        self.counters["tokens"] += len(batch.rows)
        self.counters["step"] += 1

    def _adam(self, learned: list[list[torch.Tensor]], gradients: list[torch.Tensor], rate: float) -> None:
        """A step of Adam, given weights with their moments; those of features that do not occur stay as they are."""
        weights, first, second = map(list, zip(*learned, strict=True))
        steps = [torch.full((), float(self.counters["step"]), device=weight.device) for weight in weights]
        adam(weights, gradients, first, second, [], steps, lr=rate, **ADAM)

    def _gradients(self, inputs: torch.Tensor, error: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of mean((φ·A − error / scale)²): of S or B, of the read-out A, and of the hidden layer."""
        weights = {name: weight.detach().requires_grad_() for name, weight in self.expansion.weights.items()}
        low = self.training.precision == "bfloat16"
        with torch.enable_grad(), torch.autocast(error.device.type, torch.bfloat16, enabled=low and bool(weights)):
            phi = self.expansion.of_sums(inputs.requires_grad_(bool(weights)), weights)
        columns, readout = phi.detach(), self.readout
        if low:
            columns, readout, error = columns.bfloat16(), readout.bfloat16(), error.bfloat16()
        factor = 2 / error.numel()
        found = _readout_gradients(columns, readout, error, {"beta": -factor / self.scale, "alpha": factor})
        d_phi, d_readout = found[0].to(phi.dtype), found[1].float()
        if not weights:
            return [d_phi, d_readout]
        d_inputs, *d_weights = torch.autograd.grad(phi, [inputs, *weights.values()], d_phi)
        return [d_inputs, d_readout, *d_weights]

    def evaluate(self) -> float:
        """Share of the validation tokens' errors that is explained; the best state is kept."""
        error = total = 0.0
        with torch.no_grad():
            for batch in self.validation.in_order():
                target = batch.error.to(self.readout.device) / self.scale
                predicted = self.expansion.columns(batch.pairing) @ self.readout
                error += float((target - predicted).double().square().sum())
                total += float(target.double().square().sum())
        if not np.isfinite(total):
            raise InvalidInput("errors of the validation tokens contain NaN or infinite values")
        if not np.isfinite(error):
            raise InvalidInput(
                f"training of interactions diverged by step {self.counters['step']}; choose a learning_rate below "
                f"{self.training.learning_rate:g}"
            )
        share = 1 - error / max(total, SMALLEST)
        if self.counters["best"] is None or share > self.counters["best"]:
            self.counters["best"] = share
            for name, tensor in self._learned().items():
                self.best[name].copy_(tensor)
        self.counters["history"].append({"tokens": self.counters["tokens"], "explained": share})
        return share

    def finish(self) -> Expansion:
        """The expansion in its best state."""
        for name, tensor in self._learned().items():
            tensor.copy_(self.best[name])
        return self.expansion


def _readout_gradients(
    phi: torch.Tensor, readout: torch.Tensor, error: torch.Tensor, factors: dict[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(α φA + β e)Aᵀ and φᵀ(α φA + β e).

    Few columns are multiplied with each other first, which is less work, but subtracts products that bfloat16 rounds.
    """
    if 2 * len(readout) >= readout.shape[1] or phi.dtype != torch.float32:
        left = torch.addmm(error, phi, readout, **factors)
        return left @ readout.T, phi.T @ left
    return (
        (error @ readout.T).addmm_(phi, readout @ readout.T, **factors),
        (phi.T @ error).addmm_(phi.T @ phi, readout, **factors),
    )


def learn(learner: Learner, n_tokens: int, checkpoint: Checkpoint | None = None, verbose: int = 0) -> Expansion:
    """Run a learner to its end; with a checkpoint, from where an interrupted run was."""
    training, rows, counters = learner.training, learner.fit, learner.counters
    if checkpoint is not None:
        checkpoint.sweep()
        counters.update(checkpoint.load(learner.state()) or {})
    every = max(1, -(-n_tokens // training.evaluations))
    with one_thread_less(), Progress("train interactions", n_tokens, "tokens", verbose) as progress:
        progress.skip(counters["tokens"])
        if counters["best"] is None:
            learner.evaluate()
        while counters["tokens"] < n_tokens:
            epoch, offset = divmod(counters["tokens"], rows.n_rows)
            for batch, code in learner.batches(epoch, offset // training.batch_size):
                before = counters["tokens"]
                learner.step(batch, code, n_tokens)
                note = ""
                if before // every != counters["tokens"] // every or counters["tokens"] >= n_tokens:
                    note = f"explained {learner.evaluate():+.4f}"
                    if checkpoint is not None:
                        checkpoint.save(counters, learner.state())
                progress.advance(len(batch.rows), note)
                if counters["tokens"] >= n_tokens:
                    break
    return learner.finish()


def train_nfm(
    store: ActivationStore | CodedRows,
    dictionary: Dictionary | None = None,
    *,
    rank: int = 64,
    readout: str = "linear",
    refit: bool = True,
    top_n: int | None = None,
    n_tokens: int | None = None,
    random_state: int = 0,
    training: InteractionTraining | None = None,
    out: str | os.PathLike | None = None,
    verbose: int = 1,
) -> NFM:
    """Train an interaction model on the errors of a dictionary.

    With `out`, a training that is interrupted goes on from its last evaluation when the same call is made again, and
    ends with the same model, bit for bit; when it is finished the call only loads it.

    Parameters
    ----------
    store : ActivationStore or CodedRows
    dictionary : Dictionary, optional
        Needed with a store.
    rank : int, default=64
        K, dimensions of an embedding (and units of the hidden layer of read-out "mlp").
    readout : {"linear", "mlp"}
    refit : bool, default=True
        Refit the dictionary's decoder too. Without it main effects that the decoder misses may pass for interactions.
    top_n : int, optional
        Entries of a code that count. Default: all of the largest code.
    n_tokens : int, optional
        Default: four times those to fit, and at least `FEWEST_STEPS` batches.
    random_state : int, default=0
        Of the embeddings, the order of the tokens and the choice of validation documents.
    training : InteractionTraining, optional
    out : path-like, optional
    verbose : int, default=1

    Returns
    -------
    NFM
        ``provenance`` says how it was made, what share of the validation tokens' errors it explains
        (``explained_validation``), what a refit alone explains (``explained_refit``), and which documents these
        tokens are of. They chose penalties and the moment to stop: for a fair share take documents of their own.

    Raises
    ------
    InvalidInput
        If an argument is out of range, or there are fewer than two documents.
    DataMismatch
        If store and dictionary do not belong together, or `out` holds another training.
    """
    if readout not in ("linear", "mlp"):
        raise InvalidInput(f"readout is {readout!r}; use linear or mlp")
    check_counts(rank=rank, n_tokens=1 if n_tokens is None else n_tokens)
    check_counts(2, top_n=2 if top_n is None else top_n)
    check_counts(0, random_state=random_state)
    rows = coded(store, dictionary, verbose=verbose)
    options = resolved(training)
    parts = split_documents(rows, options.validation, random_state)
    fit, validation = (part.with_errors(lambda batch: batch.error) for part in parts)  # computed once
    n_tokens = n_tokens or default_tokens(fit, options)
    run = {
        "rows": rows.sha256,
        "rank": int(rank),
        "readout": readout,
        "refit": refit,
        "top_n": None if top_n is None else int(top_n),
        "n_tokens": int(n_tokens),
        "random_state": int(random_state),
        "training": dataclasses.asdict(options),
    }
    if out is None:
        return _train(fit, validation, run, options, None, verbose)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        nfm = _finished(folder, run)
        if nfm is None:
            checkpoint = Checkpoint(folder, run)
            nfm = _train(fit, validation, run, options, checkpoint, verbose)
            nfm.save(folder)
            checkpoint.clear()
    return nfm


def _train(
    fit: CodedRows,
    validation: CodedRows,
    run: dict[str, Any],
    options: InteractionTraining,
    checkpoint: Checkpoint | None,
    verbose: int,
) -> NFM:
    """The three stages of the module's introduction."""
    top_n = run["top_n"] or max(largest_code(fit), largest_code(validation))
    ridge = Refit(fit, validation) if run["refit"] else None
    targets = [fit, validation] if ridge is None else [left_by(part, ridge.linear) for part in (fit, validation)]
    kind = "pairs" if run["readout"] == "linear" else "pairs_mlp"
    sizes = (fit.n_features, run["rank"], run["rank"])
    expansion = Expansion(kind, sizes, top_n, code_length(fit), run["random_state"], options.device)
    learner = Learner(expansion, *targets, options, run["random_state"])
    expansion = learn(learner, run["n_tokens"], checkpoint, verbose)
    solution = None if ridge is None else ridge.with_columns(expansion.columns)
    nfm = _assemble(learner, solution, fit)
    seen = np.union1d(fit.documents, validation.documents).tolist()
    nfm.provenance |= {"documents": {"of": fit.origin, "ids": seen}}
    nfm.provenance |= {"run": run, **_quality(nfm, ridge, validation), "history": learner.counters["history"]}
    return nfm


def resolved(training: InteractionTraining | None) -> InteractionTraining:
    """Options with every default worked out; InvalidInput if they are something else."""
    if training is not None and not isinstance(training, InteractionTraining):
        raise InvalidInput(f"training takes an InteractionTraining, got a {type(training).__name__}")
    return (training or InteractionTraining()).resolve()


def check_counts(least: int = 1, where: str = "", **counts: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    for name, value in counts.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not (whole and value >= least):
            raise InvalidInput(f"{where}{name} must be a whole number of at least {least}, got {value!r}")


def default_tokens(fit: CodedRows, training: InteractionTraining) -> int:
    """Length of a training when none is given."""
    return max(4 * fit.n_rows, FEWEST_STEPS * training.batch_size)


def split_documents(rows: CodedRows, share: float, random_state: int) -> tuple[CodedRows, CodedRows]:
    """Rows of most documents, and of a random `share` of them (at least one, and not all).

    Raises
    ------
    InvalidInput
        If there are fewer than two documents.
    """
    documents = np.unique(rows.documents)
    if len(documents) < 2:
        raise InvalidInput(
            "training needs at least two documents, one to choose penalties by; the store holds one (split long texts)"
        )
    order = stream(random_state, "validation.documents").permutation(documents)
    number = min(max(1, round(share * len(documents))), len(documents) - 1)
    chosen = np.isin(rows.documents, order[:number])
    return rows.subset(~chosen), rows.subset(chosen)


def left_by(rows: CodedRows, solution: Solution) -> CodedRows:
    """The rows with what a refit explains taken off their errors."""
    return rows.with_errors(lambda batch: batch.error - torch.from_numpy(np.float32(solution.predict(batch))))


def largest_code(rows: CodedRows) -> int:
    """Entries of the largest code, at least 2."""
    return max(2, *(int(np.diff(batch.code.indptr).max()) for batch in rows.in_order()))


def code_length(rows: CodedRows) -> float:
    """Root mean square over tokens of the Euclidean length of a code."""
    total = sum(float(np.square(batch.code.data, dtype=np.float64).sum()) for batch in rows.in_order())
    if not total > 0:
        raise InvalidInput("no feature is active on any token to fit")
    return float(np.sqrt(total / rows.n_rows))


def _assemble(learner: Learner, solution: Solution | None, rows: CodedRows) -> NFM:
    """The model that takes codes as they are, of an expansion of codes divided by their length."""
    expansion, K = learner.expansion, learner.expansion.rank
    read = (learner.readout * learner.scale).cpu() if solution is None else torch.from_numpy(solution.A)
    weights = {"V": expansion.embeddings.cpu() / expansion.code_length, "A": read[:K]}
    if expansion.kind == "pairs_mlp":
        weights |= {name: weight.cpu() for name, weight in expansion.weights.items()} | {"W2": read[K:]}
    if solution is not None:
        weights |= {"W": torch.from_numpy(solution.W), "b": torch.from_numpy(solution.b)}
    nfm = NFM(weights, expansion.top_n, "" if rows.dictionary is None else rows.dictionary.fingerprint)
    nfm.provenance = {
        "made_by": f"neurollm {__version__}, torch {torch.__version__}",
        "embedding_scale": EMBEDDING_SCALE / expansion.code_length,
        "tokens": learner.counters["tokens"],
        **({} if solution is None else {"penalty": solution.penalty, "column_penalty": solution.column_penalty}),
    }
    return nfm


def _quality(nfm: NFM, ridge: Refit | None, validation: CodedRows) -> dict[str, Any]:
    """Shares of the validation tokens' errors that the whole model and a refit alone explain."""
    sums = np.zeros(3)
    for batch in validation.in_order():
        predicted = nfm.linear(batch.code) + nfm.interaction(nfm.interactions(batch.pairing))
        left = [batch.error, batch.error - predicted]
        left.append(batch.error if ridge is None else batch.error - torch.from_numpy(ridge.linear.predict(batch)))
        sums += [float(part.double().square().sum()) for part in left]
    share = 1 - sums[1:] / max(sums[0], SMALLEST)
    return {
        "explained_validation": float(share[0]),
        **({} if ridge is None else {"explained_refit": float(share[1])}),
        "validation_documents": np.unique(validation.documents).tolist(),
    }


def _finished(folder: Path, run: dict[str, Any]) -> NFM | None:
    """The model of this very run, if the folder already holds it."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    nfm = NFM.load(folder)
    found = nfm.provenance.get("run")
    if not isinstance(found, dict):
        raise DataMismatch(f"{folder} holds an interaction model that was not trained here; choose another folder")
    refuse_other_run(found, run, folder / CONFIG_FILE)
    Checkpoint(folder, run).clear()
    return nfm
