"""Inference on RDMs, against rsatoolbox, enumeration and simulations."""

import itertools
import signal
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.comparators import COMPARISONS, compare_rdms
from neurollm.rsa.inference import compare_models, fit_weights
from neurollm.rsa.permutation import permute_conditions
from neurollm.rsa.toolbox import square, to_rsatoolbox
from neurollm.stats.rdms.labels import categorical_rdm, discriminative_rdm
from neurollm.stats.shufflings import within_item

rsatoolbox = pytest.importorskip("rsatoolbox")


def distances(x):
    return ((x[:, None] - x) ** 2).sum(axis=-1)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


@pytest.fixture
def points():
    """Data RDMs that follow the model 'true', and a model they do not follow."""
    rng = np.random.default_rng(0)
    true, other = rng.normal(size=(2, 12, 4))
    data = to_rsatoolbox({f"seed {k}": distances(true + 0.6 * rng.normal(size=true.shape)) for k in range(6)})
    return data, {"true": distances(true), "other": distances(other)}


# Inference over stimuli, RDMs, or both


@pytest.mark.parametrize("comparison", ["pearson", "cosine", "spearman", "rho_a", "tau_a", "whitened_pearson"])
@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
def test_without_resampling_it_is_a_t_test_over_rdms(points, comparison):
    data, models = points
    result = compare_models(data, models, comparison, "none")
    per = compare_rdms(data, np.array([upper(m) for m in models.values()]), comparison)
    expected = stats.ttest_1samp(per, 0, alternative="greater")
    np.testing.assert_allclose(result.p_zero, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(result.r, per.mean(axis=0))
    interval = stats.ttest_1samp(per, 0).confidence_interval(0.95)
    np.testing.assert_allclose([result.ci_low, result.ci_high], [interval.low, interval.high], rtol=1e-9)
    paired = stats.ttest_rel(per[:, 0], per[:, 1])
    assert result.pairwise["p"][0] == pytest.approx(paired.pvalue, rel=1e-9)
    lower, upper_bound = result.noise_ceiling
    ceiling = rsatoolbox.inference.boot_noise_ceiling(data, method=COMPARISONS[comparison])
    assert (lower, upper_bound) == pytest.approx(ceiling)
    assert result.p_noise_ceiling[0] == pytest.approx(stats.ttest_1samp(per[:, 0], lower).pvalue, rel=1e-6)


@pytest.mark.parametrize("resample", ["conditions", "rdms", "both"])
def test_bootstraps_are_those_of_rsatoolbox(points, resample):
    """Its own functions, called with its own seed, give the same variances and p values."""
    from neurollm.random import stream

    data, models = points
    ours = compare_models(data, models, "pearson", resample, n_boot=40, random_state=3, verbose=0)
    fixed = [rsatoolbox.model.ModelFixed(name, upper(m)) for name, m in models.items()]
    names = {"conditions": "eval_bootstrap_pattern", "rdms": "eval_bootstrap_rdm", "both": "eval_dual_bootstrap"}
    state = np.random.get_state()
    np.random.seed(stream(3, "rsatoolbox").integers(0, 2**32, size=8, dtype=np.uint32))
    theirs = getattr(rsatoolbox.inference, names[resample])(fixed, data, method="corr", N=40)
    np.random.set_state(state)
    assert ours.dof == theirs.dof
    quantile = stats.t.ppf(0.975, theirs.dof)
    np.testing.assert_allclose((ours.ci_high - ours.ci_low) / 2 / quantile, theirs.get_sem(), rtol=1e-9)
    half = (ours.pairwise["ci_high"] - ours.pairwise["ci_low"]) / 2 / quantile
    # rsatoolbox tests the mean of the bootstrap samples, we the estimate itself
    np.testing.assert_allclose(half, np.sqrt(theirs.diff_var), rtol=1e-9)
    np.testing.assert_allclose(ours.r, rsatoolbox.inference.eval_fixed(fixed, data, method="corr").get_means())
    assert ours.p_zero[0] < 0.01 < ours.p_zero[1] and ours.pairwise["p_adjusted"][0] < 0.05


def test_same_seed_same_numbers_and_the_global_state_stays(points):
    data, models = points
    state, before = np.random.get_state(), (data.to_dict(), {k: v.copy() for k, v in models.items()})
    evaluate, compare = sys.modules["rsatoolbox.inference.evaluate"], sys.modules["rsatoolbox.rdm.compare"]
    patched = evaluate.tqdm, compare._cosine_cov_weighted
    runs = [compare_models(data, models, "whitened", "both", n_boot=20, random_state=s, verbose=0) for s in (1, 1, 2)]
    after = np.random.get_state()
    assert state[0] == after[0] and (state[1] == after[1]).all() and state[2:] == after[2:]
    assert (evaluate.tqdm, compare._cosine_cov_weighted) == patched
    pd.testing.assert_frame_equal(runs[0].to_frame(), runs[1].to_frame())
    assert (runs[0].ci_low != runs[2].ci_low).all()
    np.testing.assert_array_equal(data.dissimilarities, before[0]["dissimilarities"])
    assert set(data.pattern_descriptors) == {"index"}
    assert all((models[name] == before[1][name]).all() for name in models)


def test_whitened_bootstrap_of_100_conditions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3))
    data = to_rsatoolbox({"one": distances(x + rng.normal(size=x.shape))})
    fixed = [rsatoolbox.model.ModelFixed("x", upper(distances(x)))]
    with pytest.raises(TypeError):
        rsatoolbox.inference.eval_bootstrap_pattern(fixed, data, method="cosine_cov", N=2, boot_noise_ceil=False)
    found = compare_models(data, {"x": distances(x)}, "whitened", "conditions", n_boot=20, verbose=0)
    assert found.ci_low[0] < found.r[0] < found.ci_high[0] < found.ci_low[0] + 0.4 and found.n_failed == 0


