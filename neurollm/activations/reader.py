"""Shuffled reading from disk at the speed of sequential reading."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import numpy as np

from neurollm.random import stream

Item = TypeVar("Item")

BLOCK_BYTES = 1 << 20
BLOCKS_PER_BUFFER = 64


class BlockReader:
    """Batches of rows in a random order that is made of large sequential reads.

    The blocks of all shards are put in random order; each 64 consecutive ones form a
    buffer, whose rows are permuted. The batches are cut from the sequence of buffers,
    so the place of any batch follows from its number.

    Parameters
    ----------
    shards : list of ndarray, shape (n, d)
        Memory-mapped.
    batch_size : int
    random_state : int
    epoch : int
        Another epoch is another order.
    """

    def __init__(self, shards: list[np.ndarray], batch_size: int, random_state: int, epoch: int) -> None:
        self.shards, self.batch_size, self.random_state, self.epoch = shards, batch_size, random_state, epoch
        row_bytes = shards[0].shape[1] * shards[0].itemsize
        step = -(-BLOCK_BYTES // row_bytes)
        blocks = [
            (index, start, min(start + step, len(shard)))
            for index, shard in enumerate(shards)
            for start in range(0, len(shard), step)
        ]
        order = stream(random_state, "reader.blocks", epoch).permutation(len(blocks))
        self.blocks = [blocks[index] for index in order]
        sizes = np.array([stop - start for _, start, stop in self.blocks])
        self.buffer_end = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), BLOCKS_PER_BUFFER)))
        self.n_rows = int(self.buffer_end[-1])

    def read(self, start_batch: int = 0) -> Generator[np.ndarray, None, None]:
        """Yield the batches from number `start_batch` on."""
        held, buffer = -1, np.empty(0)
        for start in range(start_batch * self.batch_size, self.n_rows, self.batch_size):
            stop = min(start + self.batch_size, self.n_rows)
            parts = []
            while start < stop:
                index = int(np.searchsorted(self.buffer_end, start, side="right"))
                if index != held:
                    del buffer  # so that two are never in memory
                    held, buffer, rows = index, *self._buffer(index)
                first = int(self.buffer_end[index]) - len(rows)
                end = min(stop, int(self.buffer_end[index]))
                parts.append(buffer.take(rows[start - first : end - first], axis=0))
                start = end
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _buffer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a buffer as they lie on disk, and the order to take them in."""
        blocks = self.blocks[index * BLOCKS_PER_BUFFER : (index + 1) * BLOCKS_PER_BUFFER]
        data = np.concatenate([self.shards[shard][start:stop] for shard, start, stop in blocks])
        return data, stream(self.random_state, f"reader.rows.{self.epoch}", index).permutation(len(data))

    def read_ahead(self, start_batch: int = 0, depth: int = 4) -> Generator[np.ndarray, None, None]:
        """Like `read`, in a thread of its own that is up to `depth` batches ahead."""
        return read_ahead(self.read(start_batch), depth)


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
