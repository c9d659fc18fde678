"""The dip against linear programming over all unimodal distribution functions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from neurollm.errors import InvalidInput
from neurollm.stats.modes import LARGEST, dip_statistic, dip_test, mixture_delta_bic


def smallest_distance(values: np.ndarray) -> float:
    """Least D such that a unimodal F has |F − Fₙ| ≤ D, over all modes: values of F are the unknowns."""
    x, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / counts.sum()
    lower = upper - counts / counts.sum()
    return min(_with_mode(x, lower, upper, mode) for mode in range(len(x)))


def _with_mode(x: np.ndarray, lower: np.ndarray, upper: np.ndarray, mode: int) -> float:
    left, right = list(range(mode + 1)), list(range(mode, len(x)))  # F just below the mode, and at it
    n = len(x) + 2
    rows, bounds = [], []

    def limit(terms: dict[int, float], bound: float) -> None:
        rows.append([terms.get(k, 0.0) for k in range(n)])
        bounds.append(bound)

    for k, i in enumerate(left + right):
        below, above = (
            (lower[i], lower[i]) if k == mode else (upper[i], upper[i]) if k == mode + 1 else (upper[i], lower[i])
        )
        limit({k: 1, n - 1: -1}, above)
        limit({k: -1, n - 1: -1}, -below)
    for k in range(n - 2):
        limit({k: 1, k + 1: -1}, 0)
    for first, side, sign in ((0, left, 1), (mode + 1, right, -1)):
        for t, (a, b, c) in enumerate(zip(side, side[1:], side[2:], strict=False), first):
            u, v = sign / (x[b] - x[a]), sign / (x[c] - x[b])
            limit({t: -u, t + 1: u + v, t + 2: -v}, 0)
    return linprog(np.eye(n)[-1], A_ub=rows, b_ub=bounds, bounds=[(0, 1)] * n).fun


@pytest.mark.parametrize("kind", ["uniform", "two clusters", "ties", "normal"])
def test_the_dip_is_the_distance_to_the_closest_unimodal_distribution(kind):
    draw = np.random.default_rng(1)
    for n in (4, 5, 7, 8, 9, 10, 11):
        values = {
            "uniform": draw.random(n),
            "two clusters": np.r_[draw.normal(0, 1, n // 2), draw.normal(6, 1, n - n // 2)],
            "ties": draw.integers(0, 5, n).astype(float),
            "normal": draw.normal(size=n),
        }[kind]
        assert dip_statistic(values) == pytest.approx(smallest_distance(values), abs=1e-9)


def test_location_scale_order_and_sign_do_not_matter():
    values = np.random.default_rng(2).gamma(2, size=300)
    assert dip_statistic(7 - 3 * values[::-1]) == pytest.approx(dip_statistic(values), abs=1e-12)


def test_uniform_samples_are_rejected_as_often_as_promised():
    p = [dip_test(np.random.default_rng(seed).random(60), 99).p for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1


def test_two_modes_are_found_and_one_is_not():
    draw = np.random.default_rng(3)
    one = draw.normal(size=400)
    assert dip_test(one, 99).p > 0.1 and dip_test(np.r_[one, one + 5], 99).p == 0.01
    assert mixture_delta_bic(one) < 0 < mixture_delta_bic(np.r_[one, one + 5])


def test_a_skewed_single_mode_has_two_normals_but_no_dip():
    values = np.random.default_rng(4).gamma(1.5, size=500)
    assert mixture_delta_bic(values) > 0 and dip_test(values, 99).p > 0.2


def test_the_scale_of_small_norms_does_not_matter():
    values = np.r_[np.random.default_rng(5).normal(1, 0.1, 200), np.random.default_rng(6).normal(2, 0.1, 200)]
    assert mixture_delta_bic(1e-6 * values) == pytest.approx(mixture_delta_bic(values), rel=1e-3)


def test_large_samples_use_the_asymptotic_scale():
    found = dip_test(np.random.default_rng(7).random(2 * LARGEST), 19)
    assert 0.05 <= found.p <= 1 and found.n == 2 * LARGEST


@pytest.mark.parametrize("values", [np.ones(50), 1 + 1e-8 * np.arange(50), np.arange(3.0)])
def test_values_that_do_not_vary_are_undefined(values):
    assert np.isnan([dip_statistic(values), dip_test(values).p, mixture_delta_bic(values)]).all()


def test_bad_values_are_refused():
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        dip_statistic(np.array([1.0, np.nan]))
    with pytest.raises(InvalidInput, match="n_sim"):
        dip_test(np.arange(9.0), 0)
