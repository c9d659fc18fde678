"""Many tests at once: adjusted p values, and true discoveries in sets chosen after seeing the data.

False discovery rate: Benjamini & Hochberg (1995, ``bh``), Benjamini & Yekutieli (2001, ``by``, any dependence),
two-stage Benjamini, Krieger & Yekutieli (2006, ``bky``). Family-wise error: Holm (1979, ``holm``), ``bonferroni``.

All-resolutions inference (Goeman & Solari 2011; Rosenblatt et al. 2018). Closed testing with Simes tests: with
m p values in rising order, the largest set that Simes does not reject has

    h = max { i ≤ m : p_(m−i+j) > jα/i for j = 1 … i }

members, and a set S holds at least ``max_u (1 − u + #{i ∈ S : h p_i ≤ uα})`` true discoveries, with confidence 1 − α
for all sets at once, whichever way they were chosen (Goeman et al. 2019, lemma 2). It assumes what
Simes' inequality does (p values that are independent or positively dependent).
The k-th p value stops a size i from ``i ≥ (m − k)α/(α − p_(k))`` on, so h takes one pass over the sorted p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurollm.errors import InvalidInput

Method = Literal["bh", "by", "bky", "holm", "bonferroni"]
METHODS = ("bh", "by", "bky", "holm", "bonferroni")


def adjust(p: np.ndarray, method: Method = "bh", *, alpha: float = 0.05) -> np.ndarray:
    """Adjusted p values: a test is rejected at level α where its adjusted p is at most α.

    Parameters
    ----------
    p : ndarray, shape (V,)
        NaN is not a test: it stays NaN and is not counted.
    method : {"bh", "by", "bky", "holm", "bonferroni"}
    alpha : float, default=0.05
        Only for ``bky``, whose first stage depends on it: its result is to be compared with this α and no other.

    Returns
    -------
    ndarray, shape (V,)

    Raises
    ------
    InvalidInput
        A p is outside 0 … 1 or the method is unknown.

    Examples
    --------
    >>> adjust(np.array([0.01, np.nan, 0.04, 0.03])).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    if method not in METHODS:
        raise InvalidInput(f"method {method!r} is unknown; expected one of {', '.join(METHODS)}.")
    p = _checked(p)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    ranked, m = p[order], order.size
    ranks = np.arange(1, m + 1)
    if method == "bonferroni":
        adjusted = ranked * m
    elif method == "holm":
        adjusted = np.maximum.accumulate(ranked * (m - ranks + 1))
    else:
        adjusted = np.minimum.accumulate((ranked * (m / ranks))[::-1])[::-1]
        if method == "by":
            adjusted = adjusted * np.sum(1 / ranks)
        elif method == "bky":
            rejected = np.count_nonzero(adjusted <= alpha / (1 + alpha))
            # The share of true nulls that the first stage leaves; with all rejected nothing is left to estimate.
            share = 1 - rejected / m if 0 < rejected < m else 1
            adjusted = adjusted * share * (1 + alpha)
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum(adjusted, 1)
    return out


@dataclass(frozen=True)
class TrueDiscoveries:
    """Lower confidence bound of the truly active features in one set.

    Attributes
    ----------
    n_features, n_tested : int
        Members of the set, and those with a p value.
    n_discoveries : int
        At least so many members are truly active.
    proportion : float
        ``n_discoveries / n_features``: untested members count as not discovered. NaN for an empty set.
    """

    n_features: int
    n_tested: int
    n_discoveries: int
    proportion: float


def true_discoveries(p: np.ndarray, sets: Mapping[str, Any], alpha: float = 0.05) -> dict[str, TrueDiscoveries]:
    """Bound from below, with simultaneous confidence 1 − α, how many members of each set are truly active.

    Parameters
    ----------
    p : ndarray, shape (V,)
        One p per feature; NaN: not tested.
    sets : mapping of name to ndarray
        Feature numbers, or a boolean mask of length V. Sets may overlap and may be chosen from the same data.
    alpha : float, default=0.05

    Returns
    -------
    dict of name to TrueDiscoveries

    Raises
    ------
    InvalidInput
        A p is outside 0 … 1, α is not between 0 and 1, or a set names features that do not exist or one twice.

    Examples
    --------
    >>> found = true_discoveries(np.array([1e-4, 1e-4, 0.5, 0.9]), {"first": [0, 1, 2]})
    >>> found["first"].n_discoveries, round(found["first"].proportion, 3)
    (2, 0.667)
    """
    p = _checked(p)
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha is {alpha}; expected a number between 0 and 1.")
    h = _hommel(np.sort(p[~np.isnan(p)]), alpha)
    return {name: _discoveries(p[_members(members, p.size, name)], h, alpha) for name, members in sets.items()}


def _discoveries(p: np.ndarray, h: int, alpha: float) -> TrueDiscoveries:
    tested = np.sort(p[~np.isnan(p)])
    u = np.arange(1, tested.size + 1)
    bounds = 1 - u + np.searchsorted(h * tested, u * alpha, side="right")
    n = int(bounds.max(initial=0))
    return TrueDiscoveries(p.size, tested.size, n, n / p.size if p.size else float("nan"))


def _hommel(ranked: np.ndarray, alpha: float) -> int:
    """Size of the largest set of p values that Simes does not reject."""
    m = ranked.size
    k = np.flatnonzero(ranked <= alpha) + 1  # a larger p stops no size
    ranked = ranked[k - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.ceil((m - k) * alpha / (alpha - ranked))
    first = np.where(k == m, 1, np.maximum(np.where(np.isnan(first), np.inf, first), m - k + 1))
    # Where the bound is a whole number, rounding decides; decide as the comparison with the p values does.
    for _ in range(2):
        lower = first - 1
        first = np.where((lower >= m - k + 1) & (lower * ranked <= (lower - (m - k)) * alpha), lower, first)
    return int(min(first.min(initial=np.inf) - 1, m))


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, float)
    if p.ndim != 1:
        raise InvalidInput(f"p has {p.ndim} dimensions; expected one.")
    wrong = p[(p < 0) | (p > 1)]
    if wrong.size:
        raise InvalidInput(f"p holds {wrong[0]:.4g}; expected numbers from 0 to 1, or NaN where nothing was tested.")
    return p


def _members(members: Any, n_features: int, name: str) -> np.ndarray:
    """Feature numbers of a set."""
    members = np.asarray(members)
    if members.dtype == bool:
        if members.shape != (n_features,):
            raise InvalidInput(f"set '{name}' is a mask of length {members.size}; expected {n_features}.")
        return np.flatnonzero(members)
    members = members.astype(np.intp) if members.size == 0 else members
    if members.ndim != 1 or not np.issubdtype(members.dtype, np.integer):
        raise InvalidInput(f"set '{name}' is not a list of feature numbers or a mask.")
    if members.size and (members.min() < 0 or members.max() >= n_features):
        raise InvalidInput(f"set '{name}' names a feature outside 0 … {n_features - 1}.")
    if np.unique(members).size != members.size:
        raise InvalidInput(f"set '{name}' names a feature twice.")
    return members
