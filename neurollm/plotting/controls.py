"""How well each representation separates the conditions, study first, controls below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.canvas import MUTED, NEGATIVE, POSITIVE, RULE, SMALL, drop_zero, finish, literal, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_controls(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw AUROC with its confidence interval for every representation; chance is .5.

    Parameters
    ----------
    rows : sequence of mappings
        Each with ``representation``, ``kind`` (``"study"`` or ``"control"``),
        ``auroc``, ``ci_low``, ``ci_high``. The study's row is drawn on top.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ordered = sorted(rows, key=lambda row: row.get("kind") != "study")
    ax = new_axes(4.6, 1.0 + 0.34 * max(len(ordered), 2)) if ax is None else ax
    ax.set_xlabel("AUROC (out of fold, 95% CI over items)")
    if not ordered:
        note(ax, "no control was run")
        return finish(ax, keep=("bottom",))
    ax.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2.5)), zorder=0)
    lowest = 0.5
    for place, row in enumerate(ordered):
        auroc, low, high = (_number(row.get(key)) for key in ("auroc", "ci_low", "ci_high"))
        study = row.get("kind") == "study"
        ax.axhline(place, color=RULE, linewidth=0.5, zorder=0)
        if not np.isfinite(auroc):
            ax.text(0.505, place, "not estimable", va="bottom", ha="left", color=MUTED, fontsize=SMALL)
            continue
        color = POSITIVE if study else NEGATIVE
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [place, place], color=color, linewidth=2.0, solid_capstyle="round")
            lowest = min(lowest, low)
        ax.plot(auroc, place, marker="o" if study else "D", color=color, markersize=7 if study else 5.5)
        lowest = min(lowest, auroc)
    left = max(0.0, np.floor((lowest - 0.02) * 10) / 10)
    ax.set_xlim(min(left, 0.4), 1.01)
    ticks = np.arange(round(min(left, 0.4) * 10), 11) / 10
    ax.set_xticks(ticks, [drop_zero(tick) for tick in ticks])
    ax.set_yticks(range(len(ordered)), [literal(row["representation"], 24) for row in ordered])
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    return ax


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
