"""Simulated studies (finished by the real GLM) and the browser, shared by the report's tests."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurollm.designs import CategoricalDesign
from neurollm.files import write_json, write_text
from neurollm.glm import FeatureGLM
from neurollm.random import stream
from neurollm.reporting import build_report

TEXT = (
    "The committee met on Tuesday and after two hours of careful argument the younger members carried the vote ; "
    "nobody in the room had expected that the small laboratory would finish the work before winter , but the bridge "
    "held , the letter arrived in time and the harvest was better than in any year since the war"
)
WORDS = TEXT.split()
N_FEATURES = 1200
PLANTED = 24


def trials(levels: list[str], n_items: int, effect: float, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Sparse, skewed activations; the first `PLANTED` features prefer or avoid the first level."""
    obs = pd.DataFrame(
        itertools.product([f"item{i:02d}" for i in range(n_items)], levels, ["plain", "told"]),
        columns=["item", "outcome", "template"],
    )
    obs.index = pd.Index([f"s{k:04d}" for k in range(len(obs))], name="stimulus_id")
    rng = stream(seed, "simulated trials")
    rate = rng.beta(0.6, 2.5, N_FEATURES)
    rate[:PLANTED] = 0.75
    item = rng.normal(0, 0.5, (n_items, N_FEATURES))[obs["item"].str[4:].astype(int)]
    size = np.exp(rng.normal(0, 0.7, (len(obs), N_FEATURES)) + item)
    gain = np.linspace(0.4, 1.0, PLANTED) * np.where(np.arange(PLANTED) % 3, effect, -effect)
    size[:, :PLANTED] *= np.exp(gain * (obs["outcome"].to_numpy()[:, None] == levels[0]))
    X = size * (rng.random(size.shape) < rate)
    X[:, -30:] = 0.0
    return X.astype(np.float32), obs


def _make_study(
    folder: Path,
    *,
    name: str = "Success and failure",
    levels: tuple[str, ...] = ("success", "failure", "neutral"),
    contrasts: dict[str, str] | None = None,
    effect: float = 1.6,
    n_items: int = 28,
    n_perm: int = 1000,
    hostile: str = "",
) -> Path:
    """Write the folder that a run leaves behind; `hostile` is appended to every free text in it."""
    contrasts = contrasts or {"success - failure": "success - failure", "neutral - failure": "neutral - failure"}
    X, obs = trials(list(levels), n_items, effect)
    glm = FeatureGLM(CategoricalDesign(factor="outcome"), n_perm=n_perm, random_state=0, verbose=0).fit(X, obs)
    results = {key: glm.compute_contrast(expression, name=key) for key, expression in contrasts.items()}
    for result in results.values():
        result.save(folder / "glm")
    write_json(folder / "manifest.json", _manifest(name, len(obs), hostile))
    write_json(folder / "design.json", _design(obs, list(levels), contrasts, n_items, hostile))
    write_json(folder / "audit.json", _audit(hostile))
    write_json(folder / "contexts.json", {key: _contexts(result, hostile) for key, result in results.items()})
    write_json(folder / "controls.json", {key: _controls(number, hostile) for number, key in enumerate(results)})
    write_json(folder / "dictionary.json", {"ev": 0.8716, "l0": 31.9, "dead": 0.031, "ce_recovered": 0.934,
                                            "delta_ce": 0.212, "n_tokens": 500_000})  # fmt: skip
    write_text(folder / "config.yaml", CONFIG + (f"# {hostile}\n" if hostile else ""))
    return folder


CONFIG = """name: success
stimuli: stimuli/success.tsv
design: designs/success.yaml
model: {name: demo, site: {layer: 4, stream: resid_post}}
dictionary: {name: demo}
features: {tokens: content, pool: mean, transform: log1p, min_active_items: 8}
analyses:
  glm: {n_perm: 10000}
seed: 0
"""


