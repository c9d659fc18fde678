"""Window-free RSA: a course that starts anywhere is found where a fixed window does not see it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import pdist, squareform

from neurollm.designs import CategoricalDesign, FactorialDesign
from neurollm.errors import InvalidInput
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.sequences import IGNORES, sequence_rdm
from neurollm.rsa.windows import Windows
from neurollm.stats.auc import concordance
from neurollm.stats.rdms import categorical_rdm
from neurollm.stats.rdms.pairs import rdm_scores
from neurollm.stats.rdms.sequences import SEQUENCE_DISTANCES, sequence_distances

DESIGN = CategoricalDesign("outcome")


def made(seed, n=24, planted=True, templates=1, lengths=(9, 15)):
    """Condition a rises and then falls, b falls and then rises, from an onset of its own in every trial."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    for item in range(n):
        for template in range(templates):
            length = int(rng.integers(*lengths))
            X = 0.4 * rng.normal(size=(length, 3))
            sign = 1 if item % 2 else -1
            onset = int(rng.integers(0, length - 5))
            if planted:
                X[onset : onset + 6, 0] += sign * np.array([2, 3, 2, -2, -3, -2])
            values.append(X)
            rows += [(f"s{item}.{template}", f"i{item:02d}", "ba"[item % 2], p + 1) for p in range(length)]
    obs = pd.DataFrame(rows, columns=["stimulus_id", "item", "outcome", "position"])
    var = pd.DataFrame({"feature": [5, 8, 2]}, index=list("xyz"))
    return AnnData(np.concatenate(values), obs=obs.set_index(obs.index.astype(str)), var=var)


def auroc(rdm, labels):
    """Every trial by its mean distance to the other trials of either condition."""
    a = labels == "a"
    others = ~np.eye(len(a), dtype=bool)
    nearer = [rdm[i, others[i] & ~a].mean() - rdm[i, others[i] & a].mean() for i in range(len(a))]
    more, pairs = concordance(np.array(nearer), a, np.ones((1, len(a))))
    return float(more[0] / pairs[0])


def test_shifted_onsets_need_no_window():
    gains = []  # over the window that all trials fill
    for seed in range(5):
        trials = made(seed, lengths=(14, 20))
        found = sequence_rdm(trials)
        labels = found.obs["outcome"].to_numpy()
        windows = Windows.from_trials(trials, span=(0, 13))
        assert windows.present.all()
        fixed = squareform(pdist(windows.data[windows.rows].reshape(len(labels), -1), "sqeuclidean"))
        D = categorical_rdm(labels)
        gains.append(auroc(found.rdms[0], labels) - auroc(fixed, labels))
        assert auroc(found.rdms[0], labels) > 0.9
        assert rdm_scores(found.rdms, D)[0] > rdm_scores(fixed[None], D)[0] + 0.2
        test = found.test(DESIGN, n_perm=199, random_state=seed)
        assert test.p_fwer[0] <= 0.01 and test.r[0] == pytest.approx(rdm_scores(found.rdms, D)[0])
    assert np.mean(gains) > 0.2


def test_features_by_themselves_and_what_order_says():
    trials = made(7)
    each = sequence_rdm(trials, [2, 5, 8], each=True)
    result = each.test(DESIGN, n_perm=199)
    frame = result.to_frame()
    assert frame["feature"].tolist() == [2, 5, 8]
    assert (frame["p_fwer"] <= 0.05).tolist() == [False, True, False]
    assert "feature 5" in result.verdict() and IGNORES["dtw"] in result.verdict()
    # Both conditions hold the same values in another order: to the order-free distances nothing differs.
    for distance in ("energy", "transport"):
        assert sequence_rdm(trials, [5], distance).test(DESIGN, n_perm=199).p[0] > 0.05


