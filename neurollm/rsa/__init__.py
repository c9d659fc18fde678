"""Representational similarity analysis: features, time courses, regions and layers against model RDMs.

=====================================================  =============================================================
what                                                   where
=====================================================  =============================================================
every feature against several models                   `FeatureRSA` (models by name: `models`; exchange: `exchange`)
every position of a text, or patterns over positions   `TimeResolvedRSA`, `Windows`
texts of different lengths, without a window           `sequence_rdm`
regions, layers and models, with rsatoolbox            `region_rdms`, `compare_rdms`, `compare_models`
one RDM against several models                         `permute_conditions`
neighbourhoods of decoder directions                   `Searchlight`
=====================================================  =============================================================
"""

from neurollm.rsa.comparators import compare_rdms
from neurollm.rsa.comparison import ModelComparison
from neurollm.rsa.feature_rsa import FeatureRSA
from neurollm.rsa.inference import compare_models
from neurollm.rsa.models import ModelRDM, model_rdms
from neurollm.rsa.permutation import RelatednessTest, permute_conditions
from neurollm.rsa.regions import region_rdms
from neurollm.rsa.result import RSAMap, RSAResult
from neurollm.rsa.searchlight import Searchlight, SearchlightMap
from neurollm.rsa.sequences import SequenceRDM, SequenceResult, sequence_rdm
from neurollm.rsa.temporal import TimeResolvedRSA
from neurollm.rsa.temporal_result import TimeResolvedResult
from neurollm.rsa.toolbox import from_rsatoolbox, load_rdms, save_rdms, to_rsatoolbox
from neurollm.rsa.windows import Windows, target_anchors

__all__ = [
    "FeatureRSA",
    "ModelComparison",
    "ModelRDM",
    "RSAMap",
    "RSAResult",
    "RelatednessTest",
    "Searchlight",
    "SearchlightMap",
    "SequenceRDM",
    "SequenceResult",
    "TimeResolvedRSA",
    "TimeResolvedResult",
    "Windows",
    "compare_models",
    "compare_rdms",
    "from_rsatoolbox",
    "load_rdms",
    "model_rdms",
    "permute_conditions",
    "region_rdms",
    "save_rdms",
    "sequence_rdm",
    "target_anchors",
    "to_rsatoolbox",
]
