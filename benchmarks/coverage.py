"""Coverage of the intervals of every effect size, and the level of tests with items and templates both random.

1. Nominal 95 % intervals: the share that holds the true value, lowest and highest over several settings. The lowest
   of many is low by chance too: the standard error of one of them is printed above the table.
2. Conditions within items and templates, both random and both with slopes, without a mean effect: rejections at .05.
3. Mixed models, ours and MixedLM of statsmodels on the same data: how many converged and the ratio of standard errors.
4. Our mixed model without a mean effect: rejections at .05.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --data 20000 --features 1000
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special, stats

from neurollm.glm.mixed import MOST_FEATURES, mixed_model
from neurollm.stats.auc_effect import auc_interval, paired_auc
from neurollm.stats.crossed import crossed_anova
from neurollm.stats.effects import hedges_g
from neurollm.stats.paired import hedges_g_av
from neurollm.stats.rates import paired_rate_difference, rate_difference
from neurollm.stats.variance_explained import partial_eta_squared, partial_r

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
Settings = Iterator[tuple[str, Interval, float]]  # what was simulated, estimates with limits, and the true value

ALPHA = 0.05
SPREAD = (1.0, 0.6, 0.7, 0.5)  # standard deviations of items, their slopes, templates, their slopes


def g_of_pairs(rng: np.random.Generator, n_data: int) -> Settings:
    for n, delta in itertools.product((8, 15, 30, 100), (0, 0.8, 1.5)):
        t = stats.ttest_1samp(rng.normal(delta, 1, (n, n_data)), 0).statistic
        yield f"{n} pairs, δ = {delta:g}", hedges_g(t, n - 1, n**-0.5), delta


def g_of_groups(rng: np.random.Generator, n_data: int) -> Settings:
    for (n, m), delta in itertools.product(((8, 8), (12, 36), (30, 30), (100, 100)), (0, 0.8, 1.5)):
        t = stats.ttest_ind(rng.normal(delta, 1, (n, n_data)), rng.normal(size=(m, n_data))).statistic
        yield f"{n} + {m} items, δ = {delta:g}", hedges_g(t, n + m - 2, np.sqrt(1 / n + 1 / m)), delta


def eta2(rng: np.random.Generator, n_data: int) -> Settings:
    """Groups with evenly spaced means. (Where η² is 0 coverage is .975: no upper limit is below it.)"""
    for k, n, step in itertools.product((2, 3, 5), (6, 20, 50), (0.2, 0.8)):
        means = step * (np.arange(k) - (k - 1) / 2)
        f = stats.f_oneway(*(rng.normal(mean, 1, (n, n_data)) for mean in means)).statistic
        truth = np.mean(means**2) / (np.mean(means**2) + 1)
        yield f"{k} groups of {n}, means {step:g} apart", partial_eta_squared(f, k - 1, k * (n - 1)), truth


def r(rng: np.random.Generator, n_data: int) -> Settings:
    """A numeric predictor with fixed values."""
    for n, rho in itertools.product((10, 40, 120), (0, -0.3, 0.7)):
        x = np.linspace(-1, 1, n)
        x /= np.linalg.norm(x)
        Y = rng.normal(size=(n, n_data)) + np.sqrt(n) * rho / np.sqrt(1 - rho**2) * x[:, None]
        found = x @ Y / np.linalg.norm(Y - Y.mean(axis=0), axis=0)
        yield f"{n} items, r = {rho:g}", partial_r(found * np.sqrt((n - 2) / (1 - found**2)), n - 2), rho


def g_av(rng: np.random.Generator, n_data: int) -> Settings:
    """Correlation of the two conditions, their difference in average standard deviations, ratio of these."""
    for n, rho, delta, ratio in itertools.product((8, 15, 30, 100), (0, 0.5, 0.9), (0, 0.8, 1.5), (1, 3)):
        z = rng.normal(size=(2, n, n_data))
        a = z[0] + delta * np.sqrt((1 + ratio**2) / 2)
        b = ratio * (rho * z[0] + np.sqrt(1 - rho**2) * z[1])
        spread = [side.std(axis=0, ddof=1) for side in (a, b, a - b)]
        found = hedges_g_av((a - b).mean(axis=0), *spread, n)
        yield f"{n} pairs, correlation {rho:g}, δ = {delta:g}, sd 1 and {ratio}", found, delta


def auc_of_groups(rng: np.random.Generator, n_data: int) -> Settings:
    """Normal values, also of unequal spread, and values of which many are zero."""
    for n, m in ((8, 8), (12, 40), (40, 12), (30, 30), (200, 200)):
        first, size = np.arange(n + m) < n, (n + m, n_data)
        for delta, sd in itertools.product((0, 1, 2.5), (1, 3)):
            Y = rng.normal(size=size) * np.where(first, sd, 1)[:, None] + delta * first[:, None]
            truth = stats.norm.cdf(delta / np.sqrt(1 + sd**2))
            yield f"{n} + {m} items, normal, δ = {delta:g}, sd {sd} and 1", auc_interval(Y, first), truth
        for p, q in ((0.05, 0.05), (0.1, 0.1), (0.2, 0.05), (0.3, 0.02), (0.5, 0.1), (0.5, 0.5), (0.9, 0.2)):
            Y = np.where(rng.random(size) < np.where(first, p, q)[:, None], rng.random(size), 0)
            yield f"{n} + {m} items, {p:.0%} and {q:.0%} active", auc_interval(Y, first), (1 + p - q) / 2


def auc_of_pairs(rng: np.random.Generator, n_data: int) -> Settings:
    shares = ((0.5, 0.5), (0.35, 0.1), (0.1, 0.1), (0.05, 0.02), (0.9, 0.05), (0.02, 0.02))
    for n, (p, q) in itertools.product((8, 15, 30, 60), shares):
        u = rng.random((n, n_data))
        D = (u < p).astype(float) - (u > 1 - q)
        yield f"{n} pairs, {p:.0%} positive, {q:.0%} negative", paired_auc(D), (1 + p - q) / 2


def rates(rng: np.random.Generator, n_data: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]]:
    """Shares of active trials, as items vary in their probability: of two groups, and of the first one's pairs."""
    shares = ((0.5, 0.5), (0.3, 0.1), (0.9, 0.2), (0.02, 0.2), (0.05, 0.05), (0.02, 0.02))
    for n, n_trials, (p, q) in itertools.product((10, 20, 30, 60), (1, 4, 8, 16), shares):
        z = rng.normal(size=(3, n, n_data))
        z[2] = 0.6 * z[0] + 0.8 * z[2]
        sides = [_shares(rng, side, rate, n_trials) for side, rate in zip(z, (p, q, q), strict=True)]
        yield f"{n} items, {n_trials} trials each, rates {p:g} and {q:g}", *sides, p - q


