"""Regions of interest: features chosen on some contents and tested on others, never on the same."""

from neurollm.roi.crossfit import CrossFit, cross_fit
from neurollm.roi.disjoint import check_disjoint
from neurollm.roi.region import ROI
from neurollm.roi.selection import localize, select_roi
from neurollm.roi.splitting import split_half
from neurollm.roi.testing import ROITest, test_roi

__all__ = [
    "ROI",
    "CrossFit",
    "ROISpec",
    "ROITest",
    "check_disjoint",
    "cross_fit",
    "localize",
    "make_roi",
    "select_roi",
    "split_half",
    "test_roi",
]


def __getattr__(name: str):
    """Load the file schema (pydantic) when it is first used."""
    if name in ("ROISpec", "make_roi"):
        from neurollm.roi import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
