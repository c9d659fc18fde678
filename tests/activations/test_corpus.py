"""Reading corpora, and one sentence for each way in which a file can be wrong."""

from __future__ import annotations

import pytest

from neurollm.activations import Corpus
from neurollm.errors import InvalidInput
from neurollm.files import sha256_file


def test_json_lines_keep_names_and_exact_texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"name": "a", "text": "one\\u2028two"}\n\n{"text": "three\\n"}\n', encoding="utf-8")
    assert Corpus.read(file).documents == [("a", "one\u2028two"), ("line 3", "three\n")]


def test_text_files_are_documents_or_paragraphs(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("first\nline\n\n \nsecond\n", encoding="utf-8")
    assert Corpus.read(file).documents == [("book", "first\nline\n\n \nsecond\n")]
    assert [text for _, text in Corpus.read(file, split="blank_lines")] == ["first\nline", "second\n"]
    (tmp_path / "another.txt").write_text("x", encoding="utf-8")
    assert [name for name, _ in Corpus.read(tmp_path)] == ["another", "book"]


def test_stimulus_tables_are_corpora(tmp_path):
    file = tmp_path / "stimuli.tsv"
    file.write_text("stimulus_id\ttext\titem\ns1\tA cat.\t1\ns2\tA dog.\t2\n", encoding="utf-8")
    assert Corpus.read(file).documents == [("s1", "A cat."), ("s2", "A dog.")]


def test_hash_is_that_of_the_file_kept_with_the_activations(store, corpus):
    assert sha256_file(store.path / "documents.jsonl") == corpus.sha256
    assert Corpus([("a", "x")]).sha256 != Corpus([("b", "x")]).sha256


@pytest.mark.parametrize(
    ("name", "content", "tells"),
    [
        ("missing.txt", None, "there is no such file"),
        ("kind.pdf", b"x", "unknown kind of corpus"),
        ("bytes.txt", b"ab\xff", "byte 2 is not UTF-8"),
        ("bad.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not valid JSON"),
        ("field.jsonl", b'{"texts": "x"}\n', 'line 1 has no field "text"'),
        ("list.jsonl", b'["x"]\n', 'line 1 has no field "text"'),
        ("empty.txt", b" \n", "the corpus is empty"),
        ("empty.jsonl", b"", "the corpus is empty"),
        ("column.tsv", b"id\twords\n1\tx\n", "no column 'text' (found: id, words)"),
        ("short.tsv", b"id\ttext\n1\tx\n2\n", "line 3 has 1 tab-separated fields"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path, name, content, tells):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        Corpus.read(tmp_path / name)
    assert tells in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_surrogate_is_told_with_its_document():
    with pytest.raises(InvalidInput, match="'odd' contains half of a surrogate pair"):
        _ = Corpus([("odd", "x\ud800")]).sha256


def test_a_table_is_verbatim_like_a_stimulus_set(tmp_path):
    file = tmp_path / "quotes.tsv"
    file.write_text('stimulus_id\ttext\n1\t"Stop!" she said.\n2\t"Go on, he wrote.\n3\tA line\u2028broken.\n', "utf-8")
    texts = ['"Stop!" she said.', '"Go on, he wrote.', "A line\u2028broken."]
    assert Corpus.read(file).documents == [(str(index), text) for index, text in enumerate(texts, 1)]
