"""Mass-univariate contrasts over all features, with exact control of the family-wise error."""

from neurollm.glm.details import robustness
from neurollm.glm.joint import fwer_across_contrasts
from neurollm.glm.model import FeatureGLM
from neurollm.glm.result import ContrastResult, Exchange

__all__ = ["ContrastResult", "Exchange", "FeatureGLM", "fwer_across_contrasts", "robustness"]
