"""The course of an RSA over token positions, with what chance reaches anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.plotting.canvas import CLOUD, INK, MUTED, POSITIVE, SMALL, drop_zero, finish, literal, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.rsa.temporal_result import TimeResolvedResult

_MOST_TICKS = 16


def plot_time_course(
    result: TimeResolvedResult,
    feature: Any = None,
    *,
    control: TimeResolvedResult | None = None,
    alpha: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Draw r over positions; filled points pass the threshold over all positions and features, crosses were not tested.

    Parameters
    ----------
    result : TimeResolvedResult
    feature : feature id, optional
        Default: that of the peak.
    control : TimeResolvedResult, optional
        The same analysis of a control, e.g. of ``windows.shuffled()``, drawn behind.
    alpha : float, default=0.05
        Family-wise level of the threshold: the largest z over positions and features, turned into r at each position.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInput
        The feature is not in the result or the control, or the result is of a whole window.
    """
    if not np.issubdtype(result.positions.dtype, np.number):
        raise InvalidInput("plot_time_course: a whole window has no course over positions; fit with per='position'.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    peak = result.peak
    if feature is None and peak is None:
        note(ax, "nothing could be tested")
        return finish(ax)
    feature = peak.feature if feature is None else feature
    course = result.course(feature)
    x, r = course["position"].to_numpy(), course["r"].to_numpy()
    ax.axhline(0, color=CLOUD, linewidth=0.8, zorder=0)
    ax.axvline(0, color=CLOUD, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if control is not None:
        behind = control.course(feature)
        ax.plot(behind["position"], behind["r"], color=CLOUD, linewidth=1.3, marker="o", markersize=3, label="control")
    _threshold(ax, result, course, alpha)
    found = course["p_fwer"].to_numpy() <= alpha
    ax.plot(x, r, color=POSITIVE, linewidth=1.5, zorder=3, label=_name(feature))
    ax.scatter(x[found], r[found], s=34, color=POSITIVE, zorder=4)
    tested = np.isfinite(course["p_fwer"].to_numpy()) & ~found
    ax.scatter(x[tested], r[tested], s=22, facecolor="white", edgecolor=POSITIVE, linewidth=1.0, zorder=4)
    untested = np.isfinite(r) & np.isnan(course["p_fwer"].to_numpy())
    if untested.any():
        ax.scatter(x[untested], r[untested], s=24, marker="x", color=MUTED, linewidth=1.0, zorder=4, label="not tested")
    step = -(-len(x) // _MOST_TICKS)
    ax.set_xticks(x[::step], [f"{p}\n{n:,}" for p, n in zip(x[::step], course["n_trials"][::step], strict=True)])
    ax.set_xlabel(f"tokens from the {result.align}; below: trials")
    ax.set_ylabel(f"r with {literal(result.model)}")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=4, frameon=False, fontsize=SMALL, labelcolor=INK)
    return finish(ax)


def _name(feature: Any) -> str:
    return "region" if str(feature) == "region" else literal(f"feature {feature}")


def _threshold(ax: Axes, result: TimeResolvedResult, course: Any, alpha: float) -> None:
    """What r must reach at each position, where every position has its own spread under the null hypothesis."""
    critical = result.critical_value(alpha)
    if not np.isfinite(critical):
        return
    signs = {"two-sided": (1, -1), "greater": (1,), "less": (-1,)}[result.alternative]
    for sign in signs:
        line = course["mean"] + sign * critical * course["sd"]
        label = f"family-wise {drop_zero(alpha, None)}" if sign == signs[0] else None
        ax.plot(course["position"], line, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2.5)), label=label)
