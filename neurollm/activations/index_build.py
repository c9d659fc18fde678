"""Building a feature index: one pass of the model for all features.

Each shard holds the features of about 65,536 tokens as CSR (``indptr``, ``indices``,
``values``), the same entries in the order of features (``features``, ``feature_indptr``,
``entries``: positions in the CSR), and what is known about each token. So every feature's
occurrences can be read without touching those of others, and no array of size
tokens × features ever exists beyond one batch.
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
from scipy import sparse

from neurollm.activations.contexts import Contexts
from neurollm.activations.corpus import Corpus
from neurollm.activations.folder import DOCUMENTS, ShardFolder
from neurollm.activations.harvesting import (
    check_context,
    fill_rows,
    plan_shards,
    prepare_contexts,
    site_width,
    source_settings,
)
from neurollm.activations.index_summary import Entries, Summary
from neurollm.activations.store import ActivationStore
from neurollm.activations.tensorfile import TensorFile, write_tensors
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_json
from neurollm.models import LanguageModel
from neurollm.progress import Progress

KIND = "feature index"
COMMAND = "FeatureIndex.build"
SUMMARY = "summary.safetensors"
TOKENS_PER_SHARD = 65_536
TOKENS_PER_BATCH = 4096  # the same everywhere, so that what was begun on one device can go on on another
_DENSE_FLOATS = 1 << 23  # of a batch of feature activations before it becomes sparse: what the C library keeps


class CorpusSource:
    """Activations computed now, shard by shard, never written."""

    def __init__(self, lm: LanguageModel, corpus: Corpus, dictionary: Any, context: int | None) -> None:
        self.lm, self.corpus, self.site = lm, corpus, dictionary.site
        self.context = check_context(lm, context)
        self.settings = source_settings(lm, corpus, self.site, self.context)
        self.model = lm.describe()

    def open(self, folder: ShardFolder) -> list[dict[str, Any]]:
        """Tokenise; return the plan."""
        self.contexts: Contexts = prepare_contexts(folder, self.lm, self.corpus, self.context)
        self.width = site_width(self.lm, self.site)
        return plan_shards(self.contexts, TOKENS_PER_SHARD)

    def load(self, shard: dict[str, Any]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Activations and columns of a shard."""
        span = (shard["first_context"], shard["first_context"] + shard["n_contexts"])
        acts = torch.empty((shard["n_rows"], self.width), dtype=self.lm.dtype, device=self.lm.device)
        for _rows in fill_rows(self.lm, self.contexts, self.site, span, acts, TOKENS_PER_BATCH):
            pass
        return acts, self.contexts.describe(*span)


