"""Selectors against plain formulas, dense and sparse, with ties, dead and broken features."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from neurollm.decoding.selectors import SELECTORS, select
from neurollm.errors import InvalidInput

QUICK = [name for name in SELECTORS if name != "mutual_information"]


def sparse_trials(n=40, n_features=60, seed=0):
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((n, n_features)) < 0.3, rng.exponential(size=(n, n_features)), 0)
    y = np.arange(n) % 5 < 2
    X[y, 7] += 1 + rng.exponential(size=y.sum())
    return X, y


def correlation_with_rdm(x, y, kind):
    """r of the squared differences of one feature with a model RDM, pair by pair."""
    data, model = [], []
    for i in range(len(x)):
        for j in range(i):
            within, across = y[i] and y[j], y[i] != y[j]
            value = {
                "rsa_categorical": float(across),
                "rsa_discriminative": 0.0 if within else 1.0 if across else None,
                "rsa_coherence": None if across else 0.0 if within else 1.0,
            }[kind]
            if value is not None:
                data.append((x[i] - x[j]) ** 2)
                model.append(value)
    return np.corrcoef(data, model)[0, 1]


def expected(name, x, y):
    own, other = x[y], x[~y]
    if name.startswith("rsa"):
        r = correlation_with_rdm(x, y, name)
        return abs(r) if name == "rsa_coherence" else r
    return {
        "mean_difference": lambda: abs(own.mean() - other.mean()),
        "welch_t": lambda: abs(stats.ttest_ind(own, other, equal_var=False).statistic),
        "auroc": lambda: abs(roc_auc_score(y, x) - 0.5),
        "maximum_activation": lambda: max(own.mean(), other.mean()),
    }[name]()


@pytest.mark.parametrize("name", [name for name in QUICK if name not in ("l1_path", "random")])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_scores_are_the_plain_formulas(name, kind):
    X, y = sparse_trials()
    scores = SELECTORS[name](kind(X), y, 0)
    np.testing.assert_allclose(scores, [expected(name, column, y) for column in X.T], rtol=1e-9)


@pytest.mark.parametrize("name", SELECTORS)
def test_dead_and_broken_features_are_never_chosen(name):
    X, y = sparse_trials(n_features=12)
    X[:, 0], X[:, 1] = 0, 3
    X[:, 2] = 5 + 1e-7 * y  # equal up to the rounding of float32
    X[4, 3], X[5, 4] = np.nan, np.inf
    with np.errstate(invalid="raise"):
        dense = SELECTORS[name](X, y, 0)
    np.testing.assert_array_equal(np.isnan(dense), np.arange(12) < 5)
    np.testing.assert_allclose(SELECTORS[name](sparse.csr_array(X), y, 0), dense, rtol=1e-9, atol=1e-12)
    assert set(select(name, X, y, 12)) == set(range(5, 12))


@pytest.mark.parametrize(
    "name", [name for name in SELECTORS if name not in ("random", "maximum_activation", "rsa_coherence")]
)
def test_a_planted_feature_comes_first(name):
    X, y = sparse_trials()
    if name == "rsa_discriminative":  # asks that the class is alike
        X[:, 7] = np.where(y, 3, X[:, 8])
    assert select(name, X, y, 3)[0] == 7
    assert select(name, sparse.csr_array(X), y, 3)[0] == 7


def test_coherence_takes_either_sign():
    rng = np.random.default_rng(0)
    y = np.arange(40) < 20
    X = rng.normal(size=(40, 30))
    X[:, 3] = np.where(y, 3 * X[:, 3], 0.1 * X[:, 3])  # the class varies, the others do not
    X[:, 4] = np.where(y, 0.1 * X[:, 4], 3 * X[:, 4])
    assert set(select("rsa_coherence", X, y, 2)) == {3, 4}


def test_maximum_activation_does_not_compare():
    X, y = sparse_trials()
    X[:, 20] = 50 + 0.01 * np.arange(40)
    assert select("maximum_activation", X, y, 1)[0] == 20


def test_l1_path_follows_the_entry_into_the_path():
    rng = np.random.default_rng(1)
    y = np.arange(80) % 2 == 0
    X = rng.normal(size=(80, 25))
    for column, shift in ((3, 3.0), (11, 1.5), (17, 0.8)):
        X[y, column] += shift
    scores = SELECTORS["l1_path"](X, y, 0)
    order = select("l1_path", X, y, 25)
    assert order[0] == 3 and order[1] == 11
    assert scores[3] > scores[11] > np.median(scores) and (scores >= 0).all()
    X[:, 12] = 2 * X[:, 3]  # a copy is as strong alone, but they share
    assert set(select("l1_path", X, y, 2)) <= {3, 12, 11}


def test_random_is_random_and_seeded():
    X, y = sparse_trials()
    first = select("random", X, y, 10, random_state=1)
    np.testing.assert_array_equal(first, select("random", X, y, 10, random_state=1))
    assert set(first) != set(select("random", X, y, 10, random_state=2))


def test_ties_are_broken_at_random_not_by_index():
    def flat(X, y, random_state):
        return np.ones(X.shape[1])

    X, y = sparse_trials(n_features=50)
    chosen = [select(flat, X, y, 5, seed) for seed in range(200)]
    counts = np.bincount(np.concatenate(chosen), minlength=50)
    assert counts.min() > 5 and counts.max() < 40  # 20 expected
    np.testing.assert_array_equal(chosen[3], select(flat, X, y, 5, 3))
    twins = np.column_stack([X[:, 7]] * 6 + [X[:, 8]])  # up to rounding
    first = {int(select("welch_t", twins, y, 1, seed)[0]) for seed in range(60)}
    assert first == set(range(6))


def test_no_more_than_there_are_and_strongest_first():
    X, y = sparse_trials()
    X = X[:, 5:9]
    X[:, 1] = 0
    scores = SELECTORS["welch_t"](X, y, 0)
    chosen = select("welch_t", X, y, 8)
    assert len(chosen) == 3 and (np.diff(scores[chosen]) <= 0).all()


@pytest.mark.parametrize(
    ("selector", "y", "words"),
    [
        ("welsh_t", np.arange(40) < 9, "no selector 'welsh_t'; did you mean 'welch_t'"),
        ("welch_t", np.ones(40, bool), "found 40 trials of the class and 0 others"),
        ("welch_t", np.arange(39) < 9, "for 40 rows"),
        (lambda X: np.ones(60), np.arange(40) < 9, r"must take three arguments"),
        (lambda X, y, random_state: np.ones(3), np.arange(40) < 9, r"scores of shape \(3,\) for 60 features"),
    ],
)
def test_wrong_input_is_refused(selector, y, words):
    with pytest.raises(InvalidInput, match=words):
        select(selector, sparse_trials()[0], y, 5)
