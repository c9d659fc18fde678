"""One page about a factorial study of interactions, from its folder alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from neurollm.factorial import FactorialStudy
from neurollm.files import write_text
from neurollm.plotting.components import in_order
from neurollm.plotting.factorial import _strongest
from neurollm.reporting import formatting
from neurollm.reporting.build import asset, environment
from neurollm.reporting.factorial_results import (
    LABELS,
    NOTES,
    PARTNER,
    SIZES,
    Factorial,
    counts,
    explained_share,
    mean,
    read_factorial_results,
    verdict,
)

PANELS = {"features": 8, "interactions": 8, "secondary": 8}
FEW_PANELS = 4
STATUS = ("fail", "warn", "pass")


def build_factorial_report(folder: str | os.PathLike) -> Path:
    """Write the report of a factorial study from its saved results.

    Parameters
    ----------
    folder : path-like
        ``reports/<study>/`` as left by a run.

    Returns
    -------
    pathlib.Path
        ``report.html`` in that folder: one file, readable offline and without JavaScript.

    Raises
    ------
    InvalidInput, DataMismatch
        The folder holds no finished factorial study, or a file in it is damaged.
    """
    found = read_factorial_results(folder)
    path = Path(folder) / "report.html"
    write_text(path, _render(found))
    return path


def _render(found: Factorial) -> str:
    manifest, config = found.study.manifest, found.study.config
    told = verdict(found)
    one = next(iter(found.studies.values()))
    return environment().get_template("factorial.html.jinja").render(
        name=manifest.get("name") or found.study.folder.name,
        study=found.study,
        manifest=manifest,
        config=config,
        nfm=manifest["nfm"],
        quality=None,
        lead=told,
        failed=found.failed,
        effects=list(effect_names(one)),
        factors=one.factors,
        exchange=_shared(found.studies),
        one=one,
        rows=_summary(found),
        n_shuffled=max((len(draws) for draws in found.shuffled.values()), default=0),
        sizes=_sizes(found),
        components=_component_figure(found),
        sections=[_section(found, name, number) for number, name in enumerate(found.names) if name != SIZES],
        size_table=_candidates(found.studies[SIZES], 10) if SIZES in found.studies else [],
        secondary=found.secondary,
        checks={status: [row for row in found.study.audit if row.get("status") == status] for status in STATUS},
        warnings=manifest.get("warnings") or [],
        alpha=found.alpha,
        share=explained_share,
        style=Markup(asset("report.css")),
    )  # fmt: skip


def effect_names(study: FactorialStudy) -> list[str]:
    """Main effects, then the interaction."""
    return [*study.factors, study.interaction]


def _shared(studies: Mapping[str, FactorialStudy]) -> list[str]:
    """What was exchanged, each sentence once."""
    one = next(iter(studies.values()))
    return [f"{effect}: {sentence}" for effect, sentence in one.exchange.items()]


def _summary(found: Factorial) -> list[dict[str, Any]]:
    """One row for each representation and control."""
    rows = []
    for name in LABELS:
        if name in found.reasons:
            rows.append(_heading(found, name) | {"reason": found.reasons[name]})
        elif name in found.studies:
            rows.append(_row(found, name))
    return rows


def _heading(found: Factorial, name: str) -> dict[str, Any]:
    return {"name": name, "label": LABELS[name], "note": NOTES[name], "own": name in found.names, "reason": ""}


def _row(found: Factorial, name: str) -> dict[str, Any]:
    own = counts(found.studies[name])
    draws = found.random.get(name) or []
    by_chance = found.shuffled.get(name) or []
    cells = []
    for effect in effect_names(found.studies[name]):
        n, chosen = own["effects"].get(effect, [0, 0])
        several = [one["effects"].get(effect, [0, 0])[0] for one in draws]
        chance = mean([one["effects"].get(effect, [0, 0])[0] for one in by_chance])
        cells.append({"n": n, "chosen": chosen, "draws": _range(several), "chance": chance})
    lasting = {"n": own["lasting"], "draws": _range([one["lasting"] for one in draws])}
    lasting["chance"] = mean([one["lasting"] for one in by_chance])
    kinds = ", ".join(f"{n} {kind}" for kind, n in own["kinds"].items())
    counted = {name: own[name] for name in ("n_columns", "n_candidates")}
    return _heading(found, name) | {"cells": cells, "lasting": lasting, "kinds": kinds, **counted}


def _range(draws: Sequence[int]) -> str:
    if not draws:
        return ""
    return f"{formatting.decimal(mean(draws), 1)} ({min(draws)} to {max(draws)})"


def _sizes(found: Factorial) -> list[dict[str, Any]]:
    """Mean squared norms on the stimuli, each as a share of that of the dictionary's error."""
    error = found.sizes["error"]
    words = {"error": "dictionary’s error x − x̂", "rest": "what the model leaves of it, x − x̂ − ŷ"}
    return [
        {
            "name": words.get(name, f"{name} component"),
            "value": value,
            "share": _times(value / error if error else None),
        }
        for name, value in found.sizes.items()
    ]


