"""Figures of RSA show what the result says."""

import io

import numpy as np
import pandas as pd
import pytest

from neurollm.designs import CategoricalDesign
from neurollm.plotting import plot_model_rdm, plot_rsa
from neurollm.rsa import FeatureRSA


@pytest.fixture(scope="module")
def rsa():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"outcome": ["$a_1$", "<b>"] * 15, "item": np.repeat(np.arange(15), 2)})
    X = rng.normal(size=(30, 25))
    X[::2, 4] += 5
    return FeatureRSA(CategoricalDesign("outcome"), ("categorical", "discriminative"), n_perm=200).fit(X, obs)


def test_significant_features_are_drawn_and_named(rsa):
    ax = plot_rsa(rsa.result_)
    assert [text.get_text() for text in ax.texts] == ["4", "4"]
    drawn = sum(len(points.get_offsets()) for points in ax.collections)
    assert drawn == 50
    assert [label.get_text() for label in ax.get_yticklabels()] == ["categorical", "discriminative"]
    ax.figure.savefig(io.BytesIO(), format="png")


def test_nothing_tested_is_said(rsa):
    nothing = FeatureRSA(CategoricalDesign("outcome"), n_perm=20, min_active=1000)
    result = nothing.fit(rsa.table_.values, rsa.table_.obs).result_
    assert "no feature could be tested" in [text.get_text() for text in plot_rsa(result).texts]


def test_pairs_left_out_are_blank_and_labels_literal(rsa):
    labels = rsa.table_.obs["outcome"].tolist()
    ax = plot_model_rdm(rsa.models_[1], labels)
    shown = ax.images[0].get_array()
    assert shown.mask.sum() == 15 * 14  # the others among themselves
    assert [label.get_text() for label in ax.get_yticklabels()] == ["$a_1$", "<b>"]
    assert not any(label.get_parse_math() for label in ax.get_yticklabels())
