"""An activation store in memory, and trainings that are killed.

As a script: ``python memory_store.py OUT`` starts a small training into OUT and kills it (SIGKILL) after
some checkpoints, three times.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from neurollm.dictionaries import TopKTraining, train_dictionary
from neurollm.files import sha256_json
from neurollm.models import Site
from neurollm.random import stream


class MemoryStore:
    """What the trainer and the metrics use of an ActivationStore, over a tensor."""

    def __init__(self, acts, site=None, fingerprint="a" * 64):
        self.acts = torch.as_tensor(acts, dtype=torch.float32)
        self.n_rows, self.d = self.acts.shape
        self.site, self.model_fingerprint = site or Site(3), fingerprint
        self.manifest = {"model": {"name": "toy"}, "settings": {"context": 128}}
        self.mean = self.acts.double().mean(0).numpy()
        self.mean_squared_norm = float(self.acts.double().square().sum(1).mean())
        self.sha256 = sha256_json(self.acts[:100].tolist())
        self.documents = [("text", self.sha256)]
        self.shards = [{"file": "shard-00000.safetensors"}]

    def shard(self, index):
        return {"acts": self.acts}

    def rows(self, start, stop):
        return self.acts[start:stop]

    def batches(self, batch_size, random_state=0, epoch=0, start_batch=0):
        order = torch.from_numpy(stream(random_state, "rows", epoch).permutation(self.n_rows))
        for start in range(start_batch * batch_size, self.n_rows, batch_size):
            yield self.acts[order[start : start + batch_size]]


def planted(n=20_000, d=32, n_features=64, n_active=3, seed=0):
    """Sparse combinations of random unit directions around a mean: activations and directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_features, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mean = rng.standard_normal(d) * 3
    codes = np.zeros((n, n_features))
    for row in codes:
        row[rng.choice(n_features, n_active, replace=False)] = rng.uniform(1, 3, n_active)
    return (codes @ directions + mean).astype(np.float32), directions.astype(np.float32)


def small_training(store, out=None, n_tokens=30_000, **options):
    """A training of a second or two that passes through dead features and two epochs."""
    settings = {"batch_size": 128, "checkpoint_every": 7, "log_every": 20, "dead_after_tokens": 2_000} | options
    return train_dictionary(
        store, n_features=96, k=4, n_tokens=n_tokens, out=out, training=TopKTraining(**settings), verbose=0
    )


def start_and_kill(out: Path, n_checkpoints: int) -> None:
    """Train in a process of its own, and kill it when it has written so many checkpoints."""
    child = os.fork()
    if child == 0:
        small_training(MemoryStore(planted()[0]), out)
        os._exit(0)
    seen = set()
    while len(seen) < n_checkpoints:
        seen |= {path.name for path in out.glob("checkpoint-*.safetensors")}
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    torch.optim.Adam([torch.zeros(1)])  # imports half of torch: once here, not in every child
    for n_checkpoints in (1, 4, 9):
        start_and_kill(Path(sys.argv[1]), n_checkpoints)
