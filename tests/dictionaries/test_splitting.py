"""Splitting against its definition with sets, and on dictionaries that are known to split."""

import numpy as np
import pytest
import torch

from neurollm.dictionaries import RandomDirections, ReLUSAE
from neurollm.dictionaries.splitting import _Neighbours, _Pairs, feature_splitting
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site

D = 12


def sae(decoder, encoder=None, bias=None):
    decoder = torch.as_tensor(np.asarray(decoder), dtype=torch.float32)
    encoder = decoder if encoder is None else torch.as_tensor(np.asarray(encoder), dtype=torch.float32)
    bias = torch.zeros(len(decoder)) if bias is None else torch.as_tensor(bias, dtype=torch.float32)
    weights = {"W_enc": encoder.T, "W_dec": decoder, "b_enc": bias, "b_dec": torch.zeros(decoder.shape[1])}
    return ReLUSAE(Site(1), weights)


def one_concept_per_token(n=3_000, d=D, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros((n, d), np.float32)
    x[np.arange(n), rng.integers(d, size=n)] = rng.uniform(0.5, 1.5, n)
    return x


def planted():
    """Parent 0 splits, 1 loses a half, 2 has a child that is not precise, 3 lives on beside a weaker copy."""
    e = np.eye(D)
    small = sae([e[0] + e[1], e[2] + e[3], e[4] + e[5], e[6]])
    decoder = [e[0], e[1], e[2], e[4], e[5], e[6], e[6], e[8], e[9]]
    encoder = [e[0], e[1], e[2], e[4], e[5] + e[7] + e[8], e[6], e[6], e[8], e[9]]
    bias = np.zeros(9)
    bias[6] = -1.2  # only on strong activations
    return small, sae(decoder, encoder, bias)


def test_planted_splits_are_found():
    found = feature_splitting(*planted(), one_concept_per_token(), n_null=99)
    table = found.to_frame().set_index("parent")
    assert set(table.index) == {0, 3} and table["splits"].all()
    assert table.loc[0, "children"] == (0, 1) and table.loc[3, "children"] == (5, 6)
    assert table.loc[0, "coverage"] == 1 and table.loc[0, "precision"] == 1
    assert table.loc[0, "cosine"] == pytest.approx(0.5**0.5)
    assert 0.4 < table.loc[0, "best_single"] < 0.6 and table.loc[3, "best_single"] == 1
    assert (found.n_parents, found.n_split, found.n_divided, found.share) == (4, 2, 1, 0.5)


def test_more_splits_than_by_frequency():
    """30 parents of two children each, all features equally frequent."""
    e = np.eye(60)
    small, large = sae(e[:30] + e[30:]), sae(e)
    found = feature_splitting(small, large, one_concept_per_token(20_000, 60), n_null=99)
    assert found.n_split == 30 and found.null.max() <= 3 and found.p == 1 / 100
    again = feature_splitting(small, large, one_concept_per_token(20_000, 60), n_null=99)
    np.testing.assert_array_equal(found.null, again.null)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_by_definition_with_sets(seed):
    x = np.random.default_rng(seed).standard_normal((400, 4)).astype(np.float32)
    small, large = RandomDirections(Site(1), 4, 12, seed, k=3), RandomDirections(Site(1), 4, 70, seed + 50, k=6)
    found = feature_splitting(small, large, x, cosine=0.3, coverage=0.6, precision=0.5, min_active=5, n_null=3)
    sets = [[set(np.flatnonzero(column)) for column in (d.encode(x) > 0).T] for d in (small, large)]
    cosines = small.directions.numpy() @ large.directions.numpy().T
    expected = {}
    for p, parent in enumerate(sets[0]):
        children = [
            c
            for c, child in enumerate(sets[1])
            if len(parent) >= 5 and len(child) >= 5 and cosines[p, c] >= 0.3 and len(child & parent) / len(child) >= 0.5
        ]
        if len(children) >= 2:
            union = set().union(*(sets[1][c] for c in children))
            expected[p] = (tuple(children), len(union & parent) / len(parent))
    table = found.table.set_index("parent")
    assert set(table.index) == set(expected) and len(expected) >= 2
    for p, (children, coverage) in expected.items():
        assert table.loc[p, "children"] == children and table.loc[p, "coverage"] == pytest.approx(coverage)
        assert table.loc[p, "splits"] == (coverage >= 0.6)
        best = max(len(sets[1][c] & sets[0][p]) for c in children) / len(sets[0][p])
        assert table.loc[p, "best_single"] == pytest.approx(best)
    assert found.n_split == sum(coverage >= 0.6 for _, coverage in expected.values())
    assert found.p == (1 + np.sum(found.null >= found.n_split)) / 4


def test_random_children_are_as_frequent_and_others():
    active = np.random.default_rng(0).permutation(np.r_[np.arange(10, 210), [0, 3]])
    neighbours = _Neighbours(active, 10)
    children = np.flatnonzero(active >= 10)
    pairs = _Pairs(np.zeros(200, int), children, np.ones(200))
    seen = np.array([neighbours.replace(pairs, np.random.default_rng(seed)).children for seed in range(300)])
    assert not (seen == children).any() and (active[seen] >= 10).all()
    assert np.abs(active[seen] - active[children]).max() <= 20
    assert all(len(set(column)) == 20 for column in seen.T)


def test_refusals():
    small, large = planted()
    x = one_concept_per_token()
    with pytest.raises(InvalidInput, match="must be the larger one; they have 9 and 4"):
        feature_splitting(large, small, x)
    with pytest.raises(
        DataMismatch, match=r"smaller dictionary is of resid_post\.1, but the larger is of resid_post\.2"
    ):
        feature_splitting(small, RandomDirections(Site(2), D, 20), x)
    with pytest.raises(InvalidInput, match="no feature of the smaller dictionary is active on 10 or more of the 20"):
        feature_splitting(small, large, np.zeros((20, D), np.float32))


def test_models_must_be_the_same():
    small, large = (
        RandomDirections(Site(1), D, n, model_name=m, model_fingerprint=m * 64) for n, m in ((9, "a"), (20, "b"))
    )
    words = r"the smaller dictionary is of model 'a' \(fingerprint a{12}\), but the larger is of model 'b'"
    with pytest.raises(DataMismatch, match=words):
        feature_splitting(small, large, one_concept_per_token())
    with pytest.raises(InvalidInput, match="n_null must be 0 or more"):
        feature_splitting(*planted(), one_concept_per_token(), n_null=-1)
