"""Figures of a factorial study: interaction lines, cell means, and what the candidates are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.plotting.canvas import (
    CLOUD,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SMALL,
    finish,
    literal,
    new_axes,
    note,
)
from neurollm.rsa.rows import check_whole
from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from neurollm.factorial import FactorialStudy

COLUMNS = 4
MOST_PANELS = 12
_COLORS = (POSITIVE, NEGATIVE)
_MARKERS = ("o", "s")
_SHIFT = 0.05  # of the two lines to either side, so that their intervals do not hide each other


def plot_interaction_lines(study: FactorialStudy, column: Any, ax: Axes | None = None) -> Axes:
    """Draw the cell means of one column: a line for each level of the second factor, over the levels of the first.

    Means and intervals are those of `FactorialStudy.cells` (test items); the single items are drawn faintly behind.

    Parameters
    ----------
    study : FactorialStudy
        Of two factors.
    column : object
        Id of a candidate.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInput
        The study has more than two factors, or the column is no candidate.
    """
    (first, second), cells = _two_factors(study), study.cells()
    cells, items = (table[table["column"] == column] for table in (cells, study.items()))
    if cells.empty:
        raise InvalidInput(f"plot_interaction_lines: {shown(column)} is no candidate of this study.")
    ax = new_axes(3.4, 3.1) if ax is None else ax
    _lines(ax, study, cells, items)
    ax.set_ylabel("activation (item means)")
    legend = ax.legend(
        title=literal(second, 24), loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=SMALL,
        labelcolor=INK, alignment="left", borderaxespad=0.2, handlelength=1.6,
    )  # fmt: skip
    legend.get_title().set(fontsize=SMALL, color=MUTED)
    ax.set_xlabel(literal(first, 24))
    return finish(ax)


def plot_cells(study: FactorialStudy, n: int = 8) -> list[Axes]:
    """Draw the cell means of the strongest candidates, a panel each, with item-level intervals.

    Candidates with a significant interaction come first, then the others by the size of their largest t.

    Parameters
    ----------
    study : FactorialStudy
        Of two factors.
    n : int, default=8
        Panels, at most 12.

    Returns
    -------
    list of matplotlib.axes.Axes
        Of one figure.

    Raises
    ------
    InvalidInput
        The study has more than two factors, or `n` is no whole number of at least 1.
    """
    check_whole("plot_cells", "n", n, 1)
    first, second = _two_factors(study)
    units, cells = study.units().set_index("column"), study.cells()
    chosen = _strongest(study)[: min(n, MOST_PANELS)]
    axes = _panels(len(chosen))
    for place, (ax, column) in enumerate(zip(axes, chosen, strict=True)):
        _lines(ax, study, cells[cells["column"] == column], None)
        ax.set_title(f"{literal(column, 14)}: {literal(units.loc[column, 'kind'], 14)}", loc="left",
                     fontsize=SMALL + 0.5, color=INK)  # fmt: skip
        if place + COLUMNS >= len(chosen):
            ax.set_xlabel(literal(first, 20))
        if place % COLUMNS == 0:
            ax.set_ylabel("activation")
        finish(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = axes[0].figure.legend(
        handles, [f"{literal(second, 20)}: {label}" for label in labels], loc="outside upper left", ncols=2,
        frameon=False, fontsize=SMALL, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return axes


def plot_units(study: FactorialStudy, control: FactorialStudy | None = None, ax: Axes | None = None) -> Axes:
    """Draw how many candidates are of each kind, beside those of a control where one is given.

    Parameters
    ----------
    study : FactorialStudy
        Of two factors.
    control : FactorialStudy, optional
        Such as that of random columns. Bars are shares of the candidates, as their numbers differ.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInput
        A study has more than two factors.
    """
    named = {"study": study} if control is None else {"study": study, "control": control}
    counts = {name: study.kinds() for name, study in named.items()}
    kinds = _in_order(named.values(), counts)
    ax = new_axes(4.8, 0.9 + (0.14 + 0.13 * len(named)) * max(len(kinds), 2)) if ax is None else ax
    ax.set_xlabel("share of the candidates (counts at the bars)")
    if not kinds:
        note(ax, "no candidate was tested")
        return finish(ax)
    height = 0.8 / len(named)
    for row, (name, found) in enumerate(counts.items()):
        total = sum(found.values())
        share = np.array([found.get(kind, 0) / max(total, 1) for kind in kinds])
        places = np.arange(len(kinds)) - 0.4 + height * (row + 0.5)
        color = (POSITIVE, CLOUD)[row]
        ax.barh(places, share, height=0.88 * height, color=color, label=f"{name} ({total} candidates)")
        for place, kind, value in zip(places, kinds, share, strict=True):
            ax.annotate(f"{found.get(kind, 0)}", (value, place), xytext=(3, 0), textcoords="offset points",
                        va="center", fontsize=SMALL - 1, color=MUTED)  # fmt: skip
    ax.set_yticks(range(len(kinds)), [literal(kind, 22) for kind in kinds])
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.set_xlim(0, min(1.08, 1.15 * ax.dataLim.x1))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if len(named) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    return ax


def _two_factors(study: FactorialStudy) -> list[str]:
    if len(study.factors) != 2:
        raise InvalidInput(f"this figure is for two factors; the study has {len(study.factors)}.")
    return list(study.factors)


def _lines(ax: Axes, study: FactorialStudy, cells: pd.DataFrame, items: pd.DataFrame | None) -> None:
    """Two lines with intervals; behind them the items, joined where an item has both levels."""
    (first, x_levels), (second, lines) = study.factors.items()
    for number, level in enumerate(lines):
        color, shift = _COLORS[number], _SHIFT * (2 * number - 1)
        places = np.arange(2) + shift
        if items is not None:
            own = items[items[second] == level].pivot(index="item", columns=first, values="mean")
            own = own.reindex(columns=list(x_levels)).to_numpy(float)
            ax.plot(places, own.T, color=color, alpha=0.16, linewidth=0.6, zorder=1)
            ax.scatter(np.tile(places, (len(own), 1)), own, s=4, color=color, alpha=0.25, linewidths=0, zorder=1)
        mean = cells[cells[second] == level].set_index(first).loc[list(x_levels)]
        bars = [mean["mean"] - mean["ci_low"], mean["ci_high"] - mean["mean"]]
        ax.errorbar(places, mean["mean"], yerr=np.array(bars, float), color=color, marker=_MARKERS[number],
                    markersize=4.5, linewidth=1.6, elinewidth=1.2, label=literal(level, 18), zorder=3)  # fmt: skip
    ax.set_xticks([0, 1], [literal(level, 14) for level in x_levels])
    ax.set_xlim(-0.3, 1.3)
    ax.margins(y=0.08)
    ax.grid(axis="y", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)


def _strongest(study: FactorialStudy) -> list[Any]:
    """Candidates, those with a significant interaction first."""
    raw = study.to_frame().query("scale == 'raw'")
    size = raw.assign(t=raw["t"].abs()).groupby("column", sort=False)["t"].max()
    units = study.units().set_index("column")
    return sorted(size.index, key=lambda column: (not units.loc[column, "significant"], -np.nan_to_num(size[column])))


def _in_order(studies: Sequence[FactorialStudy], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Kinds that occur, from none over single factors to integration."""
    factors = list(dict.fromkeys(name for study in studies for name in _two_factors(study)))
    order = ["untested", "none", *factors, "additive", "removable", "sub-additive", "interaction", "and", "crossover"]
    present = {kind for found in counts.values() for kind in found}
    return [kind for kind in order if kind in present]


def _panels(n: int) -> list[Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(n, COLUMNS)
    down = -(-n // across)
    figure = Figure(figsize=(max(2.0 * across, 3.4), 1.9 * down + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    return [figure.add_subplot(down, across, place + 1) for place in range(n)]