@pytest.mark.parametrize("resample", ["conditions", "rdms"])
def test_percentile_test(points, resample):
    data, models = points
    result = compare_models(data, models, "pearson", resample, n_boot=60, test="percentile", verbose=0)
    assert result.p_zero[0] == 1 / 61 and result.pairwise["p"][0] == 2 / 61
    assert 1 / 61 < result.p_zero[1] <= 1
    assert (result.ci_low < result.r).all() and (result.r < result.ci_high).all()
    fixed = [rsatoolbox.model.ModelFixed("true", upper(models["true"]))]
    theirs = rsatoolbox.inference.eval_bootstrap_pattern(fixed, data, method="corr", N=5)
    with pytest.raises(ValueError, match="shape"):
        theirs.test_all("bootstrap")


def test_one_rdm_has_no_noise_ceiling(points):
    data, models = points
    one = data.subset("index", 0)
    assert np.allclose(rsatoolbox.inference.boot_noise_ceiling(one, method="corr"), 1)  # of no meaning
    result = compare_models(one, models, "pearson", "conditions", n_boot=30, verbose=0)
    assert result.noise_ceiling is None and np.isnan(result.p_noise_ceiling).all() and np.isfinite(result.p_zero).all()
    assert "No noise ceiling: one RDM has none" in result.verdict()
    result = compare_models(one, models, "pearson", "none")
    assert np.isnan(result.p_zero).all() and "no conclusion beyond itself" in result.verdict()
    for resample in ("rdms", "both"):
        with pytest.raises(InvalidInput, match="1 independent RDMs are too few"):
            compare_models(one, models, "pearson", resample)


def test_groups_count_once(points):
    """Copies of an RDM, and wordings of an item, add nothing to what is known."""
    data, models = points
    copies = rsatoolbox.rdm.RDMs(
        np.repeat(data.dissimilarities, 3, axis=0), rdm_descriptors={"seed": np.repeat(range(6), 3).tolist()}
    )
    once = compare_models(data, models, "pearson", "none")
    grouped = compare_models(copies, models, "pearson", "none", rdm_groups="seed")
    np.testing.assert_allclose(grouped.p_zero, once.p_zero, rtol=1e-9)
    assert compare_models(copies, models, "pearson", "none").p_zero[0] < once.p_zero[0]
    assert grouped.noise_ceiling == pytest.approx(once.noise_ceiling)
    items = np.repeat(range(6), 2)
    options = {"n_boot": 60, "verbose": 0}
    found = compare_models(data, models, "pearson", "conditions", condition_groups=items, **options)
    assert found.dof == 5 and compare_models(data, models, "pearson", "conditions", **options).dof == 11
    with pytest.raises(InvalidInput, match="no descriptor 'sede'; did you mean 'seed'"):
        compare_models(copies, models, "pearson", "none", rdm_groups="sede")
    with pytest.raises(InvalidInput, match="2 independent ones are too few"):
        compare_models(data, models, "pearson", "conditions", condition_groups=np.arange(12) % 2)


