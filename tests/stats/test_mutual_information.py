"""Mutual information by nearest neighbours, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import mutual_info_score

from neurollm.errors import InvalidInput
from neurollm.stats.mutual_information import mutual_information


@pytest.mark.parametrize("n_neighbors", [1, 3])
def test_equals_scikit_learn_where_no_values_are_equal(n_neighbors):
    rng = np.random.default_rng(0)
    y = rng.random(70) < 0.3
    X = rng.standard_normal((70, 25)) + y[:, None] * np.linspace(0, 2, 25)
    expected = mutual_info_classif(X, y, discrete_features=False, n_neighbors=n_neighbors, random_state=0)
    np.testing.assert_allclose(mutual_information(X, y, n_neighbors=n_neighbors), expected, atol=1e-12)
    np.testing.assert_array_equal(mutual_information(sparse.csr_array(X), y), mutual_information(X, y))


def _by_definition(x, y, k):
    terms = []
    for i in range(len(x)):
        distance = np.abs(x - x[i])
        own = np.sort(distance[(y == y[i]) & (np.arange(len(x)) != i)])
        radius = own[min(k, len(own)) - 1]
        near = distance < radius if radius > 0 else distance == 0
        terms.append(digamma(np.sum(near & (y == y[i]))) - digamma(len(own) + 1) - digamma(np.sum(near)))
    return max(0.0, digamma(len(x)) + np.mean(terms))


def test_three_classes_and_a_class_of_two():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [2, 20, 18])
    X = rng.standard_normal((40, 5)) + y[:, None]
    expected = [_by_definition(column, y, 3) for column in X.T]
    np.testing.assert_allclose(mutual_information(X, y), expected, atol=1e-12)


def _sparse(rng, y, share, shift=0.0):
    """Active in `share[class]` of the trials of a class, with values in 1 … 2, moved by `shift` in the class."""
    active = rng.random(y.size) < np.take(share, y)
    return np.where(active, 1 + rng.random(y.size) + shift * y, 0)


def _sparse(rng, y, share, shift=0.0):
    """Active in `share[class]` of the trials of a class, with values in 1 … 2, moved by `shift` in the class."""
    active = rng.random(y.size) < np.take(share, y)
    return np.where(active, 1 + rng.random(y.size) + shift * y, 0)


def test_a_sparse_feature_of_the_class_is_above_one_of_nothing():
    rng = np.random.default_rng(2)
    y = np.arange(120) % 2
    nothing, of_class = mutual_information(
        np.stack([_sparse(rng, y, [0.4, 0.4]), _sparse(rng, y, [0, 0.4])], axis=1), y
    )
    assert of_class > 0.1 > nothing


def test_the_order_of_trials_does_not_matter():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 90)
    X = np.stack([_sparse(rng, y, [0.05, 0.2, 0.5]) for _ in range(20)] + [rng.standard_normal(90) for _ in range(3)]).T
    expected = mutual_information(X, y)
    for _ in range(3):
        order = rng.permutation(90)
        np.testing.assert_array_equal(mutual_information(X[order], y[order]), expected)
    np.testing.assert_allclose(mutual_information(X, y), [_by_definition(column, y, 3) for column in X.T], atol=1e-12)


def test_a_feature_of_few_values_has_the_information_of_its_table_of_counts():
    rng = np.random.default_rng(4)
    y = (rng.random(1200) < 0.4).astype(int)
    X = np.stack([rng.random(1200) < 0.3 + 0.4 * y, rng.integers(0, 4, 1200) + 2 * y, rng.random(1200) < 0.5], axis=1)
    found = mutual_information(X.astype(float), y)
    plug_in = np.array([mutual_info_score(column, y) for column in X.T])
    bias = np.array([4 - 2 - 2 + 1, 8 - 6 - 2 + 1, 4 - 2 - 2 + 1]) / 2 / 1200  # cells − values − classes + 1
    np.testing.assert_allclose(found, np.maximum(plug_in - bias, 0), atol=1e-5)
    assert plug_in[0] > 0.05


@pytest.mark.parametrize(
    ("share", "shift"), [((0.3, 0.3), 0.0), ((0.1, 0.5), 0.0), ((0.3, 0.3), 1.0), ((0.2, 0.6), 0.5)]
)
def test_silence_and_values_together_have_their_true_information(share, shift):
    rng = np.random.default_rng(5)
    y = np.arange(1500) % 2
    truth = -0.5 * sum(s * np.log(sum(share) / 2 / s) + (1 - s) * np.log((2 - sum(share)) / 2 / (1 - s)) for s in share)
    # Where only one class has values (a part `shift` of them), the class is known.
    truth += shift * 0.5 * sum(s * np.log(sum(share) / s) for s in share)
    found = [mutual_information(_sparse(rng, y, share, shift)[:, None], y)[0] for _ in range(4)]
    assert np.mean(found) == pytest.approx(truth, abs=0.012)


def test_a_class_of_one_trial_is_refused():
    with pytest.raises(InvalidInput, match=r"two or more trials, found sizes \[1, 3\]"):
        mutual_information(np.zeros((4, 2)), [0, 1, 1, 1])
