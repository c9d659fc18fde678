"""Figures of dictionaries: densities, decoder cosines, stability over seeds, training, geometry of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.plotting.canvas import (
    CLOUD,
    FONT_SIZE,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SMALL,
    drop_zero,
    finish,
    literal,
    new_axes,
    note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurollm.dictionaries import Dictionary
    from neurollm.dictionaries.cosines import DecoderCosines
    from neurollm.dictionaries.geometry import Anisotropy
    from neurollm.dictionaries.metrics import DictionaryMetrics
    from neurollm.dictionaries.stability import SeedStability

MOST_LABELS = 6


def plot_density(metrics: DictionaryMetrics, ax: Axes | None = None) -> Axes:
    """Draw how often features are active: log₁₀ density of those that are active at all, with its bands.

    Parameters
    ----------
    metrics : DictionaryMetrics
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    from neurollm.dictionaries.metrics import DENSE, FREQUENT, RARE, ULTRA_RARE

    ax = new_axes(4.6, 3.5) if ax is None else ax
    ax.set_xlabel("density (share of tokens, log scale)")
    ax.set_ylabel("features")
    density = metrics.density[metrics.density > 0]
    if density.size == 0:
        note(ax, f"no feature is active on these {metrics.n_tokens:,} tokens")
        return finish(ax)
    logs = np.log10(density)
    low = np.floor(min(logs.min(), -2.5) * 2) / 2
    bins = np.linspace(low, 0, round(-10 * low) + 1)  # ends at 0 exactly: a density of 1 belongs to the last
    counts, edges, patches = ax.hist(logs, bins=bins, color=CLOUD, alpha=0.85)
    for patch, edge in zip(patches, edges, strict=False):
        if edge >= np.log10(DENSE) - 1e-9:
            patch.set_facecolor(POSITIVE)
    top = float(counts.max())
    ax.set_ylim(0, 1.22 * top)
    ax.set_xlim(low, 0.02)
    bands = [(DENSE, f"> 10%: {metrics.dense:.1%}"), (FREQUENT, f"> 1%: {metrics.frequent:.1%}")]
    bands += [(RARE, f"< 1e-5: {metrics.rare:.1%}"), (ULTRA_RARE, f"< 1e-6: {metrics.ultra_rare:.1%}")]
    for place, (edge, text) in enumerate(bands):
        x = np.log10(edge)
        if x <= low:
            continue
        ax.axvline(x, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2.5)))
        ax.annotate(text, (x, 1.2 * top), xytext=(3 if place < 2 else -3, 0), textcoords="offset points",
                    ha="left" if place < 2 else "right", va="top", fontsize=SMALL, color=INK)  # fmt: skip
    ticks = np.arange(int(np.ceil(low)), 1)
    ax.set_xticks(ticks, [f"1e{tick}" if tick else "1" for tick in ticks])
    ax.set_title(f"dead on {metrics.n_tokens:,} tokens: {metrics.dead:.1%}", loc="left", fontsize=SMALL, color=INK)
    return finish(ax)


