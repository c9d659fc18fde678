"""Validating a study before it is computed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from neurollm.errors import InvalidInput
from neurollm.pipelines.contexts import read_corpora
from neurollm.pipelines.study import Study

if TYPE_CHECKING:
    from neurollm.designs import Contrast, Exchangeability

POWER = 0.8
LARGEST_EFFECT = 50.0


def check_pipeline(path: str | os.PathLike) -> str:
    """Read every input of a study and say what a run would test.

    Nothing is written, and the model runs on one sentence only (the probe of its site);
    the stimuli are tokenised to see that they fit and that the token window catches something.

    Parameters
    ----------
    path : path-like
        Pipeline file.

    Returns
    -------
    str
        Cells, shufflings, smallest detectable effect, and the stimulus audit.

    Raises
    ------
    InvalidInput, DataMismatch
        As a run would.
    """
    study = Study.read(path)
    study.refuse_other_study()
    obs, plans = study.obs, study.plans()
    _check_tokens(study)
    if study.pipeline.analyses.contexts is not None:
        read_corpora(study)
    cells = obs.groupby(study.design.factor, observed=True).size()
    lines = [
        f"study {study.pipeline.name}: {len(obs)} stimuli, {obs[study.design.item].nunique()} items "
        f"({', '.join(f'{level} {count}' for level, count in cells.items())})",
    ]
    for name, (contrast, exchange) in plans.items():
        weights = zip(contrast.levels, contrast.weights, strict=True)
        lines += [
            f"contrast {name}: {contrast.expression} (weights: {', '.join(f'{level} {w:+g}' for level, w in weights)})",
            f"  {exchange.sentence}",
            f"  {_sensitivity(study, contrast, exchange)}",
        ]
    return "\n".join([*lines, "", str(study.stimuli.audit())])


def _check_tokens(study: Study) -> None:
    from neurollm.masking import FeatureMasker

    part = study.pipeline.features
    masker = FeatureMasker(study.model, study.dictionary, tokens=part.tokens, pool=part.pool).fit()
    if not any(len(positions) for positions in masker.positions(study.stimuli)):
        raise InvalidInput(
            f"{study.file}: token window {part.tokens!r} catches no token in any stimulus of {study.pipeline.stimuli}"
        )


def _sensitivity(study: Study, contrast: Contrast, exchange: Exchangeability) -> str:
    """The smallest standardised difference found with 80 % power, were all features tested at a Bonferroni threshold.

    The max-statistic threshold of the run itself is lower when features are correlated.
    For comparisons between items, equally many on both sides are assumed.
    """
    from scipy import optimize, stats

    n_features, glm = study.dictionary.n_features, study.pipeline.analyses.glm
    between = exchange.kind == "whole_item"
    df = exchange.n_units - (sum(weight != 0 for weight in contrast.weights) if between else 1)
    scale = exchange.n_units**0.5 / (2 if between else 1)
    sides = 2 if glm.alternative == "two-sided" else 1
    critical = stats.t.isf(glm.alpha / (sides * n_features), df)

    def missing(g: float) -> float:
        return stats.nct.sf(critical, df, g * scale) - POWER

    among = f"among {n_features:,} features at p_FWER ≤ {glm.alpha:g} (Bonferroni, {exchange.n_units} items)"
    if not missing(LARGEST_EFFECT) > 0:
        return f"no effect up to {LARGEST_EFFECT:g} standard deviations would be found with {POWER:.0%} power {among}"
    detectable = optimize.brentq(missing, 1e-3, LARGEST_EFFECT)
    return f"smallest effect found with {POWER:.0%} power {among}: {'g' if between else 'g_z'} = {detectable:.2f}"
