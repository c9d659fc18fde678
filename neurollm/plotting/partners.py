"""Partners of a feature: H of each beside its null."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, POSITIVE, RULE, SMALL, finish, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.interactions.partners import PartnerTable


def plot_partners(table: PartnerTable, ax: Axes | None = None) -> Axes:
    """Draw H of each partner, strongest on top, with the interval over documents.

    The band holds the largest H of 1 − alpha of the permutations, crosses are H in a random model. Filled: family-wise
    significant; orange: the data confirm it, the interval of the gain is above 0. The gain is written on the right.

    Parameters
    ----------
    table : PartnerTable
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    n = len(table.partner)
    ax = new_axes(4.6, 1.1 + 0.26 * max(n, 3)) if ax is None else ax
    ax.set_xlabel(f"H with feature {table.feature} (activation units)")
    if not n:
        note(ax, "no feature is active together with it often enough")
        return finish(ax)
    y = np.arange(n)
    critical = float(np.quantile(table.null_max, 1 - table.alpha, method="higher"))
    reach = max(float(np.nanmax([*table.h, *table.ci_high, critical])), 1e-12)
    ax.axvspan(0, critical, color=RULE, alpha=0.45, linewidth=0, zorder=0)
    ax.annotate("null", (critical / 2, -0.55), color=MUTED, fontsize=SMALL, ha="center", va="bottom")
    confirmed = np.nan_to_num(table.gain_low, nan=-1.0) > 0
    for place in y:
        color = POSITIVE if confirmed[place] else INK
        known = np.isfinite(table.ci_low[place])
        if known:
            ax.plot([table.ci_low[place], table.ci_high[place]], [place, place], color=color, linewidth=1.1, zorder=2)
        filled = color if table.p_fwer[place] <= table.alpha else "white"
        ax.plot(table.h[place], place, "o", markersize=5.5, markeredgecolor=color, markerfacecolor=filled, zorder=3)
        gain = table.gain[place]
        text = f"{100 * gain:.2g} %".replace("-", "−") if np.isfinite(gain) else "–"
        ax.annotate(text, (1.24 * reach, place), color=color, fontsize=SMALL, ha="right", va="center")
    ax.annotate("gain", (1.24 * reach, -0.55), color=MUTED, fontsize=SMALL, ha="right", va="bottom")
    ax.plot(table.h_random, y, "x", color=CLOUD, markersize=4, markeredgewidth=0.9, zorder=4, clip_on=False)
    ax.set_xlim(min(0.0, 1.1 * float(np.nanmin([0.0, *table.ci_low]))), 1.26 * reach)
    ax.set_ylim(n - 0.5, -1.0)
    ax.set_yticks(y, [f"feature {j}" for j in table.partner])
    return finish(ax)
