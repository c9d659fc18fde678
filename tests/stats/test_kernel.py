"""The permutation kernel against refitted models, scipy and enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from support.hypotheses import (
    SCHEMES,
    alternatives,
    hypothesis_of,
    indicators,
    levels,
    one_group,
    residual_norms,
    run,
    zero_inflated,
)

from neurollm.errors import InvalidInput
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import permutation_test, r_to_f, r_to_t, t_to_r
from neurollm.stats.maxima import above_ties, tied_down
from neurollm.stats.shufflings import sign_flip, whole_item, within_item

RNG = np.random.default_rng(0)
MANY = zero_inflated((24, 700), 3).astype(np.float32)


def brute_force(Y, hypothesis, arrangements):
    """Signed √(F q/df)-equivalents ρ of refitted models: residuals are rearranged, the model is fitted again."""
    n = len(Y)
    means = np.empty((n, 0)) if hypothesis.groups is None else indicators(hypothesis.groups)
    reduced = np.hstack([means, hypothesis.nuisance])
    full = np.hstack([reduced, hypothesis.rest, hypothesis.tested])
    without = np.hstack([reduced, hypothesis.rest])

    def residuals(design, data):
        return data - design @ np.linalg.lstsq(design, data, rcond=None)[0] if design.shape[1] else data

    kept = residuals(reduced, Y)
    for index, sign in arrangements:
        # G' on the residuals is the same as G on the design.
        data = np.empty_like(kept)
        data[index] = kept * sign[:, None]
        rss_full, rss_without = (residuals(full, data) ** 2).sum(0), (residuals(without, data) ** 2).sum(0)
        rho = np.sqrt(np.maximum(1 - rss_full / rss_without, 0))
        direction = np.sign(np.linalg.lstsq(full, data, rcond=None)[0][-1]) if hypothesis.rank == 1 else 1
        yield rho * direction


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.7, 1 / 3])
def test_a_perfect_correlation_is_infinite_whatever_its_rounding(factor):
    """All arrangements of nine differences of one size: two are perfect."""
    none = np.empty((9, 0))
    mean = Hypothesis(np.full((9, 1), 1 / 3), none, none, None, 8, sign_flip(9))
    y = np.column_stack([np.full(9, factor), np.full(9, factor * (1 + 1e-14)), RNG.normal(size=9)])
    for order in ([0, 1, 2], [2, 1, 0]):
        null = permutation_test(y[:, order], mean, np.linalg.norm(y[:, order], axis=0)).null_max
        assert np.isinf(null).sum() == 2


def arrangements(hypothesis, n_perm, seed=0):
    draws = hypothesis.shuffling.draw(n_perm, seed)
    n = hypothesis.n_rows
    index = np.tile(np.arange(n), (len(draws), 1)) if draws.index is None else draws.index
    sign = np.ones((len(draws), n)) if draws.sign is None else draws.sign
    return list(zip(index.astype(int), sign, strict=True))


EXTREMITY = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("stored", ["dense", "sparse"])
def test_equals_refitting_the_model_to_rearranged_residuals(name, stored):
    hypothesis = SCHEMES[name]
    Y = zero_inflated((24, 30), 8)
    Y[:, 0] += 3 * hypothesis.tested[:, 0]
    every = arrangements(hypothesis, 150)
    null = np.array(list(brute_force(Y, hypothesis, every)))
    observed = next(brute_force(Y, hypothesis, [(np.arange(24), np.ones(24))]))
    for alternative in alternatives(hypothesis):
        got = run(
            sparse.csr_array(Y) if stored == "sparse" else Y,
            hypothesis,
            n_perm=150,
            alternative=alternative,
            count=True,
        )
        outer = EXTREMITY[alternative]
        np.testing.assert_allclose(got.r, observed, atol=1e-7)
        threshold = outer(observed) - 1e-7
        np.testing.assert_allclose(got.p_permutation, (1 + (outer(null) >= threshold).sum(0)) / 151)
        np.testing.assert_allclose(got.p_fwer, (1 + (outer(null).max(1)[:, None] >= threshold).sum(0)) / 151)
        largest, q = outer(null).max(1), hypothesis.rank
        statistic = r_to_t(largest, hypothesis.df) if q == 1 else r_to_f(largest, hypothesis.df, q)
        np.testing.assert_allclose(got.null_max, statistic, rtol=1e-6, atol=1e-6)


def step_down(observed, null):
    """Westfall & Young 1993, algorithm 4.1, written out."""
    order = np.argsort(-observed, kind="stable")
    p = np.empty(len(observed))
    largest = 0.0
    for place, feature in enumerate(order):
        successive = null[:, order[place:]].max(axis=1)
        largest = max(largest, (1 + (successive >= observed[feature] - 1e-7).sum()) / (len(null) + 1))
        p[feature] = largest
    return p


@pytest.mark.parametrize("name", SCHEMES)
def test_step_down_equals_its_definition(name):
    hypothesis = SCHEMES[name]
    Y = zero_inflated((24, 40), 12, active=0.8) + np.linspace(0, 4, 40) * hypothesis.tested[:, :1]
    null = np.abs(list(brute_force(Y, hypothesis, arrangements(hypothesis, 99))))
    got = run(Y, hypothesis, n_perm=99)
    np.testing.assert_allclose(got.p_step_down, step_down(np.abs(got.r), null))
    assert (got.p_step_down <= got.p_fwer).all()
    if name in ("two_groups", "covariates", "sign_flip"):
        assert (got.p_step_down < got.p_fwer).any()


def test_below_the_512_most_extreme_the_rest_is_taken_together():
    hypothesis = SCHEMES["two_groups"]
    Y = np.random.default_rng(0).normal(size=(24, 700)) + np.linspace(0, 6, 700) * hypothesis.tested
    got = run(Y, hypothesis, n_perm=99)
    null = np.abs(list(brute_force(Y, hypothesis, arrangements(hypothesis, 99))))
    observed = np.abs(got.r)
    order, exact = np.argsort(-observed), step_down(np.abs(got.r), null)
    np.testing.assert_allclose(got.p_step_down[order[:512]], exact[order[:512]])
    rest = order[512:]
    together = (1 + (null[:, rest].max(1)[:, None] >= observed[rest] - 1e-7).sum(0)) / 100
    np.testing.assert_allclose(got.p_step_down[rest], np.maximum(together, exact[order[511]]))
    assert (got.p_step_down[rest] >= exact[rest] - 1e-12).all()


def test_more_than_512_tied_features_are_not_separated():
    y = np.zeros((20, 600))
    y[:8] = 1
    Y = np.hstack([y, np.random.default_rng(1).normal(size=(20, 50))])
    codes = np.repeat([1, 0], [8, 12])
    hypothesis = hypothesis_of(whole_item(codes), codes, groups=one_group(20))
    got = run(Y, hypothesis, n_perm=200)
    np.testing.assert_array_equal(got.p_step_down, got.p_fwer)
    order = np.random.default_rng(2).permutation(650)
    np.testing.assert_array_equal(run(Y[:, order], hypothesis, n_perm=200).p_step_down, got.p_step_down[order])


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exhaustive_sign_flip_equals_scipy(alternative):
    d = zero_inflated((8, 5), 7) - zero_inflated((8, 5), 8)
    ours = run(d, hypothesis_of(sign_flip(8), np.ones(8)), alternative=alternative, n_perm=256, count=True)
    assert ours.exhaustive and ours.n_perm == 256
    for v in range(5):
        theirs = stats.permutation_test(
            (d[:, v],), np.mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf
        )
        assert ours.p_permutation[v] == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exhaustive_whole_item_equals_scipy(alternative):
    y, codes = zero_inflated((9, 5), 9, active=0.9), np.array([1, 0, 1, 0, 0, 1, 0, 1, 0])
    hypothesis = hypothesis_of(whole_item(codes), codes, groups=one_group(9))
    ours = run(y, hypothesis, alternative=alternative, n_perm=126, count=True)
    assert ours.exhaustive and ours.n_perm == 126

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    def size(a, b, axis=-1):
        return np.abs(difference(a, b, axis))

    # Two-sided: |difference| itself (scipy's own doubles the smaller tail).
    statistic, tail = (size, "greater") if alternative == "two-sided" else (difference, alternative)
    for v in range(5):
        groups = y[codes == 1, v], y[codes == 0, v]
        theirs = stats.permutation_test(groups, statistic, alternative=tail, n_resamples=np.inf, vectorized=True)
        assert ours.p_permutation[v] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_exhaustive_within_item_equals_scipy():
    y = zero_inflated((10, 5), 10, active=0.9)
    items = np.repeat(np.arange(5), 2)
    hypothesis = hypothesis_of(within_item(5, (2,)), np.tile([1, -1], 5), groups=items)
    ours = run(y, hypothesis, n_perm=32, alternative="greater", count=True)
    assert ours.exhaustive and ours.n_perm == 32
    for v in range(5):
        theirs = stats.permutation_test(
            (y[::2, v], y[1::2, v]),
            lambda a, b, axis=-1: (a - b).mean(axis),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert ours.p_permutation[v] == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("name", ["sign_flip", "three_groups", "within_item"])
def test_exhaustive_maximum_equals_enumeration(name):
    rows = {"sign_flip": 7, "three_groups": 7, "within_item": 12}[name]
    y = np.random.default_rng(rows).normal(size=(rows, 6))
    codes, cells = np.array([0, 1, 2, 0, 1, 2, 0]), np.tile(np.eye(3), (4, 1))
    t, u = levels(codes, np.array([1, -0.25, -0.75]))
    hypothesis = {
        "sign_flip": lambda: hypothesis_of(sign_flip(7), np.ones(7)),
        "three_groups": lambda: hypothesis_of(whole_item(codes), t, rest=u[:, :1], groups=one_group(7)),
        "within_item": lambda: hypothesis_of(
            within_item(4, (3,)), cells @ [2, -1, -1], rest=cells[:, 1], groups=np.repeat(np.arange(4), 3)
        ),
    }[name]()
    ours = run(y, hypothesis, n_perm=2000)
    null = np.abs(list(brute_force(y, hypothesis, arrangements(hypothesis, 2000))))
    assert ours.exhaustive and len(null) == hypothesis.shuffling.n_possible
    np.testing.assert_allclose(ours.p_fwer, (null.max(1)[:, None] >= np.abs(ours.r) - 1e-7).mean(0))


def test_the_mirrored_arrangement_is_tied_with_the_observed_one():
    d = np.random.default_rng(0).integers(-1, 2, (5, 40)) * 0.1
    small = run(d, hypothesis_of(sign_flip(5), np.ones(5)), n_perm=32, count=True)
    tested = np.isfinite(small.p_permutation)
    assert tested.any() and (small.p_permutation[tested] >= 2 / 32).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_monte_carlo_p_is_never_zero(name):
    hypothesis = SCHEMES[name]
    Y = np.random.default_rng(0).normal(size=(24, 5)) + 1e4 * hypothesis.tested[:, :1]
    result = run(Y, hypothesis, n_perm=30, count=True)
    assert not result.exhaustive
    for p in (result.p_permutation, result.p_fwer, result.p_step_down):
        assert (p >= 1 / 31).all() and (p < 0.2).all()


def test_monte_carlo_approaches_the_exhaustive_p():
    d = zero_inflated((12, 30), 1) - zero_inflated((12, 30), 2)
    hypothesis = hypothesis_of(sign_flip(12), np.ones(12))
    exact, random = (run(d, hypothesis, n_perm=n_perm, count=True) for n_perm in (4096, 4095))
    assert exact.exhaustive and not random.exhaustive
    error = np.sqrt(exact.p_permutation * (1 - exact.p_permutation) / 4095)
    assert (np.abs(random.p_permutation - exact.p_permutation) < 5 * error + 1 / 4096).all()


def test_untested_columns_pass_through_and_do_not_enter_the_maximum():
    hypothesis = SCHEMES["sign_flip"]
    poison = np.column_stack([np.full(24, np.nan), np.zeros(24), np.full(24, np.inf)])
    poisoned = np.column_stack([MANY[:, :300], poison, MANY[:, 300:]])
    with np.errstate(invalid="ignore"):
        norms = residual_norms(poisoned, hypothesis)
    expected, got = run(MANY, hypothesis, n_perm=200), permutation_test(poisoned, hypothesis, norms, n_perm=200)
    keep = np.r_[0:300, 303:703]
    np.testing.assert_array_equal(got.p_fwer[keep], expected.p_fwer)
    np.testing.assert_array_equal(got.p_step_down[keep], expected.p_step_down)
    for values in (got.r, got.p_fwer, got.p_step_down):
        assert np.isnan(values[300:303]).all()


def test_nothing_to_test():
    result = permutation_test(np.zeros((24, 3)), SCHEMES["sign_flip"], np.zeros(3), n_perm=50, count=True)
    assert np.isnan(result.p_fwer).all() and np.isnan(result.p_permutation).all()
    assert result.null_max.size == 0 and result.n_perm == 50


def test_longer_runs_extend_shorter_ones():
    short, long = (run(MANY, SCHEMES["covariates"], n_perm=n_perm) for n_perm in (50, 120))
    np.testing.assert_allclose(long.null_max[:50], short.null_max, rtol=1e-7)


def test_every_statistic_is_announced():
    for count in (False, True):
        seen = []
        run(MANY, SCHEMES["two_groups"], n_perm=100, count=count, block=(30, 60), on_block=seen.append)
        assert sum(seen) == 100 * MANY.shape[1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1000), st.sampled_from(sorted(SCHEMES)))
def test_scale_and_shift_leave_p_alone(seed, scale, name):
    hypothesis = SCHEMES[name]
    Y = MANY[:, :50].astype(float)
    shift = 0 if hypothesis.groups is None else np.random.default_rng(seed).normal(size=50)
    expected, got = (run(y, hypothesis, n_perm=60, random_state=seed) for y in (Y, Y * scale + shift))
    np.testing.assert_array_equal(got.p_fwer, expected.p_fwer)
    np.testing.assert_array_equal(got.p_step_down, expected.p_step_down)


def test_family_wise_error_is_the_nominal_one():
    """400 null tables of correlated, skewed features: the error is binomial around 5 %."""
    rng = np.random.default_rng(7)
    codes = np.repeat([0, 1], [6, 14])
    hypothesis = hypothesis_of(whole_item(codes), codes, groups=one_group(20))
    wrong = {"single": 0, "down": 0}
    for seed in range(400):
        Y = np.exp(rng.normal(size=(20, 40)) + rng.normal(size=(20, 1)))
        result = run(Y, hypothesis, n_perm=99, random_state=seed)
        wrong["single"] += (result.p_fwer <= 0.05).any()
        wrong["down"] += (result.p_step_down <= 0.05).any()
    low, high = stats.binom(400, 0.05).interval(0.999)
    assert low <= wrong["single"] <= high and low <= wrong["down"] <= high


def test_statistics_are_turned_into_each_other():
    t = np.array([-40.0, -1, 0, 0.5, 1e5])
    np.testing.assert_allclose(r_to_t(t_to_r(t, 17), 17), t, rtol=1e-4)
    np.testing.assert_allclose(r_to_f(t_to_r(t[:4], 17), 17, 1), t[:4] ** 2)
    r = np.array([-0.3, 0.0, 0.7])
    assert (tied_down(above_ties(r)) >= r - 1e-15).all() and (tied_down(above_ties(r)) < r + 1e-12).all()


@pytest.mark.parametrize(
    "options",
    [{"alternative": "both"}, {"n_perm": 0}, {"n_jobs": 0}, {"n_jobs": -2}],
)
def test_wrong_arguments_are_refused(options):
    with pytest.raises(InvalidInput):
        run(MANY, SCHEMES["sign_flip"], **options)


def test_an_f_test_has_no_direction():
    with pytest.raises(InvalidInput, match="two-sided"):
        run(MANY, SCHEMES["f_three_groups"], alternative="greater")


def test_data_of_another_number_of_rows_are_refused():
    with pytest.raises(InvalidInput, match="rows"):
        permutation_test(MANY[1:], SCHEMES["sign_flip"], np.ones(700))
