"""Kill harvest, train and run at random moments: the next start must end like an uninterrupted run.

Each trial starts in a fresh folder, kills the command with SIGKILL after a random share of
the time that an uninterrupted run takes, starts it again to its end, and compares every
file (but the log, which knows the time of day) byte by byte.

    python benchmarks/interruptions.py --kills 20
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from neurollm import datasets
from neurollm.pipelines import new_project

TRAINING = "store: store\nout: sae\nn_features: 512\nk: 16\nn_tokens: 1200000\n"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a result, by relative path."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "log.json"
    }


def commands(folder: Path, store: Path | None) -> dict[str, tuple[list[str], Path]]:
    """Command and result folder of each kind of work, below `folder`."""
    project = folder / "project"
    if not project.exists():
        new_project(project)
        (folder / "train.yaml").write_text(TRAINING.replace("store: store", f"store: {store or folder / 'store'}"))
    corpus = str(datasets.demo_corpus_path())
    harvest = ["harvest", corpus, "--layer", "3", "--out", str(folder / "store"), "--tokens-per-shard", "16384"]
    return {
        "harvest": (harvest, folder / "store"),
        "train": (["train", str(folder / "train.yaml")], folder / "sae"),
        "run": (["run", str(project / "pipelines" / "success.yaml")], project / "reports" / "success"),
    }


def start(arguments: list[str]) -> subprocess.Popen:
    """Start a neurollm command without output."""
    command = [sys.executable, "-m", "neurollm", *arguments, "-v", "0"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(arguments: list[str]) -> float:
    """Run a command to its end; seconds it took."""
    began = time.monotonic()
    process = start(arguments)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {errors.decode()}")
    return time.monotonic() - began


def trial(kind: str, store: Path, seconds: float, rng: random.Random) -> tuple[float, dict[str, str]]:
    """Kill after a random time, resume; the share of the run at which it was killed, and the files."""
    with tempfile.TemporaryDirectory() as name:
        arguments, result = commands(Path(name), store)[kind]
        process = start(arguments)
        share = rng.random()
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finish(arguments)
        return share, digests(result)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--only", choices=["harvest", "train", "run"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        reference = commands(Path(name), None)
        store = Path(name) / "store"
        for kind, (arguments, result) in reference.items():
            seconds = finish(arguments)
            if args.only not in (None, kind):
                continue
            expected = digests(result)
            outcomes = [trial(kind, store, seconds, rng) for _ in range(args.kills)]
            same = sum(files == expected for _, files in outcomes)
            shares = ", ".join(f"{share:.0%}" for share, _ in sorted(outcomes, key=lambda outcome: outcome[0]))
            print(f"{kind} ({seconds:.0f} s): {same} of {args.kills} killed runs ended identical; killed at {shares}")


if __name__ == "__main__":
    main()
