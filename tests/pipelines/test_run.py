"""A study from its pipeline file to its report."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import yaml
from scipy import stats
from support.projects import pipeline_fields, write_project

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import slug
from neurollm.glm import ContrastResult
from neurollm.pipelines import check_pipeline, list_studies, new_project, run_pipeline


def _digests(folder: Path) -> dict[str, str]:
    """Every file of a study but the log, which knows the time of day."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "log.json"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that ran to its end, and what the run returned."""
    file = write_project(tmp_path_factory.mktemp("finished"))
    return file, run_pipeline(file, verbose=0)


def test_a_study_leaves_everything_it_promises(finished):
    _, run = finished
    names = {"config.yaml", "manifest.json", "trials.h5ad", "audit.json", "design.json", "contexts.json"}
    assert names | {"controls.json", "report.html", "steps.json", "log.json"} <= set(os.listdir(run.folder))
    assert run.report.stat().st_size < 2_000_000
    assert len(run.verdicts) >= 1


def test_the_saved_contrast_is_that_of_scipy_on_the_saved_trials(finished):
    _, run = finished
    trials = anndata.read_h5ad(run.folder / "trials.h5ad")
    result = ContrastResult.load(run.folder / "glm" / f"{slug('success_vs_failure')}.json")
    frame = trials.to_df().groupby([trials.obs["item"], trials.obs["outcome"]], observed=True).mean()
    success, failure = (frame.xs(level, level=1).to_numpy(float) for level in ("success", "failure"))
    expected = stats.ttest_rel(success, failure).statistic
    np.testing.assert_allclose(result.stat[result.valid], expected[result.valid], rtol=1e-4, atol=1e-6)
    assert result.valid.sum() > 10


def test_controls_stand_beside_the_result(finished):
    _, run = finished
    rows = json.loads((run.folder / "controls.json").read_text())["success_vs_failure"]
    assert [row["representation"] for row in rows] == [
        "features",
        "token_embeddings",
        "random_network",
        "random_directions",
    ]
    assert all(0 <= row["ci_low"] <= row["auroc"] <= row["ci_high"] <= 1 for row in rows)


def test_a_second_run_does_nothing(finished):
    file, run = finished
    before = _digests(run.folder)
    assert run_pipeline(file, verbose=0).computed == ()
    assert _digests(run.folder) == before


def test_a_change_recomputes_only_what_depends_on_it(finished, tmp_path):
    file = write_project(tmp_path)
    run_pipeline(file, verbose=0)
    fields = pipeline_fields()
    fields["analyses"]["glm"]["n_perm"] = 299
    file.write_text(yaml.safe_dump(fields))
    computed = run_pipeline(file, verbose=0).computed
    assert "trials" not in computed and "audit" not in computed
    assert {"glm", "controls", "report"} <= set(computed)


def test_a_damaged_result_is_computed_again(finished):
    file, run = finished
    before = _digests(run.folder)
    (run.folder / "contexts.json").write_text("{")
    assert "contexts" in run_pipeline(file, verbose=0).computed
    assert _digests(run.folder) == before


def test_killed_runs_end_like_an_uninterrupted_one(finished, tmp_path):
    _, run = finished
    file = write_project(tmp_path)
    command = [sys.executable, "-m", "neurollm", "run", str(file), "-v", "0"]
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(2, 12))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert _digests(tmp_path / "reports" / "small") == _digests(run.folder)


def test_check_computes_nothing_and_tells_the_design(project):
    told = check_pipeline(project)
    for part in (
        "24 stimuli, 12 items (success 12, failure 12)",
        "4,096 possible shufflings",
        "success +1",
        "estimable; the model has rank 1 and 11 residual degrees of freedom",
        "g_z =",
    ):
        assert part in told
    assert not (project.parents[1] / "reports" / "small").exists()


def _study(root: Path, design: dict, **changes) -> Path:
    """A small study with another design: no contexts, one control."""
    shape = {"controls": ["token_embeddings"], "analyses": {"glm": {"n_perm": 199}, "contexts": None}}
    file = write_project(root, **shape | changes)
    (root / "designs" / "small.yaml").write_text(yaml.safe_dump(design))
    return file


def test_a_formula_has_no_sides(tmp_path):
    file = _study(tmp_path, {"type": "formula", "formula": "outcome"})
    assert "24 stimuli, 12 items (outcome=failure 12, outcome=success 12)" in check_pipeline(file)
    run = run_pipeline(file, verbose=0)
    design = json.loads((run.folder / "design.json").read_text())
    assert design["contrasts"] == {"outcome": "outcome[T.failure]"} and design["variables"] == {"outcome": []}
    rows = json.loads((run.folder / "controls.json").read_text())["outcome"]
    assert {row["reason"] for row in rows} == {"a coefficient of a formula has no two sides"}
    result = ContrastResult.load(run.folder / "glm" / f"{slug('outcome')}.json")
    assert result.n_tests > 10 and "outcome" in run.verdicts[0]


