"""Figures of a method grid: AUROC over the number of features, and the declared contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.plotting.canvas import (
    CLOUD,
    FONT_SIZE,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SMALL,
    drop_zero,
    finish,
    literal,
    new_axes,
    note,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLUMNS = 4
_DASHED, _DOTTED, _MIXED, _LONG = (0, (4, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))
STYLES = {
    "rsa_categorical": (POSITIVE, "-", 1.8),
    "rsa_discriminative": (POSITIVE, _DASHED, 1.8),
    "rsa_coherence": (POSITIVE, _DOTTED, 1.8),
    "mean_difference": (NEGATIVE, "-", 1.1),
    "welch_t": (NEGATIVE, _DASHED, 1.1),
    "auroc": (NEGATIVE, _DOTTED, 1.1),
    "mutual_information": (NEGATIVE, _MIXED, 1.1),
    "l1_path": (NEGATIVE, _LONG, 1.1),
    "maximum_activation": (INK, "-", 1.8),
    "random": (CLOUD, "-", 1.8),
}
"""Colour, line and width of each selector: RSA, one feature at a time, and the two that compare nothing."""


def plot_grid_curves(table: pd.DataFrame) -> list[Axes]:
    """Draw AUROC over the number of features: a panel for each representation, a line for each selector.

    Parameters
    ----------
    table : DataFrame
        Columns representation, selector, k (missing in the rows with all features), auroc; rows of several concepts
        are averaged. Representations without selectors are drawn as a line across all panels.

    Returns
    -------
    list of matplotlib.axes.Axes
        Of one figure.
    """
    chosen = table[table["k"].notna() & table["auroc"].notna()]
    mean = chosen.groupby(["representation", "selector", "k"], sort=False)["auroc"].mean()
    names = list(dict.fromkeys(chosen["representation"]))
    without = table[table["k"].isna() & table["auroc"].notna()].groupby("representation", sort=False)["auroc"].mean()
    axes = _panels(max(len(names), 1))
    if not names:
        note(axes[0], "no cell of the grid has scores")
        return [finish(axes[0], keep=("bottom",))]
    sizes = sorted(int(size) for size in chosen["k"].unique())
    low = min(0.48, float(np.floor(20 * min(mean.min(), without.min() if len(without) else 1)) / 20))
    for place, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _across(ax, without, name)
        for selector, values in mean[name].groupby(level="selector", sort=False):
            color, line, width = STYLES.get(selector, (MUTED, "-", 1.0))
            sizes_here = values.index.get_level_values("k").astype(float)
            marker = "o" if len(values) == 1 else None
            ax.plot(sizes_here, values, color=color, linestyle=line, linewidth=width, marker=marker, markersize=3)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        ax.set_ylim(low, 1.01)
        ticks = np.arange(np.ceil(10 * low), 11) / 10
        ax.set_yticks(ticks, [drop_zero(tick) for tick in ticks])
        ax.set_title(literal(name, 24), loc="left", fontsize=FONT_SIZE, color=INK)
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        if place % COLUMNS == 0:
            ax.set_ylabel("AUROC (out of fold)")
        if place + COLUMNS >= len(names):
            ax.set_xlabel("number of features k")
        finish(ax)
    _legend(axes[0].figure, list(dict.fromkeys(chosen["selector"])))
    return axes


def _across(ax: Axes, without: pd.Series, name: str) -> None:
    """Chance, the words alone, and all features of this representation."""
    ax.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
    for row, color in (("words", MUTED), (name, CLOUD)):
        if row in without.index:
            ax.axhline(without[row], color=color, linewidth=0.9, linestyle=_DOTTED, zorder=0)
            text, place, side = ("words", 0.01, "left") if row == "words" else ("all features", 0.99, "right")
            ax.annotate(text, (place, without[row]), xycoords=("axes fraction", "data"), xytext=(0, 1.5), ha=side,
                        va="bottom", textcoords="offset points", fontsize=SMALL - 1.5, color=color)  # fmt: skip


def _panels(n: int) -> list[Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    figure = Figure(figsize=(2.45 * columns + 0.4, 2.3 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.remove()
    return list(axes[:n])


def _legend(figure: Any, selectors: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for selector in selectors:
        color, line, width = STYLES.get(selector, (MUTED, "-", 1.0))
        handles.append(Line2D([], [], color=color, linestyle=line, linewidth=width, label=literal(selector)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=SMALL,
                           handlelength=2.6, labelcolor=INK)  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def plot_grid_contrasts(contrasts: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw contrasts with their 95 % intervals: each overall, and below it for every concept.

    Parameters
    ----------
    contrasts : sequence of mappings
        As of `neurollm.decoding.grid_contrasts.compare`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    rows = [
        (text, value, overall, first)
        for first, contrast in enumerate(contrasts)
        for text, value, overall in [
            (contrast["name"], contrast["overall"], True),
            *((one["concept"], one, False) for one in contrast["concepts"]),
        ]
    ]
    ax = new_axes(5.4, 0.9 + 0.23 * max(len(rows), 3)) if ax is None else ax
    ax.set_xlabel("difference in AUROC (95% CI over items)")
    if not rows:
        note(ax, "no contrast could be computed")
        return finish(ax, keep=("bottom",))
    ax.axvline(0, color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
    places = []
    for row, (_, value, overall, block) in enumerate(rows):
        place = row + 0.6 * block
        places.append(place)
        color = POSITIVE if overall else NEGATIVE
        ax.plot([value["ci_low"], value["ci_high"]], [place, place], color=color, linewidth=2.4 if overall else 1.3,
                solid_capstyle="round")  # fmt: skip
        ax.plot(value["difference"], place, marker="o" if overall else "D", color=color, markersize=7 if overall else 4)
    ax.set_yticks(places, [literal(text, 36) if overall else literal(text, 24) for text, _, overall, _ in rows])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.xaxis.set_major_formatter(lambda value, _: drop_zero(value, None).replace("-0.", "−.").replace("-", "−"))
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    for label, (_, _, overall, _) in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if overall else "normal")
    return ax
