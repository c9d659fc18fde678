"""Adjusted p values against statsmodels; true discoveries against closed testing over all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from neurollm.errors import InvalidInput
from neurollm.stats.multiplicity import METHODS, adjust, true_discoveries

NAMES = {"bh": "fdr_bh", "by": "fdr_by", "bky": "fdr_tsbky", "holm": "holm", "bonferroni": "bonferroni"}
P = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.5, 1.0]))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "holm"])
@given(p=st.lists(P, min_size=1, max_size=40), alpha=st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=60, deadline=None)
def test_adjusted_p_equals_statsmodels(method, p, alpha):
    p = np.array(p)
    theirs = multipletests(p, alpha=alpha, method=NAMES[method])[1]
    np.testing.assert_allclose(adjust(p, method, alpha=alpha), theirs, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("seed", range(6))  # the other implementation takes long
def test_holm_equals_statsmodels(seed):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 1, rng.integers(1, 40))
    p[rng.random(p.size) < 0.3] = rng.choice([0.0, 0.01, 1.0])
    np.testing.assert_allclose(adjust(p, "holm"), multipletests(p, method="holm")[1], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_p_stays_missing_and_is_not_counted(method):
    p = np.array([0.001, np.nan, 0.02, 0.8, np.nan])
    ours = adjust(p, method)
    assert np.isnan(ours[[1, 4]]).all()
    np.testing.assert_allclose(ours[[0, 2, 3]], adjust(p[[0, 2, 3]], method))


@pytest.mark.parametrize("method", METHODS)
def test_edges(method):
    assert adjust(np.array([]), method).shape == (0,)
    assert np.isnan(adjust(np.full(3, np.nan), method)).all()
    np.testing.assert_array_equal(adjust(np.ones(5), method), np.ones(5))
    single = adjust(np.r_[1e-9, np.ones(99)], method)
    assert (single <= 0.05).tolist() == [True] + [False] * 99


def test_bh_rejects_a_false_hit_in_at_most_a_share_alpha_of_families():
    rng = np.random.default_rng(0)
    false_share = []
    for _ in range(2000):
        p = np.r_[rng.beta(0.05, 1, 10), rng.random(40)]
        rejected = adjust(p) <= 0.05
        false_share.append(rejected[10:].sum() / max(rejected.sum(), 1))
    # Exactly α·m0/m = .04 for independent p.
    assert np.mean(false_share) == pytest.approx(0.04, abs=4 * np.std(false_share) / np.sqrt(2000))


def kept_by_simes(p, alpha):
    """The subsets that Simes does not reject."""
    kept = []
    for size in range(1, len(p) + 1):
        for subset in itertools.combinations(range(len(p)), size):
            if not np.any(size * np.sort(p[list(subset)]) <= alpha * np.arange(1, size + 1)):
                kept.append(set(subset))
    return kept


@pytest.mark.parametrize("seed", range(40))
def test_true_discoveries_equal_closed_testing_over_all_subsets(seed):
    rng = np.random.default_rng(seed)
    m = 12 if seed == 0 else int(rng.integers(1, 10))
    p = rng.beta(rng.choice([0.05, 0.2, 0.5, 1]), 1, m)
    if seed % 3 == 0:  # ties and values on the Simes line
        p = rng.choice([0.0, 0.005, 0.01, 0.0125, 0.025, 0.05, 0.5, 1.0], m)
    for alpha in (0.05, 0.2):
        sets = {str(i): np.flatnonzero(rng.random(m) < 0.6) for i in range(8)}
        ours = true_discoveries(p, sets, alpha)
        kept = kept_by_simes(p, alpha)
        for name, members in sets.items():
            # Nulls may be any part of a kept set: closed testing rejects a set unless a kept set contains it.
            nulls = max((len(subset & set(members.tolist())) for subset in kept), default=0)
            assert ours[name].n_discoveries == len(members) - nulls


def test_a_mask_and_numbers_name_the_same_set_and_missing_members_count_as_not_discovered():
    p = np.array([1e-6, 1e-6, np.nan, 0.7])
    found = true_discoveries(p, {"mask": np.array([True, True, True, False]), "numbers": [2, 0, 1], "none": []})
    assert found["mask"] == found["numbers"]
    assert (found["mask"].n_features, found["mask"].n_tested, found["mask"].n_discoveries) == (3, 2, 2)
    assert found["mask"].proportion == pytest.approx(2 / 3)
    assert found["none"].n_discoveries == 0 and np.isnan(found["none"].proportion)


def test_no_true_discovery_is_claimed_among_nulls_more_often_than_alpha():
    rng = np.random.default_rng(1)
    claims = [true_discoveries(rng.random(50), {"all": np.arange(50)})["all"].n_discoveries > 0 for _ in range(2000)]
    assert np.mean(claims) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 2000))


def test_a_million_features():
    p = np.r_[np.full(1000, 1e-9), np.random.default_rng(0).random(999_000)]
    found = true_discoveries(p, {"active": np.arange(1000), "all": np.arange(1_000_000)})
    assert found["active"].n_discoveries == 1000 <= found["all"].n_discoveries


@pytest.mark.parametrize(
    "call",
    [
        lambda: adjust(np.array([1.2])),
        lambda: adjust(np.array([0.1]), "sidak"),
        lambda: adjust(np.array([[0.1]])),
        lambda: true_discoveries(np.array([0.1]), {"a": [1]}),
        lambda: true_discoveries(np.array([0.1]), {"a": [-1]}),
        lambda: true_discoveries(np.array([0.1, 0.2]), {"a": [0, 0]}),
        lambda: true_discoveries(np.array([0.1, 0.2]), {"a": [True]}),
        lambda: true_discoveries(np.array([0.1, 0.2]), {"a": [0.5]}),
        lambda: true_discoveries(np.array([0.1]), {}, alpha=0.0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
