"""Designs: what is compared, what may be exchanged, and how questions are written."""

from neurollm.designs.base import Design, Exchangeability
from neurollm.designs.categorical import CategoricalDesign, DiscriminativeDesign
from neurollm.designs.contrast import Contrast
from neurollm.designs.factorial import FactorialDesign
from neurollm.designs.formula import FormulaDesign
from neurollm.designs.planning import ContrastPlan
from neurollm.designs.table import ItemTable

__all__ = [
    "CategoricalDesign",
    "Contrast",
    "ContrastPlan",
    "Design",
    "DesignSpec",
    "DiscriminativeDesign",
    "Exchangeability",
    "FactorialDesign",
    "FormulaDesign",
    "ItemTable",
    "read_design",
    "write_design",
]


def __getattr__(name: str):
    """Load the file schema (pydantic) when it is first used."""
    if name in ("DesignSpec", "read_design", "write_design"):
        from neurollm.designs import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
