"""One page about a method grid, from its folder alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import write_text
from neurollm.reporting import formatting
from neurollm.reporting.build import asset, environment
from neurollm.reporting.study import Study

if TYPE_CHECKING:
    import pandas as pd

TYPE = "method_grid"
BASELINES = ("words", "length")
ALL = "all"
DECLARED = ("RSA − maximum activation", "SAE − raw units", "discriminative − categorical RSA")
_NEEDS = "needs all three RSA selectors with maximum_activation, sae with raw_units, and both RSA selectors"
SIMPLE = "rsa_categorical − welch_t"
STABILITY_AT = 8
"""Number of features at which the stability is shown; the nearest that the grid has."""
MOST_LEFT_OUT = 40


@dataclass(frozen=True, eq=False)
class Grid:
    """The saved results of a method grid.

    Attributes
    ----------
    study : Study
        Manifest and configuration.
    table : DataFrame
        As in ``table.csv``.
    contrasts : dict
        As in ``contrasts.json``.
    shuffled : list of dict
        As in ``shuffled.json``; empty if there is none.
    """

    study: Study
    table: pd.DataFrame
    contrasts: dict[str, Any]
    shuffled: list[dict[str, Any]]

    @property
    def asked(self) -> pd.DataFrame:
        """Rows of the concepts that are in the contrasts; of all, if every concept is a control."""
        asked = self.table[~self.table["control"]]
        return asked if len(asked) else self.table


def holds_grid(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of a method grid."""
    try:
        return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["type"] == TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_grid_results(folder: str | os.PathLike) -> Grid:
    """Read what `neurollm run` left in the folder of a method grid.

    Raises
    ------
    InvalidInput
        The folder holds no finished grid.
    DataMismatch
        A file in it is damaged.
    """
    import pandas as pd
    import yaml

    folder = Path(folder)
    for name in ("manifest.json", "contrasts.json", "table.csv", "config.yaml"):
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder / name} is missing, so {folder} holds no finished method grid: run it again.")
    try:
        text_columns = dict.fromkeys(("concept", "representation", "selector", "left_out"), str)
        table = pd.read_csv(folder / "table.csv", dtype=text_columns, keep_default_na=False, na_values=[""])
        contrasts = json.loads((folder / "contrasts.json").read_text(encoding="utf-8"))
        file = folder / "shuffled.json"
        shuffled = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        study = Study(folder, manifest, {}, {}, [], {}, {}, {}, yaml.safe_load(text), text)
        grid = Grid(study, table, contrasts, shuffled)
        _ = [one["overall"]["p_holm"] for one in contrasts["declared"]], contrasts["controls"], grid.asked["auroc"]
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataMismatch(f"{folder}: the results of the method grid are damaged ({error!r}): run it again.") from None
    return grid


def build_grid_report(folder: str | os.PathLike) -> Path:
    """Write the report of a method grid from its saved results.

    Parameters
    ----------
    folder : path-like
        ``reports/<grid>/`` as left by a run.

    Returns
    -------
    pathlib.Path
        ``report.html`` in that folder: one file, readable offline and without JavaScript.

    Raises
    ------
    InvalidInput, DataMismatch
        The folder holds no finished grid, or a file in it is damaged.
    """
    grid = read_grid_results(folder)
    path = Path(folder) / "report.html"
    write_text(path, _render(grid))
    return path


def grid_verdict(folder: str | os.PathLike) -> str:
    """What a method grid found, in plain sentences: the three claims first."""
    grid = read_grid_results(folder)
    return " ".join([verdict(grid.contrasts), context(grid)])


