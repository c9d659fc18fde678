"""How often the 95 % intervals of a scaling law hold the truth, by simulation with a known law.

python benchmarks/scaling_law.py [simulations]
"""

from __future__ import annotations

import sys

import numpy as np

from neurollm.dictionaries.scaling import fit_scaling_law
from neurollm.random import stream

ALPHA, BETA = 0.4, 0.3


def coverage(
    n_widths: int,
    n_seeds: int,
    floor: float,
    sd: float,
    tokens: tuple[float, ...],
    n: int,
    misfit: float = 0.0,
    pooled: bool = False,
) -> str:
    """One line: how often the intervals of α, β and the mean loss held the truth.

    The part that falls with the width is 0.3 at 256 features; seeds scatter by `sd` in log loss, and all seeds of a
    width together by `misfit`. With `pooled` every seed counts for a width of its own, as it should not.
    """
    grid = 256.0 * 2 ** np.arange(n_widths)
    widths = np.tile(np.repeat(grid, n_seeds), len(tokens))
    trained = np.repeat(tokens, n_widths * n_seeds)
    by_tokens = 0.1 * (trained / tokens[0]) ** -BETA if len(tokens) > 1 else 0.0
    truth = floor + 0.3 * (widths / 256) ** -ALPHA + by_tokens
    apart = widths * (1 + 1e-7 * (np.arange(len(widths)) % n_seeds)) if pooled else widths
    held, open_above = [], 0
    for index in range(n):
        rng = stream(0, f"scaling law {n_widths} {n_seeds} {floor} {sd} {misfit} {tokens}", index)
        noise = sd * rng.standard_normal(len(truth))
        noise += misfit * np.repeat(rng.standard_normal(n_widths * len(tokens)), n_seeds)
        law = fit_scaling_law(apart, truth * np.exp(noise), trained)
        low, high = law.band(grid, tokens[0])
        expected = truth[: n_widths * n_seeds : n_seeds]
        of_mean = ((low <= expected) & (expected <= high)).mean()
        of_beta = np.nan if law.beta is None else law.beta_low <= BETA <= law.beta_high
        held.append((law.alpha_low <= ALPHA <= law.alpha_high, of_beta, of_mean))
        open_above += np.isinf(law.alpha_high)
    of_alpha, of_beta, of_mean = np.mean(held, axis=0)
    return (
        f"{n_widths} widths, {n_seeds} seeds, {len(tokens)} token numbers, E {floor:.2f}, sd {sd:.3f}, "
        f"misfit {misfit:.3f}{', seeds one by one' if pooled else ''}: "
        f"α {of_alpha:.3f}, β {of_beta:.3f}, mean loss {of_mean:.3f}, open above {open_above / n:.3f}"
    )


if __name__ == "__main__":
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for n_widths in (4, 5, 6, 8):
        for floor in (0.0, 0.05, 0.2):
            for sd, misfit in ((0.003, 0.0), (0.02, 0.0), (0.001, 0.005), (0.002, 0.02)):
                print(coverage(n_widths, 2, floor, sd, (1e6,), simulations, misfit), flush=True)
    for n_widths in (4, 5, 6, 8):
        print(coverage(n_widths, 2, 0.05, 0.001, (1e6,), simulations, 0.005, pooled=True), flush=True)
    for floor in (0.0, 0.05, 0.2):
        print(coverage(6, 2, floor, 0.005, (1e6, 4e6), simulations), flush=True)
        print(coverage(6, 2, floor, 0.005, (1e6, 4e6, 16e6), simulations // 5), flush=True)
