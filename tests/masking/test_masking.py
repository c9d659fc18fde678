"""Windows, pooling and trials against plain loops over the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from neurollm.dictionaries import RawUnits
from neurollm.errors import InvalidInput
from neurollm.masking import FeatureMasker, Window, provenance
from neurollm.masking.windows import pool_rows
from neurollm.models import Site, TokenizedText, load_model, run_site, tokenize
from neurollm.models.forward import pad
from neurollm.stimuli import StimulusSet

HEADER = "stimulus_id\ttext\titem\toutcome\ttarget\n"
ROWS = [
    "a\tThe runner won the long race.\ti1\twin\t11:14",
    "b\tThe runner lost the long race.\ti1\tloss\t11:15",
    "c\tWon.\ti2\twin\t0:3",
    "d\tLost, and everyone in the village heard about it before the evening.\ti2\tloss\t0:4",
]


@pytest.fixture
def stimuli(tmp_path) -> StimulusSet:
    file = tmp_path / "set.tsv"
    file.write_text(HEADER + "\n".join(ROWS) + "\n")
    return StimulusSet.read_tsv(file)


def _raw(lm):
    return RawUnits(Site(2), lm.d_model)


def _expected(lm, text, window, how, target=None):
    tokens = tokenize(lm, [text])[0]
    hidden = run_site(lm, *pad([tokens.ids], lm), Site(2))[0].numpy()
    rows = hidden[Window(window).positions(tokens, target)]
    return {"mean": rows.mean(0), "max": rows.max(0), "sum": rows.sum(0), "last": rows[-1]}[how]


@pytest.mark.parametrize("how", ["mean", "max", "sum", "last"])
@pytest.mark.parametrize("window", ["content", "last", "target", "left:2", "centre:3", "all"])
def test_trials_equal_a_plain_loop(demo_lm, stimuli, window, how):
    trials = FeatureMasker(
        demo_lm, _raw(demo_lm), tokens=window, pool=how, tokens_per_batch=16, verbose=0
    ).fit_transform(stimuli)
    assert list(trials.obs_names) == ["a", "b", "c", "d"]
    for row, (text, target) in enumerate(zip(trials.obs["text"], trials.obs["target"], strict=True)):
        span = tuple(int(part) for part in target.split(":"))
        np.testing.assert_allclose(
            trials.X[row].toarray().ravel(), _expected(demo_lm, text, window, how, span), rtol=1e-4, atol=2e-4
        )


def test_features_are_the_dictionary_of_the_tokens(demo_lm, demo_dictionary, stimuli):
    trials = FeatureMasker(demo_lm, demo_dictionary, verbose=0).fit_transform(stimuli)
    tokens = tokenize(demo_lm, [ROWS[3].split("\t")[1]])[0]
    hidden = run_site(demo_lm, *pad([tokens.ids], demo_lm), demo_dictionary.site)[0][~tokens.special]
    expected = demo_dictionary.encode(hidden.float()).mean(0)
    np.testing.assert_allclose(trials.X[3].toarray().ravel(), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert trials.obs["n_tokens"].iloc[3] == (~tokens.special).sum()
    assert (trials.var["n_active"].to_numpy() == (trials.X > 0).sum(0)).all()


def test_position_zero_never_enters(demo_lm, stimuli):
    assert tokenize(demo_lm, ["Won."])[0].special[0]
    with_special = FeatureMasker(demo_lm, _raw(demo_lm), tokens="all", verbose=0).fit_transform(stimuli)
    without = FeatureMasker(demo_lm, _raw(demo_lm), verbose=0).fit_transform(stimuli)
    assert (with_special.obs["n_tokens"] == without.obs["n_tokens"] + 1).all()


def test_keeping_positions_gives_one_row_per_token(demo_lm, stimuli):
    trials = FeatureMasker(demo_lm, _raw(demo_lm), pool="none", verbose=0).fit_transform(stimuli)
    pooled = FeatureMasker(demo_lm, _raw(demo_lm), verbose=0).fit_transform(stimuli)
    assert trials.n_obs == pooled.obs["n_tokens"].sum()
    for row, name in enumerate(pooled.obs_names):
        rows = trials.X[(trials.obs["stimulus_id"] == name).to_numpy()].toarray()
        np.testing.assert_allclose(rows.mean(0), pooled.X[row].toarray().ravel(), rtol=1e-4, atol=1e-4)


def test_trials_without_tokens_are_dropped_and_listed(demo_lm, tmp_path):
    file = tmp_path / "set.tsv"
    file.write_text(HEADER + "\n".join([*ROWS[:3], "d\tLost again.\ti2\tloss\t"]) + "\n")
    trials = FeatureMasker(demo_lm, _raw(demo_lm), tokens="target", verbose=0).fit_transform(StimulusSet.read_tsv(file))
    assert list(trials.obs_names) == ["a", "b", "c"]
    assert [entry["stimulus_id"] for entry in provenance(trials)["dropped"]] == ["d"]


def test_too_long_a_text_is_refused_not_truncated(demo_lm, tmp_path):
    file = tmp_path / "set.tsv"
    file.write_text(HEADER + "\n".join([*ROWS[:3], f"d\t{'very ' * 400}long.\ti2\tloss\t0:4"]) + "\n")
    with pytest.raises(InvalidInput, match=r"'d'.*at most 256"):
        FeatureMasker(demo_lm, _raw(demo_lm), verbose=0).fit_transform(StimulusSet.read_tsv(file))


@pytest.mark.parametrize("spec", ["", "contents", "left", "left:0", "left:-1", "centre:x", None, "all "])
def test_unknown_windows_are_refused(spec):
    with pytest.raises(InvalidInput, match="left:n"):
        Window(spec)


@pytest.mark.parametrize("how", ["mean", "max", "sum", "last"])
def test_pooling_equals_dense_numpy(how):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((30, 8)) < 0.4, rng.normal(size=(30, 8)), 0).astype(np.float32)
    owners = np.sort(rng.integers(0, 6, 30))
    pooled = pool_rows(sparse.csr_matrix(dense), owners, 7, how).toarray()
    for trial in range(7):
        rows = dense[owners == trial]
        expected = (
            np.zeros(8)
            if len(rows) == 0
            else {"mean": rows.mean(0), "max": rows.max(0), "sum": rows.sum(0), "last": rows[-1]}[how]
        )
        np.testing.assert_allclose(pooled[trial], expected, atol=1e-6)


def test_centre_window_is_centred():
    count = 9
    tokens = TokenizedText(
        np.arange(count), np.array([True] + [False] * (count - 1)), np.arange(count), np.arange(count) + 1
    )
    assert Window("centre:4").positions(tokens).tolist() == [3, 4, 5, 6]
    assert Window("centre:40").positions(tokens).tolist() == list(range(1, 9))
    assert torch.equal(torch.as_tensor(Window("last").positions(tokens)), torch.tensor([8]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_follows_the_window_changes_nothing_in_it(demo_dictionary, tmp_path, dtype):
    # Same first words, so a causal model has the same features there, however long the rest is.
    lines = []
    for item, noun in enumerate(["runner", "miller", "doctor", "sailor", "widow", "clerk"] * 8):
        lines.append(f"s{item}\tThe old {noun} won.\ti{item}\twin\t0:3")
        lines.append(
            f"l{item}\tThe old {noun} won{' and slept by the old river' * (1 + item % 5)}.\ti{item}\tloss\t0:3"
        )
    file = tmp_path / "set.tsv"
    file.write_text(HEADER + "\n".join(lines) + "\n")
    masker = FeatureMasker(
        load_model("demo", device="cpu", dtype=dtype), demo_dictionary, tokens="left:3", tokens_per_batch=300, verbose=0
    )
    trials = masker.fit_transform(StimulusSet.read_tsv(file))
    difference = trials.X[::2] - trials.X[1::2]
    assert abs(difference).max() == 0
