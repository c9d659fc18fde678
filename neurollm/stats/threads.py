"""Work on blocks of features in threads: numpy, scipy and BLAS let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

FEATURES = 1 << 15  # at a time: their nonzeros stay in a cache, where a million would go to memory and back

Run = Callable[[Callable, Iterable], Iterator]


@contextmanager
def workers(n_jobs: int) -> Iterator[Run]:
    """A `map` over blocks: the plain one, or threads whose products have one BLAS thread each; -1: one per core."""
    if n_jobs == 1:
        yield map
        return
    from threadpoolctl import threadpool_limits

    threads = os.cpu_count() if n_jobs == -1 else n_jobs
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        yield pool.map


def in_parts(function: Callable[[slice], Any], n_columns: int, n_jobs: int = 1) -> list[Any]:
    """``function(columns)`` of every block of at most `FEATURES` columns, in order; one empty block if there are none.

    Examples
    --------
    >>> in_parts(lambda columns: (columns.start, columns.stop), 40_000, n_jobs=2)
    [(0, 32768), (32768, 40000)]
    """
    starts = range(0, max(n_columns, 1), FEATURES)
    with workers(n_jobs) as run:
        return list(run(lambda start: function(slice(start, min(start + FEATURES, n_columns))), starts))
