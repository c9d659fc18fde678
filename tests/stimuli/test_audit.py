"""The audit finds what was planted and nothing else."""

import time

import numpy as np
import pandas as pd
import pytest

from neurollm.errors import InvalidInput
from neurollm.stimuli import StimulusSet
from neurollm.stimuli._lexical import LeaveOneItemOut, telltale_ngrams

WORDS = [first + second for first in "bdfglmnprst" for second in ("ako", "emi", "ila", "oru", "upe", "ani")]


def sentence(generator, n_words=8):
    return " ".join(generator.choice(WORDS, n_words)).capitalize() + "."


def clean_pairs(n_items=40, seed=0):
    """Pairs with unrelated words of equal number and length: nothing to find."""
    generator = np.random.default_rng(seed)
    rows = [
        {"text": sentence(generator), "item": f"i{i}", "template": f"t{i % 4}", "level": level}
        for i in range(n_items)
        for level in ("a", "b")
    ]
    return pd.DataFrame(rows)


def clean_crossing(n_items=30):
    generator = np.random.default_rng(1)
    rows = [
        {"text": sentence(generator), "item": f"i{i}", "x": x, "y": y}
        for i in range(n_items)
        for x in ("low", "high")
        for y in ("left", "right")
    ]
    return pd.DataFrame(rows)


def status(table, name, factor="level"):
    report = StimulusSet(table).audit()
    (check,) = [c for c in report.checks if (c.name, c.factor) == (name, factor)]
    return check


def change(table, rows, edit):
    table = table.copy()
    table.loc[rows, "text"] = table.loc[rows, "text"].map(edit)
    return table


def test_a_clean_set_passes_everything():
    report = StimulusSet(clean_pairs()).audit()
    assert report.worst == "pass", str(report)
    assert StimulusSet(clean_crossing()).audit().worst == "pass"


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda text: "Bako " + text, "length_words"),
        (lambda text: text.replace(" ", "xx ", 4), "length_characters"),
        (lambda text: text[:-1] + "!", "punctuation"),
        (lambda text: text + ".", "punctuation"),
        (lambda text: text + " ", "punctuation"),
        (lambda text: text.title(), "capitals"),
        (lambda text: text.replace("a", "4", 1), "digits"),
    ],
)
def test_a_surface_tell_fails(edit, name):
    table = clean_pairs()
    check = status(change(table, table["level"] == "b", edit), name)
    assert check.status == "fail"
    assert check.value > check.threshold
    assert "b" in check.reason


def test_a_constant_difference_within_items_is_seen_behind_noise():
    table = clean_pairs()
    generator = np.random.default_rng(3)
    noise = {item: "x" * int(generator.integers(0, 60)) for item in table["item"].unique()}
    table["text"] = [text[:-1] + noise[item] + "." for text, item in zip(table["text"], table["item"], strict=True)]
    table = change(table, table["level"] == "b", lambda text: text[:-1] + "xx.")
    assert status(table, "length_characters").status == "pass"
    paired = status(table, "length_characters_paired")
    assert paired.status == "fail"
    assert "a minus b is -2.00 characters" in paired.reason


def test_punctuation_rate_is_graded():
    table = clean_pairs(50)
    of_b = table.index[table["level"] == "b"]
    exclaim = lambda text: text[:-1] + "!"  # noqa: E731
    expected = {2: "pass", 5: "warn", 10: "fail"}
    assert {n: status(change(table, of_b[:n], exclaim), "punctuation").status for n in expected} == expected


def test_template_tell_fails():
    table = clean_pairs()
    table.loc[(table["level"] == "b") & (table["template"] == "t0"), "template"] = "t1"
    check = status(table, "template")
    assert check.status == "fail"
    assert check.value == pytest.approx(0.25)


def test_duplicates_fail_after_folding():
    table = clean_pairs()
    table.loc[5, "text"] = "  " + table.loc[2, "text"].upper().replace(" ", "  ")
    check = status(table, "duplicates", "")
    assert (check.status, check.value) == ("fail", 1.0)
    assert "'s0003', 's0006'" in check.reason


