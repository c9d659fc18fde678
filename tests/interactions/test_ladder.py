"""The ladder tells planted pairs from linear, third-order and Gaussian truths, and counts what it says it counts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

import neurollm.dictionaries
from neurollm.dictionaries import TopKSAE
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import exclusive
from neurollm.interactions import ladder as module
from neurollm.interactions import ladder_seed
from neurollm.interactions.ladder import residual_ladder
from neurollm.interactions.ladder_result import OVER, LadderResult, SeedErrors
from neurollm.interactions.rows import CodedRows
from neurollm.interactions.simulate import simulate_codes
from neurollm.interactions.training import InteractionTraining
from neurollm.models import Site
from neurollm.random import stream
from neurollm.stats.document_bootstrap import DocumentBootstrap

SIZES = {"n_tokens": 4000, "n_features": 20, "k": 4, "d": 6, "tokens_per_document": 40, "noise": 0.05}
OPTIONS = {"rank": 4, "training": InteractionTraining(batch_size=64), "n_boot": 400, "verbose": 0}
QUICK = OPTIONS | {"n_tokens": 640, "seeds": 2}


@pytest.fixture(scope="module")
def planted_data():
    return simulate_codes(**SIZES, pairs=2, strength=0.1, random_state=1)


@pytest.fixture(scope="module")
def planted(planted_data):
    options = OPTIONS | {"training": InteractionTraining(batch_size=64, learning_rate=0.03)}
    controls = ("shuffled", "gaussian", "frozen", "additive")
    return residual_ladder(planted_data.rows, steps=("M3",), seeds=4, n_tokens=12_000, controls=controls, **options)


@pytest.fixture(scope="module")
def all_steps(planted_data):
    """Every step with three controls, hardly trained."""
    return residual_ladder(planted_data.rows, controls=("shuffled", "gaussian", "frozen"), **QUICK)


def row(result, step, control=""):
    table = result.summary().set_index(["step", "control"])
    return table.loc[(step, control)]


def test_planted_pairs_are_found_and_controls_explain_nothing(planted, planted_data):
    pairs, truth = row(planted, "M3"), planted_data.truth["pairwise"]
    assert 0 < pairs["ci_low"] < pairs["delta_r2"] < pairs["ci_high"] and pairs["p"] < 0.05
    assert 0.5 * truth < pairs["delta_r2"] < 1.1 * truth
    for control in ("shuffled", "gaussian", "frozen"):
        null = row(planted, "M3", control)
        assert abs(null["delta_r2"]) < 0.1 * pairs["delta_r2"], control
        assert null["ci_low"] <= 0, control
    beyond_curves = row(planted, "M3", "additive")
    assert beyond_curves["ci_low"] > 0 and beyond_curves["delta_r2"] == pytest.approx(pairs["delta_r2"], rel=0.3)
    assert beyond_curves["over"] == "M2 additive"
    assert f"curves of single features too ({beyond_curves['delta_r2']:+.5f} [" in planted.verdict()
    decoder = row(planted, "M2")
    assert decoder["ci_low"] > 0 and decoder["delta_r2"] == pytest.approx(planted_data.truth["decoder_error"], rel=0.2)
    assert abs(row(planted, "M2", "shuffled")["delta_r2"]) < 0.01
    assert "the interval excludes 0; beyond a decoder" in planted.verdict() and "No evidence" not in planted.verdict()
    assert "best ridge decoder" in planted.verdict() and "was not run" not in planted.verdict()
    share = pairs["delta_r2"] / (1 - row(planted, "M0")["r2_heldout"])
    assert f"{share:.1%}" in planted.verdict() and f"{pairs['ci_low']:+.5f}" in planted.verdict()


def test_curves_of_single_features_can_pass_for_pairs_and_are_told_from_them():
    """Codes of length 1: the sum of all products of pairs is a constant less the sum of squares."""
    draw = np.random.default_rng(0)
    data = simulate_codes(6000, 12, 5, 4, tokens_per_document=50, pairs=0, random_state=1)
    codes = sp.csr_matrix(data.codes.multiply(1 / np.sqrt(data.codes.power(2).sum(1))), dtype=np.float32)
    truth = codes.power(2) @ draw.normal(size=(12, 4))
    error = truth / truth.std() + 0.1 * draw.normal(size=truth.shape)
    rows = CodedRows.from_arrays(codes, error, documents=data.documents)
    options = OPTIONS | {"rank": 8, "training": InteractionTraining(batch_size=64, learning_rate=0.03)}
    result = residual_ladder(rows, steps=("M3",), seeds=3, controls=["additive"], n_tokens=12_000, **options)
    assert row(result, "M3")["ci_low"] > 0  # though the truth has no pair
    curves, pairs = row(result, "M2", "additive"), row(result, "M3", "additive")
    assert curves["ci_low"] > 0 and curves["over"] == "M2" and curves["n_parameters"] == 3 * 12 * 4 + 4
    assert pairs["ci_low"] <= 0 <= pairs["ci_high"] and pairs["delta_r2"] < 0.01 * row(result, "M3")["delta_r2"]
    words = "No evidence that pairs of features explain any of the dictionary's error beyond curves of single features"
    assert result.verdict().startswith(f"{words} (ΔR² {pairs['delta_r2']:+.5f} [")
    assert "excludes" not in result.verdict() and "the interval contains 0 or less" in result.verdict()


@pytest.mark.parametrize(
    "truth", [{"pairs": 0}, {"kind": "gaussian"}, {"pairs": 0, "triples": 1, "strength": 0.2}], ids=str
)
def test_truths_without_pairs_give_an_interval_that_holds_zero(truth):
    data = simulate_codes(**SIZES, random_state=2, **truth)
    result = residual_ladder(data.rows, steps=("M3",), seeds=3, controls=(), n_tokens=8_000, **OPTIONS)
    pairs = row(result, "M3")
    assert pairs["ci_low"] <= 0 <= pairs["ci_high"] and abs(pairs["delta_r2"]) < 0.01
    assert row(result, "M2")["ci_low"] > 0
    assert "No evidence" in result.verdict() and "contains 0" in result.verdict() and "excludes" not in result.verdict()
    assert "neither shuffled codes nor a truth without pairs were run" in result.verdict()


def test_the_interval_excludes_zero_no_more_often_than_it_says():
    """Small data sets with additive truth, of which M3 has much to overfit."""
    found, n = 0, 20
    for seed in range(n):
        data = simulate_codes(900, 12, 4, 3, pairs=0, tokens_per_document=30, noise=0.4, random_state=seed)
        options = OPTIONS | {"seeds": 3, "n_tokens": 1000, "random_state": seed}
        result = residual_ladder(data.rows, steps=("M3",), controls=(), **options)
        pairs = row(result, "M3")
        found += not pairs["ci_low"] <= 0 <= pairs["ci_high"]
        assert ("excludes 0" in result.verdict()) == (pairs["ci_low"] > 0)
    assert found <= scipy.stats.binom.ppf(0.999, n, 0.05)


def simulated_result(seed, cross_fitted, effect=0.0, n_documents=60, J=5):
    """Gains of heavy-tailed documents, of which some part belongs to the document and some to the seed."""
    draw = stream(seed, "simulated ladder")
    totals, own = draw.gamma(2, 50, n_documents), draw.standard_t(4, n_documents)
    seeds = []
    for j in range(J):
        mine = np.arange(n_documents)[j::J] if cross_fitted else np.arange(n_documents)
        gain = effect + 0.02 * own[mine] + 0.005 * draw.standard_normal() + 0.01 * draw.standard_normal(len(mine))
        base = 0.3 * totals[mine]
        squared = {"M0": base, "M1": base, "M2": base, "M3": base - gain * totals[mine]}
        seeds.append(
            SeedErrors(
                j, mine, totals[mine], squared, dict.fromkeys(squared, 1), dict.fromkeys(squared, np.nan), 10, 10, 10
            )
        )
    return LadderResult(tuple(seeds), cross_fitted, 200, 0, {})


@pytest.mark.parametrize("cross_fitted", [True, False])
def test_intervals_over_documents_and_seeds_hold_the_truth(cross_fitted):
    n = 250
    hits = powers = 0
    for seed in range(n):
        found = simulated_result(seed, cross_fitted)._pooled("M3", "M2")
        hits += found["ci_low"] <= 0 <= found["ci_high"]
        assert (found["p"] > 0.05) == (found["ci_low"] <= 0 <= found["ci_high"])
        powers += simulated_result(seed, cross_fitted, effect=0.03)._pooled("M3", "M2")["ci_low"] > 0
    assert scipy.stats.binom.ppf(0.001, n, 0.95) <= hits and powers > 0.8 * n


def test_the_formula_of_the_pooled_interval():
    for cross_fitted in (True, False):
        result = simulated_result(3, cross_fitted, effect=0.01)
        gains, errors = [], []
        for one in result.seeds:
            lowered = one.squared["M2"] - one.squared["M3"]
            ratio, n = lowered.sum() / one.totals.sum(), len(one.documents)
            gains.append(ratio)
            errors.append(n / (n - 1) * np.square(lowered - ratio * one.totals).sum() / one.totals.sum() ** 2)
        spread = np.var(gains, ddof=1)
        if cross_fitted:
            variance = np.sum(errors) / 25 + spread / 4
        else:
            lowered = np.mean([one.squared["M2"] - one.squared["M3"] for one in result.seeds], axis=0)
            shared = DocumentBootstrap(60, 200, 0).estimate([lowered], [result.seeds[0].totals])
            width = (shared.high - shared.value) / scipy.stats.norm.ppf(0.975)
            variance = width**2 + spread / 5
            assert width != pytest.approx(shared.se, rel=0.01)  # documents with heavy tails
        half = scipy.stats.t.ppf(0.975, 4) * np.sqrt(variance)
        found = result._pooled("M3", "M2")
        expected = {"delta_r2": np.mean(gains), "ci_low": np.mean(gains) - half, "ci_high": np.mean(gains) + half}
        expected |= {"sd_seeds": np.sqrt(spread), "p": 2 * scipy.stats.t.sf(np.mean(gains) / np.sqrt(variance), 4)}
        assert found == pytest.approx(expected)


def of_errors(values, n_documents, cross_fitted=True):
    """A result whose seeds gain these shares, the same on every document; totals are of one size."""
    seeds = []
    for j, value in enumerate(values):
        documents = np.arange(n_documents) + (n_documents * j if cross_fitted else 0)
        base = np.full(n_documents, 64.0)
        squared = {"M0": base, "M1": base, "M2": base, "M3": base - 128 * value}
        numbers = (dict.fromkeys(squared, 1), dict.fromkeys(squared, np.nan), 10, 10, 10)
        seeds.append(SeedErrors(j, documents, np.full(n_documents, 128.0), squared, *numbers))
    return LadderResult(tuple(seeds), cross_fitted, 200, 0, {})


def test_fewer_documents_than_ten_have_no_interval():
    for cross_fitted in (True, False):
        enough, few = (simulated_result(1, cross_fitted, 0.03, n, J=3) for n in (10, 9))
        assert np.isfinite([row(enough, "M3")[name] for name in ("ci_low", "ci_high", "p")]).all()
        assert np.isnan([row(few, "M3")[name] for name in ("ci_low", "ci_high", "p")]).all()
        assert np.isfinite(row(few, "M3")["delta_r2"]) and row(few, "M3")["sd_seeds"] > 0
        assert few.verdict().startswith("Too few documents for an interval")
        assert "excludes" not in few.verdict() and "No evidence" not in few.verdict()
    table = simulated_result(1, False, 0.03, 9, J=3).to_frame()
    assert table["ci_low"].isna().all() and table["delta_r2"].notna().sum() == 9


def test_many_seeds_on_few_documents_have_the_degrees_of_freedom_of_the_documents():
    values = np.linspace(0.0, 1 / 64, 20)
    for cross_fitted, n, df in ((False, 12, 11), (False, 40, 19), (True, 12, 19)):
        found = of_errors(values, n, cross_fitted)._pooled("M3", "M2")  # documents do not differ
        se = np.sqrt(values.var(ddof=1) / (19 if cross_fitted else 20))
        half = scipy.stats.t.ppf(0.975, df) * se
        assert found["ci_high"] - found["delta_r2"] == pytest.approx(half)
        assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(values.mean() / se, df))


@pytest.mark.parametrize("cross_fitted", [True, False])
def test_p_is_never_0_and_undefined_without_spread(cross_fitted):
    steady = of_errors([1 / 8] * 4, 20, cross_fitted)._pooled("M3", "M2")  # dyadic: exact
    assert steady["delta_r2"] == 1 / 8 and steady["sd_seeds"] == 0
    assert np.isnan([steady[name] for name in ("ci_low", "ci_high", "p")]).all()
    nothing = of_errors([0.0] * 4, 20, cross_fitted)._pooled("M3", "M2")
    assert [nothing[name] for name in ("delta_r2", "ci_low", "ci_high", "p")] == [0, 0, 0, 1]
    J = 40  # nearly without spread, far from 0: t is beyond what floats hold
    certain = of_errors(1 / 8 + 1e-12 * np.arange(J), 50, cross_fitted)._pooled("M3", "M2")
    assert 0 < certain["p"] < 1e-300 and certain["ci_low"] > 0


def dense_of(data, documents):
    inside = np.isin(data.documents, documents)
    x = data.activations[inside].astype(float)
    codes = data.codes[inside].toarray().astype(float)
    return codes, x, x - codes @ data.reconstruction[:-1] - data.reconstruction[-1]


def test_shares_by_hand(all_steps, planted_data):
    """M0 to M2 from the arrays; gains from the squared errors."""
    data, table = planted_data, all_steps.to_frame()
    for one in all_steps.seeds:
        inside = np.setdiff1d(np.unique(data.documents), one.documents)
        rows = data.rows.of_documents(inside)
        fit, validation = ladder_seed.split_documents(rows, 0.1, one.seed)
        assert one.n_fit == fit.n_rows and not set(validation.documents) & set(one.documents)
        codes, x, error = dense_of(data, np.unique(fit.documents))
        held, held_x, held_error = dense_of(data, one.documents)
        total = np.square(held_x - x.mean(0)).sum()
        refit = ladder_seed.Refit(fit, validation).linear
        centred = codes - codes.mean(0)
        spread = np.square(centred).sum(0)
        ridge = refit.penalty * np.median(spread[np.ptp(codes, axis=0) > 0]) * np.eye(codes.shape[1])
        W = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (error - error.mean(0)))
        predicted = [0, error.mean(0), error.mean(0) + (held - codes.mean(0)) @ W]
        by_hand = [1 - np.square(held_error - one_prediction).sum() / total for one_prediction in predicted]
        mine = table[table["seed"] == one.seed].set_index("step")
        assert np.allclose(mine.loc[["M0", "M1", "M2"], "r2_heldout"], by_hand, atol=1e-6)
        for step, over in OVER.items():
            gain = mine.loc[step, "r2_heldout"] - mine.loc[over, "r2_heldout"]
            assert mine.loc[step, "delta_r2"] == pytest.approx(gain, abs=1e-12) and mine.loc[step, "over"] == over
            boot = DocumentBootstrap(len(one.documents), 400, 0)
            known = boot.estimate([one.squared[over] - one.squared[step]], [one.totals])
            assert (mine.loc[step, "ci_low"], mine.loc[step, "ci_high"]) == (known.low, known.high)
        null = (one.squared["M2"] - one.squared["M3 shuffled"]).sum() / one.totals.sum()
        assert mine.loc["M3", "null"] == pytest.approx(null)
        explained = 1 - one.squared["M4"].sum() / one.squared["M0"].sum()
        assert mine.loc["M4", "error_explained"] == pytest.approx(explained)


def test_every_document_is_held_out_once_and_never_fitted(planted_data, monkeypatch):
    seen = []
    made = ladder_seed.Rungs.__init__

    def spy(self, *arguments):
        made(self, *arguments)
        seen.append([set(part.documents) for part in (self.fit, self.validation, self.test)])

    monkeypatch.setattr(ladder_seed.Rungs, "__init__", spy)
    residual_ladder(planted_data.rows, steps=["M1"], seeds=4, controls=(), n_boot=100, verbose=0)
    assert len(seen) == 4
    for fit, validation, test in seen:
        assert not fit & validation and not (fit | validation) & test and len(fit | validation | test) == 100
    assert sorted(document for _, _, test in seen for document in test) == list(range(100))
    assert [len(test) for _, _, test in seen] == [25] * 4


def test_tables_have_a_row_for_everything(all_steps):
    table = all_steps.to_frame()
    assert [name for name in table if name in ("step", "seed", "r2_heldout", "delta_r2", "ci_low", "ci_high", "null")]
    assert {"step", "seed", "r2_heldout", "delta_r2", "ci_low", "ci_high", "null"} <= set(table.columns)
    assert table["step"].tolist() == 2 * ["M0", "M1", "M2", "M3", "M4", "M5"]
    assert table["seed"].tolist() == 6 * [0] + 6 * [1]
    assert table.loc[table["step"] == "M0", ["delta_r2", "ci_low", "null"]].isna().all(None)
    assert table.loc[~table["step"].isin(["M0", "M1"]), ["delta_r2", "ci_low", "ci_high", "null"]].notna().all(None)
    assert (table["ci_low"] <= table["delta_r2"]).sum() == 10 == (table["delta_r2"] <= table["ci_high"]).sum()
    F, d, K = 20, 6, 4
    plain, M4 = F * d + d, F * d + d + F * K + K * K + K + 2 * K * d
    sizes = [0, d, plain, plain + F * K + K * d, M4]
    assert table["n_parameters"].tolist()[:5] == sizes
    assert table["n_parameters"][5] == pytest.approx(M4, abs=(F + d + 1) / 2)  # M5: to half a hidden unit
    assert set(table["n_tokens"][3:6]) == {640}
    summary = all_steps.summary()
    assert summary["step"].tolist()[:6] == ["M0", "M1", "M2", "M3", "M4", "M5"]
    assert summary["control"].tolist()[6:] == 4 * ["shuffled"] + 4 * ["gaussian"] + ["frozen"]
    means = table.groupby("step")[["r2_heldout", "delta_r2", "error_explained"]].mean()
    steps = summary[summary["control"] == ""].set_index("step")
    pd.testing.assert_frame_equal(steps[means.columns], means, check_like=True)
    assert (summary["n_seeds"] == 2).all()
    summary.loc[:, "delta_r2"] = 0.0  # a copy: the result is not changed
    assert all_steps.summary()["delta_r2"].abs().max() > 0
    assert "An MLP of the code" in all_steps.verdict()


def with_gains(low_gain, shuffled=None, additive=None, J=4):
    """A result whose gains of M3 over M2 lie around a value."""
    draw, seeds = stream(0, "gains"), []
    for j in range(J):
        totals = np.full(20, 100.0)
        squared = dict.fromkeys(("M0", "M1", "M2"), 30 + draw.random(20))
        squared["M3"] = squared["M2"] - 100 * low_gain + draw.standard_normal(20)
        if shuffled is not None:
            squared["M3 shuffled"] = squared["M2"] - 100 * shuffled + draw.standard_normal(20)
        if additive is not None:
            squared["M2 additive"] = squared["M2"] - 1
            squared["M3 additive"] = squared["M2 additive"] - 100 * additive + draw.standard_normal(20)
        documents = np.arange(20 * j, 20 * j + 20)
        seeds.append(
            SeedErrors(
                j, documents, totals, squared, dict.fromkeys(squared, 1), dict.fromkeys(squared, np.nan), 10, 10, 10
            )
        )
    return LadderResult(tuple(seeds), True, 200, 0, {})


def small(n_documents, size=30):
    return simulate_codes(n_documents * size, 12, 4, 3, tokens_per_document=size)


def test_the_verdict_says_what_the_interval_says():
    above, around, below = (with_gains(gain) for gain in (0.05, 0.0, -0.05))
    assert row(above, "M3")["ci_low"] > 0 > row(below, "M3")["ci_high"]
    assert row(around, "M3")["ci_low"] < 0 < row(around, "M3")["ci_high"]
    assert above.verdict().startswith("Pairs of features, or curves of single ones, explain 16")
    assert "the interval excludes 0; the control additive, which tells the two apart, was not run" in above.verdict()
    assert "No evidence" in around.verdict() and "contains 0" in around.verdict()
    assert "excludes" not in around.verdict() + below.verdict() and "contains" not in above.verdict() + below.verdict()
    assert "worse than the best ridge decoder" in below.verdict()
    beyond, curves, worse = (with_gains(0.05, additive=gain) for gain in (0.04, 0.0, -0.04))
    share = row(beyond, "M3")["delta_r2"] / (1 - row(beyond, "M0")["r2_heldout"])
    assert beyond.verdict().startswith(f"Pairs of features explain {share:.1%} of the dictionary's error beyond the ")
    assert "No evidence" not in beyond.verdict()
    assert "the interval excludes 0; beyond a decoder with curves of single features too (+0.0" in beyond.verdict()
    for one in (curves, worse):
        assert row(one, "M3")["ci_low"] > 0 >= row(one, "M3", "additive")["ci_low"]
        assert one.verdict().startswith(
            "No evidence that pairs of features explain any of the dictionary's error beyond "
        )
        assert "beyond curves of single features" in one.verdict() and "excludes" not in one.verdict()
    assert not any("was not run" in one.verdict() for one in (beyond, curves, worse, around, below))
    assert "should explain nothing has an interval above 0" in with_gains(0.05, shuffled=0.04).verdict()
    assert "should explain nothing" not in with_gains(0.05, shuffled=0.0).verdict()
    with_two = residual_ladder(small(30).rows, steps=["M2"], controls=(), **QUICK)
    assert "no pairs were asked for" in with_two.verdict() and "decoder refit" in with_two.verdict()


def assert_equal(one, other):
    assert len(one.seeds) == len(other.seeds)
    for a, b in zip(one.seeds, other.seeds, strict=True):
        assert a.squared.keys() == b.squared.keys() and a.parameters == b.parameters
        assert np.array_equal(a.documents, b.documents) and np.array_equal(a.totals, b.totals)
        assert all(np.array_equal(a.squared[name], b.squared[name]) for name in a.squared)
        assert (a.seed, a.n_fit, a.n_test, a.n_tokens) == (b.seed, b.n_fit, b.n_test, b.n_tokens)


def test_saved_and_loaded_it_is_the_same(all_steps, tmp_path):
    path = all_steps.save(tmp_path / "ladder")
    loaded = LadderResult.load(path)
    assert_equal(all_steps, loaded)
    assert_equal(all_steps, LadderResult.load(tmp_path / "ladder"))
    pd.testing.assert_frame_equal(all_steps.to_frame(), loaded.to_frame())
    pd.testing.assert_frame_equal(all_steps.summary(), loaded.summary())
    assert loaded.verdict() == all_steps.verdict() and loaded.description == all_steps.description
    assert loaded.notes == all_steps.notes and loaded.cross_fitted is True


@pytest.mark.parametrize(
    "how", ["cut arrays", "no arrays", "cut json", "list", "version", "no seeds", "not a zip", "no p", "short"]
)
def test_a_damaged_ladder_is_refused(all_steps, tmp_path, how):
    path = all_steps.save(tmp_path)
    arrays, record = tmp_path / "ladder.npz", json.loads(path.read_text())
    if how == "cut arrays":
        arrays.write_bytes(arrays.read_bytes()[:-200])
    elif how == "no arrays":
        arrays.unlink()
    elif how == "not a zip":
        arrays.write_bytes(b"PK" + b"nonsense" * 30)
    elif how == "no p":
        record["seeds"][0]["p"] = None
        path.write_text(json.dumps(record))
    elif how == "short":
        with np.load(arrays) as stored:
            np.savez(arrays, **(dict(stored) | {"0 squared M3": stored["0 squared M3"][:-1]}))
    else:
        text = {"cut json": path.read_text()[:80], "list": "[]"}.get(how)
        changed = record | ({"version": 99} if how == "version" else {"seeds": []})
        path.write_text(text or json.dumps(changed))
    with pytest.raises(DataMismatch) as refusal:
        LadderResult.load(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_what_is_no_ladder_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="not a saved ladder"):
        LadderResult.load(tmp_path)
    with pytest.raises(InvalidInput, match="not a saved ladder"):
        LadderResult.load(tmp_path / "ladder.json")
    (tmp_path / "ladder.json").write_text("{}")
    with pytest.raises(InvalidInput, match="not a saved ladder"):
        LadderResult.load(tmp_path / "ladder.json")


class Killed(Exception):
    """Stands for a process that ends."""


def test_an_interrupted_ladder_goes_on(planted_data, tmp_path, monkeypatch):
    options = QUICK | {"steps": ("M3", "M5"), "controls": ("shuffled", "gaussian")}
    whole = residual_ladder(planted_data.rows, **options)
    learn, made = ladder_seed.learn, []

    def counted(learner, n_tokens, checkpoint=None, verbose=0):
        made.append(checkpoint.run["model"] + f" {checkpoint.run['seed']}")
        if len(made) == 8:  # of 2 · 6 learned models
            raise Killed
        return learn(learner, n_tokens, checkpoint, verbose)

    monkeypatch.setattr(ladder_seed, "learn", counted)
    with pytest.raises(Killed):
        residual_ladder(planted_data.rows, out=tmp_path, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    first = made[:]
    resumed = residual_ladder(planted_data.rows, out=tmp_path, **options)
    assert_equal(whole, resumed)
    assert made[8:] == [first[7], *made[9:]] and len(made) == 8 + 5 and len(set(made)) == 12
    assert before and all(path.stat().st_mtime_ns == then for path, then in before.items())
    residual_ladder(planted_data.rows, out=tmp_path, **options)
    assert len(made) == 13  # nothing is left to learn
    more = residual_ladder(planted_data.rows, out=tmp_path, **(options | {"controls": ("frozen",)}))
    assert len(made) == 13 and "M3 frozen" in more.seeds[0].squared  # other controls join in the same folder
    assert not list(tmp_path.rglob("checkpoint*"))
    for change in ({"rank": 5}, {"random_state": 1}, {"n_tokens": 700}, {"seeds": 3}, {"top_n": 3}):
        with pytest.raises(DataMismatch, match=next(iter(change))):
            residual_ladder(planted_data.rows, out=tmp_path, **(options | change))
    file = tmp_path / "seed-1" / "M3.npy"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataMismatch, match=r"M3\.npy"):
        residual_ladder(planted_data.rows, out=tmp_path, **options)
    shutil.rmtree(tmp_path / "seed-1")
    (tmp_path / module.RECORD).write_text("{")
    with pytest.raises(DataMismatch, match="cannot be read"):
        residual_ladder(planted_data.rows, out=tmp_path, **options)


def test_held_out_texts_judge_every_seed(planted_data):
    fit, test = (planted_data.rows.of_documents(np.arange(*span)) for span in ((0, 80), (80, 100)))
    result = residual_ladder(fit, held_out=test, steps=("M3",), controls=("frozen",), **QUICK)
    assert not result.cross_fitted and all(np.array_equal(one.documents, np.arange(80, 100)) for one in result.seeds)
    assert [one.n_fit for one in result.seeds] == [2880, 2880] and {one.n_test for one in result.seeds} == {800}
    assert np.array_equal(result.seeds[0].squared["M0"], result.seeds[1].squared["M0"])
    assert not np.array_equal(result.seeds[0].squared["M3"], result.seeds[1].squared["M3"])
    few = fit.of_documents(np.arange(4))  # no fold is needed
    half = InteractionTraining(batch_size=64, validation=0.5)
    options = {"steps": ("M2",), "controls": (), **QUICK, "seeds": 5, "training": half}
    assert {one.n_fit for one in residual_ladder(few, held_out=test, **options).seeds} == {80}
    for overlapping in (fit, planted_data.rows, planted_data.rows.of_documents(np.array([79, 99]))):
        shared = len(np.intersect1d(overlapping.documents, fit.documents))
        with pytest.raises(InvalidInput, match=f"held_out shares {shared} documents with the store"):
            residual_ladder(fit, held_out=overlapping, **QUICK)
    copied = CodedRows.from_arrays(  # ten documents of others and one of these, under other numbers
        planted_data.codes[3160:3600], planted_data.activations[3160:3600], documents=np.repeat(np.arange(11), 40)
    )
    with pytest.raises(InvalidInput, match=r"held_out shares 1 documents with the store \('79'\)"):
        residual_ladder(fit, held_out=copied, **QUICK)
    nine = planted_data.rows.of_documents(np.arange(91, 100))
    with pytest.raises(InvalidInput, match=r"held_out has 9 documents; .* at least 10"):
        residual_ladder(fit, held_out=nine, **QUICK)


def test_each_part_of_a_seed_has_two_documents(monkeypatch):
    """Or nothing is trained."""
    options = {"steps": ("M2",), "controls": ()} | QUICK
    assert len(residual_ladder(small(30).rows, **options).seeds) == 2
    monkeypatch.setattr(ladder_seed, "Refit", None)
    data = small(30).rows
    share = {name: InteractionTraining(batch_size=64, validation=name) for name in (0.01, 0.99)}
    ten, others = data.of_documents(np.arange(10)), data.of_documents(np.arange(10, 30))
    cases = [
        (data.of_documents(np.arange(20)), "to choose penalties by", {}),  # a tenth of 10 documents
        (data, "to choose penalties by", {"training": share[0.01]}),
        (data, "to fit", {"training": share[0.99]}),
        (others, "to fit", {"training": share[0.99], "held_out": ten}),
        (data.of_documents(np.arange(10, 13)), "to choose penalties by", {"held_out": ten}),
    ]
    for rows, part, change in cases:
        with pytest.raises(InvalidInput, match=f"only one document is left {part}; .* two of each kind") as refusal:
            residual_ladder(rows, **(options | change))
        assert "\n" not in str(refusal.value)
    with pytest.raises(InvalidInput, match="19 documents are too few for 10 seeds"):
        residual_ladder(data.of_documents(np.arange(19)), **(options | {"seeds": 10}))


def test_held_out_texts_of_another_dictionary_are_refused(planted_data):
    draw = np.random.default_rng(0)
    codes, x = sp.random(100, 20, 0.3, format="csr", random_state=0), draw.normal(size=(100, 6))

    def rows(features=20, width=6, seed=None):
        other = CodedRows.from_arrays(codes[:, :features], x[:, :width], documents=np.arange(100) // 5)
        if seed is not None:
            shapes = {"W_enc": (6, 20), "W_dec": (20, 6), "b_enc": (20,), "b_dec": (6,)}
            weights = {name: torch.full(shape, float(seed)) for name, shape in shapes.items()}
            other.dictionary = TopKSAE(Site(0), weights, 4)
        return other

    for one, other in ((rows(), rows(features=19)), (rows(), rows(width=5)), (rows(seed=1), rows(seed=2))):
        with pytest.raises(DataMismatch, match="held_out"):
            residual_ladder(one, held_out=other, steps=["M1"], controls=(), **QUICK)


def test_the_residual_sae_truly_trains(planted_data, monkeypatch):
    """The exploratory control stayed where it began; this one must beat its own untrained self by far."""
    trained, train = [], neurollm.dictionaries.train_dictionary

    def spy(*arguments, **options):
        trained.append(train(*arguments, **options))
        return trained[-1]

    monkeypatch.setattr(neurollm.dictionaries, "train_dictionary", spy)
    options = QUICK | {"n_tokens": 40_000, "top_n": 3}
    result = residual_ladder(planted_data.rows, steps=["M0"], controls=["residual_sae"], **options)
    assert [sae.n_features for sae in trained] == [20, 21, 20, 21] and {sae.k for sae in trained} == {3}
    for sae in trained:
        begun = neurollm.dictionaries.random_sae(sae, 0).directions
        cosine = torch.nn.functional.cosine_similarity(sae.directions, begun)
        assert cosine.abs().max() < 0.99 or (cosine < 0.9).float().mean() > 0.5  # directions have turned
    left = {}
    for name in ("residual SAE", "residual SAE, weights of M4", "residual SAE, untrained"):
        left[name] = row(result, "", name)["error_explained"]
        assert row(result, "", name)["over"] == "M0"
    assert left["residual SAE"] > 0.5 and left["residual SAE, weights of M4"] > 0.5
    assert left["residual SAE, untrained"] < left["residual SAE"] - 0.3
    sizes = result.summary().set_index("control")["n_parameters"]
    F, d, K = 20, 6, 4
    assert sizes["residual SAE, weights of M4"] == pytest.approx(
        F * d + d + F * K + K * K + K + 2 * K * d, abs=(2 * d + 1) / 2
    )


def test_the_gaussian_truth_is_what_it_says(planted_data):
    """M2 and noise of the covariance that M2 leaves: a refit finds M2 again, and nothing else is there."""
    rows = planted_data.rows
    options = OPTIONS["training"].resolve()
    run = {"random_state": 0, "n_tokens": 100, "rank": 4, "top_n": 20, "n_perm": 19}
    seed = ladder_seed.Rungs(
        rows.of_documents(np.arange(80)),
        rows.of_documents(np.arange(80, 100)),
        0,
        run,
        options,
        None,
    )
    made, linear = seed._parts("gaussian"), seed._refit("").linear
    fit = next(made[0].in_order(10_000))
    noise = fit.error.numpy() - linear.predict(fit)
    real = next(seed.fit.in_order(10_000))
    left = real.error.numpy() - linear.predict(real)
    covariance = left.T @ left / len(left)
    assert np.allclose(noise.T @ noise / len(noise), covariance, atol=0.1 * covariance.diagonal().max())
    assert scipy.stats.kstest(noise[:, 0] / noise[:, 0].std(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.06  # no part of documents
    assert np.allclose(seed._refit("gaussian").linear.W, linear.W, atol=0.1)
    streams = [next(part.in_order(100)).error.numpy() - linear.predict(next(part.in_order(100))) for part in made]
    assert not np.allclose(streams[0], streams[1]) and not np.allclose(streams[1], streams[2])


def test_a_control_that_does_not_fit_into_memory_is_left_out_and_said(planted_data, monkeypatch):
    monkeypatch.setattr("neurollm.interactions.rows.MOST_IN_MEMORY", 1000)
    result = residual_ladder(planted_data.rows, steps=("M3",), controls=("gaussian", "frozen"), **QUICK)
    assert {note.split(" were")[0].split(" was")[0] for note in result.notes} == {
        "permutations",
        "the control gaussian",
    }
    assert "M3 gaussian" not in result.seeds[0].squared
    assert "M3 frozen" in result.seeds[0].squared


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": ("M6",)},
        {"steps": "M3"},
        {"steps": ()},
        {"controls": ("none",)},
        {"controls": "frozen"},
        {"seeds": 1},
        {"seeds": 60},
        {"seeds": 1001},
        {"seeds": 2.5},
        {"seeds": True},
        {"steps": None},
        {"controls": None},
        {"n_perm": 18},
        {"n_perm": True},
        {"n_perm": 19.5},
        {"random_state": -1},
        {"random_state": 0.5},
        {"random_state": True},
        {"training": {"batch_size": 64}},
        {"rank": 0},
        {"rank": 1.5},
        {"n_tokens": -1},
        {"top_n": 1},
        {"n_boot": 99},
        {"n_boot": 200.5},
        {"n_boot": True},
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_sentence_before_anything_is_trained(planted_data, wrong, monkeypatch):
    monkeypatch.setattr(module, "Rungs", None)
    with pytest.raises(InvalidInput, match=next(iter(wrong))) as refusal:
        residual_ladder(planted_data.rows, **(QUICK | wrong))
    assert "\n" not in str(refusal.value)


def test_permutations_pair_held_out_documents_anew(planted_data):
    """A planted pair depends on the pairing; with additive truth nothing is learned, and p is 1."""
    kept = OPTIONS | {"n_tokens": 40_000, "seeds": 2, "steps": ["M3"], "controls": (), "n_perm": 39}
    table = residual_ladder(planted_data.rows, **kept).to_frame().set_index("step")
    assert (table.loc["M3", "p_permutation"] == 1 / 40).all() and table.loc[
        ["M0", "M1", "M2"], "p_permutation"
    ].isna().all()
    additive = simulate_codes(**SIZES, pairs=0, random_state=3).rows
    table = residual_ladder(additive, **kept | {"n_tokens": 640}).to_frame().set_index("step")
    assert (table.loc["M3", "p_permutation"] > 0.05).all()


def test_two_ladders_do_not_write_into_one_folder(planted_data, tmp_path):
    with exclusive(tmp_path), pytest.raises(InvalidInput, match="another process is writing here"):
        residual_ladder(planted_data.rows, steps=["M1"], seeds=2, controls=(), out=tmp_path, verbose=0)
