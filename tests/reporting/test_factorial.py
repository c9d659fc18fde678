"""The page about a factorial study: what it says of every result, and that data on it stay text."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurollm.designs import FactorialDesign
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.factorial import FactorialStudy, factorial_study, simulate_units
from neurollm.reporting.factorial import build_factorial_report
from neurollm.reporting.factorial_results import (
    counts,
    factorial_verdict,
    holds_factorial,
    integration,
    read_factorial_results,
    verdict,
)

HOSTILE = "<script>alert(1)</script>"
UNITS = {"sum": 2, "and": 3, "none": 6}


def _study(kinds=UNITS, seed=0, names=None) -> FactorialStudy:
    """Simulated units in a design whose labels are hostile."""
    sim = simulate_units(48, kinds, random_state=seed)
    obs = sim.obs.assign(f1=np.where(sim.obs["f1"] == "on", HOSTILE, "off"))
    design = FactorialDesign({"f1": [HOSTILE, "off"], "f2": ["on", "off"]})
    return factorial_study(sim.X, obs, design, n_candidates=4, n_perm=199, features=names)


@pytest.fixture(scope="module")
def studies() -> dict[str, FactorialStudy]:
    """One with AND units, one without, and one of three named columns."""
    named = _study({"main": 1, "none": 1, "and": 1}, names=["dictionary", "linear", "interaction"])
    return {"integrating": _study(), "additive": _study({"sum": 4, "none": 6}, 1), "sizes": named}


@pytest.fixture
def folder(tmp_path, studies) -> Path:
    """The folder of a study as a run leaves it."""
    own = ["features", "interactions", "component_interaction", "sizes", "secondary"]
    manifest = {
        "type": "factorial_study",
        "name": "crossed",
        "command": "neurollm run pipelines/crossed.yaml",
        "seed": 0,
        "model": {"name": "demo"},
        "pool": "mean",
        "n_stimuli": 120,
        "representations": own,
        "warnings": [f"a warning about {HOSTILE}"],
        "versions": {"neurollm": "0"},
        "nfm": {
            "rank": 8, "readout": "linear", "has_refit": True, "top_n": 32, "explained_validation": 0.05,
            "explained_of_rest": 0.01, "corpus": {"sources": [HOSTILE], "n_documents": 30, "n_tokens": 900},
        },
    }  # fmt: skip
    config = {"controls": ["random_nfm", "raw_units", "shuffled_labels"], "report": {"top": 3}, "interactions": {}}
    config |= {"factorial": {"n_candidates": 4, "n_perm": 199, "n_random": 19}, "features": {"min_active_items": 5}}
    check = {"name": "length_words", "factor": "f1", "value": 0.2, "threshold": 0.3, "reason": HOSTILE}
    found, none = counts(studies["integrating"]), counts(studies["additive"])
    files = {
        "manifest": manifest,
        "audit": [check | {"status": "warn"}, check | {"status": "pass"}],
        "sizes": {"dictionary": 500.0, "linear": 3.0, "interaction": 1.0, "error": 20.0, "rest": 19.0},
        "random_nfm": {"random_nfm": [none] * 19, "random_nfm_component": [found] * 19},
        "shuffled": {name: [none, None] for name in own},
        "secondary": {"verdict": "8 secondary features leave 0.4 of B unexplained."},
    }
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    made = {"features": "additive", "interactions": "integrating", "component_interaction": "integrating"}
    made |= {"sizes": "sizes", "random_nfm": "additive"}
    for name, which in made.items():
        studies[which].save(tmp_path / "factorial" / name)
    (tmp_path / "factorial" / "secondary").mkdir()
    (tmp_path / "factorial" / "secondary" / "reason.json").write_text(json.dumps({"reason": f"because {HOSTILE}"}))
    return tmp_path


def test_counts_say_what_is_found_and_what_lasts(studies):
    found, none = counts(studies["integrating"]), counts(studies["additive"])
    assert found["lasting"] == 3 and found["kinds"]["and"] == 3 and found["n_columns"] == 11
    assert none["lasting"] == 0 and none["effects"]["f1"][0] == 4 and "and" not in none["kinds"]
    assert all(n <= chosen == 4 for n, chosen in none["effects"].values())


def test_more_than_untrained_embeddings_give_is_called_so(folder):
    results = read_factorial_results(folder)
    told = integration(results, "interactions")
    assert told.startswith("3 of the 4 NFM dimensions chosen for f1:f2 have a lasting interaction")
    assert "with untrained embeddings it is 0.0 on average (0 to 0 in 19 draws, p = .050)" in told
    assert told.endswith("more than products of features that are active together give by themselves.")


def test_what_untrained_embeddings_give_too_is_no_finding(folder):
    told = integration(read_factorial_results(folder), "component_interaction")
    assert "3 of the 4 units of the interaction component chosen for f1:f2 have" in told
    assert "it is 3.0 on average (3 to 3 in 19 draws, p = 1.00). Co-activation of features can give as much" in told


def test_without_the_control_nothing_is_claimed(folder):
    (folder / "random_nfm.json").unlink()
    told = integration(read_factorial_results(folder), "interactions")
    assert told.endswith("Without the control random_nfm nothing tells integration from co-activation.")


def test_nothing_found_is_told_beside_the_control(folder, studies):
    studies["additive"].save(folder / "factorial" / "interactions")
    told = integration(read_factorial_results(folder), "interactions")
    assert told.startswith("None of the 4 NFM dimensions") and "nothing here speaks for an integration" in told


def test_the_other_sentences(folder):
    told = factorial_verdict(folder)
    assert len(told) == 5
    assert told[2].startswith("Dictionary features (10), on items that did not choose them: f1 is found in 4 of 4")
    assert "the interaction component has 5.0% of the squared norm of the dictionary’s error" in told[3]
    assert "the model explains 5.0% of that error (on validation documents 5.0%)" in told[3]
    assert "of the dictionary component f1, of the linear component neither factor" in told[3]
    assert told[4].startswith("With shuffled labels (1 shuffling) at most ")


def test_a_failed_audit_comes_first(folder):
    audit = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps([audit[0] | {"status": "fail"}]))
    told = verdict(read_factorial_results(folder))
    assert told[0].startswith("The stimulus audit fails (length_words): what follows may be due to these differences")
    text = unescape(re.sub(r"<[^>]+>", "", build_factorial_report(folder).read_text()))
    assert text.index("The stimulus audit fails") < text.index("NFM dimensions chosen for")


def test_the_page_is_one_safe_file_that_the_command_line_makes_again(folder):
    from typer.testing import CliRunner

    from neurollm.cli.app import app

    assert holds_factorial(folder)
    page = build_factorial_report(folder).read_text()
    assert len(page) < 2_000_000
    assert HOSTILE not in page and "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page) and "default-src 'none'" in page
    text = unescape(re.sub(r"<[^>]+>", "", page))
    places = [
        text.index(one)
        for one in (
            "3 of the 4 NFM dimensions",
            "Stimulus audit",
            "beside its controls",
            "Two features that are active",
        )
    ]
    assert places == sorted(places)
    assert "Not studied: because <script>" in text and "0.0 (0 to 0)" in text and "25 times" in text
    assert re.search(r"3 of \d+ candidates in numbers", text)
    assert page.count("<svg") == 9 and page.count("control: NFM dimensions, untrained embeddings") == 1
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    assert (folder / "report.html").read_text() == page
    refused = CliRunner().invoke(app, ["report", str(folder), "--top", "5"])
    assert "holds a factorial study; --top is for the contrasts of a study" in str(refused.exception)


def test_missing_and_damaged_results_are_told(folder):
    (folder / "sizes.json").write_text("{}")
    with pytest.raises(DataMismatch, match="the results of the factorial study are damaged"):
        build_factorial_report(folder)
    (folder / "sizes.json").unlink()
    with pytest.raises(InvalidInput, match=r"sizes.json is missing"):
        build_factorial_report(folder)
    (folder / "manifest.json").write_text("[]")
    assert not holds_factorial(folder) and not holds_factorial(folder / "nowhere")