class StoreSource:
    """Activations that a harvest has stored."""

    def __init__(self, store: ActivationStore, dictionary: Any) -> None:
        if store.site != dictionary.site:
            raise DataMismatch(
                f"{store.path}: the store holds {store.site}, the dictionary belongs to {dictionary.site}; "
                "harvest at the dictionary's site"
            )
        known = getattr(dictionary, "model_fingerprint", "")
        if known and known != store.model_fingerprint:
            raise DataMismatch(
                f"{store.path}: the store was harvested from model {store.manifest['model']['name']!r} "
                f"(fingerprint {store.model_fingerprint[:12]}…), the dictionary belongs to another one "
                f"({known[:12]}…); use the store of its model"
            )
        self.store = store
        there = store.manifest["settings"]
        names = ("model fingerprint", "model dtype", "site", "tokenizer", "corpus sha256", "context")
        self.settings = {**{name: there[name] for name in names}, "store": store.sha256}
        self.model = store.manifest["model"]

    def open(self, folder: ShardFolder) -> list[dict[str, Any]]:
        """Copy the documents; return the plan."""
        with atomic_path(folder.path / DOCUMENTS) as partial:
            shutil.copyfile(self.store.path / DOCUMENTS, partial)
        starts = range(0, self.store.n_rows, TOKENS_PER_SHARD)
        return [{"first_row": row, "n_rows": min(TOKENS_PER_SHARD, self.store.n_rows - row)} for row in starts]

    def load(self, shard: dict[str, Any]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Activations and columns of a shard."""
        start, stop = shard["first_row"], shard["first_row"] + shard["n_rows"]
        return self.store.rows(start, stop), self.store.columns(start, stop)


def build_index(
    lm: LanguageModel | None,
    dictionary: Any,
    source: Corpus | ActivationStore,
    out: str | os.PathLike,
    top: int,
    context: int | None,
    verbose: int,
) -> None:
    """Fill the folder of an index; see `FeatureIndex.build`."""
    if top < 1:
        raise InvalidInput(f"top is {top}; it must be at least 1")
    if isinstance(source, ActivationStore):
        rows: CorpusSource | StoreSource = StoreSource(source, dictionary)
    elif lm is None:
        raise InvalidInput("FeatureIndex.build: a corpus needs a language model; give lm, or a store")
    else:
        if hasattr(dictionary, "check"):
            dictionary.check(lm)
        rows = CorpusSource(lm, source, dictionary, context)
    settings = {
        **rows.settings,
        "dictionary fingerprint": dictionary_fingerprint(dictionary),
        "features": int(dictionary.n_features),
        "top": top,
        "tokens per shard": TOKENS_PER_SHARD,
    }
    with ShardFolder(out, KIND, COMMAND, settings) as folder:
        if folder.manifest and folder.manifest["complete"] and not folder.missing() and _is_whole(folder.path):
            return
        plan = rows.open(folder)
        if folder.manifest is None:
            n_rows = sum(shard["n_rows"] for shard in plan)
            about = {"model": rows.model, "site": dictionary.site.to_dict(), "n_rows": n_rows,
                     "n_features": int(dictionary.n_features)}  # fmt: skip
            folder.plan(about, plan)
        sha256 = _encode_all(rows, dictionary, folder, verbose)
        _summarise(folder, top)
        folder.finish(sha256)


def dictionary_fingerprint(dictionary: Any) -> str:
    """What identifies a dictionary: its own fingerprint, or a hash of its description."""
    known = getattr(dictionary, "fingerprint", None)
    if known:
        return str(known)
    description = dictionary.describe() if hasattr(dictionary, "describe") else {"class": type(dictionary).__name__}
    return sha256_json([description, str(dictionary.site), int(dictionary.n_features)])


def _is_whole(path: Path) -> bool:
    return (path / DOCUMENTS).exists() and (path / SUMMARY).exists()


def _encode_all(rows: CorpusSource | StoreSource, dictionary: Any, folder: ShardFolder, verbose: int) -> dict[int, str]:
    """Compute the missing shards; a thread sorts and writes the one before."""
    sha256: dict[int, str] = {}
    shards, missing = folder.manifest["shards"], folder.missing()

    def write(index: int, features: sparse.csr_array, columns: dict[str, np.ndarray]) -> None:
        tensors = _shard_tensors(features, columns)
        sha256[index] = write_tensors(folder.path / shards[index]["file"], tensors)

    total = folder.manifest["n_rows"]
    with Progress("feature index", total, "tokens", verbose) as progress, ThreadPoolExecutor(1) as writer:
        progress.skip(total - sum(shards[index]["n_rows"] for index in missing))
        pending: Future | None = None
        for index in missing:
            acts, columns = rows.load(shards[index])
            parts = []
            for part in _encode(dictionary, acts):
                parts.append(part)
                progress.advance(part.shape[0])
            features = sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
            if pending is not None:
                pending.result()
            pending = writer.submit(write, index, features, columns)
        if pending is not None:
            pending.result()
    return sha256


def _encode(dictionary: Any, acts: torch.Tensor) -> Iterator[sparse.csr_array]:
    """Sparse features of batches of rows, checked."""
    step = max(1, _DENSE_FLOATS // max(dictionary.n_features, acts.shape[1]))
    for part in acts.split(step):
        features = sparse.csr_array(dictionary.encode_sparse(part.float()), dtype=np.float32)
        if features.shape != (len(part), dictionary.n_features):
            raise DataMismatch(
                f"the dictionary gave features of shape {features.shape} for {len(part)} tokens; "
                f"expected {(len(part), dictionary.n_features)}"
            )
        if not np.isfinite(features.data).all():
            raise DataMismatch(
                f"the dictionary gives NaN or infinity at site {dictionary.site}; load the model with dtype float32"
            )
        features.eliminate_zeros()
        features.sort_indices()
        yield features


def _shard_tensors(features: sparse.csr_array, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CSR, the same entries by feature, and the columns, as laid out on disk."""
    places = np.arange(features.nnz, dtype=np.int32)
    by_feature = sparse.csr_array((places, features.indices, features.indptr), features.shape).tocsc()
    present = np.flatnonzero(np.diff(by_feature.indptr))
    return {
        "indptr": features.indptr.astype(np.int64),
        "feature_indptr": np.append(by_feature.indptr[present], features.nnz).astype(np.int64),
        "indices": features.indices.astype(np.int32),
        "values": features.data,
        "features": present.astype(np.int32),
        "entries": by_feature.data,
        **columns,
    }


def _summarise(folder: ShardFolder, top: int) -> None:
    """Read all shards once more, in order, for the counts and the strongest occurrences."""
    summary = Summary(folder.manifest["n_features"], top)
    for shard in folder.manifest["shards"]:
        file = TensorFile(folder.path / shard["file"])
        entries = file.array("entries")
        local = np.repeat(np.arange(shard["n_rows"]), np.diff(file.array("indptr")))[entries]
        summary.add(
            Entries(
                feature=np.repeat(file.array("features").astype(np.int64), np.diff(file.array("feature_indptr"))),
                value=file.array("values")[entries],
                row=local + shard["first_row"],
                document=file.array("doc_id")[local].astype(np.int64),
            )
        )
    write_tensors(folder.path / SUMMARY, summary.tensors())
