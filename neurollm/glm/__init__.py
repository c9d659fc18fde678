"""Mass-univariate contrasts over all features, with exact control of the family-wise error."""

from neurollm.glm.model import FeatureGLM
from neurollm.glm.result import ContrastResult

__all__ = ["ContrastResult", "FeatureGLM"]
