"""The design matrix as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import NEGATIVE, SMALL, finish, literal, new_axes, note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_NAMED_ROWS = 24


def plot_design_matrix(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw a design matrix: one row per trial, one column per regressor, dark = large.

    Every column is scaled to its own range, so a covariate beside indicator
    columns stays visible.

    Parameters
    ----------
    frame : pandas.DataFrame
        The design matrix, as returned by ``design.design_matrix(obs)``.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = frame.shape
    ax = new_axes(min(4.6, 2.4 + 0.45 * columns), 3.6) if ax is None else ax
    if rows == 0 or columns == 0:
        note(ax, "the design matrix is empty")
        return finish(ax, keep=())
    values = frame.to_numpy(float)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, (values - low) / spread, 1.0)
    ramp = LinearSegmentedColormap.from_list("design", [_faint(NEGATIVE, 0.10), _faint(NEGATIVE, 1.0)])
    ax.imshow(scaled, aspect="auto", interpolation="none", cmap=ramp, vmin=0, vmax=1)
    names = [literal(name, 22) for name in frame.columns]
    tilted = max(len(name) for name in names) * columns > 40
    ax.set_xticks(range(columns), names, rotation=40 if tilted else 0, ha="left" if tilted else "center")
    ax.xaxis.tick_top()
    if rows <= MAX_NAMED_ROWS:
        ax.set_yticks(range(rows), [literal(name, 18) for name in frame.index])
    else:
        ticks = np.unique(np.linspace(0, rows - 1, 5).round().astype(int))
        ax.set_yticks(ticks, [f"{tick + 1:,}" for tick in ticks])
        ax.set_ylabel("trial")
    finish(ax, keep=())
    ax.tick_params(length=0, labelsize=SMALL)
    for edge in np.arange(0.5, columns - 1):
        ax.axvline(edge, color="white", linewidth=1.5)
    return ax


def _faint(color: str, alpha: float) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(color, alpha)
