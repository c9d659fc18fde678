"""Started by torchrun: trains into the folder given, and lets rank 0 write what came out.

torchrun --nproc-per-node 2 distributed_training.py OUT ARCHITECTURES [DIE_AT_STEP]
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import torch

from neurollm.dictionaries import train_dictionary
from neurollm.dictionaries.training import LEARNERS, torchrun

spec = importlib.util.spec_from_file_location("memory_store", Path(__file__).with_name("memory_store.py"))
memory_store = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory_store)


def training(name, out, dies=None):
    """The same few steps whatever the number of processes; 97 features and 101 rows divide by nothing."""
    kind = LEARNERS[name]
    if dies is not None:

        class Dying(kind):
            def step(self, x, progress):
                if int(self.carried["steps"]) == dies:
                    os._exit(9)
                super().step(x, progress)

        LEARNERS[name] = Dying
    options = kind.options(
        batch_size=101,
        precision="float32",
        dead_after_tokens=600,
        checkpoint_every=5,
        log_every=10,
        resample_every=0.0 if name in ("gated", "matryoshka") else 0.2,
    )
    store = memory_store.MemoryStore(memory_store.planted(n=3_031)[0])  # a last batch of one row: none for rank 1
    return train_dictionary(store, name, 97, 4, 4_000, out=out, training=options, verbose=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun():
        for name in sys.argv[2].split(","):
            training(name, Path(sys.argv[1]) / name, int(sys.argv[3]) if len(sys.argv) > 3 else None)
