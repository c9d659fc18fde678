"""Regions, what they remember, and every refusal of an overlap."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from roi.trialset import trials

from neurollm import roi as regions
from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import FeatureGLM
from neurollm.roi import ROI, check_disjoint, localize, select_roi
from neurollm.roi.contents import linked, normalised, text_hash

DESIGN = CategoricalDesign("outcome")


def fitted(X, obs, contrast="won - lost", **options):
    return FeatureGLM(DESIGN, **{"n_perm": 200, **options}).fit(X, obs).compute_contrast(contrast)


def selected(n_features=3, **options):
    X, obs = trials(effect=2, n_carry=3, **options)
    return localize(DESIGN, "won - lost", X, obs, name="success", n_features=n_features, n_perm=200), obs


def refusal(roi, obs, item="item"):
    with pytest.raises(DataMismatch) as error:
        check_disjoint(roi, obs, item)
    return str(error.value)


def test_selection_remembers_rule_contrast_and_contents():
    roi, obs = selected()
    assert set(roi.feature) == {0, 1, 2} and roi.signs == (1, 1, 1) and roi.contrast.expression == "won - lost"
    assert roi.selection == (
        "the 3 largest t of 40 tested features (either direction) in the contrast 'won - lost', 20 items."
    )
    assert roi.items == tuple(sorted(set(obs["item"]))) and roi.item == "item" and not roi.is_declared
    assert set(roi.texts) == {text_hash(text) for text in obs["text"]} and len(roi.texts) == 40


def test_selection_follows_the_statistic_and_the_alternative():
    X, obs = trials(effect=2, n_carry=3)
    X[:, 5] -= 3 * (obs["outcome"] == "won")
    two_sided = fitted(X, obs)
    chosen = select_roi(two_sided, obs, "x", n_features=4)
    assert list(chosen.feature) == np.argsort(-np.abs(two_sided.stat))[:4].tolist()
    assert dict(zip(chosen.feature, chosen.signs, strict=True)) == {0: 1, 1: 1, 2: 1, 5: -1}
    for alternative, feature, sign in (("greater", {0, 1, 2}, 1), ("less", {5}, -1)):
        result = fitted(X, obs, alternative=alternative)
        roi = select_roi(result, obs, "x", alpha=0.05)
        assert set(roi.feature) == feature and set(roi.signs) == {sign}
        assert set(roi.feature) == set(np.flatnonzero(result.p_fwer <= 0.05))
    by_q = select_roi(two_sided, obs, "x", alpha=0.05, by="q")
    assert set(by_q.feature) == set(np.flatnonzero(two_sided.q <= 0.05))
    with pytest.raises(InvalidInput, match=r"\d+ tested features lie in the direction of the alternative \(greater\)"):
        select_roi(fitted(X, obs, alternative="greater"), obs, "x", n_features=40)


def test_selection_by_an_f_contrast_has_no_signs():
    X, obs = trials(n_items=30, between=True)
    obs["outcome"] = np.resize(["won", "lost", "drew"], 30)
    X[:, 7] += 3 * (obs["outcome"] == "won")
    roi = select_roi(fitted(X, obs, ["won - lost", "drew - lost"]), obs, "x", n_features=1)
    assert roi.feature == (7,) and roi.signs == (1,) and "largest F" in roi.selection


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({}, "give either n_features or alpha"),
        ({"n_features": 2, "alpha": 0.05}, "give either n_features or alpha"),
        ({"n_features": 0}, "n_features must be a whole number of at least 1, found 0"),
        ({"n_features": 41}, "40 tested features lie in the direction of the alternative"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1, found 1.5"),
        ({"alpha": 0.05, "by": "p"}, "by is 'p'; it must be 'p_fwer' or 'q'"),
        ({"alpha": 0.001}, "no feature has p_fwer ≤ 0.001; the smallest is"),
    ],
)
def test_selection_rules_that_are_refused(rule, sentence):
    X, obs = trials()
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        select_roi(fitted(X, obs), obs, "x", **rule)


def test_selection_needs_the_texts_and_the_whole_table():
    X, obs = trials()
    result = fitted(X, obs)
    with pytest.raises(InvalidInput, match="no column 'text', which holds the stimuli; without it nobody can tell"):
        select_roi(result, obs.drop(columns="text"), "x", n_features=2)
    with pytest.raises(InvalidInput, match="no column 'text'"):
        localize(DESIGN, "won - lost", X, obs.drop(columns="text"), name="x", n_features=2)
    with pytest.raises(InvalidInput, match="column 'text' is empty in 1 trials"):
        select_roi(result, obs.assign(text=[None, *obs["text"][1:]]), "x", n_features=2)
    with pytest.raises(
        DataMismatch,
        match=r"20 trials\) is not the one that contrast 'won - lost' was computed from \(20 items\); give",
    ):
        select_roi(result, obs[:20], "x", n_features=2)
    with pytest.raises(InvalidInput, match="has no p_fwer"):
        select_roi(fitted(X, obs, n_perm=0), obs, "x", alpha=0.05)


def test_declared_regions_need_a_reason_and_are_never_refused():
    _, obs = trials()
    roi = ROI.declared("negation", np.array([3, 5]), "labelled 'not' in the index")
    assert roi.feature == (3, 5) and roi.is_declared and roi.selection == "labelled 'not' in the index"
    check_disjoint(roi, obs.drop(columns="text"))
    for reason in ("", "  ", None):
        with pytest.raises(InvalidInput, match="a declared region needs a written reason"):
            ROI.declared("negation", [3], reason)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": " "}, "the name is empty"),
        ({"features": []}, "it has no features"),
        ({"features": [3, 3]}, "the feature '3' is given more than once"),
        ({"features": [1.5]}, "a feature id must be a whole number or text, found 1.5"),
        ({"features": "12"}, "features must be a list of ids, found '12'"),
        ({"signs": [1, 2]}, "signs must hold +1 or -1 for each of the 2 features"),
    ],
)
def test_impossible_regions(change, sentence):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        ROI.declared(**{"name": "x", "features": [1, 2], "reason": "by hand", **change})


def test_saved_and_loaded(tmp_path):
    roi, obs = selected()
    path = roi.save(tmp_path / "success.json")
    assert ROI.load(path) == roi and [file.name for file in tmp_path.iterdir()] == ["success.json"]
    assert "items of this trial table" not in path.read_text() and "Runner" not in path.read_text()  # hashes only
    assert "20 items" in refusal(ROI.load(path), obs)
    declared = ROI.declared("x", ["a", "b"], "by hand", signs=[1, -1])
    assert ROI.load(declared.save(tmp_path / "declared.json")) == declared


def test_damaged_files(tmp_path):
    path = selected()[0].save(tmp_path / "roi.json")
    plain = json.loads(path.read_text())
    with pytest.raises(InvalidInput, match="there is no such file"):
        ROI.load(tmp_path / "other.json")
    for change, kind, sentence in (
        ({"format": "x"}, InvalidInput, "this is not a saved ROI"),
        ({"version": 0}, DataMismatch, "written by another version"),
        ({"signs": [1]}, DataMismatch, "the ROI is damaged"),
        ({"texts": "abc"}, DataMismatch, "texts must hold SHA-256 hashes, 64 hex digits each"),
        # Nobody turns a selected region into a declared one by deleting what it was selected on.
        ({"texts": [], "items": []}, DataMismatch, "needs the hashes of the texts it was chosen on"),
    ):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(kind, match=sentence):
            ROI.load(path)
    path.write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read as JSON"):
        ROI.load(path)


def test_other_contents_pass():
    roi, _ = selected()
    check_disjoint(roi, trials(prefix="new")[1])


def test_the_sentence_names_items_and_texts():
    roi, obs = selected()
    sentence = refusal(roi, pd.concat([trials(prefix="new")[1], obs[:10]]))
    assert sentence == (
        "ROI 'success': 5 items ('i00', 'i01', 'i02' …) and 10 texts ('Runner i00 won.', 'Runner i00 lost.', "
        "'Runner i01 won.' …) of this trial table were used to select its features, so a test on them would be "
        "circular; test it on other contents."
    )


def test_texts_under_other_item_names():
    roi, obs = selected()
    renamed = obs[:4].assign(item=["a", "a", "b", "b"], text=[f" {text.upper()}  " for text in obs["text"][:4]])
    sentence = refusal(roi, renamed)
    assert "items" not in sentence.split("(")[0]
    assert "4 texts (' RUNNER I00 WON.  '" in sentence and "also under other item names" in sentence
    long = renamed.assign(text=[obs["text"][0] + " " * 100] * 4)
    assert "…'" in refusal(roi, long) and "1 text (" in refusal(roi, long)


def test_the_same_items_under_another_column_name_or_type():
    X, obs = trials(effect=2, n_carry=3)
    obs["item"] = np.repeat(np.arange(20), 2)
    roi = localize(DESIGN, "won - lost", X, obs, name="x", n_features=3, n_perm=200)
    new_texts = trials(prefix="new")[1]["text"]
    for labels in (obs["item"].astype(float), obs["item"].astype(str), obs["item"].astype("category")):
        other = pd.DataFrame({"scene": labels, "text": new_texts})
        assert "20 items ('0" in refusal(roi, other, "scene")
    # An item column of other names does not hide the one that was used at selection.
    both = pd.DataFrame({"scene": np.arange(100, 140), "item": obs["item"], "text": new_texts})
    assert "20 items ('0', '1', '2' …)" in refusal(roi, both, "scene")
    assert "20 items ('0', '1', '2' …)" in refusal(roi, both, None)


def test_equal_names_of_different_contents_are_refused_with_the_remedy():
    roi, obs = selected()
    other = obs.assign(text=[f"Something else, {number}." for number in range(40)])
    assert refusal(roi, other).endswith(
        "test it on other contents; no text of these items was seen there, so if they are different contents that only "
        "bear the same names, rename the items of one table."
    )
    check_disjoint(roi, other.assign(item="other-" + other["item"]))


def test_tables_that_cannot_be_checked():
    roi, _ = selected()
    new = trials(prefix="new")[1]
    with pytest.raises(InvalidInput, match="no column 'text'"):
        check_disjoint(roi, new.drop(columns="text"))
    with pytest.raises(InvalidInput, match=r"no column 'itm', which names the items; did you mean 'item'\?"):
        check_disjoint(roi, new, "itm")
    with pytest.raises(InvalidInput, match="expected a trial table with one row per trial, found dict"):
        check_disjoint(roi, {})
    with pytest.raises(InvalidInput, match="the trial table is empty"):
        check_disjoint(roi, new[:0])
    with pytest.raises(InvalidInput, match="column 'item' is empty in 2 trials"):
        check_disjoint(roi, new.assign(item=[None, None, *new["item"][2:]]))


def test_without_items_texts_are_the_contents():
    X, obs = trials(between=True, effect=2, n_carry=3)
    free = CategoricalDesign("outcome", item=None, item_reason="sentences drawn one by one")
    roi = localize(free, "won - lost", X, obs, name="x", n_features=3, n_perm=200)
    assert roi.items == () and roi.item is None and len(roi.texts) == 20
    assert "2 texts" in refusal(roi, obs[:2], None)
    check_disjoint(roi, trials(prefix="new")[1], None)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("Cafe\u0301", "café"),
        ("a\u00a0 b\n", "A b"),
        (3.0, "3"),
        ("１２", 12),
    ],
)
def test_what_counts_as_the_same_content(a, b):
    assert normalised(a) == normalised(b) and text_hash(a) == text_hash(b)
    assert normalised("3.05") != normalised("3") and text_hash("a b") != text_hash("ab")


def test_linked_against_a_search():
    rng = np.random.default_rng(0)
    for _ in range(20):
        items, texts = rng.integers(0, 12, 25), rng.integers(0, 20, 25)
        group = np.arange(25)
        for _ in range(25):  # spread the smallest number until nothing changes
            for keys in (items, texts):
                for key in set(keys):
                    group[keys == key] = group[keys == key].min()
        found = linked(items, texts)
        np.testing.assert_array_equal(found[:, None] == found, group[:, None] == group)


def test_everything_is_exported():
    assert all(hasattr(regions, name) for name in regions.__all__)
    with pytest.raises(AttributeError):
        _ = regions.nothing


@pytest.mark.parametrize(
    "same",
    [
        "it\u200b's over", "it\ufeff's over.", "It\u2019s over", "\u201cit's over\u201d", "it's\u00ad over!",
        "it's over\x00",
        b"it's over", "it's\ufe0f over",
    ],
)  # fmt: skip
def test_texts_that_look_alike_are_the_same_text(same):
    assert text_hash(same) == text_hash("it's over") != text_hash("it's all over")


@pytest.mark.parametrize("same", ["7.000000e+00", "+7", 7, "7.", 7.0, "07", "7\u200b"])
def test_numbers_of_items_are_the_same_however_written(same):
    assert normalised(same) == "7" != normalised("7.5") == normalised("7.50")


def test_part_of_the_trials_is_not_the_table_that_was_fitted():
    X, obs = trials()
    X, obs = np.vstack([X, X]), pd.concat([obs, obs.assign(text=obs["text"] + " Again")], ignore_index=True)
    result = fitted(X, obs)
    with pytest.raises(DataMismatch, match="is not the one"):
        select_roi(result, obs[:40], "roi", n_features=3)  # every item, but half of the wordings
    with pytest.raises(DataMismatch, match="is not the one"):
        select_roi(result, obs.assign(text=[f"other {i}" for i in range(len(obs))]), "roi", n_features=3)
    assert select_roi(result, obs.sample(frac=1, random_state=0), "roi", n_features=3).feature
