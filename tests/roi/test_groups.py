"""Regions that are declared by labels and by directions."""

import re

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.roi import ROI, check_disjoint
from neurollm.roi.groups import cluster_rois, roi_from_labels

LABELS = {3: "The word 'not'", 7: "notes and music", 9: "NEVER again", 12: "commas, (not) stops", "a": "ﬁne arts"}


def test_words_are_whole_and_case_does_not_matter():
    roi = roi_from_labels(LABELS, "negation", words=["Not", "never"])
    assert roi.feature == (3, 9, 12) and roi.is_declared and roi.method == "declared"
    assert roi.selection == (
        "3 of 5 features whose label (labels) holds 'Not', 'never': 'The word 'not'', 'NEVER again', "
        "'commas, (not) stops'"
    )
    assert roi_from_labels(LABELS, "x", words=["fine arts"]).feature == ("a",)  # ligatures, phrases
    assert roi_from_labels({1: "costs (in $)"}, "x", words=["(in $)"]).feature == (1,)  # no regular expression
    check_disjoint(roi, None)


def test_patterns():
    assert roi_from_labels(LABELS, "x", pattern=r"\bnot").feature == (3, 7, 12)
    assert roi_from_labels(LABELS, "x", pattern="^never").feature == (9,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "give either words or a pattern"),
        ({"words": ["a"], "pattern": "a"}, "give either words or a pattern"),
        ({"words": "not"}, "a list of words, found words = 'not'"),
        ({"words": ["not", " "]}, "one of the words is empty"),
        ({"pattern": "("}, "the pattern '(' is no regular expression"),
        ({"words": ["verb"]}, "none of the 5 labels holds 'verb'"),
        ({"labels": ["not"], "words": ["not"]}, "expected a mapping from feature to label"),
    ],
)
def test_labels_that_are_refused(change, sentence):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        roi_from_labels(**{"labels": LABELS, "name": "x", **change})


def planted(seed=0):
    rng = stream(seed, "clusters")
    centres = np.repeat(np.eye(6)[:3] * 5, [8, 5, 3], axis=0)
    return np.vstack([centres + 0.3 * rng.normal(size=centres.shape), np.zeros((1, 6))])


def test_planted_groups_are_found():
    rois = cluster_rois(planted(), threshold=0.7, name="way")
    assert [roi.feature for roi in rois] == [tuple(range(8)), tuple(range(8, 13)), tuple(range(13, 16))]
    assert [roi.name for roi in rois] == ["way 1", "way 2", "way 3"] and all(roi.is_declared for roi in rois)
    assert rois[0].selection == (
        "a group of 8 by average linkage of the cosines of 16 directions, joined at a mean cosine of at least 0.7"
    )
    assert [roi.feature for roi in cluster_rois(planted(), n_clusters=3)] == [roi.feature for roi in rois]
    named = cluster_rois(planted(), n_clusters=3, min_size=4, features=[f"f{i}" for i in range(17)])
    assert len(named) == 2 and named[1].feature == ("f8", "f9", "f10", "f11", "f12")


def test_groups_are_those_of_sklearn():
    directions = stream(1, "clusters").normal(size=(60, 4))
    for rule in ({"n_clusters": 7}, {"threshold": 0.4}):
        ours = {roi.feature for roi in cluster_rois(directions, min_size=1, **rule)}
        theirs = AgglomerativeClustering(
            rule.get("n_clusters"),
            metric="cosine",
            linkage="average",
            distance_threshold=None if "n_clusters" in rule else 0.6,
        ).fit_predict(directions)
        assert ours == {tuple(np.flatnonzero(theirs == group).tolist()) for group in np.unique(theirs)}


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({}, InvalidInput, "give either n_clusters or threshold"),
        ({"n_clusters": 3, "threshold": 0.5}, InvalidInput, "give either n_clusters or threshold"),
        ({"n_clusters": 0}, InvalidInput, "n_clusters must be a whole number of at least 1, found 0"),
        ({"threshold": 1.0}, InvalidInput, "threshold is a mean cosine, at least -1 and below 1, found 1.0"),
        ({"n_clusters": 2, "min_size": 0}, InvalidInput, "min_size must be a whole number of at least 1"),
        ({"threshold": 0.999, "min_size": 9}, InvalidInput, "no group of 9 directions joined at a mean cosine"),
        ({"n_clusters": 2, "features": [1]}, DataMismatch, "1 feature ids were given for 17 directions"),
        ({"n_clusters": 2, "directions": np.array([[np.inf, 1]])}, InvalidInput, "a table of finite numbers"),
        ({"n_clusters": 2, "directions": np.eye(10_001, 1) + 1}, InvalidInput, "10,001 directions are not zero"),
    ],
)
def test_directions_that_are_refused(change, kind, sentence):
    with pytest.raises(kind, match=re.escape(sentence)):
        cluster_rois(**{"directions": planted(), **change})


def test_declared_regions_are_saved_and_loaded(tmp_path):
    for roi in (*cluster_rois(planted(), n_clusters=3), roi_from_labels(LABELS, "x", words=["not"])):
        assert ROI.load(roi.save(tmp_path / "roi.json")) == roi
