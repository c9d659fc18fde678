"""How often partial RSA finds a feature that has nothing to do with the condition.

Twenty items in two conditions (or forty items in one each) have three coordinates; one of them carries the condition
with the given strength. The nuisance RDM is the squared distance over all three, and the feature follows another one,
so that without the nuisance it is unrelated to the condition. Printed: share of two-sided tests with p ≤ .05.

    python benchmarks/partial_rsa.py
    python benchmarks/partial_rsa.py --data 100
"""

from __future__ import annotations

import argparse

import numpy as np

from neurollm.random import stream
from neurollm.stats.rdms import categorical_rdm, feature_scores, permutation_null
from neurollm.stats.shufflings import whole_item, within_item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=300, help="data sets per line")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--n-perm", type=int, default=199)
    options = parser.parse_args()
    print("conditions vary   strength   plain   partial")
    for within in (True, False):
        for strength in (0.0, 0.7, 1.5):
            shares = np.mean([rejected(seed, within, strength, options) for seed in range(options.data)], axis=0)
            print(f"{'within' if within else 'between'} items    {strength:8.1f}   {shares[0]:.3f}   {shares[1]:.3f}")


def rejected(seed: int, within: bool, strength: float, options: argparse.Namespace) -> tuple[bool, bool]:
    """Whether the test rejects without the nuisance, and with it."""
    rng, n = stream(seed, "partial_rsa"), options.items
    labels = np.tile([0, 1], n) if within else rng.permutation(np.repeat([0, 1], n))
    own = np.repeat(rng.normal(size=(n, 3)), 2, axis=0) if within else rng.normal(size=(2 * n, 3))
    place = own + 0.5 * rng.normal(size=own.shape)
    place[:, 0] += strength * labels
    nuisance = ((place[:, None] - place) ** 2).sum(axis=2)
    feature = place[:, 1:2] + 0.5 * rng.normal(size=(2 * n, 1))
    draws = (within_item(n, (2,)) if within else whole_item(labels)).draw(options.n_perm, seed)
    p = []
    for held in ((), (nuisance,)):
        scores = feature_scores(feature, categorical_rdm(labels), nuisance=held)
        p.append(permutation_null(scores, 1, draws, observed=scores.observed()).p[0])
    return p[0] <= 0.05, p[1] <= 0.05


if __name__ == "__main__":
    main()
