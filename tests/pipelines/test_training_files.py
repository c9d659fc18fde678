"""Training and sweep files: from YAML to dictionaries, measured and reported; one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from neurollm.activations import ActivationStore, Corpus, harvest
from neurollm.dictionaries import MatryoshkaTraining, evaluate_dictionary, load_dictionary, train_dictionary, trajectory
from neurollm.dictionaries.training import LEARNERS
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site
from neurollm.pipelines import SweepFile, TrainingFile, new_project, run_sweep, run_training
from neurollm.pipelines.schema import Architecture
from neurollm.validation import read_yaml, validate

ONE = {"store": "stores/texts", "out": "out/one", "n_features": 32, "k": 4, "n_tokens": 1500}
SMALL = {"n_features": 32, "k": 4, "n_tokens": 1500}
SWEEP = {"store": "stores/texts", "held_out": "stores/other", "out": "out/sweep", "widths": [16, 24, 32, 48], "k": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory, demo_lm) -> Path:
    """A project with stores of some texts, of other texts, and of the texts at another site."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pipelines").mkdir()
    texts = [("a", "The old man walked along the river and sat down by the mill. " * 60)]
    others = [("b", "A young woman ran up the hill, looked at the sea, and laughed. " * 30)]
    for name, documents, layer in (("texts", texts, 3), ("other", others, 3), ("site", others, 2)):
        harvest(demo_lm, Corpus(documents), Site(layer), folder / "stores" / name, verbose=0)
    return folder


@pytest.fixture
def write(root):
    """Write a file of the project."""

    def writer(fields, name="file.yaml"):
        path = root / name
        path.write_text(yaml.safe_dump(fields))
        return path

    return writer


def test_the_file_of_one_dictionary(root, write):
    fields = ONE | {"architecture": "matryoshka", "random_state": 3, "snapshots": [0.5]}
    fields |= {"training": {"batch_size": 256, "widths": [0.25, 1]}, "held_out": "stores/other"}
    (line,) = run_training(write(fields), verbose=0)
    trained = load_dictionary(root / "out" / "one")
    options = MatryoshkaTraining(batch_size=256, widths=(0.25, 1))
    store, held_out = (ActivationStore(root / "stores" / name) for name in ("texts", "other"))
    alone = train_dictionary(store, "matryoshka", 32, 4, 1500, 3, training=options, verbose=0)
    assert all(torch.equal(alone.weights[name], weight) for name, weight in trained.weights.items())
    metrics = evaluate_dictionary(trained, held_out)
    assert trained.metrics["ev"] == metrics.ev
    assert f"EV {metrics.ev:.4f}" in line and f"L0 {metrics.l0:.1f}" in line and "32 features at resid_post.3" in line
    assert len(trajectory(root / "out" / "one")) == 1
    assert run_training(write(fields), verbose=0) == [line]


def test_several_dictionaries_and_going_on_from_one(root, write):
    several = [{"name": "a", "random_state": 1, **SMALL}, {"name": "b", "architecture": "relu", **SMALL}]
    lines = run_training(write({"store": "stores/texts", "out": "out/two", "dictionaries": several}), verbose=0)
    assert ["a: topk" in lines[0], "b: " in lines[1], "EV" in lines[0]] == [True, True, False]
    run_training(write(ONE | {"out": "out/more", "init_from": "out/two/a"}), verbose=0)
    found = load_dictionary(root / "out" / "more").provenance["run"]["init_from"]
    assert found == load_dictionary(root / "out" / "two" / "a").fingerprint


def test_the_file_of_a_sweep(root, write):
    fields = SWEEP | {"tokens": [1500], "seeds": [0, 1], "training": {"batch_size": 256}}
    table, report = run_sweep(write(fields), verbose=0)
    assert report == root / "out" / "sweep" / "report.html" and report.is_file()
    assert len([line for line in table.splitlines() if " 1500 " in line]) == 8 and "FVU α = " in table


