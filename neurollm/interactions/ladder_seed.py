"""One seed of a ladder: its models, fitted, learned, and judged on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurollm.dictionaries.training.checkpoints import Checkpoint
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path
from neurollm.interactions.expansions import Expansion
from neurollm.interactions.ladder_result import SeedErrors
from neurollm.interactions.refit import Columns, Refit, Solution
from neurollm.interactions.rows import CodedBatch, CodedRows
from neurollm.interactions.training import (
    InteractionTraining,
    Learner,
    code_length,
    default_tokens,
    learn,
    left_by,
    split_documents,
)
from neurollm.progress import Progress
from neurollm.random import stream

EXPANSIONS = {"M3": "pairs", "M4": "pairs_mlp", "M5": "code_mlp"}
SEEDS = 1000  # so that ladders of neighbouring random states share no seed
Predict = Callable[[CodedBatch], np.ndarray]


class Rungs:
    """All models of one seed.

    Parameters
    ----------
    inside, test : CodedRows
        Documents to fit and to choose penalties by; documents to judge on.
    seed : int
    run : dict
        What the ladder is made of.
    options : InteractionTraining
        Resolved.
    folder : Path, optional
        Where everything finished is kept.
    """

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
        self.state = SEEDS * run["random_state"] + seed
        self._raw_fit, validation = split_documents(inside, options.validation, self.state)
        self._raw_test = test
        for name, part in (("to fit", self._raw_fit), ("to choose penalties by", validation), ("held out", test)):
            if len(np.unique(part.documents)) < 2:
                raise InvalidInput(
                    f"seed {seed}: only one document is left {name}; a ladder needs two of each kind, so give more "
                    "documents, fewer seeds, or a larger training.validation"
                )
        # Errors are computed once, not in every pass.
        parts = (self._raw_fit, validation, test)
        self.fit, self.validation, self.test = (part.with_errors(lambda batch: batch.error) for part in parts)
        self.n_tokens = run["n_tokens"] or default_tokens(self.fit, options)
        self.notes: list[str] = []
        self._made: dict[str, Any] = {}

    def errors(self, names: Sequence[str], progress: Progress) -> SeedErrors:
        """Squared errors of every model on every held-out document."""
        documents = np.unique(self.test.documents)
        totals = self._once("totals", lambda: self._load("totals", lambda: self._totals(documents)))
        squared, parameters, p, before = {}, {}, {}, ""
        for name in names:
            before = self._forget(before, name.partition(" ")[2])
            found = self._load(name, lambda name=name: self._model(name, documents))
            if found is not None:
                squared[name], parameters[name], p[name] = found[:-2], int(found[-2]), float(found[-1])
            progress.advance(1, f"seed {self.seed}, {name}")
        sizes = (self.fit.n_rows, self.test.n_rows, self.n_tokens)
        return SeedErrors(self.seed, documents, totals, squared, parameters, p, *sizes)

    def _forget(self, before: str, control: str) -> str:
        """Give the memory back that the models of another control needed."""
        if before != control:
            for name in (before, f"left {before}"):
                self._made.pop(name, None)
        return control

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
        mean = sum(batch.x.double().sum(0) for batch in self._raw_fit.in_order()) / self.fit.n_rows
        sums = np.zeros(len(documents))
        for batch, place in self._placed(self._raw_test, documents):
            np.add.at(sums, place, (batch.x.double() - mean).square().sum(1).numpy())
        return sums

    def _model(self, name: str, documents: np.ndarray) -> np.ndarray | None:
        """Squared error of each held-out document, the number of weights, and a permutation p."""
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
        return np.r_[sums, size, self._permuted(predict) if name in EXPANSIONS else np.nan]

    def _permuted(self, predict: Predict) -> float:
        """Share of pairings of documents in which what is predicted beyond M2 explains as much as with its own."""
        n_perm, linear = self.run["n_perm"], self._refit("").linear
        if not self.test.fits_in_memory:
            self.notes.append("permutations were left out: the held-out errors do not fit into memory")
            return np.nan
        left, beyond = (np.empty((self.test.n_rows, self.test.d), np.float32) for _ in range(2))
        start = 0
        for batch in self.test.in_order():
            part, known = slice(start, start + len(batch.rows)), linear.predict(batch)
            left[part], beyond[part] = batch.error.numpy() - known, predict(batch) - known
            start = part.stop
        sizes = np.einsum("nd,nd->n", beyond, beyond, dtype=np.float64)

        def explained(rows: np.ndarray) -> float:
            step = 8192
            shared = sum(
                float(np.vdot(left[i : i + step], beyond[rows[i : i + step]])) for i in range(0, len(rows), step)
            )
            return 2 * shared - float(sizes[rows].sum())

        own = explained(np.arange(len(left)))
        draws = (self.test.partners(SEEDS * n_perm * self.state + draw) for draw in range(n_perm))
        return (1 + sum(explained(rows) >= own for rows in draws)) / (n_perm + 1)

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
            units = self._once("units", self._units)
            return self._once("additive", lambda: tuple(part.widened(units) for part in real))
        return real

    def _units(self) -> np.ndarray:
        """Root mean square of the entries of each feature; 1 of features that are never active."""
        sums = np.zeros((2, self.fit.n_features))
        for batch in self.fit.in_order():
            sums += [np.asarray(part.sum(0)).ravel() for part in (batch.code.power(2), batch.code != 0)]
        return np.where(sums[1] > 0, np.sqrt(sums[0] / np.maximum(sums[1], 1)), 1.0)

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
