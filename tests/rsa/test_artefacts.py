"""Findings of exploratory RSA that were artefacts: each is reproduced as it was computed, and must be null here.

The exploratory score of a unit: rows are prompts, columns are token positions; r = correlations of rows,
z = arctanh(1 − r) with what is not finite dropped (so every pair with r ≤ 0 is), and a t test of the pairs within one
class against the pairs across classes; the largest t was taken for the most selective unit.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurollm.designs import CategoricalDesign, DiscriminativeDesign
from neurollm.rsa import FeatureRSA

N = 40  # prompts, half of each class


def trials(n=N):
    return pd.DataFrame(
        {"outcome": ["success", "failure"] * (n // 2), "item": np.arange(n), "text": [f"text {i}" for i in range(n)]}
    )


def exploratory_t(patterns, labels):
    """The discriminative score of one unit, prompts × positions."""
    with np.errstate(all="ignore"):
        r = np.clip(np.corrcoef(patterns), -0.999, 0.999)
        z = np.arctanh(1 - r)
    own = np.flatnonzero(labels)
    within = z[np.ix_(own, own)][np.triu_indices(own.size, 1)]
    across = z[np.ix_(own, np.flatnonzero(~labels))].ravel()
    return stats.ttest_ind(within[np.isfinite(within)], across[np.isfinite(across)]).statistic


def test_the_sign_was_inverted():
    """A unit whose successes share a time course has the lowest exploratory score, and the highest here."""
    rng = np.random.default_rng(0)
    labels = (trials()["outcome"] == "success").to_numpy()
    units = rng.normal(size=(20, N, 12))
    units[7, labels] += 2 * rng.normal(size=12)
    scores = [exploratory_t(unit, labels) for unit in units]
    assert np.argmin(scores) == 7
    # The same question of one value per prompt: successes alike, failures anywhere.
    X = rng.normal(size=(N, 20))
    X[labels, 7] *= 0.1
    rsa = FeatureRSA(DiscriminativeDesign("outcome", "success"), ("discriminative",), n_perm=200).fit(X, trials())
    assert np.argmax(rsa.result_["discriminative"].z) == 7
    assert rsa.result_["discriminative"].r[7] > 0


def test_pairs_were_dropped_where_they_disagreed():
    """Half of the pairs of unrelated prompts have r ≤ 0: arctanh(1 − r) is not finite for them."""
    patterns = np.random.default_rng(1).normal(size=(N, 12))
    r = np.corrcoef(patterns)[np.triu_indices(N, 1)]
    with np.errstate(all="ignore"):
        dropped = ~np.isfinite(np.arctanh(1 - r))
    assert 0.4 < dropped.mean() < 0.6


def pair_test(x, labels, rng, n_perm=200):
    """Exchanging pairs instead of prompts: within against across distances, one-sided, p may be 0."""
    d = (x[:, None] - x) ** 2
    own = np.flatnonzero(labels)
    within = d[np.ix_(own, own)][np.triu_indices(own.size, 1)]
    across = d[np.ix_(own, np.flatnonzero(~labels))].ravel()
    both = np.concatenate([within, across])
    observed = across.mean() - within.mean()
    null = []
    for _ in range(n_perm):
        mixed = rng.permutation(both)
        null.append(mixed[within.size :].mean() - mixed[: within.size].mean())
    return np.mean(np.array(null) >= observed)


def test_pairs_are_no_replicates():
    """On noise, exchanging pairs finds something in three times 5 % of units and more; exchanging prompts does not."""
    rng = np.random.default_rng(2)
    obs = trials()
    labels = (obs["outcome"] == "success").to_numpy()
    X = rng.normal(size=(N, 200))
    naive = np.array([pair_test(x, labels, rng) for x in X.T])
    assert np.mean(naive <= 0.05) > 0.12
    one = (
        FeatureRSA(DiscriminativeDesign("outcome", "success"), ("discriminative",), n_perm=500, alternative="greater")
        .fit(X, obs)
        .result_["discriminative"]
    )
    assert np.mean(one.p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert one.p.min() >= 1 / 501
    assert (one.p_fwer > 0.05).all()


def test_the_categorical_score_was_about_coherence_and_not_about_category():
    """A difference of means between equally spread classes is no difference in coherence, and the other way round."""
    rng = np.random.default_rng(3)
    obs = trials(80)
    labels = (obs["outcome"] == "success").to_numpy()
    X = rng.normal(size=(80, 10))
    X[labels, 2] += 2
    X[labels, 5] *= 0.1
    rsa = FeatureRSA(CategoricalDesign("outcome"), ("categorical", "coherence:success"), n_perm=500).fit(X, obs)
    found = {one.model: np.flatnonzero(one.p_fwer <= 0.05).tolist() for one in rsa.result_.maps}
    assert found["coherence:success"] == [5]
    assert 2 in found["categorical"]
    assert rsa.result_["categorical"].r[2] > 0.2


def test_units_that_are_silent_in_most_prompts_have_no_score_of_zero():
    """Zero was the exploratory score of a unit with a constant row, and larger than that of many others."""
    obs = trials()
    X = np.zeros((N, 3))
    X[:2, 0] = 1.0
    X[:, 2] = np.random.default_rng(4).normal(size=N)
    one = FeatureRSA(CategoricalDesign("outcome"), n_perm=50).fit(X, obs).result_.maps[0]
    assert one.valid.tolist() == [False, False, True]
    assert np.isnan(one.p[:2]).all()


@pytest.mark.parametrize("n_copies", [1, 10])
def test_copies_of_a_prompt_are_no_replicates(n_copies):
    """The item is the unit: ten wordings of it change neither score nor p."""
    rng = np.random.default_rng(5)
    obs, X = trials(20), rng.normal(size=(20, 15))
    once = FeatureRSA(CategoricalDesign("outcome"), n_perm=300).fit(X, obs).to_frame()
    many = pd.concat([obs.assign(template=str(copy)) for copy in range(n_copies)], ignore_index=True)
    design = CategoricalDesign("outcome", template="template")
    again = FeatureRSA(design, n_perm=300).fit(np.tile(X, (n_copies, 1)), many).to_frame()
    pd.testing.assert_series_equal(again["p"], once["p"])
    np.testing.assert_allclose(again["r"], once["r"])


def test_a_token_that_is_the_same_everywhere_is_no_finding():
    """Rounding of a value that is equal in all prompts once looked like an enormous effect."""
    obs = trials()
    X = np.full((N, 2), 31.25, dtype=np.float32)
    X[::2, 0] += np.float32(31.25) * np.finfo(np.float32).eps
    X[:, 1] = np.random.default_rng(6).normal(size=N)
    one = FeatureRSA(CategoricalDesign("outcome"), n_perm=50).fit(X, obs).result_.maps[0]
    assert one.valid.tolist() == [False, True]