def test_conditions_and_pairs_that_are_missing_somewhere_are_left_out_of_all(points):
    data, models = points
    dead = data.copy()
    matrices = dead.get_matrices()
    matrices[2, 4] = matrices[2, :, 4] = np.nan
    rdms = rsatoolbox.rdm.RDMs(matrices)
    fixed = [rsatoolbox.model.ModelFixed("true", upper(models["true"]))]
    with pytest.raises(ValueError, match="different nan positions"):
        rsatoolbox.inference.eval_fixed(fixed, rdms, method="corr")
    found = compare_models(rdms, models, "pearson", "none")
    rest = np.delete(np.arange(12), 4)
    less = compare_models(
        rsatoolbox.rdm.RDMs(matrices[:, rest][:, :, rest]),
        {name: m[np.ix_(rest, rest)] for name, m in models.items()},
        "pearson",
        "none",
    )
    np.testing.assert_allclose(found.r, less.r)
    assert found.dropped == (4,) and found.n_conditions == 11 and "1 conditions" in found.verdict()
    models["coherent"] = discriminative_rdm(np.arange(12) % 3, 0)
    found = compare_models(data, models, "pearson", "both", n_boot=20, verbose=0)
    assert found.n_pairs_left_out == 28 and found.n_pairs == 38 and np.isfinite(found.p_zero).all()
    there = ~np.isnan(upper(models["coherent"]))
    expected = np.corrcoef(data.dissimilarities[:, there], upper(models["true"])[there])[-1, :-1].mean()
    assert found.r[0] == pytest.approx(expected)


def test_last_fold_of_poisson_cv_is_refused(points):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, calc_rdm_unbalanced

    _, models = points
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.poisson(3, (36, 10)).astype(float),
        obs_descriptors={"c": np.tile(range(12), 3), "run": np.repeat(range(3), 12)},
    )
    with np.errstate(invalid="ignore"):
        theirs = calc_rdm(data, "poisson_cv", descriptor="c", cv_descriptor="run")
        right = calc_rdm_unbalanced(data, "poisson_cv", descriptor="c", cv_descriptor="run")
    assert np.abs(theirs.dissimilarities - right.dissimilarities).max() > 0.01
    with pytest.raises(InvalidInput, match="the last fold alone"):
        compare_models(theirs, models, "pearson", "none")


def test_weights_are_fitted_where_rsatoolbox_does_not_end():
    """Its solver waits for a gradient below a fixed 2e-14, which rounding may never give."""
    rng = np.random.default_rng(0)
    true, other = rng.normal(size=(2, 20, 5))
    data = to_rsatoolbox({str(k): distances(true + 0.7 * rng.normal(size=true.shape)) for k in range(6)})
    parts = to_rsatoolbox({"true": distances(true), "other": distances(other)})
    for scale in (1e-3, 1e3):
        weighted = rsatoolbox.model.ModelWeighted("w", scale * parts.dissimilarities)
        for method in ("corr", "cosine"):
            found = fit_weights(weighted, data, method)
            best = weighted.fit(data, method=method)  # its slow search
            own, theirs = (
                rsatoolbox.rdm.compare(weighted.predict_rdm(np.maximum(t, 0)), data, method).mean()
                for t in (found, best)
            )
            assert own >= theirs - 1e-6 and np.linalg.norm(found) == pytest.approx(1)

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    ended = []
    try:
        for scale in 10.0 ** np.arange(-3, 7):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                weighted = rsatoolbox.model.ModelWeighted("w", scale * parts.dissimilarities)
                rsatoolbox.model.fit_regress_nn(weighted, data, method="corr")
                ended.append(scale)
            except TimeoutError:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(ended) < 10


