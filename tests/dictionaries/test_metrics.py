"""Metrics against their definitions, and cross-entropies against brute force."""

import dataclasses

import numpy as np
import pytest
import torch

from neurollm.activations import Corpus, harvest
from neurollm.datasets import demo_corpus_path
from neurollm.dictionaries import Dictionary, RandomDirections, RawUnits, ReLUSAE, evaluate_dictionary
from neurollm.dictionaries.cosines import decoder_cosines, expected_abs, expected_largest, random_quantile
from neurollm.dictionaries.metrics import gini
from neurollm.dictionaries.splice import _cut
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site
from neurollm.random import stream


class Constant(Dictionary):
    """Reconstructs everything as one vector."""

    architecture = "constant"

    def __init__(self, site, value):
        super().__init__(site, len(value), 1)
        self.value = value

    def _encode(self, x):
        return torch.ones(len(x), 1)

    def _decode(self, features, x):
        return self.value.expand(len(features), -1)

    def _identity(self):
        return []

    def save(self, folder):
        raise NotImplementedError


@pytest.fixture()
def acts():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((700, 6)) + rng.standard_normal(6) * 20).astype(np.float32)


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_reconstruction_metrics_by_definition(random_sae, acts, batch_size):
    sae = random_sae(n_features=40)
    metrics = evaluate_dictionary(sae, acts, batch_size=batch_size)
    x = acts.astype(float)
    features = sae.encode(acts)
    y = sae.decode(features).astype(float)
    fvu = ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    cos = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    unit = sae.weights["W_dec"].numpy() / np.linalg.norm(sae.weights["W_dec"], axis=1, keepdims=True)
    expected = {
        "fvu": fvu,
        "ev": 1 - fvu,
        "l0": (features > 0).sum(1).mean(),
        "dead": ((features > 0).sum(0) == 0).mean(),
        "dense": ((features > 0).mean(0) > 0.1).mean(),
        "frequent": ((features > 0).mean(0) > 0.01).mean(),
        "cosine": cos.mean(),
        "l2_ratio": np.linalg.norm(y, axis=1).mean() / np.linalg.norm(x, axis=1).mean(),
        "relative_reconstruction_bias": (y**2).sum() / (x * y).sum(),
        "shrinkage": ((y - x.mean(0)) ** 2).sum() / ((x - x.mean(0)) * (y - x.mean(0))).sum(),
        "decoder_cosine": (unit @ unit.T - 2 * np.eye(40)).max(1).mean(),
    }
    for name, value in expected.items():
        assert getattr(metrics, name) == pytest.approx(value, rel=1e-5), name
    np.testing.assert_allclose(metrics.density, (features > 0).mean(0))
    assert metrics.n_tokens == 700 and metrics.ce is None and "no model" in metrics.ce_note


def test_predicting_the_mean_scores_zero_and_the_truth_one(acts):
    exact = acts.astype(np.float64)
    rounded = np.round(exact * 1024) / 1024  # so that the mean of 700 rows needs few bits more than float32 has
    mean = torch.from_numpy(rounded.mean(0)).float()
    assert evaluate_dictionary(Constant(Site(1), mean), rounded.astype(np.float32)).ev == pytest.approx(0, abs=1e-9)
    assert evaluate_dictionary(RawUnits(Site(1), 6), acts).ev == 1
    # Predicting 0 is far worse than predicting the mean, however large the mean is.
    assert evaluate_dictionary(Constant(Site(1), torch.zeros(6)), acts).ev < -5