def test_materials_that_several_items_share_warn():
    verbs = [("won", "lost"), ("rose", "fell")]
    rows = [
        {"text": f"Today the {who} {verb} again.", "item": f"i{i}", "level": level, "template": "t0"}
        for i, who in enumerate(["king", "poet", "maid", "monk", "smith", "cook"])
        for level, verb in zip("ab", verbs[i % 2], strict=True)
    ]
    check = status(pd.DataFrame(rows), "materials")
    assert (check.status, check.value) == ("warn", pytest.approx(2 / 6))
    assert "6 items differ in only 2 sets of words (won / lost in 3 of them)" in check.reason
    by_words = pd.DataFrame([{**row, "words": int(row["item"][1]) % 2} for row in rows])
    (check,) = [c for c in StimulusSet(by_words).audit(["level"], item="words").checks if c.name == "materials"]
    assert (check.status, check.reason) == ("pass", "words differ in words of their own")
    with pytest.raises(InvalidInput, match="no column 'word'; did you mean 'words'"):
        StimulusSet(by_words).audit(item="word")
    alike = [row for row in rows if int(row["item"][1]) % 2]
    assert (
        "3 items differ in one set of words (rose / fell in 3 of them)"
        in status(pd.DataFrame(alike), "materials").reason
    )
    own = [{**row, "text": row["text"].replace("again", f"in {row['item']}{row['level']}")} for row in rows]
    assert status(pd.DataFrame(own), "materials").status == "pass"
    half = [row for row in rows if row["level"] == "a" or row["item"] in ("i0", "i1")]
    assert status(pd.DataFrame(half), "materials").value == 1  # of the two items with both levels
    between = [{**row, "item": row["item"] + row["level"]} for row in rows]
    same = [{**row, "text": f"{row['item']} as ever."} for row in rows]
    for table in (between, same):  # nothing to compare within items; no words that differ
        assert "materials" not in StimulusSet(pd.DataFrame(table)).audit().to_frame()["name"].tolist()


def test_incomplete_items_fail_and_unpaired_sets_warn():
    table = clean_pairs()
    check = status(table.drop(index=[1, 6]), "pairing")
    assert check.status == "fail"
    assert "2 of 40 items are incomplete, for example 'i0', 'i3'" in check.reason
    doubled = pd.concat([table, table.iloc[:1].assign(text="Something else.")])
    assert status(doubled, "pairing").status == "fail"
    unpaired = status(table.assign(item=range(len(table))), "pairing")
    assert unpaired.status == "warn"
    assert "no item occurs in two levels" in unpaired.reason


@pytest.mark.parametrize(("n_dropped", "expected"), [(0, "pass"), (6, "warn"), (12, "fail")])
def test_balance_is_graded(n_dropped, expected):
    table = clean_pairs()
    drop = table.index[table["level"] == "b"][:n_dropped]
    assert status(table.drop(index=drop), "balance").status == expected


def test_an_empty_cell_fails():
    table = clean_crossing()
    check = status(table[(table["x"] == "low") | (table["y"] == "left")], "balance", "x:y")
    assert (check.status, check.value) == ("fail", 0.0)
    assert "(high, right) has 0" in check.reason


def test_missing_targets_warn():
    table = clean_pairs().assign(target="0:3")
    assert status(table, "target", "").status == "pass"
    table.loc[3, "target"] = ""
    assert status(table, "target", "").status == "warn"
    assert "'s0004'" in status(table, "target", "").reason


def test_a_tell_in_one_cell_is_an_interaction():
    table = clean_crossing()
    cell = (table["x"] == "high") & (table["y"] == "right")
    excited = change(table, cell, lambda text: text[:-1] + "!")
    assert status(excited, "punctuation", "x:y").value == pytest.approx(1.0)
    assert status(excited, "punctuation", "x:y").status == "fail"
    longer = change(table, cell, lambda text: "Bako demi " + text)
    assert status(longer, "length_words", "x:y").status == "fail"
    unpaired = longer.assign(item=range(len(longer)))
    assert status(unpaired, "length_words", "x:y").status == "fail"


def test_main_effects_alone_are_no_interaction():
    table = clean_crossing()
    table = change(table, table["x"] == "high", lambda text: text[:-1] + "!")
    table = change(table, table["y"] == "right", lambda text: "Bako " + text)
    assert status(table, "punctuation", "x").status == "fail"
    assert status(table, "punctuation", "x:y").status == "pass"
    assert status(table, "length_words", "y").status == "fail"
    assert status(table, "length_words", "x:y").status == "pass"


def test_three_levels_report_the_worst_pair():
    generator = np.random.default_rng(5)
    rows = [
        {"text": sentence(generator, 8 + 2 * (level == "c")), "item": f"i{i}", "level": level}
        for i in range(20)
        for level in "abc"
    ]
    check = status(pd.DataFrame(rows), "length_words")
    assert check.value == 1.0
    assert check.reason.startswith("c has more words")


