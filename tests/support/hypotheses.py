"""Hypotheses of every kind about small tables, for the tests of the permutation kernel."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.kernel import permutation_test
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


def alternatives(hypothesis):
    return ("two-sided", "greater", "less") if hypothesis.rank == 1 else ("two-sided",)


SCHEMES = schemes()
