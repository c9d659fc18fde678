"""The permutation distribution of the maximum statistic, with the threshold and what was observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, POSITIVE, SMALL, drop_zero, finish, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.glm import ContrastResult


def plot_null_max(result: ContrastResult, alpha: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw the null distribution of the maximum over features of each shuffling.

    Parameters
    ----------
    result : ContrastResult
    alpha : float, default=0.05
        The dashed line is the critical value at this family-wise level.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(4.6, 3.5) if ax is None else ax
    statistic = "F" if result.is_f else "|t|" if result.alternative == "two-sided" else "t"
    ax.set_xlabel(f"largest {statistic} over features")
    ax.set_ylabel("shufflings")
    null = np.asarray(result.null_max, float)
    null = null[np.isfinite(null)]
    observed = observed_max(result)
    if null.size == 0 or not np.isfinite(observed):
        note(ax, "nothing was permuted")
        return finish(ax)
    critical = float(result.critical_value(alpha))
    counts, _, _ = ax.hist(null, bins=min(45, max(8, int(np.sqrt(null.size)))), color=CLOUD, alpha=0.75)
    low, high = min(null.min(), observed), max(null.max(), observed)
    if np.isfinite(critical):
        low, high = min(low, critical), max(high, critical)
    room = 0.06 * max(high - low, 1e-6)
    ax.set_xlim(low - room, high + room)
    top = float(counts.max())
    ax.set_ylim(0, 1.3 * top)
    if np.isfinite(critical):
        _mark(ax, critical, 1.12 * top, f"critical at {drop_zero(alpha, None)}", INK, (4, 2.5))
    _mark(ax, observed, 1.24 * top, "observed", POSITIVE, None)
    return finish(ax)


def observed_max(result: ContrastResult) -> float:
    """The largest statistic in the direction of the alternative; NaN when nothing was tested."""
    stat = np.asarray(result.stat, float)
    stat = stat[np.isfinite(stat)]
    if stat.size == 0:
        return float("nan")
    if result.alternative == "two-sided":  # always so for F
        return float(np.abs(stat).max())
    return float(stat.max() if result.alternative == "greater" else (-stat).max())


def _mark(ax: Axes, x: float, height: float, text: str, color: str, dashes: tuple | None) -> None:
    """A vertical line with its name beside it, on the side where there is room."""
    low, high = ax.get_xlim()
    right = x < low + 0.6 * (high - low)
    ax.plot([x, x], [0, height], color=color, linewidth=1.3, linestyle="-" if dashes is None else (0, dashes))
    ax.annotate(text, (x, height), xytext=(4 if right else -4, 0), textcoords="offset points", color=color,
                ha="left" if right else "right", va="top", fontsize=SMALL)  # fmt: skip
