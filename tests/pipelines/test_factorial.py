"""A factorial study of interactions as a pipeline: what it computes, what stands beside it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from support.projects import NOUNS

from neurollm.activations import Corpus, harvest
from neurollm.designs import FactorialDesign
from neurollm.dictionaries import TopKTraining, load_dictionary, train_dictionary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.factorial import FactorialStudy, factorial_study
from neurollm.interactions.features import ComponentFeatures, InteractionFeatures
from neurollm.interactions.model import NFM
from neurollm.masking import FeatureMasker
from neurollm.models import Site, load_model
from neurollm.pipelines import FactorialFile, check_pipeline, list_studies, run_pipeline
from neurollm.pipelines.factorial import FactorialRun
from neurollm.pipelines.factorial_columns import exchange_labels
from neurollm.pipelines.factorial_schema import read_factorial

VERBS = {"formal": "purchased", "casual": "bought"}
ENDS = {"glad": "with great joy", "calm": "on a weekday"}
MODEL = {"name": "demo", "dtype": "float32", "device": "cpu"}
FIELDS = {
    "type": "factorial_study",
    "name": "crossed",
    "stimuli": "stimuli/crossed.tsv",
    "design": "designs/crossed.yaml",
    "model": MODEL,
    "dictionary": {"path": "dictionaries/tiny"},
    "features": {"min_active_items": 2},
    "interactions": {"corpus": ["stimuli/corpus.jsonl"], "rank": 4, "n_tokens": 2000},
    "secondary": {"n_features": 8, "k": 2, "n_tokens": 1000},
    "factorial": {"n_candidates": 2, "n_perm": 64, "n_random": 1, "n_shuffled": 1},
    "controls": ["random_nfm", "token_embeddings", "shuffled_labels"],
    "report": {"top": 2},
}
NAMES = ["features", "interactions", "secondary", "component_dictionary", "component_linear", "component_interaction"]
CONTROLS = ["token_embeddings", "random_nfm", "random_nfm_component", "random_nfm_secondary"]


def _lines() -> list[str]:
    lines = ["stimulus_id\ttext\titem\tregister\temotion\tthird"]
    for index, noun in enumerate(NOUNS):
        for register, verb in VERBS.items():
            for emotion, end in ENDS.items():
                text = f"The old {noun} {verb} the house {end}."
                lines.append(f"{noun}-{register}-{emotion}\t{text}\t{noun}\t{register}\t{emotion}\tlevel {index % 3}")
    return lines


def _corpus() -> list[tuple[str, str]]:
    words = ["river", "stone", "winter", "letter", "garden", "soldier", "window", "morning", "candle", "forest"]
    return [(f"{a} {b}", f"Every {a} near the {b} was seen by a {c}. " * 3) for a in words for b in words[:3]
            for c in words[4:5]]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A small dictionary of the demo model."""
    folder = tmp_path_factory.mktemp("tiny")
    model = load_model(**MODEL)
    store = harvest(model, Corpus(_corpus()), Site(3), folder / "store", verbose=0)
    options = TopKTraining(batch_size=256)
    return train_dictionary(
        store, "topk", 48, 6, 1500, out=folder / "dictionary", training=options, verbose=0
    ) and Path(folder / "dictionary")


