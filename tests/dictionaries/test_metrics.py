"""Metrics against their definitions, and cross-entropies against brute force."""

import dataclasses

import numpy as np
import pytest
import torch

from neurollm.dictionaries import Dictionary, RandomDirections, RawUnits, evaluate_dictionary
from neurollm.dictionaries.metrics import decoder_cosine
from neurollm.dictionaries.splice import _cut
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


class Constant(Dictionary):
    """Reconstructs everything as one vector."""

    architecture = "constant"

    def __init__(self, site, value):
        super().__init__(site, len(value), 1)
        self.value = value

    def _encode(self, x):
        return torch.ones(len(x), 1)

    def _decode(self, features):
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
    unit = sae.W_dec.numpy() / np.linalg.norm(sae.W_dec, axis=1, keepdims=True)
    expected = {
        "fvu": fvu,
        "ev": 1 - fvu,
        "l0": (features > 0).sum(1).mean(),
        "dead": ((features > 0).sum(0) == 0).mean(),
        "dense": ((features > 0).mean(0) > 0.1).mean(),
        "cosine": cos.mean(),
        "l2_ratio": np.linalg.norm(y, axis=1).mean() / np.linalg.norm(x, axis=1).mean(),
        "relative_reconstruction_bias": (y**2).sum() / (x * y).sum(),
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


def test_decoder_cosine_of_random_directions_is_near_its_known_size():
    value = decoder_cosine(RandomDirections(Site(1), 64, 512))
    assert 0.8 < value / (2 * np.log(512) / 64) ** 0.5 < 1
    assert decoder_cosine(RawUnits(Site(1), 6)) is None


DOCUMENTS = [[0, *range(1, 12)], [0, 5, 9, 2], [0, 7, 7, 7, 0, 3], [0, *([4, 8, 15, 16, 23] * 7)]]


def brute_force_ce(lm, documents, site, edit):
    """One sequence at a time, the hook written out, cross-entropy from the definition."""
    losses = []
    for document in documents:
        for start in range(1, len(document), 15):
            ids = torch.tensor([[0, *document[start : start + 15]]])
            ordinary = ids[0] != 0

            def hook(_module, _args, output, ordinary=ordinary):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden.clone()
                hidden[0, ordinary] = edit(hidden[0, ordinary])
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handle = lm.module_at(site).register_forward_hook(hook)
            with torch.no_grad():
                log_p = lm.model(ids).logits[0].double().log_softmax(-1)
            handle.remove()
            losses += [-float(log_p[t - 1, ids[0, t]]) for t in range(1, ids.shape[1]) if ordinary[t]]
    return np.mean(losses), len(losses)


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
    ce = {}
    for name, edit in edits.items():
        ce[name], n = brute_force_ce(tiny_lm, DOCUMENTS, Site(1), edit)
        assert getattr(metrics, name) == pytest.approx(ce[name], rel=1e-4), name
    assert metrics.n_predicted == n and metrics.ce_ablated == metrics.ce_mean
    assert metrics.delta_ce == pytest.approx(ce["ce_sae"] - ce["ce"], rel=1e-3)
    assert metrics.ce_recovered_zero == pytest.approx(
        (ce["ce_zero"] - ce["ce_sae"]) / (ce["ce_zero"] - ce["ce"]), rel=1e-2
    )
    assert metrics.kl > 0
    assert "density" not in metrics.to_dict()


def test_a_perfect_dictionary_recovers_everything(tiny_lm, acts):
    metrics = evaluate_dictionary(RawUnits(Site(1), 6), acts, tiny_lm, [np.array(d) for d in DOCUMENTS])
    assert metrics.ce_sae == metrics.ce and metrics.delta_ce == 0 and metrics.kl == 0
    assert metrics.ce_recovered == 1 and metrics.ce_recovered_zero == 1


def test_a_dictionary_that_says_zero_is_zero_ablation(tiny_lm, acts):
    constant = Constant(Site(1), torch.zeros(6))
    metrics = evaluate_dictionary(constant, acts, tiny_lm, [np.array(d) for d in DOCUMENTS])
    assert metrics.ce_sae == metrics.ce_zero and metrics.ce_recovered_zero == 0


def test_encoders_have_no_cross_entropy_and_say_why(tiny_lm, acts):
    encoder = dataclasses.replace(tiny_lm, is_causal=False)
    metrics = evaluate_dictionary(RawUnits(Site(1), 6), acts, encoder, [np.array([0, 1, 2])])
    assert metrics.ce is None and metrics.ce_recovered is None and "encoder" in metrics.ce_note and metrics.ev == 1


def test_refusals(random_sae, tiny_lm, acts):
    sae = random_sae(model_fingerprint="e" * 64)
    with pytest.raises(DataMismatch, match="fingerprint eeee"):
        evaluate_dictionary(sae, acts, tiny_lm, [np.array([0, 1])])
    with pytest.raises(InvalidInput, match="given together"):
        evaluate_dictionary(sae, acts, tiny_lm)
    with pytest.raises(InvalidInput, match="no activations"):
        evaluate_dictionary(sae, acts[:0])
    with pytest.raises(InvalidInput, match="no token to predict"):
        evaluate_dictionary(random_sae(), acts, tiny_lm, [np.array([0])])


def test_long_documents_keep_their_start_token_in_every_piece():
    ids, special = np.arange(10), np.arange(10) < 1
    pieces = _cut(ids, special, 4)
    assert [piece.tolist() for piece, _ in pieces] == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9]]
    assert all(mask[0] and not mask[1:].any() for _, mask in pieces)
