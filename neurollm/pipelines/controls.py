"""Control rows: the same contrast in representations that should know less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

    from neurollm.designs import Design
    from neurollm.dictionaries import Dictionary
    from neurollm.glm import ContrastResult
    from neurollm.models import LanguageModel
    from neurollm.pipelines.study import Study

_NOTES = {
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
        name: [_row(study, study.trials, result, "features", "study", _dictionary_note(study.dictionary))]
        for name, result in study.results.items()
    }
    for control in study.pipeline.controls:
        if control == study.pipeline.dictionary.kind:
            continue  # the study itself is this control
        trials = study.masked(*_representation(study, control))
        transform, note = study.pipeline.features.transform, _NOTES[control]
        if transform in ("log1p", "binary") and trials.X.min() < 0:
            transform, note = "raw", f"{note}; without the transform {transform}, because its values are signed"
        for name, result in study.tested(trials, transform).items():
            rows[name].append(_row(study, trials, result, control, "control", note))
    return rows


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
    score = separability(*_compared(trials, result, study.design), random_state=study.pipeline.seed)
    return {"auroc": score.auroc, "ci_low": score.ci_low, "ci_high": score.ci_high}


def _compared(
    trials: AnnData, result: ContrastResult, design: Design
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Transformed values, side of the contrast and item of the trials that entered the test."""
    from neurollm.stats.transforms import TRANSFORMS

    table = design.table(trials.obs)
    rows = design.plan(table, result.contrast).used  # items that miss a side were left out of the test
    entered = set(zip(table.item_codes[rows], table.cell_codes[rows], strict=True))
    cells = design.cells(trials.obs)[1]
    items = design.item_labels(trials.obs)
    sides = np.sign(result.contrast.matrix[0][cells])
    codes = np.searchsorted(table.items, items)
    used = (sides != 0) & np.array([pair in entered for pair in zip(codes, cells, strict=True)])
    values = sparse.csr_matrix(trials.X[used])
    transform = TRANSFORMS[result.transform]
    if transform is not None:  # all transforms keep zero at zero
        values.data = transform(values.data).astype(values.dtype)
    return values, np.where(sides[used] > 0, "positive side", "negative side"), items[used]


def _dictionary_note(dictionary: Dictionary) -> str:
    return f"{dictionary.n_features:,} features at {dictionary.site} ({dictionary.architecture})"
