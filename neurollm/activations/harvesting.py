"""Running a model over a corpus once and keeping what it computed at a site.

The rows of a shard are a function of the corpus and the settings alone: a shard covers
a fixed range of contexts, run in fixed batches. While the model computes one shard, a
second thread hashes and writes the one before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurollm.activations.contexts import Contexts, tokenizer_fingerprint
from neurollm.activations.corpus import Corpus
from neurollm.activations.documents import write_documents
from neurollm.activations.folder import DOCUMENTS, TOKENS, ShardFolder, logger, read_manifest
from neurollm.activations.store import ActivationStore
from neurollm.activations.tensorfile import TensorFile, leave_cache, write_tensors
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import LanguageModel, Site, iter_activations, run_site
from neurollm.progress import Progress

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BYTES_OF_COLUMNS = 5 * 4


def harvest(
    lm: LanguageModel,
    corpus: Corpus,
    site: Site,
    out: str | os.PathLike,
    *,
    tokens_per_shard: int = 262_144,
    context: int | None = None,
    dtype: str = "bfloat16",
    tokens_per_batch: int | None = None,
    verbose: int = 1,
) -> ActivationStore:
    """Write the activations of every token of a corpus to disk.

    May be interrupted at any moment, even killed: the same call continues, and the
    files end up identical to those of an uninterrupted run. On a finished folder it
    returns at once.

    Parameters
    ----------
    lm : LanguageModel
    corpus : Corpus
    site : Site
    out : path-like
        Folder of the store.
    tokens_per_shard : int, default=262_144
        About how many rows a file holds. Two shards are in memory at a time.
    context : int, optional
        Longest context in tokens, special tokens included; default and maximum: the
        model's own.
    dtype : {"bfloat16", "float16", "float32"}, default="bfloat16"
        Of the activations on disk.
    tokens_per_batch : int, optional
        Padded tokens per forward pass; default: that of the run that began the folder,
        else the model's own ``tokens_per_batch``.
    verbose : int, default=1
        0 shows no progress.

    Returns
    -------
    ActivationStore

    Raises
    ------
    InvalidInput
        If an argument is out of range, or the disk is full or may not be written
        (finished shards are kept).
    DataMismatch
        If the folder holds something else, or the model computes NaN or infinity.

    Examples
    --------
    >>> from neurollm.models import load_model
    >>> corpus = Corpus([("tale", "Once upon a time there was a king.")])
    >>> store = harvest(load_model("demo"), corpus, Site(2), "store", verbose=0)  # doctest: +SKIP
    """
    context = check_context(lm, context)
    lm.module_at(site)  # refuses a site that the model does not have, before a folder is made
    if tokens_per_batch is None:  # what was begun goes on as it was begun, also on another device
        begun = read_manifest(out) or {"settings": {}}
        tokens_per_batch = begun["settings"].get("tokens per batch", lm.tokens_per_batch)
    for name, value in (("tokens_per_shard", tokens_per_shard), ("tokens_per_batch", tokens_per_batch)):
        if value < 1:
            raise InvalidInput(f"{name} is {value}; it must be at least 1")
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    settings = {
        **source_settings(lm, corpus, site, context),
        "dtype": dtype,
        "tokens per shard": tokens_per_shard,
        "tokens per batch": tokens_per_batch,
    }
    with ShardFolder(out, "activation store", "harvest", settings) as folder:
        missing = folder.missing() if folder.manifest else None
        if missing or not (folder.manifest and folder.manifest["complete"]):
            width = site_width(lm, site)
            contexts = prepare_contexts(folder, lm, corpus, context)
            if folder.manifest is None:
                folder.plan(*_plan(lm, corpus, site, contexts, width, tokens_per_shard))
            _Harvest(lm, site, folder, contexts, dtype, tokens_per_batch).run(folder.missing(), verbose)
        elif not (folder.path / DOCUMENTS).exists():
            save_documents(folder.path, corpus)
    return ActivationStore(out)


def check_context(lm: LanguageModel, context: int | None) -> int:
    """The context to use: the model's own unless a shorter one is asked for."""
    if context is None:
        return int(lm.context)
    if not 1 <= context <= lm.context:
        raise InvalidInput(f"context is {context}; model {lm.name!r} takes 1 to {lm.context} tokens")
    return int(context)


