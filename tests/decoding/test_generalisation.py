"""Generalisation over domains: shared, reversed and absent codes, held-out items, calibrated p values."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier

from neurollm.decoding.decoder import Decoder
from neurollm.decoding.generalisation import generalisation_matrix
from neurollm.errors import DataMismatch, InvalidInput


class MeanDifference(ClassifierMixin, BaseEstimator):
    """The quickest linear classifier; writes down which items it was trained on."""

    def __init__(self, trained_on=None):
        self.trained_on = trained_on

    def __sklearn_clone__(self):
        return self  # one list for all clones

    def fit(self, X, y, groups):
        self.classes_ = np.unique(y)
        self.coef_ = X[y == self.classes_[1]].mean(axis=0) - X[y == self.classes_[0]].mean(axis=0)
        if self.trained_on is not None:
            self.trained_on.append(set(groups))
        return self

    def decision_function(self, X):
        return X @ self.coef_


def design(n_items=12, n_domains=3, codes=((3, 0), (3, 0), (3, 0)), seed=0, whole=False):
    """Trials of items × domains × levels; `codes`: what each domain adds to the first two features for "yes"."""
    rng = np.random.default_rng(seed)
    items, domains, y = (part.ravel() for part in np.indices((n_items, n_domains, 1 if whole else 2)))
    y = items % 2 if whole else y
    X = rng.normal(size=(items.size, 8)) + rng.normal(size=(n_items, 8))[items]
    X[:, :2] += np.array(codes)[domains] * y[:, None]
    return X, np.array(["no", "yes"])[y], items, np.array(["a", "b", "c"])[domains]


def test_a_shared_code_generalises_and_a_reversed_one_is_reported_below_chance():
    found = generalisation_matrix(MeanDifference(), *design(codes=((6, 0), (6, 0), (-6, 0))), n_perm=199)
    assert found.domains == ("a", "b", "c") and found.levels == ("no", "yes")
    np.testing.assert_array_equal(found.auroc > 0.8, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found.auroc < 0.2, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    assert (found.p_fwer <= 0.05).all() and (found.p <= found.p_fwer).all()
    assert (found.ci_low <= found.auroc).all() and (found.auroc <= found.ci_high).all()
    assert "2 of 6 pairs of domains are above chance and 4 below" in found.verdict()
    assert "turned round (trained in '" in found.verdict()


@pytest.mark.parametrize("codes", [((4, 0), (0, 4)), ((4, 0), (0, 0))])
def test_codes_of_their_own_do_not_generalise(codes):
    # Permuted labels alone call a fifth of these, and the classifier of noise in the second design twice as many.
    found = []
    for seed in range(40):
        data = design(n_domains=2, codes=codes, seed=seed)
        found.append(generalisation_matrix(MeanDifference(), *data, n_perm=19, n_boot=100, random_state=seed))
    assert np.mean([one.auroc[0, 0] for one in found]) > 0.9
    assert abs(np.mean([one.mean for one in found]) - 0.5) < 0.07
    smallest = [one.p_fwer[[0, 1], [1, 0]].min() for one in found]
    assert np.mean(np.array(smallest) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


@pytest.mark.parametrize("whole", [False, True])
def test_noise_is_calibrated(whole):
    smallest, areas, diagonal = [], [], []
    for seed in range(80):
        data = design(n_domains=2, codes=((0, 0), (0, 0)), seed=seed, whole=whole)
        found = generalisation_matrix(MeanDifference(), *data, cv=3, n_perm=19, n_boot=100, random_state=seed)
        smallest.append(found.p_fwer[[0, 1], [1, 0]].min())
        areas.append(found.auroc)
        diagonal.append(found.p.diagonal())
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / 80)
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert np.mean(np.array(smallest) <= 0.05) <= limit and np.mean(np.array(diagonal) <= 0.05) <= limit
    assert 0.25 < np.mean(np.array(diagonal) <= 0.5) < 0.75


def test_no_item_is_on_both_sides_and_cells_are_the_fold_areas():
    X, y, items, domains = design(n_items=8)
    items = items.astype(str)
    decoder = MeanDifference(trained_on=[])
    found = generalisation_matrix(decoder, X, y, items, domains, cv=4, n_perm=0)
    trained = iter(decoder.trained_on[:])
    for a in range(3):
        for fold in range(4):
            test, chosen = found.folds == fold, next(trained)
            assert chosen == set(items[~test]) and not chosen & set(items[test])
            train = (domains == "abc"[a]) & ~test
            model = MeanDifference().fit(X[train], y[train], items[train])
            np.testing.assert_allclose(found.scores[a, test], model.decision_function(X[test]))
    here = domains == "c"
    parts = [roc_auc_score(y[here & (found.folds == f)], found.scores[0, here & (found.folds == f)]) for f in range(4)]
    assert found.auroc[0, 2] == pytest.approx(np.mean(parts))  # 2 items in each fold
    assert found.mean == pytest.approx(found.auroc[~np.eye(3, dtype=bool)].mean())
    assert np.isnan(found.p).all() and np.isnan(found.p_fwer).all() and "no permutations" in found.verdict()


def test_a_decoder_does_what_it_does_in_one_training_part():
    X, y, items, domains = design(n_domains=2, codes=((5, 0), (-5, 0)))
    decoder = Decoder("ridge", selector="welch_t", n_features=2, n_perm=0, ensemble="single")
    found = generalisation_matrix(decoder, X, y, items, domains, cv=3, n_perm=0)
    train, test = (domains == "a") & (found.folds != 1), found.folds == 1
    alone = clone(decoder).fit(X[train], y[train], groups=items[train]).decision_function(X[test])
    np.testing.assert_allclose(found.scores[0, test], alone, rtol=1e-10)
    assert found.auroc[0, 0] > 0.9 and found.auroc[0, 1] < 0.1
    thin = generalisation_matrix(decoder, sparse.csr_matrix(X), y, items, domains, cv=3, n_perm=0)
    np.testing.assert_allclose(thin.scores, found.scores, rtol=1e-8)


def test_item_identity_does_not_leak_between_domains():
    # An item has one level and a strong fingerprint in both domains: a split that shares items gives 1.
    rng = np.random.default_rng(0)
    items, domains = (part.ravel() for part in np.indices((20, 2)))
    areas = []
    for seed in range(8):
        X = 5 * rng.normal(size=(20, 30))[items] + rng.normal(size=(40, 30))
        found = generalisation_matrix(RidgeClassifier(), X, items % 2, items, domains, n_perm=0, random_state=seed)
        areas.append(found.auroc)
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.2


def test_domains_with_items_of_their_own_are_tested_in_full():
    X, y, items, domains = design(n_items=10, n_domains=2, codes=((5, 0), (5, 0)))
    own = np.char.add(items.astype(str), domains)
    found = generalisation_matrix(RidgeClassifier(), X, y, own, domains, n_perm=0)
    assert found.n_shared.tolist() == [[10, 0], [0, 10]] and found.n_items.tolist() == [10, 10]
    assert found.n_trials.tolist() == [20, 20] and (found.auroc > 0.85).all()
    for domain in ("a", "b"):  # every fold can be tested in every domain
        assert np.unique(found.folds[domains == domain]).size == 5


def test_results_repeat_with_any_number_of_threads_and_become_a_table():
    X, y, items, domains = design(n_domains=2)
    one = generalisation_matrix(RidgeClassifier(), X, y, items, domains, cv=3, n_perm=19)
    two = generalisation_matrix(RidgeClassifier(), X, y, items, domains, cv=3, n_perm=19, n_jobs=2)
    np.testing.assert_array_equal(one.p_fwer, two.p_fwer)
    thin = generalisation_matrix(RidgeClassifier(), sparse.csc_matrix(X), y, items, domains, cv=3, n_perm=0)
    np.testing.assert_allclose(thin.scores, one.scores, atol=0.02)  # its solver for sparse data is iterative
    frame = one.to_frame()
    assert frame[["train", "test"]].to_numpy().tolist() == [["a", "a"], ["a", "b"], ["b", "a"], ["b", "b"]]
    assert frame["auroc"].tolist() == one.auroc.ravel().tolist() and frame["n_shared"].tolist() == [12] * 4


def test_wrong_calls_are_told():
    X, y, items, domains = design(n_domains=2)
    decoder = RidgeClassifier()
    with pytest.raises(DataMismatch, match=r"labels .* do not fit 47 trials"):
        generalisation_matrix(decoder, X[1:], y, items, domains)
    with pytest.raises(InvalidInput, match="exactly two levels"):
        generalisation_matrix(decoder, X, items, items, domains)
    with pytest.raises(InvalidInput, match="at least two domains"):
        generalisation_matrix(decoder, X, y, items, np.zeros(y.size))
    with pytest.raises(InvalidInput, match="'yes' needs at least 2 items in every domain, found 0 in 'b'"):
        generalisation_matrix(decoder, X, np.where(domains == "b", "no", y), items, domains)
    with pytest.raises(InvalidInput, match="no decision_function"):
        generalisation_matrix(KNeighborsClassifier(), X, y, items, domains)
    with pytest.raises(InvalidInput, match="at least 2 folds"):
        generalisation_matrix(decoder, X, y, items, domains, cv=1)
    for cv in (LeaveOneGroupOut(), 2.5, "x"):
        with pytest.raises(InvalidInput, match="cv must be a whole number"):
            generalisation_matrix(decoder, X, y, items, domains, cv=cv)
    with pytest.raises(InvalidInput, match="n_perm must be a whole number"):
        generalisation_matrix(decoder, X, y, items, domains, n_perm=2.5)
    for place, words in enumerate(("labels", "groups", "domains")):
        given = [values.astype(object) for values in (y, items, domains)]
        given[place][7] = None
        with pytest.raises(InvalidInput, match=f"{words} are missing"):
            generalisation_matrix(decoder, X, *given)


def test_numbers_are_sorted_as_numbers_and_an_anndata_is_read():
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    X, y, items, domains = design(n_domains=2)
    numbers = np.where(y == "yes", 10, 9)
    found = generalisation_matrix(RidgeClassifier(), X, numbers, items, domains, n_perm=0, n_boot=100)
    words = generalisation_matrix(RidgeClassifier(), X, y, items, domains, n_perm=0, n_boot=100)
    assert found.levels == ("9", "10")
    np.testing.assert_allclose(found.auroc, words.auroc)
    obs = pd.DataFrame({"y": y, "item": items, "domain": domains}, index=[str(k) for k in range(y.size)])
    data = anndata.AnnData(X, obs=obs)
    own = generalisation_matrix(RidgeClassifier(), data, "y", "item", "domain", n_perm=0, n_boot=100)
    np.testing.assert_allclose(own.auroc, words.auroc)
