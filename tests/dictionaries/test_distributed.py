"""Two processes (gloo) train what one process trains."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurollm.dictionaries import load_dictionary
from neurollm.dictionaries.training import LEARNERS
from neurollm.dictionaries.training.distributed import Group
from neurollm.errors import InvalidInput

SCRIPT = Path(__file__).with_name("distributed_training.py")


def torchrun(out, names, *rest):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*command, str(SCRIPT), str(out), ",".join(names), *map(str, rest)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one_process():
    spec = importlib.util.spec_from_file_location("distributed_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.training


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder of all architectures, each trained by two processes."""
    out = tmp_path_factory.mktemp("two")
    done = torchrun(out, LEARNERS)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", LEARNERS)
def test_two_processes_train_what_one_trains(name, tmp_path, one_process, two_processes):
    two, one = load_dictionary(two_processes / name), one_process(name, tmp_path)
    for key, weight in one.weights.items():
        size = float(weight.abs().max())
        torch.testing.assert_close(two.weights[key], weight, rtol=0, atol=2e-3 * size, msg=key)
    last, expected = two.provenance["history"][-1], one.provenance["history"][-1]
    assert last["tokens"] == expected["tokens"] == 4_000
    assert last["l0"] == pytest.approx(expected["l0"], rel=0.01)
    assert last["explained_variance"] == pytest.approx(expected["explained_variance"], abs=2e-3)


def test_a_killed_group_resumes_and_ends_the_same(tmp_path, two_processes):
    assert torchrun(tmp_path, ["topk"], 23).returncode != 0
    assert (tmp_path / "topk" / "checkpoint.json").exists()
    assert torchrun(tmp_path, ["topk"]).returncode == 0
    for file in ("sae_weights.safetensors", "neurollm.json", "cfg.json"):
        assert (tmp_path / "topk" / file).read_bytes() == (two_processes / "topk" / file).read_bytes()


def test_more_processes_than_rows_are_refused():
    group = Group()
    group.size = 8
    group.check(8)
    with pytest.raises(InvalidInput, match="batch_size 4 is smaller than the number of processes 8"):
        group.check(4)
