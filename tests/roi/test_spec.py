"""The field of a pipeline file."""

import json
import re

import pytest
from roi.trialset import trials

from neurollm import roi as regions
from neurollm.designs import CategoricalDesign, write_design
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.roi import ROISpec, make_roi
from neurollm.validation import read_yaml, validate

MODEL = {"from": "localizer.yaml", "model": "categorical"}
LOCALIZER = {"from": "localizer.yaml", "contrast": "winning", "n_features": 3, "items": "disjoint"}


def test_a_localizer_from_its_file(tmp_path):
    write_design(tmp_path / "localizer.yaml", CategoricalDesign("outcome"), {"winning": "won - lost"})
    (tmp_path / "roi.yaml").write_text("{from: localizer.yaml, contrast: winning, n_features: 3, items: disjoint}")
    spec = validate(ROISpec, read_yaml(tmp_path / "roi.yaml"), "roi.yaml")
    X, obs = trials(effect=2, n_carry=3)
    roi = make_roi(spec, "success", X, obs, folder=tmp_path, n_perm=99)
    assert set(roi.feature) == {0, 1, 2} and roi.contrast.expression == "won - lost" and roi.name == "success"
    with pytest.raises(DataMismatch, match="were used to select its features"):
        regions.test_roi(roi, X, obs, CategoricalDesign("outcome"), "won - lost")
    by_alpha = ROISpec.model_validate({"from": "localizer.yaml", "contrast": "won - lost", "alpha": 0.05, "by": "q"})
    assert {0, 1, 2} <= set(make_roi(by_alpha, "x", X, obs, folder=tmp_path, n_perm=0).feature)
    with pytest.raises(InvalidInput, match=re.escape("the localizer localizer.yaml was given no trials")):
        make_roi(spec, "success", folder=tmp_path)


def test_a_model_chooses(tmp_path):
    write_design(tmp_path / "localizer.yaml", CategoricalDesign("outcome"))
    X, obs = trials(n_items=24, effect=3, n_carry=3)
    for fields, method, options in (
        ({"n_features": 3}, "rsa", {"n_perm": 99}),
        ({"alpha": 0.05, "method": "rsa", "comparison": "whitened"}, "rsa", {"n_perm": 99}),
        ({"n_features": 3, "method": "greedy"}, "greedy", {"steps": "swap"}),
        ({"max_false": 0.4, "method": "stability"}, "stability", {"n_pairs": 10}),
    ):
        (tmp_path / "roi.yaml").write_text(json.dumps({"from": "localizer.yaml", "model": "categorical", **fields}))
        spec = validate(ROISpec, read_yaml(tmp_path / "roi.yaml"), "roi.yaml")
        ids = [f"f{number}" for number in range(40)]
        roi = make_roi(spec, "success", X, obs, features=ids, folder=tmp_path, **options)
        assert set(roi.feature) >= {"f0", "f1", "f2"} and roi.method == method and roi.name == "success"
        if "n_features" in fields:
            assert len(roi.feature) == 3
        with pytest.raises(DataMismatch, match="were used to select its features"):
            regions.test_roi(roi, X, obs, CategoricalDesign("outcome"), "won - lost", features=ids)
        with pytest.raises(InvalidInput, match="no column 'text'"):
            make_roi(spec, "success", X, obs.drop(columns="text"), folder=tmp_path, **options)


def test_a_declared_region():
    spec = ROISpec.model_validate({"from": "declared", "features": ["f3", 4], "reason": "labelled 'negation'"})
    assert make_roi(spec, "negation").feature == ("f3", 4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({**LOCALIZER, "items": "any"}, "field 'items' is 'any'; it must be 'disjoint'"),
        ({**LOCALIZER, "nfeatures": 2}, "unknown field 'nfeatures'; did you mean 'n_features'?"),
        ({**LOCALIZER, "alpha": 0.05}, "a localizer needs a contrast, and either n_features or alpha"),
        ({"from": "localizer.yaml", "n_features": 3}, "a localizer needs a contrast, and either n_features or alpha"),
        ({**LOCALIZER, "reason": "x"}, "features and reason are only for 'from: declared'"),
        ({"contrast": "winning", "n_features": 3}, "field 'from' is missing"),
        (
            {**LOCALIZER, "model": "categorical"},
            "a localizer needs a contrast, and either n_features or alpha; or a model",
        ),
        ({**LOCALIZER, "method": "greedy"}, "method, comparison and max_false say how a model chooses"),
        ({**MODEL, "n_features": 3, "alpha": 0.1}, "method 'rsa' needs either n_features or alpha"),
        ({**MODEL, "method": "greedy", "alpha": 0.1}, "method 'greedy' needs n_features, and no alpha"),
        ({**MODEL, "method": "stability", "n_features": 3}, "method 'stability' chooses by max_false"),
        ({**MODEL, "method": "best"}, "field 'method' is 'best'; it must be 'rsa', 'greedy' or 'stability'"),
        ({"from": "declared", "features": [3]}, "a declared region needs features and a reason"),
        (
            {"from": "declared", "features": [3], "reason": "x", "n_features": 3},
            "a declared region is not chosen by data, so leave out n_features",
        ),
    ],
)
def test_fields_that_are_refused(fields, sentence):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        validate(ROISpec, fields, "study.yaml")
