"""Feature interactions: what pairs of features add to a dictionary's reconstruction."""

from neurollm.interactions.model import NFM
from neurollm.interactions.rows import CodedBatch, CodedRows

__all__ = ["NFM", "CodedBatch", "CodedRows"]
