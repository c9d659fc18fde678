"""One progress display for all long work: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

logger = logging.getLogger("neurollm")

LOG_EVERY_SECONDS = 10.0


class Progress:
    """Show how far a task is, its rate and when it will end.

    Parameters
    ----------
    description : str
        What is being done, e.g. ``"harvest"``.
    total : int or None
        Number of units, or None when it is not known.
    unit : str
        Name of the unit, e.g. ``"tokens"``.
    verbose : int, default=1
        0 shows nothing.

    Examples
    --------
    >>> with Progress("count", 3, "steps", verbose=0) as progress:
    ...     for _ in range(3):
    ...         progress.advance(1)
    """

    def __init__(self, description: str, total: int | None, unit: str, verbose: int = 1) -> None:
        self.description, self.total, self.unit, self.verbose = description, total, unit, verbose
        self.done = 0
        self._note = ""
        self._bar = None

    def __enter__(self) -> Progress:
        self._start = self._last_log = time.monotonic()
        if self.verbose:
            self._bar = _open_bar(self.description, self.total, self.unit)
        return self

    def advance(self, amount: int, note: str = "") -> None:
        """Report `amount` more units done; `note` is a short text such as the loss."""
        self.done += amount
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=self._note, rate=self._rate())
        elif self.verbose and time.monotonic() - self._last_log > LOG_EVERY_SECONDS:
            self._last_log = time.monotonic()
            logger.info("%s", self._line())

    def skip(self, amount: int) -> None:
        """Count `amount` units that an earlier run had done: they do not enter the rate."""
        self.total = None if self.total is None else self.total - amount
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.total)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self.done / seconds:,.0f} {self.unit}/s"

    def _line(self) -> str:
        share = f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        left = ""
        if self.total and self.done:
            seconds = (time.monotonic() - self._start) * (self.total / self.done - 1)
            left = f", {seconds:.0f} s left"
        return f"{self.description}: {share} {self.unit}, {self._rate()}{left} {self._note}".rstrip()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.verbose and kind is None:
            logger.info("%s", self._line())


def _open_bar(description: str, total: int | None, unit: str):
    """A started rich bar when standard error is a terminal, else None."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
    bar.start()
    bar.add_task(description, total=total, rate="", note="")
    return bar
