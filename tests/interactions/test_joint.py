"""Joint training of a dictionary and its interactions: gradients, folding, resuming, and the comparison."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neurollm.dictionaries import Plan, TopKTraining, evaluate_dictionary, train_dictionary
from neurollm.dictionaries.splice import spliced_loss
from neurollm.dictionaries.training.checkpoints import Checkpoint
from neurollm.dictionaries.training.loop import train_runs
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.joint import JointLearner, JointModel, joint_run, other_rows, train_joint
from neurollm.interactions.joint_comparison import MODELS, equal_width, joint_comparison
from neurollm.interactions.joint_result import JointComparison
from neurollm.interactions.model import NFM
from neurollm.models import LanguageModel, Site

SCRIPT = Path(__file__).parents[1] / "dictionaries" / "memory_store.py"
_spec = importlib.util.spec_from_file_location("memory_store", SCRIPT)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

D, F, K, RANK, N = 10, 48, 4, 5, 32
DOCUMENT = 50  # tokens


class DocumentStore(_module.MemoryStore):
    """A store in memory that knows the document of each row."""

    def columns(self, start, stop):
        rows = np.arange(start, stop)
        return {"doc_id": rows // DOCUMENT, "position": rows % DOCUMENT}

    def ranges(self, ranges, dtype=torch.float32):
        return torch.cat([self.acts[start:stop] for start, stop in ranges]).to(dtype)

    def rows(self, start, stop, dtype=torch.float32):
        return self.ranges([(start, stop)], dtype)

    dtype = torch.float32


class Killed(Exception):
    """Stands for the end of the process at this very instruction."""


def options(**changes):
    return TopKTraining(**{"batch_size": 128, "precision": "float32", "device": "cpu", **changes})


def planted(n, share, seed=0, d=16, n_features=12, n_active=3, rank=4):
    """Features of orthogonal directions, and all their pairs through a product of low rank in other directions."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    signs = rng.choice([-1.0, 1.0], (n_features, rank))
    codes = np.zeros((n, n_features))
    for row in codes:
        row[rng.choice(n_features, n_active, replace=False)] = rng.uniform(1, 2, n_active)
    x = codes @ basis[:n_features]
    if share:
        pairs = np.zeros((n, rank))
        for i in range(n_features):
            for j in range(i):
                pairs += (codes[:, i] * codes[:, j])[:, None] * signs[i] * signs[j]
        pairs = pairs @ basis[n_features : n_features + rank]
        x += pairs * np.sqrt(share / (1 - share) * x.var(0).sum() / pairs.var(0).sum())
    return (x + rng.standard_normal(x.shape) * np.sqrt(0.03 * x.var(0).mean())).astype(np.float32)


def stores(share, n=12_000, n_held_out=3_000):
    x = planted(n + n_held_out, share)
    return DocumentStore(x[:n]), DocumentStore(x[n:])


def learner_of(shuffled=False, dead=0, **changes):
    """A learner with random weights of ordinary size."""
    training = options(batch_size=N, **changes).resolve(D, F, 10_000)
    learner = JointLearner(D, F, K, training, 0, rank=RANK, shuffled=shuffled)
    generator = torch.Generator().manual_seed(0)
    for name, weight in learner.parameters.items():
        weight += (0.3 if weight.ndim == 1 or name == "V" else 1.0) * torch.randn(weight.shape, generator=generator)
    if dead:
        learner.is_dead[-dead:] = True
        learner.refresh()
    return learner


def pair_by_pair(acts, embeddings):
    """B as a sum over pairs of features, dense."""
    scaled = acts[:, :, None] * embeddings
    upper = torch.triu(torch.ones(F, F, dtype=torch.float64), 1)
    return torch.einsum("nik,njk,ij->nk", scaled, scaled, upper)