def plot_decoder_cosines(cosines: DecoderCosines, ax: Axes | None = None) -> Axes:
    """Draw the cosines of all pairs of features beside those of independent directions.

    Parameters
    ----------
    cosines : DecoderCosines
        Of `decoder_cosines`, or ``metrics.cosines``.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInput
        If there are none: `cosines` is None.
    """
    from scipy.stats import beta

    if cosines is None:
        raise InvalidInput("plot_decoder_cosines: there are no cosines; the dictionary has no directions, or only one")
    ax = new_axes(4.6, 3.5) if ax is None else ax
    ax.set_xlabel("cosine of two features")
    ax.set_ylabel("pairs (share per 0.01, log scale)")
    width = len(cosines.counts) // 200
    shares = cosines.counts.reshape(200, width).sum(1) / cosines.counts.sum()
    edges = np.linspace(-1, 1, 201)
    ax.stairs(shares, edges, fill=True, color=CLOUD, alpha=0.85)
    shape = (cosines.d - 1) / 2
    reference = np.diff(beta.cdf((1 + edges) / 2, shape, shape))
    ax.stairs(np.where(reference > 0, reference, np.nan), edges, color=NEGATIVE, linewidth=1.3)
    ax.set_yscale("log")
    least = 1 / cosines.counts.sum()
    ax.set_ylim(0.5 * least, 4)
    drawn = edges[:-1][(shares > 0) | (reference > least)]
    low, high = float(drawn.min()) - 0.04, float(drawn.max()) + 0.05
    ax.set_xlim(max(-1.0, low), min(1.0, high))
    ax.axvline(cosines.p95, ymax=0.8, color=INK, linewidth=1.0, linestyle=(0, (4, 2.5)))
    _plain_powers(ax)
    random = cosines.random
    lines = [
        (f"these: p95 {drop_zero(cosines.p95, 2)}, largest {drop_zero(cosines.maximum, 2)}", INK),
        (f"independent: p95 {drop_zero(random['p95'], 2)}, largest {drop_zero(random['maximum'], 2)}", NEGATIVE),
    ]
    for place, (text, color) in enumerate(lines):
        ax.text(
            0.98, 0.98 - 0.075 * place, text, transform=ax.transAxes, ha="right", va="top", fontsize=SMALL, color=color
        )
    return finish(ax)


def plot_stability(stability: SeedStability, ax: Axes | None = None) -> Axes:
    """Draw the share of matched features above every cosine, for all pairs of dictionaries and random vectors.

    Parameters
    ----------
    stability : SeedStability
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(4.6, 3.5) if ax is None else ax
    ax.set_xlabel("cosine c of matched features")
    ax.set_ylabel("share of pairs above c")
    names = [f"{literal(row.a, 12)} – {literal(row.b, 12)}: {row.shared:.0%}" for row in stability.pairs.itertuples()]
    pairs = [pair["cosine"].to_numpy() for _, pair in stability.features.groupby(["a", "b"], sort=False)]
    alpha = 1.0 if len(pairs) == 1 else 0.6
    for cosines in pairs:
        ax.plot(*_above(cosines), color=POSITIVE, linewidth=1.4, alpha=alpha)
    ax.plot(*_above(stability.null_cosines), color=MUTED, linewidth=1.4)
    lowest = min(0.0, *(float(values.min()) for values in (*pairs, stability.null_cosines)))
    ax.set_xlim(lowest, 1.0)
    ax.set_ylim(0, 1.03)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    ax.axvline(stability.threshold, color=INK, linewidth=1.0, linestyle=(0, (4, 2.5)))
    more = [f"and {len(names) - MOST_LABELS} more pairs"] if len(names) > MOST_LABELS else []
    null = f"random vectors: {stability.pairs['null_shared'].mean():.0%}"
    lines = [(f"above {drop_zero(stability.threshold, None)}", INK)]
    lines += [(text, POSITIVE) for text in (*names[:MOST_LABELS], *more)] + [(null, MUTED)]
    for place, (text, color) in enumerate(lines):
        ax.text(1.02, 1 - 0.075 * place, text, transform=ax.transAxes, va="top", fontsize=SMALL, color=color)
    return finish(ax)


def _above(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of values above each value, as a curve from 1 down to 0."""
    ordered = np.sort(values)
    return ordered, 1 - np.arange(1, len(ordered) + 1) / len(ordered)