@pytest.mark.parametrize("resample", ["conditions", "rdms", "both"])
def test_weighted_models_are_crossvalidated(points, resample):
    """A weighted model of noise components does not win over the true one."""
    data, models = points
    rng = np.random.default_rng(5)
    noise = np.array([distances(rng.normal(size=(12, 2))) for _ in range(8)])
    candidates = {
        "true and other": np.array([models["true"], models["other"]]),
        "noise": noise,
        "true": models["true"],
    }
    result = compare_models(data, candidates, "pearson", resample, n_boot=20, verbose=0)
    assert result.to_frame()["model"].iloc[-1] == "noise" and result.n_failed <= 10
    assert result.r[0] > 0.2 and abs(result.r[0] - result.r[2]) < 0.1
    assert (result.noise_ceiling is None) == (resample == "conditions")
    with pytest.raises(InvalidInput, match="weighted models are fitted for"):
        compare_models(data, candidates, "spearman", resample)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resample": "stimuli"}, "which population the result should hold for. 'conditions': new stimuli"),
        ({"correction": "fdr"}, "correction is 'fdr'"),
        ({"alpha": 5}, "alpha is 5"),
        ({"n_boot": 3}, "n_boot is 3"),
        ({"test": "bootstrap"}, "test is 'bootstrap'"),
        ({"test": "percentile", "resample": "both"}, "vary more than the estimate"),
        ({"models": {}}, "no model RDMs"),
        ({"models": {"flat": 1 - np.eye(12)}}, "'flat': all its distances are alike"),
        ({"models": {"zero": 0 * np.eye(12)}, "comparison": "cosine"}, "'zero': all its distances are alike"),
        ({"data_rdms": np.ones((2, 66))}, "expected rsatoolbox.rdm.RDMs"),
    ],
)
def test_wrong_arguments_are_told(points, change, sentence):
    arguments = {"data_rdms": points[0], "models": points[1], "comparison": "pearson", "resample": "none"} | change
    with pytest.raises(InvalidInput, match=sentence):
        compare_models(**arguments)


def test_what_is_above_zero_without_a_relation_is_said(points):
    """A model in which all distances are alike has a cosine with everything."""
    data, models = points
    found = compare_models(data, {"flat": 1 - np.eye(12), "other": models["other"]}, "cosine", "none")
    assert (found.p_zero < 1e-4).all() and (found.r > 0.5).all()
    assert "Unrelated RDMs have a cosine r above 0 too" in found.verdict()


def test_other_conditions_are_told(points):
    data, models = points
    with pytest.raises(DataMismatch, match="has 11 conditions but the data RDMs have 12"):
        compare_models(data, {"m": models["true"][:11, :11]}, "pearson", "none")
    names = pd.DataFrame({"stimulus": [f"s{k}" for k in range(12)]})
    data.pattern_descriptors["stimulus"] = names["stimulus"].tolist()
    compare_models(data, to_rsatoolbox(models, names), "pearson", "none")
    for order, sentence in ((names[::-1], "the same values in another order"), (names + "x", "other values")):
        with pytest.raises(DataMismatch, match=sentence):
            compare_models(data, to_rsatoolbox(models, order), "pearson", "none")


