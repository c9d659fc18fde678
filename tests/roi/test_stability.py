"""Stability selection: its bounds, its halves, planted features and noise."""

import re

import numpy as np
import pytest
from roi.trialset import trials
from scipy.optimize import linprog
from scipy.stats import ttest_ind

from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi import check_disjoint
from neurollm.roi.stability import (
    StabilitySelector,
    false_selections,
    half_choices,
    halves,
    stability_roi,
    stability_selection,
)
from neurollm.stats.rdms.labels import categorical_rdm

DESIGN = CategoricalDesign("outcome")


def mean_difference(X, y):
    return X[y].mean(axis=0) - X[~y].mean(axis=0)


def welch(X, y):
    return ttest_ind(X[y], X[~y], equal_var=False).statistic


def largest_share(B, tau, mean):
    """Most probability of a share of at least 2τ − 1, of all unimodal distributions on 0, 1/B … 1 with this mean."""
    values = np.arange(B + 1) / B
    reach = (values >= 2 * tau - 1 - 1e-9).astype(float)
    best = 0.0
    for mode in range(B + 1):
        steps = np.diff(np.eye(B + 1), axis=0)
        rising = np.where(np.arange(B)[:, None] < mode, -steps, steps)
        found = linprog(-reach, rising, np.zeros(B), np.stack([values, np.ones(B + 1)]), [mean, 1.0])
        best = max(best, -found.fun) if found.success else best
    return best


@pytest.mark.parametrize("B", [20, 30])
def test_the_unimodal_bound_is_the_worst_case_of_a_linear_programme(B):
    for tau in (0.6, 0.7, 0.75, 0.8, 0.9, 1.0):
        ratios = [largest_share(B, tau, theta**2) / theta**2 for theta in (0.03, 0.1)]
        bound = false_selections(10, 1000, tau, B) / (10 * 10 / 1000)
        assert max(ratios) <= bound * (1 + 1e-6)
        assert max(ratios) > 0.97 * bound  # and it is reached


def test_the_bound_without_assumptions():
    # Markov: a share of at least 2τ − 1 with mean θ² has probability θ²/(2τ − 1).
    assert false_selections(20, 1000, 0.75, 50, "none") == pytest.approx(0.8)
    for tau in (0.6, 0.9):
        assert false_selections(20, 1000, tau, 50) < false_selections(20, 1000, tau, 50, "none")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((20, 1000, 0.5, 50), "threshold must be above 0.5 and at most 1, found 0.5"),
        ((20, 1000, 0.9, 50, "r-concave"), "assumption is 'r-concave'"),
        ((700, 1000, 0.9, 50), "no bound is known for 700 of 1000 features"),
        ((300, 1000, 0.51, 50), "no bound is known for 300 of 1000 features on each half with threshold 0.51"),
    ],
)
def test_what_no_theorem_covers(given, sentence):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        false_selections(*given)


def test_halves_divide_groups_evenly_over_strata():
    group = np.repeat(np.arange(11), [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2])
    strata = (group % 2 + 5)[np.argsort(group, kind="stable")]
    seen = set()
    for pair in range(40):
        one, other = halves(group, strata, 3, pair)
        first, second = set(group[one]), set(group[other])
        assert not first & second and len(first) == len(second) == 5
        assert np.isin(group, list(first)).sum() == one.size  # whole groups
        assert abs(sum(g % 2 for g in first) - sum(g % 2 for g in second)) <= 1
        np.testing.assert_array_equal(one, halves(group, strata, 3, pair)[0])
        seen.add(frozenset(first))
    assert len(seen) > 30 and set().union(*seen) == set(range(11))


def test_frequencies_against_a_plain_count():
    rng = np.random.default_rng(0)
    X, group = rng.normal(size=(24, 15)), np.repeat(np.arange(12), 2)
    X[:, 4] = np.nan
    chosen, scores = np.zeros(15), []
    for pair in range(7):
        for rows in halves(group, group * 0, 1, pair):
            found = X[rows].mean(axis=0)
            chosen[np.argsort(-np.abs(np.nan_to_num(found)))[:3]] += 1
            scores.append(np.nan_to_num(found))
    two_sided = half_choices(lambda rows: X[rows].mean(axis=0), (group, group * 0), 3, 7, 1, one_sided=False)
    np.testing.assert_allclose(two_sided[0], chosen / 14)
    np.testing.assert_allclose(two_sided[1], np.mean(scores, axis=0))
    assert two_sided[0][4] == 0


@pytest.mark.parametrize("score", ["rsa", mean_difference, welch])
def test_planted_features_are_found_and_remembered(score, tmp_path):
    X, obs = trials(n_items=24, n_features=150, effect=2, n_carry=4)
    X[:, 3] *= -1
    found = stability_selection(DESIGN, X, obs, score=score, max_false=0.5, n_pairs=20)
    assert set(found.feature[found.selected]) >= {0, 1, 2, 3} and len(found.selected) <= 6
    kept = np.flatnonzero(found.frequency >= 0.75)
    assert set(found.selected) == set(kept) and np.all(np.diff(found.frequency[found.selected]) <= 0)
    assert found.expected_false <= 0.5 < false_selections(found.n_selected + 1, 150, 0.75, 20)
    # Levels are sorted, so the first is "lost", and what is larger for "won" has a negative sign.
    expected = {0: 1, 1: 1, 2: 1, 3: 1} if score == "rsa" else {0: -1, 1: -1, 2: -1, 3: 1}
    roi = found.roi("success")
    assert {f: s for f, s in zip(roi.feature, roi.signs, strict=True) if f < 4} == expected
    assert roi == stability_roi(DESIGN, X, obs, name="success", score=score, max_false=0.5, n_pairs=20)
    assert roi.method == "stability" and "are expected to be noise" in roi.selection
    assert type(roi).load(roi.save(tmp_path / "roi.json")) == roi
    with pytest.raises(DataMismatch, match="24 items"):
        check_disjoint(roi, obs)
    frame = found.to_frame()
    assert frame["selected"].sum() == len(found.selected) and frame["frequency"].between(0, 1).all()