def plot_training(
    dictionary: Dictionary | Sequence[Mapping[str, Any]], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw explained variance, L0 and dead features over the tokens of a training, one below the other.

    Parameters
    ----------
    dictionary : Dictionary, or sequence of mappings
        Or its history: ``provenance["history"]``, entries with ``tokens``, ``explained_variance``,
        ``l0`` and ``dead``.
    axes : three matplotlib Axes, optional

    Returns
    -------
    list of matplotlib.axes.Axes

    Raises
    ------
    InvalidInput
        If there is no history.
    """
    history = dictionary.provenance.get("history") if hasattr(dictionary, "provenance") else dictionary
    if not history:
        raise InvalidInput(f"plot_training: {dictionary} has no training history in its provenance")
    axes = _panels(3) if axes is None else list(axes)
    tokens = np.array([entry["tokens"] for entry in history], float)
    unit, name = (1e6, "million tokens") if tokens.max() >= 1e6 else (1e3, "thousand tokens")
    figures = (("explained_variance", "explained variance"), ("l0", "L0"), ("dead", "dead features"))
    for ax, (key, label) in zip(axes, figures, strict=True):
        values = np.array([np.nan if entry.get(key) is None else entry[key] for entry in history], float)
        ax.set_ylabel(label)
        if np.isfinite(values).any():
            ax.plot(tokens / unit, values, color=NEGATIVE, linewidth=1.4)
            _scale(ax, key, values[np.isfinite(values)])
            last = values[np.isfinite(values)][-1]
            text = drop_zero(last, 3) if key == "explained_variance" else f"{last:,.4g}"
            ax.annotate(text, (tokens[np.isfinite(values)][-1] / unit, last), xytext=(4, 0), textcoords="offset points",
                        va="center", fontsize=SMALL, color=INK, annotation_clip=False)  # fmt: skip
        else:
            note(ax, "not recorded")
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        ax.set_xlim(0, None)
        finish(ax)
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    axes[-1].set_xlabel(name, fontsize=FONT_SIZE, color=INK)
    return axes


def _scale(ax: Axes, key: str, values: np.ndarray) -> None:
    """Room that shows what changes: EV up to 1, the others from 0."""
    if key == "explained_variance":
        ax.set_ylim(max(min(float(values.min()) - 0.05, 0.9), -0.1), 1.0)
    else:
        ax.set_ylim(0, 1.15 * max(float(values.max()), 1))
        ax.yaxis.get_major_locator().set_params(integer=True)


def _plain_powers(ax: Axes) -> None:
    """Labels of a logarithmic axis without mathtext: .01 or 1e-05."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _panels(n: int) -> list[Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 1.5 * n + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    return list(figure.subplots(n, 1, sharex=True))


def plot_anisotropy(report: Anisotropy, ax: Axes | None = None) -> Axes:
    """Draw the share of the variance that each dimension has; massive dimensions are named.

    Parameters
    ----------
    report : Anisotropy
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(4.6, 3.5) if ax is None else ax
    ax.set_xlabel("dimension")
    ax.set_ylabel("share of variance (log scale)")
    frame = report.to_frame()
    share, massive = frame["share"].to_numpy(), frame["massive"].to_numpy()
    seen = share > 0
    if not seen.any():
        note(ax, "the activations do not vary")
        return finish(ax)
    for which, color, size in ((seen & ~massive, CLOUD, 7), (seen & massive, POSITIVE, 20)):
        ax.scatter(np.flatnonzero(which), share[which], s=size, color=color, linewidths=0)
    ax.set_yscale("log")
    _plain_powers(ax)
    ax.axhline(1 / report.d, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2.5)))
    ax.annotate("equal\nshares", (1, 1 / report.d), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=SMALL, color=MUTED)  # fmt: skip
    for dimension in report.massive[:MOST_LABELS].tolist():
        if seen[dimension]:
            left = dimension > 0.8 * report.d
            ax.annotate(str(dimension), (dimension, share[dimension]), xytext=(-5 if left else 5, 0),
                        textcoords="offset points", ha="right" if left else "left", va="center", fontsize=SMALL,
                        color=POSITIVE)  # fmt: skip
    cosine = f"mean cosine {drop_zero(report.mean_cosine, 2)}, centred {drop_zero(report.mean_cosine_centred, 2)}"
    ratio = f"participation ratio {report.participation_ratio:,.1f} of {report.d}"
    ax.set_title(f"{cosine}\n{ratio}", loc="left", fontsize=SMALL, color=INK)
    return finish(ax)
