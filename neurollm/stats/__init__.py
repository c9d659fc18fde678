"""Numerical core: arrays in, arrays or small frozen dataclasses out.

No tables, files or progress here; see `neurollm.glm` for the estimator.
"""

from neurollm.stats.auc import auc, concordance
from neurollm.stats.conditions import Conditions, conditions
from neurollm.stats.effects import hedges_g, small_sample_factor, t_interval
from neurollm.stats.gpd import gpd_tail
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import PermutationResult, permutation_test, r_to_f, r_to_t
from neurollm.stats.linear import LinearFit, linear_fit
from neurollm.stats.multiplicity import TrueDiscoveries, adjust, true_discoveries
from neurollm.stats.partition import Partition, is_estimable, orthonormal, partition
from neurollm.stats.shufflings import Draws, Shuffling, sign_flip, whole_item, within_item
from neurollm.stats.variance_explained import partial_eta_squared
