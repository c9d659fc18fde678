"""Held-out stores must hold texts that the training has not seen, under whatever name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neurollm.activations import Corpus, harvest
from neurollm.activations.documents import Documents, write_documents
from neurollm.dictionaries.held_out import check_held_out, shared_texts
from neurollm.errors import DataMismatch
from neurollm.models import Site

TEXTS = [f"Number {n} walked along the river." for n in range(6)]


@pytest.fixture(scope="module")
def stores(demo_lm, tmp_path_factory):
    """Of texts, of two of them among others with new names, and of others only."""

    def store(name, texts):
        documents = [(f"{name} {place}", text) for place, text in enumerate(texts)]
        return harvest(demo_lm, Corpus(documents), Site(3), tmp_path_factory.mktemp(name), verbose=0)

    new = [f"Number {n} ran up the hill." for n in range(3)]
    return store("train", TEXTS), store("mixed", [*new, TEXTS[4], TEXTS[1]]), store("new", new)


def test_texts_harvested_again_are_found_by_what_they_say(stores):
    train, mixed, new = stores
    assert shared_texts(train, mixed) == ["mixed 3", "mixed 4"]
    assert shared_texts(mixed, train) == ["train 1", "train 4"]
    assert shared_texts(train, new) == [] and len(shared_texts(train, train)) == len(TEXTS)


def test_any_shared_text_is_refused_in_one_sentence(stores):
    train, mixed, new = stores
    check_held_out(train, new)
    with pytest.raises(DataMismatch, match=r"2 of the 5 texts of held_out are in the store too, .* 'mixed 3'; harvest"):
        check_held_out(train, mixed)
    with pytest.raises(DataMismatch, match="very texts of the store"):
        check_held_out(train, train)


def test_empty_texts_are_not_shared_and_hostile_names_stay_on_one_line(stores, tmp_path):
    kept = []
    texts = {"a": [("x", ""), ("y", " \n"), ("z", "A text.")], "b": [("\n" * 200, "A text."), ("e", ""), ("f", " \n")]}
    for name, documents in texts.items():
        write_documents(tmp_path / name, Corpus(documents))
        kept.append(SimpleNamespace(**(vars(stores[0]) | {"manifest": {}, "sha256": name})))
        kept[-1].documents = Documents(tmp_path / name)
    assert shared_texts(*kept) == ["\n" * 200]
    with pytest.raises(DataMismatch) as error:
        check_held_out(*kept)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
