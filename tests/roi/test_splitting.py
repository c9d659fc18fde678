"""Halves and folds share no item and no text."""

import numpy as np
import pandas as pd
import pytest
from roi.trialset import trials

from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi import check_disjoint, localize, split_half
from neurollm.roi.splitting import folds

DESIGN = CategoricalDesign("outcome")


def test_halves_are_disjoint_complete_and_accepted():
    X, obs = trials(n_items=21)
    for seed in range(5):
        first, second = split_half(obs, random_state=seed)
        assert (first ^ second).all() and not set(obs["item"][first]) & set(obs["item"][second])
        assert sorted((first.sum() // 2, second.sum() // 2)) == [10, 11]
        roi = localize(DESIGN, "won - lost", X[first], obs[first], name="x", n_features=2, n_perm=99)
        check_disjoint(roi, obs[second])
        with pytest.raises(DataMismatch):
            check_disjoint(roi, obs[first])


def test_the_seed_decides_and_rows_in_another_order_do_not():
    _, obs = trials()
    first, _ = split_half(obs, random_state=3)
    np.testing.assert_array_equal(first, split_half(obs, random_state=3)[0])
    assert any((split_half(obs, random_state=seed)[0] != first).any() for seed in (4, 5))
    obs.loc[2, "text"] = obs.loc[9, "text"]  # two items that share a text
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(obs))
        for item in ("item", None):
            kept = split_half(obs, item, random_state=3, stratify="outcome")[0]
            moved = split_half(obs.iloc[order], item, random_state=3, stratify="outcome")[0]
            np.testing.assert_array_equal(moved, kept[order])
            whole = folds(obs, item, 5, 1, obs["outcome"].to_numpy())
            again = folds(obs.iloc[order], item, 5, 1, obs["outcome"].to_numpy()[order])
            np.testing.assert_array_equal(again, whole[order])
    with pytest.raises(InvalidInput, match="random_state must be a whole number of at least 0, found 'a'"):
        split_half(obs, random_state="a")


def test_shared_texts_tie_items_together():
    X, obs = trials(n_items=12)
    obs.loc[2, "text"] = obs.loc[0, "text"]  # item 1 shows a sentence of item 0
    obs.loc[5, "text"] = "  " + obs.loc[3, "text"].upper()  # and item 2 one of item 1
    for seed in range(10):
        first, second = split_half(obs, random_state=seed)
        assert first[:6].all() or second[:6].all()
        roi = localize(DESIGN, "won - lost", X[first], obs[first], name="x", n_features=1, n_perm=99)
        check_disjoint(roi, obs[second])


def test_items_whose_names_differ_in_form_only_stay_together():
    obs = pd.DataFrame({"item": ["A", "a ", "b", "c", "d", "e"], "text": list("123456")})
    for seed in range(10):
        first, second = split_half(obs, random_state=seed)
        assert first[:2].all() or second[:2].all()


def test_conditions_between_items_are_balanced():
    obs = trials(n_items=40, between=True)[1]
    obs["outcome"] = np.repeat(["won", "lost"], [12, 28])
    for seed in range(5):
        first, second = split_half(obs, random_state=seed, stratify="outcome")
        for half in (first, second):
            assert obs["outcome"][half].value_counts().to_dict() == {"won": 6, "lost": 14}
    fold = folds(obs, "item", 4, 0, obs["outcome"].to_numpy())
    assert pd.crosstab(fold, obs["outcome"]).to_numpy().tolist() == [[7, 3]] * 4


def test_what_cannot_be_divided():
    _, obs = trials(n_items=6)
    with pytest.raises(InvalidInput, match="6 items make 1 group that share no text, too few for 2 parts"):
        split_half(obs.assign(text="the same"))
    with pytest.raises(InvalidInput, match="6 items make 6 groups that share no text, too few for 7 parts"):
        folds(obs, "item", 7, 0, np.zeros(12))
    with pytest.raises(InvalidInput, match="no column 'text'"):
        split_half(obs.drop(columns="text"))
    with pytest.raises(InvalidInput, match="no column 'level' to stratify by"):
        split_half(obs, stratify=["outcome", "level"])
