"""Decoding in a study: both sides of a contrast told apart by a few features, beside controls and the texts alone.

All rows have the same folds and, where a panel is chosen, the same decoder. Only the study's own row is permuted: the
others are compared with it, trial by trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.pipelines.controls import NOTES, dictionary_note, fitting_transform, transformed, trial_sides
from neurollm.validation import several, shown

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from neurollm.decoding import Decoder
    from neurollm.designs import Contrast
    from neurollm.pipelines.study import Study

_BASELINES = {
    "words": "which words a text has, without a model",
    "bigrams": "which pairs of neighbouring words, without a model",
    "length": "numbers of characters and words",
    "punctuation": "punctuation, capitals, digits and spaces",
}


@dataclass(frozen=True, eq=False)
class Problem:
    """What is decoded for one contrast.

    Attributes
    ----------
    sides : tuple of str
        Names of the positive and the negative side.
    rows : ndarray of int, shape (n,)
        Trials that enter the contrast's test.
    positive : ndarray of bool, shape (n,)
    units : ndarray of str, shape (n,)
        Whose trials stay on one side of every split.
    unit : str
        What units are: a column, or ``"trial"``.
    """

    sides: tuple[str, str]
    rows: np.ndarray
    positive: np.ndarray
    units: np.ndarray
    unit: str

    @property
    def sentence(self) -> str:
        """What is told from what, in numbers."""
        (positive, negative), n = self.sides, self.positive.sum()
        units = np.unique(self.units).size
        return (
            f"{positive} ({n} trials) against {negative} ({len(self.rows) - n}); {units} {several(self.unit)}, "
            "each on one side of every split"
        )

    @property
    def per_side(self) -> tuple[int, int]:
        """Units that have trials of the positive, and of the negative side."""
        return np.unique(self.units[self.positive]).size, np.unique(self.units[~self.positive]).size


def problems(study: Study, obs: pd.DataFrame) -> dict[str, Problem | str]:
    """For every contrast what is decoded, or why nothing is.

    Parameters
    ----------
    study : Study
    obs : DataFrame
        Trial table; before a run that of the stimuli.

    Raises
    ------
    InvalidInput
        The unit is no column or divides items, a side has too few units, or no contrast compares two sides.
    """
    units = _units(study, obs)
    found = {name: _problem(study, obs, contrast, units) for name, contrast in study.contrasts.items()}
    reasons = [one for one in found.values() if isinstance(one, str)]
    if len(reasons) == len(found):
        raise InvalidInput(f"{study.file}: analyses.decode: there is nothing to decode, because {reasons[0]}.")
    for name, problem in found.items():
        if isinstance(problem, Problem) and min(problem.per_side) < 2:
            positive, negative = problem.per_side
            raise InvalidInput(
                f"{study.file}: analyses.decode: each side of contrast {name!r} needs 2 or more values of "
                f"{unit_name(study)!r}, found {positive} and {negative}."
            )
    return found


def unit_name(study: Study) -> str:
    """What stays on one side of every split: a column, or ``"trial"``."""
    return study.pipeline.analyses.decode.unit or study.design.item or "trial"


def decode_records(study: Study) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Decode every contrast of two sides.

    Returns
    -------
    records : dict
        contrast name → what ``decode.json`` says: ``reason`` if it cannot be decoded, else ``sides, unit, n_units,
        n_trials, n_folds, estimator, selector, n_features, p, n_perm, exhaustive, null_scores, stability,
        stability_chance``, the ``panel`` and the ``rows``, the study's own first.
    predictions : DataFrame
        As in ``decode.parquet``: contrast, stimulus_id, unit, side, fold, decision, predicted.
    """
    import pandas as pd

    columns = ["contrast", "stimulus_id", "unit", "side", "fold", "decision", "predicted"]
    records, tables = {}, [pd.DataFrame(columns=columns)]
    for name, problem in problems(study, study.trials.obs).items():
        if isinstance(problem, str):
            records[name] = {"reason": problem}
            continue
        decoder = _decoded(study, study.trials, problem, study.pipeline.features.transform, permuted=True)
        records[name] = _record(study, problem, decoder)
        tables.append(_predictions(study, name, problem, decoder)[columns])
    return records, pd.concat(tables[1:] or tables, ignore_index=True)