@pytest.mark.parametrize("distance", SEQUENCE_DISTANCES)
def test_rdms_are_those_of_the_sequences(distance):
    trials = made(8, n=6)
    shuffled = trials[np.random.default_rng(0).permutation(trials.n_obs)].copy()
    found = sequence_rdm(shuffled, [8, 5], distance)
    ids = shuffled.obs["stimulus_id"].unique()
    assert found.obs.index.tolist() == list(ids) and found.feature.tolist() == ["region"]
    sequences = []
    for name in ids:
        here = trials.obs["stimulus_id"] == name
        sequences.append(trials.X[here.to_numpy()][np.argsort(trials.obs.loc[here, "position"])][:, [1, 0]])
    assert found.obs["n_tokens"].tolist() == [len(one) for one in sequences]
    np.testing.assert_allclose(found.rdms[0], sequence_distances(sequences, distance))
    same = sequence_rdm(AnnData(sparse.csr_matrix(shuffled.X), obs=shuffled.obs, var=shuffled.var), [8, 5], distance)
    np.testing.assert_allclose(same.rdms, found.rdms)


def test_noise_is_significant_at_the_nominal_rate():
    p = [
        sequence_rdm(made(100 + seed, n=10, planted=False), distance="dtw").test(
            DESIGN, n_perm=39, random_state=seed, alternative="greater"
        ).p[0]
        for seed in range(120)
    ]  # fmt: skip
    rate = np.mean(np.array(p) <= 0.1)
    assert abs(rate - 0.1) <= 3 * np.sqrt(0.1 * 0.9 / 120)


def test_templates_are_averaged_to_rows():
    trials = made(9, n=8, templates=3)
    found = sequence_rdm(trials)
    result = found.test(DESIGN, n_perm=100)
    means = found.rdms[0].reshape(8, 3, 8, 3).mean(axis=(1, 3))
    np.fill_diagonal(means, 0)
    expected = rdm_scores(means[None], categorical_rdm(np.arange(8) % 2))
    np.testing.assert_allclose(result.r, expected)
    assert result.exhaustive and result.n_perm == 70 and result.n_trials == 24


def test_wrong_calls_are_told():
    trials = made(10, n=8)
    found = sequence_rdm(trials)
    with pytest.raises(InvalidInput, match="needs a choice"):
        sequence_rdm(trials, each=True)
    with pytest.raises(InvalidInput, match="'3' is no feature"):
        sequence_rdm(trials, [3])
    with pytest.raises(InvalidInput, match="pool='none'"):
        sequence_rdm(AnnData(np.ones((3, 2))))
    with pytest.raises(InvalidInput, match="'edit' is unknown"):
        sequence_rdm(trials, distance="edit")
    for options, words in [({"comparison": "tau"}, "comparison is"), ({"alternative": "up"}, "alternative is")]:
        with pytest.raises(InvalidInput, match=words):
            found.test(DESIGN, **options)
    with pytest.raises(InvalidInput, match="n_perm must be"):
        found.test(DESIGN, n_perm=0)
    trials.obs["half"] = np.where(trials.obs["item"].isin(["i00", "i01", "i02", "i03"]), "u", "v")
    both = FactorialDesign(("outcome", "half"))
    with pytest.raises(
        InvalidInput, match="'effects' stands for 3 models; name one of 'outcome', 'half', 'outcome:half'"
    ):
        sequence_rdm(trials).test(both, "effects")
    with pytest.raises(InvalidInput, match="interaction of several such factors has no valid exchange"):
        sequence_rdm(trials).test(both, "outcome:half")
    inside = made(10, n=16)
    number = inside.obs["item"].str[1:].astype(int)
    inside.obs["half"] = np.where(number // 2 % 2, "u", "v")
    inside.obs["item"] = "i" + (number // 4).astype(str)
    with pytest.raises(InvalidInput, match="is an interaction"):
        sequence_rdm(inside).test(both, "outcome:half")
    constant = found.__class__(np.full_like(found.rdms, np.nan), found.feature, found.obs, "dtw")
    assert "none of the 1 RDMs" in constant.test(DESIGN, n_perm=20).verdict()


def test_what_runs_against_the_model_is_not_said_to_follow_it():
    trials = made(11, n=16)
    trials.X[:, 0] = 10 * (trials.obs["outcome"] == "a")
    alike = ModelRDM("alike", (1 - categorical_rdm(np.arange(16) % 2)) * (1 - np.eye(16)))  # says the opposite
    found = sequence_rdm(trials, [5], distance="energy").test(DESIGN, alike, n_perm=300)
    assert found.r[0] < 0 and found.p_fwer[0] <= 0.05
    assert "0 of 1 tested RDMs follow the model and 1 run against it at" in found.verdict()
