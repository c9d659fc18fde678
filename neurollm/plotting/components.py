"""Which component of a reconstruction carries which effect of two factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.plotting.canvas import INK, MUTED, NEGATIVE, SMALL, finish, literal
from neurollm.plotting.factorial import _lines, _two_factors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.factorial import FactorialStudy

SYMBOLS = {"dictionary": "dictionary  ‖x̂‖²", "linear": "linear  ‖s·W + b‖²", "interaction": "interaction  ‖g(B)‖²"}


def plot_components(sizes: FactorialStudy, columns: Mapping[str, FactorialStudy] | None = None) -> list[Axes]:
    """Draw the size of every component in the four cells, and below how many of its columns have each effect.

    Parameters
    ----------
    sizes : FactorialStudy
        Of two factors; its candidates are the mean squared norms of components, by name.
    columns : mapping from component to FactorialStudy, optional
        The study of the component's own columns, of the same factors.

    Returns
    -------
    list of matplotlib.axes.Axes
        Of one figure: the sizes with intervals over items; then, of the components in `columns`, the share of the
        columns chosen for an effect that have it (p_FWER at the study's level), with the counts at the bars.

    Raises
    ------
    InvalidInput
        A study is not of two factors, or `columns` has other factors or components.
    """
    first, second = _two_factors(sizes)
    columns, cells = dict(columns or {}), sizes.cells()
    names = in_order(cells["column"])
    for name, study in columns.items():
        if name not in names or _two_factors(study) != [first, second]:
            raise InvalidInput(f"plot_components: the study of {name!r} is of no component, or of other factors.")
    figure, rows = _figure(len(names), bool(columns))
    above = [figure.add_subplot(rows, len(names), place + 1) for place in range(len(names))]
    for ax, name in zip(above, names, strict=True):
        _lines(ax, sizes, cells[cells["column"] == name], None)
        ax.set_title(SYMBOLS.get(name, literal(name, 22)), loc="left", fontsize=SMALL + 0.5, color=INK)
        ax.set_xlabel(literal(first, 20))
        finish(ax)
    above[0].set_ylabel("squared norm per token")
    handles, labels = above[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, [f"{literal(second, 20)}: {label}" for label in labels], loc="outside upper left", ncols=2,
        frameon=False, fontsize=SMALL, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    below = []
    for place, name in enumerate(names):
        if name in columns:
            ax = figure.add_subplot(rows, len(names), len(names) + place + 1)
            below.append(_shares(ax, columns[name], labelled=not below))
    return above + below


def in_order(components: Iterable[str]) -> list[str]:
    """Each component once, as they are added up."""
    found = dict.fromkeys(components)
    return [*(name for name in SYMBOLS if name in found), *(name for name in found if name not in SYMBOLS)]


def effect_counts(study: FactorialStudy) -> dict[str, tuple[int, int]]:
    """Of every effect: in how many of the columns chosen for it it is significant, and how many were chosen."""
    raw = study.tests[(study.tests["scale"] == "raw") & study.tests["chosen"]]
    found = raw.assign(found=raw["p_fwer"] <= study.alpha).groupby("effect", sort=False)["found"]
    return {effect: (int(one.sum()), len(one)) for effect, one in found}


def _shares(ax: Axes, study: FactorialStudy, labelled: bool) -> Axes:
    counts = effect_counts(study)
    shares = [found / chosen for found, chosen in counts.values()]
    ax.barh(np.arange(len(counts)), shares, height=0.6, color=NEGATIVE)
    for place, (share, (found, chosen)) in enumerate(zip(shares, counts.values(), strict=True)):
        ax.annotate(f"{found} of {chosen}", (share, place), xytext=(3, 0), textcoords="offset points", va="center",
                    fontsize=SMALL - 1, color=MUTED)  # fmt: skip
    ax.set_yticks(range(len(counts)), [literal(effect, 22) for effect in counts] if labelled else [])
    ax.set_ylim(len(counts) - 0.5, -0.5)
    ax.set_xlim(0, 1.35)
    ax.set_xticks([0, 0.5, 1])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("of the columns chosen for it")
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    return ax


def _figure(n: int, two_rows: bool) -> tuple[Any, int]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(2.5 * n, 4.0), 4.2 if two_rows else 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, 1 + two_rows
