"""Work on blocks of features in threads: numpy, scipy and BLAS let go of Python's lock."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

FEATURES = 1 << 15  # at a time: their nonzeros stay in a cache, where a million would go to memory and back

_BRING_BLAS = ("numpy.linalg", "scipy.linalg", "torch")

Run = Callable[[Callable, Iterable], Iterator]


@contextmanager
def workers(n_jobs: int) -> Iterator[Run]:
    """A `map` over blocks: the plain one, or threads whose products have one BLAS thread each; -1: one per core."""
    if n_jobs == 1:
        yield map
        return
    libraries = _blas(tuple(sys.modules.get(name) is not None for name in _BRING_BLAS))
    with libraries.limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads(n_jobs)) as pool:
        yield pool.map


def n_threads(n_jobs: int) -> int:
    """Number of threads; -1: one per core."""
    return (os.cpu_count() or 1) if n_jobs == -1 else n_jobs


@cache
def _blas(loaded: tuple[bool, ...]) -> Any:
    """The BLAS libraries of the modules that are loaded: looking for them takes longer than many a test."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


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
