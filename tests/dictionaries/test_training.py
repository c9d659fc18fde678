"""Gradients, recovery of a planted dictionary, refusals."""

import json

import numpy as np
import pytest
import torch

from neurollm.dictionaries import RandomDirections, TopKTraining, evaluate_dictionary, load_dictionary, train_dictionary
from neurollm.dictionaries.topk_training import TopKTrainer
from neurollm.dictionaries.training import learning_rate
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


def dense_loss(parameters, x, k, training, dead):
    """The training objective by its definition, dense, for autograd."""
    encoder, decoder, b_enc, b_dec = parameters
    n, d = x.shape
    pre = (x - b_dec) @ encoder.T + b_enc
    keep = torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    residual = x - ((pre * keep).relu() @ decoder + b_dec)
    loss = residual.square().sum() / (n * d)
    if len(dead):
        error = residual.detach()
        pre_dead = ((x - b_dec).detach() @ encoder[dead].T + b_enc[dead]).relu()
        n_used = min(training.auxk, len(dead))
        keep = torch.zeros_like(pre_dead).scatter_(1, pre_dead.topk(n_used, dim=1).indices, 1.0)
        aux = ((pre_dead * keep) @ decoder[dead] - error).square().sum() / error.square().sum()
        loss = loss + training.auxk_coefficient * min(1, len(dead) / training.auxk) * aux
    return loss


@pytest.mark.parametrize("dead", [[], [3, 4], [0, 5, 7, 9, 11, 13]])
def test_gradients_equal_autograd_of_the_dense_objective(dead):
    training = TopKTraining(batch_size=50, auxk=4, precision="float32", device="cpu").resolve(10, 24, 1_000)
    trainer = TopKTrainer(10, 24, 5, training, 0)
    torch.manual_seed(1)
    for weight in trainer.parameters.values():
        weight += 0.3 * torch.randn_like(weight)
    trainer.silent[dead] = 10_000
    x = torch.randn(50, 10)
    leaves = [weight.clone().requires_grad_() for weight in trainer.parameters.values()]
    # The features of this batch are counted before the dead ones are chosen: the fired are alive again.
    pre = (x - leaves[3]) @ leaves[0].T + leaves[2]
    values, indices = pre.topk(5, dim=1)
    fired = set(indices[values > 0].tolist())
    expected_dead = torch.tensor([f for f in dead if f not in fired], dtype=torch.long)
    found = trainer.gradients(x)
    expected = torch.autograd.grad(dense_loss(leaves, x, 5, training, expected_dead), leaves)
    for name, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_auxk_reaches_dead_features():
    training = TopKTraining(batch_size=50, auxk=4, precision="float32", device="cpu").resolve(10, 24, 1_000)
    trainer = TopKTrainer(10, 24, 5, training, 0)
    trainer.parameters["b_enc"][[3, 4]] = -2.5  # too weak to be among the largest, not without effect
    trainer.silent[[3, 4]] = 10_000
    gradients = trainer.gradients(torch.randn(50, 10) * 2)
    assert gradients["W_enc"][[3, 4]].abs().sum(1).min() > 0
    assert gradients["W_dec"][[3, 4]].abs().sum(1).min() > 0


def test_bfloat16_selects_almost_the_same_and_computes_the_same():
    x = torch.randn(200, 64)
    values = {}
    for precision in ("float32", "bfloat16"):
        training = TopKTraining(batch_size=200, precision=precision, device="cpu").resolve(64, 256, 1_000)
        values[precision] = TopKTrainer(64, 256, 8, training, 0)._select(x)
    sets = [[set(row) for row in values[p][1].tolist()] for p in values]
    shared = np.mean([len(a & b) / 8 for a, b in zip(*sets, strict=True)])
    assert shared > 0.98
    order = [values[p][1].argsort(1) for p in values]
    same = torch.tensor([a == b for a, b in zip(*sets, strict=True)])
    exact = [values[p][0].gather(1, o)[same] for p, o in zip(values, order, strict=True)]
    torch.testing.assert_close(*exact, rtol=1e-5, atol=1e-5)


def test_a_planted_dictionary_is_recovered(trained, script):
    _, directions = script.planted()
    planted = torch.from_numpy(directions)

    def mmcs(dictionary):
        rows = torch.nn.functional.normalize(dictionary.directions, dim=1)
        return float((planted @ rows.T).max(1).values.mean())

    assert mmcs(trained) > 0.93
    assert mmcs(RandomDirections.matching(trained)) < 0.65
    held_out = script.planted(n=22_000)[0][20_000:]
    assert evaluate_dictionary(trained, held_out).ev > 0.85


