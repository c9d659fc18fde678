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
from neurollm.interactions.refit import COLUMN_PENALTIES, PENALTIES, SMALLEST_PENALTY, Refit
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
    """t: the median over the features that vary of what centring leaves of their squares."""
    return np.median(np.square(codes - codes.mean(0)).sum(0)[np.ptp(codes, axis=0) > 0])


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
    monkeypatch.setattr(module, "PENALTIES", (penalty,))
    monkeypatch.setattr(module, "SMALLEST_PENALTY", penalty)
    monkeypatch.setattr(module, "COLUMN_PENALTIES", (column_penalty,))


def losses_of(fit, validation, code="code"):
    """Squared error on the validation rows of every penalty that there is, by definition: ∞, 100, 10, … 1e-12."""
    codes, error = dense_of(validation, code)
    penalties = [np.inf, *(10.0**power for power in range(2, -13, -1))]
    weights = {penalty: ridge(*dense_of(fit, code), penalty) for penalty in penalties}
    return {penalty: np.square(error - codes @ W - b).sum() for penalty, (W, b) in weights.items()}


@pytest.mark.parametrize("penalty", (*PENALTIES, 1e-8))
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
    losses = losses_of(*data)
    refit = Refit(*data)
    assert refit.linear.penalty == min(losses, key=losses.get) not in (PENALTIES[0], PENALTIES[-1], np.inf)
    assert np.allclose(refit.bias, dense_of(data[0])[1].mean(0))