def simulated(seed, n=12, n_rdms=7):
    """New stimuli and new RDMs of one population: each RDM weighs three properties in its own way and adds noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    noisy = [distances(x * np.exp(0.5 * rng.normal(size=3)) + 0.5 * rng.normal(size=x.shape)) for _ in range(n_rdms)]
    return to_rsatoolbox({str(k): D for k, D in enumerate(noisy)}), {
        "one": distances(x[:, :1]),
        "two": distances(x[:, 1:]),
    }


def test_intervals_cover_the_truth():
    truth = []
    for seed in range(1000, 1400):
        data, models = simulated(seed)
        truth.append(compare_rdms(data, np.array([upper(m) for m in models.values()])).mean(axis=0))
    truth = np.mean(truth, axis=0)
    covered = {"both": [], "none": []}
    for seed in range(16):
        for resample, found in covered.items():
            result = compare_models(*simulated(seed), "pearson", resample, n_boot=30, random_state=seed, verbose=0)
            found.append((result.ci_low <= truth) & (truth <= result.ci_high))
    assert np.mean(covered["both"]) >= 0.85
    # With both factors random, an interval for the same stimuli is too short.
    assert np.mean(covered["none"]) < np.mean(covered["both"]) - 0.1


# Permutation of conditions


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_permutations_are_enumerated_and_counted(comparison):
    rng = np.random.default_rng(1)
    data, one, two = (distances(rng.normal(size=(5, 2))) for _ in range(3))
    result = permute_conditions(data, {"one": one, "two": two}, comparison, alternative="greater")
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    vectors = np.array([[upper(m[np.ix_(o, o)]) for o in orders] for m in (one, two)])
    null = np.array([compare_rdms(v, upper(data), comparison)[:, 0] for v in vectors])
    assert result.exhaustive and result.n_perm == 120
    np.testing.assert_allclose(result.r, null[:, 0])
    np.testing.assert_allclose(result.p, (null >= null[:, :1] - 1e-9).mean(axis=1))
    z = (null - null.mean(axis=1, keepdims=True)) / null.std(axis=1, keepdims=True)
    np.testing.assert_allclose(result.p_fwer, [(z.max(axis=0) >= z[k, 0] - 1e-9).mean() for k in range(2)])
    two_sided = permute_conditions(data, {"one": one}, comparison, alternative="two-sided")
    assert two_sided.p[0] == pytest.approx((np.abs(z[0]) >= abs(z[0, 0]) - 1e-9).mean())


def test_random_permutations_count_the_observed_one(points):
    data, models = points
    result = permute_conditions(data.subset("index", 0), models, n_perm=99, random_state=4)
    assert not result.exhaustive and result.p[0] == 0.01 and result.p_fwer[0] == 0.01 and result.p[1] > 0.05
    again = permute_conditions(data.subset("index", 0), models, n_perm=99, random_state=4)
    pd.testing.assert_frame_equal(result.to_frame(), again.to_frame())
    assert "1 of 2 models" in result.verdict() and "99 random" in result.verdict()
    with pytest.raises(InvalidInput, match="holds 6 RDMs"):
        permute_conditions(data, models)


def test_p_values_are_uniform_without_a_relation():
    rng = np.random.default_rng(7)
    p, family = [], []
    for seed in range(150):
        x = rng.normal(size=(9, 2)) * rng.exponential(size=(9, 1))
        models = {k: distances(rng.normal(size=(9, 1)) ** 3) for k in "abc"}
        found = permute_conditions(distances(x), models, n_perm=59, random_state=seed)
        p.append(found.p[0])
        family.append(found.p_fwer.min() <= 0.1)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(family) <= 0.1 + 3 * np.sqrt(0.09 / 150)


def test_blocks_restrict_what_changes_places():
    """What differs between blocks alone is significant over all orders, and cannot be tested inside blocks."""
    rng = np.random.default_rng(2)
    block = np.repeat([0, 1, 2], 4)
    D = distances(block[:, None] * 3.0 + rng.normal(size=(12, 1)) * 0.3)
    models = {"block": categorical_rdm(block), "noise": distances(rng.normal(size=(12, 1)))}
    assert permute_conditions(D, models, n_perm=199).p[0] == 0.005
    inside = permute_conditions(D, models, blocks=block, n_perm=199)
    assert np.isnan(inside.p[0]) and np.isfinite(inside.p[1]) and inside.p_fwer[1] == inside.p[1]
    few = permute_conditions(D[:6, :6], {"noise": models["noise"][:6, :6]}, blocks=[0, 0, 1, 1, 2, 2])
    assert few.exhaustive and few.n_perm == 8
    same = permute_conditions(D[:6, :6], {"noise": models["noise"][:6, :6]}, shuffling=within_item(3, (2,)))
    assert same.n_perm == 8 and same.p[0] == few.p[0]
    for wrong, sentence in (
        ({"shuffling": within_item(2, (2,))}, "of 4 rows"),
        ({"n_perm": 2}, "n_perm is 2"),
        ({"n_perm": "a"}, "n_perm must be a whole number, found 'a'"),
        ({"random_state": "a"}, "random_state must be a whole number of at least 0, found 'a'"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            permute_conditions(D, models, **wrong)


def test_partial_test_takes_the_nuisance_out():
    rng = np.random.default_rng(3)
    length, meaning = rng.normal(size=(2, 14, 1))
    nuisance = {"length": distances(length)}
    confounded = distances(length) + 0.3 * distances(rng.normal(size=(14, 1)))
    models = {"confounded": confounded, "meaning": distances(meaning)}
    D = distances(length) + 0.7 * distances(meaning) + 0.1 * distances(rng.normal(size=(14, 2)))
    plain = permute_conditions(D, models, n_perm=199)
    partial = permute_conditions(D, models, nuisance=nuisance, n_perm=199)
    assert plain.p[0] <= 0.01 and partial.p[0] > 0.05 and partial.p[1] <= 0.01
    y, x, c = (upper(m) for m in (D, models["meaning"], nuisance["length"]))
    design = np.column_stack([np.ones_like(c), c])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (y, x)]
    assert partial.r[1] == pytest.approx(np.corrcoef(*left)[0, 1]) and "approximate" in partial.verdict()
    ranked = permute_conditions(D, models, "spearman", nuisance=nuisance, n_perm=20).r[1]
    design[:, 1] = stats.rankdata(c)
    left = [stats.rankdata(v) for v in (y, x)]
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in left]
    assert ranked == pytest.approx(np.corrcoef(*left)[0, 1])
    with pytest.raises(InvalidInput, match="not 'tau_a'"):
        permute_conditions(D, models, "tau_a", nuisance=nuisance)


def test_the_residual_of_the_model_changes_places():
    rng = np.random.default_rng(6)
    nuisance, model, data = (distances(rng.normal(size=(5, 1))) for _ in range(3))
    model = model + 2 * nuisance
    design = np.column_stack([np.ones(10), upper(nuisance)])

    def residual(vector):
        return vector - design @ np.linalg.lstsq(design, vector, rcond=None)[0]

    left, null = square(residual(upper(model))[None])[0], []
    for order in itertools.permutations(range(5)):
        moved = residual(upper(left[np.ix_(order, order)]))
        null.append(np.corrcoef(moved, residual(upper(data)))[0, 1])
    found = permute_conditions(data, {"model": model}, nuisance={"nuisance": nuisance})
    assert found.r[0] == pytest.approx(null[0])
    assert found.z[0] == pytest.approx((null[0] - np.mean(null)) / np.std(null))
    assert found.p[0] == pytest.approx(np.mean(np.array(null) >= null[0] - 1e-9))


def test_left_out_pairs_move_with_the_model():
    rng = np.random.default_rng(4)
    labels = np.arange(6) % 3
    D, model = distances(rng.normal(size=(6, 2))), discriminative_rdm(labels, 1)
    result = permute_conditions(D, {"m": model})
    null = []
    for order in itertools.permutations(range(6)):
        moved = upper(model[np.ix_(order, order)])
        there = ~np.isnan(moved)
        null.append(np.corrcoef(moved[there], upper(D)[there])[0, 1])
    assert result.exhaustive and result.r[0] == pytest.approx(null[0])
    assert result.p[0] == pytest.approx(np.mean(np.array(null) >= null[0] - 1e-9))
    with pytest.raises(InvalidInput, match="use comparison 'pearson' or 'cosine'"):
        permute_conditions(D, {"m": model}, "spearman")
    D[2] = D[:, 2] = np.nan
    D[2, 2] = 0
    rest = [0, 1, 3, 4, 5]
    whole = permute_conditions(D, {"m": categorical_rdm(labels)})
    less = permute_conditions(D[np.ix_(rest, rest)], {"m": categorical_rdm(labels[rest])})
    assert whole.dropped == (2,) and whole.p[0] == less.p[0] and whole.r[0] == less.r[0]
    assert square(upper(D)[None]).shape == (1, 6, 6)
