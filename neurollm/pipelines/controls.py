"""Control rows: the same contrast in representations that should know less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.stats.transforms import TRANSFORMS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from neurollm.designs import Contrast, Design
    from neurollm.dictionaries import Dictionary
    from neurollm.glm import ContrastResult
    from neurollm.models import LanguageModel
    from neurollm.pipelines.study import Study

NOTES = {
    "raw_units": "the units of the same site, without the dictionary",
    "token_embeddings": "the words alone: layer 0, no context, no position",
    "random_network": "the same architecture with random weights, same site",
    "random_directions": "random directions at the same site, as many as the dictionary has features, equally sparse",
}


def control_rows(study: Study) -> dict[str, list[dict[str, Any]]]:
    """One row per representation for each contrast, the study's own first.

    Two numbers per row: how many columns are significant in the same test, and how well the two sides of the contrast
    can be told apart on held-out items (cross-validated AUROC). The second is comparable between representations of
    any width; it is given for t contrasts of conditions only, else ``reason`` says why not.

    Returns
    -------
    dict
        contrast name → list of rows, as written to ``controls.json``.
    """
    rows = {
        name: [_row(study, study.trials, result, "features", "study", dictionary_note(study.dictionary))]
        for name, result in study.results.items()
    }
    for control, trials in study.control_trials.items():
        transform, note = fitting_transform(study, trials, NOTES[control])
        for name, result in study.tested(trials, transform).items():
            rows[name].append(_row(study, trials, result, control, "control", note))
    return rows


def control_trials(study: Study) -> dict[str, AnnData]:
    """The trials in every control representation; the study's own, if it is one of them, is left out."""
    return {
        control: study.masked(*_representation(study, control))
        for control in study.pipeline.controls
        if control != study.pipeline.dictionary.kind
    }


def fitting_transform(study: Study, trials: AnnData, note: str) -> tuple[str, str]:
    """The study's transform, or none where values are signed, which the note then says."""
    transform = study.pipeline.features.transform
    if transform in ("log1p", "binary") and trials.X.min() < 0:
        return "raw", f"{note}; without the transform {transform}, because its values are signed"
    return transform, note


def _representation(study: Study, control: str) -> tuple[LanguageModel, Dictionary]:
    from neurollm.dictionaries import RandomDirections, RawUnits
    from neurollm.models import Site, load_model

    model, site, width = study.model, study.dictionary.site, study.model.d_model
    if control == "token_embeddings":
        return model, RawUnits(Site(0, "token_embedding"), width)
    if control == "random_directions":
        return model, RandomDirections.matching(study.dictionary, study.pipeline.seed)
    if control == "random_network":
        part = study.pipeline.model
        untrained = load_model(model.name, device=part.device, dtype=part.dtype, random_init=study.pipeline.seed)
        return untrained, RawUnits(site, width)
    return model, RawUnits(site, width)


def _row(
    study: Study, trials: AnnData, result: ContrastResult, representation: str, kind: str, note: str
) -> dict[str, Any]:
    from neurollm.plotting.sides import decisive_p

    tested = decisive_p(result)[0][result.valid]
    return {
        "representation": representation,
        "kind": kind,
        "n_features": int(trials.n_vars),
        "n_tests": int(result.n_tests),
        "n_significant": int((tested <= study.pipeline.analyses.glm.alpha).sum()),
        "min_p": float(tested.min()) if len(tested) else None,
        **_separability(study, trials, result),
        "note": note,
    }


def _separability(study: Study, trials: AnnData, result: ContrastResult) -> dict[str, Any]:
    from neurollm.decoding import separability
    from neurollm.plotting.sides import compares_cells

    if result.is_f or not compares_cells(result):
        why = "an F contrast has no two sides" if result.is_f else "a coefficient of a formula has no two sides"
        return {"auroc": None, "ci_low": None, "ci_high": None, "reason": why}
    sides = trial_sides(study.design, trials.obs, result.contrast)
    used = np.flatnonzero(sides)
    labels = np.where(sides[used] > 0, "positive side", "negative side")
    items = study.design.item_labels(trials.obs)[used]
    score = separability(transformed(trials.X[used], result.transform), labels, items, random_state=study.pipeline.seed)
    return {"auroc": score.auroc, "ci_low": score.ci_low, "ci_high": score.ci_high}


def trial_sides(design: Design, obs: pd.DataFrame, contrast: Contrast) -> np.ndarray:
    """Which side of a contrast each trial is on, 1 or −1; 0 for trials that do not enter its test."""
    table = design.table(obs)
    rows = design.plan(table, contrast).used  # items that miss a side were left out of the test
    entered = set(zip(table.item_codes[rows], table.cell_codes[rows], strict=True))
    cells = design.cells(obs)[1]
    codes = np.searchsorted(table.items, design.item_labels(obs))
    used = np.array([pair in entered for pair in zip(codes, cells, strict=True)])
    return np.where(used, np.sign(contrast.matrix[0][cells]), 0.0)


def transformed(X: Any, transform: str) -> sparse.csr_matrix:
    """Values of some trials after the transform of a trial; ranks are those of item means, so here they are none."""
    values = sparse.csr_matrix(X)
    function = TRANSFORMS[transform]
    if function is not None:  # all transforms keep zero at zero
        values.data = function(values.data).astype(values.dtype)
    return values


def dictionary_note(dictionary: Dictionary) -> str:
    return f"{dictionary.n_features:,} features at {dictionary.site} ({dictionary.architecture})"
