"""Top contexts of features, cut to a size that fits into one page and into one glance."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from neurollm.reporting.formatting import is_number, significant

MAX_CONTEXTS = 10
"""Of one feature in one source."""
TOKEN_BUDGET = 24_000
"""Tokens of all contexts of one page: what keeps the file under 2 MB even when every token is active."""
MAX_WINDOW = 80
MIN_WINDOW = 16
LEVELS = 9
"""Shades of colour; each is a class of the stylesheet."""


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one shade (0 = no colour)."""

    text: str
    level: int
    value: str


@dataclass(frozen=True)
class Context:
    """One stretch of text with its activations as shades."""

    document: str
    source: str
    activation: str
    runs: tuple[Run, ...]
    cut_before: bool
    cut_after: bool


def fit(features: list[list[dict[str, Any]]], budget: int = TOKEN_BUDGET) -> tuple[int, int]:
    """How much of the saved contexts of all `features` of a page fits into it.

    Parameters
    ----------
    features : list of lists of saved contexts
    budget : int
        Tokens of all contexts together.

    Returns
    -------
    most : int
        Contexts of one feature from one source.
    window : int
        Tokens of a context.

    Examples
    --------
    >>> entries = [{"source": "books"}] * 10
    >>> fit([entries]), fit([entries] * 60), fit([entries] * 1000)
    ((10, 80), (10, 40), (1, 24))
    """
    for most in range(MAX_CONTEXTS, 0, -1):
        n = sum(len(choose(saved, most)) for saved in features)
        if n * MIN_WINDOW <= budget:
            break
    return most, max(MIN_WINDOW, min(MAX_WINDOW, budget // max(n, 1)))


def choose(saved: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The first contexts of a feature from each source, source by source."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for entry in saved:
        sources.setdefault(str(entry.get("source", "")), []).append(entry)
    return [entry for entries in sources.values() for entry in entries[:most]]


def shown_contexts(saved: list[dict[str, Any]], most: int, window: int) -> list[Context]:
    """The contexts of one feature, shaded on a scale common to all of them."""
    chosen = choose(saved, most)
    values = [value for entry in chosen for _, value in entry.get("tokens", []) if is_number(value)]
    top = max(values, default=0.0)
    return [_context(entry, window, top) for entry in chosen]


def _context(entry: dict[str, Any], window: int, top: float) -> Context:
    tokens = entry.get("tokens", [])
    peak = min(max(int(entry.get("peak") or 0), 0), max(len(tokens) - 1, 0))
    start = max(0, min(peak - window // 2, len(tokens) - window))
    kept = tokens[start : start + window]
    return Context(
        document=str(entry.get("document", "")),
        source=str(entry.get("source", "")),
        activation=significant(entry.get("activation")),
        runs=tuple(_runs(kept, top)),
        cut_before=start > 0,
        cut_after=start + window < len(tokens),
    )


def _runs(tokens: list[list[Any]], top: float) -> list[Run]:
    """Every active token by itself, inactive neighbours together."""
    shaded = [(str(text), _level(value, top), value) for text, value in tokens]
    runs: list[Run] = []
    for active, group in itertools.groupby(shaded, key=lambda token: token[1] > 0):
        if not active:
            runs.append(Run(_one_line("".join(text for text, _, _ in group)), 0, ""))
            continue
        for text, level, value in group:
            word = _one_line(text)
            bare = word.lstrip(" ")
            if bare and bare != word:  # the space before a word stays uncoloured
                runs.append(Run(word[: -len(bare)], 0, ""))
            runs.append(Run(bare or word, level, significant(value)))
    return runs


def _one_line(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "↵ ").replace("\t", " ")


def _level(value: Any, top: float) -> int:
    """Shade of an activation: 0 for none, `LEVELS` for the largest."""
    if not is_number(value) or value <= 0 or top <= 0:
        return 0
    return max(1, min(LEVELS, round(LEVELS * value / top)))
