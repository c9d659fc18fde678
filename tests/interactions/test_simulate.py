"""Planted effects are what the truth says, and nothing else is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from neurollm.errors import InvalidInput
from neurollm.interactions.simulate import simulate_codes

SMALL = {"n_tokens": 4000, "n_features": 40, "k": 6, "d": 12}


def unexplained(simulated, extra=()):
    """Variance of x that a least-squares fit of the code (and products of its features) leaves, in shares."""
    dense = simulated.codes.toarray().astype(float)
    columns = [dense, *(np.prod(dense[:, list(some)], axis=1, keepdims=True) for some in extra)]
    x = simulated.activations.astype(float)
    fitted = LinearRegression().fit(np.hstack(columns), x).predict(np.hstack(columns))
    return (x - fitted).var(0).sum() / x.var(0).sum()


def test_planted_pairs_explain_exactly_their_share_beyond_the_linear_fit():
    simulated = simulate_codes(**SMALL, noise=0.0, pairs=((0, 1, 0.1), (1, 7, 0.05)))
    assert simulated.pairs == ((0, 1, 0.1), (1, 7, 0.05))
    assert simulated.truth["pairwise"] == pytest.approx(0.15, rel=1e-6)
    assert unexplained(simulated) == pytest.approx(simulated.truth["pairwise"], rel=1e-5)
    assert unexplained(simulated, [(0, 1)]) == pytest.approx(0.05, rel=1e-3)
    assert unexplained(simulated, [(0, 1), (1, 7)]) < 1e-8


def test_additive_truth_has_nothing_beyond_a_linear_map():
    simulated = simulate_codes(**SMALL, noise=0.0, pairs=0)
    assert simulated.truth["linear"] == pytest.approx(1)
    assert unexplained(simulated) < 1e-10


def test_third_order_truth_has_no_pairs():
    simulated = simulate_codes(**SMALL, noise=0.0, pairs=0, triples=((3, 4, 5, 0.1),))
    inside = list(itertools.combinations((3, 4, 5), 2))
    assert unexplained(simulated, inside) == pytest.approx(simulated.truth["higher"], rel=1e-5)
    assert unexplained(simulated, [*inside, (3, 4, 5)]) < 1e-8


def test_threshold_is_a_joint_effect_that_the_product_does_not_hold():
    simulated = simulate_codes(**SMALL, kind="threshold", noise=0.0, pairs=((0, 1, 0.1),))
    assert unexplained(simulated) == pytest.approx(0.1, rel=1e-5)
    assert 0.01 < unexplained(simulated, [(0, 1)]) < 0.1


def test_gaussian_codes_are_dense_normal_and_linear():
    simulated = simulate_codes(4000, 20, d=12, kind="gaussian", noise=0.0)
    dense = simulated.codes.toarray()
    assert simulated.codes.nnz == 4000 * 20
    assert abs(np.mean(dense**3)) < 0.1 and np.mean(dense**4) == pytest.approx(3, abs=0.15)
    assert unexplained(simulated) < 1e-10


def test_the_dictionary_is_off_by_its_decoder():
    simulated = simulate_codes(**SMALL, noise=0.1, pairs=0, decoder_error=0.2)
    x = simulated.activations
    error = x - (simulated.codes @ simulated.reconstruction[:-1] + simulated.reconstruction[-1])
    total = x.var(0).sum()
    assert (error**2).sum(1).mean() / total == pytest.approx(simulated.truth["error"], rel=1e-5)
    assert simulated.truth["error"] > error.var(0).sum() / total == pytest.approx(0.3, abs=0.02)
    assert unexplained(simulated) == pytest.approx(0.1, abs=0.005)  # the noise, less what 40 features fit by chance
    batch = next(simulated.rows.in_order(100))
    assert np.allclose(batch.error.numpy(), error[:100], atol=1e-4)


def test_codes_are_sparse_heavy_tailed_unequal_and_gather_in_documents():
    simulated = simulate_codes(random_state=3)
    codes = simulated.codes
    assert codes.nnz / codes.shape[0] == pytest.approx(8, abs=0.3)
    assert codes.data.min() > 0 and codes.data.max() > 6 * codes.data.mean()
    density = np.sort(codes.getnnz(axis=0) / codes.shape[0])
    assert density[-1] > 5 * density[len(density) // 2] > 5 * density[0] > 0
    by_document = np.add.reduceat((codes.toarray() > 0).astype(float), np.arange(0, 20_000, 100))
    binomial = 100 * density.mean() * (1 - density.mean())
    assert np.median(by_document.var(0)) > 2 * binomial  # independent tokens would give 1


def test_features_of_a_set_are_active_together_and_alone():
    simulated = simulate_codes(2000, 300, 4, 8, pairs=20, strength=0.01, coactivation=0.02)
    active = simulated.codes.toarray() > 0
    for i, j, _ in simulated.pairs:
        assert (active[:, i] & active[:, j]).sum() >= 40
        assert (active[:, i] & ~active[:, j]).sum() >= 30 <= (active[:, j] & ~active[:, i]).sum()


def test_noise_has_a_part_of_documents():
    simulated = simulate_codes(5000, 20, 3, 40, noise=0.4, document_noise=0.5, pairs=0)
    x = simulated.activations.astype(float)
    dense = simulated.codes.toarray()
    rest = x - LinearRegression().fit(dense, x).predict(dense)
    means = rest.reshape(50, 100, -1).mean(1).var(0).sum() / x.var(0).sum()
    assert simulated.truth["document_noise"] == pytest.approx(0.2, abs=0.01)
    assert means == pytest.approx(0.2, abs=0.02)


def test_a_seed_gives_the_same_numbers_and_another_gives_others():
    one, two, other = (simulate_codes(500, 30, 4, 6, random_state=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.activations, two.activations) and one.rows.sha256 == two.rows.sha256
    assert not np.array_equal(one.activations, other.activations)
    assert "2 pairs" in one.verdict()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sparse"},
        {"pairs": ((0, 0),)},
        {"pairs": ((0, 40),)},
        {"pairs": ((0, 1, 2, 3),)},
        {"pairs": 1, "strength": 0.95},
        {"noise": -0.1},
        {"n_tokens": 5},
        {"pairs": 30},
    ],
)
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(InvalidInput):
        simulate_codes(**(SMALL | wrong))
