"""From a study folder to `report.html`."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from neurollm.errors import InvalidInput
from neurollm.files import write_text
from neurollm.reporting import formatting
from neurollm.reporting.contexts import fit, shown_contexts
from neurollm.reporting.features import feature_row, table_data
from neurollm.reporting.methods import REFERENCES, dictionary_facts, methods_paragraph
from neurollm.reporting.sentences import control_verdict, method_phrase, representation_name, tally, verdict
from neurollm.reporting.study import Study, read_study

if TYPE_CHECKING:
    from neurollm.glm import ContrastResult

HERE = Path(__file__).parent
FILTERS = "count decimal duration exact measure p_number percent plural proportion significant statistics"


def build_report(study_folder: str | os.PathLike, *, top: int = 50) -> Path:
    """Write the report of a study from its saved results.

    Parameters
    ----------
    study_folder : path-like
        ``reports/<study>/`` as left by a run. Neither model nor dictionary is needed.
    top : int, default=50
        How many features each contrast's table shows.

    Returns
    -------
    pathlib.Path
        ``report.html`` in that folder: one file, readable offline and without JavaScript.
    """
    if top < 1:
        raise InvalidInput(f"The report's top is {top}, but at least one feature has to be shown: use top=50, say.")
    study = read_study(study_folder)
    path = study.folder / "report.html"
    write_text(path, render(study, top))
    return path


def verdicts(study_folder: str | os.PathLike) -> list[str]:
    """What a study found, one plain paragraph per contrast: the result, then the controls."""
    study = read_study(study_folder)
    return [
        f"{name}: {verdict(result, study.alpha)} {control_verdict(study.controls.get(name) or [])}"
        for name, result in study.results.items()
    ]


def render(study: Study, top: int) -> str:
    """The report as HTML text."""
    style, script = _asset("report.css"), _asset("report.js")
    chosen = {name: result.strongest(top) for name, result in study.results.items()}
    room = fit([saved for name, indices in chosen.items() for saved in _saved_contexts(study, name, indices)])
    contrasts = [
        _contrast(study, number, name, chosen[name], room)
        for number, name in enumerate(study.results, start=1)
    ]  # fmt: skip
    return _environment().get_template("report.html.jinja").render(
        study=study,
        manifest=study.manifest,
        design=study.design,
        alpha=study.alpha,
        contrasts=contrasts,
        warnings=_warnings(study),
        methods=methods_paragraph(study),
        references=REFERENCES,
        cells=_cells(study.design.get("cells") or []),
        design_figure=_design_figure(study.design.get("matrix") or {}),
        shufflings=_shufflings(study),
        quality=dictionary_facts(study.dictionary),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _environment():
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=formatting.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formatting, name) for name in FILTERS.split()})
    environment.globals.update(interval=formatting.interval, auroc=formatting.auroc, missing=formatting.MISSING)
    return environment


def _asset(name: str) -> str:
    text = (HERE / "assets" / name).read_text(encoding="utf-8")
    return "\n" + text.replace("\r\n", "\n")


def _saved_contexts(study: Study, name: str, indices: Any) -> list[list[dict[str, Any]]]:
    """The saved contexts of some features of a contrast."""
    saved, features = study.contexts.get(name) or {}, study.results[name].feature
    return [saved.get(str(int(features[i])), []) for i in indices]


def _contrast(study: Study, number: int, name: str, indices: Any, room: tuple[int, int]) -> dict[str, Any]:
    """Everything the page shows about one contrast."""
    from neurollm.plotting import contrast_sides

    result, alpha = study.results[name], study.alpha
    controls = [row | {"representation": representation_name(row)} for row in study.controls.get(name) or []]
    controls.sort(key=lambda row: row.get("kind") != "study")
    rows = [
        feature_row(result, i, alpha, shown_contexts(saved, *room))
        for i, saved in zip(indices, _saved_contexts(study, name, indices), strict=True)
    ]
    positive, negative = contrast_sides(result)
    return {
        "number": number,
        "name": name,
        "result": result,
        "positive": positive,
        "negative": negative,
        "verdict": verdict(result, alpha),
        "control_verdict": control_verdict(controls),
        "tally": tally(result, alpha),
        "untested": _untested(result),
        "critical": result.critical_value(alpha),
        "controls": controls,
        "rows": rows,
        "data": table_data(rows),
        "has_contexts": any(row.contexts for row in rows),
        "figures": _figures(result, number, controls, alpha),
    }


def _figures(result: ContrastResult, number: int, controls: list, alpha: float) -> dict[str, Any]:
    from neurollm.plotting import contrast_sides, plot_controls, plot_null_max, plot_volcano
    from neurollm.reporting.svg import figure_svg

    found = tally(result, alpha)
    positive, negative = contrast_sides(result)
    figures = {
        "volcano": figure_svg(
            plot_volcano(result, alpha), f"v{number}",
            f"Volcano plot of {found.tested} features: effect size of {positive} against {negative} "
            f"over minus log 10 of p; {found.found} features are significant.",
        ),
        "null": figure_svg(
            plot_null_max(result, alpha), f"n{number}",
            "Histogram of the largest statistic over features in each shuffling, with the critical value "
            "and the observed maximum.",
        ),
    }  # fmt: skip
    if controls:
        described = "; ".join(f"{row['representation']} {formatting.auroc(row)}" for row in controls)
        title = f"AUROC per representation: {described}."
        figures["controls"] = figure_svg(plot_controls(controls), f"c{number}", title)
    return figures


def _design_figure(matrix: dict[str, Any]) -> Markup | None:
    if not matrix.get("rows") or not matrix.get("columns"):
        return None
    import pandas as pd

    from neurollm.plotting import plot_design_matrix
    from neurollm.reporting.svg import figure_svg

    frame = pd.DataFrame(matrix["rows"], columns=matrix["columns"], index=matrix.get("index"))
    columns = ", ".join(map(str, frame.columns))
    return figure_svg(
        plot_design_matrix(frame), "d", f"Design matrix of {len(frame)} trials with the columns {columns}."
    )  # fmt: skip


def _cells(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Stimuli per level and template as a table with totals."""
    levels = list(dict.fromkeys(str(cell["level"]) for cell in cells))
    templates = list(dict.fromkeys(str(cell.get("template", "")) for cell in cells))
    n = {(level, template): 0 for level in levels for template in templates}
    for cell in cells:
        n[str(cell["level"]), str(cell.get("template", ""))] += int(cell["n"])
    rows = [(level, [n[level, template] for template in templates]) for level in levels]
    return {"templates": templates, "rows": rows, "total": sum(n.values())}


