"""Every broken rule is one sentence that names the place and what would be right."""

import json

import numpy as np
import pandas as pd
import pytest

from neurollm.errors import InvalidInput
from neurollm.stimuli import StimulusSet

HEADER = "stimulus_id\ttext\titem\ttemplate\toutcome"
GOOD = [
    "s1\tShe won the race.\trace\tt1\tsuccess",
    "s2\tShe lost the race.\trace\tt1\tfailure",
]


def write(tmp_path, lines, sidecar=None, name="demo"):
    path = tmp_path / f"{name}.tsv"
    path.write_bytes("\n".join(lines).encode() if isinstance(lines, list) else lines)
    if sidecar is not None:
        text = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
        path.with_suffix(".json").write_text(text, encoding="utf-8")
    return path


def message(path, **kwargs):
    with pytest.raises(InvalidInput) as error:
        StimulusSet.read_tsv(path, **kwargs)
    text = str(error.value)
    assert error.value.exit_code == 2
    assert text.startswith(str(path.with_suffix("")))
    assert "\n" not in text
    return text


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in message(tmp_path / "none.tsv")
    assert "is a folder" in message(tmp_path)


def test_not_utf8_names_the_line(tmp_path):
    path = write(tmp_path, b"text\titem\nFine.\ta\ncaf\xe9\tb\n")
    assert "line 3: byte 0xe9 is not UTF-8" in message(path)


def test_json_given_as_table(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert "from_conditions" in message(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n"])
def test_empty_file(tmp_path, content):
    assert "line 1: the header is empty" in message(write(tmp_path, content))


def test_header_only(tmp_path):
    assert "has a header but no stimuli" in message(write(tmp_path, [HEADER]))


def test_missing_text_column_names_the_closest(tmp_path):
    text = message(write(tmp_path, ["txt\titem", "Hello.\ta"]))
    assert "column 'text' is missing; the columns are 'txt', 'item'; did you mean 'txt'?" in text


def test_commas_instead_of_tabs(tmp_path):
    assert "separated by tabs, not commas" in message(write(tmp_path, ["text,item", "Hello.,a"]))


def test_missing_item_column_says_what_it_is(tmp_path):
    path = write(tmp_path, ["text\tpair\toutcome", "A one.\tp\tx", "A two.\tp\ty"])
    assert "column 'item' is missing; the columns are 'text', 'pair', 'outcome'" in message(path)
    assert "names the content unit" in message(path) and "item_column=" not in message(path)
    assert StimulusSet.read_tsv(path, item_column="pair").table["item"].tolist() == ["p", "p"]
    alone = StimulusSet.read_tsv(write(tmp_path, ["text\toutcome", "A.\tx", "B.\ty", "C.\ty"]), item_column=None)
    assert alone.table["item"].tolist() == ["s0001", "s0002", "s0003"]


def test_item_column_in_conflict(tmp_path):
    path = write(tmp_path, [HEADER + "\tpair", GOOD[0] + "\tp", GOOD[1] + "\tp"])
    assert "leave the argument out" in message(path, item_column=None)
    assert "item_column='pair' exist; keep one" in message(path, item_column="pair")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s2\t \trace\tt1\tfailure", "line 3, column 'text': the field is empty"),
        ("s2\tShe lost.\t\tt1\tfailure", "line 3, column 'item': the field is empty"),
        ("s2\tShe lost.\trace\tt1\t", "line 3, column 'outcome': the field is empty"),
        ("s1\tShe lost.\trace\tt1\tfailure", "line 3, column 'stimulus_id': 's1' was already used in line 2"),
        ("s2\tShe\tlost.\trace\tt1\tfailure", "line 3: the line has 6 tab-separated fields but the header has 5"),
        ("s2\tShe lost.", "line 3: the line has 2 tab-separated fields"),
        (
            "s2\tShe\x07 lost.\trace\tt1\tfailure",
            "line 3, column 'text': the field contains the control character U+0007",
        ),
        ("s2\tShe\r lost.\trace\tt1\tfailure", "line 3, column 'text': the field contains a carriage return"),
        (
            "s2\tShe\u2028 lost.\trace\tt1\tfailure",
            "line 3, column 'text': the field contains the control character U+2028",
        ),
        ("s2\tShe lost.\trace\tt1\tsuccess", "factor 'outcome' has one level, 'success'"),
        ("\ns2\tShe lost.\trace\tt1\tfailure", "line 3: the line is blank"),
    ],
)
def test_bad_line(tmp_path, line, expected):
    assert expected in message(write(tmp_path, [HEADER, GOOD[0], line]))


@pytest.mark.parametrize(
    ("header", "expected"), [("text\t\titem", "column 2 has no name"), ("text\titem\titem", "twice")]
)
def test_bad_header(tmp_path, header, expected):
    expected = "column 'item' occurs 2 times" if expected == "twice" else expected
    assert f"line 1: {expected}" in message(write(tmp_path, [header, "a\tb\tc"]))


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("4:99", "the span 4:99 lies outside the text, which has 17 characters"),
        ("4:4", "0 <= start < end"),
        ("7:4", "0 <= start < end"),
        ("4-7", "'4-7' is not a span; write start:end"),
        ("-1:3", "is not a span"),
        ("1:" + "9" * 5000, "outside the text"),
        ("٤:٧", "is not a span"),
    ],
)
def test_bad_target_span(tmp_path, span, expected):
    path = write(tmp_path, [HEADER + "\ttarget", f"{GOOD[0]}\t{span}", f"{GOOD[1]}\t4:8"])
    text = message(path)
    assert "line 2, column 'target'" in text
    assert expected in text


