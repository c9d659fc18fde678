"""Designs: what is compared, what may be exchanged, and how questions are written."""

from neurollm.designs.categorical import CategoricalDesign, ContrastPlan, Exchangeability, ItemTable
from neurollm.designs.contrast import Contrast

__all__ = [
    "CategoricalDesign",
    "CategoricalSpec",
    "Contrast",
    "ContrastPlan",
    "DesignSpec",
    "Exchangeability",
    "ItemTable",
    "read_design",
]


def __getattr__(name: str):
    """Load the file schema (pydantic) when it is first used."""
    if name in ("CategoricalSpec", "DesignSpec", "read_design"):
        from neurollm.designs import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
