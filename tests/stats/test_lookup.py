"""Products by lookup against matrix products."""

import threading

import numpy as np
import pytest
import torch
from support.hypotheses import SCHEMES, run, zero_inflated

from neurollm.stats import lookup
from neurollm.stats.lookup import Matrix, has_few_levels, one_thread_each, words_of
from neurollm.stats.shufflings import sign_flip, whole_item, within_item
from neurollm.stats.welch import welch_test

RNG = np.random.default_rng(0)


def unit(column):
    return np.asarray(column, float) / np.linalg.norm(column)


COLUMNS = {
    "two groups": (unit(np.repeat([3.0, -1.0], [5, 15])), whole_item(np.repeat([0, 1], [5, 15]))),
    "three groups": (unit(np.repeat([1.0, 0.0, -1.0], [5, 9, 6])), whole_item(np.repeat([0, 1, 2], [5, 9, 6]))),
    "four levels": (unit([-3, -1, 1, 3] * 5), within_item(5, (4,))),
    "signs of any column": (unit(RNG.normal(size=20)), sign_flip(10, 2)),
    "more rows than one table": (unit(np.repeat([1.0, -1.0], [200, 301])), whole_item(np.repeat([0, 1], [200, 301]))),
    "two rows": (unit([1.0, -1.0]), whole_item([0, 1])),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_sums_looked_up_are_the_products(name):
    column, shuffling = COLUMNS[name]
    draws = shuffling.draw(100, 0)
    X = RNG.normal(size=(column.size, 37)).astype(np.float32)
    assert has_few_levels(column, draws)
    which = np.arange(len(draws))[::-1]
    words = words_of(column, draws, which)
    matrix = Matrix(draws.rows(column.astype(np.float32), which))
    assert len(words) == len(matrix) == len(draws)
    exact = draws.rows(column, which) @ X.astype(float)
    for part in (slice(0, len(draws)), slice(len(draws) // 2, len(draws) // 2 + 1)):
        found = words.on(torch.from_numpy(X))(part, None).numpy()
        np.testing.assert_allclose(found, exact[part], atol=1e-5)
        np.testing.assert_allclose(found, matrix.on(X)(part, None), atol=1e-5)


def test_columns_with_many_numbers_are_not_looked_up():
    shuffling = whole_item(np.arange(20))
    draws = shuffling.draw(10, 0)
    assert not has_few_levels(unit(np.arange(20.0)), draws)
    assert not has_few_levels(unit([-2, -1, 0, 1, 2] * 4), draws)
    rounding = 1e-14 * RNG.normal(size=20)
    assert has_few_levels(unit(np.repeat([1.0, -1.0], 10)) + rounding, draws)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("stored", [np.asarray, torch.tensor])
def test_decisions_are_those_of_matrix_products(name, stored, monkeypatch):
    """Whether a scheme's columns can be looked up (most) or not (covariates that are moved)."""
    hypothesis = SCHEMES[name]
    Y = zero_inflated((24, 1500), 3) + np.linspace(0, 8, 1500) * hypothesis.tested[:, :1]
    alternatives = ("two-sided", "greater") if hypothesis.rank == 1 else ("two-sided",)
    expected = [run(Y, hypothesis, n_perm=300, alternative=alternative) for alternative in alternatives]
    monkeypatch.setattr(lookup, "WORTHWHILE", 0)
    for n_jobs, block in ((1, (256, 2048)), (2, (64, 100))):
        for alternative, matrices in zip(alternatives, expected, strict=True):
            got = run(stored(Y), hypothesis, n_perm=300, n_jobs=n_jobs, block=block, alternative=alternative)
            np.testing.assert_array_equal(got.p_fwer, matrices.p_fwer)
            np.testing.assert_array_equal(got.p_step_down, matrices.p_step_down)
            np.testing.assert_allclose(got.null_max, matrices.null_max, rtol=1e-6)


def test_large_tests_look_up_and_others_multiply(monkeypatch):
    called, on = [], lookup.Words.on
    monkeypatch.setattr(lookup.Words, "on", lambda self, X: called.append(1) or on(self, X))
    hypothesis, Y = SCHEMES["two_groups"], zero_inflated((24, 1500), 3)
    run(Y, hypothesis, n_perm=300)
    assert not called
    monkeypatch.setattr(lookup, "WORTHWHILE", 24 * 1400 * 300)
    run(Y, hypothesis, n_perm=300)
    assert not called  # the 512 most extreme columns are computed in full
    monkeypatch.setattr(lookup, "WORTHWHILE", 24 * 900 * 300)
    run(Y, hypothesis, n_perm=300)
    assert called


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_number_of_torch_threads_comes_back(three_threads):
    with pytest.raises(KeyError), one_thread_each():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3
    here = one_thread_each()
    inside, leave, numbers = threading.Event(), threading.Event(), []

    def elsewhere():
        numbers.append(torch.get_num_threads())
        with one_thread_each():
            inside.set()
            leave.wait()
        numbers.append(torch.get_num_threads())

    here.__enter__()
    other = threading.Thread(target=elsewhere)
    other.start()
    inside.wait()
    here.__exit__(None, None, None)
    assert torch.get_num_threads() == 3
    leave.set()
    other.join()
    assert torch.get_num_threads() == 3 and numbers == [1, 3]


def test_threads_of_a_pool_look_up_with_one_torch_thread_each(three_threads, monkeypatch):
    seen, on = [], lookup.Words.on
    monkeypatch.setattr(lookup, "WORTHWHILE", 0)
    monkeypatch.setattr(lookup.Words, "on", lambda self, X: seen.append(torch.get_num_threads()) or on(self, X))
    run(zero_inflated((24, 1500), 3), SCHEMES["two_groups"], n_perm=100, n_jobs=2)
    assert set(seen) == {1} and torch.get_num_threads() == 3
    run(zero_inflated((24, 1500), 3), SCHEMES["two_groups"], n_perm=100, n_jobs=1)
    assert set(seen) == {1, 3}


def test_a_default_device_of_torch_is_not_taken_for_numpy_data(monkeypatch):
    monkeypatch.setattr(lookup, "WORTHWHILE", 0)
    Y, hypothesis = zero_inflated((24, 1500), 3), SCHEMES["sign_flip"]
    expected = run(Y, hypothesis, n_perm=100)
    torch.set_default_device("meta")
    try:
        np.testing.assert_array_equal(run(Y, hypothesis, n_perm=100).p_fwer, expected.p_fwer)
    finally:
        torch.set_default_device(None)


def test_welch_never_looks_up(monkeypatch):
    monkeypatch.setattr(lookup, "WORTHWHILE", 0)
    Y, codes = zero_inflated((24, 1500), 3), np.repeat([0, 1], [10, 14])
    norms = np.linalg.norm(Y - Y.mean(0), axis=0)
    assert welch_test(Y, codes, np.array([1.0, -1.0]), norms, whole_item(codes), n_perm=50).p_fwer.size == 1500
