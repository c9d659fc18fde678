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
from neurollm.plotting.sides import compares_cells, decisive_p, has_sides
from neurollm.reporting import formatting
from neurollm.reporting.contexts import TOKEN_BUDGET, fit, shown_contexts
from neurollm.reporting.decoding import decode_sections, decode_told, decode_warnings
from neurollm.reporting.features import condition_groups, feature_row, table_data
from neurollm.reporting.methods import dictionary_facts, methods_paragraph
from neurollm.reporting.references import references
from neurollm.reporting.rsa import rsa_section, rsa_verdict, rsa_warnings
from neurollm.reporting.sensitivity import sensitivity
from neurollm.reporting.sentences import (
    FDR_NAMES,
    P_METHODS,
    control_verdict,
    method_phrase,
    representation_name,
    tally,
    verdict,
)
from neurollm.reporting.study import Study, read_study

if TYPE_CHECKING:
    from jinja2 import Environment

    from neurollm.glm import ContrastResult

HERE = Path(__file__).parent
MOST_CELLS = 40
"""Rows of the table of cells; a formula may have many more."""
MANY_CONTRASTS = 8
"""With more, each has fewer rows, shorter contexts and only one figure: the page stays under 2 MB."""
ROWS, ROWS_OF_MANY = 1000, 400
"""Of the feature tables of all contrasts together."""
MOST_PARAMETERS = 12
"""Weights of a contrast that are written out."""
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
    """What a study found, one plain paragraph per contrast, model RDM and decoding: the result, then the controls."""
    study = read_study(study_folder)
    told = [
        f"{name}: {verdict(result, study.alpha)} {control_verdict(study.controls.get(name) or [])}"
        for name, result in study.results.items()
    ]
    maps = [] if study.rsa is None else study.rsa.maps
    told += [f"RSA, {one.model}: {rsa_verdict(study.rsa, one.model, study.alpha)}" for one in maps]
    told += [f"decoding, {one['name']}: {one['verdict']} {one['rivals']}".rstrip() for one in decode_told(study)]
    return told


