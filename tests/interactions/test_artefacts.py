"""Claims that need no learning: the naive statistic shows the effect, the report says that it is none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neurollm.dictionaries import RandomDirections
from neurollm.interactions.contributions import contributions
from neurollm.interactions.coupling import norm_coupling
from neurollm.interactions.inspection import inspect_weights
from neurollm.interactions.model import NFM
from neurollm.interactions.rows import CodedRows
from neurollm.models import Site
from neurollm.random import stream


class Lengths(RandomDirections):
    """Random directions with decoder norms of two kinds: some as at initialisation, some grown."""

    @property
    def directions(self) -> torch.Tensor:
        """Directions times their norms."""
        return self._directions * torch.from_numpy(two_kinds(self.n_features)).float().sqrt()[:, None]


def two_kinds(n: int) -> np.ndarray:
    """Squared norms around .08 and .36, .26 on average."""
    draw = stream(0, "two kinds")
    return np.where(draw.random(n) < 0.37, draw.normal(0.085, 0.03, n), draw.normal(0.36, 0.05, n)).clip(0.0213)


def frozen(n_features: int, rank: int, d: int, refit: float = 0.0, seed: int = 1) -> NFM:
    """A model as training would begin it."""

    def normal(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(stream(seed, name).standard_normal(shape, dtype=np.float32))

    weights = {"V": 0.05 * normal("V", n_features, rank), "A": normal("A", rank, d)}
    if refit:
        weights |= {"W": refit * normal("W", n_features, d), "b": torch.zeros(d)}
    return NFM(weights, top_n=8)


def test_dual_encoding_of_norms_is_reproduced_by_a_frozen_model():
    """r = −.99, −.94, −.93 and +.99 of bimodal squared decoder norms with shares of norms; means .83 and .71."""
    F = 5000
    a = np.sqrt(two_kinds(F))

    def initial(draw: int) -> tuple[np.ndarray, np.ndarray]:
        rng = stream(2, "initial", draw)
        return 0.01 * np.sqrt(rng.chisquare(3200, F)), 0.05 * np.sqrt(rng.chisquare(300, F))

    b, c = initial(0)
    total = a + b + c
    small = a**2 < 0.2
    naive = {
        name: np.corrcoef(a**2, part / total)[0, 1] for name, part in {"b + c": b + c, "b": b, "c": c, "a": a}.items()
    }
    assert naive["b + c"] < -0.98 and naive["a"] > 0.98 and naive["b"] < -0.9 and naive["c"] < -0.9
    assert ((b + c) / total)[small].mean() == pytest.approx(0.83, abs=0.02)
    assert ((b + c) / total)[~small].mean() == pytest.approx(0.70, abs=0.02)
    table = norm_coupling(a, b, c, [initial(draw) for draw in range(1, 100)])
    shares = table[table["coupled"]]
    assert len(shares) == 8 and (shares["p_init"] > 0.05).all() and (shares["p_shuffled"] > 0.05).all()
    assert shares["excess"].abs().max() < 0.01
    assert (table[~table["coupled"]]["r"].abs() < 0.05).all()


def test_the_report_of_a_frozen_model_finds_no_dual_encoding():
    report = inspect_weights(frozen(400, 30, 40, refit=0.09), Lengths(Site(3), 40, 400))
    shares = report.coupling[report.coupling["coupled"] & (report.coupling["method"] == "pearson")].set_index(
        "quantity"
    )
    assert shares.loc["(b + c) / T", "r"] < -0.95 and (shares["p_init"] > 0.05).all()
    assert "mathematically coupled" in report.verdict()
    assert "each is reproduced by a model that learned nothing" in report.verdict()
    modes = report.modes.set_index("vectors")
    assert modes.loc["decoder rows", "p_uniform"] == 0.001 and modes.loc["V rows", "p_uniform"] > 0.05
    assert "Squared norms of V rows have no second mode" in report.verdict()


def test_the_most_selective_embedding_of_a_frozen_model_is_no_finding():
    """Mean Gini .412, the largest of many far above it, the smallest effective rank far below the mean of 150.8."""
    report = inspect_weights(frozen(1000, 200, 4))
    gini, rank = report.row("V rows", "gini"), report.row("V rows", "effective_rank")
    assert gini["mean"] == pytest.approx(0.412, abs=0.002) and gini["max"] > 0.45
    assert rank["mean"] == pytest.approx(150.8, abs=0.5) and rank["min"] < 140
    assert gini["p_max"] > 0.05 and rank["p_min"] > 0.05
    table = report.features()
    assert table["V_gini_p_fwer"].min() > 0.05 and table["V_effective_rank_p_fwer"].min() > 0.05
    assert "No selective embeddings" in report.verdict() and "None of" in report.verdict()


def test_the_largest_shared_weight_of_a_frozen_model_is_that_of_any_frozen_model():
    """The five largest of many |N(0, .05)| look like partners: the report puts them beside the largest of others."""
    report = inspect_weights(frozen(1500, 12, 4, seed=5))
    largest = report.row("V rows", "max")
    assert largest["max"] > 0.19 > 3.5 * 0.05 and largest["p_max"] > 0.05
    assert report.features()["V_max_p_fwer"].min() > 0.05


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_a_single_feature_drives_no_interaction(readout):
    model = frozen(20, 5, 6)
    if readout == "mlp":
        hidden = {"W1": torch.randn(5, 7), "b1": torch.randn(7), "W2": torch.randn(7, 6)}
        model = NFM({**model.weights, **hidden}, top_n=8)
    single = sp.csr_matrix(np.diag(np.linspace(0.5, 2.5, 20)).astype(np.float32))
    assert not model.interactions(single).any() and not model.interaction(model.interactions(single)).any()
    rows = CodedRows.from_arrays(single, stream(0, "x").standard_normal((20, 6)))
    found = contributions(model, rows)
    assert found.value("energy", "interaction") == 0 and not found.features["interaction"].any()
    assert (found.constant_columns, found.constant_pooled) == (6, 5)


def test_an_interaction_output_that_is_the_same_for_every_item_is_said_to_be_constant():
    model = frozen(4, 3, 6, refit=0.1)
    code = sp.csr_matrix(np.repeat([[1.0, 2.0, 0.0, 0.5]], 40, axis=0).astype(np.float32))
    found = contributions(model, CodedRows.from_arrays(code, stream(0, "x").standard_normal((40, 6))))
    assert found.value("energy", "interaction") > 0 and found.constant_columns == 6 and found.constant_pooled == 3
    assert "the same for every token" in found.verdict()
    varied = sp.csr_matrix(stream(1, "codes").random((40, 4), dtype=np.float32))
    found = contributions(model, CodedRows.from_arrays(varied, stream(0, "x").standard_normal((40, 6))))
    assert found.constant_columns == 0 and "same for every token" not in found.verdict()


def two_parts(loud: str) -> tuple[NFM, CodedRows]:
    """Codes of pairs of features; the error is one component, and the other is loud and beside the point."""
    draw = stream(0, "two parts")
    code = sp.csr_matrix(np.where(draw.random((400, 12)) < 0.3, draw.random((400, 12)) + 0.5, 0).astype(np.float32))
    model = frozen(12, 4, 20, refit=1.0)
    model.weights["A"][:, :10] = 0  # the interaction writes to the last ten dimensions, the refit to the first
    model.weights["W"][:, 10:] = 0
    sizes = {
        "linear": model.linear(code).norm(dim=1).sum(),
        "interaction": model.interaction(model.interactions(code)).norm(dim=1).sum(),
    }
    quiet = "W" if loud == "interaction" else "A"
    ratio = sizes[loud] / sizes["linear" if loud == "interaction" else "interaction"] / 19
    model.weights[quiet] *= ratio  # 5 % of the magnitude
    truth = model.linear(code) if quiet == "W" else model.interaction(model.interactions(code))
    noise = 0.01 * truth.std() * torch.from_numpy(draw.standard_normal(truth.shape, dtype=np.float32))
    return model, CodedRows.from_arrays(code, truth + noise, documents=np.arange(400) // 20)


@pytest.mark.parametrize(("loud", "quiet"), [("linear", "interaction"), ("interaction", "linear")])
def test_a_share_of_magnitude_is_no_share_of_error_explained(loud, quiet):
    model, rows = two_parts(loud)
    found = contributions(model, rows)
    assert found.value("magnitude share", quiet) == pytest.approx(0.05, abs=1e-3)
    assert found.value("error explained", quiet) > 0.99 and found.value("unique", quiet) > 0.99
    assert found.value("magnitude share", loud) == pytest.approx(0.95, abs=1e-3)
    assert found.value("error explained", loud) < 0 and found.value("unique", loud) < 0
    assert found.table.set_index(["quantity", "component"]).loc[("unique", loud), "ci_high"] < 0