def source_settings(lm: LanguageModel, corpus: Corpus, site: Site, context: int) -> dict[str, Any]:
    """What the rows of a corpus depend on."""
    return {
        "model fingerprint": lm.fingerprint,
        "model dtype": str(lm.dtype).removeprefix("torch."),
        "site": str(site),
        "tokenizer": tokenizer_fingerprint(lm),
        "corpus sha256": corpus.sha256,
        "context": context,
    }


def prepare_contexts(folder: ShardFolder, lm: LanguageModel, corpus: Corpus, context: int) -> Contexts:
    """The tokenised corpus: from an interrupted run if it left it, else made, and kept with the documents."""
    kept = folder.path / TOKENS
    if folder.manifest is not None and kept.exists() and (folder.path / DOCUMENTS).exists():
        try:
            return Contexts.load(kept)
        except DataMismatch:
            logger.debug("%s cannot be used; the corpus is tokenised again", kept)
    contexts = Contexts.of(lm, corpus, context)
    contexts.save(kept)
    save_documents(folder.path, corpus)
    return contexts


def save_documents(path: Path, corpus: Corpus) -> None:
    """Keep the texts beside their activations."""
    write_documents(path / DOCUMENTS, corpus)


def site_width(lm: LanguageModel, site: Site) -> int:
    """Number of dimensions at a site, seen by running one token."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=lm.device)
    return run_site(lm, ids, None if lm.is_causal else torch.ones_like(ids), site).shape[-1]


def _plan(
    lm: LanguageModel, corpus: Corpus, site: Site, contexts: Contexts, width: int, tokens_per_shard: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    about = {
        "model": lm.describe(),
        "site": site.to_dict(),
        "d": width,
        "n_rows": contexts.n_rows,
        "n_contexts": len(contexts),
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "n_documents": len(corpus)},
    }
    return about, plan_shards(contexts, tokens_per_shard)


def plan_shards(contexts: Contexts, tokens_per_shard: int) -> list[dict[str, int]]:
    """Contexts and rows of each shard."""
    rows = contexts.rows_before
    return [
        {"first_context": start, "n_contexts": stop - start, "first_row": int(rows[start]),
         "n_rows": int(rows[stop] - rows[start])}
        for start, stop in contexts.shards(tokens_per_shard)
    ]  # fmt: skip


class _Harvest:
    """One run: computes the missing shards in order while a thread writes the one before."""

    def __init__(
        self, lm: LanguageModel, site: Site, folder: ShardFolder, contexts: Contexts, dtype: str, tokens_per_batch: int
    ) -> None:
        self.lm, self.site, self.folder, self.contexts = lm, site, folder, contexts
        self.dtype, self.tokens_per_batch = DTYPES[dtype], tokens_per_batch
        self.shards, self.width = folder.manifest["shards"], folder.manifest["d"]
        self.sha256: dict[int, str] = {}

    def run(self, missing: list[int], verbose: int) -> None:
        """Compute, write, and complete the manifest."""
        self.bytes_left = sum(self.shards[index]["n_rows"] for index in missing) * self._row_bytes()
        free = shutil.disk_usage(self.folder.path).free
        if self.bytes_left > free:
            logger.warning(
                "%s: about %.0f MB are needed and %.0f MB are free: the disk will be full before the end",
                self.folder.path, self.bytes_left / 1e6, free / 1e6,
            )  # fmt: skip
        most = max((self.shards[index]["n_rows"] for index in missing), default=0)
        buffers = [torch.empty((most, self.width), dtype=self.dtype, device=self.lm.device) for _ in missing[:2]]
        total = self.folder.manifest["n_rows"]
        with Progress("harvest", total, "tokens", verbose) as progress, ThreadPoolExecutor(1) as writer:
            progress.skip(total - sum(self.shards[index]["n_rows"] for index in missing))
            pending: Future | None = None
            for turn, index in enumerate(missing):
                acts = buffers[turn % 2][: self.shards[index]["n_rows"]]
                sums = self._compute(index, acts, progress)
                if pending is not None:
                    pending.result()  # its buffer is the next to be filled; its failure ends the run here
                pending = writer.submit(self._write, index, acts, sums, _ready(acts))
            if pending is not None:
                pending.result()
        self.folder.finish(self.sha256, statistics=self._statistics())

    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize + _BYTES_OF_COLUMNS

    def _compute(self, index: int, acts: torch.Tensor, progress: Progress) -> torch.Tensor:
        """Fill `acts`; return its sums and sums of squares, (2, d) in float64, added batch by batch."""
        start = self.shards[index]["first_context"]
        stop = start + self.shards[index]["n_contexts"]
        sums = torch.zeros((2, self.width), dtype=torch.float64, device=_double_device(acts.device))
        for rows in fill_rows(self.lm, self.contexts, self.site, (start, stop), acts, self.tokens_per_batch):
            add_moments(rows, sums)
            progress.advance(len(rows))
            del rows  # see fill_rows
        return sums

    def _write(self, index: int, acts: torch.Tensor, sums: torch.Tensor, ready: Any) -> None:
        acts, sums = _to_cpu(acts, ready), sums.cpu()
        if not torch.isfinite(sums).all():
            raise DataMismatch(
                f"model {self.lm.name!r} gives NaN or infinity at site {self.site} (as {str(self.dtype)[6:]}); "
                "load the model, or harvest, with dtype float32"
            )
        shard = self.shards[index]
        columns = self.contexts.describe(shard["first_context"], shard["first_context"] + shard["n_contexts"])
        tensors = {"sum": sums[0], "sum_of_squares": sums[1], **columns, "acts": acts}
        path = self.folder.path / shard["file"]
        self.sha256[index] = write_tensors(path, tensors, self.bytes_left)
        leave_cache(path)
        self.bytes_left -= len(acts) * self._row_bytes()

    def _statistics(self) -> dict[str, Any]:
        """Moments of the whole store, added in the order of the shards."""
        totals = np.zeros((2, self.width))
        for shard in self.shards:
            file = TensorFile(self.folder.path / shard["file"])
            totals += np.stack([file.array("sum"), file.array("sum_of_squares")])
        return {"n": self.folder.manifest["n_rows"], "sum": totals[0].tolist(), "sum_of_squares": totals[1].tolist()}


def fill_rows(
    lm: LanguageModel,
    contexts: Contexts,
    site: Site,
    span: tuple[int, int],
    acts: torch.Tensor,
    tokens_per_batch: int,
) -> Iterator[torch.Tensor]:
    """Run the contexts of `span` and fill `acts` (n, d) with their rows in reading order; yield those of each batch."""
    sequences = contexts.sequences(*span)
    for indices, hidden, _lengths in iter_activations(lm, sequences, site, tokens_per_batch=tokens_per_batch):
        source, target = contexts.placement(*span, indices, hidden.shape[1])
        source, target = (torch.from_numpy(rows).to(acts.device) for rows in (source, target))
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, source).to(acts.dtype)
        acts.index_copy_(0, target, rows)
        del hidden
        yield rows
        # What outlives its batch makes the C library return memory to the system and fault it in again, batch by
        # batch: up to a quarter of the time.
        del rows


def add_moments(rows: torch.Tensor, sums: torch.Tensor, block: int = 1024) -> None:
    """Add the rows' sum and sum of squares per dimension to `sums` (2, d), in float64."""
    for part in rows.split(block):
        values = part.to(sums.device, torch.float64)
        sums[0] += values.sum(0)
        sums[1] += values.square_().sum(0)


def _double_device(device: torch.device) -> torch.device:
    """Where float64 sums are kept: with the data, unless its device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _ready(acts: torch.Tensor) -> Any:
    """An event after which `acts` is complete (None where calls finish before they return)."""
    if acts.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def _to_cpu(acts: torch.Tensor, ready: Any) -> torch.Tensor:
    """Copy from a GPU on a stream of its own, while the next shard is being computed."""
    if ready is None:
        return acts.cpu()
    with torch.cuda.stream(torch.cuda.Stream(acts.device)) as _:
        torch.cuda.current_stream(acts.device).wait_event(ready)
        return acts.cpu()
