"""What each step of a ladder explains, beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, SMALL, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.interactions.ladder_result import LadderResult

STYLES = {"shuffled": (NEGATIVE, "D"), "gaussian": (INK, "s"), "frozen": (MUTED, "^"), "additive": (POSITIVE, "x")}
TOLD = {
    "shuffled": "shuffled codes",
    "gaussian": "truth without pairs",
    "frozen": "random pairs",
    "additive": "with curves of single features",
}
LINEAR = 0.02  # percent of the error around 0 that the axis shows linearly


def plot_ladder(result: LadderResult, ax: Axes | None = None) -> Axes:
    """Draw the gain of every step in percent of the dictionary's error, with 95 % intervals; dots are seeds.

    Parameters
    ----------
    result : LadderResult
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        Its horizontal axis is logarithmic outside ±0.02 %.
    """
    from neurollm.interactions.ladder_result import TOLD as STEP

    table = result.summary()
    error = 1 - float(table.loc[table["step"] == "M0", "r2_heldout"].iloc[0])
    steps = [step for step in table.loc[table["control"] == "", "step"] if step != "M0"]
    ax = new_axes(7.2, 1.5 + 0.7 * len(steps)) if ax is None else ax
    seeds = result.to_frame()
    for place, step in enumerate(steps):
        own = table[(table["step"] == step) & (table["control"] == "")].iloc[0]
        _interval(ax, own, place - 0.24, error, POSITIVE, "o", "held-out documents" if place == 0 else None)
        dots = seeds.loc[seeds["step"] == step, "delta_r2"].to_numpy() / error * 100
        ax.plot(dots, np.full(len(dots), place - 0.24), ".", color=POSITIVE, alpha=0.45, markersize=5, zorder=1)
        for number, (control, (colour, marker)) in enumerate(STYLES.items()):
            found = table[(table["step"] == step) & (table["control"] == control)]
            if len(found) and np.isfinite(found["delta_r2"].iloc[0]):
                _interval(ax, found.iloc[0], place - 0.05 + 0.15 * number, error, colour, marker, None)
    for control, (colour, marker) in STYLES.items():
        if (table["control"] == control).any():
            ax.plot([], [], marker, color=colour, markersize=4, label=TOLD[control])
    ax.axvline(0, color=CLOUD, linewidth=0.9, linestyle=(0, (4, 2.5)), zorder=0)
    ax.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
    ax.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    ax.set_xlabel("gain over the step before, % of the dictionary's error (95% CI; dots: seeds)")
    ax.set_yticks(range(len(steps)), [f"{step}  {STEP[step]}" for step in steps])
    ax.set_ylim(len(steps) - 0.4, -0.6)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handletextpad=0.3,
    )
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    return ax


def _interval(ax: Axes, row: Any, height: float, error: float, colour: str, marker: str, label: str | None) -> None:
    low, mid, high = (float(row[name]) / error * 100 for name in ("ci_low", "delta_r2", "ci_high"))
    ax.plot([low, high], [height, height], color=colour, linewidth=1.2, solid_capstyle="butt")
    ax.plot([mid], [height], marker, color=colour, markersize=5 if marker == "o" else 4, label=label)
