"""What interactions bring to a dictionary that is trained with them, against dictionaries trained without.

For every seed, on the same tokens in the same order, with k active features on a token:

=================  ==============================================================================
joint              TopK SAE and interactions on one loss, see `neurollm.interactions.train_joint`
same_width         the SAE alone, with as many features
equal_parameters   the SAE alone, with as many parameters as the joint model has: more features
shuffled           the joint model with interactions of the codes of other tokens
sequential         the SAE of the same width, then interactions and a refit of its decoder in a second pass over
                   the same store, see `neurollm.interactions.train_nfm`: twice the tokens
=================  ==============================================================================

Every SAE has its decoder and its bias learned on that loss: a refit of either is no further baseline. The joint
model is compared as a whole; the error of its decoder term alone is the error of no model and is not computed.

One baseline is not enough: products can also mend what a code of k features gets wrong. In simulations without any
interaction (5 data sets, 5 seeds of 235 steps each) the joint model explained −.1 to +.4 points more than the SAE of
the same width and +.1 to +.7 more than the one of equal parameters, whose interval over seeds was twice above zero;
it was above all baselines in none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurollm.dictionaries import Plan, TopKTraining
from neurollm.dictionaries.held_out import check_held_out
from neurollm.dictionaries.rows import row_batches
from neurollm.dictionaries.splice import TokenSequence, document_losses, token_sequences
from neurollm.dictionaries.training.loop import train_runs
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.joint import JointModel, joint_run
from neurollm.interactions.joint_result import FEWEST_DOCUMENTS, JOINT, JointComparison, JointLosses
from neurollm.interactions.training import InteractionTraining, train_nfm
from neurollm.progress import Progress

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore
    from neurollm.models import LanguageModel

TRAINED = (JOINT, "same_width", "equal_parameters", "shuffled")  # in one pass
MODELS = (*TRAINED, "sequential")
INTERACTION = {JOINT: "paired", "shuffled": "shuffled"}


def joint_comparison(
    store: ActivationStore,
    held_out: ActivationStore,
    n_features: int = 4096,
    k: int = 32,
    rank: int = 64,
    n_tokens: int = 5_000_000,
    seeds: int = 5,
    *,
    training: TopKTraining | None = None,
    lm: LanguageModel | None = None,
    documents: Any = None,
    out: str | os.PathLike | None = None,
    n_boot: int = 2000,
    random_state: int = 0,
    verbose: int = 1,
) -> JointComparison:
    """Train a joint model and its baselines with several seeds, and compare them on held-out documents.

    Four models of a seed are trained in one pass over the data, the interactions of the fifth in another. With `out`
    every finished training is kept, and a comparison that was interrupted goes on when the same call is made again.

    Parameters
    ----------
    store : ActivationStore
        To train on.
    held_out : ActivationStore
        Other documents of the same site and model.
    n_features, k, rank, n_tokens
        Of the joint model, see `train_joint`.
    seeds : int, default=5
        Seeds `random_state`, `random_state` + 1, …: of the weights and of the order of the data.
    training : TopKTraining, optional
        Of all models. Without a learning rate each has the default of its width.
    lm : LanguageModel, optional
        For the cross-entropy with reconstructions in place of the activations.
    documents : Corpus, or sequence of str or of token id arrays, optional
        Held-out texts for it. Default: those of `held_out`.
    out : path-like, optional
    n_boot : int, default=2000
        Draws of the bootstrap over documents.
    random_state : int, default=0
    verbose : int, default=1

    Returns
    -------
    JointComparison

    Raises
    ------
    InvalidInput
        If an argument is out of range, or there are fewer than 10 held-out documents.
    DataMismatch
        If the stores, the model, or the trainings in `out` do not belong together.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int | np.integer) or seeds < 1:
        raise InvalidInput(f"joint_comparison: seeds is the number of trainings, at least 1; got {seeds!r}")
    if isinstance(n_boot, bool) or not isinstance(n_boot, int | np.integer) or n_boot < 100:
        raise InvalidInput(f"joint_comparison: n_boot must be a whole number of at least 100, got {n_boot!r}")
    if documents is not None and lm is None:
        raise InvalidInput("joint_comparison: documents need a model to read them: give lm")
    check_held_out(store, held_out)
    rows = _HeldOut(held_out)
    spliced = None if lm is None else _Spliced(lm, held_out, documents)
    seeds_used = tuple(range(int(random_state), int(random_state) + int(seeds)))
    plan = {"n_features": n_features, "k": k, "n_tokens": n_tokens, "training": training}
    sizes: dict[str, dict[str, int]] = {}
    for seed in seeds_used:
        folder = None if out is None else Path(out) / f"seed-{seed}"
        models = _train(store, plan, rank, seed, folder, verbose)
        rows.measure(models, verbose)
        if spliced is not None:
            spliced.measure(models, verbose)
        for name, model in models.items():
            sizes[name] = {
                "n_features": model.sae.n_features,
                "rank": 0 if model.nfm is None else model.nfm.rank,
                "n_parameters": model.n_parameters,
                "n_tokens": int(n_tokens) * (2 if name == "sequential" else 1),
            }
    found = JointComparison(
        models=MODELS,
        seeds=seeds_used,
        sizes=sizes,
        k=int(k),
        site=str(store.site),
        model=store.manifest.get("model", {}).get("name", ""),
        n_boot=int(n_boot),
        random_state=int(random_state),
        documents=rows.documents,
        n_rows=rows.n_rows,
        variation=rows.variation,
        error=np.array(rows.error),
        active=np.array(rows.active),
        losses=None if spliced is None else spliced.losses(),
    )
    if out is not None:
        found.save(out)
    return found