def verdict(contrasts: dict[str, Any]) -> str:
    """Whether the data support the declared claims, with differences, intervals and Holm's p."""
    alpha, told = contrasts["alpha"], []
    for one in contrasts["declared"]:
        value = one["overall"]
        if not value["p_holm"] <= alpha:
            found = "do not support"
        else:
            found = "support" if value["difference"] > 0 else "contradict"
        told.append(f"{found} that {one['claim']} ({_numbers(value)})")
    missing = [name for name in DECLARED if name not in [one["name"] for one in contrasts["declared"]]]
    if not told:
        return f"None of the three declared contrasts could be computed: the grid {_NEEDS}."
    n = len(contrasts["concepts"])
    shared = "all numbers of features and whatever else both sides share"
    sentence = f"The data {'; they '.join(told)}; averaged over {formatting.plural(n, 'concept')}, {shared}."
    return sentence + (f" Not computed: {'; '.join(missing)}." if missing else "")


def _numbers(value: dict[str, float]) -> str:
    interval = formatting.interval(value["ci_low"], value["ci_high"], 3, bounded=True)
    p = formatting.p_sentence(value["p_holm"])
    return f"difference in AUROC {formatting.proportion(value['difference'], 3)}, 95% CI {interval}, Holm p {p}"


def context(grid: Grid) -> str:
    """How the three differences vary over concepts, and what the words alone, chance and the control concepts give."""
    told = []
    for one in grid.contrasts["declared"]:
        positive = sum(value["difference"] > 0 for value in one["concepts"])
        told.append(f"{one['name']} is positive in {positive} of {formatting.plural(len(one['concepts']), 'concept')}")
    sentences = [f"{_capital(', '.join(told))}."] if told else []
    asked = grid.asked
    words = asked.loc[asked["representation"] == "words", "auroc"].mean()
    cells = asked[asked["k"].notna() & asked["auroc"].notna()]
    if formatting.is_number(words) and len(cells):
        above = (cells.groupby(["representation", "selector", "k"])["auroc"].mean() > words).mean()
        sentences.append(
            f"The words alone (counts of unigrams) reach an AUROC of {formatting.proportion(words)}; "
            f"{formatting.percent(above)} of the cells of the grid lie above."
        )
    chance = [value for row in grid.shuffled for value in row["auroc"]]
    if chance:
        sentences.append(f"With shuffled labels the mean AUROC is {formatting.proportion(sum(chance) / len(chance))}.")
    simple = next((one["overall"] for one in grid.contrasts["exploratory"] if one["name"] == SIMPLE), None)
    if simple is not None:
        interval = formatting.interval(simple["ci_low"], simple["ci_high"], 3, bounded=True)
        sentences.append(
            f"Categorical RSA minus Welch’s t, which looks at one feature at a time: "
            f"{formatting.proportion(simple['difference'], 3)} {interval} (exploratory)."
        )
    return " ".join([*sentences, *null_check(grid)])


def null_check(grid: Grid) -> list[str]:
    """One sentence for each control concept, whose right answer is .5."""
    told = []
    controls = grid.table[grid.table["control"] & grid.table["auroc"].notna()]
    for name, rows in controls.groupby("concept", sort=False):
        above, below = (rows["auroc_low"] > 0.5).sum(), (rows["auroc_high"] < 0.5).sum()
        told.append(
            f"The control concept {name}, whose right answer is .5, has a mean AUROC of "
            f"{formatting.proportion(rows['auroc'].mean())} over {formatting.plural(len(rows), 'cell')}; "
            f"{above} of their intervals lie above .5 and {below} below"
            + (", which happens where items share something with training items of the other label." if below else ".")
        )
    return told


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _render(grid: Grid) -> str:
    from neurollm.plotting.grid import plot_grid_contrasts, plot_grid_curves
    from neurollm.reporting.svg import figure_svg

    declared = grid.contrasts["declared"]
    curves = plot_grid_curves(grid.asked)
    described = "; ".join(f"{one['name']} {_numbers(one['overall'])}" for one in declared)
    manifest = grid.study.manifest
    return environment().get_template("grid.html.jinja").render(
        name=manifest.get("name") or grid.study.folder.name,
        study=grid.study,
        manifest=manifest,
        config=grid.study.config,
        quality=None,
        verdict=verdict(grid.contrasts),
        context=context(grid),
        found=any(one["overall"]["p_holm"] <= grid.contrasts["alpha"] for one in declared),
        declared=declared,
        exploratory=grid.contrasts["exploratory"],
        controls=grid.contrasts["controls"],
        alpha=grid.contrasts["alpha"],
        forest=figure_svg(plot_grid_contrasts(declared), "g", f"Declared contrasts with intervals: {described}."),
        curves=figure_svg(
            curves[0], "k", "AUROC over the number of features, a panel per representation and a line per selector."
        ),
        means=_means(grid.asked),
        concepts=_concepts(grid),
        stability=_stability(grid.asked),
        left_out=_left_out(grid.table),
        null=null_check(grid),
        warnings=manifest.get("warnings") or [],
        style=Markup(asset("report.css")),
    )  # fmt: skip