def _manifest(name: str, n_stimuli: int, hostile: str) -> dict:
    return {
        "name": name + hostile,
        "command": "neurollm run pipelines/success.yaml" + hostile,
        "started": "2026-03-02T09:15:04",
        "finished": "2026-03-02T09:18:41",
        "seconds": {"mask": 41.2, "glm" + hostile: 12.8, "controls": 95.0, "contexts": 3.1},
        "versions": {"neurollm": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0", "transformers": "5.23.0" + hostile},
        "seed": 0,
        "inputs": {f"stimuli/success{hostile}.tsv": "9f" * 32, "designs/success.yaml": "3c" * 32},
        "model": {
            "name": "demo" + hostile,
            "fingerprint": "ab" * 32,
            "dtype": "float32",
            "device": "cpu",
            "random_init": None,
        },
        "dictionary": {"architecture": "topk", "n_features": 4096, "site": {"layer": 4, "stream": "resid_post"}},
        "warnings": ["2 stimuli share the same text." + hostile],
        "n_stimuli": n_stimuli,
        "dropped": [{"stimulus_id": "s0007", "reason": "no token left in the window" + hostile}],
    }


def _design(obs: pd.DataFrame, levels: list[str], contrasts: dict, n_items: int, hostile: str) -> dict:
    matrix = pd.get_dummies(obs["outcome"])[levels].astype(float)
    return {
        "type": "categorical",
        "factor": "outcome",
        "item": "item",
        "variables": {"outcome": levels},
        "matrix": {"columns": levels, "rows": matrix.to_numpy().tolist(), "index": list(obs.index)},
        "cells": [
            {"level": level, "template": template + hostile, "n": int(n)}
            for (level, template), n in obs.groupby(["outcome", "template"], sort=False).size().items()
        ],
        "n_items": n_items,
        "contrasts": contrasts,
    }


def _audit(hostile: str) -> list[dict]:
    rows = [
        ("length in tokens", "outcome", "pass", 0.12, 0.5, "conditions differ by g = 0.12 in length"),
        ("punctuation", "outcome", "pass", 0.0, 0.5, "every text ends alike"),
        ("words decode the condition", "outcome", "warn", 0.89, 0.75, "word counts reach AUROC .89 on items left out"),
        ("pairing", "item", "pass", 1.0, 1.0, "every item has every level"),
        ("duplicates", None, "fail", 2, 0, "2 stimuli share the same text: success_07 and success_19"),
    ]
    keys = ("name", "factor", "status", "value", "threshold", "reason")
    return [dict(zip(keys, row, strict=True)) | {"reason": row[-1] + hostile} for row in rows]


def _contexts(result, hostile: str, features: int = 50, per_feature: int = 10, tokens: int = 56) -> dict:
    order = np.argsort(-np.nan_to_num(np.abs(result.stat)), kind="stable")[:features]
    rng = stream(1, "simulated contexts")
    found = {}
    for index in order:
        entries = []
        for k in range(per_feature):
            start = int(rng.integers(0, len(WORDS)))
            words = [" " + WORDS[(start + i) % len(WORDS)] for i in range(tokens)]
            activation = np.where(rng.random(tokens) < 0.15, rng.gamma(2.0, 1.5, tokens), 0.0)
            peak = int(rng.integers(5, tokens - 5))
            activation[peak] = 9.0 - 0.5 * k
            words[peak] += hostile
            entries.append(
                {
                    "document": f"essays/{int(rng.integers(1, 900)):03d}.txt" + hostile,
                    "source": "stimuli" if k % 4 == 3 else "resting state",
                    "activation": float(activation[peak]),
                    "peak": peak,
                    "tokens": [[word, round(float(a), 3)] for word, a in zip(words, activation, strict=True)],
                }
            )
        found[str(int(result.feature[index]))] = entries
    return found


def _controls(number: int, hostile: str) -> list[dict]:
    values = [
        ("Features of layer 4", "study", 1170, 21, 0.001, 0.884, 0.842, 0.921, ""),
        ("Token embeddings", "control", 128, 9, 0.002, 0.891, 0.853, 0.930, "layer 0, same window and pooling"),
        ("Randomly initialised model", "control", 1170, 0, 0.31, 0.612, 0.541, 0.684, ""),
        ("Random directions", "control", 1170, 3, 0.018, 0.803, 0.745, 0.857, "same site, same number"),
    ]
    keys = ("representation", "kind", "n_features", "n_significant", "min_p", "auroc", "ci_low", "ci_high", "note")
    rows = [dict(zip(keys, row, strict=True)) | {"note": row[-1] + hostile} for row in values]
    for row in rows:
        if hostile:
            row["representation"] += hostile
        if number:
            row.update(auroc=row["auroc"] - 0.32, ci_low=row["ci_low"] - 0.35, ci_high=row["ci_high"] - 0.29)
            row.update(n_significant=0, min_p=0.42)
    return rows


HOSTILE = (
    '</script><script>window.hacked=1</script>"\' onload="window.hacked=1" <img src=x onerror=window.hacked=1> '
    "{{7*7}} {% raw %} javascript:alert(1) &lt; $\\frac{"
)


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that must come out as text."""
    return HOSTILE


@pytest.fixture(scope="session")
def make_study():
    """The function that writes a simulated study folder."""
    return _make_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory, make_study) -> Path:
    """A study folder with one contrast that found something and one that did not; do not change it."""
    folder = make_study(tmp_path_factory.mktemp("study") / "success")
    build_report(folder)
    return folder


@pytest.fixture
def study(finished, tmp_path) -> Path:
    """A copy of the finished study that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "study"))


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system; tests that need it are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("NEUROLLM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium found: install it or set NEUROLLM_CHROMIUM to its path")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()
