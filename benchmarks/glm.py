"""All closed-form columns of six contrasts for a million sparse features, and nilearn's GLM on the same data.

Ours: item means, t or F, p from the permutation distribution, q, effect and g or η² with intervals, rates and
magnitudes of every condition; no permutations. nilearn: ordinary least squares, t or F and z of the same contrasts, on
fewer features (dense, float64) and scaled by their number.

    python benchmarks/glm.py
    python benchmarks/glm.py --features 100000
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from scipy import sparse

from neurollm.designs import FactorialDesign
from neurollm.glm import FeatureGLM

CONTRASTS = ("a", "b", "a:b", "x:p - y:p", "x:p - x:q", "x:p = x:q, x:q = y:p")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=125, help="each with four cells")
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--n-jobs", type=int, default=-1, help="threads of neurollm")
    parser.add_argument("--nilearn", type=int, default=20_000, help="features given to nilearn, 0 leaves it out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"item": i, "a": a, "b": b} for i in range(options.items) for a in "xy" for b in "pq")
    n, v = len(obs), options.features
    cells = int(n * v * options.density)
    places = (rng.integers(0, n, cells), rng.integers(0, v, cells))
    X = sparse.csr_array((rng.lognormal(size=cells).astype(np.float32), places), shape=(n, v))
    print(f"{n} trials, {v:,} features, {X.nnz / n / v:.1%} active")
    start = time.perf_counter()
    glm = FeatureGLM(FactorialDesign(["a", "b"]), n_perm=0, n_jobs=options.n_jobs).fit(X, obs)
    print(f"  {'fit':24s} {time.perf_counter() - start:7.1f} s")
    for contrast in CONTRASTS:
        before = time.perf_counter()
        result = glm.compute_contrast(contrast)
        print(f"  {contrast:24s} {time.perf_counter() - before:7.1f} s   p by {result.p_method}", flush=True)
    ours = time.perf_counter() - start
    print(f"  {'neurollm, everything':24s} {ours:7.1f} s   {ours / v * 1e6:.1f} µs per feature")
    if options.nilearn:
        theirs = nilearn_seconds(X[:, : options.nilearn].toarray().astype(float), glm) / min(options.nilearn, v)
        print(f"  {'nilearn, OLS and z only':24s} {theirs * v:7.1f} s   {theirs * 1e6:.1f} µs per feature (scaled)")


def nilearn_seconds(Y: np.ndarray, glm: FeatureGLM) -> float:
    """The same contrasts as an ordinary GLM of single trials."""
    try:
        from nilearn.glm import compute_contrast
        from nilearn.glm.first_level import run_glm
    except ImportError:
        print("  nilearn is not installed")
        return float("nan")
    start = time.perf_counter()
    labels, estimates = run_glm(Y, glm.design_matrix_.to_numpy(), noise_model="ols")
    for contrast in CONTRASTS:
        matrix = glm.design_.contrast(contrast, glm.table_.obs).matrix
        kind = "t" if len(matrix) == 1 else "F"
        compute_contrast(labels, estimates, matrix[0] if kind == "t" else matrix, stat_type=kind).z_score()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