def wrong(**changes):
    return {name: value for name, value in (ONE | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (wrong(architecture="tokp"), "field 'architecture' is 'tokp'; it must be 'topk', 'batchtopk'"),
        (wrong(training={"batchsize": 1}), "field 'training': 'batchsize' is no option of architecture topk; did you"),
        (wrong(training={"widths": [1]}), "field 'training': 'widths' is no option of architecture topk"),
        (wrong(training={"batch_size": 1.5}), "field 'training': field 'batch_size' is 1.5; expected a whole number"),
        (wrong(training={"batch_size": -1}), "field 'training': batch_size must be positive, got -1"),
        (wrong(training={"batch_size": True}), "field 'training': batch_size must be positive, got True"),
        (wrong(training={3: 1}), "field 'training"),
        (wrong(training=[1]), "field 'training'"),
        (wrong(k=40), "k is 40, more than n_features 32"),
        (wrong(snapshots=[2]), "snapshots are shares of the training"),
        (wrong(nfeatures=3), "'nfeatures'"),
        (wrong(store=None), "store"),
        (wrong(dictionaries=[{"name": "a"}]), "k stands beside dictionaries"),
        ({"store": "s", "out": "o", "dictionaries": []}, "field 'dictionaries'"),
        ({"store": "s", "out": "o", "dictionaries": [{"name": "a"}, {"name": "A"}]}, "a is given more than once"),
        *(
            ({"store": "s", "out": "o", "dictionaries": [{"name": name}]}, "cannot be a folder name")
            for name in ("../a", "/a", "a/b", "..", ".a", "", "a\\b", "a\nb", "C:a")
        ),
    ],
)
def test_training_files_that_are_wrong(write, fields, words):
    with pytest.raises(InvalidInput) as error:
        run_training(write(fields), verbose=0)
    assert (
        words in str(error.value) and str(error.value).startswith(str(write(fields))) and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": [16, 24, 32]}, "at least 4 different widths, found 3"),
        ({"widths": [16, 24, 32, 32]}, "32 is given more than once"),
        ({"k": 20}, "n_features is 16, k 20"),
        ({"k": 1.5}, "field 'k' is 1.5"),
        ({"training": {"lr": 1}}, "'lr' is no option of architecture topk"),
        ({"tokens": [0]}, "field 'tokens.0' is 0"),
    ],
)
def test_sweep_files_that_are_wrong(write, changes, words):
    with pytest.raises(InvalidInput) as error:
        run_sweep(write(SWEEP | changes), verbose=0)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("run", [run_training, run_sweep])
def test_stores_that_are_missing_or_do_not_belong_together(write, root, run):
    fields = ONE if run is run_training else SWEEP
    with pytest.raises(InvalidInput, match="no activation store"):
        run(write(fields | {"store": "stores/none"}), verbose=0)
    with pytest.raises(InvalidInput, match="no activation store"):
        run(write(fields | {"held_out": "stores/none"}), verbose=0)
    with pytest.raises(DataMismatch, match=r"held_out is of resid_post\.2, the store of resid_post\.3"):
        run(write(fields | {"held_out": "stores/site", "out": "out/never"}), verbose=0)
    with pytest.raises(DataMismatch, match="very texts of the store"):
        run(write(fields | {"held_out": "stores/texts", "out": "out/never"}), verbose=0)
    assert not (root / "out" / "never").exists()


def test_out_of_another_training(write):
    run_training(write(ONE | {"out": "out/mine"}), verbose=0)
    with pytest.raises(DataMismatch, match="belongs to another training: k is 4 there and 5 here"):
        run_training(write(ONE | {"out": "out/mine", "k": 5}), verbose=0)


def test_every_architecture_has_a_name_in_the_file():
    assert set(Architecture.__args__) == set(LEARNERS)


def test_the_examples_of_a_new_project_are_valid(tmp_path):
    folder = new_project(tmp_path / "study").root / "dictionaries"
    training = validate(TrainingFile, read_yaml(folder / "demo.yaml"), "demo.yaml")
    sweep = validate(SweepFile, read_yaml(folder / "widths.yaml"), "widths.yaml")
    assert len(training.dictionaries) == 2 and len(sweep.grid().plans("out")) == 16
    assert {path.name for path in folder.iterdir()} == {"demo.yaml", "widths.yaml"}
