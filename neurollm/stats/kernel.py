"""The permutation kernel: one blocked matrix product, a running maximum and counts.

With rows ``a`` (see `neurollm.stats.shufflings`) and a feature ``y`` whose norm after removing
what shuffling leaves unchanged is ``ν``, the statistic of every permutation is

    r = a₀·y / ν                              (one row per permutation)
    ρ = r / √(1 − Σ_{j≥1} (a_j·y / ν)²)       (contrasts over more than two levels)

and ``t = ρ √(df / (1 − ρ²))``. ``ν`` does not change under the shuffling (for sign-flips it is
``√Σy²``) and t is monotone in ρ, so max|t| over features is max|ρ|: no t, square root or
division is needed inside the loop for one-row contrasts. All centring is on the side of
the rows; ``Y`` is read only. Memory: one block and the running results, never permutations × features.

Products are float64, so two evaluations of the same arrangement differ by about 1e-15 whatever
the block size, the storage of ``Y`` or the device, and are called tied within a relative 1e-6
(+1e-9 absolute): p values are then identical. With ``dtype="float32"`` the tolerance is 1e-5 and
a p value may move by a count or so when the blocks change.

p = (b + 1) / (B + 1) for B random arrangements; b / B for all arrangements, the observed
one among them (Phipson & Smyth 2010). Never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurollm.stats.arrays import by_columns, dense, is_torch
from neurollm.stats.shufflings import Draws, Shuffling

Alternative = Literal["two-sided", "greater", "less"]

TIES = {"float64": (1e-6, 1e-9), "float32": (1e-5, 1e-6)}
_NOTHING_LEFT = 1e-8  # share of variance below which a feature has none besides the other contrasts


@dataclass(frozen=True)
class PermutationResult:
    """What the kernel found.

    Attributes
    ----------
    r : ndarray, shape (V,)
        Observed (partial) correlation with the contrast; NaN where the feature is not tested.
    p_value, p_fwer : ndarray, shape (V,)
        Uncorrected, and corrected for all tested features by the largest statistic.
    null_max : ndarray, shape (B,)
        Largest t statistic over features in each arrangement, in the direction of the alternative.
    n_perm : int
        Arrangements used. ``exhaustive`` says that they are all, the observed one included.
    exhaustive : bool
    """

    r: np.ndarray
    p_value: np.ndarray
    p_fwer: np.ndarray
    null_max: np.ndarray
    n_perm: int
    exhaustive: bool


def permutation_test(
    Y: Any,
    shuffling: Shuffling,
    norms: np.ndarray,
    *,
    n_perm: int = 10_000,
    alternative: Alternative = "two-sided",
    random_state: int = 0,
    dtype: Literal["float64", "float32"] = "float64",
    block: tuple[int, int] = (256, 1024),
    on_block: Callable[[int], None] | None = None,
) -> PermutationResult:
    """Test every column of `Y` and correct for the number of columns by the largest statistic.

    Parameters
    ----------
    Y : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n_rows, V)
    shuffling : Shuffling
    norms : ndarray, shape (V,)
        The invariant norm ν of each column; NaN or 0 leaves a column out of the test and of the maximum.
    n_perm : int, default=10_000
        If no more arrangements exist, all are enumerated.
    alternative : {"two-sided", "greater", "less"}
    random_state : int, default=0
    dtype : {"float64", "float32"}
        Precision of the products.
    block : (int, int)
        Permutations and columns per product; no influence on the result.
    on_block : callable, optional
        Called with the number of statistics computed since the last call.

    Returns
    -------
    PermutationResult
    """
    tested = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    n_columns = Y.shape[1]
    draws = shuffling.draw(n_perm, random_state)
    r, counts = np.full(n_columns, np.nan), np.zeros(n_columns)
    null = np.full(len(draws.codes), -np.inf)
    scale = np.zeros(n_columns)
    scale[tested] = 1 / norms[tested]
    scale *= -1 if alternative == "less" else 1
    products = _torch_products if is_torch(Y) else _numpy_products
    Y = by_columns(Y)
    for start in range(0, n_columns, block[1]):
        columns = slice(start, min(start + block[1], n_columns))
        if not scale[columns].any():
            continue
        options = (block[0], alternative, dtype, on_block)
        r[columns], counts[columns] = products(Y[:, columns], scale[columns], shuffling, draws, null, options)
    r[scale == 0] = np.nan
    return _p_values(r, counts, null, draws, shuffling.df, alternative, dtype)


def r_to_t(r: np.ndarray, df: float) -> np.ndarray:
    """t statistic of a (partial) correlation; infinite for ±1.

    Examples
    --------
    >>> r_to_t(np.array([0.0, 1.0]), 16).tolist()
    [0.0, inf]
    """
    r = np.clip(r, -1, 1)
    with np.errstate(divide="ignore"):
        return r * np.sqrt(df) / np.sqrt((1 - r) * (1 + r))


def t_to_r(t: np.ndarray, df: float) -> np.ndarray:
    """Inverse of `r_to_t`."""
    t = np.asarray(t, float)
    return np.sign(t) / np.sqrt(1 + df / np.maximum(t**2, np.finfo(float).tiny))


def above_ties(r: np.ndarray) -> np.ndarray:
    """The smallest statistic that is not called tied with `r`."""
    relative, absolute = TIES["float64"]
    return (r + absolute) / (1 - relative * np.sign(r))


def _p_values(r, counts, null, draws, df, alternative, dtype) -> PermutationResult:
    n_perm, plus = len(null), 0 if draws.exhaustive else 1
    untested = np.isnan(r)
    p_value = (counts + plus) / (n_perm + plus)
    beyond = n_perm - np.searchsorted(np.sort(null), _threshold(_extremity(r, alternative), dtype), side="left")
    p_fwer = (beyond + plus) / (n_perm + plus)
    p_value[untested] = p_fwer[untested] = np.nan
    if untested.all():
        null = null[:0]
    # The kernel flips the data for "less", so larger is always more extreme; undo it for the reported r.
    return PermutationResult(
        -r if alternative == "less" else r, p_value, p_fwer, r_to_t(null, df), n_perm, draws.exhaustive
    )


def _extremity(r: np.ndarray, alternative: Alternative) -> np.ndarray:
    return np.abs(r) if alternative == "two-sided" else r


def _threshold(extremity: np.ndarray, dtype: str) -> np.ndarray:
    relative, absolute = TIES[dtype]
    return extremity - (relative * np.abs(extremity) + absolute)


def _numpy_products(Y, scale, shuffling: Shuffling, draws: Draws, null: np.ndarray, options) -> tuple:
    """Observed statistic and exceedance counts of one block of columns; updates the maxima `null` in place."""
    size, alternative, dtype, on_block = options
    tested = scale != 0
    scaled = np.ascontiguousarray(dense(Y)[:, tested] * scale[tested], dtype=dtype)
    table = shuffling.table.astype(dtype)

    def statistics(codes: np.ndarray) -> np.ndarray:
        r = table[0][codes] @ scaled
        if len(table) > 1:
            rest = 1 - sum((row[codes] @ scaled) ** 2 for row in table[1:])
            r = np.where(rest > _NOTHING_LEFT, r / np.sqrt(np.maximum(rest, _NOTHING_LEFT)), 0)
        return r

    observed = statistics(shuffling.codes[None])[0]
    threshold = _threshold(_extremity(observed, alternative), dtype)
    counts = np.zeros(scaled.shape[1], dtype=np.int64)
    total = np.uint16 if size < 65_536 else np.uint64  # a narrow sum is much faster
    for start in range(0, len(draws.codes), size):
        r = statistics(draws.codes[start : start + size])
        if alternative == "two-sided":
            np.abs(r, out=r)
        np.maximum(null[start : start + size], r.max(axis=1), out=null[start : start + size])
        counts += np.add.reduce((r >= threshold).view(np.uint8), axis=0, dtype=total)
        if on_block is not None:
            on_block(r.size)
    full_r, full_counts = np.full(tested.size, np.nan), np.zeros(tested.size)
    full_r[tested], full_counts[tested] = observed, counts
    return full_r, full_counts


def _torch_products(Y, scale, shuffling: Shuffling, draws: Draws, null: np.ndarray, options) -> tuple:
    """The same on the tensor's device (float32 where the device has no float64)."""
    import torch

    size, alternative, dtype, on_block = options
    kind = torch.float32 if dtype == "float32" or Y.device.type == "mps" else torch.float64
    dtype = "float32" if kind is torch.float32 else "float64"
    tested = torch.as_tensor(scale != 0, device=Y.device)
    scaled = Y[:, tested].to(kind) * torch.as_tensor(scale[scale != 0], dtype=kind, device=Y.device)
    table = torch.as_tensor(shuffling.table, dtype=kind, device=Y.device)

    def statistics(codes: np.ndarray) -> Any:
        index = torch.as_tensor(codes, device=Y.device).long()
        r = table[0][index] @ scaled
        if len(table) > 1:
            rest = 1 - sum((row[index] @ scaled) ** 2 for row in table[1:])
            r = torch.where(rest > _NOTHING_LEFT, r / rest.clamp(min=_NOTHING_LEFT).sqrt(), 0)
        return r

    observed = statistics(shuffling.codes[None])[0].double().cpu().numpy()
    threshold = torch.as_tensor(_threshold(_extremity(observed, alternative), dtype), dtype=kind, device=Y.device)
    counts = torch.zeros(scaled.shape[1], dtype=torch.int64, device=Y.device)
    for start in range(0, len(draws.codes), size):
        r = statistics(draws.codes[start : start + size])
        r = r.abs_() if alternative == "two-sided" else r
        here = null[start : start + size]
        np.maximum(here, r.amax(dim=1).double().cpu().numpy(), out=here)
        counts += (r >= threshold).sum(dim=0)
        if on_block is not None:
            on_block(r.numel())
    full_r, full_counts = np.full(len(scale), np.nan), np.zeros(len(scale))
    full_r[scale != 0], full_counts[scale != 0] = observed, counts.cpu().numpy()
    return full_r, full_counts
