"""Several processes that train one dictionary together (data parallel, `torchrun`).

Every process reads the same batches and takes its share of the rows; gradients and
counts are summed, so all of them take the same step and the result is that of one
process up to rounding. Nothing depends on the number of features being divisible.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from neurollm.errors import InvalidInput


class Group:
    """The processes of a training; by default this one alone.

    Attributes
    ----------
    rank, size : int
    """

    def __init__(self) -> None:
        running = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if running else 0
        self.size = dist.get_world_size() if running else 1

    def check(self, batch_size: int) -> None:
        """Refuse a batch too small to give every process a row."""
        if batch_size < self.size:
            raise InvalidInput(f"training: batch_size {batch_size} is smaller than the number of processes {self.size}")

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """The rows of a batch that this process works on."""
        return batch[self.rank :: self.size]

    def sum(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values (m,) of all processes, one after the other; m may differ between them."""
        if self.size == 1:
            return values
        sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
        longest = max(int(size) for size in sizes)
        padded = torch.cat([values, values.new_zeros(longest - len(values))])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def torchrun() -> Iterator[Group]:
    """The group that `torchrun` started this process in (gloo, or nccl with CUDA); else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Group()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Group()
    finally:
        dist.destroy_process_group()