@pytest.mark.parametrize("dead", [0, 9])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gradients_are_those_of_the_printed_loss(shuffled, dead):
    learner = learner_of(shuffled, dead, auxk=5)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    found = learner.gradients(x)
    p = {name: weight.detach().double().requires_grad_() for name, weight in learner.parameters.items()}
    z = x.double() - p["b_dec"]
    pre = z @ p["W_enc"].T + p["b_enc"]
    chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(K).indices, True)
    acts = torch.where(chosen, pre, 0.0).relu()
    pairing = acts.detach()[other_rows(N)] if shuffled else acts
    error = x.double() - acts @ p["W_dec"] - p["b_dec"] - pair_by_pair(pairing, p["V"]) @ p["A"]
    loss = error.square().sum() / (N * D)
    if dead:
        rest = error.detach()
        dead_pre = ((x.double() - p["b_dec"].detach()) @ p["W_enc"].T + p["b_enc"])[:, -dead:].relu()
        largest = torch.zeros_like(dead_pre).scatter(1, dead_pre.topk(5).indices, 1.0)
        again = (dead_pre * largest) @ p["W_dec"][-dead:]
        loss = loss + (again - rest).square().sum() / rest.square().sum() * learner.training.auxk_coefficient
    expected = torch.autograd.grad(loss, list(p.values()))
    assert found.keys() == p.keys()
    for name, gradient in zip(p, expected, strict=True):
        size = float(gradient.abs().max())
        assert size > 0
        np.testing.assert_allclose(found[name].double(), gradient, atol=2e-5 * size, err_msg=name)
    np.testing.assert_allclose(float(learner.sums[0]), float(error.detach().square().sum()), rtol=1e-5)
    assert float(learner.sums[2]) == float((acts > 0).sum())


def test_it_begins_as_the_dictionary_alone_with_interactions_of_size_one():
    store, _ = stores(0.25, n=2_000)
    joint, alone = (
        joint_run(store, Plan(n_features=24, k=3, n_tokens=1_000, training=options()), 300, interaction, 0)
        for interaction in ("paired", "none")
    )
    x = joint.norm.apply(store.rows(0, 1_000))
    joint.learner.calibrate(x)
    assert torch.equal(joint.learner._residual(x), alone.learner._residual(x))
    code, acts = joint.learner.find(x - joint.learner.parameters["b_dec"])
    dense = code.dense(acts).double()
    total = dense @ joint.learner.parameters["V"].double()
    pooled = 0.5 * (total.square() - dense.square() @ joint.learner.parameters["V"].double().square())
    assert float(pooled.square().mean()) == pytest.approx(1, abs=0.15)  # over 300 dimensions


def test_without_interactions_it_is_the_training_of_a_dictionary(tmp_path):
    store, _ = stores(0.25, n=2_000)
    model = train_joint(store, 24, 3, 4, 1_500, interaction="none", training=options(), out=tmp_path, verbose=0)
    alone = train_dictionary(store, "topk", 24, 3, 1_500, training=options(), verbose=0)
    assert model.sae.fingerprint == alone.fingerprint and model.nfm is None and model.interaction == "none"
    assert model.n_parameters == 2 * 24 * 16 + 24 + 16
    assert JointModel.load(tmp_path).sae.fingerprint == alone.fingerprint


@pytest.mark.parametrize("interaction", ["paired", "shuffled"])
@pytest.mark.parametrize("normalisation", ["mean_square", "z_score", "whiten", "none"])
def test_the_folded_pair_reconstructs_what_the_learner_does(normalisation, interaction):
    store, held_out = stores(0.25, n=3_000, n_held_out=500)
    store.acts *= torch.linspace(0.5, 40, 16)
    store = DocumentStore(store.acts + 7)
    training = options(normalisation=normalisation)
    run = joint_run(store, Plan(n_features=24, k=3, n_tokens=3_000, training=training), 4, interaction, 0)
    train_runs(store, [run], verbose=0)
    model = run.learned()
    assert float(model.nfm.weights["A"].abs().max()) > 0
    x = held_out.acts * torch.linspace(0.5, 40, 16) + 7
    u = run.norm.apply(x)
    expected = run.norm.undo(run.learner._residual(u) + u)
    found = model.reconstruct(x)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert float((found - expected).abs().max() / expected.std()) < 1e-3
    assert model.nfm.dictionary_fingerprint == model.sae.fingerprint and model.nfm.top_n == model.sae.k == 3
    assert not model.nfm.has_refit and model.interaction == interaction
    np.testing.assert_array_equal(model.reconstruct(x.numpy()), found.numpy())


