"""One page about dictionaries: a trained one, several, or a sweep; from their folder alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import write_text
from neurollm.reporting import formatting
from neurollm.reporting.build import asset, environment

if TYPE_CHECKING:
    from neurollm.dictionaries import Dictionary, DictionaryMetrics
    from neurollm.dictionaries.sweeping import SweepResult

SIDE_FILE, SWEEP_FILE = "neurollm.json", "sweep.csv"
MOST_SHOWN = 8
"""Dictionaries with figures of their own; the page stays under 2 MB."""
MOST_COMPARED, MOST_FEATURES = 4, 8192
"""Matching the features of two dictionaries takes time as the cube of their number."""
MEANINGS = (
    ("ev", "EV", "explained variance, 1 − FVU"),
    ("l0", "L0", "features active on a token"),
    ("dead", "Dead", "share of features never active"),
    ("dense", "Dense", "share active on more than 10% of the tokens"),
    ("rare", "Rare", "share active on fewer than 1e-5 of the tokens"),
    ("gini", "Gini", "inequality of the densities"),
    ("decoder_cosine", "Cosine", "mean of the largest cosine with another feature"),
    ("shrinkage", "Shrinkage", "below 1 where reconstructions are too short"),
)
NOTHING = {key: None for key, *_ in MEANINGS}


@dataclass(frozen=True, eq=False)
class _Shown:
    """A dictionary of the page."""

    name: str
    dictionary: Dictionary
    metrics: DictionaryMetrics | None

    @property
    def run(self) -> dict[str, Any]:
        """How it was trained; empty if it was not trained here."""
        found = self.dictionary.provenance.get("run")
        return found if isinstance(found, dict) else {}

    @property
    def architecture(self) -> str:
        """As it was trained: a finished batchtopk SAE has thresholds and is a jumprelu SAE."""
        return str(self.run.get("architecture", self.dictionary.architecture))

    @property
    def history(self) -> list[dict[str, Any]]:
        """Entries of the training history; empty if there is none."""
        found = self.dictionary.provenance.get("history")
        return found if isinstance(found, list) else []


def holds_dictionaries(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of a dictionary, a sweep, or several dictionaries."""
    folder = Path(folder)
    if any((folder / name).is_file() for name in (SIDE_FILE, SWEEP_FILE)):
        return True
    return folder.is_dir() and not (folder / "manifest.json").is_file() and bool(_inside(folder))


def build_dictionary_report(folder: str | os.PathLike) -> Path:
    """Write the report of a trained dictionary, of several, or of a sweep.

    Parameters
    ----------
    folder : path-like
        Written by `train_dictionary` or `sweep_dictionaries`, or a folder of such folders: dictionaries of one
        site are compared with each other.

    Returns
    -------
    pathlib.Path
        ``report.html`` in that folder: one file, readable offline and without JavaScript.

    Raises
    ------
    InvalidInput
        If the folder holds no dictionary.
    DataMismatch
        If its files are damaged.
    """
    folder = Path(folder)
    if not holds_dictionaries(folder):
        raise InvalidInput(
            f"{folder} holds no dictionary: expected {SIDE_FILE}, {SWEEP_FILE}, or folders of dictionaries"
        )
    path = folder / "report.html"
    write_text(path, _render(folder))
    return path


