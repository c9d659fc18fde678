"""A corpus: named documents, in order, known by one hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from neurollm.errors import InvalidInput


class Corpus:
    """Documents to run a model over.

    Parameters
    ----------
    documents : sequence of (name, text)
        A document without any text is kept, so that numbering does not change, and
        simply yields no rows.
    name : str, default="corpus"
        How the corpus is called in manifests and error messages.

    Raises
    ------
    InvalidInput
        If there is no document with text, or a text is not valid Unicode.

    Examples
    --------
    >>> corpus = Corpus([("first", "Once upon a time."), ("second", "The end.")])
    >>> len(corpus), corpus.documents[1]
    (2, ('second', 'The end.'))
    """

    def __init__(self, documents: Sequence[tuple[str, str]], name: str = "corpus") -> None:
        self.name = name
        self.documents = [(str(label), text) for label, text in documents]
        self._sha256: str | None = None
        if not any(text.strip() for _, text in self.documents):
            raise InvalidInput(f"{name}: the corpus is empty; it needs at least one document with text")

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.documents)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self)} documents)"

    def lines(self) -> Iterator[bytes]:
        """The corpus as JSON lines, the form in which it is hashed and kept beside activations."""
        for label, text in self.documents:
            try:
                yield (json.dumps({"name": label, "text": text}, ensure_ascii=False) + "\n").encode()
            except UnicodeEncodeError:
                raise InvalidInput(
                    f"{self.name}: document {label!r} contains half of a surrogate pair, which is not text; "
                    "remove or repair that character"
                ) from None

    @property
    def sha256(self) -> str:
        """SHA-256 of names and texts: of the file ``documents.jsonl`` of a store."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for line in self.lines():
                digest.update(line)
            self._sha256 = digest.hexdigest()
        return self._sha256

    @classmethod
    def read(cls, path: str | os.PathLike, *, split: str = "file") -> Corpus:
        """Read a corpus.

        Parameters
        ----------
        path : path-like
            ``.jsonl`` with ``{"name": …, "text": …}`` per line (the name is optional);
            ``.txt``; ``.tsv`` with a column ``text`` and optionally ``stimulus_id``; or a
            folder of ``.txt`` files, each one document, in the order of their names.
        split : {"file", "blank_lines"}, default="file"
            Whether a ``.txt`` file is one document or one per paragraph.

        Returns
        -------
        Corpus

        Raises
        ------
        InvalidInput
            The file is missing, empty, not UTF-8 or not in its format; the sentence
            names the line.
        """
        path = Path(path)
        if split not in ("file", "blank_lines"):
            raise InvalidInput(f"split is {split!r}; it must be 'file' or 'blank_lines'")
        if path.is_dir():
            files = sorted(path.glob("*.txt"))
            if not files:
                raise InvalidInput(f"{path}: the folder holds no .txt file")
            return cls([document for file in files for document in _text_documents(file, split)], str(path))
        readers = {".jsonl": _json_lines, ".tsv": _table, ".txt": lambda file: _text_documents(file, split)}
        if path.suffix.lower() not in readers:
            raise InvalidInput(f"{path}: unknown kind of corpus; use .jsonl, .txt, .tsv or a folder of .txt files")
        return cls(readers[path.suffix.lower()](path), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InvalidInput(f"{path}: the file cannot be read ({error.strerror})") from None


def _text_documents(path: Path, split: str) -> list[tuple[str, str]]:
    text = _read_text(path)
    if split == "file":
        return [(path.stem, text)]
    paragraphs = [part for part in re.split(r"\n[ \t]*\n\s*", text) if part.strip()]
    return [(f"{path.stem} {number}", paragraph) for number, paragraph in enumerate(paragraphs, 1)]


def _json_lines(path: Path) -> list[tuple[str, str]]:
    documents = []
    # Only "\n" ends a JSON line: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{path}: line {number} is not valid JSON ({error.msg})") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise InvalidInput(f'{path}: line {number} has no field "text" with a string; expected {{"name", "text"}}')
        documents.append((str(entry.get("name", f"line {number}")), entry["text"]))
    return documents


def _table(path: Path) -> list[tuple[str, str]]:
    # Verbatim like a stimulus table: a quotation mark is a character, only "\n" ends a line.
    header, *lines = [line.removesuffix("\r").split("\t") for line in _read_text(path).rstrip("\n").split("\n")]
    if "text" not in header:
        raise InvalidInput(f"{path}: there is no column 'text' (found: {', '.join(header) or 'nothing'})")
    documents = []
    for number, fields in enumerate(lines, 2):
        if len(fields) != len(header):
            raise InvalidInput(
                f"{path}: line {number} has {len(fields)} tab-separated fields but the header has {len(header)}"
            )
        row = dict(zip(header, fields, strict=True))
        documents.append((row.get("stimulus_id") or f"line {number}", row["text"]))
    return documents
