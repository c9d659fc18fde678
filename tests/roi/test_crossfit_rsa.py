"""Held-out RSA of regions: explicit RDMs, planted truth, and the artefact of double dipping."""

import re

import numpy as np
import pytest
from roi.trialset import trials
from scipy import sparse

from neurollm.designs import CategoricalDesign, DiscriminativeDesign, FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi.crossfit_rsa import cross_fit_rsa, region_scores
from neurollm.roi.stability import StabilitySelector
from neurollm.rsa import ModelRDM
from neurollm.stats.rdms.greedy import greedy_selection
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm
from neurollm.stats.rdms.scores import rsa_scores
from neurollm.stats.shufflings import within_item

DESIGN = CategoricalDesign("outcome")


def explicit(X, D, comparison):
    if comparison == "whitened":
        H = np.eye(len(X)) - 1 / len(X)
        K, G = -H @ D @ H / 2, H @ X @ X.T @ H
        return np.sum(K * G) / np.sqrt(np.sum(K * K) * np.sum(G * G))
    rows, columns = np.triu_indices(len(X), 1)
    d, kept = ((X[rows] - X[columns]) ** 2).sum(axis=1), ~np.isnan(D[rows, columns])
    return np.corrcoef(d[kept], D[rows, columns][kept])[0, 1]


def test_region_scores_against_explicit_rdms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 9, 3))
    for D in (categorical_rdm(np.arange(9) % 3), discriminative_rdm(np.arange(9) % 3, 1)):
        many = np.stack([D[np.ix_(order, order)] for order in (rng.permutation(9) for _ in range(5))])
        for comparison in ("pearson", "whitened"):
            if comparison == "pearson" or not np.isnan(D).any():
                expected = [explicit(one, model, comparison) for one, model in zip(x, many, strict=True)]
                np.testing.assert_allclose(region_scores(x, many, comparison), expected, rtol=1e-9)
    flat = region_scores(np.ones((1, 4, 2)), categorical_rdm([0, 0, 1, 1])[None], "pearson")
    assert np.isnan(flat[0])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("comparison", ["pearson", "whitened"])
@pytest.mark.parametrize("select", ["greedy", "rsa"])
def test_against_the_procedure_by_hand(kind, comparison, select):
    X, obs = trials(n_items=12, effect=1, n_carry=3)
    X[np.abs(X) < 0.5] = 0
    data = sparse.csr_array(X) if kind == "sparse" else X
    found = cross_fit_rsa(DESIGN, data, obs, n_features=4, n_splits=3, comparison=comparison, select=select, n_perm=19)
    order = np.lexsort((obs["outcome"], obs["item"]))
    X, fold, D = X[order], found.fold[order], categorical_rdm(obs["outcome"].to_numpy()[order])
    weights = np.bincount(fold) / len(fold)

    def by_hand(D):
        regions, held_out, inside = [], [], []
        for number in range(3):
            train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            DD = D[np.ix_(train, train)]
            if select == "greedy":
                chosen = greedy_selection(X[train], DD, 4, comparison=comparison).feature
            else:
                chosen = np.argsort(-rsa_scores(X[train], DD, comparison))[:4]
            unit = X[:, chosen] / X[train][:, chosen].std(axis=0)
            regions.append(tuple(chosen))
            held_out.append(explicit(unit[test], D[np.ix_(test, test)], comparison))
            inside.append(explicit(unit[train], DD, comparison))
        return tuple(regions), held_out, inside

    selected, held_out, inside = by_hand(D)
    assert found.selected == selected
    np.testing.assert_allclose(found.fold_r, held_out, rtol=1e-9)
    assert found.r == pytest.approx(weights @ held_out) and found.in_sample == pytest.approx(weights @ inside)
    draws = within_item(12, (2,)).draw(19, 0)
    null = np.array([weights @ by_hand(D[np.ix_(one, one)])[1] for one in draws.index])
    assert found.null_mean == pytest.approx(null.mean())
    assert found.p == ((null >= found.r - 1e-9).sum() + 1) / 20
    frame = found.to_frame()
    assert frame["frequency"].sum() == pytest.approx(4) and frame["frequency"].is_monotonic_decreasing


def test_a_planted_region_is_found_held_out():
    X, obs = trials(n_items=24, n_features=200, effect=2, n_carry=5)
    found = cross_fit_rsa(DESIGN, X, obs, n_features=5, n_perm=99)
    assert found.p == 0.01 and found.r > 0.4 and set(found.feature[:5]) == set(range(5))
    assert found.verdict().startswith(
        "categorical: regions of 5 features chosen in each of 5 folds have a held-out r of"
    )
    again = cross_fit_rsa(DESIGN, X, obs, n_features=5, n_perm=99)
    assert (again.r, again.p, again.selected) == (found.r, found.p, found.selected)


