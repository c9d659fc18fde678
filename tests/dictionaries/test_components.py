"""PCA, ICA and NMF against scikit-learn, scipy and planted truth."""

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.decomposition import NMF, PCA

from neurollm.dictionaries import evaluate_dictionary
from neurollm.dictionaries.components import ICADictionary, PCADictionary, moments
from neurollm.dictionaries.nmf import NMFDictionary, non_negative_codes
from neurollm.errors import InvalidInput
from neurollm.models import Site

SITE = Site(1)


def correlated(n=3000, d=12, seed=0):
    """Correlated activations far from zero, with one dimension that never varies."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * np.geomspace(5, 0.1, d) + 40 * rng.standard_normal(
        d
    )
    x[:, 4] = 7.0
    return x


def test_pca_is_that_of_scikit_learn():
    x = correlated()
    ours, theirs = PCADictionary.fit(x, 5, site=SITE), PCA(5, svd_solver="full").fit(x.astype(np.float32).astype(float))
    np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-6)
    cosines = np.sum(ours.directions.numpy() * theirs.components_, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(ours.encode(x), theirs.transform(x) * np.sign(cosines), atol=1e-3)
    np.testing.assert_allclose(ours.centre, theirs.mean_, rtol=1e-6)
    directions = ours.directions.numpy()
    assert (directions[np.arange(5), np.abs(directions).argmax(1)] > 0).all()


@pytest.mark.parametrize("rectified", [False, True])
def test_explained_variance_is_the_share_of_the_eigenvalues_and_all_components_lose_nothing(rectified):
    x = correlated() - 40  # near zero, so that float32 rounding of the activations is small beside the variance
    for k in (1, 4, 9):
        pca = PCADictionary.fit(x, k, site=SITE, rectified=rectified)
        assert abs(evaluate_dictionary(pca, x).ev - pca.explained_variance_ratio.sum()) < 1e-6
    everything = PCADictionary.fit(x, site=SITE, rectified=rectified)
    assert everything.n_features == 12 * (2 if rectified else 1)
    np.testing.assert_allclose(everything.reconstruct(x), x, atol=2e-4)
    assert everything.explained_variance_ratio[-1] < 1e-9  # the dimension that never varies


def test_a_mean_far_from_zero_does_not_swallow_the_variance():
    x = np.random.default_rng(0).standard_normal((20_000, 4)) * [4, 3, 2, 1] + 1e7
    mean, covariance, n = moments(iter(x.reshape(4, 5000, 4)))
    assert n == 20_000
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), atol=1e-6)


def test_rectified_features_are_the_two_sides_of_signed_ones():
    x = correlated()
    signed, sides = (PCADictionary.fit(x, 6, site=SITE, rectified=value) for value in (False, True))
    scores, features = signed.encode(x), sides.encode(x)
    assert scores.min() < 0 and features.min() == 0
    np.testing.assert_array_equal(features[:, :6], scores.clip(0))
    np.testing.assert_array_equal(features[:, 6:], (-scores).clip(0))
    np.testing.assert_allclose(sides.decode(features), signed.decode(scores), atol=1e-3)
    torch.testing.assert_close(sides.directions[6:], -signed.directions)


@pytest.mark.parametrize("rectified", [False, True])
def test_k_keeps_the_largest_scores_of_each_token(rectified):
    x = correlated()
    full = PCADictionary.fit(x, 8, site=SITE).encode(x)
    some = PCADictionary.fit(x, 8, site=SITE, k=3, rectified=rectified).encode(x)
    kept = some[:, :8] - some[:, 8:] if rectified else some
    smallest_kept = np.sort(np.abs(full), axis=1)[:, -3]
    np.testing.assert_array_equal(kept, np.where(np.abs(full) >= smallest_kept[:, None], full, 0))


def test_ica_recovers_planted_sources():
    rng = np.random.default_rng(1)
    n = 10_000
    sources = np.c_[rng.exponential(size=n), rng.laplace(size=n), rng.uniform(size=n), rng.binomial(1, 0.05, n)]
    sources = (sources - sources.mean(0)) / sources.std(0)
    mixing = rng.standard_normal((4, 4)) * np.array([4, 3, 2, 1])[:, None]
    x = sources @ mixing + 5
    ica = ICADictionary.fit(x, site=SITE, n_rows=None)
    found = ica.encode(x)
    correlation = np.corrcoef(found.T, sources.T)[:4, 4:]
    partner = np.abs(correlation).argmax(1)
    assert sorted(partner) == [0, 1, 2, 3] and np.abs(correlation).max(1).min() > 0.99
    for component, source in enumerate(partner):  # skewed sources come out on their long side
        assert source not in (0, 3) or correlation[component, source] > 0
        np.testing.assert_allclose(
            np.abs(ica.directions[component].numpy()), np.abs(mixing[source]), atol=0.15 * np.abs(mixing[source]).max()
        )
    assert ica.provenance["converged"]
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-3)
    assert (np.diff(ica.explained_variance_ratio) <= 0).all()
    np.testing.assert_allclose(ica.explained_variance_ratio.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(ica.reconstruct(x), x, atol=1e-3)


def test_ica_with_fewer_components_loses_what_pca_loses():
    x = np.random.default_rng(0).laplace(size=(4000, 8)) * np.arange(1, 9)
    ica, pca = ICADictionary.fit(x, 3, site=SITE), PCADictionary.fit(x, 3, site=SITE)
    np.testing.assert_allclose(ica.reconstruct(x), pca.reconstruct(x), atol=1e-3)
    np.testing.assert_allclose(ica.explained_variance_ratio.sum(), pca.explained_variance_ratio.sum(), rtol=1e-5)


def test_ica_takes_no_more_components_than_there_is_variance():
    x = correlated()
    assert ICADictionary.fit(x, site=SITE).n_features == 11
    with pytest.raises(InvalidInput, match=r"12 asked for, but these activations have rank 11"):
        ICADictionary.fit(x, 12, site=SITE)


def test_ica_that_stops_early_is_told(caplog):
    ica = ICADictionary.fit(correlated(), 5, site=SITE, max_iter=1)
    assert ica.provenance["converged"] is False and "did not converge" in caplog.text


def planted_parts(n=4000, d=10, k=6, seed=0):
    """Sparse non-negative codes of signed directions that do not share dimensions on the same side."""
    rng = np.random.default_rng(seed)
    directions = np.zeros((k, d))
    for part in range(k):
        directions[part, [part, (part + 3) % d]] = rng.uniform(1, 2, 2) * rng.choice([-1, 1], 2)
    codes = rng.exponential(size=(n, k)) * (rng.random((n, k)) < 0.15)
    return codes, directions, codes @ directions


def test_codes_solve_the_non_negative_least_squares_problem():
    rng = np.random.default_rng(0)
    parts, rows = rng.random((9, 14)), rng.random((40, 14)) * (rng.random((40, 14)) < 0.6)
    parts[5] = 0  # a part that fitting left empty
    h, a = torch.from_numpy(parts), torch.from_numpy(rows)
    codes = non_negative_codes(a @ h.T, h @ h.T, a.norm(dim=1)).numpy()
    exact = np.array([scipy.optimize.nnls(parts.T, row)[1] for row in rows])
    assert codes.min() == 0 and not codes[:, 5].any()
    np.testing.assert_allclose(np.linalg.norm(rows - codes @ parts, axis=1), exact, rtol=1e-4)
    alone = [non_negative_codes(row[None] @ h.T, h @ h.T, row.norm()[None])[0] for row in a]
    np.testing.assert_allclose(codes, torch.stack(alone), atol=1e-10)  # a row does not depend on its neighbours


def test_nmf_codes_are_those_of_scikit_learn():
    _, _, x = planted_parts()
    ours = NMFDictionary.fit(x, 6, site=SITE)
    theirs = NMF(6, init="random", random_state=0, tol=1e-6, max_iter=5000, solver="cd")
    centred = x[:200].astype(np.float32) - ours.centre.numpy()
    sides = np.hstack([centred.clip(0), (-centred).clip(0)]).astype(np.float32)
    theirs.fit(sides)
    theirs.components_ = ours.parts.numpy()
    np.testing.assert_allclose(ours.encode(x[:200]), theirs.transform(sides), atol=2e-3)


def test_nmf_recovers_planted_parts_better_than_pca():
    codes, directions, x = planted_parts()
    nmf = NMFDictionary.fit(x, 6, site=SITE)
    cosines = (
        torch.nn.functional.normalize(nmf.directions, dim=1).numpy()
        @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    )
    assert (cosines.max(0) > 0.95).all()
    correlation = np.corrcoef(nmf.encode(x).T, codes.T)[:6, 6:]
    assert (correlation.max(0) > 0.9).all()
    assert evaluate_dictionary(nmf, x).ev > 0.9
    principal = PCADictionary.fit(x, 6, site=SITE).directions.numpy() @ directions.T
    assert (np.abs(principal) / np.linalg.norm(directions, axis=1)).max(0).min() < 0.9


def test_nothing_is_lost_between_the_two_sides():
    x = correlated(n=300, d=5)
    d = np.eye(5, dtype=np.float32)
    sides = np.vstack([np.hstack([d, 0 * d]), np.hstack([0 * d, d])])
    nmf = NMFDictionary(SITE, torch.from_numpy(x.mean(0)), torch.from_numpy(sides))
    np.testing.assert_allclose(nmf.reconstruct(x), x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [PCADictionary, ICADictionary, NMFDictionary])
def test_what_cannot_be_fitted_is_told(kind):
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    wrong = x.copy()
    wrong[7, 2] = np.inf
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        kind.fit(wrong, 3, site=SITE)
    with pytest.raises(InvalidInput, match="3 rows are too few for 4 components"):
        kind.fit(x[:3], 4, site=SITE)
    with pytest.raises(InvalidInput, match="all rows are alike"):
        kind.fit(np.ones((50, 6)), 3, site=SITE)
    with pytest.raises(InvalidInput, match="site: an array does not say"):
        kind.fit(x, 3)
    with pytest.raises(InvalidInput, match="n_components: expected"):
        kind.fit(x, 0, site=SITE)
    with pytest.raises(InvalidInput, match=r"expected shape \(n, d\), got \(6,\)"):
        kind.fit(x[0], 3, site=SITE)
    with pytest.raises(InvalidInput, match="n_rows: expected at least 1, got 0"):
        kind.fit(x, 3, n_rows=0, site=SITE)
    with pytest.raises(InvalidInput, match="there are no activations"):
        kind.fit(x[:0], 3, site=SITE)


def test_what_does_not_fit_together_is_refused():
    x = correlated()
    with pytest.raises(
        InvalidInput, match=r"n_components: expected 1 to 12 .the dimensions of the activations., got 13"
    ):
        PCADictionary.fit(x, 13, site=SITE)
    with pytest.raises(InvalidInput, match=r"k: expected 1 to 3 .the number of components., got 4"):
        PCADictionary.fit(x, 3, site=SITE, k=4)
    with pytest.raises(InvalidInput, match=r"parts: expected shape \(k, 10\)"):
        NMFDictionary(SITE, torch.zeros(5), torch.ones(3, 8))
    with pytest.raises(InvalidInput, match="found negative ones"):
        NMFDictionary(SITE, torch.zeros(4), -torch.ones(3, 8))


@pytest.mark.parametrize("kind", [PCADictionary, ICADictionary, NMFDictionary])
def test_the_choice_of_rows_is_random_and_repeatable(kind):
    x = correlated()[:, :4]
    one, same, other = (kind.fit(x, 3, seed, n_rows=500, site=SITE).fingerprint for seed in (1, 1, 2))
    assert one == same != other
    assert kind.fit(torch.from_numpy(x), 3, 1, n_rows=500, site=SITE).fingerprint == one
