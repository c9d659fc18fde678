"""Corrections for many tests that work on p values alone."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p values of Benjamini & Hochberg (1995).

    Not for raw p values of few permutations: their floor of 1/(B+1) times the number of features
    leaves nothing to discover.

    Parameters
    ----------
    p : ndarray
        NaN marks a test that was not made: it stays NaN and is not counted.

    Returns
    -------
    ndarray
        The false discovery rate at which each test would be called.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, np.nan, 0.04])).tolist()
    [0.02, nan, 0.04]
    """
    p = np.asarray(p, float)
    q = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    scaled = p[order] * made.size / np.arange(1, made.size + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return q