def test_partners_of_shuffled_interactions_are_other_tokens_and_each_serves_once():
    for n in (2, 3, 100, 101):
        assert sorted(other_rows(n)) == list(range(n))
        assert (other_rows(n) != np.arange(n)).all()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_a_checkpoint_it_ends_with_the_same_files(tmp_path, monkeypatch):
    store, _ = stores(0.25, n=2_000)
    training = options(batch_size=100, checkpoint_every=7, dead_after_tokens=900, resample_every=0.1)

    def go(folder):
        return train_joint(store, 64, 3, 4, 5_000, training=training, out=folder, verbose=0)

    whole = go(tmp_path / "whole")
    real, left = Checkpoint.save, [2, 3, 2]

    def save_and_die(self, counters, tensors):
        real(self, counters, tensors)
        if left:
            left[0] -= 1
            if left[0] == 0:
                left.pop(0)
                raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    for _ in range(3):
        with pytest.raises(Killed):
            go(tmp_path / "resumed")
    resumed = go(tmp_path / "resumed")
    assert not left
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert {"nfm/nfm.json", "nfm/nfm_weights.safetensors", "neurollm.json"} <= set(contents(tmp_path / "whole"))
    again = go(tmp_path / "whole")  # finished: it is only read
    assert again.nfm.fingerprint == resumed.nfm.fingerprint == whole.nfm.fingerprint
    with pytest.raises(DataMismatch, match="rank is 4 there and 5 here"):
        train_joint(store, 64, 3, 5, 5_000, training=training, out=tmp_path / "whole", verbose=0)


def test_resampled_features_get_new_embeddings_and_the_readout_stays():
    learner = learner_of(dead_after_tokens=100, resample_every=0.1)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    learner.gradients(x)
    learner.silent[[3, 7]] = 200
    before = {name: weight.clone() for name, weight in learner.parameters.items()}
    for name in ("V", "A"):
        learner.optimizers[name].state[learner.parameters[name]]["exp_avg"].fill_(1.0)
    with torch.no_grad():
        learner._resample(x)
    changed = (learner.parameters["V"] != before["V"]).any(1)
    assert torch.nonzero(changed).reshape(-1).tolist() == [3, 7]
    assert torch.equal(learner.parameters["A"], before["A"])
    moments = {name: learner.optimizers[name].state[learner.parameters[name]]["exp_avg"] for name in ("V", "A")}
    assert float(moments["A"].min()) == 1 and float(moments["V"][[3, 7]].abs().max()) == 0


def test_a_model_survives_the_disk_and_damage_is_told(tmp_path):
    store, held_out = stores(0.25, n=2_000, n_held_out=100)
    model = train_joint(store, 24, 3, 4, 1_000, training=options(), out=tmp_path / "a", verbose=0)
    model.save(tmp_path / "b")
    for folder in ("a", "b"):
        again = JointModel.load(tmp_path / folder)
        assert torch.equal(again.reconstruct(held_out.acts), model.reconstruct(held_out.acts))
    assert model.n_parameters == 2 * 24 * 16 + 24 + 16 + 24 * 4 + 4 * 16
    other = train_joint(store, 24, 3, 4, 1_000, 1, training=options(), verbose=0)
    with pytest.raises(DataMismatch, match="another dictionary"):
        dataclasses.replace(model, nfm=other.nfm)
    (tmp_path / "b" / "nfm" / "nfm.json").unlink()
    with pytest.raises(DataMismatch, match="the interactions are missing"):
        JointModel.load(tmp_path / "b")


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """The comparison where products of all pairs are a quarter of the variance, and its folder."""
    folder = tmp_path_factory.mktemp("products")
    store, held_out = stores(0.25)
    found = joint_comparison(
        store, held_out, 24, 3, 4, 26_000, seeds=3, training=options(), out=folder, n_boot=400, verbose=0
    )
    return found, folder, store, held_out


def test_planted_products_are_beyond_all_baselines(products):
    found = products[0]
    rows = found.differences().set_index("baseline").drop("sequential")  # it has interactions too
    assert (rows["difference"] > 0.02).all()
    assert (rows[["seed_low", "document_low"]] > 0).all(axis=None)
    assert (rows["p_holm"] < 0.05).all()
    means = found.to_frame().groupby("model")["ev"].mean()
    assert abs(means["shuffled"] - means["same_width"]) < 0.01  # without the pairing there is nothing to gain
    assert means["sequential"] > means["same_width"] + 0.01
    assert "need the pairing" in found.verdict()


def test_additive_truth_gives_no_gain():
    found = joint_comparison(*stores(0.0), 24, 3, 4, 12_000, seeds=3, training=options(), n_boot=400, verbose=0)
    rows = found.differences().set_index("baseline").drop("sequential")
    assert (rows["seed_low"] < 0).all() and (rows["difference"].abs() < 0.015).all()
    assert "need the pairing" not in found.verdict()


