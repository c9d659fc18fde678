"""Validating a study without computing it."""

from __future__ import annotations

import os
from pathlib import Path

from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import read_pipeline
from neurollm.pipelines.study import Study

POWER = 0.8


def check_pipeline(path: str | os.PathLike) -> str:
    """Read every input of a study and say what a run would test.

    Nothing is computed by the language model; its texts are tokenised to see that they fit.

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
    from neurollm.designs import Contrast
    from neurollm.masking import FeatureMasker

    study = Study(Project.of(path), Path(path), read_pipeline(path))
    obs = study.stimuli.table.set_index("stimulus_id", drop=False)
    exchange = study.design.exchangeability(obs)
    study.design.design_matrix(obs)
    part = study.pipeline.features
    FeatureMasker(study.model, study.dictionary, tokens=part.tokens, pool=part.pool).fit().tokenize(study.stimuli)
    cells = obs.groupby([study.design.factor, "template"], observed=True).size().unstack(fill_value=0)
    lines = [
        f"study {study.pipeline.name}: {len(obs)} stimuli, {obs['item'].nunique()} items",
        cells.to_string(),
        exchange.sentence,
    ]
    for name, expression in study.contrasts.items():
        contrast = Contrast.parse(expression, study.design.levels(obs), name)
        weights = ", ".join(
            f"{level} {weight:+g}" for level, weight in zip(contrast.levels, contrast.weights, strict=True)
        )
        lines.append(f"contrast {name}: {contrast.expression} (weights: {weights})")
    lines += [_sensitivity(study, exchange.kind, exchange.n_units), "", str(study.stimuli.audit())]
    return "\n".join(lines)


def _sensitivity(study: Study, kind: str, n_units: int) -> str:
    """The smallest standardised difference found with 80 % power, were all features tested at a Bonferroni threshold.

    The max-statistic threshold of the run itself is lower when features are correlated.
    """
    from scipy import optimize, stats

    n_features, alpha = study.dictionary.n_features, study.pipeline.analyses.glm.alpha
    paired = kind in ("sign_flip", "within_item")
    df = n_units - 1 if paired else n_units - 2
    scale = n_units**0.5 if paired else n_units**0.5 / 2
    critical = stats.t.isf(alpha / (2 * n_features), df)
    detectable = optimize.brentq(lambda g: stats.nct.sf(critical, df, g * scale) - POWER, 1e-3, 50)
    return (
        f"smallest effect found with {POWER:.0%} power among {n_features:,} features at p_FWER < {alpha:g} "
        f"(Bonferroni, {n_units} items): {'g_z' if paired else 'g'} = {detectable:.2f}"
    )
