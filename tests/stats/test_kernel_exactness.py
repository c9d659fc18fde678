"""The permutation kernel decides alike over storage, blocks, threads, ties and bounds."""

import numpy as np
import pytest
import torch
from scipy import sparse
from support.hypotheses import SCHEMES, alternatives, residual_norms, run, zero_inflated

from neurollm.stats.kernel import permutation_test
from neurollm.stats.products import ResidualColumns, Statistic, float32_copy
from neurollm.stats.scan import Scan

MANY = zero_inflated((24, 700), 3).astype(np.float32)


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
        exact = statistic.extremity(statistic.exact(draws, np.arange(300), X)).reshape(300, 2, 64).max(axis=2)
        ways = [(statistic.matrices(draws, np.arange(300), None), None)]
        if statistic.has_words(draws):
            ways.append((statistic.words(draws, np.arange(300)), torch.device("cpu")))
        for rows, device in ways:
            for width in (64, 128):
                bounds = statistic.upper_bounds(rows, float32_copy(X, device, 64), 64, (100, width))
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
