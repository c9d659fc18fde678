"""RSA and decoding as steps of a study."""

from __future__ import annotations

import hashlib
import json
import shutil
import typing
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from support.projects import pipeline_fields, write_project

from neurollm.decoding import SELECTORS, Decoder, baselines
from neurollm.decoding.classifiers import CLASSIFIERS
from neurollm.designs import CategoricalDesign
from neurollm.errors import InvalidInput
from neurollm.pipelines import check_pipeline, new_project, run_pipeline
from neurollm.pipelines.schema import DecodePart, RSAPart
from neurollm.rsa import FeatureRSA, RSAResult
from neurollm.stats.rdms.scores import COMPARISONS

RSA = {"models": ["categorical", "lexical"], "n_perm": 99, "min_active": 3}
DECODE = {"n_features": 4, "cv": 3, "n_perm": 19}


def fields(**analyses) -> dict:
    """A small study: one control, no contexts."""
    glm = {"glm": {"n_perm": 99}, "contexts": None}
    return pipeline_fields() | {"controls": ["token_embeddings"], "analyses": glm | analyses}


def digests(folder: Path) -> dict[str, str]:
    """Every file of a study but the log."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "log.json"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with both analyses, and what its run returned."""
    file = write_project(tmp_path_factory.mktemp("analyses"), **fields(rsa=RSA, decode=DECODE))
    return file, run_pipeline(file, verbose=0)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The pipeline file of a copy of the finished project."""
    file, _ = finished
    shutil.copytree(file.parents[1], tmp_path / "copy")
    return tmp_path / "copy" / "pipelines" / file.name


@pytest.fixture(scope="module")
def record(finished) -> dict:
    """The decoded contrast."""
    return json.loads((finished[1].folder / "decode.json").read_text())["success_vs_failure"]


def test_rsa_is_that_of_the_saved_trials(finished):
    folder = finished[1].folder
    saved = RSAResult.load(folder / "rsa" / "rsa.json")
    trials = anndata.read_h5ad(folder / "trials.h5ad")
    expected = FeatureRSA(CategoricalDesign("outcome"), **RSA).fit(trials).to_frame()
    pd.testing.assert_frame_equal(saved.to_frame(), expected)
    assert saved["categorical"].valid.sum() > 10


def test_decoding_is_that_of_the_saved_trials(finished, record):
    folder = finished[1].folder
    trials = anndata.read_h5ad(folder / "trials.h5ad")
    success = (trials.obs["outcome"] == "success").to_numpy()
    decoder = Decoder("logistic_l1", "rsa_categorical", **DECODE).fit(trials.X, success, trials.obs["item"])
    study, control, *texts = record["rows"]
    assert (study["auroc"], record["p"], record["n_perm"]) == (decoder.score_, decoder.p_value_, 19)
    assert (study["ci_low"], study["ci_high"]) == decoder.score_ci_
    assert [row["feature"] for row in record["panel"]] == decoder.selected_features_.tolist()
    np.testing.assert_allclose([row["pattern"] for row in record["panel"]], decoder.patterns_)
    means = [trials.X[success][:, row["feature"]].mean() for row in record["panel"]]
    np.testing.assert_allclose([row["mean_positive"] for row in record["panel"]], means, rtol=1e-6)
    alone = baselines(trials.obs["text"], success, trials.obs["item"], cv=3)
    assert [row["representation"] for row in texts] == list(alone.rows)
    np.testing.assert_allclose([row["auroc"] for row in texts], alone.auroc)
    compared = alone.compare(decoder.predictions_)
    np.testing.assert_allclose([row["difference"] for row in texts], compared["difference"], atol=1e-12)
    np.testing.assert_allclose([row["difference_low"] for row in texts], compared["ci_low"])
    assert control["representation"] == "token_embeddings" and control["n_features"] < study["n_features"]
    assert control["difference"] == pytest.approx(study["auroc"] - control["auroc"])


def test_predictions_give_the_auroc(finished, record):
    table = pd.read_parquet(finished[1].folder / "decode.parquet")
    assert len(table) == record["n_trials"] == 24 and table["stimulus_id"].is_unique
    assert table.groupby("unit")["fold"].nunique().eq(1).all()
    areas = [roc_auc_score(part["side"] == "success", part["decision"]) for _, part in table.groupby("fold")]
    pairs = [(part["side"] == "success").sum() * (part["side"] == "failure").sum() for _, part in table.groupby("fold")]
    assert record["rows"][0]["auroc"] == pytest.approx(np.average(areas, weights=pairs))
    assert set(table["predicted"]) <= set(record["sides"]) == {"success", "failure"}


def test_a_second_run_does_nothing_and_damage_is_mended(finished, copied):
    folder = copied.parents[1] / "reports" / "small"
    before = digests(folder)
    assert run_pipeline(copied, verbose=0).computed == ()
    (folder / "decode.parquet").unlink()
    (folder / "rsa" / "rsa.npz").write_text("{")
    assert set(run_pipeline(copied, verbose=0).computed) == {"rsa", "decode", "report"}
    assert digests(folder) == before


def test_what_is_asked_anew_is_computed_and_what_is_not_asked_goes(finished, copied):
    copied.write_text(yaml.safe_dump(fields(rsa=RSA | {"comparison": "cosine"}, decode=DECODE)))
    assert set(run_pipeline(copied, verbose=0).computed) == {"rsa", "manifest", "report"}
    copied.write_text(yaml.safe_dump(fields()))
    run = run_pipeline(copied, verbose=0)
    assert run.computed == ("manifest", "report") and len(run.verdicts) == 1
    left = {path.name for path in run.folder.iterdir()}
    assert not left & {"rsa", "decode.json", "decode.parquet"}
    html = run.report.read_text()
    assert 'id="rsa"' not in html and 'id="decoding"' not in html and "Mantel" not in html and "Haufe" not in html


def test_verdicts_and_report_tell_both(finished):
    run = finished[1]
    starts = [verdict.split(": ")[0] for verdict in run.verdicts]
    assert starts == ["success_vs_failure", "RSA, categorical", "RSA, lexical", "decoding, success_vs_failure"]
    html = run.report.read_text()
    for words in ("Mantel N (1967)", "Kriegeskorte N", "Ojala M", "Haufe S", "rsa/rsa.parquet", "decode.parquet"):
        assert words in html
    assert run.report.stat().st_size < 2_000_000


def test_check_says_what_will_be_done(tmp_path):
    told = check_pipeline(write_project(tmp_path, **fields(rsa=RSA, decode=DECODE)))
    assert "rsa lexical: share of words" in told and "The 12 items change places as wholes" in told
    assert "decode success_vs_failure: success (12 trials) against failure (12); 12 items" in told


@pytest.mark.parametrize(
    ("analyses", "sentence"),
    [
        ({"rsa": {"models": ["categoricl"]}}, "analyses.rsa.*no model 'categoricl'; did you mean 'categorical'"),
        ({"rsa": {"models": ["discriminative:sucess"]}}, "'sucess' is no condition; did you mean 'success'"),
        ({"rsa": {"nuisance": ["numeric:lenght"]}}, "analyses.rsa.*no column 'lenght'"),
        ({"rsa": {"nuisance": ["categorical"]}}, "'categorical' is a model and held constant at once"),
        ({"rsa": {"models": []}}, r"analyses\.rsa\.models.*is empty"),
        ({"rsa": {"models": ["item", "item"]}}, "item is given more than once"),
        ({"rsa": {"comparison": "kendall"}}, r"analyses\.rsa\.comparison.*'kendall'.*'tau_a'"),
        ({"rsa": {"n_perm": 7}}, "n_perm is 7; give at least 19"),
        ({"rsa": {"permutations": 7}}, "unknown field 'analyses.rsa.permutations'"),
        ({"decode": {"estimator": "svm"}}, r"analyses\.decode\.estimator.*'svm'.*'svc_linear'"),
        ({"decode": {"selector": "rsa"}}, r"analyses\.decode\.selector.*'rsa'.*'rsa_coherence'"),
        ({"decode": {"unit": "itm"}}, r"analyses\.decode\.unit.*no column 'itm'; did you mean 'item'"),
        ({"decode": {"unit": "stimulus_id"}}, "'stimulus_id' divides items .*give 'item'"),
        ({"decode": {"unit": "template"}}, "needs 2 or more values of 'template', found 1 and 1"),
        ({"decode": {"n_features": 5000}}, "n_features is 5,000, but the dictionary has 4,096"),
        ({"decode": {"cv": 1}}, r"analyses\.decode\.cv.*greater than or equal to 2"),
        ({"decode": {"n_perm": 18}}, "n_perm is 18; give at least 19.*or 0 for no p"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_run(tmp_path, analyses, sentence):
    file = write_project(tmp_path, **fields(**analyses))
    with pytest.raises(InvalidInput, match=sentence) as caught:
        check_pipeline(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_the_worked_example_has_both(tmp_path):
    told = check_pipeline(new_project(tmp_path / "study").root / "pipelines" / "emotion.yaml")
    assert "rsa categorical: " in told and "decode emotional_vs_neutral: emotional (96 trials)" in told


def test_ranks_go_without_rsa(tmp_path):
    file = write_project(tmp_path, **fields(rsa={}) | {"features": {"transform": "rank"}})
    with pytest.raises(InvalidInput, match=r"rank does not go with analyses\.rsa"):
        check_pipeline(file)


def test_a_formula_has_nothing_to_decode(tmp_path):
    file = write_project(tmp_path, **fields(decode=DECODE))
    (tmp_path / "designs" / "small.yaml").write_text("type: formula\nformula: outcome\n")
    with pytest.raises(InvalidInput, match="nothing to decode, because a coefficient of a formula has no two sides"):
        check_pipeline(file)


def test_the_names_in_the_schema_are_those_that_exist():
    def names(part, field):
        annotation = part.model_fields[field].annotation
        found = [one for one in (annotation, *typing.get_args(annotation)) if typing.get_origin(one) is typing.Literal]
        return set(typing.get_args(found[0]))

    assert names(RSAPart, "comparison") == set(COMPARISONS)
    assert names(DecodePart, "estimator") == set(CLASSIFIERS)
    assert names(DecodePart, "selector") == set(SELECTORS)
    for part in (RSAPart, DecodePart):
        assert all(field.description for field in part.model_fields.values())
