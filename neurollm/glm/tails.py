"""The uncorrected p of a hypothesis, in closed form: no permutations, the right tail for sparse features."""

from __future__ import annotations

from typing import Any

import numpy as np

from neurollm.stats import flips, moments
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.linear import LinearFit
from neurollm.stats.parametric import f_to_z, t_to_z


def closed_form_p(Y: Any, hypothesis: Hypothesis, fit: LinearFit, alternative: str) -> tuple[np.ndarray, str]:
    """p of every feature under the permutation distribution, from its exact moments where they are known.

    Parameters
    ----------
    Y : array of any supported kind, shape (n_rows, V)
    hypothesis : Hypothesis
    fit : LinearFit
    alternative : {"two-sided", "greater", "less"}

    Returns
    -------
    p : ndarray, shape (V,)
    method : str
        ``"pearson3"`` (label exchange, one tested degree of freedom), ``"beta"`` (several), ``"signs"``
        (sign flips), or ``"t"`` / ``"F"``: the parametric distribution, where signs are flipped on residuals or labels of
        several factors are exchanged at once.
    """
    shuffling = hypothesis.shuffling
    floor = max(1 / min(shuffling.n_possible, 10**300), moments.SMALLEST)
    simple = shuffling.kind == "whole_item" or len(shuffling.shape) == 1
    blocks = hypothesis.groups
    if shuffling.kind == "within_item":
        blocks = np.repeat(np.arange(shuffling.n_items), hypothesis.n_rows // shuffling.n_items)
    one_row = hypothesis.n_rows == shuffling.n_items or shuffling.kind == "within_item"
    if shuffling.kind == "sign_flip" and not hypothesis.nuisance.shape[1]:
        return flips.sign_flip_p(Y, fit.rho, alternative), "signs"
    if shuffling.kind != "sign_flip" and simple and one_row:
        if hypothesis.rank == 1:
            return _pearson3(Y, hypothesis, fit, (blocks, alternative, floor)), "pearson3"
        if not hypothesis.nuisance.shape[1] and not hypothesis.rest.shape[1]:
            mean, variance = moments.quadratic_moments(hypothesis.tested, Y, blocks)
            return moments.beta_p(fit.rho**2, mean, variance, floor), "beta"
    if hypothesis.rank > 1:
        return f_to_z(fit.stat, hypothesis.rank, fit.df)[1], "F"
    upper = t_to_z(fit.stat, fit.df)[1]
    lower = t_to_z(-fit.stat, fit.df)[1]
    two_sided = np.minimum(1, 2 * np.minimum(upper, lower))
    return {"greater": upper, "less": lower, "two-sided": two_sided}[alternative], "t"


def _pearson3(Y: Any, hypothesis: Hypothesis, fit: LinearFit, options: tuple) -> np.ndarray:
    blocks, alternative, floor = options
    nuisance = hypothesis.nuisance if hypothesis.nuisance.shape[1] else None
    rest = hypothesis.rest if hypothesis.rest.shape[1] else None
    found = moments.label_moments(hypothesis.tested[:, 0], Y, blocks, nuisance=nuisance, rest=rest)
    return moments.pearson3_p(fit.rho, found.variance, found.skewness, alternative, floor)
