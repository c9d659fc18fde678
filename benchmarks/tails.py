"""The closed-form p in the tail: how often null features have a p of 1e-2, 1e-3 and 1e-4 or less.

Null features are zero-inflated lognormal activations of items (with signs: differences of pairs), independent of the
labels. Every number is the observed rate over the nominal one, 1 for an exact p, above 1 liberal, with its exact
(Clopper–Pearson) 95 % interval. Next to ours stands the p of the t or F distribution on the same features. The p is
that of `FeatureGLM(design, n_perm=0)`, and the name in the first column is its `p_method`; only "pearson3 alone" calls
the functions of `neurollm.stats.moments`, for designs in which the estimator takes the saddlepoint. Rows of the same
share and number of items are measured on the same features. Constant features have no p and do not count.

    python benchmarks/tails.py
    python benchmarks/tails.py --features 40000

"Heavy tail" is the one-sided p in the direction in which the first group is larger, "light tail" in the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from neurollm.designs import CategoricalDesign
from neurollm.glm import FeatureGLM
from neurollm.stats.moments import label_moments, pearson3_p

LEVELS = (1e-2, 1e-3, 1e-4)
BLOCK = 20_000  # features per data set
WITHIN = "within items"
TAILS = {"two-sided": "", "greater": ", heavy tail", "less": ", light tail"}

Found = tuple[str, np.ndarray, np.ndarray]  # name of the method, its p, and p of the t or F distribution


@dataclass(frozen=True)
class Situation:
    """Sizes of the groups of items (one: pairs), share of active items, side of the test, and what is held constant."""

    sizes: tuple[int, ...]
    share: float
    measure: Callable[[Situation, np.ndarray, np.random.Generator], Found]
    alternative: str = "two-sided"
    given: str = ""

    def __str__(self) -> str:
        items = " + ".join(map(str, self.sizes)) + (" pairs" if len(self.sizes) == 1 else "")
        held = f", {self.given}" if self.given else ""
        return f"{items}, {100 * self.share:g} % active{held}{TAILS[self.alternative]}"


def activations(rng: np.random.Generator, n: int, share: float, n_features: int) -> np.ndarray:
    """Zero-inflated lognormal."""
    return np.where(rng.random((n, n_features)) < share, rng.lognormal(size=(n, n_features)), 0)


def parametric_p(stat: np.ndarray, df: np.ndarray | float, rank: int, alternative: str) -> np.ndarray:
    """p of the F distribution for several degrees of freedom, else of the t distribution."""
    if rank > 1:
        return stats.f.sf(stat, rank, df)
    sides = {"greater": stat, "less": -stat, "two-sided": np.abs(stat)}
    return stats.t.sf(sides[alternative], df) * (2 if alternative == "two-sided" else 1)


def by_glm(situation: Situation, X: np.ndarray, obs: pd.DataFrame, design: CategoricalDesign) -> Found:
    """What a user gets."""
    rank = max(len(situation.sizes) - 1, 1)
    glm = FeatureGLM(design, n_perm=0, alternative=situation.alternative).fit(X, obs)
    result = glm.compute_contrast("g" if rank > 1 else "a - b")
    return result.p_method, result.p, parametric_p(result.stat, result.df, rank, situation.alternative)


def groups(situation: Situation, X: np.ndarray, rng: np.random.Generator) -> Found:
    """Independent groups of items, or levels of the same; covariate and blocks have nothing to do with the features."""
    n = sum(situation.sizes)
    item = np.arange(n) % (situation.sizes[0] if situation.given == WITHIN else n)
    group = np.repeat(list("abc")[: len(situation.sizes)], situation.sizes)
    obs = pd.DataFrame({"item": item, "g": group, "n_words": rng.normal(size=n), "topic": np.arange(n) % 2})
    options = {"covariate": {"covariates": ["n_words"]}, "two blocks": {"blocks": "topic"}}
    return by_glm(situation, X, obs, CategoricalDesign("g", **options.get(situation.given, {})))


def pairs(situation: Situation, X: np.ndarray, rng: np.random.Generator) -> Found:
    """Items in two conditions; the feature is active in one of them, by chance."""
    in_a = rng.random(X.shape) < 0.5
    obs = pd.DataFrame({"item": np.tile(np.arange(len(X)), 2), "g": np.repeat(["a", "b"], len(X))})
    return by_glm(situation, np.vstack([X * in_a, X * ~in_a]), obs, CategoricalDesign("g"))


def pearson3_alone(situation: Situation, X: np.ndarray, rng: np.random.Generator) -> Found:
    """Two groups, from three moments instead of the saddlepoint."""
    first, second = situation.sizes
    x = np.repeat([1 / first, -1 / second], situation.sizes)
    x /= np.linalg.norm(x)
    r = x @ X / np.linalg.norm(X - X.mean(axis=0), axis=0)
    moments, df = label_moments(x, X), len(X) - 2
    p = pearson3_p(r, moments.variance, moments.skewness, situation.alternative)
    return "pearson3 alone", p, parametric_p(r * np.sqrt(df / (1 - r**2)), df, 1, situation.alternative)


def situations() -> list[Situation]:
    """Every row of the table."""
    heavy, light = {"alternative": "greater"}, {"alternative": "less"}
    plain, alone = partial(Situation, measure=groups), partial(Situation, measure=pearson3_alone)
    return [
        plain((40, 40), 0.2),
        plain((12, 68), 0.2, **heavy),
        plain((12, 68), 0.8, **heavy),
        plain((12, 68), 0.8, **light),
        plain((5, 75), 0.8, **heavy),
        plain((5, 75), 0.8, **light),
        Situation((40,), 0.5, pairs),
        Situation((40,), 0.2, pairs),
        alone((40, 40), 0.2),
        alone((12, 68), 0.8, **heavy),
        alone((12, 68), 0.8, **light),
        alone((5, 75), 0.8, **light),
        plain((40, 40), 0.2, given="covariate"),
        plain((12, 68), 0.8, given="covariate", **heavy),
        plain((12, 68), 0.8, given="covariate", **light),
        plain((5, 75), 0.8, given="covariate", **light),
        plain((5, 75), 0.8, given="two blocks", **light),
        *(plain(sizes, share) for sizes in ((10, 20, 50), (27, 27, 26)) for share in (0.05, 0.2, 0.8)),
        *(plain((30, 30, 30), share, given=WITHIN) for share in (0.2, 0.8)),
    ]


def counts(situation: Situation, n_features: int) -> tuple[str, np.ndarray, int]:
    """Features at or below each level, by ours and by the t or F distribution, and how many were tested."""
    below, tested, method = np.zeros((2, len(LEVELS)), int), 0, ""
    for seed, start in enumerate(range(0, n_features, BLOCK)):
        rng = np.random.default_rng(seed)
        X = activations(rng, sum(situation.sizes), situation.share, min(BLOCK, n_features - start))
        X = X[:, np.ptp(X, axis=0) > 0]
        method, *p = situation.measure(situation, X, rng)
        below += [[np.count_nonzero(values <= level) for level in LEVELS] for values in p]
        tested += int(np.isfinite(p[0]).sum())
    return method, below, tested


def short(ratio: float) -> str:
    """Two decimals or, from 10 on, none; no zero before the point."""
    text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"
    return "0" if ratio == 0 else text.removeprefix("0") if ratio < 1 else text


def cells(below: np.ndarray, tested: int) -> list[str]:
    """Observed over nominal rate with its interval, per level."""
    found = []
    for count, level in zip(below.tolist(), LEVELS, strict=True):
        interval = stats.binomtest(count, tested).proportion_ci()
        shown = [short(rate / level) for rate in (count / tested, interval.low, interval.high)]
        found.append(f"{shown[0]} ({shown[1]}–{shown[2]})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=400_000, help="null features per row")
    options = parser.parse_args()
    print(f"Observed over nominal rate, {options.features} null features per row, with exact 95 % intervals\n")
    print(
        f"| {'p':14s} | {'situation':43s} |"
        + " 1e-2 | 1e-3 | 1e-4 |"
        + " t or F: 1e-2 | 1e-3 | 1e-4 |\n|---|---|"
        + "---:|" * 6
    )
    for situation in situations():
        method, below, tested = counts(situation, options.features)
        shown = " | ".join(f"{cell:16s}" for row in below for cell in cells(row, tested))
        print(f"| {method:14s} | {situation!s:43s} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
