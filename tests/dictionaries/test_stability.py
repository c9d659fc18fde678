"""Matchings against brute force and the full assignment problem; stability of planted dictionaries."""

import itertools

import numpy as np
import pytest
import torch

from neurollm.dictionaries import RandomDirections, RawUnits, ReLUSAE
from neurollm.dictionaries import matching as matching_module
from neurollm.dictionaries.matching import best_matching
from neurollm.dictionaries.stability import seed_stability
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


def products(a, which, b):
    return a[which] @ b.T


def unit(rng, n, d):
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sae(decoder, encoder=None, site=None):
    """Features with these decoder rows and, by default, the same encoder columns."""
    decoder = torch.as_tensor(np.asarray(decoder), dtype=torch.float32)
    encoder = decoder.T if encoder is None else torch.as_tensor(np.asarray(encoder), dtype=torch.float32)
    n, d = decoder.shape
    weights = {"W_enc": encoder, "W_dec": decoder, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d)}
    return ReLUSAE(site or Site(1), weights)


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4)])
def test_matching_is_the_best_of_all(shape):
    rng = np.random.default_rng(sum(shape))
    a, b = unit(rng, shape[0], 3), unit(rng, shape[1], 3)
    found = best_matching(a, b, products)
    cosines = a @ b.T
    small = cosines if shape[0] <= shape[1] else cosines.T
    best = max(
        sum(small[i, j] for i, j in enumerate(p))
        for p in itertools.permutations(range(6), len(small))
        if max(p) < small.shape[1]
    )
    assert found.similarity.sum() == pytest.approx(best, abs=1e-12) and found.gap == 0
    np.testing.assert_array_equal(found.similarity, cosines[found.rows, found.columns])
    assert len(set(found.rows)) == len(set(found.columns)) == min(shape)
    np.testing.assert_allclose(found.largest_of_rows, cosines.max(1))
    np.testing.assert_allclose(found.largest_of_columns, cosines.max(0))


@pytest.mark.parametrize("sizes", [(300, 300), (250, 400), (400, 250)])
def test_pruned_matching_is_the_full_one_or_knows_how_far_it_is(monkeypatch, sizes):
    rng = np.random.default_rng(1)
    a, b = unit(rng, sizes[0], 12), unit(rng, sizes[1], 12)
    exact = best_matching(a, b, products)
    monkeypatch.setattr(matching_module, "EXACT", 0)
    monkeypatch.setattr(matching_module, "BLOCK", 70)
    certain = set()
    for candidates in (1, 3, 8, 60):
        monkeypatch.setattr(matching_module, "CANDIDATES", candidates)
        found = best_matching(a, b, products)
        short = exact.similarity.mean() - found.similarity.mean()
        assert -1e-12 < short <= found.gap + 1e-12
        assert sorted(found.rows) == sorted(set(found.rows)) and len(set(found.columns)) == min(sizes)
        np.testing.assert_allclose(found.similarity, (a @ b.T)[found.rows, found.columns], atol=1e-12)
        np.testing.assert_allclose(found.largest_of_rows, exact.largest_of_rows)
        np.testing.assert_allclose(found.largest_of_columns, exact.largest_of_columns)
        certain.add(found.gap == 0)
    assert found.gap == 0 and short == pytest.approx(0, abs=1e-12) and certain == {True, False}


def planted(rng, n=120, n_shared=80, d=24, noise=0.05):
    """Two sets of directions of which `n_shared` are nearly equal, in another order."""
    a, b = unit(rng, n, d), unit(rng, n, d)
    order = rng.permutation(n)
    b[order[:n_shared]] = a[:n_shared] + noise * unit(rng, n_shared, d)
    return a, b, order


