"""The page about dictionaries: everything that was measured is on it, and what comes from data is text."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from neurollm.dictionaries import RawUnits, TopKTraining, load_dictionary, train_dictionary
from neurollm.dictionaries.held_out import measure
from neurollm.dictionaries.sweeping import SweepResult, sweep_dictionaries
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site
from neurollm.reporting import build_dictionary_report, holds_dictionaries

SCRIPT = Path(__file__).parents[1] / "dictionaries" / "memory_store.py"
TRAINING = TopKTraining(batch_size=128, log_every=10)


@pytest.fixture(scope="session")
def stores():
    """Training data and held-out data."""
    spec = importlib.util.spec_from_file_location("memory_store", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    acts = module.planted(n=6_000, d=16, n_features=32)[0]
    return module.MemoryStore(acts[:4_000]), module.MemoryStore(acts[4_000:])


@pytest.fixture(scope="session")
def seeds(stores, tmp_path_factory):
    """Folder of two measured dictionaries that differ in their seed; do not change it."""
    folder = tmp_path_factory.mktemp("several") / "two seeds"
    for seed in (0, 1):
        out = folder / f"seed {seed}"
        sae = train_dictionary(stores[0], "topk", 24, 3, 4_000, seed, training=TRAINING, out=out, verbose=0)
        measure(sae, out, stores[1])
    build_dictionary_report(folder)
    return folder


@pytest.fixture(scope="session")
def swept(stores, tmp_path_factory):
    """Folder of a sweep; do not change it."""
    folder = tmp_path_factory.mktemp("swept") / "widths"
    sweep_dictionaries(*stores, (12, 16, 24, 48), tokens=(2_000,), k=3, training=TRAINING, out=folder, verbose=0)
    build_dictionary_report(folder)
    return folder


@pytest.fixture
def copied(seeds, tmp_path):
    return Path(shutil.copytree(seeds, tmp_path / "copy"))


def words(page: str) -> str:
    """What a reader sees, without figures."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<(svg|style).*?</\1>", "", page, flags=re.DOTALL)))


def test_several_dictionaries_are_measured_and_compared(seeds):
    page = (seeds / "report.html").read_text()
    for seed in (0, 1):
        metrics = load_dictionary(seeds / f"seed {seed}").metrics
        assert f"{metrics['ev']:.4f}".lstrip("0") in words(page)
    assert page.count("<svg") == 7  # history, density and cosines of each, stability
    assert "seed 0 – seed 1" in words(page) and "rule of thumb that was never measured" in words(page)
    assert len(page) < 2_000_000


def test_one_dictionary(copied):
    page = build_dictionary_report(copied / "seed 0").read_text()
    assert page.count("<svg") == 3 and "Stability" not in words(page)
    assert "topk, 24 features at resid_post.3" in words(page)


def test_a_sweep(swept):
    page, result = (swept / "report.html").read_text(), SweepResult.load(swept)
    assert page.count("<svg") == 1 and result.law.describe() in words(page)
    for row in result.table.itertuples():
        assert row.name in page and f"{row.ev:.4f}".lstrip("0") in words(page)
    assert "8 dictionaries of 4 widths" in words(page)
    assert result.doubt in words(page)


def test_the_same_files_give_the_same_page(copied):
    once = build_dictionary_report(copied).read_bytes()
    assert build_dictionary_report(copied).read_bytes() == once


def test_without_held_out_data_there_is_no_figure_and_no_hint(stores, tmp_path):
    train_dictionary(stores[0], "topk", 24, 3, 2_000, training=TRAINING, out=tmp_path / "one", verbose=0)
    page = build_dictionary_report(tmp_path / "one").read_text()
    assert page.count("<svg") == 1 and "It was not measured" in page


def test_raw_units_have_no_directions_to_compare(copied):
    shutil.rmtree(copied / "seed 1")
    RawUnits(Site(3), 16).save(copied / "units")
    assert "units" in words(build_dictionary_report(copied).read_text())


def test_other_sites_are_not_compared(copied):
    shutil.rmtree(copied / "seed 1")
    dictionary = load_dictionary(copied / "seed 0")
    shifted = type(dictionary)(Site(4), dictionary.weights, dictionary.k)
    shifted.save(copied / "other")
    assert "are of different sites" in words(build_dictionary_report(copied).read_text())


def test_names_and_labels_come_out_as_text(copied, hostile, browser):
    name = hostile.replace("/", "|")[:80]
    (copied / "seed 1").rename(copied / name)
    sae = load_dictionary(copied / "seed 0")
    sae.model_name = hostile
    sae.save(copied / "seed 0")
    path = build_dictionary_report(copied)
    page = path.read_text()
    assert "<script" not in page and "<img" not in page and "{{7*7}}" in words(page).replace("&#123;", "{")
    view = browser.new_page()
    requests = []
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    assert view.evaluate("window.hacked") is None
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}
    view.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(seeds, swept, browser, width):
    for folder in (seeds, swept):
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto((folder / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def test_folders_that_hold_no_dictionary(tmp_path, finished):
    assert not holds_dictionaries(finished) and not holds_dictionaries(tmp_path / "none")
    with pytest.raises(InvalidInput, match="holds no dictionary"):
        build_dictionary_report(tmp_path)


@pytest.mark.parametrize("history", [[{"tokens": "many"}], [5], [{}]])
def test_a_damaged_history_is_told(copied, history):
    sae = load_dictionary(copied / "seed 0")
    sae.provenance["history"] = history
    sae.save(copied / "seed 0")
    with pytest.raises(DataMismatch, match="seed 0: the training history"):
        build_dictionary_report(copied)