def _shares(rng: np.random.Generator, z: np.ndarray, p: float, n_trials: int) -> np.ndarray:
    """A beta-binomial with mean p; z is the place of an item in the distribution of items."""
    return rng.binomial(n_trials, special.betaincinv(2 * p, 2 * (1 - p), special.ndtr(z))) / n_trials


def rates_of_groups(rng: np.random.Generator, n_data: int) -> Settings:
    for label, a, b, _, truth in rates(rng, n_data):
        yield label, rate_difference(np.vstack([a, b]), np.arange(2 * len(a)) < len(a)), truth


def rates_of_pairs(rng: np.random.Generator, n_data: int) -> Settings:
    for label, a, _, b, truth in rates(rng, n_data):
        yield label, paired_rate_difference(a, b), truth


INTERVALS = {
    "g, pairs": g_of_pairs,
    "g, groups": g_of_groups,
    "partial η²": eta2,
    "partial r": r,
    "g_av": g_av,
    "AUC, groups": auc_of_groups,
    "AUC, pairs": auc_of_pairs,
    "rate difference, groups": rates_of_groups,
    "rate difference, pairs": rates_of_pairs,
}


def coverage(n_data: int) -> None:
    """One row per interval."""
    print(f"Nominal 95 % intervals, {n_data} data sets per setting: share that holds the true value")
    print(f"(standard error of one of them {np.sqrt(0.95 * 0.05 / n_data):.4f})\n")
    print("| interval | settings | lowest | highest | setting of the lowest |\n|---|---:|---:|---:|---|")
    for name, settings in INTERVALS.items():
        found = {
            label: np.mean((low <= truth) & (truth <= high))
            for label, (_, low, high), truth in settings(np.random.default_rng(0), n_data)
        }
        lowest = min(found, key=found.get)
        print(f"| {name} | {len(found)} | {found[lowest]:.3f} | {max(found.values()):.3f} | {lowest} |", flush=True)


