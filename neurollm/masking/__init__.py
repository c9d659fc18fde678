"""From stimuli to trials: which tokens count, how they are pooled, and the features of each trial."""

from neurollm.masking.masker import FeatureMasker, provenance, save_trials
from neurollm.masking.windows import POOLS, Window

__all__ = ["POOLS", "FeatureMasker", "Window", "provenance", "save_trials"]
