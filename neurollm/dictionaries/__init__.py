"""Dictionaries: maps between activations and features, their training and their quality."""

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.controls import RandomDirections, RawUnits
from neurollm.dictionaries.metrics import DictionaryMetrics, evaluate_dictionary
from neurollm.dictionaries.saelens import load_dictionary
from neurollm.dictionaries.topk import TopKSAE
from neurollm.dictionaries.training import TopKTraining, train_dictionary

__all__ = [
    "Dictionary",
    "DictionaryMetrics",
    "RandomDirections",
    "RawUnits",
    "TopKSAE",
    "TopKTraining",
    "evaluate_dictionary",
    "load_dictionary",
    "train_dictionary",
]
