"""Figures of RSA: what the models predict, and which features follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, RULE, SMALL, finish, literal, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.rsa import ModelRDM, RSAResult

MAX_LABELS = 8


def plot_model_rdm(model: ModelRDM, labels: Sequence[object] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the distances that a model predicts; pairs it leaves out are blank.

    Parameters
    ----------
    model : ModelRDM
    labels : sequence, optional
        Condition of every row: rows are put in their order, and the conditions named at the side.
    ax : matplotlib Axes, optional
        Drawn on a new figure when None.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(3.4, 3.4) if ax is None else ax
    matrix = np.ma.masked_invalid(np.asarray(model.matrix, float))
    n = len(matrix)
    order = np.arange(n) if labels is None else np.argsort(np.asarray(labels, dtype=str), kind="stable")
    ax.imshow(matrix[np.ix_(order, order)], cmap="cividis", interpolation="nearest", rasterized=True)
    ax.set_title(literal(model.name), fontsize=SMALL + 1, color=INK)
    ax.set_xticks([])
    ax.set_yticks([])
    if labels is not None:
        names, starts, counts = np.unique(np.asarray(labels, dtype=str)[order], return_index=True, return_counts=True)
        ax.set_yticks(starts + (counts - 1) / 2, [literal(name, 14) for name in names])
        for start in starts[starts > 0]:
            ax.axhline(start - 0.5, color="white", linewidth=0.6)
            ax.axvline(start - 0.5, color="white", linewidth=0.6)
    ax.set_facecolor("white")
    finish(ax, keep=())
    ax.tick_params(length=0)
    return ax


def plot_rsa(result: RSAResult, alpha: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw the scores of all tested features, one row per model, with each model's ceiling and its layer.

    Parameters
    ----------
    result : RSAResult
    alpha : float, default=0.05
        Features with p_FWER ≤ `alpha` are coloured, the strongest of them named.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(5.6, 0.9 + 0.75 * len(result.maps)) if ax is None else ax
    ax.set_xlabel(f"r ({literal(result.comparison)} of {literal(result.distance)} distances)")
    if not any(one.valid.any() for one in result.maps):
        note(ax, "no feature could be tested")
        return finish(ax)
    ax.axvline(0, color=RULE, linewidth=0.7, zorder=0)
    for row, one in enumerate(result.maps):
        _row(ax, result, one, row, alpha)
    ax.set_yticks(range(len(result.maps)), [literal(one.model, 22) for one in result.maps])
    ax.set_ylim(len(result.maps) - 0.4, -0.75)
    ax.plot([], [], "|", color=INK, markersize=9, label="ceiling of one feature")
    ax.plot([], [], "^", color=MUTED, markersize=5, label="all features together")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    finish(ax, keep=("bottom",))
    ax.tick_params(axis="y", length=0)
    return ax


def _row(ax: Axes, result: RSAResult, one, row: int, alpha: float) -> None:
    """The features of one model, spread a little so that they do not hide each other."""
    tested = np.flatnonzero(one.valid)
    shift = 0.22 * np.sin(2.4 * np.arange(tested.size))  # the same in every drawing
    found = np.nan_to_num(one.p_fwer[tested], nan=1.0) <= alpha
    r = one.r[tested]
    ax.scatter(r[~found], row + shift[~found], s=5, color=CLOUD, alpha=0.5, linewidths=0, rasterized=True)
    for color, chosen in ((POSITIVE, found & (r >= 0)), (NEGATIVE, found & (r < 0))):
        ax.scatter(r[chosen], row + shift[chosen], s=16, color=color, linewidths=0, zorder=3)
    if np.isfinite(one.ceiling):
        ax.plot(one.ceiling, row, "|", color=INK, markersize=13, markeredgewidth=1.4)
    if np.isfinite(one.layer_r):
        ax.plot(one.layer_r, row + 0.32, "^", color=MUTED, markersize=5)
    place = {int(position): spot for spot, position in enumerate(tested)}
    named = [p for p in result.strongest(one.model, MAX_LABELS) if found[place[int(p)]]]
    taken: list[float] = []
    width = 0.06 * np.ptp(ax.get_xlim())
    for position in named:
        if all(abs(one.r[position] - other) > width for other in taken):
            taken.append(one.r[position])
            ax.annotate(literal(result.feature[position], 10), (one.r[position], row - 0.27), ha="center", va="bottom",
                        fontsize=SMALL - 1, color=INK)  # fmt: skip
