"""Mutual information by nearest neighbours, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif

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
        neighbors = min(k, len(own))
        nearer = np.sum(distance < own[neighbors - 1])
        terms.append(digamma(neighbors) - digamma(len(own) + 1) - digamma(nearer))
    return max(0.0, digamma(len(x)) + np.mean(terms))


def test_three_classes_and_a_class_of_two():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [2, 20, 18])
    X = rng.standard_normal((40, 5)) + y[:, None]
    expected = [_by_definition(column, y, 3) for column in X.T]
    np.testing.assert_allclose(mutual_information(X, y), expected, atol=1e-12)


def test_a_sparse_feature_of_the_class_is_above_one_of_nothing():
    rng = np.random.default_rng(2)
    y = np.arange(120) % 2 == 0
    active = rng.random((120, 2)) < 0.4
    X = np.where(active, rng.random((120, 2)) + 0.5, 0)
    X[:, 1] *= y
    nothing, of_class = mutual_information(X, y, random_state=3)
    assert of_class > 0.15 > nothing
    np.testing.assert_array_equal(mutual_information(X, y, random_state=3), [nothing, of_class])


def test_a_class_of_one_trial_is_refused():
    with pytest.raises(InvalidInput, match=r"two or more trials, found sizes \[1, 3\]"):
        mutual_information(np.zeros((4, 2)), [0, 1, 1, 1])
