"""Several trained parts that decide together about new trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.decoding.panels import Part

ENSEMBLES = ("bagging", "stacking", "single")


@dataclass(frozen=True)
class Ensemble:
    """The mean of parts, each with features and scales of its own; ``parts[which][problem]``."""

    parts: Sequence[Sequence[Part]]

    def decide(self, X: Any) -> np.ndarray:
        """Mean decisions, shape (n, n_problems)."""
        return np.mean([np.stack([part.decide(X) for part in own], axis=1) for own in self.parts], axis=0)

    def coef(self, n_features: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean weights (n_problems, n_features) in units of the features, and intercepts; 0 for one not chosen."""
        found = [[part.coef(n_features) for part in own] for own in self.parts]
        coef = np.mean([[weights for weights, _ in own] for own in found], axis=0)
        return coef, np.mean([[intercept for _, intercept in own] for own in found], axis=0)

    def features(self) -> np.ndarray:
        """Columns that any part uses, rising."""
        return np.unique(np.concatenate([part.features for own in self.parts for part in own]))
