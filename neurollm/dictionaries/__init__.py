"""Dictionaries: maps between activations and features, their training and their quality."""

from neurollm.dictionaries.architectures import AbsTopKSAE, GatedSAE, JumpReLUSAE, MatchingPursuitSAE, ReLUSAE, TopKSAE
from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.components import ICADictionary, PCADictionary
from neurollm.dictionaries.controls import RandomDirections, RawUnits, controls_of, random_sae
from neurollm.dictionaries.formats import load_dictionary, save_sparsify
from neurollm.dictionaries.geometry import anisotropy_report
from neurollm.dictionaries.metrics import DictionaryMetrics, evaluate_dictionary
from neurollm.dictionaries.nmf import NMFDictionary
from neurollm.dictionaries.normalisation import Normalisation
from neurollm.dictionaries.probing import probe_splits, sparse_probing
from neurollm.dictionaries.sae import SAE
from neurollm.dictionaries.scaling import ScalingLaw, fit_scaling_law
from neurollm.dictionaries.splitting import feature_splitting
from neurollm.dictionaries.stability import seed_stability
from neurollm.dictionaries.sweeping import SweepResult, sweep_dictionaries
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
    "AbsTopKSAE",
    "BatchTopKTraining",
    "Dictionary",
    "DictionaryMetrics",
    "GatedSAE",
    "GatedTraining",
    "ICADictionary",
    "JumpReLUSAE",
    "JumpReLUTraining",
    "MatchingPursuitSAE",
    "MatryoshkaTraining",
    "NMFDictionary",
    "Normalisation",
    "PCADictionary",
    "Plan",
    "RandomDirections",
    "RawUnits",
    "ReLUSAE",
    "ReLUTraining",
    "ScalingLaw",
    "SweepResult",
    "TopKSAE",
    "TopKTraining",
    "Training",
    "anisotropy_report",
    "controls_of",
    "evaluate_dictionary",
    "feature_splitting",
    "fit_scaling_law",
    "load_dictionary",
    "probe_splits",
    "random_sae",
    "save_sparsify",
    "seed_stability",
    "sparse_probing",
    "sweep_dictionaries",
    "train_dictionaries",
    "train_dictionary",
    "trajectory",
]