def _write(root: Path, tiny: Path, **changes) -> Path:
    for folder in ("stimuli", "designs", "pipelines", "dictionaries"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "stimuli" / "crossed.tsv").write_text("\n".join(_lines()) + "\n")
    columns = {name: {"role": "factor"} for name in ("register", "emotion")}
    (root / "stimuli" / "crossed.json").write_text(json.dumps(columns))
    lines = (json.dumps({"name": name, "text": text}) for name, text in _corpus())
    (root / "stimuli" / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    factors = {"register": list(VERBS), "emotion": list(ENDS)}
    design = {"type": "factorial", "factors": factors, "item": "item"}
    (root / "designs" / "crossed.yaml").write_text(yaml.safe_dump(design, sort_keys=False))
    load_dictionary(tiny).save(root / "dictionaries" / "tiny")
    file = root / "pipelines" / "crossed.yaml"
    file.write_text(yaml.safe_dump(FIELDS | changes))
    return file


@pytest.fixture(scope="module")
def crossed(tmp_path_factory, tiny) -> Path:
    """Pipeline file of a study that has been run; do not change its folder."""
    file = _write(tmp_path_factory.mktemp("crossed"), tiny)
    run_pipeline(file, verbose=0)
    return file


@pytest.fixture(scope="module")
def silent(tmp_path_factory, tiny, crossed) -> Path:
    """Pipeline file of a study of a saved model whose interactions are all 0; it has been run."""
    root = tmp_path_factory.mktemp("silent")
    (trained,) = (crossed.parent.parent / "stores").glob("nfm-*")
    nfm = NFM.load(trained)
    nfm.weights["V"].zero_()
    nfm.save(root / "dictionaries" / "nfm")
    few = {"interactions": {"path": "dictionaries/nfm"}, "secondary": None, "controls": ["token_embeddings"]}
    file = _write(root, tiny, **few)
    run_pipeline(file, verbose=0)
    return file


def _folder(file: Path) -> Path:
    return file.parent.parent / "reports" / "crossed"


def _pieces(file: Path):
    study = FactorialRun.read(file, verbose=0)
    return study.model, study.dictionary, study.nfm, study.stimuli


def test_every_representation_is_that_of_its_own_masker(crossed):
    model, dictionary, nfm, stimuli = _pieces(crossed)
    trials = anndata.read_h5ad(_folder(crossed) / "trials.h5ad")
    assert list(dict.fromkeys(trials.var["representation"])) == [*NAMES, "sizes"]
    parts = {
        "features": dictionary,
        "interactions": InteractionFeatures(dictionary, nfm),
        **{f"component_{name}": ComponentFeatures(dictionary, nfm, name) for name in ("linear", "interaction")},
    }
    for name, part in parts.items():
        alone = FeatureMasker(model, part, verbose=0).fit_transform(stimuli).X.toarray()
        together = trials.X[:, (trials.var["representation"] == name).to_numpy()].toarray()
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())


def test_sizes_are_mean_squared_norms_of_tokens(crossed):
    model, dictionary, nfm, stimuli = _pieces(crossed)
    from neurollm.dictionaries import RawUnits

    trials = anndata.read_h5ad(_folder(crossed) / "trials.h5ad")
    masker = FeatureMasker(model, RawUnits(dictionary.site, model.d_model), pool="none", verbose=0)
    tokens = masker.fit_transform(stimuli)
    x = tokens.X.toarray()
    code = dictionary.encode_sparse(x)
    restored, linear = dictionary.reconstruct(x), nfm.linear(code).numpy()
    g = nfm.interaction(nfm.interactions(code)).numpy()
    expected = {"dictionary": restored, "linear": linear, "interaction": g, "error": x - restored}
    expected["rest"] = x - restored - linear - g
    mine = (trials.var["representation"] == "sizes").to_numpy()
    assert trials.var["column"][mine].tolist() == list(expected)
    for name, value in expected.items():
        of_token = pd.Series(np.square(value.astype(float)).sum(1)).groupby(tokens.obs["stimulus_id"].to_numpy()).mean()
        column = trials[:, mine & (trials.var["column"] == name).to_numpy()].X.toarray().ravel()
        np.testing.assert_allclose(column, of_token[trials.obs["stimulus_id"].to_numpy()], rtol=1e-3)
    saved = json.loads((_folder(crossed) / "sizes.json").read_text())
    assert saved["rest"] == pytest.approx(trials[:, mine].X.toarray().mean(0)[4], rel=1e-4)


def test_all_studies_share_the_split_and_are_those_of_the_function(crossed):
    folder = _folder(crossed)
    studies = {name: FactorialStudy.load(folder / "factorial" / name) for name in [*NAMES, "sizes", *CONTROLS]}
    items = {name: frozenset(study.items()["item"]) for name, study in studies.items()}
    assert len(set(items.values())) == 1 and len(items["features"]) == 6
    assert {study.n_items_discovery for study in studies.values()} == {6}
    trials = anndata.read_h5ad(folder / "trials.h5ad")
    mine = (trials.var["representation"] == "interactions").to_numpy()
    design = FactorialDesign({"register": list(VERBS), "emotion": list(ENDS)})
    options = {"n_candidates": 2, "n_perm": 64, "min_active_items": 2}
    alone = factorial_study(trials.X[:, mine], trials.obs, design, **options)
    pd.testing.assert_frame_equal(alone.to_frame(), studies["interactions"].to_frame())
    assert set(studies["sizes"].candidates) == {"dictionary", "linear", "interaction"}


