"""Threshold-free cluster enhancement of a contrast, on a graph of features that does not know the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats import Hypothesis, r_to_f, r_to_t
from neurollm.stats.maxima import share, tied_down
from neurollm.stats.products import ResidualColumns, Statistic, to_numpy
from neurollm.stats.tfce import tfce

_CELLS = 1 << 22  # statistics computed at once
_FINITE = 1 - 1e-12  # a statistic without residual variation would enhance its cluster without bound


def enhanced_test(
    data: Any,
    hypothesis: Hypothesis,
    norms: np.ndarray,
    graph: sparse.sparray,
    *,
    alternative: str,
    n_perm: int,
    random_state: int,
    on_maps: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Enhance the observed map and every shuffled one, and compare with the largest of each.

    Parameters
    ----------
    data : array of any supported kind, shape (n_rows, V)
    hypothesis : Hypothesis
    norms : ndarray, shape (V,)
        NaN or 0 leaves a feature out of the maps.
    graph : sparse array, shape (V, V)
    alternative, n_perm, random_state
        As for `permutation_test`.
    on_maps : callable
        Called with the number of maps enhanced since the last call.

    Returns
    -------
    enhanced, p_fwer : ndarray, shape (V,)
        NaN where a feature is not tested.

    Raises
    ------
    InvalidInput
        The graph is of other features.
    """
    if graph.shape != (norms.size, norms.size):
        raise InvalidInput(
            f"compute_tfce: expected a graph of shape {(norms.size, norms.size)} for {norms.size} features, "
            f"found {graph.shape}."
        )
    tested = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    enhanced, p = np.full(norms.shape, np.nan), np.full(norms.shape, np.nan)
    if not tested.size:
        return enhanced, p
    draws = hypothesis.shuffling.draw(n_perm, random_state)
    statistic = Statistic(hypothesis, "two-sided")  # the direction is judged on the enhanced map
    columns = ResidualColumns(data, norms, hypothesis)
    part = max(1, min(tested.size, _CELLS // 16))
    graph = sparse.csr_array(graph)[tested][:, tested]
    direction = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative]

    def maps(which: np.ndarray | None) -> np.ndarray:
        blocks = [tested[start : start + part] for start in range(0, tested.size, part)]
        r = np.hstack(
            [to_numpy(statistic.exact(draws if which is not None else None, which, columns(b))) for b in blocks]
        )
        r = np.clip(r, -_FINITE, _FINITE)
        t = r_to_t(r, hypothesis.df) if hypothesis.rank == 1 else r_to_f(r, hypothesis.df, hypothesis.rank)
        return direction(tfce(t, graph))

    observed = maps(None)[0]
    null = np.empty(len(draws))
    size = max(1, _CELLS // tested.size)
    for start in range(0, len(draws), size):
        which = np.arange(start, min(start + size, len(draws)))
        null[which] = maps(which).max(axis=1)
        on_maps(which.size)
    beyond = null.size - np.searchsorted(np.sort(null), tied_down(observed), side="left")
    p[tested] = share(beyond, null.size, draws.exhaustive)
    enhanced[tested] = observed if alternative != "less" else -observed
    return enhanced, p
