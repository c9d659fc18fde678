"""How well a representation as a whole separates two levels, judged on items it has not seen."""

from neurollm.decoding.separability import Separability, separability

__all__ = ["Separability", "separability"]
