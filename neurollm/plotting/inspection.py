"""Figure of the weights of an interaction model beside those of random models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.plotting.canvas import CLOUD, INK, MUTED, NEGATIVE, POSITIVE, RULE, SMALL, drop_zero, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neurollm.interactions.weight_report import WeightReport


def plot_weight_report(report: WeightReport) -> Figure:
    """Draw Gini coefficients and norms of embeddings, their spectrum, and the coupling of norms.

    Orange is the trained model; grey is the range over random models.

    Parameters
    ----------
    report : WeightReport

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    (a, b), (c, d) = figure.subplots(2, 2)
    _distribution(a, report, "gini", "Gini coefficient of an embedding")
    _distribution(b, report, "l2", "norm of an embedding")
    _spectrum(c, report)
    _coupling(d, report)
    return figure


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=SMALL, color=INK)


def _distribution(ax: Axes, report: WeightReport, statistic: str, label: str) -> None:
    ax.set_xlabel(label)
    ax.set_ylabel("share of features below")
    rows = report.quantiles
    rows = rows[(rows["vectors"] == "V rows") & (rows["statistic"] == statistic)]
    if rows.empty:
        note(ax, "all embeddings are zero")
        finish(ax)
        return
    ax.fill_betweenx(rows["quantile"], rows["null_min"], rows["null_max"], color=CLOUD, alpha=0.6, linewidth=0)
    ax.plot(rows["null_mean"], rows["quantile"], color=MUTED, linewidth=1.0)
    ax.plot(rows["value"], rows["quantile"], color=POSITIVE, linewidth=1.4)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    row = report.row("V rows", statistic)
    _title(ax, f"largest {_short(row['max'])}, random {_short(row['null_max'])}; p of it {_short(row['p_max'])}")
    finish(ax)


def _spectrum(ax: Axes, report: WeightReport) -> None:
    ax.set_xlabel("component of the embeddings")
    ax.set_ylabel("share of all variance")
    rows = report.spectra[report.spectra["vectors"] == "V rows"]
    if not np.isfinite(rows["share"]).any():
        note(ax, "all embeddings are zero")
        finish(ax)
        return
    ax.fill_between(rows["component"], rows["null_min"], rows["null_max"], color=CLOUD, alpha=0.6, linewidth=0)
    ax.plot(rows["component"], rows["null_mean"], color=MUTED, linewidth=1.0)
    ax.plot(rows["component"], rows["share"], color=POSITIVE, linewidth=1.4)
    ax.set_ylim(0, None)
    row = report.row("V rows", "participation_ratio")
    _title(ax, f"participation ratio {row['mean']:.1f}, random {row['null_mean']:.1f}, of {report.rank}")
    finish(ax)
    _legend(ax, report)


def _legend(ax: Axes, report: WeightReport) -> None:
    lines = (("trained", POSITIVE), (f"{report.n_random} random models", MUTED))
    for place, (text, color) in enumerate(lines):
        ax.text(
            0.98, 0.98 - 0.08 * place, text, transform=ax.transAxes, ha="right", va="top", fontsize=SMALL, color=color
        )


def _coupling(ax: Axes, report: WeightReport) -> None:
    ax.set_xlabel("correlation with the squared decoder norm")
    if report.coupling.empty:
        note(ax, "no dictionary was given")
        finish(ax)
        return
    rows = report.coupling[report.coupling["method"] == "pearson"].sort_values("coupled", kind="stable")
    if rows["r"].isna().all():
        note(ax, "norms of the decoder do not vary")
        finish(ax)
        return
    names = {"a": "decoder", "b": "refit", "c": "embedding"}
    labels = []
    for place, row in enumerate(rows.itertuples()):
        ranges = (
            (row.init_min, row.init_mean, row.init_max, MUTED),
            (row.shuffled_min, row.shuffled_mean, row.shuffled_max, NEGATIVE),
        )
        for step, (low, middle, high, color) in enumerate(ranges, 1):
            ax.plot(
                [low, middle, high], [place + 0.24 * step] * 3, color=color, linewidth=2.5, marker="|", markersize=6
            )
        ax.plot(row.r, place, "o", color=POSITIVE, markersize=5)
        labels.append(row.quantity)
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.set_xlim(-1.08, 1.08)
    ax.set_ylim(len(labels) - 0.3, -0.6)
    ax.set_yticks(range(len(labels)), labels)
    shown = ", ".join(f"{key} {name}" for key, name in names.items() if any(key in label for label in labels))
    _title(ax, f"norms of {shown}; T = their sum")
    for place, (text, color) in enumerate(
        (("trained", POSITIVE), ("random initialisation", MUTED), ("shuffled over features", NEGATIVE))
    ):
        ax.text(1.02, 1 - 0.08 * place, text, transform=ax.transAxes, va="top", fontsize=SMALL, color=color)
    finish(ax)


def _short(value: float) -> str:
    return "undefined" if not np.isfinite(value) else drop_zero(value, 3)
