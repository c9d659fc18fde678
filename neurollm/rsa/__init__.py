"""Representational similarity analysis: every feature, regions, and whole layers against model RDMs."""

from neurollm.rsa.feature_rsa import FeatureRSA
from neurollm.rsa.models import ModelRDM, model_rdms
from neurollm.rsa.result import RSAMap, RSAResult

__all__ = ["FeatureRSA", "ModelRDM", "RSAMap", "RSAResult", "model_rdms"]
