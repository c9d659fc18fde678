"""From the saved scores of a method grid to its table and its contrasts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch
from neurollm.files import atomic_path, sha256_json, write_json
from neurollm.pipelines.grid import BASELINES, RANDOM, GridStudy

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.decoding.grid_contrasts import ConceptPairs
    from neurollm.pipelines.grid_schema import ConceptPart

COLUMNS = (
    "concept", "control", "representation", "selector", "k", "auroc", "auroc_low", "auroc_high",
    "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high",
    "jaccard", "jaccard_chance", "n_columns", "n_trials", "n_units", "left_out",
)  # fmt: skip


def write_table(study: GridStudy) -> list[Path]:
    """Save ``table.csv`` (one row per concept, representation, selector and k) and ``contrasts.json``."""
    import pandas as pd

    from neurollm.decoding.grid_contrasts import PREREGISTERED, compare, exploratory, holm

    part, frames, pairs = study.pipeline, [], {}
    for concept in part.concepts:
        frame, pairs[concept.name] = _concept(study, concept)
        frames.append(frame)
    asked = [pairs[concept.name] for concept in part.concepts if not concept.control]
    controls = [pairs[concept.name] for concept in part.concepts if concept.control]
    further = exploratory(part.representations, part.selectors, part.k)
    drawn = {"n_boot": part.n_boot, "random_state": part.seed}
    files = [study.folder / "table.csv", study.folder / "contrasts.json"]
    _write_csv(files[0], pd.concat(frames, ignore_index=True)[list(COLUMNS)])
    contrasts = {
        "declared": holm(compare(asked, PREREGISTERED, **drawn)),
        "exploratory": [_without_p(one) for one in compare(asked, further, **drawn)],
        "controls": [_without_p(one) for one in compare(controls, PREREGISTERED, **drawn)],
        "concepts": [one.concept for one in asked],
        "control_concepts": [one.concept for one in controls],
        "alpha": part.alpha,
    }
    write_json(files[1], _rounded(contrasts))
    return files


def _concept(study: GridStudy, concept: ConceptPart) -> tuple[pd.DataFrame, ConceptPairs]:
    """The rows of a concept, and the concordant pairs of all its methods."""
    import pandas as pd

    from neurollm.decoding.grid import ALL, balanced_accuracy
    from neurollm.decoding.grid_contrasts import concept_pairs
    from neurollm.stats.paired_scores import auc_bootstrap

    part = study.pipeline
    methods, scores, rows, first = [], [], [], None
    for name in (*part.representations, *BASELINES):
        saved = study.read_scores(concept, name)
        trials = saved[["repeat", "stimulus_id", "unit", "label", "fold"]]
        first = trials if first is None else first
        if not trials.equals(first):
            raise DataMismatch(
                f"{study.folder}: the scores of {concept.name} and {name} have other trials; run it again"
            )
        cells = [(ALL, 0)] if name in BASELINES else study.plan.cells
        values = saved.iloc[:, -len(study.plan.cells) :].to_numpy(float)[:, -len(cells) :]
        scores.append(values.T.reshape(len(cells), part.n_repeats, -1))
        methods += [(name, *cell) for cell in cells]
        rows += _sets(study, concept, name, cells)
    scores = np.concatenate(scores)
    n = scores.shape[2]
    labels, units = first["label"].to_numpy()[:n], first["unit"].to_numpy()[:n]
    folds = first["fold"].to_numpy().reshape(part.n_repeats, n)
    bootstrap = auc_bootstrap(scores, labels, units, folds, n_boot=part.n_boot, random_state=part.seed)
    frame = pd.DataFrame(rows)
    frame["auroc"] = bootstrap.areas[0]
    frame["auroc_low"], frame["auroc_high"] = bootstrap.interval()
    accuracy = balanced_accuracy(scores, labels, units, folds, n_boot=part.n_boot, random_state=part.seed)
    for name, values in zip(("", "_low", "_high"), accuracy, strict=True):
        frame[f"balanced_accuracy{name}"] = values
    frame = frame.assign(concept=concept.name, control=concept.control, n_trials=n, n_units=len(set(units)))
    same = _materials(study, concept, labels, units)
    return frame, concept_pairs(concept.name, same, methods, scores, labels, units, folds)


def _sets(study: GridStudy, concept: ConceptPart, name: str, cells: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Of each cell: its names, the stability of its feature sets, and why it was left out."""
    from neurollm.decoding.grid import ALL, stability

    selected, record = study.read_sets(concept, name)
    n_columns = np.array(record["n_columns"])
    left_out = {(row["selector"], row["k"]): row["reason"] for row in record["left_out"]}
    rankings = {}
    for selector, sets in selected.groupby("selector", sort=False):
        ranking = np.full((*n_columns.shape, int(sets["rank"].max())), -1)
        ranking[sets["repeat"], sets["fold"], sets["rank"] - 1] = sets["column"]
        rankings[selector] = ranking
    rows = []
    for selector, size in cells:
        found = float("nan"), float("nan")
        # A component is another one in every fold; a column of a random representation in every repetition.
        if selector != ALL and name != "pca" and (selector, size) not in left_out:
            found = stability(rankings[selector], size, n_columns, across=name not in RANDOM)
        rows.append(
            {
                "representation": name,
                "selector": selector,
                "k": None if selector == ALL else size,
                "jaccard": found[0],
                "jaccard_chance": found[1],
                "n_columns": int(n_columns.min()) or None,
                "left_out": left_out.get((selector, size), ""),
            }
        )
    return rows


def _materials(study: GridStudy, concept: ConceptPart, labels: np.ndarray, units: np.ndarray) -> str:
    """What two concepts must share to be resampled together: sentences, units, and the levels that a unit has."""
    both = [bool(labels[units == unit].any() and not labels[units == unit].all()) for unit in np.unique(units)]
    return sha256_json([study.concept_stimuli(concept).sha256, np.unique(units).tolist(), both])


def _without_p(result: dict[str, Any]) -> dict[str, Any]:
    """Comparisons that were not declared are estimates: difference and interval."""
    kept = {name: value for name, value in result["overall"].items() if name != "p"}
    concepts = [{name: value for name, value in one.items() if name != "p"} for one in result["concepts"]]
    return result | {"overall": kept, "concepts": concepts}


def _rounded(value: Any) -> Any:
    """Six significant digits, so that files of equal results are equal."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    """As text that a spreadsheet does not take for a formula."""
    frame = frame.copy()
    for name in ("k", "n_columns"):
        frame[name] = frame[name].astype("Int64")
    for name in ("concept", "representation", "selector", "left_out"):
        frame[name] = [f"'{text}" if str(text)[:1] in "=+-@\t\r" and text else text for text in frame[name]]
    with atomic_path(path) as partial:
        frame.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")
