"""Error rates on null data: neurollm, nilearn on the same item means, and a test of single prompts.

Every situation simulates many data sets without any effect of what is tested (nuisances are real: items, templates,
main effects, lengths, topics). The share of data sets with one or more significant features should be 5 % or
less. Columns: `fwer` (largest statistic), `step` (stepping down), `fdr` (Benjamini–Hochberg on the closed-form p; with
nothing to find its rate of false discoveries is the rate of any discovery), `nilearn`: permuted_ols on the item
means as `non_parametric_inference` calls it (tested column, other columns and the constant as confounds), and
`prompts`: the same test of ours with every prompt taken for an independent observation.

    python benchmarks/calibration.py --data 1000 --jobs 2
    python benchmarks/calibration.py --only "2 groups, 12 + 36, 20 % active" --data 4000

The situation "demo model" needs nothing but the package: the activations of its success study, items shuffled.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import binom

from neurollm.designs import CategoricalDesign, Design, FactorialDesign
from neurollm.glm import FeatureGLM

N_FEATURES, N_PERM, ALPHA = 60, 199, 0.05


@dataclass(frozen=True)
class Situation:
    """A kind of null data and the contrast that is tested on it."""

    make: Callable[[np.random.Generator], tuple[np.ndarray, pd.DataFrame]]
    design: Design
    contrast: str
    options: dict[str, Any] = field(default_factory=dict)


def activations(rng: np.random.Generator, items: np.ndarray, share: float, sigma: float = 1.0) -> np.ndarray:
    """Zero-inflated lognormal activations that belong to items; wordings of an item vary around them."""
    n = items.max() + 1
    active = rng.random((n, N_FEATURES)) < share
    size = np.where(active, rng.lognormal(sigma=sigma, size=(n, N_FEATURES)), 0)
    flicker = rng.random((items.size, N_FEATURES)) < 0.9
    return size[items] * flicker * rng.lognormal(sigma=0.4, size=(items.size, N_FEATURES))


def crossed(n_items: int, within: dict[str, str], between: dict[str, str], n_templates: int = 1) -> pd.DataFrame:
    """All within-cells and templates for every item, one between-cell per item."""
    groups = list(itertools.product(*between.values()))
    return pd.DataFrame(
        {"item": i, "template": t} | dict(zip([*between, *within], (*groups[i % len(groups)], *cell), strict=True))
        for i in range(n_items)
        for cell in itertools.product(*within.values())
        for t in range(n_templates)
    )


def two_groups(sizes: tuple[int, ...], share: float, n_templates: int = 1) -> Callable:
    """Items of two or more groups."""

    def make(rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        group = np.repeat(list("abc")[: len(sizes)], sizes)
        obs = pd.DataFrame({"item": np.repeat(np.arange(group.size), n_templates)})
        obs["g"] = group[obs["item"]]
        return activations(rng, obs["item"].to_numpy(), share), obs

    return make


def cells(obs: pd.DataFrame, share: float, effects: tuple[str, ...] = ()) -> Callable:
    """A crossed design; `effects` are columns whose two levels really differ (additively)."""

    def make(rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        X = activations(rng, obs["item"].to_numpy(), share)
        for name in effects:
            first = (obs[name] == obs[name].iloc[0]).to_numpy()
            X = X + first[:, None] * rng.exponential(1, N_FEATURES)
        return X, obs

    return make


def with_length(rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    """Groups differ in length, activation follows length and not the group."""
    X, obs = two_groups((20, 28), 0.4)(rng)
    obs["n_words"] = rng.normal(10 + 2 * (obs["g"] == "a"), 2)
    return X + 0.15 * obs[["n_words"]].to_numpy() * rng.random(N_FEATURES), obs


def with_topics(rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    """Topics differ in activation, and the groups are unevenly spread over them."""
    X, obs = two_groups((20, 28), 0.4)(rng)
    p = np.where(obs["g"] == "a", 0.7, 0.3)
    obs["topic"] = np.where(rng.random(len(obs)) < p, "war", "love")
    return X + 1.5 * (obs["topic"] == "war").to_numpy()[:, None] * rng.random(N_FEATURES), obs


class DemoModel:
    """Activations of the demo model on the success set; which items are successes is shuffled."""

    def __init__(self) -> None:
        self._trials: tuple[Any, np.ndarray] | None = None

    @staticmethod
    def _load() -> tuple[Any, np.ndarray]:
        """Activations of frequent features, and the item of every trial."""
        from neurollm.datasets import example_project_path
        from neurollm.dictionaries import load_dictionary
        from neurollm.masking import FeatureMasker
        from neurollm.models import load_model
        from neurollm.stimuli import StimulusSet

        stimuli = StimulusSet.read_tsv(example_project_path() / "stimuli" / "success.tsv")
        trials = FeatureMasker(load_model("demo"), load_dictionary("demo")).fit_transform(stimuli)
        frequent = np.flatnonzero(np.diff(trials.X.tocsc().indptr) >= 10)[:300]
        return trials.X[:, frequent], np.unique(trials.obs["item"].astype(str), return_inverse=True)[1]

    def __call__(self, rng: np.random.Generator) -> tuple[Any, pd.DataFrame]:
        self._trials = self._load() if self._trials is None else self._trials
        X, codes = self._trials
        group = rng.permutation(np.arange(codes.max() + 1) % 3 == 0)
        return X, pd.DataFrame({"item": codes, "g": np.where(group[codes], "a", "b")})


def situations() -> dict[str, Situation]:
    """Every situation by name."""
    groups, two = CategoricalDesign("g"), "a - b"
    found = {
        f"2 groups, {sizes[0]} + {sizes[1]}, {share:.0%} active": Situation(two_groups(sizes, share), groups, two)
        for sizes in ((24, 24), (12, 36))
        for share in (0.05, 0.2, 0.8)
    }
    paired = cells(crossed(24, {"g": "ab"}, {}, 3), 0.3)
    crossed_2x2 = crossed(24, {"a": "xy", "b": "pq"}, {})
    between_2x2 = crossed(48, {}, {"a": "xy", "b": "pq"}).iloc[3:].assign(item=np.arange(45))
    mixed = crossed(32, {"b": "pq"}, {"a": "xy"})
    return found | {
        "24 items × 5 paraphrases, between": Situation(two_groups((9, 15), 0.4, 5), groups, two),
        "pairs × 3 templates": Situation(paired, groups, two),
        "3 levels within items": Situation(cells(crossed(20, {"g": "abc"}, {}), 0.3), groups, "a - 0.5*b - 0.5*c"),
        "3 groups, F": Situation(two_groups((10, 16, 22), 0.3), groups, "g"),
        "covariate": Situation(with_length, CategoricalDesign("g", covariates=["n_words"]), two),
        "topics as blocks": Situation(with_topics, CategoricalDesign("g", blocks="topic"), two),
        "2×2 within, interaction": Situation(cells(crossed_2x2, 0.4, ("a", "b")), FactorialDesign(["a", "b"]), "a:b"),
        "2×2 between, interaction": Situation(cells(between_2x2, 0.4, ("a", "b")), FactorialDesign(["a", "b"]), "a:b"),
        "2×2 between, main effect": Situation(cells(between_2x2, 0.4, ("b",)), FactorialDesign(["a", "b"]), "a"),
        "2×2 mixed, interaction": Situation(cells(mixed, 0.4, ("a", "b")), FactorialDesign(["a", "b"]), "a:b"),
        "ranks, 12 + 36": Situation(two_groups((12, 36), 0.2), groups, two, {"scale": "rank"}),
        "Welch, 12 + 36": Situation(two_groups((12, 36), 0.2), groups, two, {"stat": "welch"}),
        "demo model, items shuffled": Situation(DemoModel(), groups, two, {"min_active_items": 5}),
    }


def ours(situation: Situation, X: Any, obs: pd.DataFrame, seed: int) -> tuple[bool, bool, bool]:
    """Any discovery by the largest statistic, stepping down, and at a false discovery rate."""
    glm = FeatureGLM(situation.design, n_perm=N_PERM, random_state=seed, **situation.options).fit(X, obs)
    result = glm.compute_contrast(situation.contrast)
    return tuple(bool((p <= ALPHA).any()) for p in (result.p_fwer, result.p_step_down, result.q))


def prompts(situation: Situation, X: Any, obs: pd.DataFrame, seed: int) -> bool:
    """Every prompt an observation of its own."""
    design = replace(situation.design, item=None, item_reason="to see what happens", blocks=None)
    glm = FeatureGLM(design, n_perm=N_PERM, random_state=seed, **situation.options).fit(X, obs)
    return bool((glm.compute_contrast(situation.contrast).p_fwer <= ALPHA).any())


def nilearn(situation: Situation, X: Any, obs: pd.DataFrame, seed: int) -> bool | None:
    """permuted_ols on what is one row per item, as nilearn's second level would call it; None where it has no test."""
    from nilearn.mass_univariate import permuted_ols

    if situation.contrast in ("g", "a - 0.5*b - 0.5*c") or situation.options.get("scale"):
        return None
    design = situation.design
    table = design.table(obs, X)
    plan = design.plan(table, design.contrast(situation.contrast, obs))
    values = plan.reduce @ table.values
    rows = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if plan.exchangeability.kind == "sign_flip":
        tested, confounds = np.ones((len(rows), 1)), None
    else:
        tested, confounds = plan.hypothesis.tested, np.hstack([np.ones((len(rows), 1)), plan.hypothesis.nuisance])
    options = {"n_perm": N_PERM, "two_sided_test": True, "random_state": seed, "model_intercept": False}
    active = rows.std(axis=0) > 0
    found = permuted_ols(tested, rows[:, active], confounds, output_type="dict", **options)
    return bool((10 ** -found["logp_max_t"] <= ALPHA).any())


