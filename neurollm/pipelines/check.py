"""Validating a study before it is computed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.pipelines.contexts import read_corpora
from neurollm.pipelines.factorial import FactorialRun
from neurollm.pipelines.grid import GridStudy
from neurollm.pipelines.opening import open_study
from neurollm.pipelines.study import Study
from neurollm.validation import listed, several

if TYPE_CHECKING:
    from neurollm.designs import Contrast, ContrastPlan
    from neurollm.stimuli import StimulusSet

MOST_CELLS = 12
"""Cells that are listed; of more, only the number is told."""


def check_pipeline(path: str | os.PathLike) -> str:
    """Read every input of a study, method grid or factorial study and say what a run would test.

    Nothing is written, and the model runs on one sentence only (the probe of its site);
    the stimuli are tokenised to see that they fit and that the token window catches something.

    Parameters
    ----------
    path : path-like
        Pipeline file.

    Returns
    -------
    str
        Cells, shufflings, smallest detectable effect, and the stimulus audit; of a grid its concepts and contrasts;
        of a factorial study the items of either part.

    Raises
    ------
    InvalidInput, DataMismatch
        As a run would.
    """
    study = open_study(path)
    study.refuse_other_study()
    if isinstance(study, GridStudy):
        return _check_grid(study)
    if isinstance(study, FactorialRun):
        return _check_factorial(study)
    obs, plans = study.obs, study.plans()
    _check_tokens(study)
    if study.pipeline.analyses.contexts is not None:
        read_corpora(study)
    n_items = len(set(study.design.item_labels(obs)))
    lines = [
        f"study {study.pipeline.name}: {len(obs)} stimuli, {n_items} {several(study.design.item or 'trial')} "
        f"({_cells(study)})"
    ]
    for name, plan in plans.items():
        contrast = study.contrasts[name]
        lines += [
            f"contrast {name}: {contrast.expression} ({_weights(contrast)})",
            f"  {plan.exchangeability.sentence}",
            f"  {_rank(plan)}",
            f"  {_sensitivity(study, contrast, plan)}",
        ]
    lines += [f"{name}: {sentence}" for name, sentence in study.check_analyses().items()]
    return "\n".join([*lines, "", str(study.audit())])


def _cells(study: Study) -> str:
    names, codes = study.design.cells(study.obs)
    if len(names) > MOST_CELLS:
        return f"{len(names)} combinations of {', '.join(study.design.variables)}"
    return ", ".join(
        f"{name} {count}" for name, count in zip(names, np.bincount(codes, minlength=len(names)), strict=True)
    )


def _weights(contrast: Contrast) -> str:
    if contrast.rank > 1:
        return f"F contrast with {contrast.rank} degrees of freedom"
    weights = [(name, w) for name, w in zip(contrast.parameters, contrast.weights[0], strict=True) if w]
    if len(weights) > MOST_CELLS:
        return f"weights of {len(weights)} parameters"
    return f"weights: {', '.join(f'{name} {weight:+.3g}' for name, weight in weights)}"


def _rank(plan: ContrastPlan) -> str:
    """A plan exists only for what can be estimated, so this is said and not asked."""
    redundant = plan.n_columns - plan.model_rank
    told = f"estimable; the model has rank {plan.model_rank} and {plan.hypothesis.df} residual degrees of freedom"
    unit = several(plan.exchangeability.unit)
    dropped = f"; {plan.n_dropped} {unit} that miss a cell are left out" if plan.n_dropped else ""
    return told + (f" ({redundant} of its {plan.n_columns} columns redundant)" if redundant > 0 else "") + dropped


def _check_tokens(study: Study) -> None:
    part = study.pipeline.features
    _some_token(study, study.stimuli, part.tokens, part.pool)


def _some_token(study: Study, stimuli: StimulusSet, tokens: str, pool: str) -> None:
    from neurollm.masking import FeatureMasker

    masker = FeatureMasker(study.model, study.dictionary, tokens=tokens, pool=pool).fit()
    if not any(len(positions) for positions in masker.positions(stimuli)):
        raise InvalidInput(f"{study.file}: token window {tokens!r} catches no token in any stimulus of {stimuli.name}")


def _check_grid(study: GridStudy) -> str:
    """The concepts of a grid with their trials and units, and which of the declared contrasts it can answer."""
    from neurollm.decoding.grid_contrasts import PREREGISTERED
    from neurollm.masking import trial_table

    part, plan = study.pipeline, study.plan
    lines = [
        f"method grid {part.name}: {len(part.representations)} representations × {len(part.selectors)} selectors × "
        f"{len(part.k)} numbers of features, {part.n_repeats} × {part.n_folds} folds"
    ]
    for concept in part.concepts:
        stimuli = study.concept_stimuli(concept)
        labels, units = study.labels_and_units(concept, trial_table(stimuli))
        n_folds = int(plan.folds(labels, units).max()) + 1
        _some_token(study, stimuli, concept.tokens, part.pool)
        role = ", control" if concept.control else ""
        lines.append(
            f"concept {concept.name}{role}: {concept.factor} = {concept.target} in {int(labels.sum())} of "
            f"{len(labels)} stimuli, {len(set(units))} {several(concept.unit)}, {n_folds} folds"
        )
    for contrast in PREREGISTERED:
        has = part.selectors if contrast.axis == "selector" else part.representations
        missing = [name for name in (*contrast.plus, *contrast.minus) if name not in has]
        state = f"not computed without {listed(missing)}" if missing else "ready"
        lines.append(f"contrast {contrast.name}: {state}")
    return "\n".join(lines)


def _check_factorial(study: FactorialRun) -> str:
    """Cells, what is exchanged, the items of discovery and test, the interaction model, and what stands beside it."""
    part, planned = study.pipeline, study.check_inputs()
    _check_tokens(study)
    model = part.interactions
    if model.path is not None:
        trained = f"{study.nfm} of {model.path}"
    else:
        trained = f"rank {model.rank}, read-out {model.readout}, to be trained on {len(study.corpus):,} documents"
    beside = [name.replace("_", " ") for name in part.controls]
    drawn = {"random_nfm": part.factorial.n_random, "shuffled_labels": part.factorial.n_shuffled}
    for name, n in drawn.items():
        if name in part.controls:
            beside[part.controls.index(name)] += f" ({n} draw{'' if n == 1 else 's'})"
    lines = [
        f"factorial study {part.name}: {len(study.obs)} stimuli ({_cells(study)})",
        *(f"{effect}: {sentence}" for effect, sentence in planned.exchange.items()),
        f"items: {planned.n_items_discovery} of discovery, {planned.n_items_test} of the test",
        *planned.warnings,
        f"interaction model: {trained}",
        f"controls: {', '.join(beside) or 'none'}",
    ]
    return "\n".join([*lines, "", str(study.audit())])


def _sensitivity(study: Study, contrast: Contrast, plan: ContrastPlan) -> str:
    """The smallest standardised difference found with 80 % power, were all features tested at a Bonferroni threshold.

    The max-statistic threshold of the run itself is lower when features are correlated.
    """
    from neurollm.reporting.sensitivity import LARGEST, POWER, bonferroni, detectable

    if contrast.rank > 1 or not plan.is_difference:
        return "smallest detectable effect: given for differences of conditions only"
    n_features, glm, exchange = study.dictionary.n_features, study.pipeline.analyses.glm, plan.exchangeability
    df = plan.hypothesis.df
    # With several rows per item the standardised size is that of the items' scores, see `neurollm.glm`.
    unit = plan.scale if plan.scores is None else exchange.n_units**-0.5
    units = f"{exchange.n_units} {several(exchange.unit)}"
    among = f"among {n_features:,} features at p_FWER ≤ {glm.alpha:g} (Bonferroni, {units})"
    size = detectable(bonferroni(glm.alpha, n_features, df, glm.alternative), df, unit, glm.alternative)
    if not size < LARGEST:
        return f"no effect up to {LARGEST:g} standard deviations would be found with {POWER:.0%} power {among}"
    symbol = "g" if exchange.kind == "whole_item" else "g_z"
    return f"smallest effect found with {POWER:.0%} power {among}: {symbol} = {size:.2f}"
