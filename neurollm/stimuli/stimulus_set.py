"""The validated table of stimuli that every study starts from."""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neurollm import files
from neurollm.errors import InvalidInput
from neurollm.stimuli import _validation as rules
from neurollm.stimuli._reading import read_json_object, read_rows
from neurollm.validation import closest

if TYPE_CHECKING:
    from neurollm.stimuli.audit import AuditReport

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


class StimulusSet:
    """A validated table of stimuli.

    One row is one stimulus. The columns `stimulus_id`, `text`, `item` and `template`
    always exist; `target` (the span ``start:end`` of the target word in characters, or
    empty) and `split` are optional; each further column is a factor, a covariate, a
    block or a note.

    Parameters
    ----------
    table : pandas.DataFrame
        Must have the column `text`. `stimulus_id` defaults to s0001, s0002, ... and
        `template` to t1.
    name : str, default="stimuli"
        The name in messages and reports.
    factors : iterable of str, optional
        Default: the columns with role ``factor`` in `columns`; if there are none, every
        column of strings that is not reserved and has no other role.
    columns : mapping, optional
        The sidecar: ``{column: {"Description": str, "Levels": {level: meaning}, "role":
        "factor" | "covariate" | "block" | "note"}}``. A key ``"Description"`` that is no
        column describes the whole set. The order of ``Levels`` is the order of the levels.
    item_column : str or None, default="item"
        The column that names the content unit. None: every stimulus is its own item.

    Raises
    ------
    InvalidInput
        If a rule is broken; the sentence names the place and what would be right.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({
    ...     "text": ["She won the race.", "She lost the race."],
    ...     "item": ["race", "race"],
    ...     "outcome": ["success", "failure"],
    ... })
    >>> stimuli = StimulusSet(table, name="demo")
    >>> stimuli
    StimulusSet('demo': 2 stimuli, 1 item, 1 template; outcome: success 1, failure 1)
    >>> len(stimuli.select(outcome="success"))
    1
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        name: str = "stimuli",
        factors: Iterable[str] | None = None,
        columns: Mapping[str, Any] | None = None,
        item_column: str | None = "item",
    ) -> None:
        origin = rules.Origin(name, lambda row: f"row {row + 1}", f"{name}, columns")
        self._build(rules.complete_table(table, origin, item_column), origin, factors, columns or {})
        self.name = name

    def _build(
        self, table: pd.DataFrame, origin: rules.Origin, factors: Iterable[str] | None, sidecar: Mapping[str, Any]
    ) -> None:
        """Check a completed table against its sidecar and keep both."""
        self.description, described = rules.split_sidecar(sidecar, table, origin)
        self.factors = rules.resolve_factors(table, described, factors, origin.source)
        for column, entry in described.items():
            covariate = entry.get("role") == "covariate" and column not in self.factors
            if covariate and all(_NUMBER.fullmatch(str(value)) for value in table[column]):
                table[column] = table[column].astype(float)
        for factor in self.factors:
            table[factor] = table[factor].map(str).astype(object)
            rules.check_levels(table, factor, described.get(factor, {}).get("Levels", {}), origin)
        self._table = table
        self._columns = described

    @classmethod
    def read_tsv(cls, path: str | os.PathLike, item_column: str | None = "item") -> StimulusSet:
        """Read a tab-separated file and, if it exists, the JSON sidecar of the same name.

        Every field is kept verbatim: quotes are characters, and ``NA``, ``null`` and
        ``true`` are text. Covariates whose fields are all numbers become numbers.

        Parameters
        ----------
        path : path-like
            UTF-8, one header line, no quoting.
        item_column : str or None, default="item"
            See the class.

        Returns
        -------
        StimulusSet
            Named after the file.

        Raises
        ------
        InvalidInput
            Naming file and line or column.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            raise InvalidInput(f"{path}: this is a JSON file; read it with StimulusSet.from_conditions")
        header, rows = read_rows(path)
        side = path.with_suffix(".json")
        sidecar = read_json_object(side) if side.is_file() else {}
        origin = rules.Origin(str(path), lambda row: f"line {row + 2}", str(side))
        table = rules.complete_table(pd.DataFrame(rows, columns=header, dtype=object), origin, item_column)
        new = cls.__new__(cls)
        new._build(table, origin, None, sidecar)
        new.name = path.stem
        return new

    @classmethod
    def from_conditions(
        cls,
        conditions: str | os.PathLike | Mapping[str, Iterable[str]],
        factor: str = "condition",
        pair_by_index: bool = False,
    ) -> StimulusSet:
        """Import the flat form ``{condition: [sentences]}``, from a JSON file or a mapping.

        Parameters
        ----------
        conditions : path-like or mapping
            Conditions become the levels of one factor.
        factor : str, default="condition"
            The name of that factor.
        pair_by_index : bool, default=False
            The flat form does not say which sentences belong together, so by default each
            sentence is its own item. True: the n-th sentences of all conditions are one item.

        Returns
        -------
        StimulusSet

        Raises
        ------
        InvalidInput
            Naming the condition and the number of the sentence.

        Examples
        --------
        >>> StimulusSet.from_conditions({"hot": ["Fire."], "cold": ["Ice."]}, "heat", pair_by_index=True)
        StimulusSet('conditions': 2 stimuli, 1 item, 1 template; heat: hot 1, cold 1)
        """
        if isinstance(conditions, Mapping):
            name = source = "conditions"
        else:
            path = Path(conditions)
            name, source = path.stem, str(path)
            conditions = read_json_object(path)
        if factor in rules.RESERVED:
            raise InvalidInput(f"{source}: a factor cannot be called {factor!r}, which is a reserved column")
        for condition, sentences in conditions.items():
            if not isinstance(sentences, (list, tuple)) or not sentences:
                raise InvalidInput(f"{source}: condition {condition!r} must hold a list of at least one sentence")
        sizes = {condition: len(sentences) for condition, sentences in conditions.items()}
        if pair_by_index and len(set(sizes.values())) > 1:
            raise InvalidInput(f"{source}: pair_by_index needs lists of equal length, found {sizes}")
        rows, places = [], []
        for condition, sentences in conditions.items():
            for number, text in enumerate(sentences, start=1):
                item = f"i{number if pair_by_index else len(rows) + 1:04d}"
                rows.append({"text": text, "item": item, factor: condition})
                places.append(f"condition {condition!r}, sentence {number}")
        origin = rules.Origin(source, places.__getitem__, source)
        new = cls.__new__(cls)
        new._build(rules.complete_table(pd.DataFrame(rows), origin, "item"), origin, (factor,), {})
        new.name = name
        return new

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table, rows in their order."""
        return self._table.copy()

    @property
    def columns(self) -> dict[str, dict]:
        """The sidecar, with the role of every column that is not reserved filled in."""
        columns = copy.deepcopy(self._columns)
        for name in self._table.columns:
            if name in self.factors:
                columns.setdefault(name, {})["role"] = "factor"
            elif name not in rules.RESERVED:
                numeric = self._table[name].dtype != object
                columns.setdefault(name, {}).setdefault("role", "covariate" if numeric else "note")
        return columns

    def levels(self, factor: str) -> tuple[str, ...]:
        """The levels of a factor, in the order of the sidecar or else of first appearance."""
        if factor not in self.factors:
            hint = closest(factor, self.factors)
            raise InvalidInput(f"{self.name}: {factor!r} is not among the factors {rules.quoted(self.factors)}{hint}")
        present = dict.fromkeys(self._table[factor])
        declared = [level for level in self._columns.get(factor, {}).get("Levels", {}) if level in present]
        return tuple(declared or present)

    @property
    def cells(self) -> pd.DataFrame:
        """Number of stimuli per cell of the full crossing (rows) and template (columns)."""
        templates = list(dict.fromkeys(self._table["template"]))
        if not self.factors:
            counts = self._table["template"].value_counts()
            return counts.reindex(templates).to_frame("all").T
        names = list(self.factors)
        grid = pd.MultiIndex.from_tuples(itertools.product(*map(self.levels, names)), names=names)
        counts = self._table.groupby([*names, "template"], observed=True).size().unstack("template", fill_value=0)
        if len(names) == 1:
            grid = pd.Index([level for (level,) in grid], name=names[0])
        return counts.reindex(index=grid, columns=templates, fill_value=0)

    def select(self, **levels: str | Iterable[str]) -> StimulusSet:
        """Return the stimuli whose columns have the given values.

        A factor of which one level is left becomes a note of the selection.

        Parameters
        ----------
        **levels : str or iterable of str
            For example ``select(outcome="success", template=["finite", "clause"])``.

        Returns
        -------
        StimulusSet

        Raises
        ------
        InvalidInput
            If a column or value does not exist, or nothing is left.
        """
        keep = pd.Series(True, index=self._table.index)
        for column, wanted in levels.items():
            wanted = [wanted] if isinstance(wanted, str) else list(wanted)
            if column not in self._table:
                raise InvalidInput(
                    f"{self.name}: there is no column {column!r}; the columns are "
                    f"{rules.quoted(self._table.columns)}{closest(column, self._table.columns)}"
                )
            present = list(dict.fromkeys(self._table[column]))
            for value in wanted:
                if value not in present:
                    raise InvalidInput(
                        f"{self.name}: column {column!r} has no value {value!r}; it has {rules.quoted(present)}"
                        f"{closest(str(value), map(str, present))}"
                    )
            keep &= self._table[column].isin(wanted)
        if not keep.any():
            raise InvalidInput(f"{self.name}: no stimulus has {levels}; choose values that occur together")
        part = self._table[keep]
        columns: dict[str, Any] = {**self.columns, "Description": self.description}
        still = []
        for factor in self.factors:
            if part[factor].nunique() > 1:
                still.append(factor)
            else:
                columns[factor]["role"] = "note"
        return StimulusSet(part, name=self.name, factors=still, columns=columns)

    def to_tsv(self, path: str | os.PathLike) -> None:
        """Write the table and its JSON sidecar; each file appears complete or not at all.

        Parameters
        ----------
        path : path-like
            Must end in ``.tsv``; the sidecar gets the same name with ``.json``.
        """
        path = Path(path)
        if path.suffix != ".tsv":
            raise InvalidInput(f"{path}: the name of a stimulus table must end in .tsv")
        rows = [self._table.columns.tolist(), *self._table.to_numpy(dtype=object).tolist()]
        # Nothing needs quoting: validation keeps tabs and line breaks out of every field.
        lines = ["\t".join(map(str, row)) for row in rows]
        files.write_json(path.with_suffix(".json"), {"Description": self.description, **self.columns})
        files.write_text(path, "\n".join(lines) + "\n")

    @property
    def sha256(self) -> str:
        """Hash of the table's content; the order of columns does not matter, that of rows does."""
        ordered = self._table[sorted(self._table.columns)]
        return files.sha256_json([ordered.columns.tolist(), ordered.to_numpy(dtype=object).tolist()])

    def audit(self, factors: Iterable[str] | None = None, item: str = "item") -> AuditReport:
        """Measure what differs between the levels besides what is meant to; see `neurollm.stimuli.audit`.

        Parameters
        ----------
        factors : iterable of str, optional
            Default: all factors.
        item : str, default="item"
            The design's item column, if it is another one.

        Returns
        -------
        AuditReport
        """
        from neurollm.stimuli.audit import audit

        return audit(self, factors, item)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        def many(count: int, word: str, plural: str) -> str:
            return f"{count} {word if count == 1 else plural}"

        items, templates = self._table["item"].nunique(), self._table["template"].nunique()
        sizes = many(len(self), "stimulus", "stimuli"), many(items, "item", "items")
        parts = [", ".join([*sizes, many(templates, "template", "templates")])]
        for factor in self.factors:
            counts = self._table[factor].value_counts()
            parts.append(f"{factor}: " + ", ".join(f"{level} {counts[level]}" for level in self.levels(factor)[:6]))
        return f"StimulusSet({self.name!r}: {'; '.join(parts)})"
