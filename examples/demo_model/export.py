"""Export a training checkpoint as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import torch
from train import make_config
from transformers import GPT2LMHeadModel


def export(work: Path, out: Path) -> None:
    """Write the checkpoint of ``work`` to ``out``, file by file and atomically.

    Parameters
    ----------
    work : Path
        Work folder of the training.
    out : Path
        Target folder; other files in it (the model card) are left alone.
    """
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    model = GPT2LMHeadModel(make_config(**state["shape"]))
    model.load_state_dict(state["masters"], strict=False)  # lm_head is tied
    model.tie_weights()
    model.to(torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    # A neighbour of the target, so that the renames stay on one file system.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export_") as name:
        temp = Path(name)
        model.save_pretrained(temp)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(work / "tokenizer" / file, temp / file)
        for file in sorted(temp.iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)
    size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"exported {state['progress']['tokens']:,} tokens to {out} ({size:.1f} MB)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="work folder of the training")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    export(args.work, args.out)


if __name__ == "__main__":
    main()
