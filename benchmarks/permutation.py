"""Max-statistic permutation tests side by side: neurollm, nilearn and an unblocked product as in MNE.

One run prints, for a paired and a two-group design on the same zero-inflated data: seconds, the ratio
to neurollm, and how far the family-wise p values lie apart in units of their Monte Carlo error
(the engines draw different permutations, so this is around 1 to 4 and not 0).

    python benchmarks/permutation.py --items 100 --features 8192 --n-perm 2000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from neurollm.stats import Shuffling, contrast_moments, permutation_test, sign_flip, whole_item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--n-perm", type=int, default=2000)
    parser.add_argument("--skip-nilearn", action="store_true", help="nilearn is slow at large sizes")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.items, options.features)
    y = np.where(rng.random(shape) < 0.3, rng.lognormal(size=shape), 0.0)
    d = y - np.where(rng.random(shape) < 0.3, rng.lognormal(size=shape), 0.0)
    y[: options.items // 2, :8] += np.linspace(0.3, 2, 8)
    d[:, :8] += np.linspace(0.1, 1, 8)
    codes = np.repeat([1, 0], [options.items // 2, options.items - options.items // 2])
    print(f"{options.items} items, {options.features} features, {options.n_perm} permutations")
    compare("paired (sign-flip)", d, sign_flip(options.items), np.ones((options.items, 1)), options)
    compare("two groups (labels)", y, whole_item(codes, [-1, 1]), codes[:, None].astype(float), options)


def compare(title: str, y: np.ndarray, shuffling: Shuffling, tested: np.ndarray, options: argparse.Namespace) -> None:
    """Run all engines on one design and print a line for each."""
    n_perm = options.n_perm
    engines: dict[str, Callable[[], np.ndarray]] = {
        "neurollm": lambda: ours(y, shuffling, n_perm, "float64"),
        "neurollm float32": lambda: ours(y, shuffling, n_perm, "float32"),
        "unblocked product": lambda: unblocked(y, shuffling, n_perm),
    }
    if not options.skip_nilearn:
        engines["nilearn permuted_ols"] = lambda: nilearn_p(y, tested, n_perm)
    print(f"\n{title}")
    reference, reference_seconds = None, 0.0
    for name, engine in engines.items():
        start = time.perf_counter()
        p = engine()
        seconds = time.perf_counter() - start
        if reference is None:
            reference, reference_seconds = p, seconds
        error = np.sqrt(np.maximum(reference * (1 - reference), 1 / n_perm) * 2 / n_perm)
        apart = (np.abs(p - reference) / error)[reference < 1]
        print(
            f"  {name:22s} {seconds:8.2f} s   ×{seconds / reference_seconds:6.2f}   p apart: mean {apart.mean():.2f}, "
            f"largest {apart.max():.2f} standard errors; {int((p <= 0.05).sum())} significant"
        )


def ours(y: np.ndarray, shuffling: Shuffling, n_perm: int, dtype: str) -> np.ndarray:
    """Moments and kernel, counts for uncorrected p values included."""
    moments = contrast_moments(y, shuffling, np.array([-1.0, 1.0]))
    return permutation_test(y, shuffling, moments.norm, n_perm=n_perm, dtype=dtype).p_fwer


def unblocked(y: np.ndarray, shuffling: Shuffling, n_perm: int) -> np.ndarray:
    """One product for all permutations, t for every element, then the maximum (permutations × features in memory)."""
    rng = np.random.default_rng(1)
    n = len(y)
    if shuffling.kind == "sign_flip":
        rows = rng.choice([-1.0, 1.0], (n_perm, n))
        observed_row, squares, df = np.ones(n), (y**2).sum(0), n - 1
    else:
        row = shuffling.table[0][shuffling.codes] * np.sqrt(n)
        rows, observed_row = np.array([rng.permutation(row) for _ in range(n_perm)]), row
        squares, df = ((y - y.mean(0)) ** 2).sum(0), n - 2

    def t(rows: np.ndarray) -> np.ndarray:
        r = rows @ y / np.sqrt(n * squares)
        return r * np.sqrt(df / (1 - r**2))

    null, observed = np.abs(t(rows)).max(axis=1), np.abs(t(observed_row[None]))[0]
    return (1 + (null[:, None] >= observed).sum(0)) / (n_perm + 1)


def nilearn_p(y: np.ndarray, tested: np.ndarray, n_perm: int) -> np.ndarray:
    """Family-wise p of nilearn (two-sided, intercept modelled when groups are compared)."""
    from nilearn.mass_univariate import permuted_ols

    two_groups = bool(np.ptp(tested))
    found = permuted_ols(
        tested, y, model_intercept=two_groups, n_perm=n_perm, two_sided_test=True, random_state=0, output_type="dict"
    )
    return 10 ** -found["logp_max_t"][0]


if __name__ == "__main__":
    main()
