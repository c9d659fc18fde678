"""The sections on RSA and decoding: what they say in every case, and that hostile text stays text."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from support.pages import Page
from support.results import trials

from neurollm.designs import CategoricalDesign
from neurollm.errors import DataMismatch
from neurollm.files import write_json
from neurollm.reporting import build_report, verdicts
from neurollm.reporting.decoding import decode_verdict, rivals_verdict
from neurollm.rsa import FeatureRSA


def row(representation, kind, auroc, difference=None, width=0.05):
    """A row of decoding; the interval of the difference has a half width."""
    found = {"representation": representation, "kind": kind, "n_features": 100, "auroc": auroc}
    found |= {"ci_low": auroc - 0.08, "ci_high": min(auroc + 0.08, 1.0), "balanced_accuracy": auroc - 0.1, "note": ""}
    if difference is not None:
        found |= {"difference": difference}
        found |= {"difference_low": difference - width, "difference_high": difference + width}
    return found


def record(**changes):
    """A decoded contrast."""
    rows = [
        row("features", "study", 0.9),
        row("token_embeddings", "control", 0.7, 0.2),
        row("words", "baseline", 0.88, 0.02),
        row("length", "baseline", 0.5, 0.4),
    ]
    chosen = [
        {"feature": 7, "pattern": 0.5, "n_folds": 5, "mean_positive": 2.0, "mean_negative": 1.0},
        {"feature": 9, "pattern": -0.25, "n_folds": 3, "mean_positive": 0.5, "mean_negative": 1.5},
    ]
    plain = {"sides": ["success", "failure"], "unit": "item", "n_units": 28, "n_trials": 112, "n_folds": 5}
    plain |= {"estimator": "logistic_l1", "selector": "rsa_categorical", "n_features": 2, "p": 0.01, "n_perm": 99}
    plain |= {"exhaustive": False, "null_scores": [0.5] * 99, "stability": 0.6, "stability_chance": 0.01}
    return plain | {"panel": chosen, "rows": rows} | changes


@pytest.fixture(scope="module")
def rsa():
    """RSA of three conditions."""
    X, obs = trials()
    return (
        FeatureRSA(CategoricalDesign("emotion"), models=("categorical", "discriminative"), n_perm=99)
        .fit(X, obs)
        .result_
    )


@pytest.fixture
def bare(study):
    """A study folder without contexts, which take longest to draw."""
    (study / "contexts.json").unlink()
    return study


@pytest.fixture
def both(bare, rsa):
    """A study folder with both analyses."""
    rsa.save(bare / "rsa")
    write_json(bare / "decode.json", {"success - failure": record()})
    return bare


def text_of(folder) -> str:
    return " ".join(Page(build_report(folder).read_text(encoding="utf-8")).text.split())


def test_both_sections_are_shown(both, rsa):
    text = text_of(both)
    for words in (
        rsa.verdict("categorical").removeprefix("categorical: "),
        rsa["categorical"].exchange,
        "Smallest p possible: .0100.",
        "2 features tell success from failure: AUROC .90 [.82, .98]",
        "with exchanged labels 0 of 99 runs of the whole procedure do as well (p = .010)",
        "Panels of the folds overlap by .60 (Jaccard index; random panels by .01)",
        "positive towards success",
        "+.20 [.15, .25]",
        "from 2 features chosen by the correlation of their distances",
        "(Ojala & Garriga, 2010, test 1)",
        "Mantel N (1967)",
        "Haufe S",
    ):
        assert words in text, words
    assert (both / "report.html").stat().st_size < 2_000_000
    assert [told.split(": ")[0] for told in verdicts(both)[2:]] == [
        "RSA, categorical",
        "RSA, discriminative",
        "decoding, success - failure",
    ]


def test_they_are_absent_when_nothing_was_saved(bare):
    text = text_of(bare)
    html = (bare / "report.html").read_text()
    assert 'href="#rsa"' not in html and 'href="#decoding"' not in html
    assert "Mantel" not in text and "Ojala" not in text and "Haufe" not in text


def test_only_what_was_used_is_cited(both):
    panel = [feature | {"pattern": None} for feature in record()["panel"]]
    write_json(both / "decode.json", {"a": record(n_perm=0, p=None, null_scores=[], panel=panel, estimator="svc_rbf")})
    text = text_of(both)
    assert (
        "nothing was permuted, so there is no p" in text and "a support vector machine with a Gaussian kernel" in text
    )
    assert "Ojala" not in text and "Haufe" not in text and "Pattern:" not in text


def test_hostile_text_is_only_text(both, rsa, hostile):
    names = [hostile + str(place) for place in range(len(rsa.feature))]
    maps = tuple(
        dataclasses.replace(one, model=one.model + hostile, description=hostile, exchange=hostile) for one in rsa.maps
    )
    dataclasses.replace(rsa, maps=maps, feature=np.array(names), nuisance=(hostile,), item=hostile).save(both / "rsa")
    rows = [one | {"representation": one["representation"] + hostile, "note": hostile} for one in record()["rows"]]
    panel = [feature | {"feature": hostile} for feature in record()["panel"]]
    bad = record(sides=["a" + hostile, "b" + hostile], unit=hostile, rows=rows, panel=panel)
    write_json(both / "decode.json", {"c" + hostile: bad, "d": {"reason": hostile}})
    html = build_report(both).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.named("script")) == 3 and not page.named("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{7*7}}" in page.text and page.text.count("<script>window.hacked=1</script>") > 40


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "No difference from the features is shown for the words alone (.88 [.80, .96])."),
        ({}, "The features do better than the token embeddings alone (.70 [.62, .78]) and the length of the texts"),
        ({}, "So nothing here shows that telling these sides apart takes more than the words."),
        ({"rows": [row("features", "study", 0.7), row("words", "baseline", 0.9, -0.2)]}, "Better than the features: "),
        ({"p": 0.3}, "Beside it: the token embeddings alone .70 [.62, .78]; the words alone .88"),
        ({"p": None, "n_perm": 0}, "Beside it: "),
    ],
)
def test_rivals_are_told_as_they_are(changes, told):
    assert told in rivals_verdict(record(**changes), 0.05)


def test_where_the_words_do_worse_nothing_is_said_against_the_features():
    rows = [row("features", "study", 0.9), row("words", "baseline", 0.6, 0.3), row("raw_units", "control", 0.9, 0.0)]
    told = rivals_verdict(record(rows=rows), 0.05)
    assert told.endswith("The features do better than the words alone (.60 [.52, .68]).")
    assert "No difference from the features is shown for the raw units of the model" in told


def test_a_rival_at_chance_is_no_reason_for_doubt():
    rows = [row("features", "study", 0.9), row("words", "baseline", 0.5, 0.4, width=0.6)]
    assert (
        rivals_verdict(record(rows=rows), 0.05) == "No difference from the features is shown for the words alone "
        "(.50 [.42, .58])."
    )


@pytest.mark.parametrize(("unit", "told"), [("item", True), ("word_pair", False)])
def test_whole_controls_are_compared_over_the_same_units_only(both, unit, told):
    rows = [row("token_embeddings", "control", 0.97)]
    write_json(both / "controls.json", {"success - failure": rows})
    write_json(both / "decode.json", {"success - failure": record(unit=unit)})
    assert ("With all of their columns" in verdicts(both)[-1]) == told


@pytest.mark.parametrize(("auroc", "doubt"), [(0.97, True), (0.7, False)])
def test_a_control_with_all_its_columns_counts(auroc, doubt):
    rows = [row("features", "study", 0.9), row("token_embeddings", "control", 0.6, 0.3)]
    whole = row("token_embeddings", "control", auroc)
    told = rivals_verdict(record(rows=rows), 0.05, [whole])
    assert "With all of their columns instead of 2, controls reach: the token embeddings alone" in told
    assert ("takes more than the words" in told) == doubt


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"p": 0.3}, "Nothing shows that 2 features tell success from failure: AUROC .90"),
        ({"n_features": 1}, "1 feature tells success from failure"),
        ({"selector": None}, "All features together tell success from failure"),
        ({"exhaustive": True, "n_perm": 64, "null_scores": [0.5] * 63 + [0.9]}, "1 of all 64 possible runs"),
    ],
)
def test_the_verdict_of_decoding(changes, told):
    assert told in decode_verdict(record(**changes), 0.05)


def test_what_was_not_decoded_is_told():
    why = {"reason": "an F contrast has no two sides"}
    assert decode_verdict(why, 0.05) == "Not decoded, because an F contrast has no two sides."
    assert rivals_verdict(why, 0.05) == ""


@pytest.mark.filterwarnings("ignore:RSA. .* shufflings are used")
def test_tests_that_could_not_succeed_are_warnings(both):
    X, obs = trials()
    few = obs["item"].isin(sorted(set(obs["item"]))[:2]).to_numpy()
    FeatureRSA(CategoricalDesign("emotion"), n_perm=99, min_active=0).fit(X[few], obs[few]).result_.save(both / "rsa")
    few_labels = record(exhaustive=True, n_perm=4, null_scores=[0.5] * 3 + [0.9], p=0.25)
    write_json(both / "decode.json", {"a": few_labels})
    text = text_of(both)
    assert "Decoding, a: 4 arrangements of the labels exist, so nothing could have been significant." in text


@pytest.mark.parametrize("damage", [{"a": {}}, {"a": []}, {"a": {"rows": []}}])
def test_damaged_results_are_refused(both, damage):
    write_json(both / "decode.json", damage)
    with pytest.raises(DataMismatch, match=r"decode\.json: the entry of contrast 'a' is damaged"):
        build_report(both)
    write_json(both / "decode.json", {})
    (both / "rsa" / "rsa.parquet").unlink()
    with pytest.raises(DataMismatch, match="rsa"):
        build_report(both)


def test_many_decoded_contrasts_stay_small(tmp_path):
    write_json(tmp_path / "decode.json", {f"c{number}": record() for number in range(15)})
    write_json(tmp_path / "manifest.json", {})
    write_json(tmp_path / "design.json", {})
    html = build_report(tmp_path).read_text(encoding="utf-8")
    assert html.count("of the whole procedure do as well") >= 15 and len(html.encode()) < 2_000_000


def test_the_json_holds_plain_numbers_only(both):
    json.loads((both / "decode.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert pd.read_parquet(both / "rsa" / "rsa.parquet")["r"].notna().any()
