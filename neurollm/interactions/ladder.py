"""The ladder: what of a dictionary's error a bias, a refit decoder, pairs of features, and more explain.

Nested models of the error e = x − x̂ of a dictionary with code s, each fitted on some
documents, with penalties and the moment to stop chosen on others, and judged on documents that took no part:

    M0   ŷ = 0                                   the dictionary
    M1   ŷ = b                                   over M0: a bias
    M2   ŷ = s·W + b                             over M1: a decoder refit (ridge)
    M3   ŷ = s·W + b + B·A                       over M2: pairs of features
    M4   ŷ = s·W + b + B·A + MLP(B)              over M3: a non-linear read-out of pairs
    M5   ŷ = s·W + b + MLP(s)                    over M2: any order, and non-linear main effects; as many weights as M4

B is that of `neurollm.interactions.model`. In M3 to M5 the refit is solved together with the
read-outs (`neurollm.interactions.refit`), so that ΔR² of M3 is what pairs explain and no linear map of the code does.

R² = 1 − Σ‖e − ŷ‖² / Σ‖x − m‖² over held-out tokens, m the mean of the fitted ones. ΔR² is the gain over the step
before. Controls, trained like the real thing on as many tokens:

    shuffled       the codes of other documents at the same positions: a gain is the training's optimism
    gaussian       errors drawn as M2 + Gaussian noise of the covariance that M2 leaves: truth is zero
    frozen         M3 with the embeddings that training begins with: random pairs, read out optimally
    additive       M2 and M3 with curves of single features, [s_i ≠ 0] and s_i², beside each s_i: pairs of features
                   that are active together can stand in for such curves, which a linear decoder lacks
    residual_sae   a TopK SAE that *sees* the error it reconstructs (no null, an upper reference), with
                   as many features as the dictionary; with as many weights as M4; and untrained

Seeds. Seed j draws weights and order, and without `held_out` its documents are fold j of all: each document is
held out once. The interval of a seed is a studentised bootstrap over documents. That over all J seeds is
mean ± t(J − 1) se with se² = (document variance of the mean) + S²·c, S the SD over seeds; c = 1/(J − 1) with
folds, which share what they are fitted on (Nadeau & Bengio 2003, Machine Learning 52:239), and 1/J with `held_out`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries.training.checkpoints import Checkpoint, refuse_other_run
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.interactions.expansions import Expansion
from neurollm.interactions.ladder_result import CONTROLS, OVER, STEPS, LadderResult, SeedErrors, read_record
from neurollm.interactions.refit import Columns, Refit, Solution
from neurollm.interactions.rows import CodedBatch, CodedRows, coded
from neurollm.interactions.training import (
    InteractionTraining,
    Learner,
    check_counts,
    code_length,
    default_tokens,
    largest_code,
    learn,
    left_by,
    split_documents,
)
from neurollm.progress import Progress
from neurollm.random import stream

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore
    from neurollm.dictionaries import Dictionary

RECORD = "ladder-run.json"
EXPANSIONS = {"M3": "pairs", "M4": "pairs_mlp", "M5": "code_mlp"}
Predict = Callable[[CodedBatch], np.ndarray]


def residual_ladder(
    store: ActivationStore | CodedRows,
    dictionary: Dictionary | None = None,
    *,
    steps: Sequence[str] = STEPS,
    seeds: int = 5,
    controls: Sequence[str] = ("shuffled", "gaussian", "frozen"),
    held_out: ActivationStore | CodedRows | None = None,
    rank: int = 64,
    top_n: int | None = None,
    n_tokens: int | None = None,
    training: InteractionTraining | None = None,
    n_boot: int = 2000,
    random_state: int = 0,
    out: str | os.PathLike | None = None,
    verbose: int = 1,
) -> LadderResult:
    """Explain the error of a dictionary step by step on held-out documents; see the module's introduction.

    Parameters
    ----------
    store : ActivationStore or CodedRows
    dictionary : Dictionary, optional
        Needed with a store.
    steps : sequence of {"M0", …, "M5"}
        A step brings the ones it is compared with.
    seeds : int, default=5
        At least 2.
    controls : sequence of {"shuffled", "gaussian", "frozen", "additive", "residual_sae"}
    held_out : ActivationStore or CodedRows, optional
        Documents to judge all seeds on. Default: each seed holds out a fold of the documents.
    rank : int, default=64
        K; also the hidden units of M4.
    top_n : int, optional
        Entries of a code that enter pairs. Default: all.
    n_tokens : int, optional
        For each learned step. Default: that of `train_nfm`.
    training : InteractionTraining, optional
    n_boot : int, default=2000
    random_state : int, default=0
    out : path-like, optional
        Folder in which everything finished is kept: an interrupted ladder goes on there.
    verbose : int, default=1

    Returns
    -------
    LadderResult

    Raises
    ------
    InvalidInput
        If an argument is unknown or out of range, or there are too few documents.
    DataMismatch
        If store, dictionary and held_out do not belong together, or `out` holds another ladder.

    Examples
    --------
    >>> from neurollm.interactions import simulate_codes
    >>> data = simulate_codes(4000, n_features=20, k=4, d=8, random_state=0)
    >>> ladder = residual_ladder(data.rows, steps=["M2"], seeds=2, controls=[], verbose=0)
    >>> ladder.to_frame()["step"].unique().tolist()
    ['M0', 'M1', 'M2']
    """
    steps = _wanted(steps)
    _check(controls, seeds, n_boot)
    check_counts(rank=rank, n_tokens=n_tokens)
    check_counts(2, top_n=top_n)
    rows = coded(store, dictionary, verbose=verbose)
    held = None if held_out is None else _held_out(held_out, rows, verbose)
    options = (training or InteractionTraining()).resolve()
    folds = _folds(rows, seeds, random_state) if held is None else None
    top_n = top_n or largest_code(rows)
    run = {
        "rows": rows.sha256,
        "held_out": None if held is None else held.sha256,
        "rank": rank,
        "top_n": top_n,
        "n_tokens": n_tokens,
        "random_state": random_state,
        "seeds": seeds,
        "training": dataclasses.asdict(options),
    }
    folder = None if out is None else _open(Path(out), run)
    names = _names(steps, controls)
    found, notes = [], []
    with Progress("ladder", seeds * len(names), "models", verbose) as progress:
        for seed in range(seeds):
            inside = rows if held is not None else rows.subset(folds != seed)
            test = held if held is not None else rows.subset(folds == seed)
            rung = _Seed(inside, test, seed, run, options, None if folder is None else folder / f"seed-{seed}")
            found.append(rung.errors(names, progress))
            notes += rung.notes
    return LadderResult(
        seeds=tuple(found),
        cross_fitted=held is None,
        n_boot=n_boot,
        random_state=random_state,
        description={**run, "dictionary": "" if rows.dictionary is None else repr(rows.dictionary)},
        notes=tuple(dict.fromkeys(notes)),
    )


def _wanted(steps: Sequence[str]) -> tuple[str, ...]:
    unknown = [step for step in steps if step not in STEPS]
    if unknown or isinstance(steps, str) or not steps:
        raise InvalidInput(f"steps: found {steps!r}; use some of {', '.join(STEPS)}")
    wanted = set(steps)
    for step in reversed(STEPS):
        if step in wanted and step in OVER:
            wanted.add(OVER[step])
    return tuple(step for step in STEPS if step in wanted)


def _check(controls: Sequence[str], seeds: int, n_boot: int) -> None:
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown or isinstance(controls, str):
        raise InvalidInput(f"controls: found {controls!r}; use some of {', '.join(CONTROLS)}")
    if seeds < 2:
        raise InvalidInput(f"seeds is {seeds}; a ladder needs at least 2, and 5 or more for an interval worth having")
    if n_boot < 100:
        raise InvalidInput(f"n_boot is {n_boot}; an interval needs at least 100 draws")


def _held_out(store: ActivationStore | CodedRows, rows: CodedRows, verbose: int) -> CodedRows:
    """The rows to judge on, of the same dictionary and of other documents than `rows`."""
    held = coded(store, None if isinstance(store, CodedRows) else rows.dictionary, verbose=verbose)
    known = [one.dictionary.fingerprint for one in (rows, held) if one.dictionary is not None]
    if (held.d, held.n_features) != (rows.d, rows.n_features) or len(set(known)) > 1:
        raise DataMismatch(
            f"held_out has codes of {held.n_features} features and width {held.d} of {held.dictionary or 'arrays'}, "
            f"the store {rows.n_features} and {rows.d} of {rows.dictionary or 'arrays'}; give rows of one dictionary"
        )
    if held.shares_documents(rows):
        raise InvalidInput("held_out holds the very texts of the store; harvest texts that the fit does not see")
    return held


def _folds(rows: CodedRows, seeds: int, random_state: int) -> np.ndarray:
    """Fold of each row; documents are whole."""
    documents, place = np.unique(rows.documents, return_inverse=True)
    if len(documents) < 2 * seeds:
        raise InvalidInput(
            f"{len(documents)} documents are too few for {seeds} seeds, each of which holds out documents of its own: "
            f"give at least {2 * seeds}, or held_out"
        )
    fold = np.empty(len(documents), np.int64)
    fold[stream(random_state, "ladder.folds").permutation(len(documents))] = np.arange(len(documents)) % seeds
    return fold[place]


def _open(folder: Path, run: dict[str, Any]) -> Path:
    """The folder of this ladder; DataMismatch if it is of another one."""
    record = folder / RECORD
    known = read_record(record)
    if known is not None:
        refuse_other_run(known, run, record)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, run)
    return folder


def _names(steps: Sequence[str], controls: Sequence[str]) -> list[str]:
    """All models of a seed, each after the one it is compared with."""
    learned = [step for step in steps if step in EXPANSIONS]
    names = list(steps)
    if "shuffled" in controls:
        names += [f"{step} shuffled" for step in steps if step in ("M2", *EXPANSIONS)]
    if "gaussian" in controls and learned:
        names += [f"{step} gaussian" for step in ("M2", *learned)]
    if "frozen" in controls and "M3" in steps:
        names.append("M3 frozen")
    if "additive" in controls and "M3" in steps:
        names += ["M2 additive", "M3 additive"]
    if "residual_sae" in controls:
        names += ["residual SAE", "residual SAE, weights of M4", "residual SAE, untrained"]
    return names


class _Seed:
    """All models of one seed."""

    def __init__(
        self,
        inside: CodedRows,
        test: CodedRows,
        seed: int,
        run: dict[str, Any],
        options: InteractionTraining,
        folder: Path | None,
    ) -> None:
        self.seed, self.run, self.options, self.folder = seed, run, options, folder
        self.state = run["random_state"] + seed
        self.fit, self.validation = split_documents(inside, options.validation, self.state)
        self.test = test
        self.n_tokens = run["n_tokens"] or default_tokens(self.fit, options)
        self.notes: list[str] = []
        self._made: dict[str, Any] = {}

    def errors(self, names: Sequence[str], progress: Progress) -> SeedErrors:
        """Squared errors of every model on every held-out document."""
        documents = np.unique(self.test.documents)
        totals = self._once("totals", lambda: self._load("totals", lambda: self._totals(documents)))
        squared, parameters = {}, {}
        for name in names:
            found = self._load(name, lambda name=name: self._model(name, documents))
            if found is not None:
                squared[name], parameters[name] = found[:-1], int(found[-1])
            progress.advance(1, f"seed {self.seed}, {name}")
        return SeedErrors(
            self.seed, documents, totals, squared, parameters, self.fit.n_rows, self.test.n_rows, self.n_tokens
        )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _load(self, name: str, make: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """An array of this seed, computed unless an interrupted run has kept it."""
        if self.folder is None:
            return make()
        file = self.folder / f"{name.replace(', ', '-').replace(' ', '-')}.npy"
        if file.is_file():
            try:
                return np.load(file, allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise DataMismatch(f"{file}: is damaged ({error}); delete it and run again") from None
        found = make()
        if found is not None:
            with atomic_path(file) as partial, open(partial, "wb") as handle:
                np.save(handle, found)
        return found

    def _totals(self, documents: np.ndarray) -> np.ndarray:
        """Σ‖x − m‖² of each held-out document."""
        mean = sum(batch.x.double().sum(0) for batch in self.fit.in_order()) / self.fit.n_rows
        sums = np.zeros(len(documents))
        for batch, place in self._placed(self.test, documents):
            np.add.at(sums, place, (batch.x.double() - mean).square().sum(1).numpy())
        return sums

    def _model(self, name: str, documents: np.ndarray) -> np.ndarray | None:
        """Squared error of each held-out document, and the number of weights."""
        if name.startswith("residual"):
            predict, size, test = self._residual_sae(name)
        else:
            step, _, control = name.partition(" ")
            if control == "gaussian" and not all(part.fits_in_memory for part in self._parts("")):
                self.notes.append("the control gaussian was left out: its errors do not fit into memory")
                return None
            predict, size = self._step(step, control)
            test = self._parts(control)[2]
        sums = np.zeros(len(documents))
        for batch, place in self._placed(test, documents):
            left = batch.error.double().numpy() - predict(batch)
            np.add.at(sums, place, np.square(left).sum(1))
        return np.r_[sums, size]

    def _placed(self, rows: CodedRows, documents: np.ndarray) -> Iterator[tuple[CodedBatch, np.ndarray]]:
        """Batches, with the place of each row's document in `documents`."""
        place = np.searchsorted(documents, rows.documents)
        start = 0
        for batch in rows.in_order():
            yield batch, place[start : start + len(batch.rows)]
            start += len(batch.rows)

    def _parts(self, control: str) -> tuple[CodedRows, CodedRows, CodedRows]:
        """Tokens to fit, to validate and to test, as a control changes them."""
        real = (self.fit, self.validation, self.test)
        if control == "shuffled":
            return self._once("shuffled", lambda: tuple(part.shuffled(self.state) for part in real))
        if control == "gaussian":
            return self._once("gaussian", lambda: tuple(self._gaussian(part, i) for i, part in enumerate(real)))
        if control == "additive":
            return self._once("additive", lambda: tuple(part.widened(self._unit()) for part in real))
        return real

    def _unit(self) -> float:
        """Root mean square of the entries of a code."""
        entries = sum(batch.code.nnz for batch in self.fit.in_order())
        return code_length(self.fit) * np.sqrt(self.fit.n_rows / entries)

    def _gaussian(self, rows: CodedRows, part: int) -> CodedRows:
        """Errors that are M2 and Gaussian noise of the covariance that M2 leaves."""
        root = self._once("root", self._root_of_left)
        linear, number = self._refit("").linear, iter(range(rows.n_rows))

        def errors(batch: CodedBatch) -> torch.Tensor:
            draw = stream(self.state, f"ladder.gaussian.{part}", next(number)).standard_normal(batch.error.shape)
            return torch.from_numpy(np.float32(linear.predict(batch) + draw @ root))

        return rows.with_errors(errors)

    def _root_of_left(self) -> np.ndarray:
        """Square root of the covariance of what M2 leaves of the fitted errors."""
        linear, sums = self._refit("").linear, np.zeros((self.fit.d, self.fit.d))
        for batch in self.fit.in_order():
            left = batch.error.double().numpy() - linear.predict(batch)
            sums += left.T @ left
        values, vectors = np.linalg.eigh(sums / self.fit.n_rows)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def _refit(self, control: str) -> Refit:
        """The ridge regression under a control; shuffled and frozen expansions stand beside the real code."""
        control = control if control in ("gaussian", "additive") else ""
        fit, validation, _ = self._parts(control)
        return self._once(f"refit {control}", lambda: Refit(fit, validation))

    def _step(self, step: str, control: str) -> tuple[Predict, int]:
        """Prediction of a step, and its number of weights."""
        d, F = self.fit.d, self._parts(control)[0].n_features
        if step == "M0":
            return lambda batch: np.zeros((len(batch.rows), d)), 0
        if step == "M1":
            bias = self._refit("").bias
            return lambda batch: np.broadcast_to(bias, (len(batch.rows), d)), d
        if step == "M2":
            return self._linear(control), F * d + d
        expansion = self._expansion(step)
        if control != "frozen":
            expansion = self._learn(expansion, step, control)
        fit, validation, _ = self._parts(control)
        refit = self._refit(control)
        solution = refit.with_columns(expansion.columns, fit, validation)
        size = F * d + d + expansion.n_parameters + expansion.n_columns * d
        return _prediction(solution, expansion.columns), size

    def _linear(self, control: str) -> Predict:
        if control != "shuffled":
            return self._refit(control).linear.predict
        fit, validation, _ = self._parts(control)
        linear = Refit(fit, validation, by_pairing=True).linear
        return lambda batch: batch.pairing @ linear.W + linear.b

    def _expansion(self, step: str) -> Expansion:
        F, d, K = self.fit.n_features, self.fit.d, self.run["rank"]
        if step == "M5":  # as many weights as M4
            K = max(1, round((F * K + K * K + K + 2 * K * d) / (F + d + 1)))
        length = self._once("length", lambda: code_length(self.fit))
        return Expansion(EXPANSIONS[step], (F, K, K), self.run["top_n"], length, self.state, self.options.device)

    def _learn(self, expansion: Expansion, step: str, control: str) -> Expansion:
        def left() -> list[CodedRows]:
            fit, validation, _ = self._parts(control)
            linear = self._refit(control).linear
            return [left_by(part, linear) for part in (fit, validation)]

        targets = self._once(f"left {control}", left)
        learner = Learner(expansion, *targets, self.options, self.state)
        checkpoint = None
        if self.folder is not None:
            run = {**self.run, "seed": self.seed, "model": f"{step} {control}".strip()}
            checkpoint = Checkpoint(self.folder / run["model"].replace(" ", "-"), run)
        expansion = learn(learner, self.n_tokens, checkpoint)
        if checkpoint is not None:
            checkpoint.clear()
            checkpoint.folder.rmdir()
        return expansion

    def _residual_sae(self, name: str) -> tuple[Predict, int, CodedRows]:
        """A TopK SAE of the errors themselves."""
        from neurollm.dictionaries import random_sae, train_dictionary
        from neurollm.interactions.derived import DerivedStore

        F, d, K = self.fit.n_features, self.fit.d, self.run["rank"]
        if name.endswith("weights of M4"):
            F = max(2, round((F * K + K * K + K + 2 * K * d + F * d + d) / (2 * d + 1)))
        store = DerivedStore(self.fit, lambda batch: batch.error, d, "errors")
        k = min(self.run["top_n"], F)
        trained = self._once(
            f"residual SAE {F}",
            lambda: train_dictionary(store, "topk", F, k, self.n_tokens, self.state, verbose=0),
        )
        sae = random_sae(trained, self.state) if name.endswith("untrained") else trained
        size = sum(weight.numel() for weight in sae.weights.values())
        return lambda batch: np.asarray(sae.reconstruct(batch.error.numpy()), dtype=np.float64), size, self.test


def _prediction(solution: Solution, columns: Columns) -> Predict:
    return lambda batch: solution.predict(batch, columns)