@pytest.mark.parametrize(
    ("select", "within", "n_sets"),
    [("greedy", True, 60), ("greedy", False, 60), ("rsa", True, 60), (StabilitySelector(4, 8, n_pairs=2), True, 10)],
)
def test_noise_looks_like_a_region_in_sample_and_like_nothing_held_out(select, within, n_sets):
    found = []
    for seed in range(n_sets):
        X, obs = trials(n_items=12 if within else 24, n_features=100, seed=100 + seed, between=not within)
        options = {"n_features": 4, "n_splits": 3, "n_perm": 39 if n_sets > 10 else 19, "random_state": seed}
        one = cross_fit_rsa(DESIGN, X, obs, select=select, **options)
        found.append((one.r, one.in_sample, one.p, one.null_mean))
    r, inside, p, null = np.array(found).T
    assert inside.min() > 0.15 and inside.mean() > 0.25
    assert abs(r.mean()) < 3 * r.std() / np.sqrt(n_sets) + 0.02 and abs(null.mean()) < 0.05
    assert np.mean(p <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / n_sets)
    assert p.mean() < 0.75 and p.mean() > 0.25


def test_a_function_chooses_and_pairs_may_be_left_out():
    X, obs = trials(n_items=12, effect=2, n_carry=2)
    seen = []

    def first_two(values, D, item):
        seen.append((values.shape, D.shape, np.unique(item).size))
        return np.array([0, 1])

    found = cross_fit_rsa(DESIGN, X, obs, n_features=2, n_splits=3, n_perm=19, select=first_two)
    assert found.selected == ((0, 1),) * 3 and set(seen) == {((16, 40), (16, 16), 8)}
    rng = np.random.default_rng(0)
    obs = obs.loc[np.repeat(obs.index, 2)].reset_index(drop=True)
    obs["outcome"] = np.resize(["won", "lost", "drew"], 48)
    obs["item"], obs["text"] = np.repeat(np.arange(16), 3), [f"text {i}" for i in range(48)]
    X = rng.normal(size=(48, 30))
    X[:, :2] += 4.0 * (obs["outcome"] == "won").to_numpy()[:, None]
    for select in ("greedy", "rsa"):
        found = cross_fit_rsa(
            DiscriminativeDesign("outcome", "won"), X, obs, "discriminative", n_features=2, select=select, n_perm=19
        )
        assert set(found.feature[found.frequency == 1]) == {0, 1} and found.p == 0.05


def test_blocks_and_trials_without_items():
    X, obs = trials(n_items=24, between=True, effect=3, n_carry=2)
    obs["block"] = np.repeat(["first", "second"], 12)
    options = {"n_features": 2, "n_splits": 3, "n_perm": 39}
    blocked = cross_fit_rsa(CategoricalDesign("outcome", blocks="block"), X, obs, **options)
    assert "inside each of 2 blocks" in blocked.sentence and blocked.p == 0.025
    free = CategoricalDesign("outcome", item=None, item_reason="drawn one by one")
    found = cross_fit_rsa(free, X, obs.drop(columns="item"), **options)
    assert found.n_items == 24 and found.p == 0.025 and set(found.feature[:2]) == {0, 1}


def test_scales_come_from_the_items_that_choose():
    X, obs = trials(n_items=12, effect=3, n_carry=2)
    found = cross_fit_rsa(DESIGN, X, obs, n_features=2, n_splits=3, n_perm=19)
    for factor in (1e-4, 1e4):
        scaled = cross_fit_rsa(
            DESIGN, X * factor ** np.arange(40)[None].clip(0, 1), obs, n_features=2, n_splits=3, n_perm=19
        )
        np.testing.assert_allclose(scaled.fold_r, found.fold_r, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"select": "best"}, "select is 'best'; it must be 'greedy', 'rsa' or a function"),
        ({"n_splits": 1}, "n_splits must be a whole number of at least 2, found 1"),
        ({"n_perm": 5}, "n_perm must be a whole number of at least 19, found 5"),
        ({"n_features": 0}, "n_features must be a whole number of at least 1, found 0"),
        ({"n_features": 41}, "40 features vary, fewer than n_features = 41"),
        ({"n_splits": 13}, "too few for 13 parts"),
        ({"n_splits": 12}, "says the same of all pairs inside a part of 2 rows; use fewer folds"),
        ({"select": lambda values, D, item: [0, 0]}, "select must return 2 different columns"),
        ({"select": lambda values, D, item: [0.5, 1.5]}, "select must return 2 different columns, found (2,) float64"),
        ({"select": lambda values, D, item: [0, 99]}, "numbered 0 to 39 as it was given them, found 99"),
        ({"select": lambda values, D, item: [-1, 3]}, "numbered 0 to 39 as it was given them, found -1"),
        (
            {"select": lambda values, D, item: [[0], [1, 2]]},
            "select must return 2 different columns, found [[0], [1, 2]",
        ),
        (
            {"comparison": "pearsn"},
            "comparison is 'pearsn'; it must be 'pearson' or 'whitened'; did you mean 'pearson'?",
        ),
        ({"comparison": "bogus", "select": lambda values, D, item: [0, 1]}, "comparison is 'bogus'; it must be"),
        ({"random_state": "a"}, "cross_fit_rsa: random_state must be a whole number of at least 0, found 'a'"),
        ({"min_active": "a"}, "min_active must be a whole number of at least 0, found 'a'"),
        ({"scale": "rank"}, "scale is 'rank'; it is one of 'raw', 'log1p', 'binary'"),
    ],
)
def test_what_is_refused(change, sentence):
    X, obs = trials(n_items=12)
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        cross_fit_rsa(DESIGN, X, obs, **{"n_features": 2, "n_perm": 19, **change})


