"""Lining up tokens: what exists is a mask, and nothing is ever padded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.windows import Windows, target_anchors

LENGTHS = {"s3": 4, "s1": 2, "s2": 3}


def tokens(kind=np.asarray):
    """Tokens 1 … n of three stimuli; the value of a token is 10 × its stimulus's number + its position."""
    obs = pd.DataFrame([(name, p, f"item {name}") for name, n in LENGTHS.items() for p in range(1, n + 1)])
    obs.columns = ["stimulus_id", "position", "item"]
    X = 10.0 * obs["stimulus_id"].str[1:].astype(int) + obs["position"]
    X = np.column_stack([X, -X])
    return AnnData(
        kind(X), obs=obs.set_index(obs.index.astype(str)), var=pd.DataFrame({"feature": [40, 7]}, index=list("xy"))
    )


def grid(windows):
    """Values of the first feature by trial and position; NaN where a trial has none."""
    data = np.asarray(windows.data.todense()) if sparse.issparse(windows.data) else windows.data
    return np.where(windows.present, data[windows.rows, 0], np.nan)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_positions_count_from_the_event(kind):
    nan = np.nan
    start = Windows.from_trials(tokens(kind), "start", (0, 2))
    np.testing.assert_array_equal(grid(start), [[31, 32, 33], [11, 12, nan], [21, 22, 23]])
    assert start.obs.index.tolist() == ["s3", "s1", "s2"] and "position" not in start.obs
    end = Windows.from_trials(tokens(kind), "end", (-2, 0))
    np.testing.assert_array_equal(grid(end), [[32, 33, 34], [nan, 11, 12], [21, 22, 23]])
    target = Windows.from_trials(tokens(kind), "target", (-1, 1), {"s3": 3, "s2": 1, "other": 9})
    np.testing.assert_array_equal(grid(target), [[32, 33, 34], [nan, 21, 22]])
    assert target.dropped == ("s1",)


def test_missing_positions_are_counted():
    windows = Windows.from_trials(tokens(), "start", (0, 4))
    assert windows.to_frame().to_numpy().tolist() == [[0, 3, 0], [1, 3, 0], [2, 2, 1], [3, 1, 2], [4, 0, 3]]
    X, trials = windows.at(2)
    assert X.tolist() == [[33, -33], [23, -23]] and trials.tolist() == [0, 2]
    late = Windows.from_trials(tokens(), "start", (3, 9))
    assert late.dropped == ("s1", "s2") and len(late.obs) == 1


def test_features_are_taken_by_id():
    taken = Windows.from_trials(tokens(sparse.csr_matrix)).take([7])
    assert taken.feature.tolist() == [7] and grid(taken)[0, 0] == -31
    with pytest.raises(InvalidInput, match="'3' is no feature"):
        taken.take([3])


def test_shuffling_keeps_each_trials_own_tokens():
    windows = Windows.from_trials(tokens(), "start", (0, 3))
    shuffled = windows.shuffled(3)
    np.testing.assert_array_equal(shuffled.present, windows.present)
    np.testing.assert_array_equal(np.sort(shuffled.rows), np.sort(windows.rows))
    assert (shuffled.rows != windows.rows).any()


def test_wrong_calls_are_told():
    trials = tokens()
    for span in [(2, 1), (0, 1.5), 3, "ab", (0, 1, 2)]:
        with pytest.raises(InvalidInput, match="span must be"):
            Windows.from_trials(trials, span=span)
    with pytest.raises(InvalidInput, match="align is 'middle'"):
        Windows.from_trials(trials, "middle")
    with pytest.raises(InvalidInput, match="needs anchors"):
        Windows.from_trials(trials, "target")
    with pytest.raises(InvalidInput, match="no trial has a token"):
        Windows.from_trials(trials, "start", (7, 9))
    with pytest.raises(InvalidInput, match="no position 9"):
        Windows.from_trials(trials).at(9)
    with pytest.raises(InvalidInput, match="pool='none'"):
        Windows.from_trials(AnnData(np.ones((2, 2))))
    trials.obs["stimulus_id"] = "s1"
    with pytest.raises(DataMismatch, match="twice"):
        Windows.from_trials(trials)


def test_real_tokens_and_targets(demo_lm, demo_dictionary):
    from neurollm import FeatureMasker, StimulusSet

    texts = ["The old man won a prize.", "A girl in the village lost her way."]
    table = pd.DataFrame({"text": texts, "item": ["a", "b"], "condition": ["win", "loss"]})
    table["target"] = [f"{t.index(w)}:{t.index(w) + len(w)}" for t, w in zip(texts, ["won", "lost"], strict=True)]
    stimuli = StimulusSet(table.assign(stimulus_id=["a1", "b1"]), factors=["condition"], name="two")
    masker = FeatureMasker(demo_lm, demo_dictionary, pool="none", verbose=0)
    trials, anchors = masker.fit_transform(stimuli), target_anchors(masker, stimuli)
    windows = Windows.from_trials(trials, "target", (-1, 0), anchors)
    only = FeatureMasker(demo_lm, demo_dictionary, tokens="target", pool="none", verbose=0).fit_transform(stimuli)
    first = only.obs["position"].groupby(only.obs["stimulus_id"], sort=False).min()
    assert anchors == first.to_dict()
    expected = only.X[~only.obs["stimulus_id"].duplicated().to_numpy()].toarray()
    np.testing.assert_allclose(windows.at(0)[0].toarray(), expected, rtol=1e-4, atol=1e-4)
