"""The shuffled reader: every row once, O(1) resume, clean endings."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from neurollm.activations import reader as reader_module
from neurollm.activations.reader import BlockReader, read_ahead
from neurollm.errors import InvalidInput


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", 64)
    monkeypatch.setattr(reader_module, "BLOCKS_PER_BUFFER", 5)


@pytest.fixture
def shards():
    numbers = np.arange(2 * 1003, dtype=np.int32).reshape(-1, 2)
    return [numbers[:400], numbers[400:401], numbers[401:]]


def rows_of(reader: BlockReader, start: int = 0) -> list[np.ndarray]:
    return [batch[:, 0] // 2 for batch in reader.read(start)]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100, 5000])
def test_every_row_exactly_once_per_epoch(small_blocks, shards, batch_size):
    batches = rows_of(BlockReader(shards, batch_size, 0, 0))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sorted(np.concatenate(batches)) == list(range(1003))


@pytest.mark.parametrize("start", [0, 1, 5, 9, 15, 16, 40])
def test_starting_later_gives_the_same_sequence(small_blocks, shards, start):
    whole = rows_of(BlockReader(shards, 64, 3, 2))
    later = rows_of(BlockReader(shards, 64, 3, 2), start)
    assert len(later) == max(0, len(whole) - start)
    assert all(np.array_equal(a, b) for a, b in zip(whole[start:], later, strict=True))


def test_epochs_and_seeds_differ_and_batch_size_does_not_change_the_order(small_blocks, shards):
    order = {key: np.concatenate(rows_of(BlockReader(shards, 64, *key))) for key in [(0, 0), (0, 1), (1, 0)]}
    assert not np.array_equal(order[0, 0], order[0, 1]) and not np.array_equal(order[0, 0], order[1, 0])
    assert np.array_equal(order[0, 0], np.concatenate(rows_of(BlockReader(shards, 10, 0, 0))))


def test_a_start_reads_no_buffer_before_it(small_blocks, shards, monkeypatch):
    read = []
    real = BlockReader._load
    monkeypatch.setattr(BlockReader, "_load", lambda self, blocks: (read.append(blocks[0]), real(self, blocks))[1])
    reader = BlockReader(shards, 10, 0, 0)
    next(reader.read(90))
    places = [reader.order.order.tolist().index(block) for block in read]
    assert len(read) <= 2 and min(places) > 10 * 5


def test_batches_of_a_store(store):
    whole = torch.cat(list(store.batches(100, random_state=1)))
    rows = store.rows(0, store.n_rows)
    assert whole.shape == rows.shape and not torch.equal(whole, rows)
    assert torch.equal(whole.sort(0).values, rows.sort(0).values)
    later = list(store.batches(100, random_state=1, start_batch=5, prefetch=False))
    assert torch.equal(torch.cat(later), whole[500:]) and len(later) == store.n_batches(100) - 5
    with pytest.raises(InvalidInput, match="batch_size is 0"):
        store.batches(0)


def test_stored_bfloat16_is_read_exactly(lm, corpus, site, tmp_path):
    from neurollm.activations import harvest

    store = harvest(lm, corpus, site, tmp_path, verbose=0)
    batch = next(store.batches(50, dtype=torch.bfloat16))
    assert batch.dtype == torch.bfloat16 and torch.equal(batch.float(), next(store.batches(50)))


def readers() -> int:
    return sum(thread.name == "neurollm-reader" for thread in threading.enumerate())


def test_leaving_early_ends_the_thread(store):
    for batch in store.batches(10):
        assert len(batch) == 10
        break
    assert readers() == 0
    with pytest.raises(RuntimeError, match="mine"):
        for _ in store.batches(10):
            raise RuntimeError("mine")
    assert readers() == 0


def test_a_failure_of_the_reader_reaches_the_consumer():
    def failing():
        yield 1
        raise OSError("the disk is gone")

    items = read_ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert readers() == 0