def render(study: Study, top: int) -> str:
    """The report as HTML text."""
    style, script = asset("report.css"), asset("report.js")
    few = len(study.results) <= MANY_CONTRASTS
    top = min(top, (ROWS if few else ROWS_OF_MANY) // max(len(study.results), 1))
    chosen = {name: result.strongest(top) for name, result in study.results.items()}
    methods = methods_paragraph(study)
    saved = [saved for name, indices in chosen.items() for saved in _saved_contexts(study, name, indices)]
    room = fit(saved, TOKEN_BUDGET if few else TOKEN_BUDGET // 2)
    contrasts = [
        _contrast(study, number, name, chosen[name], room)
        for number, name in enumerate(study.results, start=1)
    ]  # fmt: skip
    return environment().get_template("report.html.jinja").render(
        study=study,
        manifest=study.manifest,
        design=study.design,
        alpha=study.alpha,
        contrasts=contrasts,
        rsa=None if study.rsa is None else rsa_section(study.rsa, study.alpha, top),
        decoded=decode_sections(study, few),
        warnings=_warnings(study),
        methods=methods,
        references=references(methods),
        cells=_cells(study.design.get("cells") or []),
        design_figure=_design_figure(study.design.get("matrix") or {}),
        shufflings=_shufflings(study),
        quality=dictionary_facts(study.dictionary),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def environment() -> Environment:
    """The templates, with autoescape, and the number formats as filters."""
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


def asset(name: str) -> str:
    """Text of a style sheet or script."""
    text = (HERE / "assets" / name).read_text(encoding="utf-8")
    return "\n" + text.replace("\r\n", "\n")


def _saved_contexts(study: Study, name: str, indices: Any) -> list[list[dict[str, Any]]]:
    """The saved contexts of some features of a contrast."""
    saved, features = study.contexts.get(name) or {}, study.results[name].feature
    return [saved.get(str(int(features[i])), []) for i in indices]


def _contrast(study: Study, number: int, name: str, indices: Any, room: tuple[int, int]) -> dict[str, Any]:
    """Everything the page shows about one contrast."""
    result, alpha = study.results[name], study.alpha
    controls = [row | {"representation": representation_name(row)} for row in study.controls.get(name) or []]
    controls.sort(key=lambda row: row.get("kind") != "study")
    groups = condition_groups(result)
    rows = [
        feature_row(result, i, alpha, groups, shown_contexts(saved, *room))
        for i, saved in zip(indices, _saved_contexts(study, name, indices), strict=True)
    ]
    return {
        "number": number,
        "name": name,
        "result": result,
        "groups": groups,
        "weights": _weights(result),
        "symbol": decisive_p(result)[1],
        "fdr": FDR_NAMES[result.fdr],
        "about": _about(result),
        "verdict": verdict(result, alpha),
        "control_verdict": control_verdict(controls),
        "sensitivity": sensitivity(result, alpha),
        "tally": tally(result, alpha),
        "untested": _untested(result),
        "critical": result.critical_value(alpha),
        "controls": controls,
        "control_reason": next((row["reason"] for row in controls if row.get("reason")), ""),
        "rows": rows,
        "data": table_data(rows, groups, "eta2" if result.is_f else "g"),
        "has_contexts": any(row.contexts for row in rows),
        "figures": _figures(result, number, controls, alpha, len(study.results) <= MANY_CONTRASTS),
    }


def _about(result: ContrastResult) -> dict[str, str]:
    """What the columns of the feature table are."""
    unit = {"raw": "in activation units", "rank": "in ranks"}.get(
        result.transform, f"of activations after {result.transform}"
    )
    if result.is_f:
        effect = "root mean square of what the contrast explains"
    elif compares_cells(result):
        effect = "mean difference"
    else:
        effect = "estimate of the coefficient"
    sizes = {
        "hedges_g_z": "Hedges’ g_z of the paired differences",
        "hedges_g": "Hedges’ g",
        "partial_r": "partial r",
        "partial_eta2": "partial η²",
    }
    statistics = {"welch": "Welch’s t", "hc3": "t with HC3 standard errors", "F": "F", "t": "t"}
    df = result.df[result.valid]
    shared = df.size and df.min() == df.max()
    degrees = formatting.decimal(df[0], 0) if shared else "different degrees of freedom for every feature"
    return {
        "effect": f"{effect} {unit}",
        "size": sizes[result.effect_size_kind],
        "statistic": "F" if result.is_f else "t",
        "degrees": f"{statistics[result.stat_kind]} with "
        + (f"{result.contrast.rank} and " if result.is_f else "")
        + (f"{degrees} degrees of freedom" if shared else degrees),
        "p": P_METHODS.get(result.p_method, result.p_method),
    }


def _weights(result: ContrastResult) -> str:
    """The weights of a t contrast, or how many rows an F contrast has."""
    contrast = result.contrast
    if result.is_f:
        return f"F contrast, {contrast.rank} degrees of freedom"
    pairs = [(name, w) for name, w in zip(contrast.parameters, contrast.weights[0], strict=True) if w]
    shown = [f"{name} {formatting.decimal(weight)}" for name, weight in pairs[:MOST_PARAMETERS]]
    more = len(pairs) - len(shown)
    return "; ".join([*shown, f"{more} more"] if more else shown)


def _figures(result: ContrastResult, number: int, controls: list, alpha: float, few: bool) -> dict[str, Any]:
    from neurollm.plotting import contrast_sides, plot_controls, plot_null_max, plot_volcano
    from neurollm.reporting.svg import figure_svg

    found = tally(result, alpha)
    asked = " against ".join(contrast_sides(result.contrast)) if has_sides(result) else result.name
    figures = {
        "volcano": figure_svg(
            plot_volcano(result, alpha), f"v{number}",
            f"Volcano plot of {found.tested} features: effect size of {asked} "
            f"over minus log 10 of p; {found.found} features are significant.",
        ),
    }  # fmt: skip
    if few and result.exchange.n_perm:
        figures["null"] = figure_svg(
            plot_null_max(result, alpha), f"n{number}",
            "Histogram of the largest statistic over features in each shuffling, with the critical value "
            "and the observed maximum.",
        )  # fmt: skip
    if few and any(formatting.is_number(row.get("auroc")) for row in controls):
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
    more = max(0, len(levels) - MOST_CELLS)
    templates = list(dict.fromkeys(str(cell.get("template", "")) for cell in cells))
    n = {(level, template): 0 for level in levels for template in templates}
    for cell in cells:
        n[str(cell["level"]), str(cell.get("template", ""))] += int(cell["n"])
    rows = [(level, [n[level, template] for template in templates]) for level in levels[:MOST_CELLS]]
    return {"templates": templates, "rows": rows, "more": more}


def _shufflings(study: Study) -> list[str]:
    """What was exchangeable: one sentence for all contrasts if it holds for all, else one for each."""
    told = {name: result.exchange.sentence for name, result in study.results.items()}
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
        exchange = result.exchange
        smallest = 1 / exchange.n_possible if exchange.exhaustive else 1 / (exchange.n_perm + 1)
        if exchange.n_perm and smallest > study.alpha:
            warnings.append(
                f"{name}: the smallest p that {method_phrase(result)} allow is "
                f"{formatting.p_number(smallest, study.alpha)}, "
                "so nothing could have been significant."
            )
    warnings += [] if study.rsa is None else rsa_warnings(study.rsa, study.alpha)
    warnings += decode_warnings(study)
    warnings += [
        f"Stimulus audit failed, {row.get('name')}: {row.get('reason') or 'no reason was recorded'}"
        for row in study.audit
        if row.get("status") == "fail"
    ]
    return list(dict.fromkeys(warnings))