def _train(
    store: ActivationStore, plan: dict[str, Any], rank: int, seed: int, folder: Path | None, verbose: int
) -> dict[str, JointModel]:
    """The models of a seed; those in the folder are read."""
    runs = []
    for name in TRAINED:
        width = equal_width(plan["n_features"], rank, store.d) if name == "equal_parameters" else plan["n_features"]
        out = None if folder is None else folder / name
        own = Plan(**{**plan, "n_features": width, "random_state": seed, "out": out})
        runs.append(joint_run(store, own, rank, INTERACTION.get(name, "none"), seed))
    train_runs(store, runs, verbose=verbose)
    models = {name: run.learned() for name, run in zip(TRAINED, runs, strict=True)}
    same = runs[0].training  # as many steps
    options = InteractionTraining(batch_size=same.batch_size, precision=same.precision, device=same.device)
    sae, out = models["same_width"].sae, None if folder is None else folder / "sequential"
    nfm = train_nfm(
        store,
        sae,
        rank=rank,
        top_n=plan["k"],
        n_tokens=plan["n_tokens"],
        random_state=seed,
        training=options,
        out=out,
        verbose=verbose,
    )
    return {**models, "sequential": JointModel(sae, nfm)}


def equal_width(n_features: int, rank: int, d: int) -> int:
    """Features with which an SAE alone has as many parameters as one with interactions, as nearly as can be.

    A feature has 2 d + 1 parameters, in W_enc, W_dec and b_enc; interactions have F·K in V and K·d in A.

    Examples
    --------
    >>> equal_width(4096, 64, 256)
    4639
    """
    return n_features + round((n_features * rank + rank * d) / (2 * d + 1))


