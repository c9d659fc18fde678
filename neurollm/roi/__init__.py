"""Regions of interest: features chosen on some contents and tested on others, never on the same."""

from neurollm.roi.crossfit import CrossFit, cross_fit
from neurollm.roi.crossfit_rsa import CrossFitRSA, cross_fit_rsa
from neurollm.roi.disjoint import check_disjoint
from neurollm.roi.greedy import greedy_roi
from neurollm.roi.groups import cluster_rois, roi_from_labels
from neurollm.roi.region import ROI
from neurollm.roi.selection import localize, select_roi
from neurollm.roi.splitting import split_half
from neurollm.roi.stability import StabilitySelection, StabilitySelector, stability_roi, stability_selection
from neurollm.roi.testing import ROITest, test_roi

__all__ = [
    "ROI",
    "CrossFit",
    "CrossFitRSA",
    "ROISpec",
    "ROITest",
    "StabilitySelection",
    "StabilitySelector",
    "check_disjoint",
    "cluster_rois",
    "cross_fit",
    "cross_fit_rsa",
    "greedy_roi",
    "localize",
    "make_roi",
    "roi_from_labels",
    "select_roi",
    "split_half",
    "stability_roi",
    "stability_selection",
    "test_roi",
]


def __getattr__(name: str):
    """Load the file schema (pydantic) when it is first used."""
    if name in ("ROISpec", "make_roi"):
        from neurollm.roi import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
