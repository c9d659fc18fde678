"""Shuffled words: the same words and tokens in another order, and a harvest like any other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from neurollm.activations import Corpus, harvest
from neurollm.activations.contexts import Contexts
from neurollm.activations.shuffling import shuffled_words
from neurollm.errors import InvalidInput

TEXTS = [
    ("prose", "It was late.\n\nThe king  said\tnothing , and  then <s> went home.  \n"),
    ("leading", "  two words and more words"),
    ("empty", ""),
    ("blank", " \n "),
    ("one", "word"),
    ("unicode", "Über é🙂 — 三つ の 言葉"),
]


def test_words_and_white_space_are_kept_and_their_order_is_not():
    before, after = Corpus(TEXTS), shuffled_words(Corpus(TEXTS), 3)
    assert [name for name, _ in after] == [name for name, _ in before]
    for (name, old), (_, new) in zip(before, after, strict=True):
        assert Counter(old.split()) == Counter(new.split()) and Counter(old) == Counter(new)
        assert new == old if name in ("empty", "blank", "one") else new.split() != old.split()
    assert after.documents[0][1].startswith("It") and after.documents[0][1].endswith("  \n")


def test_every_order_is_equally_likely():
    orders = Counter(shuffled_words(Corpus([("a", "stays x y z")]), seed).documents[0][1] for seed in range(1200))
    # Six orders, expectation 200, standard deviation sqrt(1200 · 1/6 · 5/6) = 13.
    assert len(orders) == 6 and max(abs(count - 200) for count in orders.values()) < 55


def test_the_order_depends_on_seed_and_document_number_alone():
    text = "one two three four five six seven eight nine ten"
    twice = shuffled_words(Corpus([("a", text), ("b", text)]), 1)
    assert twice.documents == shuffled_words(Corpus([("a", text), ("b", text)]), 1).documents
    assert twice.documents[0][1] != twice.documents[1][1]
    assert twice.documents[0] == shuffled_words(Corpus([("a", text)]), 1).documents[0]
    assert twice.sha256 != shuffled_words(Corpus([("a", text), ("b", text)]), 2).sha256
    assert "shuffled" in twice.name


def test_nothing_to_shuffle_is_told():
    with pytest.raises(InvalidInput, match="no document has three words"):
        shuffled_words(Corpus([("a", "two words"), ("b", "言葉だけ")]))


def test_the_demo_tokenizer_finds_the_same_tokens_in_every_document():
    from neurollm import datasets
    from neurollm.models import load_model

    lm = load_model("demo")
    corpus = Corpus(Corpus.read(datasets.demo_corpus_path()).documents[:40])
    before, after = (Contexts.of(lm, texts, lm.context) for texts in (corpus, shuffled_words(corpus)))
    np.testing.assert_array_equal(before.document_start, after.document_start)
    moved = 0
    for start, stop in zip(before.document_start[:-1], before.document_start[1:], strict=True):
        old, new = before.ids[start:stop], after.ids[start:stop]
        np.testing.assert_array_equal(np.sort(old), np.sort(new))
        moved += np.sum(old != new)
    assert moved > 0.9 * len(before.ids)


def test_its_harvest_is_like_any_other(lm, corpus, site, store, tmp_path):
    shuffled = shuffled_words(corpus)
    again = harvest(lm, shuffled, site, tmp_path, tokens_per_shard=700, tokens_per_batch=256, verbose=0)
    assert again.n_rows == store.n_rows and again.sha256 != store.sha256
    old, new = (each.columns(0, each.n_rows) for each in (store, again))
    assert Counter(zip(old["doc_id"], old["token_id"], strict=True)) == Counter(
        zip(new["doc_id"], new["token_id"], strict=True)
    )
    where = again.context(again.n_rows - 1)
    assert where.document == shuffled.documents[-1][0] and where.token in shuffled.documents[-1][1]
