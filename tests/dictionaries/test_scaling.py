"""Scaling laws: known laws come back, optimum and interval agree with brute force, intervals hold the truth."""

import json

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.stats import binom, f

from neurollm.dictionaries.scaling import fit_scaling_law
from neurollm.errors import InvalidInput
from neurollm.random import stream

WIDTHS = 256.0 * 2 ** np.arange(6)


def noisy(truth, sd, index, purpose="scaling test"):
    return truth * np.exp(sd * stream(0, purpose, index).standard_normal(len(truth)))


@pytest.mark.parametrize(("floor", "a", "alpha"), [(0.05, 3.0, 0.4), (0.0, 1.0, 0.2), (0.3, 40.0, 1.1)])
def test_a_known_law_comes_back(floor, a, alpha):
    law = fit_scaling_law(WIDTHS, floor + a * WIDTHS**-alpha)
    assert (law.alpha, law.A, law.E) == pytest.approx((alpha, a, floor), rel=1e-3, abs=1e-5)
    assert law.alpha_low <= law.alpha <= law.alpha_high and law.alpha_high - law.alpha_low < 1e-3
    assert law.predict(65536) == pytest.approx(floor + a * 65536**-alpha, rel=1e-4)
    assert (law.n_points, law.n_widths, law.df, law.seed_sd) == (6, 6, 3, None)


def test_widths_and_tokens():
    widths, tokens = np.tile(WIDTHS, 4), np.repeat([1e6, 2e6, 4e6, 16e6], 6)
    law = fit_scaling_law(widths, 0.02 + 3 * widths**-0.5 + 9 * tokens**-0.3, tokens)
    assert (law.alpha, law.beta, law.A, law.B, law.E) == pytest.approx((0.5, 0.3, 3, 9, 0.02), rel=1e-3)
    assert law.predict([1000.0], 3e7)[0] == pytest.approx(0.02 + 3 * 1000**-0.5 + 9 * 3e7**-0.3, rel=1e-4)
    assert law.floors[2_000_000] == pytest.approx(0.02 + 9 * 2e6**-0.3, rel=1e-4)


def test_two_numbers_of_tokens_have_floors_and_no_beta():
    widths, tokens = np.tile(WIDTHS, 2), np.repeat([1e6, 4e6], 6)
    law = fit_scaling_law(widths, np.where(tokens > 2e6, 0.1, 0.15) + 3 * widths**-0.5, tokens)
    assert law.floors == pytest.approx({1_000_000: 0.15, 4_000_000: 0.1}, rel=1e-3)
    assert law.alpha == pytest.approx(0.5, rel=1e-3) and law.beta is None and law.E is None
    with pytest.raises(InvalidInput, match=r"n_tokens is 2000000\.0; it must be one of 1000000, 4000000"):
        law.predict(512, 2e6)
    with pytest.raises(InvalidInput, match="n_tokens is None"):
        law.predict(512)


def squares(parameters, loss):
    floor, log_a, alpha = parameters
    return np.log(loss) - np.log(floor + np.exp(log_a) * (WIDTHS / 1024) ** -alpha)


