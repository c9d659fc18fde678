"""Real contrast results, for tests of what reads them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd

from neurollm.designs import CategoricalDesign, DiscriminativeDesign, FactorialDesign, FormulaDesign
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.random import stream

N_ITEMS = 14
N_FEATURES = 80
OUTCOMES = ("failure", "success")
EMOTIONS = ("anger", "fear", "joy")

QUESTIONS = {
    "paired": (CategoricalDesign("outcome"), "success - failure"),
    "several": (DiscriminativeDesign("emotion", "joy"), "joy"),
    "levels": (CategoricalDesign("emotion"), "emotion"),
    "main effect": (FactorialDesign(["outcome", "emotion"]), "emotion"),
    "two levels": (FactorialDesign(["outcome", "emotion"]), "outcome"),
    "interaction": (FactorialDesign(["outcome", "emotion"]), "outcome:emotion"),
    "between": (CategoricalDesign("group"), "old - new"),
    "coefficient": (FormulaDesign("n_words + outcome"), "n_words"),
}
"""Design and contrast by what they are an example of."""


def trials() -> tuple[np.ndarray, pd.DataFrame]:
    """Sparse activations; of the first four features each follows another column of the table."""
    cells = itertools.product(range(N_ITEMS), OUTCOMES, EMOTIONS)
    obs = pd.DataFrame(
        [(f"i{i:02d}", a, b, ("old", "new")[i % 2], float(i % 5)) for i, a, b in cells],
        columns=["item", "outcome", "emotion", "group", "n_words"],
    )
    rng = stream(0, "support.results")
    X = rng.exponential(size=(len(obs), N_FEATURES)) * (rng.random((len(obs), N_FEATURES)) < 0.5)
    joy = (obs["emotion"] == "joy").to_numpy()
    success = (obs["outcome"] == "success").to_numpy()
    X[:, 0] += 2 * success
    X[:, 1] += 2 * joy
    X[:, 2] += 2 * (joy & success)
    X[:, 3] += 2 * (obs["group"] == "old")
    X[:, 4] += 0.8 * obs["n_words"]
    return X, obs


@functools.cache
def contrast_result(kind: str = "paired", **options: Any) -> ContrastResult:
    """The result of one of `QUESTIONS`; `options` go to the estimator."""
    design, contrast = QUESTIONS[kind]
    return FeatureGLM(design, **{"n_perm": 999} | options).fit(*trials()).compute_contrast(contrast)


def changed(result: ContrastResult, exchange: dict[str, Any] | None = None, **fields: Any) -> ContrastResult:
    """A copy with other numbers; a feature without a p counts as not tested."""
    arrays = {name: np.asarray(value) if isinstance(value, list) else value for name, value in fields.items()}
    if "p_fwer" in arrays:
        tested = np.isfinite(arrays["p_fwer"])
        arrays = {"p_step_down": arrays["p_fwer"], "valid": tested, "n_tests": int(tested.sum())} | arrays
    return dataclasses.replace(result, exchange=dataclasses.replace(result.exchange, **exchange or {}), **arrays)
