"""Matplotlib figures as inline SVG that follows the page's colours and can carry nothing but drawing.

The file matplotlib writes is parsed and rebuilt from an allow-list of elements
and attributes, so that whatever a label contained can only come out as text.
The palette's colours become CSS variables: the same figure is right on paper,
on a white page and in dark mode.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup, escape

from neurollm.plotting import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELEMENTS = frozenset({"g", "defs", "clipPath", "path", "rect", "use", "image", "text", "tspan"})
ATTRIBUTES = frozenset(
    {"d", "x", "y", "width", "height", "transform", "style", "id", "clip-path", "href", "preserveAspectRatio"}
)
VARIABLES = {
    canvas.INK: "ink",
    canvas.MUTED: "muted",
    canvas.CLOUD: "cloud",
    canvas.RULE: "rule",
    canvas.POSITIVE: "positive",
    canvas.NEGATIVE: "negative",
}
RASTER_DPI = 170


def figure_svg(ax: Axes, key: str, title: str) -> Markup:
    """The figure of `ax` as an ``<svg>`` element with `title` as its accessible name.

    Parameters
    ----------
    ax : matplotlib Axes
    key : str
        Short unique name: it keeps the ids of several figures in one page apart.
    title : str
        What the figure shows, in words (the alternative text).
    """
    root = ElementTree.fromstring(_raw(ax, key))
    used = {reference for element in root.iter() for reference in _references(element)}
    body = "".join(_rebuild(child, key, used) for child in root)
    box = escape(root.get("viewBox", ""))
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(box, title, Markup(body))


def _raw(ax: Axes, key: str) -> bytes:
    import matplotlib

    target = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}), warnings.catch_warnings():
        # The browser has glyphs for all scripts; matplotlib's own font need not.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        ax.figure.savefig(target, format="svg", transparent=True, dpi=RASTER_DPI, metadata={"Date": None})
    return target.getvalue()


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _references(element: ElementTree.Element) -> list[str]:
    found = []
    for name, value in element.attrib.items():
        if _local(name) == "href" and value.startswith("#"):
            found.append(value[1:])
        elif _local(name) == "clip-path":
            found += re.findall(r"url\(#([\w-]+)\)", value)
    return found


def _rebuild(element: ElementTree.Element, key: str, used: set[str]) -> str:
    tag = _local(element.tag)
    if tag not in ELEMENTS:
        return ""
    attributes = {}
    for name, value in element.attrib.items():
        name = _local(name)
        if name in ATTRIBUTES and (kept := _attribute(tag, name, value, key, used)) is not None:
            attributes[name] = kept
    inside = "".join(_rebuild(child, key, used) for child in element)
    text = str(escape(element.text or "")) if tag in ("text", "tspan") else ""
    if tag in ("g", "defs") and not inside:
        return ""
    spelled = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{spelled}>{text}{inside}</{tag}>"


def _attribute(tag: str, name: str, value: str, key: str, used: set[str]) -> str | None:
    """The value to keep, or None to drop the attribute."""
    if name == "id":
        return f"{key}-{value}" if value in used else None
    if name == "href":
        if value.startswith("#"):
            return f"#{key}-{value[1:]}"
        return "".join(value.split()) if tag == "image" and value.startswith("data:image/png;base64,") else None
    if name == "clip-path":
        found = re.fullmatch(r"url\(#([\w-]+)\)", value)
        return f"url(#{key}-{found[1]})" if found else None
    if name == "d":
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    if name == "style":
        if "url(" in value or "@" in value:
            return None
        for color, variable in VARIABLES.items():
            value = value.replace(color, f"var(--{variable})")
        return value
    return value
