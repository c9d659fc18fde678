"""One pass over all arrangements and columns: observed, screened and confirmed statistics.

See `neurollm.stats.kernel` for the three steps, `neurollm.stats.products` for the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from neurollm.stats import lookup
from neurollm.stats.maxima import StepDown
from neurollm.stats.products import ResidualColumns, Statistic, float32_copy, to_numpy
from neurollm.stats.shufflings import Draws
from neurollm.stats.threads import Run

_SEGMENT = 64, 1024  # columns under one bound: few to confirm, enough for a fast maximum
_KEPT = 2**24  # numbers kept for a chunk of arrangements: 64 MB of float32
_CHUNK = 2**14  # arrangements at most
_LOOKED_UP = 2048  # arrangements per lookup


class Scan:
    """The statistics of one hypothesis.

    Parameters
    ----------
    columns : ResidualColumns
    statistic : Statistic
    draws : Draws
    tested : ndarray of int
        Columns to test.
    block : (int, int)
        Arrangements and columns per product.
    run : callable
        ``run(function, tasks)`` yields the results in order, like `map`.

    Attributes
    ----------
    observed : ndarray
        ρ of the tested columns.
    """

    def __init__(
        self,
        columns: ResidualColumns,
        statistic: Statistic,
        draws: Draws,
        tested: np.ndarray,
        block: tuple[int, int],
        run: Run,
    ) -> None:
        self._columns, self._statistic, self._draws, self._run = columns, statistic, draws, run
        self._batch, self._width = block
        self._looked_up = False
        if columns.device is not None and columns.device.type != "cpu":
            self._batch = _CHUNK  # a large product per launch
        self.tested = tested
        parts = run(lambda part: to_numpy(statistic.exact(None, None, columns(part)))[0], _parts(tested, self._width))
        self.observed = np.concatenate([np.empty(0), *parts])

    def through(self, count: bool, on_block: Callable[[int], None]) -> tuple[StepDown, np.ndarray]:
        """Go through all arrangements.

        Parameters
        ----------
        count : bool
            Count exceedances of every column too, with float64 products.
        on_block : callable
            Called with the number of statistics computed since the last call.

        Returns
        -------
        maxima : StepDown
        counts : ndarray of int, shape (len(tested),)
            Arrangements that reach each observed statistic; only with `count`.
        """
        maxima = StepDown(self._statistic.extremity(self.observed))
        counts = np.zeros(self.tested.size, dtype=np.int64)
        top, below = maxima.top, maxima.below
        X_top = self._columns(self.tested[top]) if top.size else None
        screen = not count
        self._looked_up = screen and self._looks_up(below.size)
        for chunk in self._chunks(below.size):
            rest = self._screened(below, chunk, maxima, on_block) if screen else None
            if rest is None:
                screen = False
                rest, counts_below = self._scanned(below, chunk, maxima.thresholds, on_block)
                counts[below] += counts_below
            batches = [chunk[start : start + self._batch] for start in range(0, chunk.size, self._batch)]
            done = 0
            for values in self._run(lambda batch: self._full(batch, X_top), batches):
                if count:
                    counts[top] += np.count_nonzero(values >= maxima.thresholds[top], axis=0)
                maxima.add(values, rest[done : done + len(values)])
                done += len(values)
                on_block(values.size)
        return maxima, counts

    def _chunks(self, n_columns: int) -> Iterator[np.ndarray]:
        """Numbers of the arrangements whose rows and bounds are kept at a time."""
        bounds = n_columns // self._segment(n_columns) + 1
        numbers = max(self._statistic.n_products * self._columns.n_rows, bounds)
        size = max(self._batch, min(_KEPT // numbers, _CHUNK))
        for start in range(0, len(self._draws), size):
            yield np.arange(start, min(start + size, len(self._draws)))

    def _segment(self, n_columns: int) -> int:
        """Columns under one bound: about a 64th of all, in limits, and a full block a multiple of it."""
        smallest, largest = _SEGMENT
        wanted = lookup.COLUMNS if self._looked_up else int(np.clip(n_columns // 64, smallest, largest))
        return -(-self._width // max(self._width // wanted, 1))

    def _looks_up(self, n_columns: int) -> bool:
        """Whether sums can be looked up, and the products are so many that it is worth the import of torch."""
        on_cpu = self._columns.device is None or self._columns.device.type == "cpu"
        numbers = self._statistic.n_products * self._columns.n_rows * n_columns * len(self._draws)
        return on_cpu and numbers >= lookup.WORTHWHILE and self._statistic.has_words(self._draws)

    def _full(self, which: np.ndarray, X: Any) -> np.ndarray:
        """Extremities of some arrangements for all columns of X."""
        if X is None:
            return np.empty((len(which), 0))
        return to_numpy(self._statistic.extremity(self._statistic.exact(self._draws, which, X)))

    def _largest(self, which: np.ndarray, X: Any) -> np.ndarray:
        """Largest extremity of some arrangements over the columns of X."""
        found = [np.empty(0)]
        for start in range(0, len(which), self._batch):
            values = self._statistic.exact(self._draws, which[start : start + self._batch], X)
            found.append(to_numpy(self._statistic.largest(values)))
        return np.concatenate(found)

    def _scanned(self, below: np.ndarray, chunk: np.ndarray, thresholds: np.ndarray, on_block: Callable) -> tuple:
        """Largest statistics and numbers of exceedances, all in float64."""
        largest, counts = np.full(chunk.size, -np.inf), [np.zeros(0, dtype=np.int64)]
        parts = _parts(below, self._width)

        def scan(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            X, maxima, reached = self._columns(self.tested[part]), [], 0
            for start in range(0, chunk.size, self._batch):
                values = self._full(chunk[start : start + self._batch], X)
                maxima.append(values.max(axis=1))
                reached = reached + np.count_nonzero(values >= thresholds[part], axis=0)
            return np.concatenate(maxima), reached

        for part, (maxima, reached) in zip(parts, self._run(scan, parts), strict=True):
            np.maximum(largest, maxima, out=largest)
            counts.append(reached)
            on_block(part.size * chunk.size)
        return largest, np.concatenate(counts)

    def _screened(
        self, below: np.ndarray, chunk: np.ndarray, maxima: StepDown, on_block: Callable
    ) -> np.ndarray | None:
        """Largest statistics by float32 bounds and float64 confirmation; None where a bound turns out wrong."""
        if not below.size:
            return np.full(chunk.size, -np.inf)
        size = self._segment(below.size)
        parts = _parts(below, self._width)
        segments = [segment for part in parts for segment in _parts(part, size)]
        if self._looked_up:
            import torch

            device, product = torch.device("cpu"), (_LOOKED_UP, size)
            rows = self._statistic.words(self._draws, chunk)
        else:
            device, product = self._columns.device, (self._batch, -(-self._width // size) * size)
            rows = self._statistic.matrices(self._draws, chunk, device)
        bounds, done = np.empty((chunk.size, len(segments)), dtype=np.float32), 0

        def screen(part: np.ndarray) -> np.ndarray:
            X = float32_copy(self._columns(self.tested[part]), device, size)
            return self._statistic.upper_bounds(rows, X, size, product)

        threads = lookup.one_thread_each if self._looked_up and self._run is not map else nullcontext
        with threads():
            for part, found in zip(parts, self._run(screen, parts), strict=True):
                bounds[:, done : done + found.shape[1]] = found
                done += found.shape[1]
                on_block(part.size * chunk.size)
        return self._confirmed(bounds, segments, chunk, np.sort(maxima.thresholds))

    def _confirmed(
        self, bounds: np.ndarray, segments: list[np.ndarray], chunk: np.ndarray, thresholds: np.ndarray
    ) -> np.ndarray | None:
        """Float64 maxima where the bounds are highest, and wherever they could change a decision."""
        everyone, best = np.arange(chunk.size), bounds.argmax(axis=1)
        lower = self._maxima_in(chunk, segments, best)
        if (lower > bounds[everyone, best]).any():
            return None
        bounds[everyone, best] = -np.inf
        upper = bounds.max(axis=1)
        between = np.searchsorted(thresholds, upper, "right") > np.searchsorted(thresholds, lower, "right")
        arrangement, segment = np.nonzero(between[:, None] & (bounds > lower[:, None]))
        np.maximum.at(lower, arrangement, self._maxima_in(chunk[arrangement], segments, segment))
        return lower

    def _maxima_in(self, which: np.ndarray, segments: list[np.ndarray], segment: np.ndarray) -> np.ndarray:
        """Largest statistic of arrangement ``which[i]`` in segment ``segment[i]``."""
        found = np.empty(which.size)
        order = np.argsort(segment, kind="stable")
        starts = np.flatnonzero(np.diff(segment[order], prepend=-1))
        groups = np.split(order, starts[1:]) if order.size else []

        def maxima(group: np.ndarray) -> np.ndarray:
            return self._largest(which[group], self._columns(self.tested[segments[segment[group[0]]]]))

        for group, values in zip(groups, self._run(maxima, groups), strict=True):
            found[group] = values
        return found


def _parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[start : start + size] for start in range(0, numbers.size, size)]
