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
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    rows, columns = frame.shape
    ax = new_axes(min(4.6, 2.4 + 0.45 * columns), 3.6) if ax is None else ax
    if rows == 0 or columns == 0:
        note(ax, "the design matrix is empty")
        return finish(ax, keep=())
    values = frame.to_numpy(float)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, (values - low) / spread, 1.0)
    ramp = LinearSegmentedColormap.from_list("design", [to_rgba(NEGATIVE, 0.12), to_rgba(NEGATIVE, 1.0)])
    # A column is 40 pixels wide, the last one transparent: a gap that suits any background.
    pixels = np.repeat(ramp(np.nan_to_num(scaled)), 40, axis=1)
    pixels[:, 39::40, 3] = 0.0
    ax.imshow(pixels, aspect="auto", interpolation="none", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
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
    return ax