def test_planted_word_is_decoded_and_warned_about():
    table = clean_pairs()
    table["text"] = table.groupby("item")["text"].transform("first")
    for level, word in (("a", " triumph "), ("b", " failure ")):
        table = change(table, table["level"] == level, lambda text, word=word: text.replace(" ", word, 1))
    check = status(table, "lexical_words")
    assert (check.status, check.value) == ("warn", 1.0)
    assert "words alone decode a vs b on new items at 1.00" in check.reason
    ngrams = status(table, "template_ngrams")
    assert ngrams.status == "warn"
    assert ngrams.reason.endswith("'failure' (b), 'triumph' (a)")
    assert StimulusSet(table).audit().passed


def test_planted_word_is_found_among_unrelated_words():
    table = clean_pairs()
    table = change(table, table["level"] == "b", lambda text: text.replace(" ", " failure ", 1))
    table = change(table, table["level"] == "a", lambda text: text.replace(" ", " triumph ", 1))
    assert status(table, "lexical_words").value > 0.95


def test_random_labels_are_decoded_at_chance():
    generator = np.random.default_rng(11)
    texts = [sentence(generator) for _ in range(120)]
    values, p_values = [], []
    for paired in (True, False):
        decoder = LeaveOneItemOut(texts, np.arange(120) // 2 if paired else np.arange(120), 1)
        for _ in range(20):
            labels = np.tile([0, 1], 60) if paired else generator.permutation(np.arange(120) % 2)
            labels = generator.permuted(labels.reshape(60, 2), axis=1).ravel() if paired else labels
            accuracy, p = decoder.test(labels)
            values.append(accuracy)
            p_values.append(p)
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    assert min(p_values) > 0
    assert np.mean(np.array(p_values) <= 0.05) <= 0.2


def test_leaving_an_item_out_equals_refitting():
    generator = np.random.default_rng(2)
    texts = [sentence(generator, 5) for _ in range(24)]
    items, labels = np.arange(24) // 3, np.tile([0, 1, 2], 8)
    credit = np.zeros(24)
    vocabulary = {word for text in texts for word in text[:-1].lower().split()}
    for item in range(8):
        counts = np.zeros((3, len(vocabulary)))
        index = {word: i for i, word in enumerate(sorted(vocabulary))}
        for text, label in zip(np.array(texts)[items != item], labels[items != item], strict=True):
            for word in text[:-1].lower().split():
                counts[label, index[word]] += 1
        logs = np.log((counts + 1) / (counts.sum(axis=1, keepdims=True) + len(vocabulary)))
        for row in np.flatnonzero(items == item):
            known = [index[w] for w in texts[row][:-1].lower().split() if counts[:, index[w]].sum() > 0]
            scores = logs[:, known].sum(axis=1)
            best = np.isclose(scores, scores.max(), atol=1e-9)
            credit[row] = best[labels[row]] / best.sum()
    expected = np.mean([credit[labels == level].mean() for level in range(3)])
    assert LeaveOneItemOut(texts, items, 1).balanced_accuracy(labels) == pytest.approx(expected)


def test_shuffling_keeps_every_item_complete():
    decoder = LeaveOneItemOut(["a"] * 12, list("abcabcabcabc"), 1)
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1])
    shuffled = decoder._shuffled(labels, 4)
    assert (shuffled != labels).any()
    assert all(shuffled[decoder.item == item].sum() == 2 for item in range(3))
    between = np.array([0, 1, 1] * 4)
    assert all(len(set(decoder._shuffled(between, 4)[decoder.item == item])) == 1 for item in range(3))


def test_telltale_ngrams_need_presence_and_absence():
    texts = ["the red cat", "the red dog", "the blue cat", "the blue dog"]
    found = telltale_ngrams(texts, np.array([0, 0, 1, 1]), 0.5)
    assert found[:2] == [("red", 0), ("blue", 1)]
    assert ("the", 0) not in found


def test_report_as_frame_and_text():
    report = StimulusSet(clean_pairs(), name="demo").audit()
    frame = report.to_frame()
    assert frame.columns.tolist() == ["name", "factor", "status", "value", "threshold", "reason"]
    assert len(frame) == len(report.checks)
    lines = str(report).splitlines()
    assert lines[0] == f"demo: {len(frame)} pass, 0 warn, 0 fail"
    assert len(lines) == len(frame) + 2


def test_one_factor_can_be_audited_alone():
    stimuli = StimulusSet(clean_crossing())
    assert {check.factor for check in stimuli.audit(["x"]).checks} == {"", "x"}
    with pytest.raises(InvalidInput, match="cannot audit 'z'"):
        stimuli.audit(["z"])


def test_five_hundred_stimuli_take_less_than_two_seconds():
    stimuli = StimulusSet(clean_crossing(125))
    start = time.process_time()
    stimuli.audit()
    assert time.process_time() - start < 2
