"""The largest attainable statistic against all permutations and all signs."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.testability import largest_flip_statistic, largest_statistic

RNG = np.random.default_rng(0)
KINDS = {"numpy": lambda a: a, "csr": sparse.csr_array, "csc": sparse.csc_matrix, "torch": torch.as_tensor}


def centred(values, labels):
    means = np.stack([values[labels == label].mean(axis=0) for label in labels])
    return values - means


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [None, [0, 1, 0, 2, 1, 0, 2, 0], [0, 0, 1, 1, 2, 2, 3, 3]])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_equals_the_largest_over_all_permutations(kind, blocks, alternative):
    n = 6 if blocks is None else 8
    labels = np.zeros(n, int) if blocks is None else np.array(blocks)
    Y = np.where(RNG.random((n, 7)) < 0.5, RNG.lognormal(size=(n, 7)) * RNG.choice([-1, 1], (n, 7)), 0)
    x = centred(RNG.standard_normal(n), labels)
    x /= np.linalg.norm(x)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    r = []
    for orders in itertools.product(*(itertools.permutations(row) for row in rows)):
        permuted = np.empty(n)
        for row, order in zip(rows, orders, strict=True):
            permuted[row] = x[list(order)]
        r.append(permuted @ Y)
    r = np.array(r)
    reached = {"two-sided": np.abs(r).max(0), "greater": r.max(0), "less": (-r).max(0)}[alternative]
    with np.errstate(invalid="ignore"):
        expected = reached / np.linalg.norm(centred(Y, labels), axis=0)
    ours = largest_statistic(x, KINDS[kind](Y), blocks, alternative)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_largest_over_all_signs(kind):
    d = np.where(RNG.random((7, 6)) < 0.6, RNG.standard_normal((7, 6)), 0)
    signs = np.array(list(itertools.product([-1, 1], repeat=7)))
    expected = np.max(signs @ d, axis=0) / (np.sqrt(7) * np.linalg.norm(d, axis=0))
    np.testing.assert_allclose(largest_flip_statistic(KINDS[kind](d)), expected, atol=1e-12)


@pytest.mark.parametrize("kind", [lambda a: a, sparse.csr_array])
def test_constant_and_missing_features_have_none(kind):
    x = np.array([1, -1, 0, 0]) / np.sqrt(2)
    Y = np.array([[0, 0.1, np.nan, 1], [0, 0.1, 1, 0], [0, 0.1, 1, 0], [0, 0.1, 0, 0]])
    assert np.isnan(largest_statistic(x, kind(Y))).tolist() == [True, True, True, False]
    assert np.isnan(largest_flip_statistic(kind(Y))).tolist() == [True, False, True, False]


def test_rows_that_are_not_centred_or_too_short_are_refused():
    with pytest.raises(InvalidInput, match="centred"):
        largest_statistic(np.array([1.0, 0, 0]), np.eye(3))
    with pytest.raises(InvalidInput, match="centred"):
        largest_statistic(np.array([1.0, 0, -1]), np.eye(3), blocks=[0, 0, 1])
    with pytest.raises(InvalidInput, match="one number for each"):
        largest_statistic(np.zeros(2), np.eye(3))
    with pytest.raises(InvalidInput, match="one label for each"):
        largest_statistic(np.zeros(3), np.eye(3), blocks=[0, 0])
