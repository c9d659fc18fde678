"""How often the bootstrap over documents holds the truth, with few documents and with documents of unequal length.

The log of a document's number of tokens is normal with a median of 200 and the printed standard deviation (with 1,
one document in twenty is more than five times as long as the median). The mean of each of its values per token is
lognormal too: a share of the document, the same for all values, and one of the value, each half of the variance, and
independent of the length. All means over documents are 1, and so all ratios. Printed, for a nominal 95 %:

    ratio        share of intervals of a ratio that hold 1, as it is
    log          the same with ``log``
    percentile   the same of the percentile interval, for comparison
    two ratios   share of tests with p ≤ .05 that the log of two ratios differs, one of half the spread
    mean         share of intervals of a mean per token that hold 1, as it is
    log mean     the same with ``log``

    python benchmarks/document_bootstrap.py
    python benchmarks/document_bootstrap.py --data 500 --documents 80 160
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from neurollm.random import stream
from neurollm.stats.document_bootstrap import DocumentBootstrap, Estimate

COLUMNS = ("ratio", "log", "percentile", "two ratios", "mean", "log mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=2000, help="data sets per line")
    parser.add_argument("--documents", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5], help="sd of log length")
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.6, 1.0], help="sd of log values")
    parser.add_argument("--n-boot", type=int, default=399)
    options = parser.parse_args()
    print(f"{options.data} data sets per line: the standard error of a share of .95 is {se(0.95, options.data):.3f}")
    print(f"documents  sd length  sd value  {'  '.join(f'{name:>10s}' for name in COLUMNS)}")
    for n, length, spread in itertools.product(options.documents, options.lengths, options.spreads):
        shares = np.mean([measured(seed, n, length, spread, options.n_boot) for seed in range(options.data)], axis=0)
        print(f"{n:9d}  {length:9.1f}  {spread:8.1f}  {'  '.join(f'{share:10.3f}' for share in shares)}", flush=True)


def se(share: float, n: int) -> float:
    return (share * (1 - share) / n) ** 0.5


def measured(seed: int, n: int, length: float, spread: float, n_boot: int) -> tuple[bool, ...]:
    """One data set: what `COLUMNS` count."""
    rng = stream(seed, f"document_bootstrap {n} {length} {spread}")
    tokens = np.maximum(1, np.rint(200 * np.exp(length * rng.normal(size=n))))
    own, beside, other, noise = sums(rng, tokens, np.array([spread, spread, spread / 2, spread / 2]))
    boot = DocumentBootstrap(n, n_boot, seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), n_boot)
    low, high = np.quantile((weights @ own) / (weights @ beside), [0.025, 0.975])
    return (
        holds(boot.estimate([own], [beside])),
        holds(boot.estimate([own], [beside], log=True)),
        low <= 1 <= high,
        boot.estimate([own, other], [beside, noise], signs=(1, -1), log=True).p <= 0.05,
        holds(boot.estimate([own], [tokens])),
        holds(boot.estimate([own], [tokens], log=True)),
    )


def sums(rng: np.random.Generator, tokens: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Sums of several values over the tokens of each document, (values, documents)."""
    z = (rng.normal(size=tokens.size) + rng.normal(size=(spreads.size, tokens.size))) / np.sqrt(2)
    return tokens * np.exp(spreads[:, None] * z - spreads[:, None] ** 2 / 2)


def holds(found: Estimate) -> bool:
    return found.low <= 1 <= found.high


if __name__ == "__main__":
    main()
