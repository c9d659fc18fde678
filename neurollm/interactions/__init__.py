"""Feature interactions: what pairs of features add to a dictionary's reconstruction."""

from neurollm.interactions.contributions import Contributions, contributions
from neurollm.interactions.features import (
    ComponentFeatures,
    InteractionFeatures,
    interaction_edit,
    load_interaction_features,
)
from neurollm.interactions.inspection import inspect_weights
from neurollm.interactions.joint import JointModel, train_joint
from neurollm.interactions.joint_comparison import joint_comparison
from neurollm.interactions.joint_result import JointComparison
from neurollm.interactions.ladder import residual_ladder
from neurollm.interactions.ladder_result import LadderResult
from neurollm.interactions.model import NFM
from neurollm.interactions.partners import interaction_partners
from neurollm.interactions.perturbation import perturbation_test
from neurollm.interactions.perturbation_result import PerturbationResult
from neurollm.interactions.rows import CodedBatch, CodedRows
from neurollm.interactions.secondary import SecondaryDictionary, train_secondary
from neurollm.interactions.simulate import SimulatedCodes, simulate_codes
from neurollm.interactions.training import InteractionTraining, train_nfm
from neurollm.interactions.weight_report import WeightReport

__all__ = [
    "NFM",
    "CodedBatch",
    "CodedRows",
    "ComponentFeatures",
    "Contributions",
    "InteractionFeatures",
    "InteractionTraining",
    "JointComparison",
    "JointModel",
    "LadderResult",
    "PerturbationResult",
    "SecondaryDictionary",
    "SimulatedCodes",
    "WeightReport",
    "contributions",
    "inspect_weights",
    "interaction_edit",
    "interaction_partners",
    "joint_comparison",
    "load_interaction_features",
    "perturbation_test",
    "residual_ladder",
    "simulate_codes",
    "train_joint",
    "train_nfm",
    "train_secondary",
]
