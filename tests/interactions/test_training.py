"""Training finds planted pairs and nothing else, goes on where it was, and refuses in one sentence."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LinearRegression

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions import training as module
from neurollm.interactions.expansions import Expansion
from neurollm.interactions.model import CONFIG_FILE, NFM, truncate
from neurollm.interactions.refit import Refit
from neurollm.interactions.rows import CodedRows
from neurollm.interactions.simulate import simulate_codes
from neurollm.interactions.training import InteractionTraining, Learner, left_by, split_documents, train_nfm

F, D = 30, 8
SIZES = {"n_tokens": 6000, "n_features": F, "k": 5, "d": D, "tokens_per_document": 50}
FAST = InteractionTraining(batch_size=128)
QUICK = {"rank": 4, "n_tokens": 4000, "training": InteractionTraining(batch_size=128, evaluations=6), "verbose": 0}


@pytest.fixture(scope="module")
def planted():
    return simulate_codes(**SIZES, pairs=((3, 17, 0.1),))


@pytest.fixture(scope="module")
def additive():
    return simulate_codes(**SIZES, pairs=0, random_state=2)


@pytest.fixture(scope="module")
def nfm(planted):
    return train_nfm(planted.rows.of_documents(np.arange(100)), rank=4, n_tokens=60_000, training=FAST, verbose=0)


def same(one, other):
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(weight, other.weights[name]) for name, weight in one.weights.items()
    )


def explained(rows, *components):
    """Share of the squared error that predictions of a batch explain."""
    left = total = 0.0
    for batch in rows.in_order():
        predicted = sum(component(batch) for component in components)
        left += float((batch.error - predicted).double().square().sum())
        total += float(batch.error.double().square().sum())
    return 1 - left / total


def known_product(fit, held_out):
    """Share of the error that the product of features 3 and 17 explains beyond a linear map."""

    def design(rows, product):
        batch = next(rows.in_order(10_000))
        dense = batch.code.toarray().astype(float)
        return np.c_[dense, dense[:, 3] * dense[:, 17]] if product else dense, batch.error.double().numpy()

    left = [
        np.square(error - LinearRegression().fit(*design(fit, product)).predict(dense)).sum()
        for product in (False, True)
        for dense, error in [design(held_out, product)]
    ]
    return (left[0] - left[1]) / np.square(design(held_out, False)[1]).sum()


def test_a_planted_product_is_recovered(planted, nfm):
    held_out = planted.rows.of_documents(np.arange(100, 120))
    pairs = explained(held_out, lambda b: nfm.predict(b.code)) - explained(held_out, lambda b: nfm.linear(b.code))
    whole = explained(held_out, lambda b: nfm.predict(b.code))
    fit = planted.rows.of_documents(np.arange(100))
    refit = Refit(*split_documents(fit, 0.1, 0)).linear
    alone = explained(held_out, lambda b: torch.from_numpy(refit.predict(b)))
    known = known_product(fit, held_out)  # what a least-squares fit that knows the pair gains on these documents
    assert known > 0.2 and 0.8 * known < whole - alone < 1.1 * known and pairs > 0.5 * known
    V, A = nfm.weights["V"], nfm.weights["A"]
    sizes = {(i, j): float(((V[i] * V[j]) @ A).norm()) for i, j in itertools.combinations(range(F), 2)}
    ranked = sorted(sizes, key=sizes.get, reverse=True)
    assert ranked[0] == (3, 17) and sizes[ranked[0]] > 3 * sizes[ranked[1]]
    provenance = nfm.provenance
    assert provenance["explained_validation"] > provenance["explained_refit"] + 0.5 * known
    documents = set(provenance["validation_documents"])
    assert len(documents) == 10 and documents < set(range(100))
    validation = planted.rows.of_documents(np.array(sorted(documents)))
    assert provenance["explained_validation"] == pytest.approx(explained(validation, lambda b: nfm.predict(b.code)))
    assert provenance["explained_refit"] == pytest.approx(
        explained(validation, lambda b: torch.from_numpy(refit.predict(b)))
    )


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_of_additive_truth_only_the_refit_explains_anything(additive, readout):
    rows = additive.rows.of_documents(np.arange(100))
    nfm = train_nfm(rows, rank=4, n_tokens=15_000, readout=readout, training=FAST, verbose=0)
    held_out = additive.rows.of_documents(np.arange(100, 120))
    whole = explained(held_out, lambda b: nfm.predict(b.code))
    refit = Refit(*split_documents(rows, 0.1, 0)).linear
    alone = explained(held_out, lambda b: torch.from_numpy(refit.predict(b)))
    assert alone > 0.3 and abs(whole - alone) < 0.01
    assert nfm.provenance["explained_validation"] >= nfm.provenance["explained_refit"] - 1e-6  # μ = ∞ is in the grid


def test_without_refit_main_effects_pass_for_interactions(additive):
    rows = additive.rows
    nfm = train_nfm(rows, rank=4, n_tokens=20_000, refit=False, training=FAST, verbose=0)
    assert not nfm.has_refit and "explained_refit" not in nfm.provenance
    assert nfm.provenance["explained_validation"] > 0.005
    history = [one["explained"] for one in nfm.provenance["history"]]
    assert history[0] == 0.0 and len(history) >= 10  # begins as the dictionary
    assert nfm.provenance["explained_validation"] == pytest.approx(max(history), abs=1e-5)  # the best state is kept


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_the_assembled_model_predicts_what_expansion_and_solution_do(planted, readout, monkeypatch):
    seen = {}
    assemble = module._assemble

    def spy(learner, solution, rows):
        seen.update(expansion=learner.expansion, solution=solution, readout=learner.readout * learner.scale)
        return assemble(learner, solution, rows)

    monkeypatch.setattr(module, "_assemble", spy)
    for refit in (True, False):
        nfm = train_nfm(planted.rows, readout=readout, refit=refit, top_n=4, **QUICK)
        batch = next(planted.rows.in_order(500))
        phi = seen["expansion"].columns(batch.code)
        assert phi.shape == (500, 8 if readout == "mlp" else 4) and phi.any()
        if refit:
            expected = seen["solution"].predict(batch, seen["expansion"].columns)
        else:
            expected = (phi @ seen["readout"]).numpy()
        assert np.allclose(nfm.predict(batch.code), expected, atol=1e-4 * np.abs(expected).max())
        assert (nfm.readout, nfm.has_refit, nfm.top_n) == (readout, refit, 4)


def test_truncation_is_the_same_in_training_and_prediction(planted):
    """A model trained with the three largest entries is that of codes that have no others."""
    codes = planted.codes
    cut = truncate(codes, 3)
    error = torch.cat([batch.error for batch in planted.rows.in_order()])
    whole = CodedRows.from_arrays(codes, error, documents=planted.documents)
    only = CodedRows.from_arrays(cut, error, documents=planted.documents)
    one = train_nfm(whole, top_n=3, refit=False, **QUICK)
    length = module.code_length(split_documents(whole, 0.1, 0)[0])
    assert module.code_length(split_documents(only, 0.1, 0)[0]) < length and codes.nnz > 1.3 * cut.nnz
    assert torch.equal(one.predict(codes), one.predict(cut)) and not torch.equal(
        one.predict(codes), one.to("cpu").predict(truncate(codes, 2))
    )
    expansions = [Expansion("pairs", (F, 4, 4), top_n, length) for top_n in (3, 10_000)]
    options = FAST.resolve()
    states = []
    for rows, expansion in zip((whole, only), expansions, strict=True):
        learner = Learner(expansion, *split_documents(rows, 0.1, 0), options)
        states.append(module.learn(learner, 3000).columns(rows._source.codes[:200]))
    assert torch.equal(*states) and states[0].any()


def test_the_same_call_gives_the_same_model_and_another_seed_another(planted):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = (train_nfm(planted.rows, readout="mlp", random_state=3, **QUICK) for _ in range(2))
    assert same(one, two) and torch.equal(before, torch.random.get_rng_state())
    assert not same(one, train_nfm(planted.rows, readout="mlp", random_state=4, **QUICK))


class Killed(Exception):
    """Stands for a process that ends."""


@pytest.mark.parametrize(("readout", "kills"), [("linear", [20]), ("mlp", [9, 13, 27])])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(planted, tmp_path, monkeypatch, readout, kills):
    rows = planted.rows.of_documents(np.arange(50))  # 2,250 tokens to fit: 4,000 are nearly two epochs
    whole = train_nfm(rows, readout=readout, **QUICK)
    assert len(whole.provenance["history"]) > 6
    step, done = Learner.step, []
    for last in kills:
        count = itertools.count()

        def killed(self, batch, code, n_tokens, last=last, count=count):
            if self.counters["step"] >= last:
                raise Killed
            done.append(next(count))
            return step(self, batch, code, n_tokens)

        monkeypatch.setattr(Learner, "step", killed)
        with pytest.raises(Killed):
            train_nfm(rows, readout=readout, out=tmp_path, **QUICK)
        assert (tmp_path / "checkpoint.json").is_file() and not (tmp_path / CONFIG_FILE).exists()
    taken = []
    monkeypatch.setattr(Learner, "step", lambda self, *a: taken.append(self.counters["step"]) or step(self, *a))
    resumed = train_nfm(rows, readout=readout, out=tmp_path, **QUICK)
    assert 0 < taken[0] <= kills[-1] and taken == list(range(taken[0], taken[-1] + 1))
    assert same(whole, resumed) and whole.provenance["history"] == resumed.provenance["history"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nfm.json", "nfm_weights.safetensors"]

    taken.clear()  # finished: only loaded
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded = train_nfm(rows, readout=readout, out=tmp_path, **QUICK)
    assert not taken and same(whole, loaded) and loaded.provenance == resumed.provenance
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_run_in_the_folder_is_refused(planted, tmp_path, monkeypatch):
    train_nfm(planted.rows, out=tmp_path / "done", **QUICK)
    step = Learner.step

    def killed(self, batch, code, n_tokens):
        if self.counters["step"] >= 12:
            raise Killed
        return step(self, batch, code, n_tokens)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Learner, "step", killed)
        train_nfm(planted.rows, out=tmp_path / "begun", **QUICK)
    for folder in ("done", "begun"):
        for change in ({"rank": 5}, {"top_n": 3}, {"random_state": 1}, {"n_tokens": 5000}, {"refit": False}):
            with pytest.raises(DataMismatch, match=next(iter(change))):
                train_nfm(planted.rows, out=tmp_path / folder, **(QUICK | change))
        with pytest.raises(DataMismatch, match="rows"):
            train_nfm(planted.rows.of_documents(np.arange(60)), out=tmp_path / folder, **QUICK)
        with pytest.raises(DataMismatch, match="learning_rate"):
            options = InteractionTraining(batch_size=128, evaluations=6, learning_rate=1e-3)
            train_nfm(planted.rows, out=tmp_path / folder, **(QUICK | {"training": options}))
    NFM.load(tmp_path / "done").save(tmp_path / "foreign")
    record = json.loads((tmp_path / "foreign" / CONFIG_FILE).read_text())
    record["provenance"] = {}
    (tmp_path / "foreign" / CONFIG_FILE).write_text(json.dumps(record))
    with pytest.raises(DataMismatch, match="not trained here"):
        train_nfm(planted.rows, out=tmp_path / "foreign", **QUICK)


def test_a_training_that_diverges_says_so(planted):
    options = InteractionTraining(batch_size=128, learning_rate=1e15)
    with pytest.raises(InvalidInput, match=r"diverged.*learning_rate") as refusal:
        train_nfm(planted.rows, **(QUICK | {"training": options}))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": "quadratic"},
        {"rank": 0},
        {"rank": 2.5},
        {"top_n": 1},
        {"n_tokens": 0},
        {"rank": True},
        {"top_n": True},
        {"n_tokens": True},
        {"random_state": -1},
        {"random_state": 0.5},
        {"random_state": True},
        {"training": {"batch_size": 128}},
        {"training": "fast"},
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_anything_is_computed(planted, wrong, monkeypatch):
    monkeypatch.setattr(module, "Refit", None)
    with pytest.raises(InvalidInput) as refusal:
        train_nfm(planted.rows, **(QUICK | wrong))
    assert "\n" not in str(refusal.value) and next(iter(wrong)) in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"batch_size": 0},
        {"batch_size": 10.5},
        {"evaluations": 0},
        {"warmup": 1.5},
        {"decay": -0.1},
        {"validation": 0.0},
        {"validation": 1.0},
        {"precision": "float16"},
        {"learning_rate": "fast"},
        {"learning_rate": None},
        {"batch_size": True},
        {"evaluations": True},
    ],
    ids=str,
)
def test_bad_options_are_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        InteractionTraining(**wrong)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "a\nb"])
def test_a_device_that_cannot_be_used_is_refused_in_one_sentence(planted, device):
    options = InteractionTraining(batch_size=128, device=device)
    with pytest.raises(InvalidInput, match=r"device .* cannot be used here") as refusal:
        train_nfm(planted.rows, **(QUICK | {"training": options}))
    assert "\n" not in str(refusal.value)


def test_a_model_knows_the_documents_that_it_saw(planted, additive, nfm, tmp_path):
    rows = planted.rows
    nfm.save(tmp_path)
    for model in (nfm, NFM.load(tmp_path), nfm.to("cpu")):
        assert model.saw(rows) and model.saw(rows.of_documents(np.arange(100))) and model.saw(rows.shuffled(0))
        assert model.saw(rows.of_documents(np.array([99, 119])))  # one is enough
        assert model.saw(rows.of_documents(np.array(nfm.provenance["validation_documents"][:1])))  # it chose
        assert not model.saw(rows.of_documents(np.arange(100, 120)))
        assert not model.saw(additive.rows)  # documents of these numbers, but of another store
    assert not NFM.random(nfm).saw(rows)
    assert not NFM({name: weight for name, weight in nfm.weights.items()}, nfm.top_n).saw(rows)  # not known


def test_rows_that_cannot_be_learned_from_are_refused():
    draw = np.random.default_rng(0)
    codes, x = sp.random(60, 5, 0.5, format="csr", random_state=0), draw.normal(size=(60, 3))
    with pytest.raises(InvalidInput, match="two documents"):
        train_nfm(CodedRows.from_arrays(codes, x, documents=np.zeros(60, int)), verbose=0)
    with pytest.raises(InvalidInput, match=r"active|vary"):
        train_nfm(CodedRows.from_arrays(0 * codes, x, documents=np.arange(60) // 6), verbose=0)
    with pytest.raises(InvalidInput, match=r"got a type; .*from_arrays"):
        train_nfm(CodedRows, verbose=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["fit", "validation"])
@pytest.mark.parametrize("refit", [True, False])
def test_errors_that_are_not_finite_are_named_and_no_learning_rate_is_blamed(planted, bad, where, refit):
    one = split_documents(planted.rows, 0.1, 0)[where == "validation"].rows[-1]  # of the default options

    def errors(batch):
        return batch.error.masked_fill(torch.from_numpy(batch.rows == one)[:, None], bad)

    with pytest.raises(InvalidInput, match="NaN or infinite"):
        train_nfm(planted.rows.with_errors(errors), **(QUICK | {"refit": refit}))


def test_options_of_numpy_are_saved_and_give_the_same_model(planted, tmp_path):
    plain = InteractionTraining(batch_size=256, learning_rate=0.0078125, evaluations=4)
    numpy = InteractionTraining(
        batch_size=np.int64(256),
        learning_rate=np.float32(0.0078125),
        evaluations=np.int32(4),
        device=torch.device("cpu"),
    )
    one = train_nfm(planted.rows, **(QUICK | {"training": numpy}), out=tmp_path)
    assert NFM.load(tmp_path).provenance["run"] == one.provenance["run"]
    other = train_nfm(planted.rows, **(QUICK | {"training": plain}))
    assert other.provenance["run"] == one.provenance["run"]
    assert same(one, other)


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.99])
def test_documents_are_split_whole(share):
    documents = np.random.default_rng(0).integers(0, 7, 200)
    rows = CodedRows.from_arrays(sp.eye(200, format="csr"), np.zeros((200, 2)), documents=documents)
    fit, validation = split_documents(rows, share, 3)
    assert not set(fit.documents) & set(validation.documents) and fit.n_rows + validation.n_rows == 200
    assert len(np.unique(validation.documents)) == min(max(1, round(7 * share)), 6)


def test_the_learning_rate_rises_and_falls():
    options = InteractionTraining(learning_rate=2.0, warmup=0.1, decay=0.5)
    at = [options.rate(progress) for progress in (0.0, 0.05, 0.3, 0.5, 0.75, 0.999)]
    assert 0 < at[0] < 0.05 and at[1] == pytest.approx(1.02) and at[2:4] == [2.0, 2.0]
    assert at[4] == pytest.approx(1.0) and 0 < at[5] < 0.01
    assert InteractionTraining(warmup=0, decay=0).rate(0) == InteractionTraining(warmup=0, decay=0).rate(1) == 1e-2


def test_the_gradient_steps_are_those_of_adam_on_the_dense_problem(planted):
    """Embeddings learn where features are active; steps of equal size make rounding visible."""
    rows = planted.rows
    fit, validation = split_documents(rows, 0.1, 0)
    refit = Refit(fit, validation)
    parts = [left_by(part, refit.linear) for part in (fit, validation)]
    options = InteractionTraining(batch_size=128, warmup=0, decay=0, learning_rate=0.03).resolve()
    learner = Learner(Expansion("pairs", (F, 4, 4), 30, 2.0), *parts, options)
    V = torch.nn.Parameter(learner.expansion.embeddings.clone())
    A = torch.nn.Parameter(torch.zeros(4, D))
    first, second, adam = torch.zeros_like(V), torch.zeros_like(V), torch.optim.Adam([A], lr=0.03)
    for number, batch in enumerate(itertools.islice(parts[0].batches(128), 5)):
        learner.step(batch, learner.expansion.active(batch.pairing), 10**6)
        s = torch.from_numpy(batch.code.toarray()) / 2
        pooled = 0.5 * ((s @ V).square() - s.square() @ V.square())
        loss = (pooled @ A - batch.error / learner.scale).square().mean()
        adam.zero_grad(), V.grad is None or V.grad.zero_()
        loss.backward()
        adam.step()
        with torch.no_grad():  # algorithm 1 of Kingma and Ba (2015), only of the features that occur
            here = s.any(0)
            first[here] = 0.9 * first[here] + 0.1 * V.grad[here]
            second[here] = 0.999 * second[here] + 0.001 * V.grad[here].square()
            unbiased = first[here] / (1 - 0.9 ** (number + 1)), second[here] / (1 - 0.999 ** (number + 1))
            V[here] -= 0.03 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        tolerance = 1e-4 if number == 0 else 3e-3
        assert torch.allclose(learner.readout, A, atol=tolerance)
        assert torch.allclose(learner.expansion.embeddings, V, atol=tolerance)
        assert number or torch.allclose(A.abs(), torch.tensor(0.03), atol=1e-3)
