"""Gradients, recovery of a planted dictionary, refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neurollm.dictionaries import (
    JumpReLUTraining,
    MatryoshkaTraining,
    Plan,
    RandomDirections,
    ReLUTraining,
    TopKTraining,
    evaluate_dictionary,
    load_dictionary,
    train_dictionaries,
    train_dictionary,
    trajectory,
)
from neurollm.dictionaries.training import LEARNERS
from neurollm.dictionaries.training.start import covariance_of, geometric_median, normalisation
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


def learner(name="topk", d=64, n_features=256, k=8, **options):
    training = LEARNERS[name].options(batch_size=200, device="cpu", **options)
    return LEARNERS[name](d, n_features, k, training.resolve(d, n_features, 1_000), 0)


def test_auxk_reaches_dead_features():
    found = learner(d=10, n_features=24, k=5, auxk=4, precision="float32")
    found.parameters["b_enc"][[3, 4]] = -2.5  # too weak to be among the largest, not without effect
    found.is_dead[[3, 4]] = True
    found.refresh()
    gradients = found.gradients(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)) * 2)
    assert gradients["W_enc"][[3, 4]].abs().sum(1).min() > 0
    assert gradients["W_dec"][[3, 4]].abs().sum(1).min() > 0


def test_bfloat16_selects_almost_the_same_and_computes_the_same():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    found = {precision: learner(precision=precision).find(x) for precision in ("float32", "bfloat16")}
    columns = [code.columns.reshape(200, 8) for code, _ in found.values()]
    sets = [[set(row) for row in part.tolist()] for part in columns]
    assert np.mean([len(a & b) / 8 for a, b in zip(*sets, strict=True)]) > 0.98
    same = torch.tensor([a == b for a, b in zip(*sets, strict=True)])
    exact = [
        acts.reshape(200, 8).gather(1, part.argsort(1))[same]
        for part, (_, acts) in zip(columns, found.values(), strict=True)
    ]
    torch.testing.assert_close(*exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["jumprelu", "batchtopk"])
def test_thresholds_stay_float32_and_move_under_bfloat16(name, planted_store):
    """In bfloat16 a step of a thousandth of a threshold would be rounded away."""
    found = learner(name, d=32, n_features=96, k=4, precision="bfloat16", learning_rate=1e-4)
    norm = normalisation(planted_store)
    x = norm.apply(planted_store.rows(0, 200))
    found.calibrate(x)
    before = found.weights() if name == "jumprelu" else None
    for step in range(20):
        found.step(norm.apply(planted_store.rows(200 * step, 200 * step + 200)), 0.5)
    after = found.weights()["threshold"]
    assert after.dtype == torch.float32
    if before is not None:
        moved = (after - before["threshold"]).abs()
        assert float(moved.median()) > 0 and float(moved.max()) < 0.01


def test_batchtopk_keeps_exactly_k_on_average_and_the_threshold_follows():
    found = learner("batchtopk", d=16, n_features=128, k=6, precision="float32")
    generator = torch.Generator().manual_seed(0)
    limits = []
    found.calibrate(torch.randn(200, 16, generator=generator))
    for size in (1.0, 1.0, 4.0, 0.01, 0.01):  # a guess far too high, or too low, must not change what is found
        x = torch.randn(200, 16, generator=generator) * size
        _, acts = found.find(x)
        assert len(acts) == 6 * 200 and float(acts.min()) > 0
        limits.append(float(found.carried["last_threshold"]))
        assert limits[-1] == float(acts.min())
    assert float(found.carried["threshold"]) == pytest.approx(limits[-1])  # before the first step nothing is averaged
    found.carried["steps"].fill_(10_000)
    found.find(torch.randn(200, 16, generator=generator))
    expected = 0.99 * limits[-1] + 0.01 * float(found.carried["last_threshold"])
    assert float(found.carried["threshold"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [20, 100, 1_000])
def test_the_threshold_of_batchtopk_fits_also_after_a_short_training(steps, planted_store):
    options = LEARNERS["batchtopk"].options(batch_size=128, learning_rate=3e-3)
    found = train_dictionary(planted_store, "batchtopk", 64, 3, 128 * steps, training=options, verbose=0)
    assert evaluate_dictionary(found, planted_store.rows(0, 4_000)).l0 == pytest.approx(3, rel=0.12)


def test_jumprelu_starts_at_its_target(planted_store):
    found = learner("jumprelu", d=32, n_features=96, k=4)
    x = normalisation(planted_store).apply(planted_store.rows(0, 1024))
    found.calibrate(x)
    found.gradients(x)
    assert float(found.sums[2] / found.sums[3]) == pytest.approx(4, abs=0.1)


KILLED = {
    "topk": "b_enc",
    "batchtopk": "b_enc",
    "matryoshka": "b_enc",
    "relu": "b_enc",
    "gated": "b_mag",
    "jumprelu": "log_threshold",
}


@pytest.mark.parametrize("name", LEARNERS)
def test_resampling_revives_dead_features_with_badly_explained_directions(name):
    options = {"resample_every": 0.1, "auxk_coefficient": 0.0, "dead_after_tokens": 200}
    found = learner(name, d=16, n_features=32, k=4, precision="float32", **options)
    found.parameters[KILLED[name]][5:9] = 100.0 if name == "jumprelu" else -100.0
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    x[:20] += 40.0  # tokens that are explained worst
    found.start(x)
    if name != "jumprelu":
        found.calibrate(x)
    found.step(x, 0.05)
    assert set(range(5, 9)) <= set(torch.nonzero(found.silent >= 200).reshape(-1).tolist())
    found.step(x, 0.11)
    rows = found.parameters["W_dec"][5:9]
    target = torch.nn.functional.normalize(torch.ones(1, 16), dim=1)
    assert float((rows @ target.T).min()) > 0.9 * float(rows.norm(dim=1).max())
    assert float(found.optimizers["W_dec"].state[found.parameters["W_dec"]]["exp_avg"][5:9].abs().max()) == 0
    alive = [i for i in range(32) if float(found.silent[i]) == 0 and i not in range(5, 9)]
    found.step(x, 0.12)
    assert alive and float(found.fired[5:9].max()) == 1


def test_the_penalty_of_kl_is_not_steered_and_no_penalty_grows_without_bound(planted_store):
    """Each active feature counts less than 1 in ρ, so L0 can never fall to k: steering by it would never end."""
    options = ReLUTraining(batch_size=128, penalty="kl", learning_rate=3e-3)
    found = train_dictionary(planted_store, "relu", 64, 3, 128 * 1_500, training=options, verbose=0)
    assert evaluate_dictionary(found, planted_store.rows(0, 1_000)).ev > 0.5
    stuck = learner("relu", d=16, n_features=32, k=1)
    stuck.carried["sparsity"].fill_(9_999.0)
    stuck.step(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), 0.5)
    assert float(stuck.carried["sparsity"]) <= 1e4


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_a_steered_penalty_goes_on_where_it_was(name, planted_store):
    options = LEARNERS[name].options(batch_size=128, learning_rate=3e-3)
    first = train_dictionary(planted_store, name, 64, 3, 128 * 2_000, training=options, verbose=0)
    x = planted_store.rows(0, 2_000)
    before = evaluate_dictionary(first, x)
    more = train_dictionary(planted_store, name, 64, 3, 128 * 150, training=options, init_from=first, verbose=0)
    after = evaluate_dictionary(more, x)
    assert after.l0 < 1.6 * before.l0 and after.ev > before.ev - 0.08


def test_a_diverging_training_stops_and_keeps_its_last_good_checkpoint(planted_store, tmp_path):
    options = TopKTraining(batch_size=128, learning_rate=1e25, warmup=0.3, checkpoint_every=1, decoder_norm="free")
    with pytest.raises(InvalidInput, match=r"diverged: by step \d+ .* learning_rate below 1e\+25"):
        train_dictionary(planted_store, "topk", 64, 3, 20_000, training=options, out=tmp_path, verbose=0)
    assert not (tmp_path / "cfg.json").exists()
    for path in tmp_path.glob("checkpoint-*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_nonnegative_trainings_refuse_what_is_not(planted_store):
    with pytest.raises(InvalidInput, match="un-whitening mixes"):
        TopKTraining(nonnegative=True, normalisation="whiten")
    first = train_dictionary(planted_store, "topk", 64, 3, 512, verbose=0)
    with pytest.raises(DataMismatch, match="negative decoder weights"):
        train_dictionary(
            planted_store, "topk", 64, 3, 512, init_from=first, training=TopKTraining(nonnegative=True), verbose=0
        )


def test_a_finished_training_is_loaded_on_another_processor(planted_store, tmp_path, monkeypatch):
    options = {"n_features": 64, "k": 3, "n_tokens": 512, "out": tmp_path, "verbose": 0}
    first = train_dictionary(planted_store, **options)
    other = "bfloat16" if first.provenance["run"]["training"]["precision"] == "float32" else "float32"
    fast = other == "bfloat16"
    monkeypatch.setattr("neurollm.dictionaries.training.options.has_fast_bfloat16", lambda device: fast)
    assert train_dictionary(planted_store, **options).fingerprint == first.fingerprint
    with pytest.raises(DataMismatch, match="precision is"):
        train_dictionary(planted_store, **options, training=TopKTraining(precision=other))


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
    assert trained.normalisation.is_identity
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
        ({"architecture": "vae"}, "architecture 'vae' is unknown; use one of topk"),
        ({"architecture": "relu", "training": TopKTraining()}, "takes options of class ReLUTraining, got TopKTraining"),
        ({"snapshots": (0.5,)}, "snapshots need a folder"),
        ({"architecture": "matryoshka", "n_features": 8, "k": 2}, "dictionaries of .* features; they must grow"),
        ({"k": 0}, "1 <= k <= n_features"),
        ({"n_features": 8, "k": 9}, "1 <= k <= n_features"),
        ({"n_tokens": 0}, "n_tokens >= 1"),
        ({"n_tokens": 2e3}, "n_tokens must be a whole number, got 2000.0"),
        ({"snapshots": (0, 0.5), "out": "x"}, "above 0, at most 1"),
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
    with pytest.raises(InvalidInput, match="warmup must be a fraction from 0 to 1, got 30"):
        TopKTraining(warmup=30)
    with pytest.raises(InvalidInput, match="bandwidth must be positive, got 'wide'"):
        JumpReLUTraining(bandwidth="wide")
    with pytest.raises(InvalidInput, match="widths must rise"):
        MatryoshkaTraining(widths=(0.5, 0.25, 1.0))
    with pytest.raises(InvalidInput, match=r"auxk must be a whole number, got 2\.5"):
        TopKTraining(auxk=2.5)
    with pytest.raises(InvalidInput, match=r"resample_every must be below 0\.5"):
        TopKTraining(resample_every=0.5)
    plain = TopKTraining(batch_size=np.int64(64), learning_rate=np.float32(0.5)).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    for device in ("cudaa", "cuda:99"):
        with pytest.raises(InvalidInput, match=f"device '{device}' cannot be used here"):
            TopKTraining(device=device).resolve(8, 8, 8)
    widths = MatryoshkaTraining(widths=(0.5, 1.0))
    assert MatryoshkaTraining.from_dict(json.loads(json.dumps(widths.to_dict()))) == widths
    resolved = TopKTraining().resolve(256, 16_384, 1_000_000)
    assert resolved.learning_rate == pytest.approx(1e-3) and resolved.auxk == 128
    assert resolved.dead_after_tokens == 100_000


def test_schedules_have_their_horizon_in_tokens(planted_store):
    """The same shape whatever the batch size: the rate of a step depends on the tokens before it."""
    training = TopKTraining(learning_rate=1.0, warmup=0.1, decay=0.5).resolve(8, 8, 8)
    rates = [training.rate(p) for p in (0, 0.05, 0.2, 0.5, 0.75, 1)]
    assert 0 < rates[0] < rates[1] < rates[2] == rates[3] == 1 and rates[4] == 0.5 and rates[5] == 0
    seen = {}
    for size in (64, 256):
        used = []

        class Recording(LEARNERS["relu"]):
            def step(self, x, progress, used=used):
                super().step(x, progress)
                used.append((progress, self.optimizers["W_enc"].param_groups[0]["lr"], float(self.sparsity(progress))))

        options = ReLUTraining(batch_size=size, learning_rate=1e-3, sparsity=2.0, sparsity_warmup=0.25, warmup=0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LEARNERS, "relu", Recording)
            train_dictionary(planted_store, "relu", 64, 4, 6_400, training=options, verbose=0)
        seen[size] = {round(at, 6): (rate, weight) for at, rate, weight in used}
    shared = seen[64].keys() & seen[256].keys()
    assert len(shared) == 25
    assert all(seen[64][at] == seen[256][at] for at in shared)
    assert seen[64][0.0][1] == 0 and seen[64][0.2][1] == pytest.approx(1.6) and seen[64][0.6][1] == 2.0


@pytest.mark.parametrize("name", LEARNERS)
def test_every_architecture_recovers_planted_features(name, planted_store, script):
    options = LEARNERS[name].options(batch_size=256, learning_rate=3e-3)
    found = train_dictionary(planted_store, name, 64, 3, 300_000, training=options, verbose=0)
    planted = torch.from_numpy(script.planted()[1])
    rows = torch.nn.functional.normalize(found.directions, dim=1)
    assert float((planted @ rows.T).max(1).values.mean()) >= 0.9
    metrics = evaluate_dictionary(found, script.planted(n=22_000)[0][20_000:])
    assert metrics.l0 == pytest.approx(3, rel=0.15)
    assert found.provenance["run"]["architecture"] == name


def test_l1_shrinks_and_topk_does_not(planted_store, script):
    """The factor by which a reconstruction is too short along itself, around the mean."""
    held_out = torch.from_numpy(script.planted(n=22_000)[0][20_000:])
    bias = {}
    for name in ("topk", "relu"):
        options = LEARNERS[name].options(batch_size=256, learning_rate=3e-3)
        found = train_dictionary(planted_store, name, 64, 3, 200_000, training=options, verbose=0)
        y, x = (rows - held_out.mean(0) for rows in (found.reconstruct(held_out), held_out))
        bias[name] = float(y.square().sum() / (x * y).sum())
    assert bias["topk"] == pytest.approx(1, abs=0.02) and bias["relu"] < 0.92


@pytest.mark.parametrize("kind", ["mean_square", "z_score", "whiten", "layer_norm", "unit_norm", "none"])
@pytest.mark.parametrize("name", ["topk", "gated"])
def test_normalisations_are_owned_by_the_dictionary(kind, name, planted_store, script, tmp_path):
    options = LEARNERS[name].options(batch_size=256, normalisation=kind)
    found = train_dictionary(planted_store, name, 64, 8, 20_000, training=options, out=tmp_path / "sae", verbose=0)
    x = torch.from_numpy(script.planted()[0][:300])
    again = load_dictionary(tmp_path / "sae")
    torch.testing.assert_close(again.reconstruct(x), found.reconstruct(x))
    assert again.fingerprint == found.fingerprint
    assert evaluate_dictionary(again, x).ev > (0.2 if name == "topk" else 0.0)
    per_token = kind in ("layer_norm", "unit_norm")
    assert found.normalisation.needs_input == per_token
    if per_token:
        with pytest.raises(InvalidInput, match="decode needs the activations"):
            again.decode(again.encode(x))


def test_covariance_whitening_and_geometric_median(planted_store):
    norm = normalisation(planted_store, "whiten")
    u = norm.apply(planted_store.acts).double()
    torch.testing.assert_close(u.T @ u / len(u), torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-3)
    mean = torch.as_tensor(planted_store.mean)
    expected = torch.from_numpy(np.cov(planted_store.acts.numpy().T.astype(np.float64), bias=True))
    torch.testing.assert_close(covariance_of(planted_store, mean), expected, rtol=1e-4, atol=1e-5)
    stuck = torch.tensor([[-3.0], [0.0], [1.0], [1.0], [1.0]])  # the mean is one of the points, not the median
    assert float(geometric_median(stuck)) == pytest.approx(1, abs=1e-3)
    rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    rows[:80] += 50
    median = geometric_median(rows).double()
    pull = torch.nn.functional.normalize(rows.double() - median, dim=1).sum(0)  # the gradient of the sum of distances
    assert float(pull.norm()) < 1e-2 and float(median.norm()) < float(rows.mean(0).norm()) / 5


def test_zero_variance_dimensions_are_harmless(script):
    acts = torch.from_numpy(script.planted(n=4_000)[0])
    acts[:, [3, 17]] = 2.5
    for kind in ("mean_square", "z_score", "whiten"):
        options = TopKTraining(batch_size=256, normalisation=kind)
        found = train_dictionary(script.MemoryStore(acts), "topk", 64, 8, 8_000, training=options, verbose=0)
        error = (found.reconstruct(acts) - acts).abs().mean(0)
        assert torch.isfinite(error).all()
        assert float(error[[3, 17]].max()) < 0.5 * float(error.median()), kind


def test_one_pass_gives_what_separate_trainings_give(planted_store, tmp_path):
    """Seeds, widths, lengths and architectures side by side, bit for bit."""
    plans = [
        Plan(n_features=96, k=4, n_tokens=5_000, random_state=1, training=TopKTraining(batch_size=128)),
        Plan(n_features=64, k=4, n_tokens=9_000, out=tmp_path / "b", training=TopKTraining(batch_size=128)),
        Plan(architecture="jumprelu", n_features=48, k=4, n_tokens=9_000, training=JumpReLUTraining(batch_size=128)),
    ]
    together = train_dictionaries(planted_store, plans, order=7, verbose=0)
    for plan, found in zip(plans, together, strict=True):
        alone = train_dictionary(
            planted_store,
            plan.architecture,
            plan.n_features,
            plan.k,
            plan.n_tokens,
            plan.random_state,
            order=7,
            training=plan.training,
            verbose=0,
        )
        assert alone.fingerprint == found.fingerprint
        assert alone.provenance["history"] == found.provenance["history"]
    assert load_dictionary(tmp_path / "b").fingerprint == together[1].fingerprint
    with pytest.raises(InvalidInput, match=r"share their batches; batch_size is \[64, 128\]"):
        train_dictionaries(planted_store, [plans[0], Plan(training=TopKTraining(batch_size=64))], verbose=0)
    with pytest.raises(InvalidInput, match="same out"):
        train_dictionaries(planted_store, [plans[1], plans[1]], verbose=0)


@pytest.mark.parametrize("name", LEARNERS)
def test_training_goes_on_from_a_dictionary(name, planted_store, tmp_path):
    penalty = {"sparsity": {"relu": 1.0, "gated": 4.0}[name]} if name in ("relu", "gated") else {}
    options = LEARNERS[name].options(batch_size=256, learning_rate=2e-3, **penalty)
    first = train_dictionary(planted_store, name, 64, 3, 60_000, training=options, out=tmp_path / "a", verbose=0)
    tiny = LEARNERS[name].options(batch_size=256, learning_rate=1e-9, auxk_coefficient=0.0)
    same = train_dictionary(planted_store, name, 64, 3, 512, init_from=tmp_path / "a", training=tiny, verbose=0)
    x = planted_store.rows(0, 500)
    error = (first.reconstruct(x) - x).square().sum()
    moved = (first.reconstruct(x) - same.reconstruct(x)).square().sum()
    assert float(moved) < 0.02 * float(error)  # nothing was lost by way of the normalised units
    more = train_dictionary(planted_store, name, 64, 3, 60_000, init_from=first, training=options, verbose=0)
    assert evaluate_dictionary(more, x).ev > evaluate_dictionary(first, x).ev - 0.01
    assert more.provenance["run"]["init_from"] == first.fingerprint
    with pytest.raises(DataMismatch, match=r"has 64 features of width 32 .* this training has 65 features"):
        train_dictionary(planted_store, name, 65, 3, 512, init_from=first, verbose=0)


def test_snapshots_are_the_dictionary_on_its_way(planted_store, tmp_path):
    options = {"n_features": 96, "k": 4, "training": TopKTraining(batch_size=128, warmup=0, decay=0), "verbose": 0}
    train_dictionary(planted_store, n_tokens=6_400, out=tmp_path, snapshots=(0.1, 0.5, 1.0), **options)
    way = trajectory(tmp_path)
    assert list(way) == [640, 3_200, 6_400]
    half = train_dictionary(planted_store, n_tokens=3_200, **options)
    for name, weight in half.weights.items():  # without a schedule the first half is a training of its own
        torch.testing.assert_close(way[3_200].weights[name], weight, rtol=0, atol=0)
    assert way[6_400].fingerprint == load_dictionary(tmp_path).fingerprint


def test_a_store_of_another_site_or_model_is_refused_in_evaluation(trained, script):
    acts = script.planted(n=200)[0]
    with pytest.raises(DataMismatch, match=r"activation store holds resid_post.2"):
        evaluate_dictionary(trained, script.MemoryStore(acts, site=Site(2)))
    with pytest.raises(DataMismatch, match="fingerprint aaaa"):
        evaluate_dictionary(trained, script.MemoryStore(acts, fingerprint="d" * 64))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_fitted_encoder_gives_first_reconstructions_the_best_factor(name, planted_store):
    found = learner(name, d=32, n_features=96, k=4, precision="float32", encoder_init="fitted")
    x = normalisation(planted_store).apply(planted_store.rows(0, 200))
    found.calibrate(x)
    y = found._residual(x) + x
    assert float((x * y).sum() / y.square().sum()) == pytest.approx(1, abs=0.02)
    assert float((y - x).square().sum()) < float(x.square().sum())
    for init in ("transpose", "random"):
        own = learner(name, d=32, n_features=96, k=4, precision="float32", encoder_init=init)
        own.calibrate(x)
        np.testing.assert_allclose(own.parameters["W_enc"].norm(dim=1), 1.0, rtol=1e-5)
        assert torch.equal(own.parameters["W_enc"], own.parameters["W_dec"]) == (init == "transpose")
