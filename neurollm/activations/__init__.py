"""Activations on disk: harvesting them, reading them, and the index of every feature's occurrences."""

from neurollm.activations.corpus import Corpus
from neurollm.activations.feature_index import Context, FeatureIndex
from neurollm.activations.harvesting import harvest
from neurollm.activations.store import ActivationStore, TokenContext

__all__ = ["ActivationStore", "Context", "Corpus", "FeatureIndex", "TokenContext", "harvest"]
