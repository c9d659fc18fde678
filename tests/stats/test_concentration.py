"""Gini coefficient, effective rank and participation ratio against definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from neurollm.stats.concentration import effective_rank, gini, participation_ratio, vector_statistics

ROWS = np.random.default_rng(0).standard_normal((30, 17))


def test_gini_is_half_the_relative_mean_difference_of_each_row():
    for row, found in zip(np.abs(ROWS), gini(ROWS), strict=True):
        assert found == pytest.approx(np.abs(row[:, None] - row).mean() / (2 * row.mean()), rel=1e-12)
        assert gini(row) == pytest.approx(found, rel=1e-12)


def test_effective_rank_is_the_exponential_of_the_entropy():
    assert effective_rank(ROWS) == pytest.approx(np.exp(entropy(np.abs(ROWS), axis=1)), rel=1e-12)
    assert effective_rank(np.array([0.0, -3.0, 0.0])) == 1


def test_participation_ratio_between_one_and_all():
    assert participation_ratio(np.array([5.0, 0, 0])) == 1 and participation_ratio(np.full(7, 0.3)) == pytest.approx(7)


def test_vectors_of_zeros_are_undefined_not_zero():
    found = vector_statistics(np.vstack([ROWS, np.zeros(17)]))
    assert np.isnan([found["gini"][-1], found["effective_rank"][-1], participation_ratio(np.zeros(3))]).all()
    assert found["l0"][-1] == found["l2"][-1] == found["max"][-1] == 0
    assert found["l1"] == pytest.approx(np.r_[np.linalg.norm(ROWS, 1, axis=1), 0])
    assert found["l2"] == pytest.approx(np.r_[np.linalg.norm(ROWS, axis=1), 0])


def test_blocks_do_not_change_the_statistics(monkeypatch):
    whole = vector_statistics(ROWS)
    monkeypatch.setattr("neurollm.stats.concentration.ROWS", 7)
    for name, values in vector_statistics(ROWS).items():
        assert values == pytest.approx(whole[name], rel=1e-13)


def test_scale_and_sign_do_not_matter():
    assert gini(-8 * ROWS) == pytest.approx(gini(ROWS)) and effective_rank(-8 * ROWS) == pytest.approx(
        effective_rank(ROWS)
    )