@pytest.mark.parametrize("assumption", ["none", "unimodal"])
def test_noise_is_kept_no_more_often_than_promised(assumption):
    kept, bounds = [], []
    for seed in range(40):
        X, obs = trials(n_items=16, n_features=60, seed=seed, between=seed % 2 == 0)
        X[:, :30] += 2 * X[:, :1]  # features that depend on each other
        found = stability_selection(
            DESIGN, X, obs, score=mean_difference, n_selected=8, threshold=0.7, n_pairs=20, assumption=assumption
        )
        assert set(found.selected) == set(np.flatnonzero(found.frequency >= 0.7 - 1e-9))
        kept.append(len(found.selected))
        bounds.append(found.expected_false)
    assert np.mean(kept) <= bounds[0] + 3 * np.std(kept) / np.sqrt(40) and np.ptp(bounds) == 0
    assert bounds[0] == pytest.approx({"none": 64 / 60 / 0.4, "unimodal": 64 / 60 / (2 * (0.4 - 0.025))}[assumption])


def test_items_that_share_a_text_stay_together():
    X, obs = trials(n_items=8)
    obs["text"] = np.repeat(["one", "two", "three"], [8, 4, 4])
    with pytest.raises(InvalidInput, match="the items make 3 groups that share no text; at least 4 are needed"):
        stability_selection(DESIGN, X, obs, n_selected=3)
    obs["text"] = np.repeat(["one", "two", "three", "four"], [8, 2, 2, 4])
    stability_selection(DESIGN, X, obs, n_selected=3, n_pairs=2)


def test_the_most_stable_features_for_cross_fitting():
    X, obs = trials(n_items=16, n_features=50, effect=2, n_carry=3)
    D = categorical_rdm(obs["outcome"].to_numpy())
    chosen = StabilitySelector(3, n_selected=5)(X, D, obs["item"].to_numpy())
    assert set(chosen) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": "t"}, "score is 't'; it must be 'rsa' or a function of X and y"),
        ({"n_selected": 0}, "n_selected must be a whole number of at least 1, found 0"),
        ({"n_selected": 40}, "40 features vary, too few to choose 40 of them"),
        ({"n_pairs": 0}, "n_pairs must be a whole number of at least 1"),
        ({"max_false": 0}, "max_false must be above 0, found 0"),
        ({"max_false": 1e-6}, "with 40 features no choice keeps fewer than 1e-06 false ones"),
        (
            {"score": mean_difference, "target": "drew"},
            "target is 'drew'; a score of labels needs one of the conditions",
        ),
        ({"threshold": "a"}, "threshold must be a number, found 'a'"),
        ({"threshold": "a", "n_selected": 3}, "threshold must be a number, found 'a'"),
        ({"max_false": "a"}, "max_false must be a number, found 'a'"),
        ({"random_state": "a"}, "random_state must be a whole number of at least 0, found 'a'"),
        ({"min_active": None}, "min_active must be a whole number of at least 0, found None"),
        ({"comparison": "pearsn"}, "no comparison 'pearsn'; did you mean 'pearson'?"),
        ({"comparison": "bogus", "score": mean_difference}, "there is no comparison 'bogus'"),
        ({"score": lambda X, y: X[y].mean()}, "one number for each of the 40 features it is given, found shape ()"),
        ({"score": lambda X, y: X.T}, "one number for each of the 40 features it is given, found shape (40, 20)"),
        ({"score": lambda X, y: ["a"] * 40}, "the score must return numbers, found ['a', 'a'"),
        ({"scale": "rank"}, "scale is 'rank'; it is one of 'raw', 'log1p', 'binary'"),
    ],
)
def test_what_is_refused(change, sentence):
    X, obs = trials()
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        stability_selection(DESIGN, X, obs, **change)


def test_arrays_and_ids_that_do_not_belong_together():
    X, obs = trials()
    with pytest.raises(
        DataMismatch, match=r"stability_selection: X has shape \(40, 40\) but the trial table has 1 rows"
    ):
        stability_selection(DESIGN, X, obs[:1])
    with pytest.raises(DataMismatch, match="stability_selection: 2 feature ids were given for 40 columns"):
        stability_selection(DESIGN, X, obs, features=[1, 2])
    with pytest.raises(InvalidInput, match=r"X must be a table of trials × features, found shape \(40,\)"):
        stability_selection(DESIGN, X[:, 0], obs)


@pytest.mark.parametrize("item", ["item", None])
@pytest.mark.parametrize("score", ["rsa", mean_difference])
def test_the_order_of_the_rows_decides_nothing(item, score):
    X, obs = trials(n_items=16 if item else 24, effect=1, n_carry=3, between=item is None)
    design = DESIGN if item else CategoricalDesign("outcome", item=None, item_reason="drawn one by one")
    options = {"score": score, "n_selected": 5, "n_pairs": 5}
    first = stability_selection(design, X, obs, **options)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(X))
        again = stability_selection(design, X[order], obs.iloc[order], **options)
        np.testing.assert_array_equal(again.frequency, first.frequency)
        assert again.selected.tolist() == first.selected.tolist() and again.roi("x") == first.roi("x")


def test_nothing_stable_is_no_region():
    X, obs = trials(n_features=80)
    with pytest.raises(InvalidInput, match=r"no feature was chosen on at least 100% of the halves; the most frequent"):
        stability_roi(DESIGN, X, obs, name="x", threshold=1.0, n_selected=2)
