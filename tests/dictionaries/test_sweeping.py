"""Sweeps: every dictionary is the one that is trained alone, and the table is what is measured on it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from neurollm.dictionaries import TopKTraining, evaluate_dictionary, load_dictionary, train_dictionary
from neurollm.dictionaries.held_out import DENSITY_FILE, measure, saved_metrics
from neurollm.dictionaries.sweeping import Grid, SweepResult, sweep_dictionaries
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site
from neurollm.plotting.scaling import plot_scaling

WIDTHS = (12, 16, 24, 48)
TRAINING = TopKTraining(batch_size=128, log_every=10)


@pytest.fixture(scope="module")
def stores(script):
    """Training data and held-out data from the same directions."""
    acts = script.planted(n=6_000, d=16, n_features=32)[0]
    return script.MemoryStore(acts[:4_000]), script.MemoryStore(acts[4_000:])


def sweep(stores, out, widths=WIDTHS, **changes):
    options = {"tokens": (1_000, 2_000), "seeds": (0, 1), "k": 3, "training": TRAINING} | changes
    return sweep_dictionaries(*stores, widths, out=out, verbose=0, **options)


@pytest.fixture(scope="module")
def finished(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return out, sweep(stores, out)


def stamps(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("*/*")}


def test_a_row_is_what_is_measured_on_its_dictionary(finished, stores):
    out, result = finished
    table = result.to_frame()
    assert len(table) == 16 and table["name"].is_unique
    for row in table.to_dict("records")[::5]:
        metrics = evaluate_dictionary(load_dictionary(out / row["name"]), stores[1])
        assert (row["n_features"], row["held_out_tokens"]) == (len(metrics.density), 2_000)
        for name in ("fvu", "ev", "l0", "dead", "gini", "decoder_cosine_p95"):
            assert row[name] == pytest.approx(metrics.to_dict()[name], rel=1e-12)


def test_a_dictionary_of_a_sweep_is_that_of_a_training_alone(finished, stores):
    out, _ = finished
    alone = train_dictionary(stores[0], "topk", 24, 3, 2_000, 1, training=TRAINING, verbose=0)
    swept = load_dictionary(out / "features-24-tokens-2000-seed-1")
    for name, weight in alone.weights.items():
        assert torch.equal(weight, swept.weights[name])


def test_a_second_call_does_nothing_and_a_larger_one_only_the_rest(finished, stores):
    out, result = finished
    before = stamps(out)
    pd.testing.assert_frame_equal(sweep(stores, out).table, result.table)
    assert stamps(out) == before
    more = sweep(stores, out, (*WIDTHS, 20))
    assert {file: stamp for file, stamp in stamps(out).items() if file in before} == before
    assert len(more.table) == 20


def test_saving_and_loading(finished, tmp_path):
    _, result = finished
    result.save(tmp_path)
    again = SweepResult.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    assert again.law == result.law
    assert json.loads((tmp_path / "sweep.json").read_text())["law"]["alpha"] == result.law.alpha
    (tmp_path / "sweep.csv").write_text(result.table.drop(columns="fvu").to_csv(index=False))
    with pytest.raises(DataMismatch, match="column 'fvu' is missing or damaged"):
        SweepResult.load(tmp_path)
    (tmp_path / "sweep.csv").write_text('"')
    with pytest.raises(DataMismatch, match="sweep is damaged"):
        SweepResult.load(tmp_path)
    with pytest.raises(InvalidInput, match="holds no sweep"):
        SweepResult.load(tmp_path / "none")


def test_k_is_a_number_or_a_share():
    assert [plan.k for plan in Grid(widths=WIDTHS, k=5, seeds=(0,)).plans("x")] == [5, 5, 5, 5]
    assert [plan.k for plan in Grid(widths=WIDTHS, k=0.1, seeds=(0,)).plans("x")] == [1, 2, 2, 5]


def test_more_features_that_do_not_help_are_told(finished):
    table = finished[1].table.copy()
    widest = table["n_features"] == max(WIDTHS)
    table["fvu"] = np.where(widest, 0.9, 1 / table["n_features"])
    assert "smallest with 24 features, not with 48" in SweepResult(table).doubt
    table["fvu"] = 1 / table["n_features"]
    assert SweepResult(table).doubt == ""


def test_the_figure_has_every_point_and_the_law(finished):
    _, result = finished
    ax = plot_scaling(result)
    ax.figure.canvas.draw()
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert sorted(np.concatenate([line.get_ydata() for line in points])) == sorted(result.table["fvu"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1k tokens", "2k tokens"]
    assert result.law.describe() in ax.get_title(loc="left")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (12, 16, 24)}, "at least 4 different widths, found 3"),
        ({"widths": (12, 16, 24, 48, 48)}, "widths: 48 is given more than once"),
        ({"seeds": ()}, "seeds: there is none"),
        ({"k": 1.5}, "k is 1.5; use a whole number, or a share"),
        ({"k": 13}, "n_features is 12, k 13"),
        ({"architecture": "tokp"}, "architecture 'tokp' is unknown"),
    ],
)
def test_grids_that_make_no_sense_are_refused(stores, tmp_path, changes, words):
    with pytest.raises(InvalidInput, match=words):
        sweep(stores, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_stores_that_do_not_belong_together_are_refused(stores, script, tmp_path):
    acts = stores[1].acts
    others = {
        "held_out is of resid_post.1, the store of resid_post.3": script.MemoryStore(acts, site=Site(1)),
        "fingerprint bbbbbbbbbbbb, the store of one with aaaaaaaaaaaa": script.MemoryStore(acts, fingerprint="b" * 64),
        "held_out holds the very texts of the store": stores[0],
    }
    for words, other in others.items():
        with pytest.raises(DataMismatch, match=words):
            sweep((stores[0], other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_training_in_the_folder_is_refused(finished, stores):
    out, _ = finished
    with pytest.raises(DataMismatch, match="belongs to another training: k is 3 there and 2 here"):
        sweep(stores, out, k=2)


def test_saved_metrics_are_the_measured_ones(finished, stores, tmp_path):
    dictionary = load_dictionary(finished[0] / "features-24-tokens-1000-seed-0")
    dictionary.save(tmp_path)
    dictionary.metrics = {}
    measured = measure(dictionary, tmp_path, stores[1])
    saved = saved_metrics(load_dictionary(tmp_path), tmp_path)
    assert saved == measured
    np.testing.assert_array_equal(saved.density, measured.density)
    assert saved.hints() == measured.hints()
    before = stamps(tmp_path.parent)
    measure(load_dictionary(tmp_path), tmp_path, stores[1])
    assert stamps(tmp_path.parent) == before
    other = load_dictionary(tmp_path)
    assert measure(other, tmp_path, stores[0]).n_tokens == 4_000  # other data: measured again


def test_metrics_that_are_damaged_or_incomplete(finished, stores, tmp_path):
    dictionary = load_dictionary(finished[0] / "features-24-tokens-1000-seed-0")
    measure(dictionary, tmp_path, stores[1])
    dictionary.save(tmp_path)
    measure(dictionary, tmp_path, stores[0])
    del dictionary.metrics["gini"]
    assert saved_metrics(dictionary, tmp_path) is None
    assert measure(dictionary, tmp_path, stores[0]).gini > 0
    other = load_dictionary(finished[0] / "features-16-tokens-1000-seed-0")
    with pytest.raises(DataMismatch, match=r"densities of shape \(24,\).* has 16 features"):
        saved_metrics(other, tmp_path)
    (tmp_path / DENSITY_FILE).write_bytes(b"x")
    with pytest.raises(DataMismatch, match="is damaged"):
        saved_metrics(dictionary, tmp_path)
