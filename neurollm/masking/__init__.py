"""From stimuli to trials: which tokens count, how they are pooled, and the features of each trial."""

from __future__ import annotations

from typing import Any

from neurollm.masking.windows import POOLS, Window

_IN_MASKER = ("FeatureMasker", "provenance", "save_trials", "trial_table")

__all__ = ["POOLS", "Window", *_IN_MASKER]


def __getattr__(name: str) -> Any:
    # Pipeline files are checked with Window: that must not wait for torch.
    if name not in _IN_MASKER:
        raise AttributeError(f"module 'neurollm.masking' has no attribute {name!r}")
    from neurollm.masking import masker

    return getattr(masker, name)
