"""Numerical core: arrays in, arrays or small frozen dataclasses out.

No tables, files or progress here; see `neurollm.glm` for the estimator.
"""

from neurollm.stats.auc import auc, concordance
from neurollm.stats.effects import Sides, hedges_g, sides, small_sample_factor, t_interval
from neurollm.stats.kernel import PermutationResult, permutation_test, r_to_t
from neurollm.stats.shufflings import Draws, Shuffling, sign_flip, whole_item, within_item
from neurollm.stats.ttests import ContrastMoments, contrast_moments

__all__ = [
    "ContrastMoments",
    "Draws",
    "PermutationResult",
    "Shuffling",
    "Sides",
    "auc",
    "concordance",
    "contrast_moments",
    "hedges_g",
    "permutation_test",
    "r_to_t",
    "sides",
    "sign_flip",
    "small_sample_factor",
    "t_interval",
    "whole_item",
    "within_item",
]
