"""How often does the study find anything when the labels mean nothing?

Takes the trials of a finished study, exchanges the condition labels within every item at
random, and runs the study's own contrasts again: the share of runs with any feature at
p_FWER < alpha must not exceed alpha.

    python benchmarks/shuffled_labels.py reports/success --runs 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import stats

from neurollm.designs import CategoricalDesign
from neurollm.glm import FeatureGLM
from neurollm.progress import Progress
from neurollm.random import stream


def shuffled(obs: pd.DataFrame, factor: str, item: str, seed: int) -> pd.DataFrame:
    """The trial table with the levels of `factor` relabelled at random within each item."""
    rng = stream(seed, "shuffled_labels")
    labels = obs[factor].astype(str).to_numpy().copy()
    for _, rows in obs.reset_index(drop=True).groupby(item, observed=True).groups.items():
        levels = np.unique(labels[rows])
        renamed = dict(zip(levels, rng.permutation(levels), strict=True))
        labels[rows] = [renamed[label] for label in labels[rows]]
    return obs.assign(**{factor: labels})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--n-perm", type=int, default=999)
    parser.add_argument("--alpha", type=float, default=0.05)
    args = parser.parse_args()
    trials = anndata.read_h5ad(args.study / "trials.h5ad")
    record = json.loads((args.study / "design.json").read_text())
    manifest = json.loads((args.study / "manifest.json").read_text())
    design = CategoricalDesign.from_dict(record)
    hits = {name: 0 for name in record["contrasts"]}
    with Progress("shuffled labels", args.runs, "runs") as progress:
        for run in range(args.runs):
            glm = FeatureGLM(
                design,
                n_perm=args.n_perm,
                random_state=run,
                transform=manifest["transform"],
                min_active_items=manifest["min_active_items"],
            ).fit(trials.X, shuffled(trials.obs, design.factor, design.item, run))
            for name, expression in record["contrasts"].items():
                hits[name] += bool(np.nanmin(glm.compute_contrast(expression).p_fwer) < args.alpha)
            progress.advance(1)
    for name, count in hits.items():
        low, high = stats.binomtest(count, args.runs).proportion_ci()
        print(
            f"{name}: {count} of {args.runs} runs with shuffled labels found a feature at p_FWER < {args.alpha:g} "
            f"({count / args.runs:.1%}, 95 % CI {low:.1%} to {high:.1%})"
        )


if __name__ == "__main__":
    main()
