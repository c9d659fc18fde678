"""From text to a measured dictionary, with the embedded model and a store on disk."""

import pytest

from neurollm.activations import Corpus, harvest
from neurollm.datasets import DEMO_SEEDS, demo_corpus_path
from neurollm.dictionaries import (
    Plan,
    TopKTraining,
    evaluate_dictionary,
    load_dictionary,
    seed_stability,
    train_dictionaries,
    train_dictionary,
)
from neurollm.dictionaries.training import LEARNERS
from neurollm.errors import DataMismatch
from neurollm.models import Site, load_model

TEXTS = [
    "The old man walked slowly to the river and looked at the water for a long time.",
    "She opened the letter, read it twice, and put it back on the table without a word.",
    "In the morning the children ran down the hill to see the ships come in.",
]


def test_text_to_dictionary(tmp_path, demo_lm):
    corpus = Corpus([(f"text {i}", text * (i + 2)) for i, text in enumerate(TEXTS)])
    store = harvest(demo_lm, corpus, Site(2), tmp_path / "store", verbose=0)
    options = {"n_features": 512, "k": 8, "n_tokens": 4_000, "verbose": 0, "training": TopKTraining(batch_size=64)}
    dictionary = train_dictionary(store, out=tmp_path / "sae", **options)
    dictionary.check(demo_lm, Site(2))
    assert dictionary.provenance["run"]["store_sha256"] == store.sha256
    assert dictionary.provenance["epochs"] > 5
    metrics = evaluate_dictionary(dictionary, store, demo_lm, TEXTS)
    assert metrics.ev > 0.6 and metrics.n_tokens == store.n_rows
    assert metrics.ce < metrics.ce_mean and metrics.ce_recovered > 0.3
    again = evaluate_dictionary(dictionary, store, demo_lm)  # the store knows its texts
    assert again.n_predicted > metrics.n_predicted and again.ce < again.ce_mean
    assert load_dictionary(tmp_path / "sae").fingerprint == dictionary.fingerprint
    with pytest.raises(DataMismatch, match="this is model 'demo'"):
        dictionary.check(load_model("demo", device="cpu", dtype="float32", random_init=1))


def test_topk_beats_l1_at_equal_l0_on_the_demo_model(tmp_path, demo_lm):
    """Held-out FVU, both steered to eight active features; and the L1 penalty shortens reconstructions."""
    documents = Corpus.read(demo_corpus_path()).documents[:72]
    site = Site(3)
    train = harvest(demo_lm, Corpus(documents[:60], "train"), site, tmp_path / "train", verbose=0)
    held_out = harvest(demo_lm, Corpus(documents[60:], "held out"), site, tmp_path / "held_out", verbose=0)
    plans = [
        Plan(architecture=name, n_features=256, k=8, n_tokens=160_000, training=LEARNERS[name].options(batch_size=128))
        for name in ("topk", "relu")
    ]
    topk, relu = (evaluate_dictionary(d, held_out) for d in train_dictionaries(train, plans, verbose=0))
    assert topk.l0 == pytest.approx(8, abs=0.1) and relu.l0 == pytest.approx(8, rel=0.1)
    assert topk.fvu < 0.9 * relu.fvu
    assert topk.shrinkage == pytest.approx(1, abs=0.03) and relu.shrinkage < 0.95


def test_three_seeds_of_the_demo_dictionary_are_embedded_and_share_features():
    several = [load_dictionary(name) for name in DEMO_SEEDS]
    assert [d.provenance["run"]["random_state"] for d in several] == [0, 1, 2]
    assert len({d.fingerprint for d in several}) == 3
    same = [{k: v for k, v in d.provenance["run"].items() if k != "random_state"} for d in several]
    assert same[0] == same[1] == same[2]
    pairs = seed_stability(several, n_null=2).to_frame()
    assert len(pairs) == 3 and pairs["shared"].between(0.6, 0.75).all() and (pairs["null_shared"] == 0).all()
    assert (pairs["mean_cosine"] > 0.7).all() and (pairs["null_cosine"] < 0.25).all()