def test_the_untrained_model_is_a_control_with_every_draw(crossed):
    folder, (model, dictionary, nfm, stimuli) = _folder(crossed), _pieces(crossed)
    untrained = InteractionFeatures(dictionary, NFM.random(nfm, 0))
    trials = FeatureMasker(model, untrained, verbose=0).fit_transform(stimuli)
    design = FactorialDesign({"register": list(VERBS), "emotion": list(ENDS)})
    alone = factorial_study(trials, None, design, n_candidates=2, n_perm=64, min_active_items=2)
    saved = FactorialStudy.load(folder / "factorial" / "random_nfm")
    np.testing.assert_allclose(alone.to_frame()["t"], saved.to_frame()["t"], rtol=1e-2)
    draws = json.loads((folder / "random_nfm.json").read_text())
    assert {name: len(found) for name, found in draws.items()} == {"random_nfm": 1, "random_nfm_component": 1}
    assert draws["random_nfm"][0]["kinds"] == saved.kinds() and draws["random_nfm"][0]["n_columns"] == 4
    shuffled = json.loads((folder / "shuffled.json").read_text())
    assert set(shuffled) == {*NAMES, "sizes"} and all(len(found) == 1 for found in shuffled.values())


def test_the_model_is_trained_under_stores_and_described(crossed):
    record = json.loads((_folder(crossed) / "nfm.json").read_text())
    (folder,) = (crossed.parent.parent / "stores").glob("nfm-*")
    nfm = NFM.load(folder)
    assert record["fingerprint"] == nfm.fingerprint and record["rank"] == 4
    assert record["explained_validation"] == pytest.approx(nfm.provenance["explained_validation"])
    assert record["corpus"]["n_documents"] == 30


def test_a_second_run_does_nothing(crossed):
    assert run_pipeline(crossed, verbose=0).computed == ()
    assert read_factorial(_folder(crossed) / "config.yaml") == read_factorial(crossed)


def test_check_list_and_schema_know_the_type(crossed):
    told = check_pipeline(crossed)
    assert "48 stimuli (formal:glad 12, formal:calm 12, casual:glad 12, casual:calm 12)" in told
    assert "items: 6 of discovery, 6 of the test" in told and "register:emotion: " in told
    assert "rank 4, read-out linear, to be trained on 30 documents" in told
    assert "random nfm (1 draw), token embeddings" in told
    listed = list_studies(crossed.parent.parent)
    assert "NFM dimensions chosen for register:emotion" in listed and "report: reports/crossed/report.html" in listed
    schema = FactorialFile.model_json_schema()
    assert schema["properties"]["type"]["const"] == "factorial_study" and "InteractionsPart" in schema["$defs"]


CORPUS = {"corpus": ["stimuli/corpus.jsonl"]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "factorial"}, "'type' is 'factorial'; it must be 'method_grid' or 'factorial_study', or left out"),
        ({"interactions": CORPUS | {"path": "x"}}, "give either path or corpus, found path and corpus"),
        ({"interactions": {"rank": 8}}, "give either path or corpus, found none"),
        ({"interactions": {"path": "x", "rank": 8}, "secondary": None}, "rank is of a training"),
        ({"interactions": {"path": "x"}}, "secondary is trained on interactions.corpus"),
        ({"secondary": {"n_features": 4, "k": 8}}, "k is 8, more than n_features 4"),
        ({"dictionary": {"kind": "raw_units"}}, "interactions are those of a trained dictionary"),
        ({"controls": ["raw_units", "raw_units"]}, "raw_units is given more than once"),
        ({"factorial": {"n_perm": 5}}, "field 'factorial.n_perm' is 5"),
        ({"analyses": {}}, "unknown field 'analyses'"),
        ({"interactions": {"corpus": ["stimuli/none.txt"]}}, "none.txt: there is no such file"),
        ({"interactions": {"corpus": ["stimuli/crossed.tsv"]}}, "interactions.corpus holds the stimulus 'The old run"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path, tiny, changes, told):
    with pytest.raises(InvalidInput, match=told):
        check_pipeline(_write(tmp_path, tiny, **changes))