class _HeldOut:
    """Sums over the held-out documents, seed after seed."""

    def __init__(self, store: ActivationStore) -> None:
        self.store = store
        of_row = store.columns(0, store.n_rows)["doc_id"]
        self.documents, self.place = np.unique(np.asarray(of_row, np.int64), return_inverse=True)
        _refuse_few(len(self.documents), "held_out has {} documents")
        self.n_rows = np.bincount(self.place)
        self.mean = torch.as_tensor(np.asarray(store.mean), dtype=torch.float64)
        self.variation = sum(
            self._by_document(start, (x.double() - self.mean).square().sum(1)) for start, x in self._batches()
        )
        if not self.variation.sum() > 0:
            raise InvalidInput("joint_comparison: the held-out activations do not vary")
        self.error: list[np.ndarray] = []
        self.active: list[np.ndarray] = []

    def _batches(self) -> Iterator[tuple[int, torch.Tensor]]:
        start = 0
        for x in row_batches(self.store):
            yield start, x
            start += len(x)

    def _by_document(self, start: int, values: torch.Tensor | np.ndarray) -> np.ndarray:
        places = self.place[start : start + len(values)]
        return np.bincount(places, weights=np.asarray(values, float), minlength=len(self.documents))

    def measure(self, models: dict[str, JointModel], verbose: int) -> None:
        """Add the errors and active features of a seed's models, each (M, D)."""
        error, active = np.zeros((2, len(models), len(self.documents)))
        with Progress("held-out documents", self.store.n_rows, "tokens", verbose) as progress:
            for start, x in self._batches():
                for m, model in enumerate(models.values()):
                    code = model.encode(x)
                    residual = x.double() - model.decode(code).double()
                    error[m] += self._by_document(start, residual.square().sum(1))
                    active[m] += self._by_document(start, np.diff(code.indptr))
                progress.advance(len(x))
        self.error.append(error)
        self.active.append(active)


class _Spliced:
    """Cross-entropies with reconstructions in place of the activations, seed after seed."""

    def __init__(self, lm: LanguageModel, held_out: ActivationStore, documents: Any) -> None:
        if not lm.is_causal:
            raise InvalidInput(f"joint_comparison: model {lm.name!r} is an encoder: it predicts no next token")
        if documents is None:
            stored = held_out.documents
            documents = [stored[index] for index in range(len(stored))]
        if held_out.model_fingerprint and held_out.model_fingerprint != lm.fingerprint:
            raise DataMismatch(
                f"joint_comparison: model {lm.name!r} (fingerprint {lm.fingerprint[:12]}) is not that of the "
                f"activations ({held_out.model_fingerprint[:12]})"
            )
        self.lm, self.site = lm, held_out.site
        self.sequences = token_sequences(lm, documents)
        predicted = {sequence.document for sequence in self.sequences if sequence.n_predicted}
        _refuse_few(len(predicted), "{} documents hold a token to predict")
        self.mean = torch.as_tensor(np.asarray(held_out.mean), dtype=torch.float32)
        self.ce: list[np.ndarray] = []

    def measure(self, models: dict[str, JointModel], verbose: int) -> None:
        """Add the losses of a seed's models."""
        for model in models.values():
            model.sae.check(self.lm, self.site)

        def replacements(rows: torch.Tensor, _sequences: Sequence[TokenSequence]) -> Iterable[tuple[str, torch.Tensor]]:
            for name, model in models.items():
                yield name, model.reconstruct(rows)
            yield "mean", self.mean.to(rows).expand_as(rows)

        self.found = document_losses(self.lm, self.site, self.sequences, replacements, verbose=verbose)
        self.ce.append(np.array([self.found.ce[name] for name in models]))

    def losses(self) -> JointLosses:
        """Of the documents that hold a predicted token."""
        kept = self.found.n_predicted > 0
        return JointLosses(
            n_predicted=self.found.n_predicted[kept],
            clean=self.found.clean[kept],
            ablated=self.found.ce["mean"][kept],
            ce=np.array(self.ce)[:, :, kept],
        )


def _refuse_few(number: int, what: str) -> None:
    if number < FEWEST_DOCUMENTS:
        raise InvalidInput(
            f"joint_comparison: {what.format(number)}; intervals over documents need at least {FEWEST_DOCUMENTS}"
        )
