"""RSA of every feature at once: scores against model RDMs, and their permutation distributions.

===================================================  =========================================
what                                                 where
===================================================  =========================================
model RDMs from labels and numbers                   `labels`, `model`
scores with squared distances                        `squared` (with `forms`)
scores with absolute distances and ranks             `explicit`, `sparse_ranks`
p values of all features                             `nulls`
===================================================  =========================================
"""

from neurollm.stats.rdms.labels import categorical_rdm, coherence_rdm, discriminative_rdm, numeric_rdm
from neurollm.stats.rdms.nulls import Null, permutation_null
from neurollm.stats.rdms.scores import COMPARISONS, DISTANCES, feature_scores, rsa_scores

__all__ = [
    "COMPARISONS",
    "DISTANCES",
    "Null",
    "categorical_rdm",
    "coherence_rdm",
    "discriminative_rdm",
    "feature_scores",
    "numeric_rdm",
    "permutation_null",
    "rsa_scores",
]
