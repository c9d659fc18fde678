"""Bootstrap over documents: the interval written out, coverage over documents, what has no interval, wrong calls."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm.errors import InvalidInput
from neurollm.interactions import NFM, CodedRows, contributions
from neurollm.random import stream
from neurollm.stats import document_bootstrap
from neurollm.stats.document_bootstrap import DocumentBootstrap


def planted(seed, n=16, tokens=40, draws=2, ratio=1.0):
    """Sums of KL by document: of a condition, of noise averaged over draws, and numbers of tokens."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(tokens // 2, 2 * tokens, n)
    own, beside = np.exp(0.6 * rng.standard_normal((2, n)) + 0.6 * rng.standard_normal(n))
    sums = [np.array([rng.gamma(2, mean / 2, (d, c)).mean(0).sum() for mean, c in zip(means, counts, strict=True)])
            for means, d in ((ratio * own, 1), (beside, draws))]  # fmt: skip
    return *sums, counts


def test_interval_is_the_studentised_bootstrap_written_out():
    own, beside, _ = planted(3)
    found = DocumentBootstrap(16, 200, 5).estimate([own], [beside], log=True)
    weights = stream(5, "documents", 0).multinomial(16, np.full(16, 1 / 16), 200)

    def figures(a, b):
        influence = a / a.sum() - b / b.sum()
        return np.log(a.sum() / b.sum()), np.sqrt(16 / 15 * (influence**2).sum())

    value, error = figures(own, beside)
    drawn = [figures(np.repeat(own, w), np.repeat(beside, w)) for w in weights]
    t = np.sort([abs(one - value) / spread for one, spread in drawn])[::-1]
    half = t[9] * error  # the 10th of 201 · .05
    assert (found.value, found.low, found.high) == pytest.approx(tuple(np.exp([value, value - half, value + half])))
    assert found.p == pytest.approx((1 + np.sum(t >= abs(value) / error)) / 201)
    leave_one_out = [np.log(np.delete(own, i).sum() / np.delete(beside, i).sum()) for i in range(16)]
    assert error == pytest.approx(np.std(leave_one_out) * np.sqrt(15), rel=0.15)  # the jackknife, another way


def test_more_tokens_or_draws_do_not_shrink_the_interval_between_documents():
    boot = DocumentBootstrap(16, 500)
    own, beside, n = planted(0)

    def width(found):
        return np.log(found.high / found.low)

    once = boot.estimate([own], [beside], log=True)
    repeated = boot.estimate([own * 10], [beside * 10], log=True)  # every token ten times
    assert (repeated.low, repeated.high, repeated.p) == pytest.approx((once.low, once.high, once.p))
    kl = [boot.estimate([own * k], [n * k], log=True) for k in (1, 10)]
    assert kl[0].low == pytest.approx(kl[1].low) and kl[0].high == pytest.approx(kl[1].high)
    # New tokens and draws from the same documents do not help either: documents differ.
    widths = [
        np.mean([width(boot.estimate(*([x] for x in planted(s, **k)[:2]), log=True)) for s in range(20)])
        for k in ({}, {"draws": 20}, {"tokens": 400})
    ]
    assert widths[1] > 0.85 * widths[0] and widths[2] > 0.85 * widths[0]


def test_coverage_and_level_over_documents():
    """Documents of a common law: the interval of the ratio and the test of a difference hold."""
    boot = DocumentBootstrap(16, 199)
    covered = rejected = found = 0
    for seed in range(300):
        own, beside, _ = planted(seed, ratio=1.5)
        other, noise, _ = planted(10_000 + seed, ratio=1.5)
        covered += (lambda e: e.low <= 1.5 <= e.high)(boot.estimate([own], [beside], log=True))
        null = boot.estimate([own, 0.2 * other], [beside, 0.2 * noise], signs=(1, -1), log=True)
        assert (null.p <= 0.05) == (null.low > 1 or null.high < 1)  # interval and test agree
        rejected += null.p <= 0.05
        found += boot.estimate([4 * own, other], [beside, noise], signs=(1, -1), log=True).p <= 0.05
    assert covered >= 273 and rejected <= 27 and found > 210


def test_equal_documents_have_no_interval():
    same = DocumentBootstrap(12, 200).estimate([np.full(12, 3.0)], [np.full(12, 2.0)], log=True)
    assert same.value == pytest.approx(1.5) and np.isnan([same.low, same.high, same.p]).all()