def test_figures_are_those_of_the_models_in_the_folder(products):
    found, folder, _, held_out = products
    frame = found.to_frame().set_index(["seed", "model"])
    for name in MODELS:
        model = JointModel.load(folder / "seed-1" / ("same_width" if name == "sequential" else name))
        if name == "sequential":
            model = JointModel(model.sae, NFM.load(folder / "seed-1" / name))
        x = held_out.acts.double()
        error = x - torch.cat([model.reconstruct(part).double() for part in held_out.acts.split(4096)])
        variance = float((x - x.mean(0)).square().sum())
        row = frame.loc[(1, name)]
        assert row["fvu"] == pytest.approx(float(error.square().sum()) / variance, rel=1e-6)
        assert row["l0"] == pytest.approx(3, abs=0.01) and row["k"] == 3 and row["rank"] == (4 if model.nfm else 0)
        assert row["n_tokens"] == (52_000 if name == "sequential" else 26_000)
        assert row["n_parameters"] == model.n_parameters
    alone = evaluate_dictionary(JointModel.load(folder / "seed-1" / "same_width").sae, held_out)
    assert frame.loc[(1, "same_width"), "ev"] == pytest.approx(alone.ev, rel=1e-5)
    counts = {name: sizes["n_parameters"] for name, sizes in found.sizes.items()}
    assert abs(counts["equal_parameters"] - counts["joint"]) <= 17 and counts["shuffled"] == counts["joint"]
    assert counts["sequential"] == counts["joint"]  # the refit takes the decoder's place
    assert "seed-1" not in found.verdict() and "sae_only" not in found.to_frame().to_csv()


def test_intervals_are_students_over_seeds_and_hold_the_bootstrap_over_documents(products):
    from scipy import stats

    found = products[0]
    wide = found.to_frame().pivot(index="seed", columns="model", values="ev")
    row = found.differences().set_index("baseline").loc["equal_parameters"]
    test = stats.ttest_rel(wide["joint"], wide["equal_parameters"]).confidence_interval()
    np.testing.assert_allclose((row["seed_low"], row["seed_high"]), (test.low, test.high))
    gain = (found.error[:, 2] - found.error[:, 0]).mean(0)
    draws = np.random.default_rng(0).integers(len(gain), size=(4000, len(gain)))
    plain = np.quantile(gain[draws].sum(1) / found.variation[draws].sum(1), [0.025, 0.975])
    width = plain[1] - plain[0]
    np.testing.assert_allclose((row["document_low"], row["document_high"]), plain, atol=0.15 * width)


def test_a_comparison_is_saved_and_goes_on_where_it_was(products, monkeypatch, tmp_path):
    found, folder, store, held_out = products
    again = JointComparison.load(folder)
    assert again.to_frame().equals(found.to_frame()) and again.differences().equals(found.differences())
    assert again.verdict() == found.verdict()
    small = {"seeds": 2, "training": options(checkpoint_every=3), "n_boot": 100, "verbose": 0}
    whole = joint_comparison(store, held_out, 24, 3, 4, 1_000, out=tmp_path / "whole", **small)
    real, left = Checkpoint.save, [18]

    def save_and_die(self, counters, tensors):
        real(self, counters, tensors)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        joint_comparison(store, held_out, 24, 3, 4, 1_000, out=tmp_path / "cut", **small)
    assert (tmp_path / "cut" / "seed-0" / "joint" / "neurollm.json").exists()
    assert not (tmp_path / "cut" / "joint_comparison.json").exists()
    resumed = joint_comparison(store, held_out, 24, 3, 4, 1_000, out=tmp_path / "cut", **small)
    assert resumed.to_frame().equals(whole.to_frame())
    parts = [
        {name: data for name, data in contents(tmp_path / side).items() if not name.endswith(".npz")}
        for side in ("whole", "cut")
    ]
    assert parts[0] == parts[1]
    record = json.loads((tmp_path / "cut" / "joint_comparison.json").read_text())
    (tmp_path / "cut" / "joint_comparison.json").write_text(json.dumps({**record, "seeds": [0]}))
    with pytest.raises(DataMismatch, match="do not fit together"):
        JointComparison.load(tmp_path / "cut")


class _Tokenizer:
    bos_token_id, eos_token_id, pad_token_id, cls_token_id, unk_token_id = 0, 0, None, None, None
    all_special_ids = (0,)
    model_max_length = 16

    def __call__(self, text, **_):
        return {"input_ids": [0, 1]}


