"""Error-matched perturbations: what the noise is, known answers in a real model, and inference over documents."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from neurollm.activations import Corpus
from neurollm.datasets import demo_corpus_path
from neurollm.dictionaries import splice
from neurollm.errors import DataMismatch, InvalidInput, NeurollmError
from neurollm.interactions.perturbation import _Errors, _Perturbed, perturbation_test
from neurollm.interactions.perturbation_result import PerturbationResult
from neurollm.models import Site
from neurollm.random import stream

SITE = Site(3)


@pytest.fixture(scope="module")
def texts():
    with open(demo_corpus_path(), encoding="utf-8") as lines:
        return [json.loads(next(lines))["text"][:70] for _ in range(12)]


def random_errors(length, seed=0):
    """A reconstruction whose error is isotropic noise."""
    generator = torch.Generator().manual_seed(seed)

    def reconstruct(x):
        g = torch.randn(x.shape, generator=generator)
        return x + length * g / g.norm(dim=1, keepdim=True)

    return reconstruct


def insensitive(x):
    """An error along (1, …, 1), which every layer norm takes away, with a little along another direction."""
    direction = torch.ones(x.shape[1])
    direction[0] += 1
    return x + 30 * direction / direction.norm()


@pytest.fixture(scope="module")
def result(demo_lm, demo_dictionary, texts):
    conditions = {
        "dictionary": demo_dictionary.reconstruct,
        "identity": lambda x: x,
        "noise": random_errors(20.0),
        "insensitive": insensitive,
        "ablation": torch.zeros_like,
    }
    return perturbation_test(demo_lm, SITE, conditions, texts, n_boot=500, verbose=0)


def test_identity_ablation_and_brute_force(result, demo_lm, demo_dictionary, texts):
    frame = result.to_frame().set_index(["condition", "noise"])
    identity = frame.loc["identity"]
    assert (identity["kl"] == 0).all() and (identity["kl_noise"] == 0).all() and identity["ratio"].isna().all()
    assert (identity[["recovered_mean", "recovered_zero"]] == 1).all(axis=None) and (identity["delta_ce"] == 0).all()
    assert (frame.loc["ablation", "recovered_zero"] == 0).all()
    loss = splice.spliced_loss(demo_lm, demo_dictionary, texts, torch.zeros(256))
    own = frame.loc[("dictionary", "isotropic")]
    assert (own.kl, own.ce, own.n_tokens) == (pytest.approx(loss.kl), pytest.approx(loss.spliced), loss.n_predicted)
    assert own.recovered_zero == pytest.approx((loss.zero - loss.spliced) / (loss.zero - loss.clean))
    assert own.n_documents == 12 and own.kl_low < own.kl < own.kl_high


def test_ratio_tells_noise_from_insensitive_errors(result):
    frame = result.to_frame().set_index(["condition", "noise"])
    for noise in ("isotropic", "covariance", "shuffled"):
        row = frame.loc[("noise", noise)]
        assert row.ratio_low < 1 < row.ratio_high and 0.8 < row.ratio < 1.25 and row.p > 0.05
    assert frame.loc[("insensitive", "isotropic")].ratio_high < 0.2
    # The same error for every token: it has no covariance, and that of another token is the very same.
    assert np.isnan(
        frame.loc[("insensitive", "covariance")][["kl_noise", "ratio", "ratio_low", "p"]].astype(float)
    ).all()
    assert frame.loc[("insensitive", "shuffled")].ratio == pytest.approx(1, rel=1e-3)
    assert frame.loc["insensitive"].error_length.tolist() == pytest.approx([30] * 3, rel=1e-5)


def test_differences_are_paired_and_antisymmetric_in_value(result):
    table = result.differences().set_index(["condition_a", "condition_b", "quantity", "noise"])
    assert len(table) == 10 * (2 + 3)
    found = table.loc[("noise", "insensitive", "log_ratio", "isotropic")]
    assert found.difference == pytest.approx(found.value_a - found.value_b) and found.low > 1
    assert found.p == pytest.approx(1 / 501) and found.p_holm >= found.p
    kl = table.loc[("dictionary", "identity", "kl", "")]
    n = result.n_predicted
    assert kl.difference == pytest.approx(result.kl[0, 0].sum() / n.sum())
    assert np.isnan(table.loc[("dictionary", "identity", "log_ratio", "shuffled")].p)  # identity has no ratio
    assert (table["p"].dropna() > 0).all()


def test_result_in_words_and_on_disk(result, tmp_path):
    text = result.verdict()
    assert "12 documents" in text and "'noise'" in text and "undefined" in text
    assert "'identity': KL 0 nats" in text and "(not tested)" in text
    assert "(not told apart from isotropic and covariance and shuffled noise)" in text
    assert "(milder than isotropic noise; not told apart from shuffled noise; not tested against covariance" in text
    ratios = result.differences().query("quantity == 'log_ratio'")
    assert f"of {ratios['p'].notna().sum()} comparisons" in text
    silent = dataclasses.replace(result, n_boot=0).verdict()
    assert "comparisons" not in silent and "told apart" not in silent and silent.count("(not tested)") == 5
    loaded = PerturbationResult.load(result.save(tmp_path))
    assert loaded.verdict() == text and loaded.to_frame().equals(result.to_frame())
    assert PerturbationResult.load(tmp_path).verdict() == text
    path = tmp_path / "perturbation.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "noises": ["isotropic"]}))
    with pytest.raises(DataMismatch, match="damaged"):
        PerturbationResult.load(path)
    path.write_text(json.dumps({**plain, "version": 99}))
    with pytest.raises(DataMismatch, match="another version"):
        PerturbationResult.load(path)
    path.write_text("[]")
    with pytest.raises(InvalidInput, match="not a saved"):
        PerturbationResult.load(path)
    (tmp_path / "perturbation.npz").unlink()
    path.write_text(json.dumps(plain))
    with pytest.raises(DataMismatch, match="missing"):
        PerturbationResult.load(path)


def test_verdict_says_of_each_noise_whether_the_error_is_worse(result):
    """The ratio of a condition to its three noises: above 1, below 1, and between."""
    one = 1 + np.linspace(-0.1, 0.1, 12)
    kl = np.stack([one, one[::-1] / 3, one[::-1] * 3, one[::-1]])[None]
    picked = {"conditions": ("a",), "kl": kl, "ce": 1 + kl, "error_length": np.ones(1)}
    text = dataclasses.replace(result, **picked).verdict()
    assert "(worse than isotropic noise; milder than covariance noise; not told apart from shuffled noise)" in text
    worse = np.stack([one, *[one[::-1] / 3] * 3])[None]
    text = dataclasses.replace(result, **picked | {"kl": worse}).verdict()
    assert "(worse than isotropic and covariance and shuffled noise)" in text


def test_a_reconstruction_that_works_in_place_is_like_one_that_does_not(demo_lm, texts):
    def run(first):
        conditions = {"first": first, "second": lambda x: 0.9 * x}
        return perturbation_test(
            demo_lm, SITE, conditions, texts[:3], noises=["shuffled"], n_draws=1, n_boot=0, verbose=0
        )

    in_place, copied = run(lambda x: x.mul_(0.5)), run(lambda x: x * 0.5)
    np.testing.assert_array_equal(in_place.kl, copied.kl)
    np.testing.assert_array_equal(in_place.ablated, copied.ablated)
    assert in_place.error_length.tolist() == copied.error_length.tolist() and in_place.error_length[0] > 1


# --- the noise -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(demo_lm, demo_dictionary, texts):
    sequences = splice.token_sequences(demo_lm, texts)
    perturbed = _Perturbed({"a": demo_dictionary.reconstruct}, ("isotropic", "covariance", "shuffled"), 2, 7)
    perturbed.measure(demo_lm, SITE, sequences, 0)
    return perturbed, sequences


@pytest.mark.parametrize("noise", ["isotropic", "covariance", "shuffled"])
def test_noise_has_the_length_of_the_error_and_does_not_depend_on_the_batch(measured, noise):
    perturbed, sequences = measured
    n = np.array([sequence.n_ordinary for sequence in sequences])
    lengths = np.random.default_rng(0).exponential(5, n.sum())
    lengths[3] = 0
    together = perturbed.noise("a", noise, 0, lengths, sequences)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), lengths, rtol=1e-12)
    parts = np.split(lengths, np.cumsum(n)[:-1])
    for place in (5, 2):
        alone = perturbed.noise("a", noise, 0, parts[place], [sequences[place]])
        np.testing.assert_array_equal(alone, np.split(together, np.cumsum(n)[:-1])[place])
    assert np.abs(together - perturbed.noise("a", noise, 1, lengths, sequences)).max() > 1


def errors_of(rows, documents, noises=("covariance", "shuffled")):
    errors = _Errors(documents, rows.shape[1], noises, 0)
    for part in np.array_split(np.random.default_rng(1).permutation(len(rows)), 3):
        errors.add(part, rows[part])
    errors.finish()
    return errors


def sequence_of(n, document=0, first=0):
    return splice.TokenSequence(np.zeros(n), np.zeros(n, bool), document, 0, first)


def test_covariance_noise_has_the_covariance_of_the_errors():
    rng = np.random.default_rng(0)
    rows = 5 + rng.standard_normal((400, 4)) @ rng.standard_normal((4, 4))
    errors = errors_of(rows, np.repeat(np.arange(20), 20))
    drawn = errors.directions("covariance", stream(0, "test"), sequence_of(200_000))
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T, bias=True), rtol=0.03, atol=0.05)
    np.testing.assert_allclose(errors.root @ errors.root, np.cov(rows.T, bias=True), atol=1e-9)


def test_shuffled_errors_come_from_other_documents_all_equally():
    sizes = np.array([30, 5, 15, 50])
    documents = np.repeat(np.arange(4), sizes)
    rows = np.arange(1, 101.0)[:, None] * np.ones((1, 2))
    rows[:5] = 0  # no direction: not in the pool
    errors = errors_of(rows, documents)
    for document in range(4):
        drawn = errors.directions("shuffled", stream(0, "test"), sequence_of(20_000, document))[:, 0].astype(int) - 1
        counts = np.bincount(drawn, minlength=100)
        allowed = (documents != document) & (np.arange(100) >= 5)
        assert not counts[~allowed].any()
        np.testing.assert_allclose(counts[allowed] / 20_000, 1 / allowed.sum(), rtol=0.35)


def test_a_single_document_shuffles_its_own_errors():
    rows = np.arange(1, 9.0)[:, None] * np.ones((1, 3))
    errors = errors_of(rows, np.zeros(8, int))
    drawn = np.array([errors.directions("shuffled", stream(seed, "test"), sequence_of(8))[:, 0] for seed in range(300)])
    assert not np.any(drawn == rows[:, 0]) and all(len(set(column)) == 7 for column in drawn.T)
    alone = errors_of(rows[:1], np.zeros(1, int))
    assert np.isnan(alone.directions("shuffled", stream(0, "test"), sequence_of(1))).all()


def test_batches_and_repetition_do_not_change_the_result(demo_lm, demo_dictionary, texts, monkeypatch):
    def run():
        conditions = {"a": demo_dictionary.reconstruct}
        return perturbation_test(demo_lm, SITE, conditions, Corpus([("t", t) for t in texts[:4]]), n_boot=0, verbose=0)

    first = run()
    np.testing.assert_array_equal(first.kl, run().kl)
    monkeypatch.setattr(splice, "LOGIT_VALUES", 2**18)
    np.testing.assert_allclose(run().kl, first.kl, rtol=1e-4)
    assert first.to_frame()["ratio_low"].isna().all() and np.isfinite(first.to_frame()["ratio"]).all()


# --- wrong calls -----------------------------------------------------------------------------------------------------


def test_wrong_calls_are_told(demo_lm, texts):
    good = {"half": lambda x: x / 2}

    def call(reconstructions=good, documents=texts, **options):
        return perturbation_test(demo_lm, SITE, reconstructions, documents, verbose=0, **options)

    for match, arguments in {
        "at least 10 documents .* found 9": {"documents": [*texts[:9], ""]},
        "single text": {"documents": "one"},
        "at least one": {"reconstructions": {}},
        "one line of text": {"reconstructions": {"a\nb": torch.zeros_like}},
        "expected a function": {"reconstructions": {"a": 3}},
        "expected the same": {"reconstructions": {"a": lambda x: x[:, :5]}},
        "not finite": {"reconstructions": {"a": lambda x: x / 0}},
        "each once": {"noises": ["isotropic", "isotropic"]},
        "some of 'isotropic'": {"noises": ["white"]},
        "n_draws must": {"n_draws": 0},
        "n_boot must be a whole number of at least 100, or 0 .*, found 5": {"n_boot": 5},
        "2 of 14 documents repeat another one .number 12 is the same text as number 3": {
            "documents": [*texts, texts[3], texts[0]]
        },
    }.items():
        with pytest.raises(InvalidInput, match=match):
            call(**arguments)


@pytest.mark.parametrize("name", ["n_draws", "n_boot"])
@pytest.mark.parametrize("value", [1.5, "200", None, True, 200.0, -200])
def test_counts_are_checked_before_anything_is_computed(demo_lm, texts, name, value):
    def never(x):
        raise AssertionError("computed")

    with pytest.raises(InvalidInput, match=f"{name} must be a whole number"):
        perturbation_test(demo_lm, SITE, {"a": never}, texts, verbose=0, **{name: value})


def test_repeated_documents_are_allowed_without_intervals(demo_lm, texts):
    call = {"noises": ["isotropic"], "n_draws": 1, "n_boot": 0, "verbose": 0}
    found = perturbation_test(demo_lm, SITE, {"half": lambda x: x / 2}, [texts[0], texts[0], texts[1]], **call)
    assert found.documents.tolist() == [0, 1, 2] and found.clean[0] == pytest.approx(found.clean[1])


def test_a_hook_without_effect_is_refused(demo_lm, texts, monkeypatch):
    monkeypatch.setattr(splice, "_replaced", lambda hidden, where, rows: hidden)
    with pytest.raises(NeurollmError, match="changed no prediction"):
        perturbation_test(demo_lm, SITE, {"half": lambda x: x / 2}, texts[:2], n_boot=0, verbose=0)


def test_losses_by_document_sum_to_those_of_all(demo_lm, texts):
    def replacements(rows, sequences):
        assert len(rows) == sum(sequence.n_ordinary for sequence in sequences)
        yield "half", rows / 2

    sequences = splice.token_sequences(demo_lm, [texts[0], "", texts[1] * 30, texts[2]])
    assert [s.piece for s in sequences if s.document == 2] == list(range(len(sequences) - 3)) and len(sequences) > 4
    firsts = [sequence.first for sequence in sequences]
    assert firsts == np.cumsum([0] + [s.n_ordinary for s in sequences[:-1]]).tolist()
    losses = splice.document_losses(demo_lm, SITE, sequences, replacements)
    assert losses.n_predicted[1] == 0 and losses.kl["half"][1] == 0
    alone = splice.document_losses(demo_lm, SITE, splice.token_sequences(demo_lm, [texts[2]]), replacements)
    assert alone.kl["half"][0] == pytest.approx(losses.kl["half"][3], rel=1e-4)
    assert alone.clean[0] == pytest.approx(losses.clean[3], rel=1e-5)
