"""Reading TSV and JSON verbatim: a value is text, and a broken line is named by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neurollm.errors import InvalidInput


def read_utf8(path: Path) -> str:
    """Return the text of a UTF-8 file with line ends as ``\\n`` (a byte order mark is dropped)."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidInput(f"{path}: {found}; give the path of a stimulus file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"0x{raw[error.start]:02x}"
        raise InvalidInput(f"{path}, line {line}: byte {byte} is not UTF-8; save the file as UTF-8") from None
    return text.replace("\r\n", "\n")


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a tab-separated file; row ``i`` stands on line ``i + 2``."""
    # split("\n") and not splitlines(), which would also cut at characters inside a sentence.
    lines = read_utf8(path).rstrip("\n").split("\n")
    header = lines[0].split("\t")
    if not lines[0].strip():
        raise InvalidInput(f"{path}, line 1: the header is empty; name the columns, 'text' among them")
    for name in header:
        if not name.strip():
            raise InvalidInput(f"{path}, line 1: column {header.index(name) + 1} has no name; give it one")
        if header.count(name) > 1:
            raise InvalidInput(f"{path}, line 1: column {name!r} occurs {header.count(name)} times; keep one")
    if len(lines) == 1:
        raise InvalidInput(f"{path}: the file has a header but no stimuli; add one line per stimulus")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            raise InvalidInput(f"{path}, line {number}: the line is blank; remove it")
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InvalidInput(
                f"{path}, line {number}: the line has {len(fields)} tab-separated fields but the header has "
                f"{len(header)}; a text may contain neither tab nor line break"
            )
        rows.append(fields)
    return header, rows


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; keys that occur twice are refused rather than silently dropped."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidInput(f"{path}: key {key!r} occurs {keys.count(key)} times; keep one")
        return dict(pairs)

    text = read_utf8(path)
    try:
        value = json.loads(text, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}); correct the file"
        ) from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{path}: an escape \\ud8.. is half of a character; write the whole pair") from None
    except InvalidInput:
        raise
    except ValueError:
        raise InvalidInput(f"{path}: the JSON holds a number with too many digits; put it in quotes") from None
    except RecursionError:
        raise InvalidInput(f"{path}: the JSON is nested too deeply; a flat object is expected") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: the JSON is a {type(value).__name__}; an object {{...}} is expected")
    return value