def test_cross_entropy_is_that_of_the_reconstructions_in_place(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=30, n_positions=16, n_embd=6, n_layer=3, n_head=2)
        lm = LanguageModel("tiny", GPT2LMHeadModel(config), _Tokenizer(), True)
    x = np.random.default_rng(0).standard_normal((1_600, 6))
    store, held_out = (DocumentStore(part, Site(1), lm.fingerprint) for part in (x[:1_000], x[1_000:]))
    documents = [np.r_[0, row] for row in np.random.default_rng(1).integers(1, 30, (12, 9))]
    arguments = {"training": options(), "n_boot": 100, "verbose": 0}
    found = joint_comparison(store, held_out, 20, 3, 2, 500, 1, lm=lm, documents=documents, out=tmp_path, **arguments)
    frame = found.to_frame().set_index("model")
    sae = JointModel.load(tmp_path / "seed-0" / "same_width").sae
    loss = spliced_loss(lm, sae, documents, torch.from_numpy(held_out.mean).float())
    assert frame.loc["same_width", "ce"] == pytest.approx(loss.spliced, rel=1e-6)
    recovered = (loss.mean - loss.spliced) / (loss.mean - loss.clean)
    assert frame.loc["same_width", "ce_recovered"] == pytest.approx(recovered, rel=1e-4)
    rows = found.differences().set_index(["measure", "baseline"])
    difference = frame.loc["joint", "ce_recovered"] - frame.loc["shuffled", "ce_recovered"]
    assert rows.loc[("ce_recovered", "shuffled"), "difference"] == pytest.approx(difference)
    assert np.isnan(rows["seed_low"]).all() and "one seed" in found.verdict() and "cross-entropy" in found.verdict()
    assert JointComparison.load(tmp_path).differences().equals(found.differences())
    with pytest.raises(InvalidInput, match="3 documents hold a token to predict; intervals"):
        joint_comparison(store, held_out, 20, 3, 2, 100, 1, lm=lm, documents=documents[:3], **arguments)
    with pytest.raises(DataMismatch, match="is not that of the activations"):
        strange = [DocumentStore(part, Site(1)) for part in (x[:1_000], x[1_000:])]
        joint_comparison(*strange, 20, 3, 2, 100, 1, lm=lm, documents=documents, **arguments)


def test_equal_width_comes_as_near_as_features_can():
    for n_features, rank, d in ((4096, 64, 256), (24, 4, 16), (64, 1, 3)):
        wanted = n_features * (2 * d + 1) + d + n_features * rank + rank * d
        nearest = min(range(n_features, 4 * n_features), key=lambda f: abs(f * (2 * d + 1) + d - wanted))
        assert equal_width(n_features, rank, d) == nearest


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 1}, "at least 2 active features"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"interaction": "both"}, "interaction 'both' is unknown; use one of paired, shuffled, none"),
        ({"training": options(normalisation="layer_norm")}, "cannot be told in raw units"),
        ({"k": 30}, "1 <= k <= n_features"),
        ({"training": {"batch_size": 4}}, "takes options of class TopKTraining"),
    ],
)
def test_wrong_trainings_are_refused(changes, sentence):
    store, _ = stores(0.0, n=200, n_held_out=0)
    with pytest.raises(InvalidInput, match=sentence):
        train_joint(store, **{"n_features": 24, "k": 3, "rank": 4, "n_tokens": 100, "verbose": 0, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"seeds": 0}, InvalidInput, "seeds is the number of trainings, at least 1; got 0"),
        ({"n_boot": 5}, InvalidInput, "n_boot must be a whole number of at least 100, got 5"),
        ({"documents": ["a text"]}, InvalidInput, "documents need a model"),
        ({"k": 1}, InvalidInput, "at least 2 active features"),
        ({"held_out": "few"}, InvalidInput, "held_out has 2 documents; intervals over documents need at least 10"),
        ({"held_out": "same"}, DataMismatch, "holds the very texts of the store"),
        ({"held_out": "site"}, DataMismatch, "harvest both at one site"),
    ],
)
def test_wrong_comparisons_are_refused(changes, kind, sentence):
    store, held_out = stores(0.0, n=600, n_held_out=600)
    other = {"few": DocumentStore(held_out.acts[:100]), "same": store, "site": DocumentStore(held_out.acts, Site(5))}
    arguments = {"n_features": 24, "k": 3, "rank": 4, "n_tokens": 100, "verbose": 0, "n_boot": 100, **changes}
    held_out = other[arguments.pop("held_out")] if "held_out" in arguments else held_out
    with pytest.raises(kind, match=sentence):
        joint_comparison(store, held_out, **arguments)


def test_a_folder_without_a_comparison_is_told(tmp_path):
    with pytest.raises(InvalidInput, match="there is no comparison of joint models here"):
        JointComparison.load(tmp_path)