def test_planted_features_are_found_again():
    a, b, order = planted(np.random.default_rng(0))
    found = seed_stability({"one": sae(a), "two": sae(5 * b)}, threshold=0.9)
    shared = found.shared
    assert dict(zip(shared["feature"], shared["partner"], strict=True)) == dict(enumerate(order[:80]))
    row = found.to_frame().iloc[0]
    assert row["shared"] == pytest.approx(80 / 120) and row["gap"] == 0 and (row["a"], row["b"]) == ("one", "two")
    cosines = found.features.set_index("feature")["cosine"]
    expected = (a * b[found.features.set_index("feature")["partner"].sort_index()]).sum(1)
    expected /= np.linalg.norm(b[found.features.set_index("feature")["partner"].sort_index()], axis=1)
    np.testing.assert_allclose(cosines.sort_index(), expected, atol=1e-5)
    full = a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    assert (row["mmcs_a"], row["mmcs_b"]) == pytest.approx((full.max(1).mean(), full.max(0).mean()), abs=1e-6)


def test_random_dictionaries_score_what_their_null_says():
    runs = [RandomDirections(Site(1), 16, n, seed) for n, seed in ((200, 1), (200, 2), (90, 3))]
    found = seed_stability(runs, threshold=0.6, n_null=10)
    for row in found.pairs.itertuples():
        draws = 10**0.5
        for name in ("cosine", "shared", "mmcs_a", "mmcs_b"):
            value = getattr(row, "mean_cosine" if name == "cosine" else name)
            null, error = getattr(row, f"null_{name}"), getattr(row, f"null_{name}_se")
            assert error > 0 and abs(value - null) < 5 * error * draws, (row.a, row.b, name)
        for side in "ab":
            simulated, error = getattr(row, f"null_mmcs_{side}"), getattr(row, f"null_mmcs_{side}_se")
            assert getattr(row, f"null_mmcs_{side}_expected") == pytest.approx(simulated, abs=4 * error)
            n = row.n_b if side == "a" else row.n_a
            assert getattr(row, f"null_mmcs_{side}_asymptotic") == pytest.approx((2 * np.log(n) / 16) ** 0.5)
    assert found.pairs["n_b"].tolist() == [200, 90, 90] and len(found.features) == 380
    assert len(found.null_cosines) == 200
    again = seed_stability(runs, threshold=0.6, n_null=10)
    assert again.pairs.equals(found.pairs)


def test_dead_features_are_left_out():
    a, b, order = planted(np.random.default_rng(0))
    alive = np.ones(120), np.where(np.isin(np.arange(120), order[:10]), 0.0, 0.01)
    found = seed_stability([sae(a), sae(b)], densities=alive, threshold=0.9)
    assert found.pairs["n_b"].item() == 110 and len(found.shared) == 70
    assert not set(found.features["partner"]) & set(order[:10])
    decoder = a.copy()
    decoder[3] = 0  # no direction
    assert 3 not in set(seed_stability([sae(decoder), sae(b)]).features["feature"])


def test_encoders_must_agree_as_well():
    rng = np.random.default_rng(2)
    a, b, order = planted(rng)
    encoder_a, encoder_b = a.T.copy(), b.T.copy()
    encoder_b[:, order[:30]] = unit(rng, 30, 24).T  # same decoder, other encoder
    found = seed_stability([sae(a, encoder_a), sae(b, encoder_b)], threshold=0.9, encoder=True)
    agreed = found.features[found.features["agrees"]]
    assert set(agreed["feature"]) == set(range(30, 80)) and found.pairs["agreement"].item() == pytest.approx(50 / 120)
    assert (found.features["encoder_cosine"] > 0.9).sum() == 50
    encoder_a[:, 41] = encoder_a[:, 40] + 0.25 * unit(rng, 1, 24)[0]  # 40 and 41 are alike, and changed places in b
    encoder_b[:, order[[40, 41]]] = encoder_a[:, [41, 40]]
    swapped = seed_stability([sae(a, encoder_a), sae(b, encoder_b)], threshold=0.9, encoder=True).features
    pair = swapped.set_index("feature").loc[[40, 41]]
    assert (pair["partner"] == order[[40, 41]]).all() and (pair[["cosine", "encoder_cosine"]] > 0.9).all(axis=None)
    assert not pair["agrees"].any() and swapped["agrees"].sum() == 48
    with pytest.raises(InvalidInput, match="no encoder directions"):
        seed_stability([RawUnits(Site(1), 24), RawUnits(Site(1), 24)], encoder=True)


