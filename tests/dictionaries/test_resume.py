"""A training killed at any moment ends with the files of one that was not."""

import json
import os
import subprocess
import sys

import pytest

from neurollm.dictionaries import Plan, train_dictionaries
from neurollm.dictionaries.training import LEARNERS
from neurollm.dictionaries.training.checkpoints import Checkpoint
from neurollm.errors import DataMismatch


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(Exception):
    """Stands for the end of the process at this very instruction."""


def test_killed_processes(tmp_path, script, planted_store, child_environment):
    """SIGKILL at three moments of a real process."""
    script.small_training(planted_store, tmp_path / "whole")
    resumed = tmp_path / "resumed"
    subprocess.run([sys.executable, script.__file__, str(resumed)], env=child_environment, check=True, timeout=120)
    assert (resumed / "checkpoint.json").exists() and not (resumed / "neurollm.json").exists()
    script.small_training(planted_store, resumed)
    assert contents(resumed) == contents(tmp_path / "whole")


def test_death_at_every_kind_of_write(tmp_path, script, planted_store, monkeypatch):
    """The process ends just before, or just after, one of its renames: each of them in turn."""
    script.small_training(planted_store, tmp_path / "whole", n_tokens=6_000, checkpoint_every=30)
    whole = contents(tmp_path / "whole")
    real = os.replace
    names = []
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(str(b)), real(a, b))[1])
    script.small_training(planted_store, tmp_path / "counted", n_tokens=6_000, checkpoint_every=30)
    assert len(names) >= 7
    for moment in range(len(names)):
        folder = tmp_path / f"killed-{moment}"

        def dying(a, b, left=[moment], after=moment % 2):  # noqa: B006
            if left[0] == 0:
                if after:
                    real(a, b)
                raise Killed
            left[0] -= 1
            real(a, b)

        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            script.small_training(planted_store, folder, n_tokens=6_000, checkpoint_every=30)
        monkeypatch.setattr(os, "replace", real)
        (folder / ".sae_weights.safetensors.1.tmp").write_bytes(b"left by a killed process")
        script.small_training(planted_store, folder, n_tokens=6_000, checkpoint_every=30)
        assert contents(folder) == whole


def test_resuming_does_not_start_again(tmp_path, script, planted_store, monkeypatch):
    starts = []
    batches = script.MemoryStore.batches

    def recorded(self, *args, **kwargs):
        starts.append((kwargs["epoch"], kwargs["start_batch"]))
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(script.MemoryStore, "batches", recorded)
    real = Checkpoint.save
    calls = []

    def save_and_die(self, counters, tensors):
        real(self, counters, tensors)
        calls.append(counters["tokens"])
        if len(calls) == 25:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        script.small_training(planted_store, tmp_path)
    script.small_training(planted_store, tmp_path)
    assert starts[-1] == (1, 18)  # 25 checkpoints × 7 steps − 157 batches of the first epoch


@pytest.mark.parametrize("seed", range(3))
def test_every_architecture_resumes_in_one_pass(tmp_path, planted_store, monkeypatch, seed):
    """All learners at once, killed after some of them were saved and others not."""

    def go(folder):
        plans = [
            Plan(
                architecture=name,
                n_features=48 + i,
                k=3,
                n_tokens=4_000 + 300 * i,
                out=folder / name,
                training=kind.options(batch_size=100, checkpoint_every=9, dead_after_tokens=900, resample_every=0.1),
                snapshots=(0.3,),
            )
            for i, (name, kind) in enumerate(LEARNERS.items())
        ]
        return train_dictionaries(planted_store, plans, verbose=0)

    whole = go(tmp_path / "whole")
    real, left = Checkpoint.save, [[4], [9, 3], [22, 1, 5]][seed]

    def save_and_die(self, counters, tensors):
        real(self, counters, tensors)
        if left:
            left[0] -= 1
            if left[0] == 0:
                left.pop(0)
                raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    for _ in range(len(left)):
        with pytest.raises(Killed):
            go(tmp_path / "resumed")
    resumed = go(tmp_path / "resumed")
    for name, a, b in zip(LEARNERS, whole, resumed, strict=True):
        assert a.fingerprint == b.fingerprint, name
        assert contents(tmp_path / "whole" / name) == contents(tmp_path / "resumed" / name)


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path, script, planted_store, monkeypatch):
    real = Checkpoint.save

    def save_and_die(self, counters, tensors):
        real(self, counters, tensors)
        raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        script.small_training(planted_store, tmp_path)
    monkeypatch.setattr(Checkpoint, "save", real)
    with pytest.raises(DataMismatch, match=r"checkpoint.json belongs to another training: warmup is 0.02 there"):
        script.small_training(planted_store, tmp_path, warmup=0.3)
    tensors = next(tmp_path.glob("checkpoint-*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-9])
    with pytest.raises(DataMismatch, match="checkpoint is damaged"):
        script.small_training(planted_store, tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"run": {}})[:-1])
    with pytest.raises(DataMismatch, match="checkpoint is damaged"):
        script.small_training(planted_store, tmp_path)
