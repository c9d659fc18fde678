"""Sentences for mistakes in YAML files: file, field, and what would be right."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from neurollm.errors import InvalidInput
from neurollm.validation import closest, read_yaml, validate


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Path(Strict):
    type: Literal["path"]
    path: str


class Demo(Strict):
    type: Literal["demo"]
    layers: int = 3


class Study(Strict):
    name: str
    dictionary: Annotated[Path | Demo, Field(discriminator="type")] = Demo(type="demo")
    others: dict[str, Demo] = {}
    more: list[Demo] = []
    maybe: Path | None = None
    kind: Literal["glm", "rsa"] = "glm"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"nam": "x"}, "unknown field 'nam'; did you mean 'name'? The fields here are"),
        ({}, "field 'name' is missing."),
        ({"name": 3}, "field 'name' is 3; it should be a valid string."),
        ({"name": "x", "kind": "rsaa"}, "field 'kind' is 'rsaa'; it must be 'glm' or 'rsa'."),
        ({"name": "x", "dictionary": {"type": "demo", "layer": 1}}, "'dictionary.layer'; did you mean 'layers'?"),
        (
            {"name": "x", "dictionary": {"type": "dem"}},
            "field 'dictionary.type' is 'dem'; it must be one of 'path', 'demo'.",
        ),
        ({"name": "x", "dictionary": {"layers": 1}}, "field 'dictionary' needs 'type'"),
        ({"name": "x", "others": {"a": {"type": "demo", "layrs": 1}}}, "'others.a.layrs'; did you mean 'layers'?"),
        ({"name": "x", "more": [{"type": "demo", "layrs": 1}]}, "'more.0.layrs'; did you mean 'layers'?"),
        ({"name": "x", "maybe": {"type": "path", "pth": "a"}}, "'maybe.pth'; did you mean 'path'?"),
        ({"name": 3, "kind": 4}, "(1 more problem in this file.)"),
    ],
)
def test_sentences(value, words):
    with pytest.raises(InvalidInput) as caught:
        validate(Study, value, "study.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("study.yaml: ") and "\n" not in str(caught.value)


def test_valid_data_pass():
    assert validate(Study, {"name": "x"}, "study.yaml").dictionary.layers == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "line 2 gives the field 'c' a second time"),
        ("a: [1", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("", "found nothing"),
        ("- 1", "found a list"),
    ],
)
def test_unreadable_yaml(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_yaml(path)
    assert words in str(caught.value)


def test_anchors_and_files_that_are_not_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {x: 1}\nother: {<<: *b, y: 2}")
    assert read_yaml(path)["other"] == {"x": 1, "y": 2}
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_yaml(path)
    with pytest.raises(InvalidInput, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_closest():
    assert closest("Sucess", ["success", "failure"]) == "; did you mean 'success'?"
    assert closest("zebra", ["success"]) == ""
