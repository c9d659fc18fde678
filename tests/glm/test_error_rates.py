"""Family-wise error on null data with item effects, and why trials must not be the unit."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from neurollm.designs import CategoricalDesign
from neurollm.glm import FeatureGLM

N_DATA, N_PERM, N_FEATURES = 300, 99, 12
LOW, HIGH = binom.ppf([0.0005, 0.9995], N_DATA, 0.05) / N_DATA


def null_trials(seed, n_items, n_per_item=4):
    """Zero-inflated skewed activations: a share of the variation belongs to the item."""
    rng = np.random.default_rng(seed)
    item = np.repeat(np.arange(n_items), n_per_item)
    active = rng.random((n_items, N_FEATURES)) < 0.5
    level = rng.lognormal(size=(n_items, N_FEATURES))
    X = np.where(active, level, 0)[item] * rng.lognormal(sigma=0.5, size=(item.size, N_FEATURES))
    return X, item


def rejections(make, item_column="item", **options):
    found = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(N_DATA):
            X, obs = make(seed)
            model = FeatureGLM(CategoricalDesign("g", item=item_column), n_perm=N_PERM, random_state=seed, **options)
            result = model.fit(X, obs).compute_contrast("a - b" if obs["g"].nunique() == 2 else "a - 0.5*b - 0.5*c")
            found += bool(np.nanmin(result.p_fwer) <= 0.05)
    return found / N_DATA


def within(seed, levels="ab"):
    X, item = null_trials(seed, 14, 2 * len(levels))
    return X, pd.DataFrame({"item": item, "g": np.tile(list(levels), len(item) // len(levels))})


def between(seed):
    X, item = null_trials(seed, 20)
    return X, pd.DataFrame({"item": item, "g": np.where(item < 6, "a", "b"), "trial": np.arange(len(item))})


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_unbalanced_groups_of_items_keep_the_level(alternative):
    assert LOW <= rejections(between, alternative=alternative) <= HIGH


def test_paired_levels_keep_the_level():
    assert LOW <= rejections(within) <= HIGH


def test_three_paired_levels_keep_the_level():
    assert LOW <= rejections(lambda seed: within(seed, "abc")) <= HIGH


def test_label_blind_filter_and_transform_keep_the_level():
    assert LOW <= rejections(between, scale="log1p", min_active_items=8) <= HIGH


def test_trials_as_units_would_be_liberal():
    assert rejections(between, "trial") > 0.3
