"""Ridge refits against scikit-learn and against an explicit solution of the normal equations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import Ridge

from neurollm.errors import InvalidInput
from neurollm.interactions import refit as module
from neurollm.interactions.refit import COLUMN_PENALTIES, PENALTIES, Refit
from neurollm.interactions.rows import CodedRows

F, D, K = 12, 4, 3
DEAD = 5
DRAW = np.random.default_rng(8)
MIX = DRAW.normal(size=(F, K))


def columns(code):
    """Some non-linear function of a code, with a mean and unequal scales."""
    values = np.square(code.toarray().astype(float) @ MIX) * [1.0, 30.0, 0.01] + [2.0, 0.0, 1.0]
    return torch.from_numpy(values)


def rows_of(n, seed, noise=1.0, curved=0.0):
    draw = np.random.default_rng(seed)
    dense = np.where(draw.random((n, F)) < 0.4, draw.exponential(size=(n, F)), 0).astype(np.float32)
    dense[:, DEAD] = 0
    codes = sp.csr_matrix(dense)
    true = np.random.default_rng(0).normal(size=(F, D))
    error = dense @ true + curved * columns(codes).numpy() @ np.random.default_rng(1).normal(size=(K, D))
    error = error + noise * draw.normal(size=(n, D)) + 3
    return CodedRows.from_arrays(codes, error, documents=np.arange(n) // 10)


@pytest.fixture(scope="module")
def data():
    return rows_of(300, 1, noise=6, curved=0.1), rows_of(200, 2, noise=6, curved=0.1)


def dense_of(rows, code="code"):
    batch = next(rows.in_order(10_000))
    return getattr(batch, code).toarray().astype(float), batch.error.double().numpy()


def unit_of(codes):
    """t: the mean over features of what centring leaves of their squares."""
    return np.square(codes - codes.mean(0)).sum(0).mean()


def ridge(codes, error, penalty):
    if np.isinf(penalty):
        return np.zeros((codes.shape[1], error.shape[1])), error.mean(0)
    fitted = Ridge(alpha=penalty * unit_of(codes)).fit(codes, error)
    return fitted.coef_.T, fitted.intercept_


def generalised(codes, phi, error, penalty, column_penalty):
    """Minimise Σ‖e − sW − φA − b‖² + λt‖W‖² + μ Σ v_j ‖A_j‖², all at once."""
    s, f, e = codes - codes.mean(0), phi - phi.mean(0), error - error.mean(0)
    G = s.T @ s + penalty * unit_of(codes) * np.eye(F)
    v = np.diag(f.T @ (f - s @ np.linalg.solve(G, s.T @ f)))
    design = np.hstack([s, f])
    weights = np.diag(np.r_[np.full(F, penalty * unit_of(codes)), column_penalty * v])
    both = np.linalg.solve(design.T @ design + weights, design.T @ e)
    return both[:F], both[F:], error.mean(0) - codes.mean(0) @ both[:F] - phi.mean(0) @ both[F:]


def only(monkeypatch, penalty, column_penalty=np.inf):
    """A grid of one penalty (and ∞ where the error alone would be chosen)."""
    monkeypatch.setattr(module, "PENALTIES", (penalty, np.inf))
    monkeypatch.setattr(module, "COLUMN_PENALTIES", (column_penalty,))


@pytest.mark.parametrize("penalty", PENALTIES[:-1])
def test_the_refit_is_a_ridge_regression_with_intercept(data, penalty, monkeypatch):
    only(monkeypatch, penalty)
    refit = Refit(rows_of(300, 1), rows_of(200, 2))
    W, b = ridge(*dense_of(rows_of(300, 1)), penalty)
    assert refit.linear.penalty == penalty
    assert np.allclose(refit.linear.W, W, atol=1e-8) and np.allclose(refit.linear.b, b, atol=1e-8)
    assert not refit.linear.W[DEAD].any()
    batch = next(data[1].in_order(50))
    assert np.allclose(refit.linear.predict(batch), batch.code @ W + b, atol=1e-8)


def test_the_penalty_is_the_one_that_validation_documents_want(data):
    fit, validation = data
    codes, error = dense_of(validation)
    losses = {}
    for penalty in PENALTIES:
        W, b = ridge(*dense_of(fit), penalty)
        losses[penalty] = np.square(error - codes @ W - b).sum()
    refit = Refit(fit, validation)
    assert refit.linear.penalty == min(losses, key=losses.get) not in (PENALTIES[0], np.inf)
    assert np.allclose(refit.bias, dense_of(fit)[1].mean(0))


def test_without_a_relation_the_refit_is_the_mean():
    draw = np.random.default_rng(0)
    fit, validation = (
        CodedRows.from_arrays(dense_of(rows_of(n, seed))[0], draw.normal(size=(n, D)))
        for n, seed in ((40, 1), (400, 2))
    )
    refit = Refit(fit, validation)
    assert np.isinf(refit.linear.penalty) and not refit.linear.W.any() and np.array_equal(refit.linear.b, refit.bias)
    beside = refit.with_columns(columns)
    s, f = dense_of(fit)[1], columns(next(fit.in_order(1000)).code).numpy()
    if np.isfinite(beside.column_penalty):  # and columns stand alone
        f = f - f.mean(0)
        A = np.linalg.solve(f.T @ f + beside.column_penalty * np.diag(np.diag(f.T @ f)), f.T @ s)
        assert np.allclose(beside.A, A)
    assert not beside.W.any()


@pytest.mark.parametrize(("penalty", "column_penalty"), list(itertools.product((1e-3, 0.1, 10.0), (1e-4, 1e-2, 1.0))))
def test_code_and_columns_are_solved_together(data, penalty, column_penalty, monkeypatch):
    only(monkeypatch, penalty, column_penalty)
    fit = rows_of(300, 1, curved=0.1)
    solution = Refit(fit, rows_of(200, 2, curved=0.1)).with_columns(columns)
    codes, error = dense_of(fit)
    W, A, b = generalised(codes, columns(sp.csr_matrix(codes)).numpy(), error, penalty, column_penalty)
    assert (solution.penalty, solution.column_penalty) == (penalty, column_penalty)
    for found, expected in ((solution.W, W), (solution.A, A), (solution.b, b)):
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert not solution.W[DEAD].any()
    batch = next(fit.in_order(64))
    by_hand = batch.code @ W + columns(batch.code).numpy() @ A + b
    assert np.allclose(solution.predict(batch, columns), by_hand, atol=1e-6)


def test_the_column_penalty_is_the_one_that_validation_documents_want(data):
    fit, validation = data
    refit = Refit(fit, validation)
    codes, error = dense_of(validation)
    phi = columns(sp.csr_matrix(codes)).numpy()
    losses = {np.inf: np.square(error - codes @ refit.linear.W - refit.linear.b).sum()}
    fitted, target = dense_of(fit)
    for penalty in COLUMN_PENALTIES[:-1]:
        W, A, b = generalised(fitted, columns(sp.csr_matrix(fitted)).numpy(), target, refit.linear.penalty, penalty)
        losses[penalty] = np.square(error - codes @ W - phi @ A - b).sum()
    solution = refit.with_columns(columns)
    assert solution.column_penalty == min(losses, key=losses.get) and len(set(losses.values())) == len(losses)
    candidates = np.sort(list(losses.values()))
    batch = next(validation.in_order(1000))
    assert np.square(error - solution.predict(batch, columns)).sum() == pytest.approx(candidates[0], rel=1e-9)


def test_without_columns_worth_having_the_model_is_the_refit_to_the_last_bit(data, monkeypatch):
    fit, validation = data
    refit = Refit(fit, validation)
    monkeypatch.setattr(module, "COLUMN_PENALTIES", (np.inf,))
    solution = refit.with_columns(columns)
    assert not solution.A.any() and solution.A.shape == (K, D)
    assert np.array_equal(solution.W, refit.linear.W) and np.array_equal(solution.b, refit.linear.b)
    for batch in validation.in_order(37):
        assert np.array_equal(solution.predict(batch, columns), refit.linear.predict(batch))


def test_columns_that_the_code_spans_or_that_are_zero_do_no_harm(data):
    fit, validation = data
    refit = Refit(fit, validation)
    codes, error = dense_of(validation)
    plain = np.square(error - codes @ refit.linear.W - refit.linear.b).sum()
    for useless in (lambda code: torch.zeros(code.shape[0], 2), lambda code: torch.from_numpy(code.toarray()[:, :3])):
        solution = refit.with_columns(useless)
        left = sum(np.square(b.error.numpy() - solution.predict(b, useless)).sum() for b in validation.in_order())
        assert np.isfinite(solution.A).all() and left <= plain * (1 + 1e-6)


def test_a_null_regresses_on_the_codes_of_other_documents(data):
    fit, validation = (rows.shuffled(3) for rows in data)
    own, null = Refit(fit, validation), Refit(fit, validation, by_pairing=True)
    assert np.array_equal(own.linear.W, Refit(*data).linear.W)
    W, b = ridge(dense_of(fit, "pairing")[0], dense_of(fit)[1], null.linear.penalty)
    assert np.allclose(null.linear.W, W) and np.allclose(null.linear.b, b)
    codes, error = dense_of(validation, "pairing")
    losses = [
        np.square(error - codes @ W - b).sum()
        for W, b in (ridge(dense_of(fit, "pairing")[0], dense_of(fit)[1], penalty) for penalty in PENALTIES)
    ]
    assert null.linear.penalty == PENALTIES[int(np.argmin(losses))] > own.linear.penalty


def test_shuffled_columns_stand_beside_the_real_code(data):
    fit, validation = data
    shuffled = [rows.shuffled(3) for rows in data]
    solution = Refit(fit, validation).with_columns(columns, *shuffled)
    codes, error = dense_of(fit)
    phi = columns(next(shuffled[0].in_order(1000)).pairing).numpy()
    if np.isfinite(solution.column_penalty):
        W, A, _ = generalised(codes, phi, error, solution.penalty, solution.column_penalty)
        assert np.allclose(solution.A, A) and np.allclose(solution.W, W)
    batch = next(shuffled[1].in_order(1000))
    by_hand = batch.code @ solution.W + columns(batch.pairing).numpy() @ solution.A + solution.b
    assert np.allclose(solution.predict(batch, columns), by_hand)


def test_conjugate_gradients_find_what_the_factor_finds(data, monkeypatch):
    for penalty in (1e-3, 1.0):
        only(monkeypatch, penalty, 1e-3)
        fit, validation = rows_of(300, 1, curved=0.1), rows_of(200, 2, curved=0.1)
        monkeypatch.setattr(module, "MOST_EXACT", 16_384)
        exact = Refit(fit, validation)
        monkeypatch.setattr(module, "MOST_EXACT", F - 1)
        iterated = Refit(fit, validation)
        assert iterated._held is not None and exact._held is None
        pairs = [(iterated.linear, exact.linear), (iterated.with_columns(columns), exact.with_columns(columns))]
        for one, other in pairs:
            for name in ("W", "A", "b"):
                a, b = getattr(one, name), getattr(other, name)
                assert np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(other.W).max())
        assert not iterated.linear.W[DEAD].any()


def test_codes_that_do_not_vary_are_refused():
    error = np.random.default_rng(0).normal(size=(20, D))
    for codes in (np.zeros((20, F)), np.ones((20, F))):
        rows = CodedRows.from_arrays(sp.csr_matrix(codes), error)
        with pytest.raises(InvalidInput, match="do not vary"):
            Refit(rows, rows)
