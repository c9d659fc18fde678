"""Family-wise error over several contrasts together, from their saved results alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.glm.result import ContrastResult
from neurollm.stats.maxima import share, tied_down


def fwer_across_contrasts(results: Mapping[str, ContrastResult]) -> dict[str, np.ndarray]:
    """Correct for all features of all contrasts at once.

    The largest statistic of each contrast is turned into its rank among all shufflings, which makes t and F
    statistics of different degrees of freedom comparable, and the smallest of these ranks over contrasts is compared
    (min-p of max-T: Westfall & Young 1993, section 2.6). Contrasts that exchange the same units in the same way used
    the same shufflings, so their dependence is used; between others Bonferroni's factor is paid.

    Parameters
    ----------
    results : mapping from str to ContrastResult
        From one data set, with the same `n_perm` and `random_state`.

    Returns
    -------
    dict from str to ndarray of shape (V,)
        Corrected p of every feature; NaN where it was not tested.

    Raises
    ------
    InvalidInput
        There is no result, or one was made without permutations.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import FactorialDesign
    >>> from neurollm.glm import FeatureGLM
    >>> cells = [("formal", "sad"), ("formal", "glad"), ("casual", "sad"), ("casual", "glad")]
    >>> obs = pd.DataFrame(cells * 12, columns=["formality", "emotion"]).assign(item=np.repeat(np.arange(12), 4))
    >>> X = np.random.default_rng(0).normal(size=(48, 20))
    >>> X[::2, 3] += 3
    >>> results = FeatureGLM(FactorialDesign(["formality", "emotion"]), n_perm=500).fit(X, obs).compute_contrasts()
    >>> p = fwer_across_contrasts(results)
    >>> bool(p["emotion"][3] < 0.05), bool((p["emotion"] >= results["emotion"].p_fwer).all())
    (True, True)
    """
    if not results:
        raise InvalidInput("fwer_across_contrasts: no results were given.")
    empty = [name for name, result in results.items() if not len(result.null_max)]
    if empty:
        raise InvalidInput(f"fwer_across_contrasts: '{empty[0]}' was made without permutations (n_perm=0).")
    families: dict[tuple, list[str]] = {}
    for name, result in results.items():
        exchange = result.exchange
        key = (
            exchange.kind,
            exchange.unit,
            exchange.n_units,
            exchange.n_possible,
            exchange.n_perm,
            exchange.random_state,
        )
        families.setdefault(key, []).append(name)
    corrected: dict[str, np.ndarray] = {}
    for names in families.values():
        smallest = np.min([_ranks(results[name]) for name in names], axis=0)
        for name in names:
            corrected[name] = np.minimum(1, len(families) * _joint(results[name], smallest))
    return {name: corrected[name] for name in results}


def _sizes(result: ContrastResult) -> np.ndarray:
    return {"two-sided": np.abs(result.stat), "greater": result.stat, "less": -result.stat}[result.alternative]


def _ranks(result: ContrastResult) -> np.ndarray:
    """p of each shuffling's largest statistic among all of them, the observed one included."""
    pool = result.null_max
    if not result.exchange.exhaustive:
        pool = np.append(pool, np.nanmax(_sizes(result)))
    return _reached(np.sort(pool), pool) / pool.size


def _joint(result: ContrastResult, smallest: np.ndarray) -> np.ndarray:
    """From the shufflings themselves: a fitted tail does not enter."""
    p = share(_reached(np.sort(result.null_max), _sizes(result)), len(result.null_max), result.exchange.exhaustive)
    reached = np.searchsorted(np.sort(smallest), p * (1 + 1e-9), side="right") / smallest.size
    return np.where(np.isnan(result.stat), np.nan, np.maximum(reached, p))


def _reached(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    return ordered.size - np.searchsorted(ordered, tied_down(values), side="left")
