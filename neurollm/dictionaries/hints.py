"""Figures of a dictionary beside ranges that are often quoted as good.

The ranges are a rule of thumb, not a finding: they were never measured against anything a
dictionary is for, and they suit dictionaries of a few thousand features of which some per
cent are active. A figure outside is a reason to look, and no more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from neurollm.dictionaries.metrics import DictionaryMetrics

SOURCE = "rule of thumb, not measured"


class Hint(NamedTuple):
    """One figure and what is said about its size.

    Attributes
    ----------
    name : str
        Of the figure.
    value : float
    range : tuple of float
        What is called good, both ends included.
    advice : str
        Where the value lies, and what to look at if it is outside.
    """

    name: str
    value: float
    range: tuple[float, float]
    advice: str


_MANY = "many features active at once: raise the sparsity, or lower k"
_FEW = "few features active at once: usual in large dictionaries"
_DUPLICATES = "look for duplicates among the features with the largest cosines"
_RULES = (
    ("mean density", (0.02, 0.1), _FEW, _MANY),
    (
        "dead",
        (0.05, 0.2),
        "hardly any is dead: see that this is not because the mean density is high",
        "many are dead: an auxiliary loss for them, resampling, fewer features, or more evaluation tokens",
    ),
    ("gini", (0.2, 0.6), "features fire about equally often", "few features do most of the firing: see the dense ones"),
    ("decoder cosine, mean", (-0.3, 0.3), "features point away from each other", _DUPLICATES),
    ("decoder cosine, p95", (-1.0, 0.6), "", _DUPLICATES),
    ("decoder cosine, max", (-1.0, 0.95), "", "two features are nearly the same"),
)


def hints(metrics: DictionaryMetrics) -> list[Hint]:
    """Figures beside the ranges of the rule of thumb; those that do not exist are left out.

    Parameters
    ----------
    metrics : DictionaryMetrics

    Returns
    -------
    list of Hint
        Every advice names its source.
    """
    values = {"dead": metrics.dead, "gini": metrics.gini}
    if metrics.density.size:
        values["mean density"] = float(metrics.density.mean())
    if metrics.cosines is not None:
        cosines = {"mean": metrics.cosines.mean, "p95": metrics.cosines.p95, "max": metrics.cosines.maximum}
        values |= {f"decoder cosine, {name}": value for name, value in cosines.items()}
    return [_hint(name, values[name], *rule) for name, *rule in _RULES if math.isfinite(values.get(name, math.nan))]


def _hint(name: str, value: float, good: tuple[float, float], below: str, above: str) -> Hint:
    if good[0] <= value <= good[1]:
        where = "inside the range"
    else:
        where = f"below the range: {below}" if value < good[0] else f"above the range: {above}"
    return Hint(name, value, good, f"{where} ({SOURCE})")
