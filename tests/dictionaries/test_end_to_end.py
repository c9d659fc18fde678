"""From text to a measured dictionary, with the embedded model and a store on disk."""

import pytest

from neurollm.activations import Corpus, harvest
from neurollm.dictionaries import TopKTraining, evaluate_dictionary, load_dictionary, train_dictionary
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
    assert load_dictionary(tmp_path / "sae").fingerprint == dictionary.fingerprint
    with pytest.raises(DataMismatch, match="this is model 'demo'"):
        dictionary.check(load_model("demo", device="cpu", dtype="float32", random_init=1))
