"""Sentences for mistakes in YAML files: file, field, and what would be right."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed, read_yaml, validate


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Path(Strict):
    type: Literal["path"]
    path: str


class Demo(Strict):
    type: Literal["demo"]
    layers: int = 3


class Study(Strict):
    name: str = Field(min_length=1)
    dictionary: Annotated[Path | Demo, Field(discriminator="type")] = Demo(type="demo")
    others: dict[str, Demo] = {}
    more: list[Demo] = []
    maybe: Path | None = None
    kind: Literal["glm", "rsa"] = "glm"
    loose: dict[str, str | dict[str, float] | list[float]] = Field({"a": "b"}, min_length=1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"nam": "x"}, "unknown field 'nam'; did you mean 'name'? The fields here are"),
        ({}, "field 'name' is missing."),
        ({"name": 3}, "field 'name' is 3; expected text (put it in quotes)."),
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
        ({"name": ""}, "field 'name' is empty; expected text."),
        ({"name": None}, "field 'name' is empty; expected text."),
        ({"name": "x", "maybe": 5}, "field 'maybe' is 5; expected fields such as 'type', 'path'."),
        ({"name": "x", "others": {1: {"type": "demo"}}}, "the name 1 in field 'others' is not text; put it in quotes."),
        ({"name": "x", None: 1}, "the name None is not text; put it in quotes."),
        ({"name": "x", "loose": {"a": 5}}, "field 'loose.a' is 5; expected text, fields such as 'name: value' or a"),
        ({"name": "x", "loose": {"a": {"b": "c"}}}, "field 'loose.a.b' is 'c'; expected a number."),
        ({"name": "x", "loose": {"a": {1: 1}}}, "the name 1 in field 'loose.a' is not text"),
        ({"name": "x", "loose": {1: "a"}}, "the name 1 in field 'loose' is not text"),
        ({"name": "x", "loose": {}}, "field 'loose' is empty; expected at least 1 entry."),
        ({"name": "x", "kind": "z" * 500}, "z'...; it must be"),
        ({"name": "x", "y" * 500: 1}, "yyy...'. The fields"),
        ({"name": "x", "a\n\x00": 1}, "unknown field 'a\\n\\x00'"),
        ({"name": 10**5000}, "field 'name' is a very large number"),
        ({"name": 3, "kind": 4}, "(1 more problem in this file.)"),
    ],
)
def test_sentences(value, words):
    with pytest.raises(InvalidInput) as caught:
        validate(Study, value, "study.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("study.yaml: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


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
        ("[a, b]: 1", "line 1: the name of a field must be text, found a list"),
        ("{a: 1}: 1", "line 1: the name of a field must be text, found a mapping"),
        ("a: 1\nb: 2020-13-45", "line 2: '2020-13-45' cannot be read as a date; put it in quotes"),
        ('a: !!int "abc"', "'abc' cannot be read as a whole number"),
        ("a: " + "9" * 5000, "cannot be read as a whole number"),
        ("a: !!bool x", "'x' cannot be read as true or false"),
        ("a: !!timestamp x", "'x' cannot be read as a date"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: !!map 5", "not valid YAML"),
        ('a: "\x01"', "not valid YAML"),
    ],
)
def test_unreadable_yaml(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_yaml(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_path_with_nul():
    with pytest.raises(InvalidInput, match="NUL"):
        read_yaml("a\0b.yaml")


def test_many_names_are_counted():
    assert listed(range(14)).endswith("'11' and 2 more")


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
