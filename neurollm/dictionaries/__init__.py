"""Dictionaries: maps between activations and features, their training and their quality."""

from neurollm.dictionaries.architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.controls import RandomDirections, RawUnits
from neurollm.dictionaries.formats import load_dictionary
from neurollm.dictionaries.metrics import DictionaryMetrics, evaluate_dictionary
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.training import (
    BatchTopKTraining,
    GatedTraining,
    JumpReLUTraining,
    MatryoshkaTraining,
    Plan,
    ReLUTraining,
    TopKTraining,
    Training,
    train_dictionaries,
    train_dictionary,
    trajectory,
)

__all__ = [
    "SAE",
    "BatchTopKTraining",
    "Dictionary",
    "DictionaryMetrics",
    "GatedSAE",
    "GatedTraining",
    "JumpReLUSAE",
    "JumpReLUTraining",
    "MatryoshkaTraining",
    "Normalisation",
    "Plan",
    "RandomDirections",
    "RawUnits",
    "ReLUSAE",
    "ReLUTraining",
    "TopKSAE",
    "TopKTraining",
    "Training",
    "evaluate_dictionary",
    "load_dictionary",
    "train_dictionaries",
    "train_dictionary",
    "trajectory",
]
