"""RSA of every feature: neurollm beside rsatoolbox and a vectorised numpy loop, in one run.

Four parts:

1. scores of 50,000 features × 100 prompts against a categorical model, and against it and a discriminative one (with
   pairs left out): rsatoolbox (``calc_rdm`` and ``compare``, one data set per feature, on a sample of the features and
   multiplied up), a numpy loop (the RDM of each feature written out, all other steps vectorised), neurollm;
2. scores of 100,000 features × 200 prompts against a model of full rank;
3. 1,000 permutations × 100,000 features × 200 prompts × four classes;
4. 1,000,000 sparse features × 200 prompts (about 10 active each) against one model.

Ratios are only valid within one run. Usage::

    python benchmarks/rsa.py                        # everything, about two minutes
    python benchmarks/rsa.py --features 5000 --sample 100 --no-large
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse

from neurollm.stats.rdms import (
    categorical_rdm,
    discriminative_rdm,
    feature_scores,
    numeric_rdm,
    permutation_null,
    rsa_scores,
)
from neurollm.stats.shufflings import whole_item

N_PROMPTS, N_LARGE, N_ACTIVE = 100, 200, 10


def main() -> None:
    """Run the parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=50_000)
    parser.add_argument("--sample", type=int, default=500, help="features given to rsatoolbox")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of so many runs counts, for everyone")
    parser.add_argument("--no-large", action="store_true", help="leave out permutations and the million")
    args = parser.parse_args()
    X = np.random.default_rng(0).standard_normal((N_PROMPTS, args.features), dtype=np.float32)
    labels = np.arange(N_PROMPTS) % 2
    categorical, discriminative = categorical_rdm(labels), discriminative_rdm(labels, 0)
    print(f"{args.features:,} features × {N_PROMPTS} prompts, {os.cpu_count()} cores, fastest of {args.repeats}")
    for models in ((categorical,), (categorical, discriminative)):
        compare_with_peers(X, models, args)
    if not args.no_large:
        full_rank()
        permutations()
        a_million()


def compare_with_peers(X: np.ndarray, models: tuple[np.ndarray, ...], args: argparse.Namespace) -> None:
    """The three ways to the same numbers."""
    names = "categorical" if len(models) == 1 else "categorical and discriminative"
    sample = X[:, : args.sample]
    seconds, r_toolbox = fastest(lambda: toolbox(sample, models), min(args.repeats, 2))
    toolbox_seconds = seconds * X.shape[1] / sample.shape[1]
    loop_seconds, r_loop = fastest(lambda: loop(X, models), min(args.repeats, 2))
    own_seconds, r = fastest(lambda: np.stack([rsa_scores(X, D, n_jobs=-1) for D in models]), args.repeats)
    one_seconds, _ = fastest(lambda: np.stack([rsa_scores(X, D) for D in models]), args.repeats)
    print(f"\n{names}: largest difference to numpy {np.abs(r - r_loop).max():.1e}, ", end="")
    print(f"to rsatoolbox {np.abs(r[:, : args.sample] - r_toolbox).max():.1e}")
    for name, value in (
        (f"rsatoolbox ({args.sample} features, × {X.shape[1] / args.sample:g})", toolbox_seconds),
        ("numpy loop", loop_seconds),
        ("neurollm, one thread", one_seconds),
        ("neurollm, all cores", own_seconds),
    ):
        print(f"  {name:38s} {value:8.3f} s   {value / own_seconds:7.0f} ×")


def toolbox(X: np.ndarray, models: tuple[np.ndarray, ...]) -> np.ndarray:
    """One data set and one RDM per feature, compared with every model over the pairs it speaks of."""
    import rsatoolbox

    upper = np.triu_indices(len(X), 1)
    vectors = [D[upper] for D in models]
    known = [~np.isnan(vector) for vector in vectors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sets = [rsatoolbox.data.Dataset(X[:, [feature]]) for feature in range(X.shape[1])]
        rdms = rsatoolbox.rdm.calc_rdm(sets, method="euclidean")
        d = rdms.dissimilarities
        return np.stack(
            [
                rsatoolbox.rdm.compare(d[:, pairs], vector[None, pairs], "corr")[:, 0]
                for vector, pairs in zip(vectors, known, strict=True)
            ]
        )


def loop(X: np.ndarray, models: tuple[np.ndarray, ...]) -> np.ndarray:
    """The RDM of each feature by numpy, and its correlation with all models."""
    i, j = np.triu_indices(len(X), 1)
    vectors = []
    for D in models:
        vector = D[i, j]
        pairs = np.flatnonzero(~np.isnan(vector))
        centred = vector[pairs] - vector[pairs].mean()
        vectors.append((pairs, centred / np.linalg.norm(centred)))
    out = np.empty((len(models), X.shape[1]))
    for feature, x in enumerate(X.T.astype(float)):
        d = x[i] - x[j]
        d *= d
        for number, (pairs, vector) in enumerate(vectors):
            part = d if pairs.size == d.size else d[pairs]
            part = part - part.mean()
            out[number, feature] = part @ vector / np.sqrt(part @ part)
    return out


def full_rank() -> None:
    """Scores of 100,000 features against a model without classes."""
    X = np.random.default_rng(3).standard_normal((N_LARGE, 100_000), dtype=np.float32)
    D = numeric_rdm(np.random.default_rng(4).normal(size=N_LARGE))
    seconds, _ = fastest(lambda: rsa_scores(X, D, n_jobs=-1), 3)
    print(f"\n100,000 features × {N_LARGE} prompts against differences of a number (full rank): {seconds:.2f} s")


def permutations() -> None:
    """1,000 permutations of a model of four classes, family-wise p for 100,000 features."""
    X = np.random.default_rng(1).standard_normal((N_LARGE, 100_000), dtype=np.float32)
    labels = np.arange(N_LARGE) % 4
    start = time.perf_counter()
    scores = feature_scores(X, categorical_rdm(labels))
    draws = whole_item(labels).draw(1000, 0)
    null = permutation_null(
        scores, X.shape[1], draws, observed=scores.observed(-1), moments=scores.moments(), n_jobs=-1
    )
    seconds = time.perf_counter() - start
    print(f"\n1,000 permutations × 100,000 features × {N_LARGE} prompts, four classes: {seconds:.1f} s ", end="")
    print(f"(smallest p_FWER {null.p_fwer.min():.3f}; the features are noise)")


def a_million() -> None:
    """Sparse features against one model."""
    rng = np.random.default_rng(2)
    V = 1_000_000
    counts = rng.poisson(N_ACTIVE, V).clip(0, N_LARGE)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    rows = rng.integers(0, N_LARGE, indptr[-1])
    X = sparse.csc_array((rng.exponential(size=rows.size).astype(np.float32), rows, indptr), shape=(N_LARGE, V))
    X.sum_duplicates()
    labels = np.arange(N_LARGE) % 4
    for name, D in (("categorical", categorical_rdm(labels)), ("discriminative", discriminative_rdm(labels, 0))):
        seconds, r = fastest(lambda D=D: rsa_scores(X, D, n_jobs=-1), 1)
        print(f"1,000,000 sparse features × {N_LARGE} prompts, {name} model: {seconds:.1f} s ", end="")
        print(f"({np.isnan(r).sum():,} features undefined)")


def fastest(function: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """Seconds of the fastest run, and its result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


if __name__ == "__main__":
    main()
