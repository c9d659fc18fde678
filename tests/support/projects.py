"""A small project that runs in seconds, for the tests of pipelines and command line."""

from __future__ import annotations

from pathlib import Path

import yaml

WORDS = ["won", "found", "saved", "built", "reached", "passed"], ["lost", "missed", "ruined", "broke", "left", "failed"]
NOUNS = [
    "runner",
    "miller",
    "captain",
    "painter",
    "widow",
    "clerk",
    "sailor",
    "baker",
    "doctor",
    "farmer",
    "teacher",
    "hunter",
]


def stimulus_lines() -> list[str]:
    """Twelve items of two sentences that differ in one word."""
    lines = ["stimulus_id\ttext\titem\ttemplate\toutcome"]
    for index, noun in enumerate(NOUNS):
        for level, words in zip(("success", "failure"), WORDS, strict=True):
            verb = words[index % len(words)]
            lines.append(f"{noun}-{level}\tThe old {noun} {verb} the house by the river.\t{noun}\tplain\t{level}")
    return lines


def pipeline_fields() -> dict:
    """The pipeline of the small project."""
    return {
        "name": "small",
        "stimuli": "stimuli/small.tsv",
        "design": "designs/small.yaml",
        "model": {"name": "demo", "dtype": "float32", "device": "cpu"},
        "dictionary": {"name": "demo"},
        "features": {"min_active_items": 3},
        "analyses": {"glm": {"n_perm": 499}, "contexts": {"corpus": ["stimuli"], "top": 3}},
        "controls": ["token_embeddings", "random_network", "random_directions"],
        "report": {"top": 10},
    }


def write_project(root: Path, **changes) -> Path:
    """Write the project below `root` and return its pipeline file."""
    for folder in ("stimuli", "designs", "pipelines", "reports"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "stimuli" / "small.tsv").write_text("\n".join(stimulus_lines()) + "\n")
    design = {"type": "categorical", "factor": "outcome", "contrasts": {"success_vs_failure": "success - failure"}}
    (root / "designs" / "small.yaml").write_text(yaml.safe_dump(design))
    file = root / "pipelines" / "small.yaml"
    file.write_text(yaml.safe_dump(pipeline_fields() | changes))
    return file
