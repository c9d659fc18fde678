"""Numerical core: arrays in, arrays or small frozen dataclasses out.

No tables, files or progress here; see `neurollm.glm` for the estimator.

===============================  ===================================================================================
what                             where
===============================  ===================================================================================
a hypothesis and its estimates   `hypothesis`, `partition`, `linear`, `ranks`, `welch`, `crossed`, `reml`
shufflings and the kernel        `shufflings`, `kernel` (with `maxima`, `products`, `scan`)
p without permutations           `flips`, `two_groups`, `moments`, `parametric`
many tests                       `multiplicity`, `gpd`, `testability`, `tfce`
effect sizes                     `effects`, `paired`, `variance_explained`, `auc`, `auc_effect`, `rates`, `conditions`
evidence and power               `evidence`, `power`
decoding                         `folds`, `paired_scores`, `prevalence`
RSA                              `rdms`
===============================  ===================================================================================
"""

from neurollm.stats.auc import auc, concordance
from neurollm.stats.auc_effect import auc_interval, paired_auc
from neurollm.stats.conditions import Conditions, conditions
from neurollm.stats.crossed import CrossedAnova, crossed_anova
from neurollm.stats.effects import hedges_g, small_sample_factor, t_interval
from neurollm.stats.evidence import bayes_factor, equivalence
from neurollm.stats.flips import sign_flip_p
from neurollm.stats.gpd import gpd_tail
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import PermutationResult, permutation_test, r_to_f, r_to_t
from neurollm.stats.linear import LinearFit, linear_fit
from neurollm.stats.moments import PermutationMoments, beta_p, label_moments, pearson3_p, quadratic_moments
from neurollm.stats.multiplicity import TrueDiscoveries, adjust, true_discoveries
from neurollm.stats.paired import hedges_g_av
from neurollm.stats.paired_scores import AucBootstrap, PairedDifference, auc_bootstrap, paired_auc_difference
from neurollm.stats.partition import Partition, is_estimable, orthonormal, partition
from neurollm.stats.power import CrossedPower, Variances, crossed_power, smallest_detectable
from neurollm.stats.prevalence import Prevalence, prevalence_inference
from neurollm.stats.ranks import rank_rows
from neurollm.stats.rates import paired_rate_difference, rate_difference
from neurollm.stats.shufflings import Draws, Shuffling, sign_flip, whole_item, within_item
from neurollm.stats.testability import largest_flip_statistic, largest_statistic
from neurollm.stats.tfce import nearest_neighbour_graph, tfce
from neurollm.stats.two_groups import two_group_p
from neurollm.stats.variance_explained import partial_eta_squared, partial_omega_squared, partial_r
from neurollm.stats.welch import WelchContrast, welch_contrast, welch_test

__all__ = [
    "AucBootstrap",
    "Conditions",
    "CrossedAnova",
    "CrossedPower",
    "Draws",
    "Hypothesis",
    "LinearFit",
    "PairedDifference",
    "Partition",
    "PermutationMoments",
    "PermutationResult",
    "Prevalence",
    "Shuffling",
    "TrueDiscoveries",
    "Variances",
    "WelchContrast",
    "adjust",
    "auc",
    "auc_bootstrap",
    "auc_interval",
    "bayes_factor",
    "beta_p",
    "concordance",
    "conditions",
    "crossed_anova",
    "crossed_power",
    "equivalence",
    "gpd_tail",
    "hedges_g",
    "hedges_g_av",
    "is_estimable",
    "label_moments",
    "largest_flip_statistic",
    "largest_statistic",
    "linear_fit",
    "nearest_neighbour_graph",
    "orthonormal",
    "paired_auc",
    "paired_auc_difference",
    "paired_rate_difference",
    "partial_eta_squared",
    "partial_omega_squared",
    "partial_r",
    "partition",
    "pearson3_p",
    "permutation_test",
    "prevalence_inference",
    "quadratic_moments",
    "r_to_f",
    "r_to_t",
    "rank_rows",
    "rate_difference",
    "sign_flip",
    "sign_flip_p",
    "small_sample_factor",
    "smallest_detectable",
    "t_interval",
    "tfce",
    "true_discoveries",
    "two_group_p",
    "welch_contrast",
    "welch_test",
    "whole_item",
    "within_item",
]