def test_arrays_and_ids_that_do_not_belong_together():
    X, obs = trials(n_items=12)
    with pytest.raises(
        InvalidInput, match=r"cross_fit_rsa: X must be a table of trials × features, found shape \(24,\)"
    ):
        cross_fit_rsa(DESIGN, X[:, 0], obs, n_features=2)
    with pytest.raises(DataMismatch, match="cross_fit_rsa: 3 feature ids were given for 40 columns"):
        cross_fit_rsa(DESIGN, X, obs, n_features=2, features=[1, 2, 3])
    with pytest.raises(InvalidInput, match="cross_fit_rsa: features must be a list of ids, found 7"):
        cross_fit_rsa(DESIGN, X, obs, n_features=2, features=7)
    with pytest.raises(InvalidInput, match="comparison is 'cosine'; it must be 'pearson' or 'whitened'"):
        region_scores(X[None], categorical_rdm(obs["outcome"])[None], "cosine")


def test_an_interaction_across_items_is_held_out_by_items():
    X, obs = trials(n_items=24)
    obs["kind"] = np.repeat(np.resize(["x", "y"], 24), 2)
    both = (obs["outcome"] == "won").to_numpy() ^ (obs["kind"] == "x").to_numpy()
    X[:, :2] += 3 * both[:, None]
    X[:, 2:6] += 3 * (obs["outcome"] == "won").to_numpy()[:, None]  # a main effect alone
    design = FactorialDesign({"outcome": ("won", "lost"), "kind": ("x", "y")})
    found = cross_fit_rsa(design, X, obs, "outcome:kind", n_features=2, n_splits=3, n_perm=19)
    assert set(found.feature[:2]) == {0, 1} and found.p == 0.05 and found.r > 0.3


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("item", ["item", None])
@pytest.mark.parametrize("select", ["greedy", StabilitySelector(3, 6, n_pairs=3)])
def test_the_order_of_the_rows_decides_nothing(item, select, kind):
    X, obs = trials(n_items=24 if item is None else 12, effect=0.5, n_carry=3, between=item is None)
    copies = np.r_[np.arange(24), np.arange(12)]  # some contents in two wordings
    obs = obs.iloc[copies].assign(template=np.repeat(["t0", "t1"], [24, 12])).reset_index(drop=True)
    obs["text"] += obs["template"]
    X = X[copies] + 0.3 * np.random.default_rng(1).normal(size=(36, 40))
    design = DESIGN if item else CategoricalDesign("outcome", item=None, item_reason="drawn one by one")
    D = categorical_rdm(obs["outcome"].to_numpy())
    form = sparse.csr_array if kind == "sparse" else np.asarray

    def run(order):
        model = ModelRDM("mine", D[np.ix_(order, order)], of_conditions=True)
        options = {"n_features": 3, "n_splits": 3, "n_perm": 39, "select": select}
        return cross_fit_rsa(design, form(X[order]), obs.iloc[order], model, **options)

    first = run(np.arange(36))
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(36)
        again = run(order)
        assert (again.p, again.r, again.selected) == (first.p, first.r, first.selected)
        assert again.null_mean == first.null_mean and again.fold_r.tolist() == first.fold_r.tolist()
        np.testing.assert_array_equal(again.fold, first.fold[order])


def test_the_scale_of_the_data_decides_nothing():
    X, obs = trials(n_items=12, effect=2, n_carry=2)
    found = cross_fit_rsa(DESIGN, X, obs, n_features=2, n_splits=3, n_perm=19)
    for factor in (1e-200, 1e200):
        scaled = cross_fit_rsa(DESIGN, X * factor, obs, n_features=2, n_splits=3, n_perm=19)
        assert scaled.selected == found.selected and scaled.r == pytest.approx(found.r) and scaled.p == found.p