def crossed(
    rng: np.random.Generator, n_items: int, n_templates: int, n_features: int, spread: tuple[float, ...]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Two conditions of every item and template, no mean effect; `spread` as in `SPREAD`."""
    condition, item, template = (x.ravel() for x in np.indices((2, n_items, n_templates)))
    values = rng.normal(size=(condition.size, n_features))
    code = condition[:, None] - 0.5
    for labels, intercept, slope in ((item, *spread[:2]), (template, *spread[2:])):
        size = (labels.max() + 1, n_features)
        values += intercept * rng.normal(size=size)[labels] + slope * code * rng.normal(size=size)[labels]
    return values, pd.DataFrame({"condition": np.array(["a", "b"])[condition], "item": item, "template": template})


def items_and_templates(n_data: int) -> None:
    """Slopes with the variance of two independent effects of standard deviation 1, one per condition."""
    values, obs = crossed(np.random.default_rng(0), 16, 16, n_data, (1, np.sqrt(2), 1, np.sqrt(2)))
    found = crossed_anova(values, *(obs[name].to_numpy() for name in ("condition", "item", "template")))
    p = {
        "by items": found.p_items,
        "by templates": found.p_templates,
        "both required": np.maximum(found.p_items, found.p_templates),
        "min F′": found.p_min_f,
        "quasi-F": found.p_quasi_f,
    }
    print(f"\n16 items × 16 templates, both random, {n_data} data sets: rejected at {ALPHA:g}\n")
    print(f"| {' | '.join(p)} |\n|{'---:|' * len(p)}")
    print("| " + " | ".join(_share(values <= ALPHA) for values in p.values()) + " |", flush=True)


def _share(hits: np.ndarray) -> str:
    return f"{hits.mean():.3f} ± {np.sqrt(hits.mean() * (1 - hits.mean()) / hits.size):.3f}"


def statsmodels_fit(y: np.ndarray, obs: pd.DataFrame) -> tuple[float, bool]:
    """Standard error of the condition and whether it converged; NaN where the fit fails."""
    import statsmodels.formula.api as smf

    warnings.simplefilter("ignore")  # importing statsmodels undoes this
    table = obs.assign(y=y, one=1, c=np.where(obs["condition"] == "b", 0.5, -0.5))
    parts = {"i": "0+C(item)", "ic": "0+C(item):c", "t": "0+C(template)", "tc": "0+C(template):c"}
    try:
        fit = smf.mixedlm("y ~ c", table, groups="one", re_formula="0", vc_formula=parts).fit(reml=True)
    except np.linalg.LinAlgError:
        return float("nan"), False
    return float(fit.bse["c"]), bool(fit.converged)


def beside_statsmodels(n_features: int) -> None:
    """Convergence and standard errors where all variances are there, where slopes have none, and where none has."""
    truths = {"all variances": SPREAD, "no slopes": (SPREAD[0], 0.0, SPREAD[2], 0.0), "no variances": (0.0,) * 4}
    print(f"\nMixed models, 24 items × 6 templates × 2 conditions, {n_features} features: ours and statsmodels'")
    print("Standard errors, ours over theirs: median (smallest–largest)\n")
    print("| truth | converged: ours | statsmodels | ratio, both converged | ratio, all |\n|---|---:|---:|---:|---:|")
    for seed, (name, spread) in enumerate(truths.items()):
        values, obs = crossed(np.random.default_rng(seed), 24, 6, n_features, spread)
        ours = mixed_model(values, obs, "condition", template="template")
        theirs = np.array([statsmodels_fit(y, obs) for y in values.T])
        ratio, converged = ours["se"].to_numpy() / theirs[:, 0], ours["converged"].to_numpy()
        both = ratio[converged & (theirs[:, 1] == 1)]
        shown = " | ".join(_ratios(values) for values in (both, ratio))
        print(f"| {name} | {converged.sum()} | {theirs[:, 1].sum():.0f} | {shown} |", flush=True)


def _ratios(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{np.median(values):.3f} ({values.min():.3f}–{values.max():.3f})" if values.size else "–"


def mixed_level(n_features: int) -> None:
    """p of ours is from the normal distribution."""
    print(f"\nOur mixed model without a mean effect, {n_features} features: rejected at {ALPHA:g}\n")
    print("| items × templates | rejected | converged |\n|---|---:|---:|")
    for n_items, n_templates in ((24, 12), (40, 4)):
        values, obs = crossed(np.random.default_rng(0), n_items, n_templates, n_features, SPREAD)
        parts = (values[:, start : start + MOST_FEATURES] for start in range(0, n_features, MOST_FEATURES))
        frame = pd.concat(mixed_model(part, obs, "condition", template="template") for part in parts)
        print(f"| {n_items} × {n_templates} | {_share(frame['p'] <= ALPHA)} | {frame['converged'].mean():.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=4000, help="data sets per setting")
    parser.add_argument("--features", type=int, default=400, help="features for the level of the mixed model")
    parser.add_argument("--beside", type=int, default=20, help="features for the comparison with statsmodels")
    options = parser.parse_args()
    coverage(options.data)
    items_and_templates(options.data)
    beside_statsmodels(options.beside)
    mixed_level(options.features)


if __name__ == "__main__":
    main()
