"""The restricted likelihood against its definition with the full covariance matrix, and closed forms."""

import numpy as np
import pytest
from scipy import optimize
from scipy.stats import f as f_distribution

from neurollm.stats.reml import fit_mixed


def restricted_deviance(log_variances, y, X, Z):
    """−2 log restricted likelihood (Harville 1974), from the n × n covariance."""
    *parts, residual = np.exp(log_variances)
    V = residual * np.eye(len(y)) + sum(v * z @ z.T for v, z in zip(parts, Z, strict=True))
    inverse = np.linalg.inv(V)
    information = X.T @ inverse @ X
    e = y - X @ np.linalg.solve(information, X.T @ inverse @ y)
    return np.linalg.slogdet(V)[1] + np.linalg.slogdet(information)[1] + e @ inverse @ e


def unbalanced(seed):
    rng = np.random.default_rng(seed)
    n, item, template = 70, rng.integers(0, 9, 70), rng.integers(0, 5, 70)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z = [np.eye(9)[item], np.eye(5)[template]]
    Y = X @ [[1.0], [2.0]] + rng.normal(size=(n, 3))
    return Y + Z[0] @ rng.normal(size=(9, 3)) + 0.8 * Z[1] @ rng.normal(size=(5, 3)), X, Z


def test_estimates_minimise_the_restricted_deviance():
    Y, X, Z = unbalanced(0)
    for v, fit in enumerate(fit_mixed(Y, X, Z)):
        direct = optimize.minimize(
            restricted_deviance, np.zeros(3), args=(Y[:, v], X, Z), method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000},
        )  # fmt: skip
        np.testing.assert_allclose([*fit.variances, fit.residual], np.exp(direct.x), rtol=1e-4)
        V = fit.residual * np.eye(70) + sum(s * z @ z.T for s, z in zip(fit.variances, Z, strict=True))
        information = X.T @ np.linalg.inv(V) @ X
        np.testing.assert_allclose(fit.beta, np.linalg.solve(information, X.T @ np.linalg.solve(V, Y[:, v])))
        np.testing.assert_allclose(fit.se, np.sqrt(np.diag(np.linalg.inv(information))))
        assert fit.converged


@pytest.mark.parametrize("ratio", [0.0, 1e-3, 0.1, 1.0, 100.0, 1e5])
def test_one_way_layout_has_the_anova_estimates(ratio):
    """(MS_between − MS_within) / n, or 0 with the total variance where that is negative."""
    rng = np.random.default_rng(1)
    Y = np.sqrt(ratio) * np.repeat(rng.normal(size=(12, 20)), 6, axis=0) + rng.normal(size=(72, 20))
    groups = Y.reshape(12, 6, 20)
    between = 6 * groups.mean(axis=1).var(axis=0, ddof=1)
    within = groups.var(axis=1, ddof=1).mean(axis=0)
    fits = fit_mixed(Y, np.ones((72, 1)), [np.repeat(np.eye(12), 6, axis=0)])
    inside = between > within
    expected = np.where(inside, (between - within) / 6, 0)
    np.testing.assert_allclose([fit.variances[0] for fit in fits], expected, rtol=1e-3, atol=1e-4)
    expected = np.where(inside, within, Y.var(axis=0, ddof=1))
    np.testing.assert_allclose([fit.residual for fit in fits], expected, rtol=1e-3)
    np.testing.assert_allclose([fit.beta[0] for fit in fits], Y.mean(axis=0), atol=1e-8)
    assert all(fit.converged for fit in fits)
    if ratio == 0:
        assert abs(inside.mean() - f_distribution.sf(1, 11, 60)) < 0.35 and not inside.all()


def test_nothing_left_for_the_residual_is_not_convergence():
    group = np.repeat(np.eye(6), 3, axis=0)
    y = group @ np.arange(6.0)[:, None]
    assert not fit_mixed(y, np.ones((18, 1)), [group])[0].converged
