"""The index against brute force, its passages against the texts."""

from __future__ import annotations

import numpy as np
import pytest

from neurollm.activations import FeatureIndex, index_build
from neurollm.activations.documents import pieces, words_after, words_before
from neurollm.activations.index_summary import Entries, Summary
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.models import Site


@pytest.fixture(scope="module")
def index(dictionary, store, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_build, "TOKENS_PER_SHARD", 600)
        return FeatureIndex.build(None, dictionary, store, tmp_path_factory.mktemp("index"), top=5, verbose=0)


@pytest.fixture(scope="module")
def dense(dictionary, store):
    """Encoded in the same pieces as the index: products of other shapes may round differently."""
    pieces_of_600 = [store.rows(at, min(at + 600, store.n_rows)) for at in range(0, store.n_rows, 600)]
    return np.concatenate([dictionary.encode_sparse(rows).toarray() for rows in pieces_of_600])


def brute_force(values: np.ndarray, documents: np.ndarray, n: int) -> list[tuple[float, int]]:
    """Best row of each document, then the best n of these."""
    best: dict[int, tuple[float, int]] = {}
    for row in np.flatnonzero(values > 0):
        candidate = (-float(values[row]), int(row))
        best[documents[row]] = min(best.get(documents[row], candidate), candidate)
    return [(-value, row) for value, row in sorted(best.values())[:n]]


def test_rows_and_occurrences_are_the_encoded_ones(index, dense):
    assert np.array_equal(index.rows(0, index.n_rows).toarray(), dense)
    assert np.array_equal(index.rows(590, 1210).toarray(), dense[590:1210])
    for feature in range(index.n_features):
        rows, values = index.occurrences(feature)
        assert np.array_equal(rows, np.flatnonzero(dense[:, feature]))
        assert np.array_equal(values, dense[rows, feature])


def test_density_and_maximum(index, dense):
    np.testing.assert_array_equal(index.density, (dense > 0).mean(0))
    np.testing.assert_array_equal(index.max_activation, dense.max(0).clip(0))


@pytest.mark.parametrize("n", [1, 5, 12])
def test_top_contexts_are_those_of_brute_force(index, dense, store, n):
    documents = store.columns(0, store.n_rows)["doc_id"]
    for feature in range(index.n_features):
        found = [(context.activation, context.row) for context in index.top_contexts(feature, n)]
        assert found == brute_force(dense[:, feature], documents, n)


def test_summary_with_ties_and_documents_across_shards():
    rng = np.random.default_rng(0)
    documents = np.sort(rng.integers(0, 30, 3000))
    values = rng.integers(-2, 6, (3000, 8)).astype(np.float32) * (rng.random((3000, 8)) < 0.2)
    summary = Summary(8, 4)
    for start in range(0, 3000, 170):
        part = values[start : start + 170].T
        feature, row = np.nonzero(part)
        summary.add(Entries(feature, part[feature, row], row + start, documents[row + start]))
    kept = summary.tensors()
    for feature in range(8):
        span = slice(*kept["top_indptr"][feature : feature + 2])
        found = list(zip(kept["top_value"][span].tolist(), kept["top_row"][span].tolist(), strict=True))
        assert found == brute_force(values[:, feature], documents, 4)
    np.testing.assert_array_equal(kept["fires"], (values > 0).sum(0))


def test_passages_are_exact_and_point_at_the_peak(index, corpus, dense):
    texts = dict(corpus.documents)
    shown = [context for feature in range(index.n_features) for context in index.top_contexts(feature, 5, window=7)]
    assert len(shown) > 50
    for context in shown:
        assert context.text and context.text in texts[context.document]
        assert context.tokens[context.peak][1] == np.float32(context.activation)
        assert len(context.tokens) <= 15
        assert context.to_dict()["tokens"][context.peak] == list(context.tokens[context.peak])


def test_from_a_corpus_as_from_a_store(lm, dictionary, corpus, index, tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "TOKENS_PER_BATCH", 256)
    direct = FeatureIndex.build(lm, dictionary, corpus, tmp_path / "i", top=5, verbose=0)
    assert direct.n_rows == index.n_rows
    np.testing.assert_allclose(direct.density, index.density, atol=2 / index.n_rows)
    np.testing.assert_allclose(direct.max_activation, index.max_activation, rtol=1e-4)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "i").iterdir()}
    FeatureIndex.build(lm, dictionary, corpus, tmp_path / "i", top=5, verbose=0)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "i").iterdir()}


def test_mismatches_are_refused(tiny_module, lm, corpus, store, index, site, tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "TOKENS_PER_SHARD", 600)
    other = tiny_module.TinyDictionary(site, seed=1)
    with pytest.raises(DataMismatch, match="dictionary fingerprint"):
        FeatureIndex.build(None, other, store, index.path, top=5, verbose=0)
    with pytest.raises(DataMismatch, match=r"the store holds resid_post\.1, the dictionary belongs to resid_post\.2"):
        FeatureIndex.build(None, tiny_module.TinyDictionary(Site(2)), store, tmp_path, verbose=0)
    other.model_fingerprint = "0" * 64
    with pytest.raises(DataMismatch, match="belongs to another one"):
        FeatureIndex.build(None, other, store, tmp_path, verbose=0)
    with pytest.raises(InvalidInput, match="needs a language model"):
        FeatureIndex.build(None, other, corpus, tmp_path, verbose=0)
    with pytest.raises(InvalidInput, match="feature 50 does not exist"):
        index.top_contexts(50)
    with pytest.raises(DataMismatch, match="holds an activation store, expected a feature index"):
        FeatureIndex(store.path)


def test_damage_is_named(dictionary, store, index, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(index.path, folder)
    monkeypatch.setattr(index_build, "TOKENS_PER_SHARD", 600)
    for name in ("summary.safetensors", "shard-00001.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(DataMismatch, match=f"{name}.*FeatureIndex.build again to restore it"):
            FeatureIndex(folder)
        (folder / name).unlink()
        FeatureIndex.build(None, dictionary, store, folder, top=5, verbose=0).verify()
        assert (folder / name).read_bytes() == content


def test_words_and_pieces():
    text = "one two three four five"
    assert (words_before(text, 9, 1), words_after(text, 9, 1)) == ("two t", "hree four")
    assert (words_before(text, 4, 0), words_after(text, 7, 0)) == ("", "")
    assert (words_before(text, 4, 9), words_after(text, 19, 9)) == ("one ", "five")
    long = "w " * 5000
    assert words_before(long, 8000, 40) == "w " * 40
    assert pieces("🙂x", np.array([0, 0, 1]), np.array([1, 1, 2])) == ["🙂", "", "x"]