@pytest.mark.parametrize("index", range(5))
def test_optimum_and_interval_agree_with_a_general_optimiser(index):
    loss = noisy(0.1 + 3 * WIDTHS**-0.5, 0.01, index)
    law = fit_scaling_law(WIDTHS, loss)
    starts = [(e, np.log(0.1), a) for e in (0.0, 0.05, 0.12) for a in (0.2, 0.6, 1.5)]
    bounds = ([0, -20, 0.01], [1, 20, 8])
    options = {"bounds": bounds, "x_scale": (0.1, 1, 0.5), "xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-14}
    best = min((least_squares(squares, start, args=(loss,), **options) for start in starts), key=lambda r: r.cost)
    assert law.alpha == pytest.approx(best.x[2], rel=2e-3)
    assert pytest.approx(best.x[0], abs=2e-4) == law.E
    assert law.residual_sd == pytest.approx(np.sqrt(2 * best.cost / 3), rel=1e-4)
    limit = 2 * best.cost * (1 + f.ppf(0.95, 1, 3) / 3)
    for end in (law.alpha_low, law.alpha_high):
        if 0 < end < np.inf:
            profiled = [
                minimize(
                    lambda p, a=end: np.square(squares((p[0], p[1], a), loss)).sum(),
                    start,
                    bounds=((0, 1), (-20, 5)),
                    method="L-BFGS-B",
                    options={"ftol": 1e-15, "gtol": 1e-12},
                ).fun
                for start in ((0.0, -2.0), (0.1, -3.0))
            ]
            assert min(profiled) == pytest.approx(limit, rel=2e-2)


def test_without_a_floor_the_law_is_a_line_of_logarithms():
    loss = 2 * WIDTHS**-0.4 * np.exp(-0.01 * np.log2(WIDTHS / 256) ** 2)  # bends down: E would be negative
    law = fit_scaling_law(WIDTHS, loss)
    slope, intercept = np.polyfit(np.log(WIDTHS), np.log(loss), 1)
    assert law.E == 0
    assert (law.alpha, np.log(law.A)) == pytest.approx((-slope, intercept), rel=1e-4)


def coverage(n_widths, sd, misfit=0.0, n=120):
    """Share of simulations in which the intervals of α and of the mean loss held the truth; two seeds."""
    widths = np.repeat(128.0 * 2 ** np.arange(n_widths), 2)
    truth, held = 0.05 + 2 * widths**-0.4, []
    for index in range(n):
        shared = np.repeat(stream(1, "misfit", index).standard_normal(n_widths), 2)
        law = fit_scaling_law(widths, noisy(truth * np.exp(misfit * shared), sd, index))
        low, high = law.band(widths)
        held.append((law.alpha_low <= 0.4 <= law.alpha_high, np.mean((low <= truth) & (truth <= high))))
    return np.mean(held, axis=0)


@pytest.mark.parametrize(("n_widths", "sd", "misfit"), [(4, 0.003, 0), (6, 0.01, 0), (5, 0.001, 0.005), (6, 0.02, 0)])
def test_intervals_hold_the_truth(n_widths, sd, misfit):
    of_alpha, of_mean = coverage(n_widths, sd, misfit)
    low, high = binom.ppf([0.001, 0.9995], 120, 0.95) / 120
    assert low <= of_alpha <= high
    assert low <= of_mean <= high


def test_seeds_are_averaged_and_do_not_count_as_widths():
    once = fit_scaling_law(WIDTHS, noisy(0.1 + 3 * WIDTHS**-0.5, 0.01, 0))
    loss = noisy(0.1 + 3 * WIDTHS**-0.5, 0.01, 0)
    law = fit_scaling_law(np.tile(WIDTHS, 2), np.r_[loss * 1.001, loss / 1.001])
    assert (law.alpha, law.alpha_low, law.alpha_high, law.df) == pytest.approx(
        (once.alpha, once.alpha_low, once.alpha_high, once.df), rel=1e-6
    )
    assert law.seed_sd == pytest.approx(np.sqrt(2) * np.log(1.001), rel=1e-9)


def test_a_step_is_open_above_and_says_so():
    law = fit_scaling_law(WIDTHS[:5], [0.5, 0.1, 0.101, 0.099, 0.1])
    assert law.alpha_high == np.inf and law.describe().endswith("∞]")
    assert law.to_dict()["alpha_high"] is None
    json.dumps(law.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("widths", "loss", "tokens", "words"),
    [
        ([256, 512, 1024, 256], [0.4, 0.3, 0.2, 0.4], None, "at least 4 different widths, found 3"),
        ([256, 512, 1024, 0], [0.4, 0.3, 0.2, 0.1], None, "n_features must be above 0, found 0"),
        ([256, 512, 1024, 2048], [0.4, 0.3, 0.2, np.nan], None, "loss must be above 0, found nan"),
        ([256, 512, 1024, 2048], [0.4, 0.3, 0.2], None, "4 widths, 3 losses"),
        ([256, 512, 1024, 2048], [0.4, 0.3, 0.2, 0.1], [1, 1, 2, 2], "4 observations for 4 unknowns"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(widths, loss, tokens, words):
    with pytest.raises(InvalidInput, match=words):
        fit_scaling_law(widths, loss, tokens)
