"""A method grid as a pipeline: what it writes, that it resumes, and that a second run gives the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml
from support.projects import write_project

from neurollm.decoding.selectors import SELECTORS
from neurollm.errors import InvalidInput
from neurollm.pipelines import check_pipeline, list_studies, run_pipeline
from neurollm.pipelines.grid import GridStudy
from neurollm.pipelines.grid_schema import MethodGrid, SelectorName

REPRESENTATIONS = ["sae", "raw_units", "pca", "token_embeddings", "random_network", "random_directions", "random_sae"]
FIELDS = {
    "type": "method_grid",
    "name": "grid",
    "model": {"name": "demo", "dtype": "float32", "device": "cpu"},
    "dictionary": {"name": "demo"},
    "concepts": [
        {"name": "outcome", "stimuli": "stimuli/small.tsv", "factor": "outcome", "target": "success"},
        {"name": "order", "stimuli": "stimuli/small.tsv", "factor": "outcome", "target": "failure", "control": True},
    ],
    "representations": ["raw_units", "pca", "random_directions"],
    "selectors": ["rsa_categorical", "rsa_discriminative", "rsa_coherence", "maximum_activation"],
    "k": [1, 2, 64],
    "n_folds": 2,
    "n_repeats": 2,
    "n_boot": 100,
    "shuffled": {"n": 1, "representations": ["raw_units"], "selectors": ["rsa_categorical"], "k": 2},
}


def _write(root: Path, **changes) -> Path:
    write_project(root)
    file = root / "pipelines" / "grid.yaml"
    file.write_text(yaml.safe_dump(FIELDS | changes))
    return file


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """Pipeline file of a grid that has been run, with all representations."""
    file = _write(tmp_path_factory.mktemp("grid"), representations=REPRESENTATIONS)
    run_pipeline(file, verbose=0)
    return file


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Pipeline file of a smaller grid that has been run."""
    file = _write(tmp_path_factory.mktemp("small"), concepts=FIELDS["concepts"][:1])
    run_pipeline(file, verbose=0)
    return file


def _folder(file: Path) -> Path:
    return file.parent.parent / "reports" / "grid"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.json"
    }


def test_the_table_has_every_cell_or_a_reason(grid):
    table = pd.read_csv(_folder(grid) / "table.csv")
    cells = table[table["selector"] != "all"]
    assert len(cells) == 2 * len(REPRESENTATIONS) * 4 * 3
    assert set(table.loc[table["selector"] == "all", "representation"]) == {*REPRESENTATIONS, "words", "length"}
    assert (table["auroc"].isna() == table["left_out"].notna()).all()
    assert set(table.loc[table["left_out"].notna(), "representation"]) == {"pca"}
    assert (table["n_units"] == 12).all() and (table["n_trials"] == 24).all()
    known = table[table["auroc"].notna()]
    assert ((known["auroc_low"] <= known["auroc"]) & (known["auroc"] <= known["auroc_high"])).all()
    stable = cells[cells["jaccard"].notna()]
    assert "pca" not in set(stable["representation"]) and stable["jaccard"].between(0, 1).all()


def test_the_opposite_target_has_the_same_auroc_where_the_selector_has_no_side(grid):
    table = pd.read_csv(_folder(grid) / "table.csv")
    rows = table[(table["selector"] == "rsa_categorical") & (table["representation"] == "raw_units")]
    outcome, order = (rows.loc[rows["concept"] == name, "auroc"].to_numpy() for name in ("outcome", "order"))
    assert outcome == pytest.approx(order, abs=1e-6)


def test_what_is_saved(grid):
    folder = _folder(grid)
    contrasts = json.loads((folder / "contrasts.json").read_text())
    assert len(contrasts["declared"]) == 3 and contrasts["concepts"] == ["outcome"]
    assert all(0 < one["overall"]["p"] <= one["overall"]["p_holm"] <= 1 for one in contrasts["declared"])
    assert contrasts["exploratory"] and all("p" not in one["overall"] for one in contrasts["exploratory"])
    files = [file for file in sorted((folder / "scores").glob("*.parquet")) if ".sets." not in file.name]
    scores = pd.concat([pd.read_parquet(file) for file in files])
    assert len(scores) == 2 * (len(REPRESENTATIONS) + 2) * 2 * 24
    assert (scores.groupby(["repeat", "unit"])["fold"].nunique() == 1).all()
    (row,) = [one for one in json.loads((folder / "shuffled.json").read_text()) if one["concept"] == "outcome"]
    assert len(row["auroc"]) == 1 and row["representation"] == "raw_units"
    assert json.loads((folder / "manifest.json").read_text())["type"] == "method_grid"


def test_a_second_run_does_nothing_and_other_processes_change_no_byte(small, tmp_path):
    assert run_pipeline(small, verbose=0).computed == ()
    before = _bytes(_folder(small))
    again = run_pipeline(_write(tmp_path, concepts=FIELDS["concepts"][:1]), verbose=0, n_jobs=2)
    assert _bytes(again.folder) == before