def test_a_sum_of_ratios_is_the_studentised_bootstrap_written_out():
    """Without logarithms, one draw after the other, with the error of a difference from its derivatives."""
    sums = np.random.default_rng(2).gamma(3, size=(4, 14))
    found = DocumentBootstrap(14, 99, 8).estimate(sums[:2], sums[2:], signs=(1, -1))
    weights = stream(8, "documents", 0).multinomial(14, np.full(14, 1 / 14), 99)

    def figures(a, b, c, d):
        parts = (a - a.sum() / c.sum() * c) / c.sum() - (b - b.sum() / d.sum() * d) / d.sum()
        return a.sum() / c.sum() - b.sum() / d.sum(), np.sqrt(14 / 13 * (parts**2).sum())

    value, error = figures(*sums)
    drawn = [figures(*(np.repeat(one, w) for one in sums)) for w in weights]
    t = np.sort([abs(one - value) / spread for one, spread in drawn])
    assert found.se == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((value - t[-5] * error, value + t[-5] * error))  # 5 = 100 · .05
    assert found.p == pytest.approx((1 + np.sum(t >= abs(value) / error)) / 100)


def test_draws_are_those_of_the_state_also_in_several_blocks(monkeypatch):
    own, beside, _ = planted(4)
    found = [DocumentBootstrap(16, 300, state).estimate([own], [beside], log=True) for state in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    monkeypatch.setattr(document_bootstrap, "WEIGHT_VALUES", 16 * 128)
    several = DocumentBootstrap(16, 300, 0).estimate([own], [beside])
    sizes = enumerate((128, 128, 44))
    weights = np.vstack([stream(0, "documents", i).multinomial(16, np.full(16, 1 / 16), size) for i, size in sizes])
    ratios = (weights @ own) / (weights @ beside)
    rests = own - ratios[:, None] * beside
    t = abs(ratios - several.value) / (np.sqrt(16 / 15 * (weights * rests**2).sum(1)) / (weights @ beside))
    assert several.high - several.value == pytest.approx(np.sort(t)[-15] * several.se)  # 15 = 301 · .05


def test_the_fewest_draws_use_the_largest_deviation():
    own, beside, _ = planted(5)
    found = DocumentBootstrap(16, 19).estimate([own], [beside])
    weights = stream(0, "documents", 0).multinomial(16, np.full(16, 1 / 16), 19)
    t = []
    for a, b in ((np.repeat(own, w), np.repeat(beside, w)) for w in weights):
        ratio = a.sum() / b.sum()
        t.append(abs(ratio - found.value) / (np.sqrt(16 / 15 * ((a - ratio * b) ** 2).sum()) / b.sum()))
    assert found.high - found.value == pytest.approx(max(t) * found.se)


@pytest.mark.parametrize("shift", [-1.0, 0.0])
def test_the_logarithm_of_a_ratio_that_is_not_positive_has_no_p(shift):
    numerator = np.arange(12.0) - 5.5 + shift
    found = DocumentBootstrap(12, 200).estimate([numerator], [np.ones(12)], log=True)
    assert np.isnan([found.low, found.high, found.p, found.se]).all() and not found.value > 0
    plain = DocumentBootstrap(12, 200).estimate([numerator], [np.ones(12)])
    assert plain.value == pytest.approx(shift) and 0 < plain.p <= 1


def test_without_denominator_or_draws_there_is_no_interval():
    empty = DocumentBootstrap(12, 200).estimate([np.zeros(12)], [np.zeros(12)])
    assert np.isnan([empty.value, empty.low, empty.p, empty.se]).all()
    none = DocumentBootstrap(12, 0).estimate([np.arange(12.0)], [np.ones(12)])
    assert none.value == 5.5 and none.se > 0 and np.isnan([none.low, none.high, none.p]).all()


@pytest.mark.parametrize("n_boot", [1, 18, -1, 200.0, "200", None, True])
def test_numbers_of_draws_that_give_no_interval_are_refused(n_boot):
    with pytest.raises(InvalidInput, match="n_boot must be a whole number of at least 19, or 0"):
        DocumentBootstrap(12, n_boot)


@pytest.mark.parametrize("n_boot", [1, 18, 200.0, "200"])
def test_contributions_refuse_them_too_before_they_read_anything(n_boot):
    nfm = NFM({"V": torch.ones(2, 1), "A": torch.ones(1, 1)}, top_n=2)
    rows = CodedRows.from_arrays(sp.csr_matrix(np.ones((30, 2), np.float32)), np.ones((30, 1)))
    with pytest.raises(InvalidInput, match="contributions: n_boot must be a whole number of at least 19, or 0"):
        contributions(nfm, rows, n_boot=n_boot)
