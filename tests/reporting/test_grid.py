"""The page about a method grid: what it says for every result, and that data on it stay text."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import yaml

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.plotting.grid import plot_grid_contrasts, plot_grid_curves
from neurollm.reporting.grid import build_grid_report, context, grid_verdict, holds_grid, read_grid_results, verdict

SELECTORS = ["rsa_categorical", "maximum_activation", "random"]
HOSTILE = "<script>alert(1)</script>"


def _value(difference, p, **more):
    return {"difference": difference, "ci_low": difference - 0.02, "ci_high": difference + 0.02, "p": p, **more}


def _contrast(name, claim, difference, p_holm):
    concepts = [_value(difference, 0.2, concept="register"), _value(-difference, 0.2, concept=HOSTILE)]
    return {
        "name": name,
        "claim": claim,
        "overall": _value(difference, p_holm / 3, p_holm=p_holm),
        "concepts": concepts,
    }


def _contrasts(**changes):
    return {
        "declared": [
            _contrast("RSA − maximum activation", "RSA chooses better features", 0.013, 0.3),
            _contrast("SAE − raw units", "SAE features are better", 0.08, 0.0004),
            _contrast("discriminative − categorical RSA", "discriminative is better", -0.05, 0.012),
        ],
        "exploratory": [{"name": f"sae − {HOSTILE}", "claim": "", "overall": _value(0.1, 0), "concepts": []}],
        "controls": [],
        "concepts": ["register", HOSTILE],
        "control_concepts": ["word_order"],
        "alpha": 0.05,
    } | changes


def _row(concept, representation, selector, k, auroc, **more):
    return {
        "concept": concept, "control": concept == "word_order", "representation": representation, "selector": selector,
        "k": k, "auroc": auroc, "auroc_low": auroc - 0.1, "auroc_high": auroc + 0.1, "balanced_accuracy": auroc,
        "balanced_accuracy_low": auroc - 0.1, "balanced_accuracy_high": auroc + 0.1, "jaccard": 0.4,
        "jaccard_chance": 0.01, "n_columns": 256, "n_trials": 96, "n_units": 48, "left_out": None,
    } | more  # fmt: skip


def _table():
    rows = []
    for concept, level in (("register", 0.8), (HOSTILE, 0.7), ("word_order", 0.45)):
        for place, representation in enumerate(("sae", "raw_units")):
            for selector in SELECTORS:
                rows += [_row(concept, representation, selector, k, level + 0.01 * place) for k in (1, 8)]
            rows.append(_row(concept, representation, "all", None, level, jaccard=None))
            rows.append(
                _row(concept, representation, SELECTORS[0], 64, float("nan"), jaccard=None, left_out="few & <b>")
            )
        rows += [_row(concept, name, "all", None, 0.5, jaccard=None) for name in ("words", "length")]
    return pd.DataFrame(rows)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a grid as a run leaves it."""
    manifest = {
        "type": "method_grid",
        "name": "grid",
        "command": "neurollm run pipelines/grid.yaml",
        "seed": 0,
        "model": {"name": "demo"},
        "warnings": [f"a warning about {HOSTILE}"],
        "versions": {"neurollm": "0"},
    }
    concepts = [{"name": name, "unit": HOSTILE} for name in ("register", HOSTILE, "word_order")]
    config = {"representations": ["sae", "raw_units"], "selectors": SELECTORS, "k": [1, 8, 64], "concepts": concepts}
    config |= {"n_repeats": 5, "n_folds": 5, "n_boot": 2000}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "contrasts.json").write_text(json.dumps(_contrasts()))
    chance = {"concept": "register", "representation": "sae", "selector": "rsa_categorical", "k": 8}
    (tmp_path / "shuffled.json").write_text(json.dumps([chance | {"auroc": [0.4, 0.6, 0.53]}]))
    _table().to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def test_the_first_sentence_says_what_holds():
    told = verdict(_contrasts())
    assert told.startswith(
        "The data do not support that RSA chooses better features (difference in AUROC .013, 95% CI [−.007, .033], "
        "Holm p = .30); they support that SAE features are better (difference in AUROC .080, 95% CI [.060, .100], "
        "Holm p < .001); they contradict that discriminative is better (difference in AUROC −.050, "
        "95% CI [−.070, −.030], Holm p = .012); averaged over 2 concepts"
    )


def test_contrasts_that_the_grid_cannot_answer_are_named():
    contrasts = _contrasts()
    assert verdict(contrasts | {"declared": []}).startswith("None of the three declared contrasts could be computed")
    told = verdict(contrasts | {"declared": contrasts["declared"][:1]})
    assert told.endswith("Not computed: SAE − raw units; discriminative − categorical RSA.")


def test_the_context_gives_signs_words_chance_and_the_control(folder):
    told = context(read_grid_results(folder))
    assert "SAE − raw units is positive in 1 of 2 concepts" in told
    assert (
        "The words alone (counts of unigrams) reach an AUROC of .50; 100% of the cells of the grid lie above." in told
    )
    assert "With shuffled labels the mean AUROC is .51." in told
    assert "control concept word_order, whose right answer is .5, has a mean AUROC of .46 over 16 cells" in told
    assert "0 of their intervals lie above .5 and 0 below" in told
    assert grid_verdict(folder).endswith(told)


def test_the_page_is_one_safe_file(folder):
    page = build_grid_report(folder).read_text()
    assert len(page) < 2_000_000 and holds_grid(folder)
    assert HOSTILE not in page and "<script" not in page and "<b>" not in page.replace("<b></b>", "")
    assert page.count("&lt;script&gt;") >= 6
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page) and "default-src 'none'" in page
    text = unescape(re.sub(r"<[^>]+>", "", page))
    assert text.index("The data do not support") < text.index("The three declared contrasts")
    assert "6 cells were left out" in text and "because few & <b>" in text
    assert page.count("<svg") == 2 and "Not declared beforehand" in page
    assert build_grid_report(folder).read_text() == page


def test_a_grid_without_selectors_that_count_is_still_a_page(folder):
    (folder / "contrasts.json").write_text(json.dumps(_contrasts(declared=[])))
    (folder / "shuffled.json").unlink()
    table = _table().assign(auroc=float("nan"), jaccard=None)
    table.to_csv(folder / "table.csv", index=False)
    assert "None of the three declared contrasts could be computed" in build_grid_report(folder).read_text()


def test_missing_and_damaged_results_are_told(folder):
    (folder / "contrasts.json").write_text("{}")
    with pytest.raises(DataMismatch, match="the results of the method grid are damaged"):
        build_grid_report(folder)
    (folder / "contrasts.json").unlink()
    with pytest.raises(InvalidInput, match=r"contrasts.json is missing"):
        build_grid_report(folder)
    (folder / "manifest.json").write_text("[]")
    assert not holds_grid(folder) and not holds_grid(folder / "nowhere")


def test_the_figures_show_every_line_and_every_interval():
    table = _table()
    axes = plot_grid_curves(table[~table["control"]])
    assert [ax.get_title(loc="left") for ax in axes] == ["sae", "raw_units"]
    lines = [line for line in axes[0].lines if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 8]
    assert len(lines) == len(SELECTORS)
    assert lines[0].get_ydata() == pytest.approx([0.75, 0.75])
    ax = plot_grid_contrasts(_contrasts()["declared"])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "RSA − maximum activation" and len(labels) == 9
    assert ax.lines[1].get_xdata() == pytest.approx([-0.007, 0.033])
