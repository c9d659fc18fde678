"""What a contrast compares, in names, and which p value decides about its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neurollm.designs import Contrast
    from neurollm.glm import ContrastResult

MOST_NAMES = 5
"""Of one side; more are counted."""


def contrast_sides(contrast: Contrast) -> tuple[str, str]:
    """Names of the positive and the negative side of a t contrast.

    Parameters
    ----------
    contrast : Contrast

    Returns
    -------
    tuple of str
        Levels or cells of one side joined with "and" (of a main effect: the level that its cells share);
        ``"zero"`` where a side has none.

    Examples
    --------
    >>> from neurollm.designs import Contrast
    >>> contrast_sides(Contrast.parse("a + b - 2*c", ["a", "b", "c"]))
    ('a and b', 'c')
    """
    pairs = list(zip(contrast.parameters, contrast.weights[0], strict=True))
    sides = [[name for name, weight in pairs if sign * weight > 0] for sign in (1, -1)]
    positive, negative = (side_name(names, contrast) for names in sides)
    return positive, negative


def compares_cells(result: ContrastResult) -> bool:
    """Whether the contrast weighs means of conditions; otherwise it is about coefficients of a formula."""
    used = result.contrast.matrix.any(axis=0)
    names = [name for name, weighed in zip(result.contrast.parameters, used, strict=True) if weighed]
    return set(names) <= set(result.conditions)


def has_sides(result: ContrastResult) -> bool:
    """Whether the contrast says that some conditions have more than others."""
    return not result.is_f and compares_cells(result)


def decisive_p(result: ContrastResult) -> tuple[np.ndarray, str]:
    """The p that is compared with the level, and its symbol: p_FWER, or q where nothing was permuted."""
    values, symbol = (result.p_fwer, "p_FWER") if result.exchange.n_perm else (result.q, "q")
    return np.asarray(values, float), symbol


def side_name(names: Sequence[str], contrast: Contrast) -> str:
    """What cells are called together: the level they share, if a main effect compares such levels, else all names."""
    if len(contrast.factors) == 1 and len(names) > 1:
        parts = [name.split(":") for name in names]
        shared = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
        if len({len(part) for part in parts}) == 1 and len(shared) == 1:
            return shared[0]
    return joined(names)


def joined(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many.

    Examples
    --------
    >>> joined(["a", "b", "c"]), joined([]), joined(list("abcdefgh"))
    ('a, b and c', 'zero', 'a, b, c, d and 4 others')
    """
    names = [str(name) for name in names]
    if len(names) < 2:
        return names[0] if names else "zero"
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} others"
    return f"{', '.join(names[:-1])} and {names[-1]}"