def steep_rows(n, seed, noise):
    """Features of very unequal size that matter alike: for the small ones the penalty must be small."""
    draw = np.random.default_rng(seed)
    alike = draw.exponential(size=(n, F))
    dense = np.float32(alike * 10.0 ** (-np.arange(F) / 2))
    error = alike @ np.random.default_rng(0).normal(size=(F, D)) + noise * draw.normal(size=(n, D))
    return CodedRows.from_arrays(sp.csr_matrix(dense), error, documents=np.arange(n) // 10)


def test_penalties_go_on_below_their_end_while_the_lowest_is_the_best():
    chosen = []
    for noise in (0.3, 0.0):
        fit, validation = steep_rows(300, 1, noise), steep_rows(200, 2, noise)
        losses = losses_of(fit, validation)
        refit = Refit(fit, validation)
        chosen.append(refit.linear.penalty)
        assert SMALLEST_PENALTY <= chosen[-1] < 0.5 * PENALTIES[-1]
        left = np.square(dense_of(validation)[1] - refit.linear.predict(next(validation.in_order(1000)))).sum()
        assert left <= 1.001 * min(losses.values()) and left < 0.9 * losses[1e-3]
        steps = [penalty for penalty in losses if penalty <= 1e-3]
        further = itertools.pairwise(steps)  # by definition, the first after which it does not get better
        expected = next((one for one, below in further if losses[below] >= losses[one]), SMALLEST_PENALTY)
        if noise:  # without, what decides is rounding
            assert chosen[-1] == pytest.approx(expected)
    assert chosen[1] <= chosen[0]


def test_features_that_are_the_same_end_the_grid_where_the_factor_fails(monkeypatch):
    """Without noise ever smaller penalties are better, until the matrix is singular."""
    draw = np.random.default_rng(0)
    dense = draw.exponential(size=(300, F)).astype(np.float32)
    dense[:, 1] = dense[:, 0]
    rows = CodedRows.from_arrays(sp.csr_matrix(dense), dense @ draw.normal(size=(F, D)), documents=np.arange(300) // 10)
    half = np.arange(300) < 150
    monkeypatch.setattr(module, "SMALLEST_PENALTY", 0.0)
    tried, prepare = [], Refit._prepare

    def spy(self, penalty):
        tried.append(penalty)
        if penalty < 1e-9:
            raise np.linalg.LinAlgError
        prepare(self, penalty)

    monkeypatch.setattr(Refit, "_prepare", spy)
    refit = Refit(rows.subset(half), rows.subset(~half))
    below = [penalty for penalty in tried if penalty < 0.5 * PENALTIES[-1]]
    assert below == [*sorted(below[:-1], reverse=True), refit.linear.penalty]  # prepared again in the end
    assert 1e-9 < refit.linear.penalty < PENALTIES[-1] and np.isfinite(refit.linear.W).all()
    batch = next(rows.subset(~half).in_order(1000))
    error = batch.error.double().numpy()
    assert np.square(error - refit.linear.predict(batch)).sum() < 1e-6 * np.square(error - error.mean(0)).sum()


@pytest.mark.parametrize("most_exact", [16_384, F - 1], ids=["factor", "conjugate gradients"])
def test_one_large_feature_does_not_decide_how_the_others_are_penalised(monkeypatch, most_exact):
    """An always active feature in another unit: the truth, additive, is the same."""
    monkeypatch.setattr(module, "MOST_EXACT", most_exact)
    true = np.random.default_rng(0).normal(size=(F, D))

    def shares(factor):
        made = []
        for n, seed in ((600, 1), (400, 2), (400, 3)):
            draw = np.random.default_rng(seed)
            dense = np.where(draw.random((n, F)) < 0.2, draw.exponential(size=(n, F)), 0)
            dense[:, 0] = 5 + draw.normal(size=n)
            error = dense @ true + draw.normal(size=(n, D))
            dense[:, 0] *= factor
            made.append(CodedRows.from_arrays(sp.csr_matrix(dense), error, documents=np.arange(n) // 10))
        batch = next(made[2].in_order(1000))
        error = batch.error.double().numpy()
        left = np.square(error - Refit(*made[:2]).linear.predict(batch)).sum()
        return 1 - left / np.square(error - error.mean(0)).sum()

    plain = shares(1.0)
    assert plain > 0.5 and shares(1e4) == pytest.approx(plain, abs=0.005)


def test_features_that_never_vary_get_no_weight(data):
    """Neither the dead nor the always alike, however large; and they do not count in the unit of the penalty."""
    fit, validation = data

    def with_constants(rows, n_constant):
        codes, error = dense_of(rows)
        constants = np.full((len(codes), n_constant), 1e3)
        return CodedRows.from_arrays(sp.csr_matrix(np.hstack([codes, constants])), error, documents=rows.documents)

    plain = Refit(fit, validation)
    assert np.array_equal(np.flatnonzero(plain.constant), [DEAD])
    refit = Refit(with_constants(fit, 2 * F), with_constants(validation, 2 * F))
    assert np.array_equal(np.flatnonzero(refit.constant), [DEAD, *range(F, 3 * F)])
    assert refit.unit == pytest.approx(plain.unit) == pytest.approx(unit_of(dense_of(fit)[0]))
    assert refit.linear.penalty == plain.linear.penalty and not refit.linear.W[refit.constant].any()
    assert np.allclose(refit.linear.W[:F], plain.linear.W, atol=1e-6)

    def first(code):
        return columns(code[:, :F])

    beside, alone = refit.with_columns(first), plain.with_columns(columns)
    assert beside.A.any() and not beside.W[refit.constant].any()
    assert np.allclose(beside.A, alone.A, atol=1e-6) and np.allclose(beside.W[:F], alone.W, atol=1e-5)


def test_without_a_relation_the_refit_is_the_mean():
    means = 0
    for state in range(6):
        draw = np.random.default_rng(state)
        fit, validation = (
            CodedRows.from_arrays(dense_of(rows_of(n, seed))[0], draw.normal(size=(n, D)))
            for n, seed in ((40, 1), (400, 2))
        )
        losses = losses_of(fit, validation)
        refit = Refit(fit, validation)
        assert refit.linear.penalty == min(losses, key=losses.get) >= 10
        means += np.isinf(refit.linear.penalty)
        if np.isinf(refit.linear.penalty):
            last = fit, validation, refit
    assert means >= 2
    fit, validation, refit = last
    assert not refit.linear.W.any() and np.array_equal(refit.linear.b, refit.bias)
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
    losses = losses_of(fit, validation, "pairing")
    assert null.linear.penalty == min(losses, key=losses.get) > own.linear.penalty


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


def test_conjugate_gradients_choose_what_the_factor_chooses(data, monkeypatch):
    """Each penalty begins where the one before ended."""
    exact = Refit(*data)
    monkeypatch.setattr(module, "MOST_EXACT", F - 1)
    iterated = Refit(*data)
    assert iterated.linear.penalty == exact.linear.penalty and not iterated.linear.W[DEAD].any()
    assert np.allclose(iterated.linear.W, exact.linear.W, atol=1e-4 * np.abs(exact.linear.W).max())


def test_codes_that_do_not_vary_are_refused():
    error = np.random.default_rng(0).normal(size=(20, D))
    for codes in (np.zeros((20, F)), np.ones((20, F))):
        rows = CodedRows.from_arrays(sp.csr_matrix(codes), error)
        with pytest.raises(InvalidInput, match="do not vary"):
            Refit(rows, rows)
