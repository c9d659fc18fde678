"""The common look of all figures: one palette, quiet axes, literal text."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and orange stay apart for every common form of colour blindness and in greyscale print.
INK = "#20262d"
MUTED = "#616b75"
CLOUD = "#98a2ad"
RULE = "#c3cad1"
POSITIVE = "#b84e00"
NEGATIVE = "#1767a8"

FONT_SIZE = 9.0
SMALL = 8.0


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure of `width` × `height` inches that no global state knows about."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def literal(text: object, limit: int = 28) -> str:
    """Text from data as one drawable line: no control characters, at most `limit` characters.

    Examples
    --------
    >>> literal("two\\nlines of a rather long name", limit=12)
    'two lines o…'
    """
    shown = "".join(" " if c.isspace() else c for c in str(text))
    shown = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def finish(ax: Axes, *, keep: tuple[str, ...] = ("left", "bottom")) -> Axes:
    """Apply the common look: only the spines in `keep`, thin ticks, no mathtext anywhere."""
    from matplotlib.text import Text

    for side, spine in ax.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(MUTED)
        spine.set_linewidth(0.7)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, width=0.7, length=3)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(FONT_SIZE)
    ax.set_facecolor("none")
    for text in ax.findobj(Text):
        text.set_parse_math(False)
    return ax


def note(ax: Axes, sentence: str) -> None:
    """Write a sentence in the middle of axes that have nothing to show."""
    ax.text(0.5, 0.5, sentence, transform=ax.transAxes, ha="center", va="center", color=MUTED, fontsize=FONT_SIZE)
    ax.set_xticks([])
    ax.set_yticks([])


def drop_zero(value: float, digits: int | None = 1) -> str:
    """A proportion without its leading zero: 0.5 becomes ``.5``; without `digits` nothing is rounded."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
