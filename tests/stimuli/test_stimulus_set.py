"""Reading, selecting and writing keep every character and every role."""

import json

import pandas as pd
import pytest

from neurollm.errors import InvalidInput
from neurollm.stimuli import StimulusSet

HOSTILE = [
    '<script>alert("x")</script>',
    "NA",
    "null",
    "true",
    '"half a quote',
    "=SUM(A1:A9)",
    "{{ 7 * 7 }} ${HOME} `id`",
    " two  spaces ",
    "naïve café 東京 🦊 e\u0301",
    "שלום \u200d world",
    "back\\slash \\n not a break",
    "1e5",
]


def hostile_table():
    items = [f"i{i // 2}" for i in range(len(HOSTILE))]
    return pd.DataFrame({"text": HOSTILE, "item": items, "level": ["NA", "null"] * (len(HOSTILE) // 2)})


def crossed():
    rows = [
        {"text": f"{a} {b} {i}.", "item": f"i{i}", "template": f"t{i % 2}", "a": a, "b": b}
        for i in range(4)
        for a in ("x", "y")
        for b in ("p", "q")
    ]
    return StimulusSet(pd.DataFrame(rows), name="crossed")


def test_hostile_text_survives_a_round_trip(tmp_path):
    stimuli = StimulusSet(hostile_table(), name="hostile")
    stimuli.to_tsv(tmp_path / "hostile.tsv")
    again = StimulusSet.read_tsv(tmp_path / "hostile.tsv")
    assert again.table["text"].tolist() == HOSTILE
    assert again.levels("level") == ("NA", "null")
    assert again.sha256 == stimuli.sha256
    pd.testing.assert_frame_equal(again.table, stimuli.table)
    assert again.audit().checks


def test_round_trip_keeps_roles_levels_and_numbers(tmp_path):
    table = crossed().table.assign(length=range(16), remark="n/a", target="", split=["train", "test"] * 8)
    columns = {
        "Description": "A set.",
        "a": {"Levels": {"y": "second", "x": "first"}, "role": "factor"},
        "length": {"role": "covariate"},
        "item": {"Description": "The unit."},
    }
    stimuli = StimulusSet(table, name="full", columns=columns)
    stimuli.to_tsv(tmp_path / "full.tsv")
    again = StimulusSet.read_tsv(tmp_path / "full.tsv")
    assert again.factors == stimuli.factors == ("a",)
    assert again.levels("a") == ("y", "x")
    assert again.description == "A set."
    assert again.columns == stimuli.columns
    assert again.columns["b"]["role"] == "note"
    assert again.table["length"].dtype == float
    pd.testing.assert_frame_equal(again.table, stimuli.table)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["full.json", "full.tsv"]


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "w.tsv"
    path.write_bytes(b"\xef\xbb\xbftext\titem\tf\r\nOne.\ta\tx\r\nTwo.\ta\ty\r\n")
    assert StimulusSet.read_tsv(path).table["f"].tolist() == ["x", "y"]


def test_defaults(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text("text\titem\tf\nOne.\ta\tx\nTwo.\ta\ty\n")
    table = StimulusSet.read_tsv(path).table
    assert table.columns.tolist() == ["stimulus_id", "text", "item", "template", "f"]
    assert table["stimulus_id"].tolist() == ["s0001", "s0002"]
    assert set(table["template"]) == {"t1"}


def test_text_alone_is_a_set_without_factors():
    stimuli = StimulusSet(pd.DataFrame({"text": ["One.", "Two."]}), item_column=None)
    assert stimuli.factors == ()
    assert stimuli.cells.loc["all", "t1"] == 2
    assert stimuli.audit().passed


def test_conditions_are_unpaired_unless_asked(tmp_path):
    conditions = {"hot": ["Fire.", "Sun."], "cold": ["Ice.", "Snow."]}
    path = tmp_path / "heat.json"
    path.write_text(json.dumps(conditions))
    free = StimulusSet.from_conditions(path, factor="heat")
    assert free.name == "heat"
    assert free.table["item"].nunique() == 4
    paired = StimulusSet.from_conditions(conditions, pair_by_index=True)
    assert paired.table.groupby("item")["condition"].nunique().tolist() == [2, 2]


def test_cells_count_the_full_crossing():
    stimuli = crossed()
    assert stimuli.cells.loc[("x", "q"), "t1"] == 2
    assert stimuli.cells.to_numpy().sum() == len(stimuli) == 16
    broken = StimulusSet(stimuli.table.query("not (a == 'x' and b == 'q')"))
    assert broken.cells.loc[("x", "q")].tolist() == [0, 0]


def test_select():
    stimuli = crossed()
    part = stimuli.select(a="x", template=["t0"])
    assert len(part) == 4
    assert part.factors == ("b",)
    assert part.columns["a"]["role"] == "note"
    with pytest.raises(InvalidInput, match="column 'a' has no value 'z'; it has 'x', 'y'"):
        stimuli.select(a="z")
    with pytest.raises(InvalidInput, match=r"no column 'templte'.*did you mean 'template'"):
        stimuli.select(templte="t0")
    with pytest.raises(InvalidInput, match="no stimulus has"):
        stimuli.select(item="i0", template="t1")
    with pytest.raises(InvalidInput, match="'c' is not among the factors 'a', 'b'"):
        stimuli.levels("c")


def test_a_selection_can_be_written_and_read(tmp_path):
    part = crossed().select(a="x")
    part.to_tsv(tmp_path / "part.tsv")
    assert StimulusSet.read_tsv(tmp_path / "part.tsv").factors == ("b",)


def test_hash_follows_content_only():
    stimuli = crossed()
    table = stimuli.table
    assert StimulusSet(table[table.columns[::-1]], name="other").sha256 == stimuli.sha256
    assert StimulusSet(table.iloc[::-1]).sha256 != stimuli.sha256
    table.loc[0, "text"] += " "
    assert StimulusSet(table).sha256 != stimuli.sha256


def test_the_table_handed_out_is_a_copy():
    stimuli = crossed()
    before = stimuli.sha256
    handed_out = stimuli.table
    handed_out["text"] = "gone"
    stimuli.columns["a"]["role"] = "note"
    assert stimuli.sha256 == before
    assert stimuli.columns["a"]["role"] == "factor"


def test_repr_is_one_short_line():
    expected = "StimulusSet('crossed': 16 stimuli, 4 items, 2 templates; a: x 8, y 8; b: p 8, q 8)"
    assert repr(crossed()) == expected


def test_writing_needs_a_tsv_name(tmp_path):
    with pytest.raises(InvalidInput, match=r"must end in \.tsv"):
        crossed().to_tsv(tmp_path / "set.json")
    assert not list(tmp_path.iterdir())
