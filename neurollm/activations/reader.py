"""Shuffled reading from disk at the speed of sequential reading."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import numpy as np

from neurollm.random import stream

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")

BLOCK_BYTES = 1 << 20
BLOCKS_PER_BUFFER = 64


class BlockOrder:
    """A random order of rows that is made of large sequential reads.

    Blocks of consecutive rows are put in random order; each 64 consecutive ones form a
    buffer, whose rows are permuted. The batches are cut from the sequence of buffers,
    so the place of any batch follows from its number.

    Parameters
    ----------
    sizes : array-like of int
        Rows of each block.
    batch_size : int
    random_state : int
    epoch : int
        Another epoch is another order.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, random_state: int, epoch: int) -> None:
        self.batch_size, self.random_state, self.epoch = batch_size, random_state, epoch
        self.order = stream(random_state, "reader.blocks", epoch).permutation(len(sizes))
        ordered = np.asarray(sizes)[self.order]
        self.buffer_end = np.cumsum(np.add.reduceat(ordered, np.arange(0, len(ordered), BLOCKS_PER_BUFFER)))
        self.n_rows = int(self.buffer_end[-1])

    def read(
        self,
        load: Callable[[np.ndarray], Buffer],
        take: Callable[[Buffer, np.ndarray], Item],
        join: Callable[[list[Item]], Item],
        start_batch: int = 0,
    ) -> Generator[Item, None, None]:
        """Yield the batches from number `start_batch` on.

        Parameters
        ----------
        load
            Numbers of blocks → their rows, as they lie on disk.
        take
            Such rows and places in them → a batch, or a part of one.
        join
            Parts → a batch.
        """
        held, buffer = -1, None
        for start in range(start_batch * self.batch_size, self.n_rows, self.batch_size):
            stop = min(start + self.batch_size, self.n_rows)
            parts = []
            while start < stop:
                index = int(np.searchsorted(self.buffer_end, start, side="right"))
                first = int(self.buffer_end[index - 1]) if index else 0
                if index != held:
                    buffer = None  # so that two are never in memory
                    buffer = load(self.order[index * BLOCKS_PER_BUFFER : (index + 1) * BLOCKS_PER_BUFFER])
                    size = int(self.buffer_end[index]) - first
                    rows = stream(self.random_state, f"reader.rows.{self.epoch}", index).permutation(size)
                    held = index
                end = min(stop, int(self.buffer_end[index]))
                parts.append(take(buffer, rows[start - first : end - first]))
                start = end
            yield parts[0] if len(parts) == 1 else join(parts)


class BlockReader:
    """Shuffled batches of the rows of memory-mapped arrays, see `BlockOrder`.

    Parameters
    ----------
    shards : list of ndarray, shape (n, d)
        Memory-mapped.
    batch_size : int
    random_state : int
    epoch : int
    """

    def __init__(self, shards: list[np.ndarray], batch_size: int, random_state: int, epoch: int) -> None:
        step = rows_per_block(shards[0].shape[1] * shards[0].itemsize)
        self.shards = shards
        self.blocks = [
            (index, start, min(start + step, len(shard)))
            for index, shard in enumerate(shards)
            for start in range(0, len(shard), step)
        ]
        self.order = BlockOrder([stop - start for _, start, stop in self.blocks], batch_size, random_state, epoch)

    def read(self, start_batch: int = 0) -> Generator[np.ndarray, None, None]:
        """Yield the batches from number `start_batch` on."""
        return self.order.read(self._load, lambda buffer, rows: buffer.take(rows, axis=0), np.concatenate, start_batch)

    def _load(self, blocks: np.ndarray) -> np.ndarray:
        spans = (self.blocks[block] for block in blocks)
        return np.concatenate([self.shards[shard][start:stop] for shard, start, stop in spans])

    def read_ahead(self, start_batch: int = 0, depth: int = 4) -> Generator[np.ndarray, None, None]:
        """Like `read`, in a thread of its own that is up to `depth` batches ahead."""
        return read_ahead(self.read(start_batch), depth)


def rows_per_block(row_bytes: int) -> int:
    """Rows of a block of about a megabyte."""
    return -(-BLOCK_BYTES // row_bytes)


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Run an iterator in a thread, at most `depth` items ahead.

    An exception of the iterator is raised to the consumer in its place; when the
    consumer stops early, for whatever reason, the thread ends.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(entry: tuple[str, object]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(("item", item)):
                    return
            offer(("end", None))
        except BaseException as error:
            offer(("error", error))

    thread = threading.Thread(target=work, name="neurollm-reader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
