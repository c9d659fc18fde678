"""The command line: exit codes and one sentence for every kind of bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neurollm.activations import Corpus, harvest
from neurollm.cli.app import app
from neurollm.errors import InvalidInput
from neurollm.models import Site


def neurollm(*arguments, module=("-m",), **options) -> subprocess.CompletedProcess:
    """Run the command in a fresh process, or in those that another module starts."""
    command = [sys.executable, *module, "neurollm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def refused(result: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    """One line on standard error that starts with the program's name and has all the parts."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("neurollm: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def project(tmp_path) -> Path:
    """A fresh project made by ``neurollm new``."""
    assert neurollm("new", tmp_path / "study").returncode == 0
    return tmp_path / "study"


def replace(file: Path, old: str, new: str) -> None:
    """Change a text file; the old text must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_every_command_explains_itself():
    told = neurollm("--help").stdout
    for command in ("new", "check", "run", "report", "list", "harvest", "train", "sweep"):
        assert command in told
        assert neurollm(command, "--help").returncode == 0


HELP = """
import sys
from neurollm.cli import main
sys.argv = ["neurollm", "--help"]
try:
    main()
except SystemExit:
    print({"torch", "transformers", "pandas", "sklearn", "matplotlib", "anndata", "scipy"} & set(sys.modules))
"""


def test_help_imports_nothing_heavy():
    told = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert told.rstrip().endswith("set()")


def test_missing_column(project):
    replace(project / "stimuli" / "success.tsv", "\titem\t", "\tthing\t")
    refused(neurollm("run", project / "pipelines" / "success.yaml"), 2, "success.tsv", "item")


def test_unknown_level(project):
    replace(project / "designs" / "success.yaml", "success - failure", "sucess - failure")
    refused(neurollm("run", project / "pipelines" / "success.yaml", "-v", "0"), 2, "sucess", "success")


def test_misspelt_key(project):
    replace(project / "pipelines" / "success.yaml", "seed: 0", "sed: 0")
    refused(neurollm("run", project / "pipelines" / "success.yaml"), 2, "success.yaml", "'sed'")


def test_prompt_longer_than_the_context(project):
    replace(
        project / "stimuli" / "success.tsv", "The young runner won the", "The " + "very " * 400 + "young runner won the"
    )
    result = neurollm("run", project / "pipelines" / "success.yaml", "-v", "0")
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_empty_stimulus_set(project):
    (project / "stimuli" / "success.tsv").write_text("stimulus_id\ttext\titem\ttemplate\toutcome\n")
    refused(neurollm("run", project / "pipelines" / "success.yaml"), 2, "success.tsv")


def test_dictionary_of_another_site(project):
    replace(project / "pipelines" / "success.yaml", "model: {name: demo}", "model: {name: demo, site: {layer: 1}}")
    refused(neurollm("run", project / "pipelines" / "success.yaml"), 3, "resid_post.1")


def test_no_such_pipeline(tmp_path):
    refused(neurollm("run", tmp_path / "none.yaml"), 2, "none.yaml")


def test_truncated_shard(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The old man walked along the river and sat down by the mill. " * 40)
    assert neurollm("harvest", text, "--layer", 3, "--out", tmp_path / "store", "-v", "0").returncode == 0
    shard = tmp_path / "store" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    training = tmp_path / "train.yaml"
    training.write_text("store: store\nout: sae\nn_features: 32\nk: 4\nn_tokens: 1000\n")
    refused(neurollm("train", training, "-v", "0"), 3, "shard-00000.safetensors", "harvest")


@pytest.fixture
def harvested(tmp_path, demo_lm) -> Path:
    """A folder with a training file, and stores of some and of other texts."""
    for name, sentence in (
        ("text", "The old man sat down by the mill. "),
        ("other", "She ran up the hill and laughed. "),
    ):
        harvest(demo_lm, Corpus([(name, sentence * 80)]), Site(3), tmp_path / name, verbose=0)
    fields = "store: text\nheld_out: other\nout: sae\n"
    (tmp_path / "train.yaml").write_text(f"{fields}n_features: 32\nk: 4\nn_tokens: 1000\n")
    (tmp_path / "sweep.yaml").write_text(f"{fields}widths: [8, 16, 24, 32]\nk: 2\ntokens: [1000]\n")
    return tmp_path


def invoke(*arguments) -> str:
    """What a command prints, run in this process."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False).stdout


def test_a_dictionary_and_its_report(harvested, monkeypatch):
    monkeypatch.chdir(harvested)
    told = invoke("train", "train.yaml", "-v", "0")
    assert told.startswith("sae: topk, 32 features at resid_post.3: EV ") and told.count("\n") == 1
    assert invoke("report", "sae") == "report: sae/report.html\n"
    assert (harvested / "sae" / "report.html").is_file()
    with pytest.raises(InvalidInput, match="--top is for the contrasts of a study"):
        invoke("report", "sae", "--top", 3)


def test_a_sweep_and_its_report(harvested, monkeypatch):
    monkeypatch.chdir(harvested)
    told = invoke("sweep", "sweep.yaml", "-v", "0")
    assert "FVU α = " in told and told.endswith("report: sae/report.html\n")
    assert (harvested / "sae" / "report.html").is_file()
    replace(harvested / "sweep.yaml", ", 32]", "]")
    refused(neurollm("sweep", "sweep.yaml", "-v", "0"), 2, "sweep.yaml", "at least 4 different widths")


def test_two_processes_train_and_one_of_them_speaks(harvested):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    done = neurollm("train", harvested / "train.yaml", "-v", "0", module=torchrun)
    assert done.returncode == 0 and done.stdout.count("32 features at resid_post.3: EV ") == 1, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(project):
    (project / "reports").chmod(0o500)
    refused(neurollm("run", project / "pipelines" / "success.yaml", "-v", "0"), 2, "permission")


def _tmpfs(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(project):
    """The study's folder on a file system of 300 kB."""
    if not _tmpfs(project / "reports", "size=300k"):
        pytest.skip("mounting a size-limited file system is not permitted here")
    yield project
    subprocess.run(["umount", project / "reports"], check=True)


def test_full_disk_then_space(small_disk):
    run = ("run", small_disk / "pipelines" / "success.yaml", "-v", "0")
    refused(neurollm(*run), 2, "disk is full")
    assert not [file for file in (small_disk / "reports").rglob("*") if file.name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk / "reports"], check=True)
    assert neurollm(*run).returncode == 0


@pytest.fixture
def read_only_disk(project):
    """The study's folder on a file system mounted read-only."""
    if not _tmpfs(project / "reports", "ro"):
        pytest.skip("mounting a file system is not permitted here")
    yield project
    subprocess.run(["umount", project / "reports"], check=True)


def test_read_only_disk(read_only_disk):
    refused(neurollm("run", read_only_disk / "pipelines" / "success.yaml", "-v", "0"), 2, "read-only")


def test_importing_the_package_imports_nothing_heavy():
    probe = "import neurollm, sys; print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
