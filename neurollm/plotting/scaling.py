"""The loss of dictionaries over their width, with the scaling law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, RULE, SMALL, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.dictionaries.sweeping import SweepResult

STYLES = ((POSITIVE, "o"), (NEGATIVE, "D"), (INK, "s"), (MUTED, "^"), (CLOUD, "v"))
BEYOND = 1.25  # how far the law is drawn beyond the data


def plot_scaling(sweep: SweepResult, ax: Axes | None = None) -> Axes:
    """Draw FVU against the number of features, both logarithmic: a point per seed, the law with its 95 % band.

    Parameters
    ----------
    sweep : SweepResult
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(6.2, 4.0) if ax is None else ax
    ax.set_xlabel("features (log scale)")
    ax.set_ylabel("FVU on held-out data (log scale)")
    table, law = sweep.table, sweep.law
    widths = np.sort(table["n_features"].unique())
    x = np.geomspace(widths[0] / BEYOND, widths[-1] * BEYOND, 100)
    levels = sorted(table["n_tokens"].unique().tolist())
    for place, n_tokens in enumerate(levels):
        color, marker = STYLES[place % len(STYLES)]
        of = table[table["n_tokens"] == n_tokens]
        ax.fill_between(x, *law.band(x, n_tokens), color=color, alpha=0.18, linewidth=0)
        ax.plot(x, law.predict(x, n_tokens), color=color, linewidth=1.3)
        ax.plot(
            of["n_features"],
            of["fvu"],
            linestyle="none",
            marker=marker,
            markersize=4.5,
            markerfacecolor="none",
            color=color,
            label=f"{tokens_in_words(n_tokens)} tokens",
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(widths, [f"{width:,}" for width in widths])
    ax.minorticks_off()
    _ticks(ax)
    ax.grid(axis="y", color=RULE, linewidth=0.5)
    ax.set_title(law.describe() + " (95% CI)", loc="left", fontsize=SMALL, color=INK)
    ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper right")
    return finish(ax)


def tokens_in_words(n_tokens: float) -> str:
    """A number of tokens as a legend has it.

    Examples
    --------
    >>> tokens_in_words(500_000), tokens_in_words(2_500_000), tokens_in_words(750)
    ('500k', '2.5M', '750')
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n_tokens >= unit:
            return f"{n_tokens / unit:.4g}{name}"
    return f"{n_tokens:g}"


def _ticks(ax: Axes) -> None:
    """Three to six plain numbers on the logarithmic axis of the loss."""
    low, high = ax.get_ylim()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(1, 10, 0.5), np.arange(1, 10, 0.1)):
        ticks = [step * 10.0**power for power in range(-8, 3) for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: -(-len(ticks) // 6)] if ticks else [low, high]
    ax.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
