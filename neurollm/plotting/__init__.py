"""Figures of results: each function takes a result, draws on one matplotlib Axes and returns it.

Nothing here touches pyplot: a figure belongs to whoever holds its Axes and is
freed with it, so a thousand figures in a loop leak nothing. Names that come
from data (conditions, features, files) are drawn literally, never as mathtext.
"""

from neurollm.plotting.controls import plot_controls
from neurollm.plotting.design import plot_design_matrix
from neurollm.plotting.null import plot_null_max
from neurollm.plotting.rsa import plot_model_rdm, plot_rsa
from neurollm.plotting.sides import contrast_sides
from neurollm.plotting.volcano import plot_volcano

__all__ = [
    "contrast_sides",
    "plot_controls",
    "plot_design_matrix",
    "plot_model_rdm",
    "plot_null_max",
    "plot_rsa",
    "plot_volcano",
]
