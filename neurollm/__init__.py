"""Study a language model the way cognitive neuroscience studies a brain.

Designed prompts go in, a statistically defensible statement about a language
model's features comes out. Names are imported when they are first used, so that
``import neurollm`` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from neurollm._version import __version__

_HOMES = {
    "load_model": "neurollm.models",
    "LanguageModel": "neurollm.models",
    "Site": "neurollm.models",
    "StimulusSet": "neurollm.stimuli",
    "CategoricalDesign": "neurollm.designs",
    "DiscriminativeDesign": "neurollm.designs",
    "FactorialDesign": "neurollm.designs",
    "FormulaDesign": "neurollm.designs",
    "Contrast": "neurollm.designs",
    "ActivationStore": "neurollm.activations",
    "Corpus": "neurollm.activations",
    "FeatureIndex": "neurollm.activations",
    "harvest": "neurollm.activations",
    "load_dictionary": "neurollm.dictionaries",
    "train_dictionary": "neurollm.dictionaries",
    "evaluate_dictionary": "neurollm.dictionaries",
    "FeatureMasker": "neurollm.masking",
    "FeatureGLM": "neurollm.glm",
    "ContrastResult": "neurollm.glm",
    "FeatureRSA": "neurollm.rsa",
    "Decoder": "neurollm.decoding",
    "build_report": "neurollm.reporting",
    "run_pipeline": "neurollm.pipelines",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'neurollm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