@pytest.mark.parametrize(
    ("design", "told"),
    [
        (
            {"type": "categorical", "factor": "register"},
            "has type categorical; a factorial study needs type: factorial",
        ),
        ({"type": "factorial", "factors": ["register", "third"]}, "factor 'third' has 3 levels"),
        ({"type": "factorial", "factors": ["register", "emotion", "third"]}, "crosses 3 factors"),
    ],
)
def test_wrong_designs_are_refused_before_anything_runs(tmp_path, tiny, design, told):
    file = _write(tmp_path, tiny)
    (tmp_path / "designs" / "crossed.yaml").write_text(yaml.safe_dump(design))
    for action in (check_pipeline, lambda path: run_pipeline(path, verbose=0)):
        with pytest.raises(InvalidInput, match=told):
            action(file)
    assert not (tmp_path / "stores").exists()


def test_the_model_of_another_dictionary_is_refused(crossed, tmp_path, tiny):
    (trained,) = (crossed.parent.parent / "stores").glob("nfm-*")
    nfm = NFM.load(trained)
    NFM(nfm.weights, nfm.top_n, "of another").save(tmp_path / "dictionaries" / "nfm")
    with pytest.raises(DataMismatch, match="trained on the codes of another dictionary"):
        check_pipeline(_write(tmp_path, tiny, interactions={"path": "dictionaries/nfm"}, secondary=None))


def test_columns_with_nothing_to_test_are_told_and_the_rest_goes_on(crossed, silent):
    folder = _folder(silent)
    assert not (silent.parent.parent / "stores").exists()
    for name in ("interactions", "component_interaction"):
        reason = json.loads((folder / "factorial" / name / "reason.json").read_text())
        assert "no column varies in the items of discovery" in reason["reason"]
    for name in ("features", "component_linear", "token_embeddings"):
        one, two = (FactorialStudy.load(path / "factorial" / name) for path in (_folder(crossed), folder))
        pd.testing.assert_frame_equal(one.to_frame(), two.to_frame())
    assert "<b>" in (page := (folder / "report.html").read_text()) and "Not studied: factorial_study: no column" in page
    listed = list_studies(silent.parent.parent).split("\n    ")
    assert listed[1].startswith("The stimulus audit fails (length_characters, length_characters_paired): what follows")
    assert listed[2].startswith("The NFM dimensions could not be studied: factorial_study: no column")


def test_lost_results_are_made_again_and_what_is_no_longer_asked_for_goes(silent):
    file, other = (_folder(silent) / "factorial" / name / "tests.parquet" for name in ("sizes", "token_embeddings"))
    before = file.read_bytes()
    file.unlink()
    silent.write_text(yaml.safe_dump(yaml.safe_load(silent.read_text()) | {"controls": []}))
    assert other.exists()
    assert run_pipeline(silent, verbose=0).computed == ("factorial sizes", "manifest", "report")
    assert file.read_bytes() == before and not list(other.parent.glob("*"))


# Shuffled labels ------------------------------------------------------------------------


def _table(between: bool = False, **more) -> tuple[pd.DataFrame, FactorialDesign]:
    rows = [
        {"item": f"i{i}", "a": a, "b": b, "group": i % 2}
        for i in range(40)
        for a in ("x", "y")
        for b in (("u", "v")[i % 4 // 2] if between else "uv")
    ]
    return pd.DataFrame(rows), FactorialDesign({"a": ["x", "y"], "b": ["u", "v"]}, **more)


def test_labels_within_items_change_places_there():
    obs, design = _table()
    shuffled = [exchange_labels(obs, design, 0, index) for index in range(60)]
    for one in shuffled:
        cells = one.groupby(["item", "a", "b"], observed=True).size()
        assert len(cells) == 160 and (cells == 1).all()
    for name in "ab":
        kept = np.mean([(one[name].astype(str) == obs[name]) for one in shuffled], axis=0)
        assert 0.4 < kept.mean() < 0.6 and kept.min() > 0.2 and kept.max() < 0.8
    assert not shuffled[0].equals(shuffled[1])
    assert exchange_labels(obs, design, 0, 3).equals(shuffled[3])


def test_whole_items_change_places_inside_their_block():
    obs, design = _table(between=True, blocks="group")
    seen = set()
    for index in range(20):
        one = exchange_labels(obs, design, 1, index)
        of_item = one.groupby("item")["b"].agg(set)
        assert of_item.map(len).max() == 1
        assert (one.groupby(["group", "b"], observed=True).size() == 20).all()
        assert (one.groupby("item")["a"].nunique() == 2).all()
        seen.add(tuple(one["b"].astype(str)))
    assert len(seen) == 20
