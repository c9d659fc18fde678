"""The uncorrected p of a hypothesis, in closed form: no permutations, the right tail for sparse features."""

from __future__ import annotations

from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats import flips, moments, testability
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
        (sign flips), or ``"t"`` / ``"F"``: the parametric distribution, where signs are flipped on residuals or labels
        of several factors are exchanged at once.
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


def smallest_attainable_p(Y: Any, hypothesis: Hypothesis, fit: LinearFit, alternative: str) -> np.ndarray:
    """The closed-form p that every feature would have under its most extreme shuffling; it does not look at labels.

    Parameters
    ----------
    Y, hypothesis, fit, alternative
        As for `closed_form_p`.

    Returns
    -------
    ndarray, shape (V,)

    Raises
    ------
    InvalidInput
        The hypothesis has several tested degrees of freedom, or anything beside them in the model.
    """
    if hypothesis.rank > 1 or hypothesis.rest.shape[1] or hypothesis.nuisance.shape[1]:
        raise InvalidInput("testable_at needs a difference of two conditions without covariates; leave it out.")
    if hypothesis.shuffling.kind == "sign_flip":
        most = testability.largest_flip_statistic(Y)
        return flips.sign_flip_p(Y, -most if alternative == "less" else most, alternative)
    x = hypothesis.tested[:, 0]
    found = moments.label_moments(x, Y, hypothesis.groups)
    # Both ends are tried for two sides: the larger |r| may lie on that of the longer tail.
    sides = {"two-sided": ("greater", "less")}.get(alternative, (alternative,))
    p = [
        moments.pearson3_p(sign * most, found.variance, found.skewness, alternative)
        for side in sides
        for sign, most in [(-1 if side == "less" else 1, testability.largest_statistic(x, Y, hypothesis.groups, side))]
    ]
    return np.min(p, axis=0)


def _pearson3(Y: Any, hypothesis: Hypothesis, fit: LinearFit, options: tuple) -> np.ndarray:
    blocks, alternative, floor = options
    nuisance = hypothesis.nuisance if hypothesis.nuisance.shape[1] else None
    rest = hypothesis.rest if hypothesis.rest.shape[1] else None
    found = moments.label_moments(hypothesis.tested[:, 0], Y, blocks, nuisance=nuisance, rest=rest)
    return moments.pearson3_p(fit.rho, found.variance, found.skewness, alternative, floor)
