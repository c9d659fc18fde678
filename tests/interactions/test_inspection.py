"""Statistics of weights: values by definition, nulls that hold, training that is found."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from neurollm.dictionaries import RandomDirections, RawUnits
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.interactions.contributions import contributions
from neurollm.interactions.coupling import norm_coupling, rank_p
from neurollm.interactions.inspection import _compared, _familywise, _Model, _table, _vectors, inspect_weights
from neurollm.interactions.model import NFM
from neurollm.interactions.rows import CodedRows
from neurollm.interactions.weight_report import WeightReport
from neurollm.models import Site
from neurollm.random import stream
from neurollm.stats.concentration import effective_rank, gini

F, K, D = 120, 10, 12


def nfm(seed: int = 0, readout: str = "mlp") -> NFM:
    shapes = {"V": (F, K), "A": (K, D), "W": (F, D), "b": (D,)}
    shapes |= {"W1": (K, 6), "b1": (6,), "W2": (6, D)} if readout == "mlp" else {}
    weights = {
        name: torch.from_numpy(0.1 * stream(seed, f"test.{name}").standard_normal(shape, dtype=np.float32))
        for name, shape in shapes.items()
    }
    return NFM(weights, top_n=4)


@pytest.fixture(scope="module")
def trained() -> NFM:
    """Embeddings of which feature 7 has one dimension, and one dimension is large in all."""
    model = nfm()
    model.weights["V"][:, 0] *= 3
    model.weights["V"][7] = 0
    model.weights["V"][7, 3] = 0.4
    model.weights["V"][9] = 0
    model.provenance["embedding_scale"] = 0.1
    return model


@pytest.fixture(scope="module")
def report(trained) -> WeightReport:
    return inspect_weights(trained, RandomDirections(Site(3), D, F), density=np.linspace(0, 0.4, F))


def test_values_are_those_of_the_definitions(report, trained):
    V = trained.weights["V"].numpy().astype(float)
    own = np.delete(V, 9, axis=0)
    row = report.row("V rows", "gini")
    assert row["mean"] == pytest.approx(np.mean([gini(v) for v in own])) and row["undefined"] == 1
    assert row["max"] == pytest.approx(1 - 1 / K) and row["p95"] == pytest.approx(np.quantile(gini(own), 0.95))
    assert report.row("W1 columns", "effective_rank")["min"] == pytest.approx(
        min(effective_rank(w) for w in trained.weights["W1"].numpy().T)
    )
    assert report.row("A rows", "l2")["mean"] == pytest.approx(trained.weights["A"].norm(dim=1).mean().item(), rel=1e-5)
    values = np.linalg.svd(V, compute_uv=False) ** 2
    assert report.spectra.query("vectors == 'V rows'")["share"].to_numpy() == pytest.approx(values / values.sum())
    assert report.row("V rows", "participation_ratio")["mean"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert report.row("V rows", "n90")["mean"] == np.argmax(np.cumsum(values / values.sum()) >= 0.9) + 1
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(F - 1, 1)]
    for name, value in {
        "mean": pairs.mean(),
        "mean_abs": np.abs(pairs).mean(),
        "sd": pairs.std(),
        "max": pairs.max(),
    }.items():
        assert report.row("V rows", f"{name}_cosine")["mean"] == pytest.approx(value, abs=1e-6)
    assert report.row("V rows", "mean_abs_cosine")["expected"] == pytest.approx((2 / (np.pi * K)) ** 0.5, rel=0.05)


def test_training_is_found_and_norms_that_the_null_keeps_are_not_tested(report):
    assert report.row("V rows", "top_share")["p_fwer"] == report.row("V rows", "gini")["p"] == pytest.approx(1 / 21)
    assert report.row("V rows", "gini")["p_max"] == pytest.approx(1 / 21)
    assert np.isnan(report.row("decoder rows", "l2")[["z", "p", "p_min", "p_max", "p_fwer"]].astype(float)).all()
    table = report.features()
    assert table["V_gini"].idxmax() == 7 and table.loc[7, "V_gini_p_fwer"] == pytest.approx(1 / 21)
    assert table.loc[7, "V_l0"] == 1 / K and np.isnan(table.loc[9, ["V_gini", "V_gini_p_fwer"]]).all()
    assert table["decoder_l2_p_fwer"].isna().all() and list(table["density"]) == list(np.linspace(0, 0.4, F))
    assert "feature 7 has the largest Gini coefficient, 0.900" in report.verdict()
    assert "corrected for features" in report.verdict() and "not what they compute" in report.verdict()


def test_nothing_learned_is_found_in_one_of_21_cases():
    model = nfm(readout="linear")
    p = []
    for start in range(0, 16 * 21, 21):
        models = [_Model(_vectors(NFM.random(model, seed).weights, None)) for seed in range(start, start + 21)]
        p.append(_table(models[0], models[1:]).set_index(["vectors", "statistic"])[["p", "p_max", "p_fwer"]])
    for column in ("p", "p_max"):
        for key in (("V rows", "gini"), ("A rows", "l2"), ("V columns", "max")):
            assert 0.3 < np.mean([table.loc[key, column] for table in p]) < 0.7
    assert np.mean([(table["p"] < 0.05).mean() for table in p]) == pytest.approx(1 / 21, abs=0.025)
    assert np.mean([(table["p_fwer"] < 0.05).any() for table in p]) <= 0.15


def test_p_values_by_counting():
    assert _compared(5.0, np.array([1.0, 2.0, 3.0]))[1] == 1 / 4
    assert _compared(2.0, np.array([1.0, 2.0, 3.0]))[1] == 1
    z, p = _compared(2.5, np.array([1.0, 2.0, 3.0]), 1)
    assert (z, p) == (pytest.approx(0.5), 2 / 4) and _compared(2.5, np.array([1.0, 2.0, 3.0]), -1)[1] == 3 / 4
    assert np.isnan(_compared(1.0, np.ones(3))).all()
    z, p = _compared(2.0, np.ones(3))
    assert np.isnan(z) and p == 1 / 4


def test_familywise_p_leaves_out_what_only_one_model_differs_in():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(21, 5))
    values[0, 1] = 50
    values[:, 2], values[3, 2] = 1.0, 2.0
    p = _familywise(values)
    assert p[1] == pytest.approx(1 / 21) and np.isnan(p[2]) and p[0] > 0.05
    rejected = [np.nanmin(_familywise(draw.normal(size=(21, 30)))) < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(rejected) < 0.08


def test_coupling_against_scipy_and_regression():
    draw = np.random.default_rng(1)
    density = np.exp(draw.normal(-4, 1, 300))
    a, c = density**0.2 * np.exp(draw.normal(0, 0.1, 300)), density**0.2 * np.exp(draw.normal(0, 0.1, 300))
    table = norm_coupling(a, None, c, [(None, draw.normal(1, 0.1, 300)) for _ in range(19)], density=density)
    row = table.set_index(["quantity", "method"]).loc[("c", "spearman")]
    assert row["r"] == pytest.approx(spearmanr(a**2, c).statistic) and row["ci_low"] < row["r"] < row["ci_high"]
    assert not row["coupled"] and row["p_init"] == row["p_shuffled"] == 1 / 20
    row = table.set_index(["quantity", "method"]).loc[("c", "pearson")]
    design = np.column_stack([np.ones(300), np.log(density)])
    rests = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in (a**2, c)]
    assert row["partial_r"] == pytest.approx(np.corrcoef(*rests)[0, 1])
    assert abs(row["partial_r"]) < 0.2 < row["r"] and row["p_partial_init"] > 0.05


class Lengths(RandomDirections):
    """Decoder rows of given lengths."""

    def __init__(self, lengths: np.ndarray) -> None:
        super().__init__(Site(3), D, F)
        self.lengths = torch.from_numpy(lengths).float()

    @property
    def directions(self) -> torch.Tensor:
        return self.lengths[:, None] * super().directions


def norms_of_opposite_sign() -> tuple[NFM, Lengths]:
    """Embeddings that grow much faster than decoder rows: c / T rises with a, at random initialisation it falls."""
    model, lengths = nfm(readout="linear"), np.linspace(0.2, 0.6, F)
    del model.weights["W"], model.weights["b"]
    unit = torch.nn.functional.normalize(model.weights["V"], dim=1)
    model.weights["V"] = unit * torch.from_numpy(lengths**4).float()[:, None]
    model.provenance["embedding_scale"] = 0.1
    return model, Lengths(lengths)


def test_a_relation_of_the_other_sign_is_not_reproduced_by_random_initialisation():
    report = inspect_weights(*norms_of_opposite_sign())
    row = report.coupling.set_index(["quantity", "method"]).loc[("c / T", "pearson")]
    assert row["init_max"] < -0.5 and row["r"] > 0.8 and row["p_init"] == pytest.approx(1 / 21)
    assert "unlike those of models that learned nothing: 2 of 2 (p ≤ 0.048" in report.verdict()
    assert "reproduced by a model" not in report.verdict()


def test_a_correlation_of_the_other_sign_and_smaller_size_differs():
    draw = np.random.default_rng(2)
    a = draw.uniform(0.2, 0.6, 500)
    c = a**2 * np.exp(draw.normal(0, 0.25, 500))
    table = norm_coupling(a, None, c, [(None, draw.normal(0.9, 0.03, 500)) for _ in range(20)])
    row = table.set_index(["quantity", "method"]).loc[("c / T", "pearson")]
    assert 0.5 < row["r"] < 0.9 < -row["init_max"] and row["p_init"] == pytest.approx(1 / 21)


def test_rank_p_by_counting():
    null = np.array([-0.97, -0.98, -0.99])
    assert rank_p(0.9, null) == rank_p(-0.5, null) == 1 / 4 and rank_p(-0.98, null) == 1
    draw = np.random.default_rng(0).normal(-0.9, 0.01, (4000, 20))
    assert np.mean([rank_p(row[0], row[1:]) <= 0.05 for row in draw]) == pytest.approx(0.05, abs=0.012)


def test_too_few_random_models_tell_nothing():
    verdict = inspect_weights(*norms_of_opposite_sign(), n_random=5).verdict()
    assert "cannot be told with 5 of them (smallest p possible 0.17, above 0.05)" in verdict
    assert "a model that learned nothing reproduces them cannot be told with 5 draws" in verdict
    assert "Whether any of the embeddings is selective cannot be told with 5 random models" in verdict
    for claim in ("None of", "No selective", "unlike", "is reproduced"):
        assert claim not in verdict
    enough = inspect_weights(*norms_of_opposite_sign(), n_random=19).verdict()
    assert "cannot be told" not in enough and "smallest p possible 0.05" in enough


def test_unit_decoders_have_no_coupling_and_no_modes(report):
    assert report.coupling["r"].isna().all() and "do not vary" in report.verdict()
    assert np.isnan(report.modes.set_index("vectors").loc["decoder rows", "dip"])


def test_a_report_comes_back_and_damage_is_told(report, trained, tmp_path):
    report.save(tmp_path)
    again = WeightReport.load(tmp_path)
    for name in ("table", "feature_table", "coupling", "modes", "spectra", "quantiles"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(report, name))
    assert again.verdict() == report.verdict() and again.fingerprint == trained.fingerprint
    report.table.iloc[:3].to_parquet(tmp_path / "weights_table.parquet")
    with pytest.raises(DataMismatch, match="another report"):
        WeightReport.load(tmp_path)
    (tmp_path / "weights.json").write_text(json.dumps([1]))
    with pytest.raises(DataMismatch, match="cannot be read"):
        WeightReport.load(tmp_path)
    with pytest.raises(InvalidInput, match="no report of weights"):
        WeightReport.load(tmp_path / "nowhere")


def test_without_a_dictionary_a_report_is_saved_too(tmp_path):
    report = inspect_weights(nfm(readout="linear"), n_random=2)
    report.save(tmp_path)
    assert WeightReport.load(tmp_path).coupling.empty and "smallest p possible 0.33" in report.verdict()
    assert inspect_weights(nfm(readout="linear"), n_random=2).to_frame().equals(report.to_frame())


def test_wrong_calls_are_refused(trained, report):
    for wrong in (1, 0, -3, 4.0, "a", True):
        with pytest.raises(InvalidInput, match="n_random must be a whole number of at least 2"):
            inspect_weights(trained, n_random=wrong)
    for wrong in (-1, 0.5, "a"):
        with pytest.raises(InvalidInput, match="random_state must be a whole number of at least 0"):
            inspect_weights(trained, n_random=2, random_state=wrong)
    with pytest.raises(DataMismatch, match="another dictionary"):
        inspect_weights(trained, RandomDirections(Site(3), D, F + 1))
    with pytest.raises(DataMismatch, match="another dictionary"):
        inspect_weights(trained, RawUnits(Site(3), D))
    with pytest.raises(DataMismatch, match="density has shape"):
        inspect_weights(trained, density=np.ones(3))
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        inspect_weights(trained, density=np.full(F, 2.0))
    with pytest.raises(InvalidInput, match="no statistic"):
        report.row("V rows", "charm")


def rows_of(model: NFM, n: int = 300, seed: int = 0) -> CodedRows:
    import scipy.sparse as sp

    code = sp.random(
        n, F, 0.05, "csr", np.float32, np.random.default_rng(seed), lambda k: 1 + stream(seed, "code").random(k)
    )
    error = model.predict(code).numpy() + 0.02 * stream(seed, "noise").standard_normal((n, D))
    return CodedRows.from_arrays(code, error.astype(np.float32), documents=np.arange(n) // 10)


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_contributions_by_definition(readout):
    model = nfm(3, readout)
    rows = rows_of(model)
    found = contributions(model, rows, n_boot=200, batch_size=128)
    batch = next(rows.in_order(1000))
    e, linear, g = (
        part.double().numpy()
        for part in (batch.error, model.linear(batch.code), model.interaction(model.interactions(batch.code)))
    )
    energy, total = (g**2).sum(1).mean(), (e**2).sum()
    assert found.value("energy", "interaction") == pytest.approx(energy)
    assert found.value("energy", "covariance") == pytest.approx(2 * (g * linear).sum(1).mean())
    parts = {"linear": linear, "interaction": g, "both": linear + g}
    explained = {name: 1 - ((e - part) ** 2).sum() / total for name, part in parts.items()}
    for name, value in explained.items():
        assert found.value("error explained", name) == pytest.approx(value)
    assert found.value("unique", "interaction") == pytest.approx(explained["both"] - explained["linear"])
    assert (found.table["ci_low"] <= found.table["value"]).all() and (
        found.table["value"] <= found.table["ci_high"]
    ).all()
    assert found.n_boot == 200 and found.n_documents == 30 and "beyond the linear one" in found.verdict()


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_energies_of_single_features_by_removing_them(readout):
    model = nfm(4, readout)
    rows = rows_of(model, 80)
    table = contributions(model, rows, n_boot=0, batch_size=32).features
    code = model.truncate(next(rows.in_order(1000)).code)
    full = next(rows.in_order(1000)).code
    for feature in (int(np.argmax(full.getnnz(0))), 5):
        without = code.tolil()
        without[:, feature] = 0
        change = model.interaction(model.interactions(code)) - model.interaction(model.interactions(without.tocsr()))
        row = table.loc[feature]
        assert row["interaction"] == pytest.approx((change.double() ** 2).sum(1).mean().item(), rel=1e-4, abs=1e-12)
        squares = full[:, [feature]].power(2).mean() * float(model.weights["W"][feature].square().sum())
        assert row["linear"] == pytest.approx(squares, rel=1e-5) and row["density"] == full[:, [feature]].nnz / 80
    assert np.isnan(table["decoder"]).all()


def test_contributions_of_strangers_are_refused():
    rows = rows_of(nfm())
    with pytest.raises(DataMismatch, match="features"):
        contributions(NFM({"V": torch.ones(3, 2), "A": torch.ones(2, D)}, 2), rows)
    with pytest.raises(InvalidInput, match="n_boot"):
        contributions(nfm(), rows, n_boot=-1)
    with pytest.raises(InvalidInput, match="no quantity"):
        contributions(nfm(), rows, n_boot=0).value("charm", "both")
