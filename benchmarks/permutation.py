"""Max-statistic permutation tests side by side: neurollm, a bare matrix product, nilearn and MNE.

For two groups and for sign flips, on dense float32 and on 5 %-dense CSR data, one run prints seconds,
the ratio to neurollm and the peak memory of neurollm (as Python and numpy allocate it):

* the bare product: ``rows @ Y`` in float32 with numpy, as many operations as the test has, on all
  cores; and the same with the largest absolute value of every row.
* nilearn's `permuted_ols`, MNE's `permutation_t_test` (sign flips only) and the statistics of MNE's cluster tests,
  all on dense float64. They are measured with fewer permutations and scaled along the line through two numbers of them.

Every time is the best of several. Quiet cores are needed for ratios that mean something.

    python benchmarks/permutation.py
    python benchmarks/permutation.py --quick
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from scipy import sparse

from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import permutation_test
from neurollm.stats.shufflings import sign_flip, whole_item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--n-perm", type=int, default=10_000)
    parser.add_argument("--n-jobs", type=int, default=-1, help="threads of neurollm and processes of nilearn and MNE")
    parser.add_argument("--others", type=int, default=500, help="permutations of nilearn and MNE, 0 leaves them out")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="60 items, 8,192 features, 1,000 permutations")
    options = parser.parse_args()
    if options.quick:
        options.items, options.features, options.n_perm = 60, 8192, 1000
        options.others = min(options.others, 100)
    n, rng = options.items, np.random.default_rng(0)
    dense = rng.standard_normal((n, options.features), dtype=np.float32)
    scattered = sparse.random_array(dense.shape, density=0.05, format="csr", dtype=np.float32, rng=rng)
    codes, none = np.repeat([1, 0], [n // 2, n - n // 2]), np.empty((n, 0))
    row = np.where(codes == 1, 1 / (n // 2), -1 / (n - n // 2))[:, None]
    row = row / np.linalg.norm(row)
    designs = {
        "two groups": Hypothesis(row, none, none, np.zeros(n, int), n - 2, whole_item(codes)),
        "sign flips": Hypothesis(np.full((n, 1), n**-0.5), none, none, None, n - 1, sign_flip(n)),
    }
    print(f"{n} items, {options.features:,} features, {options.n_perm:,} permutations, {os.cpu_count()} cores")
    for name, hypothesis in designs.items():
        bare = best(lambda: product(dense, options.n_perm, extreme=False), options)
        largest = best(lambda: product(dense, options.n_perm, extreme=True), options)
        print(f"\n{name}")
        print(f"  {'product in float32':44s} {bare:8.2f} s")
        print(f"  {'product in float32, largest of each row':44s} {largest:8.2f} s")
        seconds = {}
        for stored, Y in {"dense float32": dense, "5 %-dense CSR": scattered}.items():
            seconds[stored] = ours(Y, hypothesis, f"neurollm, {stored}", bare, options)
        compare("nilearn permuted_ols", nilearn(dense, codes, name, options.n_jobs), seconds, options)
        compare("MNE permutation_t_test", mne(dense, name, options.n_jobs), seconds, options, factor=5)
        compare("MNE permutation_cluster tests", mne_clusters(dense, codes, name), seconds, options)


def best(run: Callable[[], object], options: argparse.Namespace) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(Y, hypothesis: Hypothesis, name: str, bare: float, options: argparse.Namespace) -> float:
    """Print the time and memory of neurollm, all steps from the draws to the p values."""
    values = Y.toarray() if sparse.issparse(Y) else Y
    norms = np.linalg.norm(values.astype(float) - (values.mean(axis=0) if hypothesis.groups is not None else 0), axis=0)

    def run():
        return permutation_test(Y, hypothesis, norms, n_perm=options.n_perm, n_jobs=options.n_jobs)

    seconds = best(run, options)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"  {name:44s} {seconds:8.2f} s   {seconds / bare:5.2f} × the product   {peak:.0f} MB at most", flush=True)
    return seconds


def product(Y: np.ndarray, n_perm: int, extreme: bool) -> None:
    """The bare product, blocked so that it fits any memory."""
    rows = np.random.default_rng(1).choice(np.float32([-1, 1]), (n_perm, len(Y)))
    width = min(1024, Y.shape[1])
    found = np.empty((n_perm, width), dtype=np.float32)
    for start in range(0, Y.shape[1] - width + 1, width):
        np.matmul(rows, Y[:, start : start + width], out=found)
        if extreme:
            np.maximum(found.max(axis=1), -found.min(axis=1))


def compare(name: str, run: Callable[[int], object] | str, seconds: dict[str, float], options, factor: int = 1) -> None:
    """Print the time of another package, or why there is none; `factor` times as many permutations for a fast one."""
    if isinstance(run, str) or not options.others:
        print(f"  {name:44s} {run if isinstance(run, str) else 'left out'}")
        return
    high = min(factor * options.others, options.n_perm)
    low = high // 5
    run(low)  # imports and the start of processes are not counted
    few, some = (best(lambda n=n: run(n), options) for n in (low, high))
    total = some + (some - few) / (high - low) * (options.n_perm - high)
    ratios = ", ".join(f"{total / own:.0f} × neurollm ({stored})" for stored, own in seconds.items())
    print(f"  {name:44s} {total:8.2f} s   {ratios}; scaled from {high:,} permutations", flush=True)


def nilearn(Y: np.ndarray, codes: np.ndarray, design: str, n_jobs: int) -> Callable[[int], object] | str:
    """nilearn's test; two-sided, with an intercept when groups are compared."""
    try:
        from nilearn.mass_univariate import permuted_ols
    except ImportError:
        return "not installed"
    groups = design == "two groups"
    tested, data = (codes if groups else np.ones(len(codes)))[:, None].astype(float), Y.astype(float)
    options = {"model_intercept": groups, "two_sided_test": True, "random_state": 0, "output_type": "dict"}
    return lambda n_perm: permuted_ols(tested, data, n_perm=n_perm, n_jobs=n_jobs, **options)


def mne(Y: np.ndarray, design: str, n_jobs: int) -> Callable[[int], object] | str:
    """MNE's test of one sample."""
    try:
        from mne.stats import permutation_t_test
    except ImportError:
        return "not installed"
    if design != "sign flips":
        return "has no test of single features between groups"
    data = Y.astype(float)
    return lambda n_perm: permutation_t_test(data, n_permutations=n_perm, n_jobs=n_jobs, verbose=False)


def mne_clusters(Y: np.ndarray, codes: np.ndarray, design: str) -> Callable[[int], object] | str:
    """MNE's cluster tests with points as clusters; one reaches the threshold, so that little time goes into them."""
    from scipy import stats

    try:
        from mne.stats import permutation_cluster_1samp_test, permutation_cluster_test
    except ImportError:
        return "not installed"
    data = Y.astype(float)
    options = {"adjacency": False, "out_type": "mask", "verbose": "ERROR"}
    if design == "sign flips":
        options |= {"tail": 0, "threshold": 0.9999 * np.abs(stats.ttest_1samp(data, 0).statistic).max()}
        return lambda n_perm: permutation_cluster_1samp_test(data, n_permutations=n_perm, **options)
    groups = [data[codes == 1], data[codes == 0]]
    options |= {"tail": 1, "threshold": 0.9999 * stats.f_oneway(*groups).statistic.max()}
    return lambda n_perm: permutation_cluster_test(groups, n_permutations=n_perm, **options)


if __name__ == "__main__":
    main()