def _units(study: Study, obs: pd.DataFrame) -> np.ndarray:
    """The unit of every trial, which must hold whole items."""
    name, design = study.pipeline.analyses.decode.unit, study.design
    items = design.item_labels(obs)
    if name is None:
        return items
    try:
        units = design.column(obs, name).astype(str).to_numpy(str)
    except InvalidInput as error:
        raise InvalidInput(f"{study.file}: analyses.decode.unit: {error}") from None
    pairs = np.unique(np.stack([items, units]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        item = names[counts > 1][0]
        raise InvalidInput(
            f"{study.file}: analyses.decode.unit: {shown(name)} divides items ({design.item} {shown(str(item))} has "
            f"{counts.max()} values of it), so trials of an item would be trained and tested on; give {design.item!r} "
            "or a column that is the same in all trials of an item."
        )
    return units


def _problem(study: Study, obs: pd.DataFrame, contrast: Contrast, units: np.ndarray) -> Problem | str:
    from neurollm.plotting.sides import contrast_sides

    if contrast.rank > 1:
        return "an F contrast has no two sides"
    used = [name for name, weight in zip(contrast.parameters, contrast.weights[0], strict=True) if weight]
    if not set(used) <= set(study.design.cells(obs)[0]):
        return "a coefficient of a formula has no two sides"
    sides = trial_sides(study.design, obs, contrast)
    rows = np.flatnonzero(sides)
    return Problem(contrast_sides(contrast), rows, sides[rows] > 0, units[rows], unit_name(study))


def _decoded(study: Study, trials: AnnData, problem: Problem, transform: str, permuted: bool = False) -> Decoder:
    """The decoder of the pipeline file on the trials of a representation; the folds depend on labels and units only."""
    from neurollm.decoding import Decoder

    part = study.pipeline.analyses.decode
    decoder = Decoder(
        part.estimator,
        selector=part.selector,
        n_features=min(part.n_features, trials.n_vars),
        cv=part.cv,
        n_perm=part.n_perm if permuted else 0,
        random_state=study.pipeline.seed,
        n_jobs=study.n_jobs,
        verbose=study.verbose,
    )
    values = transformed(trials.X[problem.rows], transform)
    features = np.asarray(trials.var.get("feature", trials.var_names))
    return decoder.fit(values, problem.positive, groups=problem.units, features=features)


def _record(study: Study, problem: Problem, decoder: Decoder) -> dict[str, Any]:
    part = study.pipeline.analyses.decode
    rows, decisions = _rows(study, problem, decoder)
    return {
        "sides": list(problem.sides),
        "unit": problem.unit,
        "n_units": int(decoder.n_items_),
        "n_trials": len(problem.rows),
        "n_folds": len(decoder.cv_scores_),
        "estimator": part.estimator,
        "selector": part.selector,
        "n_features": part.n_features,
        "p": _number(decoder.p_value_),
        "n_perm": int(decoder.n_perm_),
        "exhaustive": bool(decoder.exhaustive_),
        "null_scores": [float(value) for value in decoder.null_scores_],
        "stability": _number(decoder.stability_),
        "stability_chance": _number(decoder.stability_chance_),
        "panel": _panel(study, problem, decoder),
        "rows": _compared(study, problem, decoder, rows, decisions),
    }


def _rows(study: Study, problem: Problem, decoder: Decoder) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The study, its controls and the texts alone, with the decisions of each about all trials."""
    note = dictionary_note(study.dictionary)
    rows, decisions = [_row(decoder, "features", "study", note)], [_decisions(decoder)]
    for control, trials in study.control_trials.items():
        transform, note = fitting_transform(study, trials, NOTES[control])
        other = _decoded(study, trials, problem, transform)
        rows.append(_row(other, control, "control", note))
        decisions.append(_decisions(other))
    for row, scores in _baselines(study, problem, decoder):
        rows.append(row)
        decisions.append(scores)
    return rows, decisions


def _row(decoder: Decoder, representation: str, kind: str, note: str) -> dict[str, Any]:
    low, high = decoder.score_ci_
    return {
        "representation": representation,
        "kind": kind,
        "n_features": int(decoder.n_features_in_),
        "auroc": _number(decoder.score_),
        "ci_low": _number(low),
        "ci_high": _number(high),
        "balanced_accuracy": _number(decoder.balanced_accuracy_),
        "note": note,
    }


def _decisions(decoder: Decoder) -> np.ndarray:
    return decoder.predictions_.sort_values("trial")["decision"].to_numpy(float)


def _baselines(study: Study, problem: Problem, decoder: Decoder) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Rows of the texts alone, with intervals of the decoder's kind."""
    from neurollm.decoding import baselines
    from neurollm.decoding.scores import area_interval, balanced_accuracy

    folds = decoder.predictions_.sort_values("trial")["fold"].to_numpy()
    texts = study.trials.obs["text"].astype(str).to_numpy()[problem.rows]
    seed, codes = study.pipeline.seed, problem.positive.astype(int)
    found = baselines(texts.tolist(), codes, problem.units, folds=folds, random_state=seed)
    items = np.unique(problem.units, return_inverse=True)[1]
    rows = []
    for name, area, scores in zip(found.rows, found.auroc, found.scores, strict=True):
        low, high = area_interval(scores[:, None], codes, items, folds, 2, seed)
        row = {
            "representation": name,
            "kind": "baseline",
            "n_features": None,
            "auroc": float(area),
            "ci_low": low,
            "ci_high": high,
            "balanced_accuracy": balanced_accuracy((scores > 0) == problem.positive, codes, 2),
            "note": _BASELINES[name],
        }
        rows.append((row, scores))
    return rows


def _compared(
    study: Study, problem: Problem, decoder: Decoder, rows: list[dict[str, Any]], decisions: list[np.ndarray]
) -> list[dict[str, Any]]:
    """The rows, each with the difference of the study's AUROC from its own, paired over units."""
    from neurollm.stats.paired_scores import auc_bootstrap

    folds = decoder.predictions_.sort_values("trial")["fold"].to_numpy()
    boot = auc_bootstrap(np.stack(decisions), problem.positive, problem.units, folds, random_state=study.pipeline.seed)
    others = len(rows) - 1
    found = boot.contrast(np.hstack([np.ones((others, 1)), -np.eye(others)]))
    differences = [
        {"difference": _number(value), "difference_low": _number(low), "difference_high": _number(high)}
        for value, low, high in zip(found.difference, found.ci_low, found.ci_high, strict=True)
    ]
    return [rows[0], *(row | difference for row, difference in zip(rows[1:], differences, strict=True))]


def _panel(study: Study, problem: Problem, decoder: Decoder) -> list[dict[str, Any]]:
    """The features chosen on all trials: their pattern, the folds that chose them too, and their mean on each side."""
    chosen = decoder.selected_features_
    if study.pipeline.analyses.decode.selector is None:
        chosen = chosen[: study.pipeline.analyses.decode.n_features]  # all have a part; the strongest are shown
    place = {feature: column for column, feature in enumerate(decoder.feature_.tolist())}
    columns = [place[feature] for feature in chosen.tolist()]
    values = transformed(study.trials.X[problem.rows][:, columns], study.pipeline.features.transform).toarray()
    patterns = getattr(decoder, "patterns_", np.full(len(chosen), np.nan))
    return [
        {
            "feature": feature,
            "pattern": _number(patterns[rank]),
            "n_folds": sum(feature in fold for fold in decoder.fold_features_),
            "mean_positive": float(values[problem.positive, rank].mean()),
            "mean_negative": float(values[~problem.positive, rank].mean()),
        }
        for rank, feature in enumerate(chosen.tolist())
    ]


def _predictions(study: Study, name: str, problem: Problem, decoder: Decoder) -> pd.DataFrame:
    own = decoder.predictions_
    positive, negative = problem.sides
    return own.assign(
        contrast=name,
        stimulus_id=study.trials.obs_names.to_numpy()[problem.rows][own["trial"]],
        unit=own["item"].astype(str),
        side=np.where(own["label"], positive, negative),
        predicted=np.where(own["predicted"], positive, negative),
    )


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
