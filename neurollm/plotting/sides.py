"""What the two sides of a contrast are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class HasWeights(Protocol):
    """Anything with the levels and the weights of a contrast."""

    levels: Sequence[str]
    weights: Sequence[float]


def contrast_sides(result: HasWeights) -> tuple[str, str]:
    """Names of the positive and the negative side of a contrast.

    Parameters
    ----------
    result : ContrastResult
        Only ``levels`` and ``weights`` are read.

    Returns
    -------
    tuple of str
        Levels of one side joined with "and"; ``"zero"`` where a side has no level.
    """
    pairs = list(zip(result.levels, result.weights, strict=True))
    positive = [str(level) for level, weight in pairs if weight > 0]
    negative = [str(level) for level, weight in pairs if weight < 0]
    return _join(positive), _join(negative)


def _join(names: list[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "zero"
    return ", ".join(names[:-1]) + " and " + names[-1]