def one(situation: Situation, seed: int, with_nilearn: bool) -> list[float]:
    """All tests on one data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X, obs = situation.make(np.random.default_rng(seed))
        theirs = nilearn(situation, X, obs, seed) if with_nilearn else None
        found = [*ours(situation, X, obs, seed), theirs, prompts(situation, X, obs, seed)]
    return [math.nan if hit is None else float(hit) for hit in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=1000, help="null data sets per situation")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="one situation by name")
    parser.add_argument("--skip-nilearn", action="store_true")
    options = parser.parse_args()
    chosen = {name: s for name, s in situations().items() if options.only in (None, name)}
    low, high = binom.ppf([0.005, 0.995], options.data, ALPHA) / options.data
    print(f"{options.data} null data sets each, {N_FEATURES} features, {N_PERM} shufflings, level {ALPHA:.0%}")
    print(f"99 % of exact tests lie between {low:.1%} and {high:.1%}\n")
    print(
        f"| {'situation':34s} |  fwer |  step |   fdr | nilearn | prompts |\n"
        f"|{'-' * 36}|------:|------:|------:|--------:|--------:|"
    )
    for name, situation in chosen.items():
        situation.make(np.random.default_rng(0))  # what is loaded once goes to the other processes
        rows = Parallel(options.jobs)(
            delayed(one)(situation, seed, not options.skip_nilearn) for seed in range(options.data)
        )
        rates = np.mean(rows, axis=0)
        shown = ["–" if math.isnan(rate) else f"{rate:.1%}" for rate in rates]
        marks = ["" if not rate > high else "*" for rate in rates]
        text = [f"{value}{mark}" for value, mark in zip(shown, marks, strict=True)]
        print(
            f"| {name:34s} | " + " | ".join(f"{t:>{w}s}" for t, w in zip(text, (5, 5, 5, 7, 7), strict=True)) + " |",
            flush=True,
        )
    print("\n* above what chance allows for a test that holds its level")


if __name__ == "__main__":
    main()