def mean_dictionary(acts, n_features=5):
    """An SAE whose weights are zero and whose reconstruction is the mean of the data."""
    d = acts.shape[1]
    shapes = {"W_enc": (d, n_features), "W_dec": (n_features, d), "b_enc": (n_features,)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return ReLUSAE(Site(1), weights | {"b_dec": torch.from_numpy(acts.astype(float).mean(0)).float()})


def test_an_sae_that_says_the_mean_explains_nothing(acts):
    metrics = evaluate_dictionary(mean_dictionary(acts), acts)
    assert abs(metrics.ev) < 1e-12 and metrics.dead == 1 and metrics.l0 == 0 and np.isnan(metrics.gini)
    whole = np.random.default_rng(1).integers(-50, 900, (512, 6)).astype(np.float32)  # sums and mean have no rounding
    assert evaluate_dictionary(mean_dictionary(whole), whole, batch_size=100).ev == 0.0


class Fixed(Dictionary):
    """Features are the activations themselves, whatever they are."""

    architecture = "fixed"

    def __init__(self, d):
        super().__init__(Site(1), d, d)

    def _encode(self, x):
        return x

    def _decode(self, features, x):
        return features

    def _identity(self):
        return []

    def save(self, folder):
        raise NotImplementedError


def test_bands_of_density_have_known_sizes():
    x = np.zeros((200_001, 8), np.float32)
    for feature, n in enumerate((1, 3, 2_001, 20_001, 200_001, 0)):
        x[:n, feature] = 1
    x[:40, 6] = -1  # below 0 only: dead, though it counts as not 0
    x[:2, 7] = (-1, 1)
    metrics = evaluate_dictionary(Fixed(8), x)
    assert metrics.dense == 2 / 8 and metrics.frequent == 3 / 8  # 2,001 of 200,001 is just above 1 %
    assert metrics.rare == 2 / 8 and metrics.ultra_rare == 0 and metrics.dead == 2 / 8
    assert metrics.l0 == pytest.approx((1 + 3 + 2_001 + 20_001 + 200_001 + 40 + 2) / 200_001)


def test_gini_is_half_the_relative_mean_difference():
    w = np.random.default_rng(0).gamma(0.3, size=200)
    brute = np.abs(w[:, None] - w).mean() / (2 * w.mean())
    assert gini(w) == pytest.approx(brute, rel=1e-12) and gini(7 * w[::-1]) == pytest.approx(brute, rel=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_decoder_cosines_by_brute_force(random_sae, monkeypatch, exact):
    sae = random_sae(d=9, n_features=203)
    sae.weights["W_dec"][17] = 0  # has no direction
    sae.weights["W_dec"][40] = 3 * sae.weights["W_dec"][90]
    monkeypatch.setattr("neurollm.dictionaries.cosines.BLOCK", 64)
    monkeypatch.setattr("neurollm.dictionaries.cosines.EXACT", 4096 if exact else 0)
    found = decoder_cosines(sae)
    rows = np.delete(sae.weights["W_dec"].double().numpy(), 17, axis=0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    full = unit @ unit.T
    pairs = full[np.triu_indices(202, 1)]
    assert (found.n_features, found.d, found.counts.sum()) == (202, 9, 202 * 201 / 2)
    assert found.mean == pytest.approx(pairs.mean(), abs=1e-7)
    assert found.mean_abs == pytest.approx(np.abs(pairs).mean(), abs=1e-7)
    assert found.p95 == pytest.approx(np.quantile(pairs, 0.95), abs=1e-6 if exact else 1e-4)
    assert found.maximum == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.largest, (full - 2 * np.eye(202)).max(1), atol=1e-6)
    np.testing.assert_array_equal(found.counts.reshape(10, -1).sum(1), np.histogram(pairs, 10, (-1, 1))[0])


def test_random_directions_meet_their_references():
    values = [decoder_cosines(RandomDirections(Site(1), 64, 512, seed)) for seed in range(8)]
    expected = values[0].random
    for name in ("mean_largest", "mean_abs", "p95", "maximum"):
        draws = [getattr(value, name) for value in values]
        error = np.std(draws, ddof=1) / 8**0.5
        assert np.mean(draws) == pytest.approx(expected[name], abs=4 * error + 1e-4), name
    assert decoder_cosines(RawUnits(Site(1), 6)) is None


def test_references_against_simulation_and_their_asymptotes():
    rng = np.random.default_rng(0)
    others = rng.standard_normal((2_000, 50, 16))
    cosines = others[..., 0] / np.linalg.norm(others, axis=2)
    largest = cosines.max(1)
    assert expected_largest(50, 16) == pytest.approx(largest.mean(), abs=4 * largest.std() / 2_000**0.5)
    assert expected_abs(16) == pytest.approx(np.abs(cosines).mean(), abs=0.003)
    assert random_quantile(0.95, 16) == pytest.approx(np.quantile(cosines, 0.95), abs=0.005)
    assert expected_abs(4096) == pytest.approx((2 / (np.pi * 4096)) ** 0.5, rel=1e-3)
    assert random_quantile(0.95, 4096) == pytest.approx(1.6449 / 64, rel=1e-3)
    assert 0.9 < expected_largest(65_535, 4096) / (2 * np.log(65_536) / 4096) ** 0.5 < 1


class WithDocuments:
    """Rows that know their documents, as a store does."""

    site, model_fingerprint = Site(1), ""

    def __init__(self, acts, doc_id):
        self.acts, self.doc_id, self.n_rows = torch.as_tensor(acts), np.asarray(doc_id), len(acts)

    def rows(self, start, stop):
        return self.acts[start:stop]

    def columns(self, start, stop):
        return {"doc_id": self.doc_id[start:stop]}


def test_interval_of_ev_is_the_bootstrap_of_documents(random_sae, acts):
    lengths = np.random.default_rng(3).multinomial(700, np.ones(25) / 25)
    doc_id = np.repeat(np.arange(100, 125), lengths)
    sae = mean_dictionary(acts * 0.9)
    metrics = evaluate_dictionary(sae, WithDocuments(acts, doc_id), n_boot=300, batch_size=64, random_state=5)
    assert metrics.n_documents == 25 and metrics.ev_low < metrics.ev < metrics.ev_high
    brute = []
    for draw in range(300):
        chosen = stream(5, "ev_documents", draw).integers(25, size=25)
        x = np.concatenate([acts[doc_id == 100 + place] for place in chosen]).astype(float)
        error = x - sae.weights["b_dec"].double().numpy()
        brute.append(1 - (error**2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert (metrics.ev_low, metrics.ev_high) == pytest.approx(tuple(np.quantile(brute, [0.025, 0.975])), rel=1e-9)


def test_interval_of_ev_covers_the_truth_though_documents_differ():
    """EV of half the activations, where documents have their own noise: tokens are not independent."""
    covered, narrow, n_tokens = 0, 0, 15
    half = ReLUSAE(
        Site(1),
        {
            "W_enc": torch.cat([torch.eye(4), -torch.eye(4)], 1)[:, [0, 1, 4, 5]],
            "W_dec": torch.cat([torch.eye(4), -torch.eye(4)])[[0, 1, 4, 5]],
            "b_enc": torch.zeros(4),
            "b_dec": torch.zeros(4),
        },
    )
    for seed in range(80):
        rng = np.random.default_rng(seed)
        scale = np.repeat(rng.choice([0.5, 1.5], (40, 2)), n_tokens, axis=0)
        x = (rng.standard_normal((40 * n_tokens, 4)) * np.repeat(scale, 2, axis=1)).astype(np.float32)
        documents = np.repeat(np.arange(40), n_tokens)
        by_document = evaluate_dictionary(half, WithDocuments(x, documents), n_boot=120)
        by_token = evaluate_dictionary(half, WithDocuments(x, np.arange(len(x))), n_boot=120)
        covered += by_document.ev_low <= 0.5 <= by_document.ev_high
        narrow += by_token.ev_low <= 0.5 <= by_token.ev_high
    assert covered >= 68 and narrow < covered - 15


def test_hints_say_what_they_are(random_sae, acts):
    found = {hint.name: hint for hint in evaluate_dictionary(random_sae(n_features=40, k=20), acts).hints()}
    assert len(found) == 6 and all("rule of thumb" in hint.advice for hint in found.values())
    assert "above the range" in found["mean density"].advice
    for hint in found.values():
        inside = hint.range[0] <= hint.value <= hint.range[1]
        assert inside == hint.advice.startswith("inside")
    constant = evaluate_dictionary(Constant(Site(1), torch.zeros(6)), acts)
    assert [hint.name for hint in constant.hints()] == ["mean density", "dead", "gini"]
    silent = evaluate_dictionary(mean_dictionary(acts), acts)  # never active: there is no Gini coefficient
    assert [hint.name for hint in silent.hints()] == ["mean density", "dead"]


DOCUMENTS = [[0, *range(1, 12)], [0, 5, 9, 2], [0, 7, 7, 7, 0, 3], [0, *([4, 8, 15, 16, 23] * 7)]]


def brute_force_ce(lm, documents, site, edit):
    """One sequence at a time, the hook written out: cross-entropy and KL from their definitions."""
    losses, divergences = [], []
    for document in documents:
        for start in range(1, len(document), 15):
            ids = torch.tensor([[0, *document[start : start + 15]]])
            ordinary = ids[0] != 0

            def hook(_module, _args, output, ordinary=ordinary):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden.clone()
                hidden[0, ordinary] = edit(hidden[0, ordinary])
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            with torch.no_grad():
                clean = lm.model(ids).logits[0].double().log_softmax(-1)
            handle = lm.module_at(site).register_forward_hook(hook)
            with torch.no_grad():
                log_p = lm.model(ids).logits[0].double().log_softmax(-1)
            handle.remove()
            targets = [t for t in range(1, ids.shape[1]) if ordinary[t]]
            losses += [-float(log_p[t - 1, ids[0, t]]) for t in targets]
            divergences += [float((clean.exp() * (clean - log_p))[t - 1].sum()) for t in targets]
    return np.mean(losses), np.mean(divergences), len(losses)


def test_cross_entropies_equal_brute_force(tiny_lm, random_sae, acts):
    sae = random_sae()
    metrics = evaluate_dictionary(sae, acts, tiny_lm, [np.array(d) for d in DOCUMENTS])
    mean = torch.from_numpy(acts.astype(float).mean(0)).float()
    edits = {
        "ce": lambda h: h,
        "ce_sae": lambda h: sae.decode(sae.encode(h)),
        "ce_mean": lambda h: mean.expand_as(h),
        "ce_zero": torch.zeros_like,
    }
    ce, kl = {}, {}
    for name, edit in edits.items():
        ce[name], kl[name], n = brute_force_ce(tiny_lm, DOCUMENTS, Site(1), edit)
        assert getattr(metrics, name) == pytest.approx(ce[name], rel=1e-4), name
    assert metrics.n_predicted == n and metrics.ce_ablated == metrics.ce_mean
    assert metrics.delta_ce == pytest.approx(ce["ce_sae"] - ce["ce"], rel=1e-3)
    assert metrics.ce_recovered_zero == pytest.approx(
        (ce["ce_zero"] - ce["ce_sae"]) / (ce["ce_zero"] - ce["ce"]), rel=1e-2
    )
    assert (metrics.kl, metrics.kl_mean, metrics.kl_zero) == pytest.approx(
        (kl["ce_sae"], kl["ce_mean"], kl["ce_zero"]), rel=1e-3
    )
    assert metrics.kl_score == pytest.approx((kl["ce_zero"] - kl["ce_sae"]) / kl["ce_zero"], rel=1e-2)
    assert not {"density", "cosines"} & set(metrics.to_dict()) and "decoder_cosine_p95" in metrics.to_dict()


def test_a_perfect_dictionary_recovers_everything(tiny_lm, acts):
    metrics = evaluate_dictionary(RawUnits(Site(1), 6), acts, tiny_lm, [np.array(d) for d in DOCUMENTS])
    assert metrics.ce_sae == metrics.ce and metrics.delta_ce == 0 and metrics.kl == 0 and metrics.kl_score == 1
    assert metrics.ce_recovered == 1 and metrics.ce_recovered_zero == 1


def test_a_dictionary_that_says_zero_is_zero_ablation(tiny_lm, acts):
    constant = Constant(Site(1), torch.zeros(6))
    metrics = evaluate_dictionary(constant, acts, tiny_lm, [np.array(d) for d in DOCUMENTS])
    assert metrics.ce_sae == metrics.ce_zero and metrics.ce_recovered_zero == 0 and metrics.kl_score == 0


def test_encoders_have_no_cross_entropy_and_say_why(tiny_lm, acts):
    encoder = dataclasses.replace(tiny_lm, is_causal=False)
    metrics = evaluate_dictionary(RawUnits(Site(1), 6), acts, encoder, [np.array([0, 1, 2])])
    assert metrics.ce is None and metrics.ce_recovered is None and "encoder" in metrics.ce_note and metrics.ev == 1


def test_refusals(random_sae, tiny_lm, acts):
    sae = random_sae(model_fingerprint="e" * 64)
    with pytest.raises(DataMismatch, match="fingerprint eeee"):
        evaluate_dictionary(sae, acts, tiny_lm, [np.array([0, 1])])
    with pytest.raises(InvalidInput, match="an array has no texts"):
        evaluate_dictionary(sae, acts, tiny_lm)
    with pytest.raises(InvalidInput, match="documents need a model"):
        evaluate_dictionary(sae, acts, documents=["A text."])
    with pytest.raises(InvalidInput, match="no activations"):
        evaluate_dictionary(sae, acts[:0])
    with pytest.raises(InvalidInput, match="an array has no documents"):
        evaluate_dictionary(sae, acts, n_boot=10)
    with pytest.raises(InvalidInput, match="at least 10 documents, found 2"):
        evaluate_dictionary(random_sae(), WithDocuments(acts, np.arange(700) // 350), n_boot=10)
    with pytest.raises(InvalidInput, match=r"transcoder.*resid_post"):
        weights = {"W_enc": torch.ones(6, 3), "W_dec": torch.ones(3, 6), "b_enc": torch.ones(3), "b_dec": torch.ones(6)}
        transcoder = ReLUSAE(Site(1), weights, subtract_decoder_bias=False, target_site=Site(2))
        evaluate_dictionary(transcoder, acts)
    with pytest.raises(InvalidInput, match="shape \\(n, d\\)"):
        evaluate_dictionary(sae, acts[0])
    with pytest.raises(InvalidInput, match="no token to predict"):
        evaluate_dictionary(random_sae(), acts, tiny_lm, [np.array([0])])


def test_long_documents_keep_their_start_token_in_every_piece():
    ids, special = np.arange(10), np.arange(10) < 1
    pieces = _cut(ids, special, 4)
    assert [piece.tolist() for piece, _ in pieces] == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9]]
    assert all(mask[0] and not mask[1:].any() for _, mask in pieces)


def test_a_store_on_disk_gives_what_its_rows_give(tmp_path, demo_lm, demo_dictionary):
    documents = Corpus.read(demo_corpus_path()).documents[:14]
    store = harvest(demo_lm, Corpus([(name, text[:300]) for name, text in documents]), Site(3), tmp_path, verbose=0)
    doc_id = store.columns(0, store.n_rows)["doc_id"]
    assert len(np.unique(doc_id)) == 14
    found = evaluate_dictionary(demo_dictionary, store, n_boot=40, batch_size=100)
    rows = WithDocuments(store.rows(0, store.n_rows), doc_id)
    rows.site = Site(3)
    again = evaluate_dictionary(demo_dictionary, rows, n_boot=40)
    assert found.ev_low < found.ev < found.ev_high and found.n_documents == 14
    for name in ("ev", "l0", "gini", "cosine", "ev_low", "ev_high"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), rel=1e-6), name


@pytest.mark.parametrize("value", [0.1, 123.456, 1e4])
def test_what_does_not_vary_has_no_explained_variance(random_sae, value):
    row = np.random.default_rng(0).standard_normal(6) * value
    for x in (np.full((5000, 6), value), np.tile(row, (777, 1))):
        metrics = evaluate_dictionary(random_sae(), x)
        assert np.isnan([metrics.ev, metrics.fvu, metrics.shrinkage]).all()
        assert np.isfinite([metrics.l0, metrics.cosine, metrics.l2_ratio]).all()


@pytest.mark.parametrize("n", [100, 500, 5000])
def test_what_reconstructs_everything_as_one_vector_has_no_shrinkage(n):
    x = np.random.default_rng(0).standard_normal((n, 6)).astype(np.float32) + 3
    metrics = evaluate_dictionary(Constant(Site(1), torch.randn(6, generator=torch.Generator().manual_seed(0))), x)
    assert np.isnan(metrics.shrinkage) and metrics.ev < 0


def test_a_large_mean_takes_nothing_from_the_figures():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6)) * 1e-2 + 1e6
    value = torch.full((6,), 1e6)
    metrics = evaluate_dictionary(Constant(Site(1), value), x)
    assert metrics.fvu == pytest.approx(((x - 1e6) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-6)


def test_arguments_of_the_evaluation_are_checked(random_sae, acts, tiny_lm):
    with pytest.raises(InvalidInput, match="n_boot must be 0 or more, found -1"):
        evaluate_dictionary(random_sae(), acts, n_boot=-1)
    with pytest.raises(InvalidInput, match="documents is a single text; give a sequence of texts"):
        evaluate_dictionary(random_sae(), acts, tiny_lm, "Once upon a time")


def test_rows_may_lie_in_memory_in_any_way(random_sae, acts):
    plain = evaluate_dictionary(random_sae(), acts)
    frozen = acts.copy()
    frozen.flags.writeable = False
    for same in (frozen, acts.astype(">f4"), np.ascontiguousarray(acts[:, ::-1])[:, ::-1], np.asfortranarray(acts)):
        assert evaluate_dictionary(random_sae(), same) == plain
