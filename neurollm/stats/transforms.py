"""Elementwise transforms of activations, all of which keep zero at zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neurollm.errors import InvalidInput


def _log1p(values: np.ndarray) -> np.ndarray:
    if values.size and np.nanmin(values) < 0:
        raise InvalidInput(
            f"transform 'log1p' needs activations of at least 0, found {np.nanmin(values):.4g}; use transform 'raw'."
        )
    return np.log1p(values)


def _binary(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values != 0, np.nan)


# "rank" ranks the rows of the item table (`neurollm.stats.ranks`) and leaves single trials as they are.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "raw": None,
    "log1p": _log1p,
    "binary": _binary,
    "rank": None,
}