def _means(table: pd.DataFrame) -> dict[str, Any]:
    """AUROC by selector and representation: mean over concepts and k, with all features in the last row."""
    chosen = table[table["k"].notna()].groupby(["selector", "representation"], sort=False)["auroc"].mean()
    without = table[table["k"].isna()].groupby("representation", sort=False)["auroc"].mean()
    columns = [name for name in without.index if name not in BASELINES]
    rows = [
        {"name": selector, "values": [chosen.get((selector, name)) for name in columns]}
        for selector in dict.fromkeys(chosen.index.get_level_values("selector"))
    ]
    return {
        "columns": columns,
        "rows": [*rows, {"name": "all features", "values": [without[name] for name in columns]}],
    }


def _concepts(grid: Grid) -> list[dict[str, Any]]:
    """One row per concept: its trials and units, the baselines, chance, and the mean of each representation."""
    rows = []
    for name, table in grid.table.groupby("concept", sort=False):
        chance = [value for row in grid.shuffled if row["concept"] == name for value in row["auroc"]]
        spread = {"mean": sum(chance) / len(chance), "low": min(chance), "high": max(chance)} if chance else None
        alone = {row: table[table["representation"] == row].iloc[0].to_dict() for row in BASELINES}
        selected = table[table["k"].notna()].groupby("representation", sort=False)["auroc"].mean()
        first = table.iloc[0]
        settings = next((one for one in grid.study.config["concepts"] if one["name"] == name), {})
        rows.append(
            {
                "name": name,
                "control": bool(first["control"]),
                "n_trials": int(first["n_trials"]),
                "n_units": int(first["n_units"]),
                "unit": settings.get("unit", ""),
                "words": _interval(alone["words"]),
                "length": _interval(alone["length"]),
                "chance": spread,
                "means": selected.to_dict(),
            }
        )
    return rows


def _interval(row: dict[str, Any]) -> dict[str, Any]:
    return {"auroc": row["auroc"], "ci_low": row["auroc_low"], "ci_high": row["auroc_high"]}


def _stability(table: pd.DataFrame) -> dict[str, Any]:
    """Jaccard index and chance by selector and representation, mean over concepts, at one number of features."""
    rows = table[table["jaccard"].notna()]
    if rows.empty:
        return {}
    size = min(rows["k"].unique(), key=lambda k: abs(k - STABILITY_AT))
    rows = rows[rows["k"] == size]
    mean = rows.groupby(["selector", "representation"], sort=False)["jaccard"].mean()
    chance = rows.groupby("representation", sort=False)["jaccard_chance"].mean()
    columns = list(chance.index)
    body = [
        {"name": selector, "values": [mean.get((selector, name)) for name in columns]}
        for selector in dict.fromkeys(rows["selector"])
    ]
    return {"k": int(size), "columns": columns, "rows": body, "chance": [chance[name] for name in columns]}


def _left_out(table: pd.DataFrame) -> dict[str, Any]:
    """Cells without scores by concept and representation, with the reason."""
    rows = table[table["left_out"].notna()]
    groups = rows.groupby(["concept", "representation", "left_out"], sort=False)
    told = [
        {"concept": concept, "representation": representation, "reason": reason, "n": len(cells)}
        for (concept, representation, reason), cells in groups
    ]
    return {"n": len(rows), "rows": told[:MOST_LEFT_OUT], "more": max(0, len(told) - MOST_LEFT_OUT)}
