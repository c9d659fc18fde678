"""Anisotropy against brute force over all pairs of tokens, and on planted geometry."""

import numpy as np
import pytest
import torch

from neurollm.dictionaries.geometry import anisotropy_report
from neurollm.errors import InvalidInput


def mean_pairwise(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(x), 1)].mean()


@pytest.fixture()
def x():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 24)) * (0.1 + rng.gamma(0.5, size=24))
    return rng.standard_normal((400, 24)) @ mixing + 3 * rng.standard_normal(24)


@pytest.mark.parametrize("batch_size", [37, 1000])
def test_everything_by_definition(x, batch_size):
    report = anisotropy_report(torch.from_numpy(x), batch_size=batch_size)
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    centred = x - x.mean(0)
    assert report.mean_cosine == pytest.approx(mean_pairwise(x), abs=1e-12)
    assert report.mean_cosine_centred == pytest.approx(mean_pairwise(centred), abs=1e-12)
    assert report.mean_cosine_whitened == pytest.approx(mean_pairwise(centred @ vectors / np.sqrt(values)), abs=1e-9)
    assert report.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    np.testing.assert_allclose(report.eigenvalues, values[::-1], rtol=1e-7)
    np.testing.assert_allclose(report.mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(report.sd, x.std(0))
    np.testing.assert_allclose(report.mean_abs, np.abs(x).mean(0))
    ordered = np.sort(x.var(0))[::-1]
    assert report.top_share(3) == pytest.approx(ordered[:3].sum() / ordered.sum())
    assert report.top_component_share(3) == pytest.approx(values[-3:].sum() / values.sum())
    assert report.to_dict()["top_3_dimensions"] == report.top_share(3) and report.to_dict()["rank"] == 24
    frame = report.to_frame()
    assert len(frame) == 24 and frame["share"].sum() == pytest.approx(1)


def test_participation_ratio_of_known_spectra():
    rng = np.random.default_rng(0)
    spectrum = np.r_[np.full(10, 4.0), np.full(30, 1.0)]
    truth = spectrum.sum() ** 2 / (spectrum**2).sum()
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    x = rng.standard_normal((20_000, 40)) * np.sqrt(spectrum) @ rotation
    assert anisotropy_report(x).participation_ratio == pytest.approx(truth, rel=0.02)
    flat = np.repeat(np.eye(12), 2, axis=0) * np.tile([1, -1], 12)[:, None]
    assert anisotropy_report(flat).participation_ratio == pytest.approx(12)
    line = np.outer(np.arange(30.0), np.ones(5))
    report = anisotropy_report(line)
    assert report.participation_ratio == pytest.approx(1) and report.rank == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["mean", "variance", "spikes"])
def test_planted_massive_dimensions_are_found(seed, kind):
    rng = np.random.default_rng(seed)
    scale = np.exp(0.3 * rng.standard_normal(256))  # dimensions differ anyway
    x = rng.standard_normal((2_000, 256)) * scale
    planted = rng.choice(256, 4, replace=False)
    if kind == "mean":
        x[:, planted] += np.array([40, -40, 60, 25]) * scale[planted]
    elif kind == "variance":
        x[:, planted] *= 30
    else:
        x[np.ix_(np.flatnonzero(rng.random(2_000) < 0.02), planted)] += 500
    report = anisotropy_report(x)
    assert set(report.massive) == set(planted)
    assert (np.diff(report.mean_abs[report.massive]) <= 0).all()
    assert report.to_frame()["massive"].sum() == 4
    clean = np.delete(x, planted, axis=1)
    assert report.mean_cosine_without_massive == pytest.approx(mean_pairwise(clean), abs=1e-12)


def test_equal_dimensions_have_no_massive_one():
    x = np.random.default_rng(0).standard_normal((5_000, 300))
    x[:, 7] *= 1.5  # far outside the narrow spread of the others, but not three times the median
    assert anisotropy_report(x).massive.size == 0


def test_mean_and_whitening_take_the_common_direction_away():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3_000, 30)) * np.linspace(0.2, 3, 30) + 5
    report = anisotropy_report(x)
    assert report.mean_cosine > 0.85
    assert abs(report.mean_cosine_centred) < 0.002 and abs(report.mean_cosine_whitened) < 0.002


def test_large_means_do_not_cost_precision():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((1_000, 6))
    report = anisotropy_report(small + 1e7, batch_size=100)
    np.testing.assert_allclose(report.sd, small.std(0), rtol=1e-6)


def test_zero_rows_have_no_direction_and_bad_input_is_refused():
    x = np.random.default_rng(0).standard_normal((50, 4))
    assert anisotropy_report(np.r_[x, np.zeros((3, 4))]).mean_cosine == pytest.approx(mean_pairwise(x))
    with pytest.raises(InvalidInput, match="at least 2 rows"):
        anisotropy_report(x[:1])
    x[30, 2] = np.inf
    with pytest.raises(InvalidInput, match="row 30 contains NaN"):
        anisotropy_report(x, batch_size=20)
    with pytest.raises(InvalidInput, match=r"shape \(n, d\)"):
        anisotropy_report(x[0])
    with pytest.raises(InvalidInput, match="got a list"):
        anisotropy_report([[1.0, 2.0]])


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
def test_activations_that_do_not_vary_have_no_geometry(value):
    row = value * np.random.default_rng(0).standard_normal(6)
    for x in (np.full((5000, 6), value), np.tile(row, (777, 1))):
        report = anisotropy_report(x)
        assert report.rank == 0 and not report.sd.any() and not report.eigenvalues.any()
        figures = (report.participation_ratio, report.mean_cosine_centred, report.mean_cosine_whitened)
        assert np.isnan(figures).all() and np.isnan(report.top_share(1))
        np.testing.assert_array_equal(report.mean, x[0])