def test_a_lost_file_is_made_again_and_nothing_else(small, tmp_path):
    shutil.copytree(small.parent.parent, tmp_path / "copy")
    file = tmp_path / "copy" / "pipelines" / "grid.yaml"
    folder = _folder(file)
    before = _bytes(folder)
    (folder / "scores" / "outcome-raw_units.parquet").unlink()
    assert run_pipeline(file, verbose=0).computed == ("outcome raw_units", "report")
    assert _bytes(folder) == before


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    few = {
        "concepts": FIELDS["concepts"][:1],
        "representations": ["raw_units", "pca"],
        "k": [1],
        "n_repeats": 1,
        "shuffled": {"n": 0},
    }
    file = _write(tmp_path, **few)
    real = GridStudy.write_scores

    def interrupted(self, concept, name, *arguments):
        if name == "pca":
            raise KeyboardInterrupt
        return real(self, concept, name, *arguments)

    monkeypatch.setattr(GridStudy, "write_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(file, verbose=0)
    monkeypatch.undo()
    run = run_pipeline(file, verbose=0)
    assert not [name for name in run.computed if "raw_units" in name] and "outcome pca" in run.computed
    assert "Not computed: SAE − raw units." in run.verdicts[0]
    assert not (run.folder / "shuffled.json").exists()
    # What is no longer asked for goes.
    file.write_text(yaml.safe_dump(FIELDS | few | {"representations": ["raw_units"]}))
    run = run_pipeline(file, verbose=0)
    assert run.computed == ("table", "manifest", "report")
    assert not list((run.folder / "scores").glob("*pca*"))


def test_check_list_and_report_know_grids(grid):
    told = check_pipeline(grid)
    assert "7 representations × 4 selectors × 3 numbers of features, 2 × 2 folds" in told
    assert "concept order, control: outcome = failure in 12 of 24 stimuli, 12 items, 2 folds" in told
    assert "contrast SAE − raw units: ready" in told
    listed = list_studies(grid.parent.parent)
    assert "pipelines/grid.yaml\n    The data " in listed and "report: reports/grid/report.html" in listed
    from typer.testing import CliRunner

    from neurollm.cli.app import app

    page = (_folder(grid) / "report.html").read_bytes()
    assert CliRunner().invoke(app, ["report", str(_folder(grid))]).exit_code == 0
    assert (_folder(grid) / "report.html").read_bytes() == page
    refused = CliRunner().invoke(app, ["report", str(_folder(grid)), "--top", "5"])
    assert "holds a method grid; --top is for the contrasts of a study" in str(refused.exception)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "methods"}, "field 'type' is 'methods'; it must be 'method_grid' or 'factorial_study', or left out"),
        ({"selectors": ["welch"]}, "field 'selectors.0' is 'welch'; it must be"),
        ({"k": [0]}, "field 'k.0' is 0; it should be greater than or equal to 1"),
        ({"k": [1, 1]}, "1 is given more than once"),
        (
            {"dictionary": {"kind": "raw_units"}, "representations": ["random_sae"]},
            "representation random_sae needs a trained dictionary",
        ),
        ({"dictionary": {"kind": "raw_units"}}, "model.site is missing: dictionary kind raw_units has no site"),
        ({"controls": []}, "unknown field 'controls'"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path, changes, told):
    with pytest.raises(InvalidInput, match=told):
        check_pipeline(_write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"factor": "outcom"}, "has no column 'outcom'; did you mean 'outcome'?"),
        ({"unit": "pair"}, "has no column 'pair'; its columns are"),
        ({"target": "victory"}, "target is 'victory', but 'outcome' has the levels 'failure', 'success'"),
        ({"target": True}, "expected text \\(put it in quotes\\)"),
        ({"tokens": "targets"}, "targets"),
        ({"tokens": "target"}, "token window 'target' catches no token"),
    ],
)
def test_wrong_concepts_are_told_in_one_sentence(tmp_path, change, told):
    with pytest.raises(InvalidInput, match=told):
        check_pipeline(_write(tmp_path, concepts=[FIELDS["concepts"][0] | change]))


def test_concepts_of_the_same_sentences_need_one_unit(tmp_path):
    first, second = FIELDS["concepts"]
    with pytest.raises(InvalidInput, match="have the units item and template"):
        check_pipeline(_write(tmp_path, concepts=[first, second | {"unit": "template"}]))


def test_the_schema_knows_all_selectors_and_describes_every_field():
    assert set(get_args(SelectorName)) == set(SELECTORS)
    schema = MethodGrid.model_json_schema()
    parts = [schema, *(schema["$defs"][name] for name in ("ConceptPart", "ShuffledPart"))]
    described = [name for part in parts for name, field in part["properties"].items() if "description" in field]
    assert {"k", "concepts", "target", "unit", "n_boot", "alpha", "seed"} <= set(described)


def test_the_example_is_valid():
    told = check_pipeline(Path(__file__).parents[2] / "pipelines" / "method_grid.yaml")
    assert "concept success: outcome = success in 56 of 112 stimuli, 14 word_pairs, 5 folds" in told
    assert told.count(": ready") == 3
