"""Volcano plot: how large each feature's effect is against how surprising it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, RULE, SMALL, finish, literal, new_axes, note
from neurollm.plotting.sides import contrast_sides, decisive_p, has_sides

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.glm import ContrastResult

MAX_LABELS = 12
MAX_VECTOR_POINTS = 400
SMALLEST = 1e-300
_SIZES = {
    "hedges_g_z": "Hedges’ g of paired differences",
    "hedges_g": "Hedges’ g",
    "partial_r": "partial r",
    "partial_eta2": "partial η²",
}


def plot_volcano(
    result: ContrastResult,
    alpha: float = 0.05,
    ax: Axes | None = None,
    *,
    y: Literal["p", "q", "p_fwer"] = "p",
) -> Axes:
    """Draw effect size against −log10 p; features with p_FWER ≤ `alpha` are coloured and labelled.

    Where nothing was permuted, q takes the place of p_FWER.

    Parameters
    ----------
    result : ContrastResult
    alpha : float, default=0.05
        Level that decides the colours.
    ax : matplotlib Axes, optional
        Drawn on a new figure when None.
    y : {"p", "q", "p_fwer"}, default="p"
        Which p the height shows.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(4.6, 3.5) if ax is None else ax
    size, p = np.asarray(result.effect_size, float), np.asarray(getattr(result, y), float)
    drawn = np.isfinite(size) & np.isfinite(p)
    ax.set_xlabel(f"effect size ({_SIZES[result.effect_size_kind]})")
    ax.set_ylabel({"p": "−log₁₀ p (uncorrected)", "q": "−log₁₀ q", "p_fwer": "−log₁₀ p FWER"}[y])
    if not drawn.any():
        note(ax, "no feature could be tested")
        return finish(ax)
    height = np.full(size.shape, np.nan)
    height[drawn] = -np.log10(np.maximum(p[drawn], SMALLEST))
    significant = drawn & (np.nan_to_num(decisive_p(result)[0], nan=1.0) <= alpha)
    cloud = drawn & ~significant
    if not result.is_f:
        ax.axvline(0, color=RULE, linewidth=0.7, zorder=0)
    ax.scatter(size[cloud], height[cloud], s=9, color=CLOUD, alpha=0.55, linewidths=0, rasterized=True)
    for color, marker, chosen in (
        (POSITIVE, "o", significant & (size >= 0)),
        (NEGATIVE, "D", significant & (size < 0)),
    ):
        ax.scatter(size[chosen], height[chosen], s=20, color=color, marker=marker, linewidths=0,
                   rasterized=bool(chosen.sum() > MAX_VECTOR_POINTS), zorder=3)  # fmt: skip
    _frame(ax, result, size[drawn], height[drawn])
    finish(ax)
    order = np.flatnonzero(significant)
    order = order[np.argsort(-np.abs(np.asarray(result.stat, float)[order]), kind="stable")]
    _label(ax, size[order], height[order], [literal(result.feature[i], 12) for i in order])
    return finish(ax)


def _frame(ax: Axes, result: ContrastResult, size: np.ndarray, height: np.ndarray) -> None:
    """Symmetric limits, and which direction is which condition (an F contrast has no direction)."""
    reach = max(1.12 * float(np.abs(size).max()), 0.2)
    top = max(float(height.max()), 1.0)
    ax.set_xlim(-0.02 * reach if result.is_f else -reach, reach)
    ax.set_ylim(-0.03 * top, 1.18 * top)
    if not has_sides(result):
        return
    positive, negative = contrast_sides(result.contrast)
    for x, where, text, color in (
        (1.0, "right", f"more to {literal(positive, 20)} →", POSITIVE),
        (0.0, "left", f"← more to {literal(negative, 20)}", NEGATIVE),
    ):
        ax.text(x, 1.02, text, transform=ax.transAxes, ha=where, va="bottom", color=color, fontsize=SMALL)


def _label(ax: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Label points in the order given, skipping those that would cover an earlier label."""
    figure = ax.figure
    figure.canvas.draw()
    scale = figure.dpi / 72
    line = SMALL * 1.15 * scale
    frame, taken, written = ax.bbox, [], 0
    points = ax.transData.transform(np.column_stack([x, y])) if len(x) else np.empty((0, 2))
    for (px, py), (dx, dy), name in zip(points, np.column_stack([x, y]), names, strict=True):
        width = 0.62 * SMALL * scale * len(name)
        for shift in (0.35, 1.35, 2.35):
            low = py + shift * line
            box = (px - width / 2, low, px + width / 2, low + line)
            inside = box[0] >= frame.x0 and box[2] <= frame.x1 and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                leader = None if shift < 1 else {"arrowstyle": "-", "color": MUTED, "linewidth": 0.4}
                ax.annotate(name, (dx, dy), xytext=(0, shift * line / scale), textcoords="offset points",
                            ha="center", va="bottom", fontsize=SMALL - 0.5, color=INK, zorder=4,
                            arrowprops=leader)  # fmt: skip
                taken.append(box)
                written += 1
                break
        if written == MAX_LABELS:
            return


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