def _inside(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{SIDE_FILE}"))


def _render(folder: Path) -> str:
    from neurollm.dictionaries.sweeping import SweepResult

    name = folder.resolve().name
    sweep = SweepResult.load(folder) if (folder / SWEEP_FILE).is_file() else None
    shown = [] if sweep is not None else _load(folder)
    stability, why_not = _stability(shown)
    template = environment().get_template("dictionaries.html.jinja")
    return template.render(
        name=name,
        kind="sweep" if sweep is not None else "dictionary" if len(shown) == 1 else "dictionaries",
        facts=_facts(shown, sweep),
        meanings=MEANINGS,
        rows=_rows(shown) if sweep is None else [NOTHING | row for row in sweep.to_frame().to_dict("records")],
        law=None if sweep is None else sweep.law,
        doubt="" if sweep is None else sweep.doubt,
        scaling=None if sweep is None else _scaling(sweep),
        sections=[_section(number, one) for number, one in enumerate(shown[:MOST_SHOWN], 1)],
        n_hidden=max(0, len(shown) - MOST_SHOWN),
        stability=stability,
        why_not=why_not,
        style=Markup(asset("report.css")),
    )


def _load(folder: Path) -> list[_Shown]:
    from neurollm.dictionaries import load_dictionary
    from neurollm.dictionaries.held_out import saved_metrics

    folders = [folder] if (folder / SIDE_FILE).is_file() else _inside(folder)
    shown = []
    for one in folders:
        dictionary = load_dictionary(one)
        shown.append(_Shown(one.resolve().name, dictionary, saved_metrics(dictionary, one)))
    return shown


def _facts(shown: list[_Shown], sweep: SweepResult | None) -> list[str]:
    """What the line below the title says."""
    if sweep is not None:
        return [formatting.plural(len(sweep.table), "dictionary", "dictionaries")]
    models = dict.fromkeys(f"model {one.dictionary.model_name}" for one in shown if one.dictionary.model_name)
    sites = dict.fromkeys(str(one.dictionary.site) for one in shown)
    return [*models, *sites, formatting.plural(len(shown), "dictionary", "dictionaries")]


def _rows(shown: list[_Shown]) -> list[dict[str, Any]]:
    rows = []
    for one in shown:
        row = NOTHING | {
            "name": one.name,
            "architecture": one.architecture,
            "n_features": one.dictionary.n_features,
            "k": one.run.get("k"),
            "n_tokens": one.run.get("n_tokens"),
            "random_state": one.run.get("random_state"),
        }
        rows.append(row | ({} if one.metrics is None else {key: getattr(one.metrics, key) for key, *_ in MEANINGS}))
    return rows


def _section(number: int, one: _Shown) -> dict[str, Any]:
    """Hints and figures of one dictionary."""
    from neurollm.plotting.dictionaries import plot_decoder_cosines, plot_density, plot_training
    from neurollm.reporting.svg import figure_svg

    figures = {}
    if one.history:
        try:
            axes = plot_training(one.history)
        except (KeyError, TypeError, ValueError) as error:
            raise DataMismatch(f"{one.name}: the training history in {SIDE_FILE} is damaged ({error!r})") from None
        title = f"Training history of {one.name}: explained variance, L0 and dead features over the tokens seen."
        figures["history"] = figure_svg(axes[0], f"h{number}", title)
    if one.metrics is not None:
        title = f"Histogram of the densities of the features of {one.name}."
        if one.metrics.density.size:
            figures["density"] = figure_svg(plot_density(one.metrics), f"f{number}", title)
        if one.metrics.cosines is not None:
            title = f"Histogram of the cosines of all pairs of features of {one.name}, with that of random directions."
            figures["cosines"] = figure_svg(plot_decoder_cosines(one.metrics.cosines), f"c{number}", title)
    return {
        "number": number,
        "name": one.name,
        "architecture": one.architecture,
        "dictionary": one.dictionary,
        "metrics": one.metrics,
        "hints": [] if one.metrics is None else one.metrics.hints(),
        "figures": figures,
    }


def _stability(shown: list[_Shown]) -> tuple[dict[str, Any] | None, str]:
    """The features that dictionaries have in common, or why they are not compared."""
    if len(shown) < 2:
        return None, ""
    dictionaries = {one.name: one.dictionary for one in shown}
    if any(dictionary.directions is None for dictionary in dictionaries.values()):
        return None, "Not every one of these dictionaries has directions, so their features are not compared."
    if len({(dictionary.target_site, dictionary.d_out) for dictionary in dictionaries.values()}) > 1:
        return None, "These dictionaries are of different sites, so their features are not compared."
    if max(dictionary.n_features for dictionary in dictionaries.values()) > MOST_FEATURES:
        return (
            None,
            f"With more than {MOST_FEATURES:,} features they are compared by neurollm.dictionaries.stability only.",
        )
    from neurollm.dictionaries.stability import seed_stability
    from neurollm.plotting.dictionaries import plot_stability
    from neurollm.reporting.svg import figure_svg

    found = seed_stability(dict(list(dictionaries.items())[:MOST_COMPARED]), n_null=2)
    title = f"Share of matched features above every cosine, for {len(found.pairs)} pairs and for random vectors."
    more = f"Only the first {MOST_COMPARED} are compared." if len(shown) > MOST_COMPARED else ""
    return {
        "pairs": found.pairs.to_dict("records"),
        "threshold": found.threshold,
        "figure": figure_svg(plot_stability(found), "s", title),
    }, more


def _scaling(sweep: SweepResult) -> Markup:
    from neurollm.plotting.scaling import plot_scaling
    from neurollm.reporting.svg import figure_svg

    title = (
        f"Fraction of variance unexplained over the number of features, with the scaling law: {sweep.law.describe()}."
    )
    return figure_svg(plot_scaling(sweep), "l", title)