def _times(share: float | None) -> str:
    return f"{share:,.0f} times" if formatting.is_number(share) and share >= 10 else formatting.percent(share)


def _section(found: Factorial, name: str, number: int) -> dict[str, Any]:
    """Everything the page shows about one representation."""
    section: dict[str, Any] = {"key": name, "label": LABELS[name], "note": NOTES[name]}
    if name not in found.studies:
        return section | {"reason": found.reasons.get(name, "no result was saved")}
    study, partner = found.studies[name], PARTNER[name]
    beside = found.studies.get(partner)
    return section | {
        "reason": "",
        "verdict": study.verdict(),
        "candidates": _candidates(study, int((found.study.config.get("report") or {}).get("top", 10))),
        "n_candidates": len(study.candidates),
        "partner": LABELS[partner] if beside is not None else "",
        **_figures(study, beside, PANELS.get(name, FEW_PANELS), number),
    }


def _candidates(study: FactorialStudy, top: int) -> list[dict[str, Any]]:
    """The strongest candidates: what each is, and its effects."""
    units, verdicts, tests = study.units().set_index("column"), study.verdicts, study.tests
    q = tests.set_index(["column", "effect", "scale"])["q"]
    chosen = tests[tests["scale"] == "raw"].set_index(["column", "effect"])["chosen"]
    rows = []
    for column in _strongest(study)[:top]:
        unit = units.loc[column]
        effects = [
            effect | {"q": [q[column, effect["effect"], scale] for scale in ("raw", "log1p", "rank")],
                      "chosen": bool(chosen[column, effect["effect"]])}
            for effect in verdicts[verdicts["column"] == column].to_dict("records")
        ]  # fmt: skip
        preferred = " · ".join(str(unit[f"preferred_{factor}"]) for factor in study.factors)
        marks = [name for name in ("survives", "removable", "crossover") if unit["significant"] and unit[name]]
        tests_of = {name: unit[name] for name in ("p_conjunction", "p_superadditive", "p_crossover")}
        rows.append({"column": column, "kind": unit["kind"], "reason": unit["reason"], "preferred": preferred,
                     "marks": marks, "effects": effects, **tests_of})  # fmt: skip
    return rows


def _figures(study: FactorialStudy, beside: FactorialStudy | None, panels: int, number: int) -> dict[str, Markup]:
    from neurollm.plotting.factorial import plot_cells, plot_interaction_lines, plot_units
    from neurollm.reporting.svg import figure_svg

    column = _strongest(study)[0]
    factors = " and ".join(study.factors)
    kinds = "; ".join(f"{n} {kind}" for kind, n in study.kinds().items())
    told = f"Cell means of column {column} over {factors}.", f"Cell means of the strongest candidates over {factors}."
    return {
        "lines": figure_svg(plot_interaction_lines(study, column), f"l{number}", told[0])
        if panels > FEW_PANELS
        else None,
        "cells": figure_svg(plot_cells(study, panels)[0], f"m{number}", told[1]),
        "units": figure_svg(plot_units(study, beside), f"u{number}", f"Kinds of the candidates: {kinds}."),
    }


def _component_figure(found: Factorial) -> Markup | None:
    from neurollm.plotting.components import plot_components
    from neurollm.reporting.svg import figure_svg

    if SIZES not in found.studies:
        return None
    components = in_order(found.studies[SIZES].cells()["column"])
    own = {name: found.studies[f"component_{name}"] for name in components if f"component_{name}" in found.studies}
    axes = plot_components(found.studies[SIZES], own)
    return figure_svg(
        axes[0], "s", "Squared norm of each component in the four cells, and its columns with each effect."
    )
