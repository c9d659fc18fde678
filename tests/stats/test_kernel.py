"""The permutation kernel against refitted models, scipy and enumeration; over storage, blocks and threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from neurollm.errors import InvalidInput
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import permutation_test, r_to_f, r_to_t, t_to_r
from neurollm.stats.maxima import above_ties, tied_down
from neurollm.stats.products import ResidualColumns, Statistic, float32_copy
from neurollm.stats.scan import Scan
from neurollm.stats.shufflings import sign_flip, whole_item, within_item


def zero_inflated(shape, seed=0, active=0.4):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < active, rng.lognormal(size=shape), 0.0)


def orthonormal(columns, *against):
    """Orthonormal basis of the columns after removing others; the first keeps its direction."""
    columns = np.asarray(columns, float).reshape(len(columns), -1)
    for basis in against:
        columns = columns - basis @ np.linalg.lstsq(basis, columns, rcond=None)[0]
    basis, triangle = np.linalg.qr(columns)
    return basis * np.sign(np.diag(triangle))


def indicators(groups):
    return np.eye(np.max(groups) + 1)[groups]


def hypothesis_of(shuffling, tested, rest=None, nuisance=None, groups=None):
    """The hypothesis that the columns `tested` have no effect in the model groups + nuisance + tested + rest."""
    n = len(tested)
    empty = np.empty((n, 0))
    means = [] if groups is None else [indicators(groups)]
    z = empty if nuisance is None else orthonormal(nuisance, *means)
    t = orthonormal(tested, *means, z) if z.size else orthonormal(tested, *means)
    u = empty if rest is None else orthonormal(rest, *means, *([z] if z.size else []), t)
    removed = 0 if groups is None else np.max(groups) + 1
    df = n - removed - z.shape[1] - t.shape[1] - u.shape[1]
    return Hypothesis(t, u, z, groups, df, shuffling)


def residual_norms(Y, hypothesis):
    Y = np.asarray(Y.toarray() if sparse.issparse(Y) else Y).astype(float)
    for basis in ([] if hypothesis.groups is None else [indicators(hypothesis.groups)]) + [hypothesis.nuisance]:
        if basis.shape[1]:
            Y = Y - basis @ np.linalg.lstsq(basis, Y, rcond=None)[0]
    return np.sqrt((Y**2).sum(axis=0))


def run(Y, hypothesis, **options):
    return permutation_test(Y, hypothesis, residual_norms(Y, hypothesis), **options)


def one_group(n):
    return np.zeros(n, int)


def levels(codes, contrast):
    """A contrast of level means between items and the other differences between the levels."""
    dummies = indicators(codes)
    counts = dummies.sum(axis=0)
    return dummies @ (contrast / counts), dummies


def schemes():
    """Each scheme with many features of a fitting number of rows, and too many arrangements to enumerate."""
    rng = np.random.default_rng(5)
    two = rng.permutation(np.repeat([0, 1], [9, 15]))
    three = rng.permutation(np.repeat([0, 1, 2], [7, 8, 9]))
    t3, u3 = levels(three, np.array([1, -0.5, -0.5]))
    cells = np.tile(np.eye(3), (8, 1))
    items, z = np.repeat(np.arange(8), 3), rng.normal(size=(24, 2))
    return {
        "sign_flip": hypothesis_of(sign_flip(24), np.ones(24)),
        "sign_flip_covariate": hypothesis_of(sign_flip(24), np.ones(24), nuisance=z[:, :1]),
        "two_groups": hypothesis_of(whole_item(two), levels(two, np.array([1, -1]))[0], groups=one_group(24)),
        "three_groups": hypothesis_of(whole_item(three), t3, rest=u3[:, :1], groups=one_group(24)),
        "f_three_groups": hypothesis_of(whole_item(three), u3[:, :2], groups=one_group(24)),
        "covariates": hypothesis_of(whole_item(np.arange(24)), two, nuisance=z, groups=one_group(24)),
        "f_covariates": hypothesis_of(whole_item(np.arange(24)), u3[:, :2], nuisance=z, groups=one_group(24)),
        "blocks": hypothesis_of(whole_item(two, items % 2), two - 0.5, groups=items % 2),
        "within_item": hypothesis_of(within_item(8, (3,)), cells @ [2, -1, -1], rest=cells[:, 1], groups=items),
        "two_factors": hypothesis_of(
            within_item(4, (3, 2)), np.tile(np.repeat([2, -1, -1], 2), 4), groups=np.repeat(np.arange(4), 6)
        ),
    }


SCHEMES = schemes()
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


def arrangements(hypothesis, n_perm, seed=0):
    draws = hypothesis.shuffling.draw(n_perm, seed)
    n = hypothesis.n_rows
    index = np.tile(np.arange(n), (len(draws), 1)) if draws.index is None else draws.index
    sign = np.ones((len(draws), n)) if draws.sign is None else draws.sign
    return list(zip(index.astype(int), sign, strict=True))


def alternatives(hypothesis):
    return ("two-sided", "greater", "less") if hypothesis.rank == 1 else ("two-sided",)


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


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    file = np.memmap(tmp_path_factory.mktemp("map") / "y.dat", np.float32, "w+", shape=MANY.shape)
    file[:] = MANY
    return file


def same(got, expected, message=""):
    np.testing.assert_array_equal(got.p_fwer, expected.p_fwer, err_msg=message)
    np.testing.assert_array_equal(got.p_step_down, expected.p_step_down, err_msg=message)
    np.testing.assert_allclose(got.null_max, expected.null_max, rtol=1e-6, err_msg=message)


@pytest.mark.parametrize("name", SCHEMES)
def test_p_values_do_not_depend_on_storage_blocks_or_threads(name, mapped):
    hypothesis = SCHEMES[name]
    expected = run(MANY, hypothesis, n_perm=300, random_state=3, count=True)
    storages = {
        "float64": MANY.astype(float),
        "csr": sparse.csr_array(MANY),
        "csc": sparse.csc_matrix(MANY),
        "memmap": mapped,
        "torch": torch.tensor(MANY),
        "fortran": np.asfortranarray(MANY),
    }
    for storage, Y in storages.items():
        for n_jobs, block in ((1, (256, 2048)), (2, (64, 100)), (7, (300, 33))):
            got = run(Y, hypothesis, n_perm=300, random_state=3, n_jobs=n_jobs, block=block)
            same(got, expected, f"{storage} {n_jobs} {block}")
    counted = run(torch.tensor(MANY), hypothesis, n_perm=300, random_state=3, block=(7, 90), count=True)
    same(counted, expected)
    np.testing.assert_array_equal(counted.p_permutation, expected.p_permutation)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SCHEMES)
def test_p_values_on_a_gpu_are_those_of_the_cpu(name):
    hypothesis = SCHEMES[name]
    same(run_on_gpu(hypothesis), run(MANY, hypothesis, n_perm=300))


def run_on_gpu(hypothesis):
    return permutation_test(torch.tensor(MANY, device="cuda"), hypothesis, residual_norms(MANY, hypothesis), n_perm=300)


class Blurred(Statistic):
    """Bounds that are valid but far from tight, or too low to be bounds (as products in bfloat16 would give)."""

    added = 0.0, 0.1

    def upper_bounds(self, *arguments):
        found = super().upper_bounds(*arguments)
        return found + np.random.default_rng(0).uniform(*self.added, found.shape).astype(np.float32)


class TooLow(Blurred):
    added = -0.1, 0.0


@pytest.mark.parametrize("statistic", [Blurred, TooLow])
@pytest.mark.parametrize("name", SCHEMES)
def test_decisions_do_not_depend_on_how_good_the_bounds_are(name, statistic):
    hypothesis = SCHEMES[name]
    Y = zero_inflated((24, 1500), 3) + np.linspace(0, 8, 1500) * hypothesis.tested[:, :1]
    norms = residual_norms(Y, hypothesis)
    columns, draws = ResidualColumns(Y, norms, hypothesis), hypothesis.shuffling.draw(300, 0)
    scan = Scan(columns, statistic(hypothesis, "two-sided"), draws, np.arange(1500), (256, 2048), map)
    single, down = scan.through(False, lambda number: None)[0].p_values(draws.exhaustive)
    expected = run(Y, hypothesis, n_perm=300, count=True)
    np.testing.assert_array_equal(single, expected.p_fwer)
    np.testing.assert_array_equal(down, expected.p_step_down)


@pytest.mark.parametrize("name", SCHEMES)
def test_bounds_of_float32_hold_and_are_tight(name):
    hypothesis = SCHEMES[name]
    draws = hypothesis.shuffling.draw(300, 0)
    for alternative in alternatives(hypothesis):
        statistic = Statistic(hypothesis, alternative)
        X = ResidualColumns(MANY[:, :128], residual_norms(MANY[:, :128], hypothesis), hypothesis)(np.arange(128))
        rows = statistic.rows(draws, np.arange(300), None)
        bounds = statistic.upper_bounds(rows, float32_copy(X, None, 64), 64, 100)
        exact = statistic.extremity(statistic.exact(draws, np.arange(300), X)).reshape(300, 2, 64).max(axis=2)
        assert (bounds >= exact).all()
        np.testing.assert_allclose(bounds, np.maximum(exact, 0), atol=1e-4)


@pytest.mark.parametrize("values", ["binary", "counts", "copies"])
def test_ties_are_decided_alike_in_float32_and_float64(values):
    rng = np.random.default_rng(0)
    Y = (rng.random((24, 1500)) < 0.3).astype(float)
    Y = {"binary": Y, "counts": 0.1 * rng.poisson(1, Y.shape), "copies": np.tile(rng.normal(size=(24, 15)), 100)}[
        values
    ]
    for name in ("two_groups", "sign_flip", "three_groups"):
        hypothesis = SCHEMES[name]
        exact = run(Y, hypothesis, n_perm=300, count=True)
        for block in ((256, 2048), (100, 130)):
            same(run(Y, hypothesis, n_perm=300, block=block), exact, f"{values} {name} {block}")
        order = rng.permutation(Y.shape[1])
        np.testing.assert_array_equal(run(Y[:, order], hypothesis, n_perm=300).p_fwer, exact.p_fwer[order])


def test_dense_thresholds_are_decided_alike_in_float32_and_float64():
    """Thousands of effects, and copies that differ by less than float32 resolves."""
    hypothesis = SCHEMES["two_groups"]
    rng = np.random.default_rng(1)
    base = rng.normal(size=(24, 40)) + np.linspace(0, 3, 40) * hypothesis.tested
    Y = np.repeat(base, 60, axis=1) + 1e-5 * rng.normal(size=(24, 2400))
    same(run(Y, hypothesis, n_perm=500), run(Y, hypothesis, n_perm=500, count=True))


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
    np.testing.assert_allclose(long.null_max[:50], short.null_max, rtol=1e-12)


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
