"""The stimulus sets that come with neurollm keep what their descriptions promise."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from neurollm.stimuli import StimulusSet

FOLDER = Path(__file__).resolve().parents[2] / "stimuli"
SETS = {
    "success": {"outcome": ("success", "failure")},
    "formality_emotion": {"register": ("formal", "casual"), "emotion": ("neutral", "emotional")},
    "truth_negation": {"truth": ("true", "false"), "polarity": ("affirmative", "negated")},
    "word_order": {"order": ("first", "second")},
}
# What words alone may decode, because they define the factor.
BY_WORDS = {"success": {"outcome"}, "formality_emotion": {"register", "emotion"}, "truth_negation": {"polarity"}}
SHARED_WORDS = {"success": ("outcome",), "truth_negation": ("polarity",)}


@pytest.fixture(params=SETS)
def stimuli(request):
    return StimulusSet.read_tsv(FOLDER / f"{request.param}.tsv")


def pairs(stimuli, factor):
    a, b = stimuli.levels(factor)
    wide = stimuli.table.pivot(index="item", columns=factor, values="text")
    return list(zip(wide[a].str.split(), wide[b].str.split(), strict=True))


def test_shape(stimuli):
    factors = SETS[stimuli.name]
    assert {factor: stimuli.levels(factor) for factor in stimuli.factors} == factors
    n_items = stimuli.table["item"].nunique()
    assert n_items >= 48
    assert len(stimuli) == n_items * 2 ** len(factors)
    assert stimuli.cells.nunique().eq(1).all()
    assert stimuli.table["template"].nunique() == 4


def test_audit_has_no_failure_and_only_declared_warnings(stimuli):
    report = stimuli.audit()
    assert report.passed, str(report)
    warned = {(check.name, check.factor) for check in report.checks if check.status == "warn"}
    expected = {(f"lexical_{unit}", f) for f in BY_WORDS.get(stimuli.name, ()) for unit in ("words", "bigrams")}
    expected |= {("materials", factor) for factor in SHARED_WORDS.get(stimuli.name, ())}
    assert warned == expected
    for factor in BY_WORDS.get(stimuli.name, ()):
        assert "by definition" in stimuli.columns[factor]["Description"]


def test_sentences_are_plain(stimuli):
    for text in stimuli.table["text"]:
        assert text.isascii()
        assert re.fullmatch(r"[A-Z][A-Za-z]*( [A-Za-z]+,?)+\.", text), text
        assert 6 <= len(text.split()) <= 14, text


def test_files_are_as_written_by_the_package(stimuli, tmp_path):
    path = tmp_path / f"{stimuli.name}.tsv"
    stimuli.to_tsv(path)
    for suffix in (".tsv", ".json"):
        assert path.with_suffix(suffix).read_bytes() == (FOLDER / f"{stimuli.name}{suffix}").read_bytes()


def test_every_column_is_described(stimuli):
    assert stimuli.description
    assert set(stimuli.columns) == set(stimuli.table.columns)
    assert all(entry["Description"] for entry in stimuli.columns.values())
    for column in ("template", *stimuli.factors):
        assert set(stimuli.columns[column]["Levels"]) == set(stimuli.table[column])


def test_success_pairs_are_minimal():
    stimuli = StimulusSet.read_tsv(FOLDER / "success.tsv")
    for won, lost in pairs(stimuli, "outcome"):
        assert len(won) == len(lost)
        assert 1 <= sum(a != b for a, b in zip(won, lost, strict=True)) <= 3


def test_success_targets_are_the_word_pair():
    table = StimulusSet.read_tsv(FOLDER / "success.tsv").table
    for row in table.itertuples():
        start, end = map(int, row.target.split(":"))
        assert row.text[start:end] == row.word_pair.split("/")[row.outcome == "failure"]
    uses = table.groupby("word_pair").agg({"item": "nunique", "template": "nunique"})
    assert uses["item"].between(2, 6).all()
    assert uses["template"].ge(3).all()
    assert len(uses) == 14


@pytest.mark.parametrize("name", ["formality_emotion", "truth_negation"])
def test_crossed_items_have_one_length_in_words(name):
    table = StimulusSet.read_tsv(FOLDER / f"{name}.tsv").table
    lengths = table["text"].str.split().str.len()
    assert lengths.groupby(table["item"]).nunique().eq(1).all()


def test_truth_is_crossed_with_every_word():
    table = StimulusSet.read_tsv(FOLDER / "truth_negation.tsv").table
    words = {level: Counter(" ".join(rows["text"]).split()) for level, rows in table.groupby("truth")}
    assert words["true"] == words["false"]
    assert table.groupby("predicates")["item"].nunique().eq(2).all()


def test_truth_follows_from_fit_and_polarity():
    table = StimulusSet.read_tsv(FOLDER / "truth_negation.tsv").table
    for _, item in table.groupby("item"):
        last = {(row.truth, row.polarity): set(row.text.split()) for row in item.itertuples()}
        for polarity in ("affirmative", "negated"):
            assert last["true", polarity] != last["false", polarity]
        fitting = last["true", "affirmative"] - last["false", "affirmative"]
        assert fitting == last["false", "negated"] - last["true", "negated"]


def test_word_order_pairs_are_the_same_words():
    stimuli = StimulusSet.read_tsv(FOLDER / "word_order.tsv")
    for first, second in pairs(stimuli, "order"):
        assert Counter(first) == Counter(second)
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 2


def test_word_order_levels_follow_the_documented_ring():
    stimuli = StimulusSet.read_tsv(FOLDER / "word_order.tsv")
    found = []
    for first, second in pairs(stimuli, "order"):
        swapped = [a for a, b in zip(first, second, strict=True) if a != b]
        found.append(tuple(swapped))
    nouns = {noun for pair in found for noun in pair}
    ring = sorted(nouns, key=lambda noun: hashlib.sha256(noun.encode()).hexdigest())
    assert set(found) == set(zip(ring, ring[1:] + ring[:1], strict=True))
    assert Counter(a for a, _ in found) == Counter(b for _, b in found) == Counter(ring)
    assert abs(sum(a < b for a, b in found) - len(found) / 2) <= 3