def test_correlations_equal_those_of_numpy():
    rng = np.random.default_rng(3)
    a, b, _ = planted(rng, n=40, n_shared=25, d=12, noise=0.02)
    x = rng.standard_normal((900, 12)).astype(np.float32)
    one, two = sae(a), sae(b)
    found = seed_stability([one, two], activations=x, threshold=0.9)
    full = np.corrcoef(one.encode(x).T.astype(float), two.encode(x).T.astype(float))[:40, 40:]
    np.testing.assert_allclose(
        found.features["correlation"], full[found.features["feature"], found.features["partner"]], atol=1e-6
    )
    best = best_matching(np.eye(40), full.T, products)
    row = found.pairs.iloc[0]
    assert row["correlation"] == pytest.approx(best.similarity.mean(), abs=1e-6)
    assert row["correlated"] == pytest.approx(np.mean(best.similarity > 0.9)) and row["same_partner"] >= 25 / 40
    silent = sae(b)
    silent.weights["b_enc"][:5] = -1e9  # never active: no correlation
    partial = seed_stability([one, silent], activations=x)
    without = partial.features.set_index("partner")["correlation"]
    assert without[range(5)].isna().all() and without[range(5, 40)].notna().all()


def test_refusals():
    a = RandomDirections(Site(1), 8, 10)
    with pytest.raises(InvalidInput, match="two or more dictionaries, found 1"):
        seed_stability([a])
    with pytest.raises(DataMismatch, match="one site"):
        seed_stability([a, RandomDirections(Site(2), 8, 10)])
    with pytest.raises(DataMismatch, match=r"shape \(9,\), expected \(10,\)"):
        seed_stability([a, a], densities=[np.ones(10), np.ones(9)])
    with pytest.raises(InvalidInput, match="no feature of dictionary '1' is alive"):
        seed_stability([a, a], densities=[np.ones(10), np.zeros(10)])
    with pytest.raises(InvalidInput, match="under the same names"):
        seed_stability({"x": a, "y": a}, densities=[np.ones(10), np.ones(10)])
    with pytest.raises(InvalidInput, match="n_null must be at least 2"):
        seed_stability([a, a], n_null=1)


SITE = Site(1)


def test_only_dictionaries_of_one_kind_are_compared():
    def directions(site=SITE, d=6, name="m", fingerprint="a" * 64, n=10):
        return RandomDirections(site, d, n, model_name=name, model_fingerprint=fingerprint)

    def transcoder(source, target):
        weights = {"W_enc": torch.randn(6, 10), "W_dec": torch.randn(10, 6), "b_enc": torch.zeros(10)}
        return ReLUSAE(source, {**weights, "b_dec": torch.zeros(6)}, subtract_decoder_bias=False, target_site=target)

    assert len(seed_stability({"a": directions(), "b": directions(name="", fingerprint="")}).pairs) == 1
    pairs = (
        (directions(Site(2)), "'a' is of resid_post.1, but 'b' is of resid_post.2"),
        (directions(d=7), "'a' has width 6, but 'b' has width 7"),
        (
            directions(name="n", fingerprint="b" * 64),
            r"'a' is of model 'm' \(fingerprint a{12}\), but 'b' is of model 'n'",
        ),
        (transcoder(Site(0), Site(1)), "'a' is of resid_post.1, but 'b' is of resid_post.0 to resid_post.1"),
        (transcoder(Site(1), Site(1)), "'a' is of resid_post.1, but 'b' is of resid_post.1 to resid_post.1"),
    )
    for other, words in pairs:
        with pytest.raises(DataMismatch, match=words):
            seed_stability({"a": directions(), "b": other})