@pytest.mark.parametrize(
    ("sidecar", "expected"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "the JSON is a list; an object"),
        ('{"outcome": {}, "outcome": {}}', "key 'outcome' occurs 2 times"),
        ('{"outcome": {"Description": "\\ud800"}}', "half of a character"),
        ("[" * 100_000, "nested too deeply"),
        ({"outcom": {}}, "column 'outcom' is described but not in the table"),
        ({"outcome": "x"}, "the entry of column 'outcome' must be an object"),
        ({"outcome": {"role": "fcator"}}, "column 'outcome' has the role 'fcator'; use one of 'factor', 'covariate'"),
        ({"text": {"role": "factor"}}, "column 'text' has a fixed meaning"),
        ({"outcome": {"Levels": ["success"]}}, "'Levels' of column 'outcome' must be an object"),
        ({"Description": 3}, "field 'Description' must be a sentence"),
    ],
)
def test_bad_sidecar(tmp_path, sidecar, expected):
    text = message(write(tmp_path, [HEADER, *GOOD], sidecar))
    assert "demo.json" in text
    assert expected in text


def test_undeclared_level_names_line_and_closest(tmp_path):
    path = write(tmp_path, [HEADER, *GOOD], {"outcome": {"Levels": {"success": "", "failed": ""}}})
    text = message(path)
    assert "line 3, column 'outcome': level 'failure' is not among the declared levels 'success', 'failed'" in text
    assert "did you mean 'failed'?" in text


@pytest.mark.parametrize("name", ["n_tokens", "position", "_index"])
def test_names_of_the_trial_table_are_refused(tmp_path, name):
    path = write(tmp_path, [f"{HEADER}\t{name}", f"{GOOD[0]}\t1", f"{GOOD[1]}\t2"])
    assert f"the column name '{name}' is used by the trial table; rename the column" in message(path)


def test_a_sidecar_with_an_endless_number(tmp_path):
    path = write(tmp_path, [HEADER, *GOOD], '{"outcome": {"n": ' + "9" * 5000 + "}}")
    assert "too many digits" in message(path)


def test_levels_of_a_factor_stay_text():
    table = pd.DataFrame({"text": ["A.", "B."], "item": ["a", "a"], "dose": ["1", "2"]})
    stimuli = StimulusSet(table, factors=["dose"], columns={"dose": {"role": "covariate"}})
    assert stimuli.levels("dose") == ("1", "2")


def test_a_level_per_stimulus_is_no_factor(tmp_path):
    path = write(tmp_path, ["text\titem\tscore", "A.\ta\t1", "B.\tb\t2", "C.\tc\t3"])
    assert "a different level for each of the 3 stimuli; give the column the role 'covariate'" in message(path)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"text": ["A.", None], "item": ["a", "b"]}, "mine, row 2, column 'text': the value is missing"),
        ({"text": ["A.", 3], "item": ["a", "b"]}, "mine, row 2, column 'text': found int; a text is a string"),
        ({"text": ["A.", "B\nC"], "item": ["a", "b"]}, "mine, row 2, column 'text': the field contains a line break"),
        ({"text": ["A.", "\ud800"], "item": ["a", "b"]}, "U+D800"),
        ({"text": ["A.", "B."], "item": ["a", "b"], "x": [1.0, np.inf]}, "row 2, column 'x': the value is infinite"),
        ({"text": ["A.", "B."], "item": ["a", "b"], "x\t": ["p", "q"]}, "the name of column 'x\\t' contains a tab"),
        ({"text": [], "item": []}, "mine: there are no stimuli"),
    ],
)
def test_bad_table_in_memory(table, expected):
    with pytest.raises(InvalidInput) as error:
        StimulusSet(pd.DataFrame(table), name="mine")
    assert expected in str(error.value)


def test_unknown_factor_is_answered_with_the_closest():
    table = pd.DataFrame({"text": ["A.", "B."], "item": ["a", "a"], "outcome": ["x", "y"]})
    with pytest.raises(InvalidInput, match=r"factor 'outcme' is not among the columns 'outcome'; did you mean"):
        StimulusSet(table, factors=["outcme"])


@pytest.mark.parametrize(
    ("conditions", "kwargs", "expected"),
    [
        ({"a": ["One."], "b": "Two."}, {}, "condition 'b' must hold a list"),
        ({"a": ["One."], "b": []}, {}, "condition 'b' must hold a list of at least one sentence"),
        ({"a": ["One."], "b": ["Two.", "  "]}, {}, "condition 'b', sentence 2, column 'text': the field is empty"),
        ({"a": ["One."], "b": ["Two.", 7]}, {}, "condition 'b', sentence 2, column 'text': found int"),
        ({"a": ["One."], "b": ["T\two."]}, {}, "condition 'b', sentence 1, column 'text': the field contains a tab"),
        ({"a": ["One.", "Two."]}, {}, "factor 'condition' has one level, 'a'"),
        ({}, {}, "there are no stimuli"),
        ({"a": ["One."], "b": ["Two.", "Three."]}, {"pair_by_index": True}, "found {'a': 1, 'b': 2}"),
        ({"a": ["One."], "b": ["Two."]}, {"factor": "item"}, "a factor cannot be called 'item'"),
    ],
)
def test_bad_conditions(tmp_path, conditions, kwargs, expected):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(conditions))
    with pytest.raises(InvalidInput) as error:
        StimulusSet.from_conditions(path, **kwargs)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)
