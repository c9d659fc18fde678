"""How many planted effects are found, side by side with correct peers on the same data.

Zero-inflated activations of items; a share of the features differs between two conditions. For each engine the mean
share of planted features with family-wise p ≤ .05, with its standard error over data sets, and the share of data
sets with a false discovery among the others.

    python benchmarks/power.py --data 200
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from neurollm.designs import CategoricalDesign
from neurollm.glm import FeatureGLM

N_FEATURES, N_PLANTED, N_PERM = 200, 20, 999


def trials(rng: np.random.Generator, paired: bool, effect: float) -> tuple[np.ndarray, pd.DataFrame]:
    """30 pairs, or 20 + 40 items; the first features are stronger and more often active in condition a."""
    n = 30 if paired else 60
    obs = pd.DataFrame({"item": np.repeat(np.arange(n), 2) if paired else np.arange(n)})
    obs["g"] = np.tile(["a", "b"], n) if paired else np.where(np.arange(n) < 20, "a", "b")
    level = rng.lognormal(sigma=0.7, size=(n, N_FEATURES))[obs["item"]]
    X = np.where(
        rng.random((len(obs), N_FEATURES)) < 0.5, level * rng.lognormal(sigma=0.4, size=(len(obs), N_FEATURES)), 0
    )
    X[:, :N_PLANTED] += effect * (obs["g"] == "a").to_numpy()[:, None]
    return X, obs


def engines(paired: bool) -> dict[str, Callable]:
    """Family-wise p of every feature, by engine."""

    def glm(X: np.ndarray, obs: pd.DataFrame, **options) -> object:
        return FeatureGLM(CategoricalDesign("g"), n_perm=N_PERM, **options).fit(X, obs).compute_contrast("a - b")

    def nilearn(X: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
        from nilearn.mass_univariate import permuted_ols

        if paired:
            tested, values = np.ones((len(X) // 2, 1)), X[::2] - X[1::2]
        else:
            tested, values = (obs["g"] == "a").to_numpy(float)[:, None], X
        found = permuted_ols(
            tested,
            values,
            model_intercept=not paired,
            n_perm=N_PERM,
            two_sided_test=True,
            random_state=0,
            output_type="dict",
        )
        return 10 ** -found["logp_max_t"][0]

    def bonferroni(X: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
        from scipy import stats

        test = (
            stats.ttest_1samp(X[::2] - X[1::2], 0)
            if paired
            else stats.ttest_ind(X[obs["g"] == "a"], X[obs["g"] == "b"])
        )
        return np.minimum(1, test.pvalue * N_FEATURES)

    def mne(X: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
        from mne.stats import permutation_t_test

        return permutation_t_test(X[::2] - X[1::2], n_permutations=N_PERM + 1, verbose=False, rng=0)[1]

    found = {
        "neurollm, one step": lambda X, obs: glm(X, obs).p_fwer,
        "neurollm, step-down": lambda X, obs: glm(X, obs).p_step_down,
        "neurollm, ranks": lambda X, obs: glm(X, obs, scale="rank").p_fwer,
        "nilearn permuted_ols": nilearn,
        "t test, Bonferroni": bonferroni,
    }
    return found | ({"MNE permutation_t_test": mne} if paired else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{options.data} data sets, {N_PLANTED} of {N_FEATURES} features planted, {N_PERM} permutations")
    for paired in (True, False):
        for effect in (0.5, 0.8, 1.2):
            print(f"\n{'30 pairs' if paired else '20 + 40 items'}, effect {effect:g}")
            for name, engine in engines(paired).items():
                try:
                    hits = [
                        engine(*trials(np.random.default_rng(s), paired, effect)) <= 0.05 for s in range(options.data)
                    ]
                except ImportError as error:
                    print(f"  {name:24s} not installed ({error.name})")
                    continue
                power = np.mean([hit[:N_PLANTED].mean() for hit in hits])
                error = np.std([hit[:N_PLANTED].mean() for hit in hits]) / np.sqrt(len(hits))
                false = np.mean([hit[N_PLANTED:].any() for hit in hits])
                print(f"  {name:24s} found {power:6.1%} ± {error:.1%}   a false discovery in {false:5.1%}", flush=True)


if __name__ == "__main__":
    main()
