"""Training dictionaries: options, learners of all architectures, the pass over the data."""

from neurollm.dictionaries.training.distributed import torchrun
from neurollm.dictionaries.training.loop import LEARNERS, Plan, train_dictionaries, train_dictionary, trajectory
from neurollm.dictionaries.training.options import (
    BatchTopKTraining,
    GatedTraining,
    JumpReLUTraining,
    MatryoshkaTraining,
    ReLUTraining,
    TopKTraining,
    Training,
)

__all__ = [
    "LEARNERS",
    "BatchTopKTraining",
    "GatedTraining",
    "JumpReLUTraining",
    "MatryoshkaTraining",
    "Plan",
    "ReLUTraining",
    "TopKTraining",
    "Training",
    "torchrun",
    "train_dictionaries",
    "train_dictionary",
    "trajectory",
]
