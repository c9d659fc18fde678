"""KL of reconstructions beside noise of the same length, and the ratio of the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, RULE, SMALL, finish, literal, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.interactions.perturbation_result import PerturbationResult

# The reconstruction, then the noises: told apart by marker as well as by colour.
OWN = (POSITIVE, "o")
STYLES = {"isotropic": (NEGATIVE, "D"), "covariance": (INK, "s"), "shuffled": (MUTED, "^")}


def plot_perturbation(result: PerturbationResult, axes: Any = None) -> tuple[Axes, Axes]:
    """Draw KL of every condition beside its noises, and KL over that of each noise, with 95 % intervals.

    Parameters
    ----------
    result : PerturbationResult
    axes : pair of matplotlib Axes, optional

    Returns
    -------
    tuple of two matplotlib.axes.Axes
        KL, with logarithmic axis, and the ratio; one line of text for each condition.
    """
    if axes is None:
        whole = new_axes(8.2, 1.5 + 0.62 * max(len(result.conditions), 2))
        figure = whole.figure
        whole.remove()
        axes = figure.subplots(1, 2, sharey=True)
    kl, ratio = axes
    frame = result.to_frame()
    _kl_panel(kl, frame, result)
    _ratio_panel(ratio, frame, result)
    for ax in (kl, ratio):
        for place in range(1, len(result.conditions)):
            ax.axhline(place - 0.5, color=RULE, linewidth=0.5, zorder=0)
        ax.set_yticks(range(len(result.conditions)), [literal(name, 24) for name in result.conditions])
        ax.set_ylim(len(result.conditions) - 0.5, -0.5)
        finish(ax, keep=("bottom",))
        ax.tick_params(axis="y", length=0)
    return kl, ratio


def _kl_panel(ax: Axes, frame: Any, result: PerturbationResult) -> None:
    rows = 1 + len(result.noises)
    first = frame.drop_duplicates("condition")
    drawn = _intervals(ax, first, "kl", _height(0, rows), OWN, "reconstruction")
    for place, noise in enumerate(result.noises, start=1):
        of = frame[frame["noise"] == noise]
        drawn += _intervals(ax, of, "kl_noise", _height(place, rows), STYLES[noise], f"{noise} noise")
    ax.set_xlabel("KL, nats per token (log scale, 95% CI over documents)")
    if not drawn:
        note(ax, "no KL is above 0")
        return
    ax.set_xscale("log")
    _plain_ticks(ax)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handletextpad=0.3,
        columnspacing=1.2,
    )


def _ratio_panel(ax: Axes, frame: Any, result: PerturbationResult) -> None:
    drawn = 0
    for place, noise in enumerate(result.noises):
        of = frame[frame["noise"] == noise]
        drawn += _intervals(ax, of, "ratio", _height(place, len(result.noises)), STYLES[noise], None)
    ax.set_xlabel("KL of the reconstruction / KL of the noise")
    if not drawn:
        note(ax, "no ratio is defined")
        return
    ax.axvline(1.0, color=CLOUD, linewidth=0.9, linestyle=(0, (4, 2.5)), zorder=0)
    ax.set_xscale("log")
    _plain_ticks(ax)
    ax.set_title(
        f"{len(result.n_predicted):,} documents, {int(result.n_predicted.sum()):,} tokens",
        loc="right",
        fontsize=SMALL,
        color=MUTED,
    )


def _height(place: int, rows: int) -> float:
    """Where a row stands beside the middle of its condition."""
    return (place - (rows - 1) / 2) * 0.66 / max(rows - 1, 1)


def _intervals(ax: Axes, rows: Any, name: str, offset: float, style: tuple[str, str], label: str | None) -> int:
    """Points with intervals, a row for each condition; the number of points drawn."""
    color, marker = style
    x = rows[name].to_numpy(float)
    y = np.arange(len(x)) + offset
    shown = np.isfinite(x) & (x > 0)
    low, high = rows[f"{name}_low"].to_numpy(float), rows[f"{name}_high"].to_numpy(float)
    ax.hlines(y[shown], low[shown], high[shown], color=color, linewidth=1.6)
    ax.plot(x[shown], y[shown], linestyle="none", marker=marker, markersize=5, color=color, label=label)
    return int(shown.sum())


def _plain_ticks(ax: Axes) -> None:
    """Three to seven plain numbers on a logarithmic axis."""
    low, high = ax.get_xlim()
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7), np.arange(1, 10, 0.1)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: -(-len(ticks) // 7)] if ticks else [low, high]
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.minorticks_off()
