"""Regions declared without any trial: by labels of features, or by the directions they write to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi.contents import normalised
from neurollm.roi.region import ROI
from neurollm.validation import listed, shortened, shown

_MOST = 10_000  # directions: their distances take 400 MB
_TOLD = 3  # labels in a reason


def roi_from_labels(
    labels: Mapping[int | str, str],
    name: str,
    *,
    words: Sequence[str] = (),
    pattern: str | None = None,
    source: str = "labels",
) -> ROI:
    """The features whose label speaks of something.

    Labels are made from contexts in which features are active, not from the trials of an experiment, so the region
    counts as declared. If labels were made from the trials that will be tested, this is not true: do not.

    Parameters
    ----------
    labels : mapping of feature id to text
    name : str
    words : sequence of str
        Words or phrases; a label matches if it holds one of them as whole words, whatever their case.
    pattern : str, optional
        Regular expression instead, searched in labels as they are, without regard to case. Give one of the two.
    source : str, default="labels"
        Where the labels come from, for the reason that the region keeps.

    Returns
    -------
    ROI

    Raises
    ------
    InvalidInput
        Neither or both are given, the pattern is no regular expression, or no label matches.

    Examples
    --------
    >>> labels = {3: "the word 'not'", 7: "notes and music", 9: "Never again", 12: "commas"}
    >>> roi_from_labels(labels, "negation", words=["not", "never"]).feature
    (3, 9)
    """
    if isinstance(words, str) or not isinstance(labels, Mapping):
        found = f"words = {shown(words)}" if isinstance(words, str) else f"labels = {type(labels).__name__}"
        raise InvalidInput(
            f"roi_from_labels: expected a mapping from feature to label and a list of words, found {found}."
        )
    if bool(words) == (pattern is not None):
        raise InvalidInput("roi_from_labels: give either words or a pattern, which says what labels are looked for.")
    if pattern is not None:
        try:
            wanted, told = re.compile(pattern, re.IGNORECASE), f"matches the pattern {shown(pattern)}"
        except re.error as error:
            raise InvalidInput(
                f"roi_from_labels: the pattern {shown(pattern)} is no regular expression ({error})."
            ) from None
        texts = {feature: str(label) for feature, label in labels.items()}
    else:
        wanted, told = _any_of(words), f"holds {listed(words)}"
        texts = {feature: normalised(label) for feature, label in labels.items()}
    found = [feature for feature, text in texts.items() if wanted.search(text)]
    if not found:
        raise InvalidInput(f"roi_from_labels: none of the {len(labels):,} labels {told}.")
    some = ", ".join(f"'{shortened(labels[feature])}'" for feature in found[:_TOLD])
    more = " …" if len(found) > _TOLD else ""
    return ROI.declared(
        name, found, f"{len(found)} of {len(labels):,} features whose label ({source}) {told}: {some}{more}"
    )


def cluster_rois(
    directions: np.ndarray,
    *,
    n_clusters: int | None = None,
    threshold: float | None = None,
    min_size: int = 2,
    features: Iterable[int | str] | None = None,
    name: str = "cluster",
) -> tuple[ROI, ...]:
    """Groups of features whose directions point the same way.

    Average linkage of cosines: two groups are joined if the mean cosine between their members is large. No trial is
    looked at, so the regions count as declared.

    Parameters
    ----------
    directions : ndarray, shape (V, d)
        Such as decoder rows; at most 10,000. Directions of zeros are left out.
    n_clusters : int, optional
        Groups into which all directions are divided.
    threshold : float, optional
        Smallest mean cosine at which groups are joined. Give one of the two.
    min_size : int, default=2
        Smaller groups are no regions.
    features : iterable, optional
        Feature ids; default 0 … V−1.
    name : str, default="cluster"
        Regions are called ``name 1``, ``name 2`` …, the largest first.

    Returns
    -------
    tuple of ROI
        Features in the order of `directions`.

    Raises
    ------
    InvalidInput
        Neither or both are given or out of range, the directions are no table of finite numbers, or no group is large
        enough.
    DataMismatch
        There are not as many ids as directions.

    Examples
    --------
    >>> directions = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    >>> [roi.feature for roi in cluster_rois(directions, threshold=0.9)]
    [(0, 1), (2, 3)]
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    directions = np.asarray(directions)
    if directions.ndim != 2 or directions.dtype.kind not in "fiu" or not np.isfinite(directions).all():
        raise InvalidInput("cluster_rois: directions must be a table of finite numbers, one row per feature.")
    ids = list(range(len(directions))) if features is None else np.asarray(features).tolist()
    if len(ids) != len(directions):
        raise DataMismatch(f"cluster_rois: {len(ids)} feature ids were given for {len(directions)} directions.")
    used = np.flatnonzero(np.any(directions != 0, axis=1))
    rule, cut = _rule(n_clusters, threshold, min_size, used.size)
    unit = directions[used] / np.linalg.norm(directions[used].astype(float), axis=1)[:, None]
    distance = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform((distance + distance.T) / 2, checks=False), "average")
    groups = fcluster(tree, cut, "maxclust" if threshold is None else "distance")
    members = [used[groups == group] for group in np.unique(groups)]
    members = sorted((one for one in members if one.size >= min_size), key=lambda one: (-one.size, one[0]))
    if not members:
        raise InvalidInput(f"cluster_rois: no group of {min_size} directions {rule}; the largest is smaller.")
    told = f"average linkage of the cosines of {used.size:,} directions, {rule}"
    return tuple(
        ROI.declared(f"{name} {number}", [ids[place] for place in one], f"a group of {one.size} by {told}")
        for number, one in enumerate(members, 1)
    )


def _any_of(words: Sequence[Any]) -> re.Pattern[str]:
    """Whole words or phrases, in the form in which labels are compared."""
    plain = [normalised(word) for word in words]
    if not all(plain):
        raise InvalidInput("roi_from_labels: one of the words is empty.")
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in plain))


def _rule(n_clusters: Any, threshold: Any, min_size: Any, count: int) -> tuple[str, float]:
    """The rule in words, and where the tree is cut."""
    if (n_clusters is None) == (threshold is None):
        raise InvalidInput("cluster_rois: give either n_clusters or threshold, which says when groups are joined.")
    for what, value, least in (("n_clusters", n_clusters, 1), ("min_size", min_size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least):
            raise InvalidInput(f"cluster_rois: {what} must be a whole number of at least {least}, found {value!r}.")
    if not 2 <= count <= _MOST:
        raise InvalidInput(
            f"cluster_rois: {count:,} directions are not zero; between 2 and {_MOST:,} can be compared with each "
            "other, so give part of them (such as the features that are active)."
        )
    if threshold is None:
        return f"divided into {n_clusters}", n_clusters
    if isinstance(threshold, bool) or not -1 <= threshold < 1:
        raise InvalidInput(f"cluster_rois: threshold is a mean cosine, at least -1 and below 1, found {threshold!r}.")
    return f"joined at a mean cosine of at least {threshold:g}", 1 - threshold
