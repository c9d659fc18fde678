"""RSA of every feature at once: scores against model RDMs, and their permutation distributions.

===================================================  ===================================================
what                                                 where
===================================================  ===================================================
model RDMs from labels and numbers                   `labels`, `model`
scores with squared distances                        `squared` (with `forms`)
scores with absolute distances and ranks             `explicit`, `sparse_ranks`
p values of all features                             `nulls`
layers, their division into features, ceilings       `layers`, `ceilings`
regions: greedy selection, neighbourhoods            `greedy`, `neighbourhoods` (with `space`)
patterns over positions, repeats, token sequences    `windows`, `crossvalidated`, `sequences` (with `pairs`)
===================================================  ===================================================
"""

from neurollm.stats.rdms.ceilings import ceiling
from neurollm.stats.rdms.crossvalidated import crossvalidated_distances, crossvalidated_scores
from neurollm.stats.rdms.greedy import GreedyPath, greedy_selection
from neurollm.stats.rdms.labels import categorical_rdm, coherence_rdm, discriminative_rdm, numeric_rdm
from neurollm.stats.rdms.layers import attribution, layer_distances, layer_score
from neurollm.stats.rdms.neighbourhoods import NeighbourhoodScores, neighbourhood_null
from neurollm.stats.rdms.nulls import Null, permutation_null
from neurollm.stats.rdms.pairs import rdm_scores
from neurollm.stats.rdms.scores import COMPARISONS, DISTANCES, feature_scores, rsa_scores
from neurollm.stats.rdms.sequences import distance_correlation, sequence_distances
from neurollm.stats.rdms.windows import undefined_rows, window_scores

__all__ = [
    "COMPARISONS",
    "DISTANCES",
    "GreedyPath",
    "NeighbourhoodScores",
    "Null",
    "attribution",
    "categorical_rdm",
    "ceiling",
    "coherence_rdm",
    "crossvalidated_distances",
    "crossvalidated_scores",
    "discriminative_rdm",
    "distance_correlation",
    "feature_scores",
    "greedy_selection",
    "layer_distances",
    "layer_score",
    "neighbourhood_null",
    "numeric_rdm",
    "permutation_null",
    "rdm_scores",
    "rsa_scores",
    "sequence_distances",
    "undefined_rows",
    "window_scores",
]