def test_without_permutations_the_false_discovery_rate_decides(tmp_path):
    glm = {"n_perm": 0, "alternative": "greater", "fdr": "by"}
    design = {"type": "discriminative", "factor": "outcome", "target": "success"}
    file = _study(tmp_path, design, analyses={"glm": glm, "contexts": None})
    run = run_pipeline(file, verbose=0)
    result = ContrastResult.load(run.folder / "glm" / f"{slug('success - others')}.json")
    assert result.exchange.n_perm == 0 and result.fdr == "by" and np.isnan(result.p_fwer).all()
    study, control = json.loads((run.folder / "controls.json").read_text())["success - others"]
    assert study["min_p"] == pytest.approx(np.nanmin(result.q))
    assert study["n_significant"] == int((result.q <= 0.05).sum()) and control["auroc"] is not None
    assert "Benjamini–Yekutieli over features, no permutations" in run.verdicts[0]


def test_ranks_and_stimuli_without_items(tmp_path):
    design = {"type": "categorical", "factor": "outcome", "item": "none", "item_reason": "made up for this test"}
    file = _study(tmp_path, design, features={"transform": "rank", "min_active_items": 3})
    assert "24 stimuli, 24 trials" in check_pipeline(file)
    result = run_pipeline(file, verbose=0)
    saved = ContrastResult.load(result.folder / "glm" / f"{slug('outcome')}.json")
    trials = anndata.read_h5ad(result.folder / "trials.h5ad")
    failure = (trials.obs["outcome"] == "failure").to_numpy()
    ranks = stats.rankdata(trials.X.toarray(), axis=0)
    expected = stats.ttest_ind(ranks[~failure], ranks[failure]).statistic
    np.testing.assert_allclose(saved.stat[saved.valid], expected[saved.valid], rtol=1e-4, atol=1e-6)
    assert "made up for this test" in result.report.read_text()


def test_list_shows_state_and_verdict(finished, tmp_path):
    file, _ = finished
    assert "report.html" in list_studies(file.parents[1])
    assert "not run yet" in list_studies(write_project(tmp_path).parents[1])
    with pytest.raises(InvalidInput, match="neurollm new"):
        list_studies(tmp_path / "pipelines")


def test_a_new_project_holds_the_examples_and_spares_what_is_there(tmp_path):
    project = new_project(tmp_path / "study")
    for name in ("stimuli/success.tsv", "stimuli/success.json", "designs/success.yaml", "pipelines/success.yaml"):
        assert (project.root / name).is_file()
    with pytest.raises(InvalidInput, match="not an empty folder"):
        new_project(tmp_path / "study")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fetures": {}}, r"small\.yaml.*'fetures'.*did you mean 'features'"),
        ({"dictionary": {}}, "exactly one of name, path and kind"),
        ({"dictionary": {"kind": "raw_units"}}, r"model\.site is missing"),
        ({"name": "../up"}, "cannot be a folder name"),
        ({"features": {"tokens": "middle"}}, "left:n"),
        ({"analyses": {"glm": {"n_perm": 3}}}, "n_perm is 3.*at least 19.*or 0"),
        ({"analyses": {"glm": {"n_perm": 0, "tail": "gpd"}}}, "tail gpd needs permutations"),
        ({"analyses": {"glm": {"fdr": "holm"}}}, "'bh', 'by' and 'bky'|bh, by|'bh', 'by' or 'bky'"),
        ({"features": {"transform": "rank"}, "analyses": {"glm": {"stat": "welch"}}}, "rank goes with .*stat t"),
        ({"stimuli": "stimuli/none.tsv"}, r"none\.tsv"),
        ({"design": "designs/none.yaml"}, r"none\.yaml.*no such file"),
        ({"model": {"name": "no-such-model"}}, "no-such-model"),
    ],
)
def test_bad_pipeline_files_get_one_sentence(project, changes, sentence):
    project.write_text(yaml.safe_dump(pipeline_fields() | changes))
    with pytest.raises(InvalidInput, match=sentence) as caught:
        run_pipeline(project, verbose=0)
    assert "\n" not in str(caught.value)


def test_a_dictionary_of_another_site_is_refused(project):
    model = {"name": "demo", "site": {"layer": 1}}
    project.write_text(yaml.safe_dump(pipeline_fields() | {"model": model}))
    with pytest.raises(DataMismatch, match=r"resid_post\.1.*resid_post\.3"):
        run_pipeline(project, verbose=0)


def test_a_dictionary_of_another_model_is_refused(project, shared_data):
    model = {"name": str(shared_data / "models" / "books-5m")}
    project.write_text(yaml.safe_dump(pipeline_fields() | {"model": model}))
    with pytest.raises(DataMismatch, match="fingerprint"):
        run_pipeline(project, verbose=0)
