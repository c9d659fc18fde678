"""The rules of a stimulus table, each broken rule one sentence."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurollm.errors import InvalidInput
from neurollm.validation import closest

RESERVED = ("stimulus_id", "text", "item", "template", "target", "split")
# What the trial table adds to the stimuli, and the name under which an unnamed index is stored.
TRIAL_COLUMNS = ("n_tokens", "position", "_index")
ROLES = ("factor", "covariate", "block", "note")
# Control characters, line and paragraph separators, and halves of surrogate pairs.
_FORBIDDEN = ("Cc", "Zl", "Zp", "Cs")
_SPAN = re.compile(r"([0-9]+):([0-9]+)")


@dataclass(frozen=True)
class Origin:
    """Where a table came from, for messages."""

    source: str
    """The file or the name of the set."""
    place: Callable[[int], str]
    """Where in the source a row stands, for example ``line 7``."""
    sidecar: str
    """What the column descriptions are called."""

    def row(self, row: int) -> str:
        """Source and place of a row."""
        return f"{self.source}, {self.place(row)}"

    def field(self, row: int, column: str) -> str:
        """Source, place and column of one field."""
        return f"{self.row(row)}, column {column!r}"


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, separated by commas; at most twelve of them."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def forbidden_character(text: str) -> str | None:
    """Name the first character that no field may contain, or None."""
    # Only unprintable characters can be forbidden, and almost no text has one.
    if text.isprintable():
        return None
    for character in text:
        if unicodedata.category(character) in _FORBIDDEN:
            names = {"\t": "a tab", "\n": "a line break", "\r": "a carriage return"}
            return names.get(character, f"the control character U+{ord(character):04X}")
    return None


def complete_table(table: pd.DataFrame, origin: Origin, item_column: str | None) -> pd.DataFrame:
    """Return the table with all four leading columns present and every field checked.

    `stimulus_id` defaults to s0001, s0002, ... and `template` to t1. The item is read
    from `item_column`; with None every stimulus is its own item.
    """
    source = origin.source
    table = table.reset_index(drop=True).copy()
    table.columns = [str(column) for column in table.columns]
    if len(set(table.columns)) < len(table.columns):
        twice = table.columns[table.columns.duplicated()][0]
        raise InvalidInput(f"{source}: column {twice!r} occurs more than once; keep one")
    for column in table.columns:
        if column in TRIAL_COLUMNS:
            raise InvalidInput(f"{source}: the column name {column!r} is used by the trial table; rename the column")
        problem = forbidden_character(column)
        if problem:
            raise InvalidInput(f"{source}: the name of column {column!r} contains {problem}; rename it")
    if table.empty:
        raise InvalidInput(f"{source}: there are no stimuli; give at least one row")
    _require(table, "text", source, "")
    table = _name_items(table, source, item_column)
    numbered = [f"s{i:04d}" for i in range(1, len(table) + 1)]
    if "stimulus_id" not in table:
        table["stimulus_id"] = numbered
    if item_column is None:
        table["item"] = table["stimulus_id"]
    if "template" not in table:
        table["template"] = "t1"
    for column in table.columns:
        table[column] = _checked_column(table[column], column, origin)
    _check_unique_ids(table["stimulus_id"], origin)
    if "target" in table:
        for row, (span, text) in enumerate(zip(table["target"], table["text"], strict=True)):
            _check_span(span, text, origin.field(row, "target"))
    leading = ["stimulus_id", "text", "item", "template"]
    return table[leading + [column for column in table.columns if column not in leading]]


def _require(table: pd.DataFrame, column: str, source: str, advice: str) -> None:
    if column in table:
        return
    hint = closest(column, table.columns)
    if len(table.columns) == 1 and "," in table.columns[0]:
        hint = " (columns are separated by tabs, not commas)"
    raise InvalidInput(f"{source}: column {column!r} is missing; the columns are {quoted(table.columns)}{hint}{advice}")


def _name_items(table: pd.DataFrame, source: str, item_column: str | None) -> pd.DataFrame:
    if item_column is None:
        if "item" in table:
            raise InvalidInput(f"{source}: item_column=None, but the table has a column 'item'; leave the argument out")
        return table
    advice = ""
    if item_column == "item":
        advice = "; the column 'item' names the content unit: stimuli that say the same in other words share its value"
    _require(table, item_column, source, advice)
    if item_column == "item":
        return table
    if "item" in table:
        raise InvalidInput(f"{source}: both 'item' and item_column={item_column!r} exist; keep one")
    return table.rename(columns={item_column: "item"})


def _checked_column(values: pd.Series, column: str, origin: Origin) -> pd.Series:
    """Check each field of a column; columns of numbers stay numbers, all others become plain strings."""
    optional = column in ("target", "split")
    if optional:
        values = values.astype(object).where(values.notna(), "")
    missing = values.isna().to_numpy().nonzero()[0]
    if len(missing):
        raise InvalidInput(f"{origin.field(missing[0], column)}: the value is missing; fill it in")
    if pd.api.types.is_numeric_dtype(values) and column not in RESERVED and values.dtype != bool:
        numbers = values.astype(float)
        endless = np.isinf(numbers.to_numpy()).nonzero()[0]
        if len(endless):
            raise InvalidInput(f"{origin.field(endless[0], column)}: the value is infinite; give a finite number")
        return numbers
    if column == "text":
        for row, value in enumerate(values):
            if not isinstance(value, str):
                found = type(value).__name__
                raise InvalidInput(f"{origin.field(row, column)}: found {found}; a text is a string")
    values = values.map(str).astype(object)
    for row, value in enumerate(values):
        problem = forbidden_character(value)
        if problem:
            raise InvalidInput(f"{origin.field(row, column)}: the field contains {problem}; remove it")
        if not value.strip() and not optional:
            remedy = "fill it in" if column in RESERVED else "fill it in, with n/a if it does not apply"
            raise InvalidInput(f"{origin.field(row, column)}: the field is empty; {remedy}")
    return values


def _check_unique_ids(ids: pd.Series, origin: Origin) -> None:
    first_seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in first_seen:
            raise InvalidInput(
                f"{origin.field(row, 'stimulus_id')}: {name!r} was already used in "
                f"{origin.place(first_seen[name])}; give every stimulus its own id"
            )
        first_seen[name] = row


def _check_span(span: str, text: str, place: str) -> None:
    if not span:
        return
    match = _SPAN.fullmatch(span)
    if match is None:
        raise InvalidInput(f"{place}: {span!r} is not a span; write start:end in characters, for example 4:10")
    # int() refuses absurdly long digit strings with an error of its own.
    start, end = (int(number[:12]) for number in match.groups())
    if not start < end <= len(text):
        raise InvalidInput(
            f"{place}: the span {span} lies outside the text, which has {len(text)} characters; "
            "0 <= start < end <= length must hold"
        )


def split_sidecar(sidecar: Mapping[str, Any], table: pd.DataFrame, origin: Origin) -> tuple[str, dict[str, dict]]:
    """Return the description of the whole set and the column descriptions, both checked."""
    source = origin.sidecar
    columns = dict(sidecar)
    description = ""
    if "Description" not in table and "Description" in columns:
        description = columns.pop("Description")
        if not isinstance(description, str):
            raise InvalidInput(f"{source}: field 'Description' must be a sentence in quotes")
    for name, entry in columns.items():
        if name not in table:
            raise InvalidInput(
                f"{source}: column {name!r} is described but not in the table, whose columns are "
                f"{quoted(table.columns)}{closest(name, table.columns)}"
            )
        if not isinstance(entry, Mapping):
            raise InvalidInput(f"{source}: the entry of column {name!r} must be an object {{...}}")
        role = entry.get("role", "note")
        if role not in ROLES:
            raise InvalidInput(f"{source}: column {name!r} has the role {role!r}; use one of {quoted(ROLES)}")
        if name in RESERVED and "role" in entry:
            raise InvalidInput(f"{source}: column {name!r} has a fixed meaning; remove its 'role'")
        if not isinstance(entry.get("Levels", {}), Mapping):
            raise InvalidInput(f"{source}: 'Levels' of column {name!r} must be an object {{level: meaning}}")
    return description, {name: dict(entry) for name, entry in columns.items()}


def resolve_factors(
    table: pd.DataFrame, columns: Mapping[str, dict], factors: Iterable[str] | None, source: str
) -> tuple[str, ...]:
    """Return the factors: those asked for, else those of role factor, else all unreserved string columns."""
    unreserved = [name for name in table.columns if name not in RESERVED]
    if factors is None:
        factors = [name for name in unreserved if columns.get(name, {}).get("role") == "factor"]
        if not factors:
            free = [name for name in unreserved if "role" not in columns.get(name, {})]
            factors = [name for name in free if table[name].dtype == object]
    factors = tuple(factors)
    for name in factors:
        if name not in unreserved:
            raise InvalidInput(
                f"{source}: factor {name!r} is not among the columns {quoted(unreserved)}{closest(name, unreserved)}"
            )
    return factors


def check_levels(table: pd.DataFrame, factor: str, declared: Mapping[str, Any], origin: Origin) -> None:
    """Refuse a factor with one level, with a level per stimulus, or with a level its sidecar does not know."""
    values = table[factor]
    levels = list(dict.fromkeys(values))
    if declared:
        for row, value in enumerate(values):
            if value not in declared:
                raise InvalidInput(
                    f"{origin.field(row, factor)}: level {value!r} is not among the declared levels "
                    f"{quoted(declared)}{closest(value, declared)}"
                )
    if len(levels) == 1:
        raise InvalidInput(
            f"{origin.source}: factor {factor!r} has one level, {levels[0]!r}; a factor needs at least two "
            "(give the column the role 'note' in the sidecar if it is none)"
        )
    if len(levels) == len(values) > 2:
        raise InvalidInput(
            f"{origin.source}: factor {factor!r} has a different level for each of the {len(values)} stimuli; "
            "give the column the role 'covariate' or 'note' in the sidecar"
        )