def _shufflings(study: Study) -> list[str]:
    """What was exchangeable: one sentence for all contrasts if it holds for all, else one for each."""
    told = {name: result.shuffling for name, result in study.results.items()}
    distinct = list(dict.fromkeys(told.values()))
    return distinct if len(distinct) < 2 else [f"{name}: {sentence}" for name, sentence in told.items()]


def _untested(result: ContrastResult) -> str:
    """How many features were left out, and why."""
    reasons = [f"{formatting.count(n)} {reason}" for reason, n in result.not_tested.items() if n]
    if not reasons:
        return ""
    total = sum(result.not_tested.values())
    return f"{formatting.plural(total, 'feature was', 'features were')} not tested: {', '.join(reasons)}."


def _warnings(study: Study) -> list[str]:
    """Recorded warnings, failed audits, and tests that could not have succeeded."""
    warnings = [str(warning) for warning in study.manifest.get("warnings") or []]
    for name, result in study.results.items():
        warnings += result.warnings
        smallest = 1 / result.n_possible if result.exhaustive else 1 / (result.n_perm + 1)
        if smallest > study.alpha:
            warnings.append(
                f"{name}: the smallest p that {method_phrase(result)} allow is "
                f"{formatting.p_number(smallest, study.alpha)}, "
                "so nothing could have been significant."
            )
    warnings += [
        f"Stimulus audit failed, {row.get('name')}: {row.get('reason') or 'no reason was recorded'}"
        for row in study.audit
        if row.get("status") == "fail"
    ]
    return list(dict.fromkeys(warnings))