def test_the_finished_dictionary_is_folded_with_unit_directions(trained, planted_store):
    assert trained.scale == 1 and trained.mean.abs().sum() == 0
    torch.testing.assert_close(trained.directions.norm(dim=1), torch.ones(96))
    run = trained.provenance
    assert run["epochs"] == 1.5 and run["data"] == "every token about 1.5 times"
    assert run["run"]["store_sha256"] == planted_store.sha256 and run["context"] == 128
    assert run["history"][-1]["tokens"] == 30_000
    assert json.loads(json.dumps(run)) == run
    assert (trained.model_name, trained.model_fingerprint) == ("toy", "a" * 64)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(trained, script, planted_store):
    assert script.small_training(planted_store).fingerprint == trained.fingerprint
    options = {"n_features": 96, "k": 4, "n_tokens": 2_000, "verbose": 0}
    fingerprints = {train_dictionary(planted_store, random_state=seed, **options).fingerprint for seed in (0, 1)}
    assert len(fingerprints) == 2


def test_a_finished_folder_is_loaded_and_another_training_refused(tmp_path, script, planted_store, trained):
    first = script.small_training(planted_store, tmp_path)
    before = (tmp_path / "sae_weights.safetensors").stat().st_mtime_ns
    again = script.small_training(planted_store, tmp_path, checkpoint_every=3)  # no part of the result
    assert again.fingerprint == first.fingerprint == trained.fingerprint
    assert (tmp_path / "sae_weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(DataMismatch, match=r"belongs to another training: learning_rate is .* there and 0.5 here"):
        script.small_training(planted_store, tmp_path, learning_rate=0.5)
    other = script.MemoryStore(script.planted(seed=5)[0])
    with pytest.raises(DataMismatch, match="store_sha256"):
        script.small_training(other, tmp_path)
    assert load_dictionary(tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_store_that_is_not_finite_is_refused_naming_the_shard(script, bad):
    acts = script.planted(n=500)[0]
    store = script.MemoryStore(acts)
    store.acts[400, 3] = bad  # after the statistics were taken
    with pytest.raises(InvalidInput, match=r"shard-00000.safetensors contains NaN"):
        script.small_training(store)


def test_constant_activations_are_refused(script):
    with pytest.raises(InvalidInput, match="total variance"):
        script.small_training(script.MemoryStore(torch.zeros(500, 8)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "relu"}, "architecture 'relu' is unknown; use one of topk"),
        ({"k": 0}, "1 <= k <= n_features"),
        ({"n_features": 8, "k": 9}, "1 <= k <= n_features"),
        ({"n_tokens": 0}, "n_tokens >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(planted_store, options, words):
    with pytest.raises(InvalidInput, match=words):
        train_dictionary(planted_store, verbose=0, **options)


def test_training_options_are_checked_and_round_trip():
    options = TopKTraining(learning_rate=0.01, batch_size=64)
    assert TopKTraining.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    with pytest.raises(InvalidInput, match="unknown option 'lr'; the options are learning_rate"):
        TopKTraining.from_dict({"lr": 1})
    with pytest.raises(InvalidInput, match="batch_size must be positive"):
        TopKTraining(batch_size=0)
    with pytest.raises(InvalidInput, match="precision 'int8'"):
        TopKTraining(precision="int8")
    resolved = TopKTraining().resolve(256, 16_384, 1_000_000)
    assert resolved.learning_rate == pytest.approx(1e-3) and resolved.auxk == 128
    assert resolved.dead_after_tokens == 100_000


def test_learning_rate_rises_and_falls():
    training = TopKTraining(learning_rate=1.0, warmup=0.1, decay=0.5).resolve(8, 8, 8)
    rates = [learning_rate(p, training) for p in (0, 0.05, 0.2, 0.5, 0.75, 1)]
    assert 0 < rates[0] < rates[1] < rates[2] == rates[3] == 1 and rates[4] == 0.5 and rates[5] == 0


def test_a_store_of_another_site_or_model_is_refused_in_evaluation(trained, script):
    acts = script.planted(n=200)[0]
    with pytest.raises(DataMismatch, match=r"activation store holds resid_post.2"):
        evaluate_dictionary(trained, script.MemoryStore(acts, site=Site(2)))
    with pytest.raises(DataMismatch, match="fingerprint aaaa"):
        evaluate_dictionary(trained, script.MemoryStore(acts, fingerprint="d" * 64))
