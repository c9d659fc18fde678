"""What a factorial study found: one frozen object that goes to tables, to disk and back."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "neurollm.FactorialStudy"
VERSION = 2
FILE = "factorial.json"
_TABLES = {
    "tests": "tests.parquet",
    "verdicts": "effects.parquet",
    "unit_table": "units.parquet",
    "cell_table": "cells.parquet",
    "item_table": "items.parquet",
    "simple_table": "simple_effects.parquet",
}


@dataclass(frozen=True, eq=False)
class FactorialStudy:
    """Effects of two-level factors in candidate columns, found on some items and tested on others.

    Attributes
    ----------
    tests, verdicts, cell_table, item_table : DataFrame
        See `to_frame`, `effects`, `cells` and `items`.
    unit_table, simple_table : DataFrame or None
        See `units` and `simple_effects`; None unless there are two factors.
    factors : dict from str to (str, str)
        Levels of each factor; effects are first minus last.
    n_columns, n_candidates, min_active_items : int
        Columns that were searched; candidates per effect, at most; items of discovery in which they are active, at
        least.
    n_items_discovery, n_items_test, n_items_dropped : int
        Items of each part, and those of the test left out because they miss a cell (at most, over effects).
    not_tested : dict
        Columns that were left out, by part ("discovery", "test"), effect and reason ("constant", "not finite").
    exchange : dict from effect to str
        What was exchanged in its test, in words.
    n_perm, n_perm_used : int, dict from effect to int
        Shufflings asked for, and used.
    p_methods : dict from effect to str
        Where the uncorrected p come from (see `neurollm.glm.tails`).
    discovery, alpha : float
        Share of the items in discovery, as reached; level.
    random_state : int
    signed : bool
        Some candidates have negative values: log1p stands for sign(x)·log(1 + |x|).
    trials : str
        Digest of the items and texts of the test.
    warnings : tuple of str
    """

    tests: pd.DataFrame
    verdicts: pd.DataFrame
    unit_table: pd.DataFrame | None
    cell_table: pd.DataFrame
    item_table: pd.DataFrame
    simple_table: pd.DataFrame | None
    factors: dict[str, tuple[str, ...]]
    n_columns: int
    n_candidates: int
    min_active_items: int
    n_items_discovery: int
    n_items_test: int
    n_items_dropped: int
    not_tested: dict[str, dict[str, dict[str, int]]]
    exchange: dict[str, str]
    n_perm: int
    n_perm_used: dict[str, int]
    p_methods: dict[str, str]
    discovery: float
    alpha: float
    random_state: int
    signed: bool
    trials: str
    warnings: tuple[str, ...]

    @property
    def interaction(self) -> str:
        """Name of the interaction of all factors."""
        return ":".join(self.factors)

    @property
    def candidates(self) -> list:
        """Ids of the tested columns, those chosen for the first effect first."""
        return self.tests["column"].drop_duplicates().tolist()

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate, effect and scale, all from test items but ``t_discovery``.

        Returns
        -------
        DataFrame
            ``column, effect``; ``order`` (1: main effect); ``scale``; ``chosen`` (whether for this effect) and
            ``chosen_for``; ``t_discovery`` (raw); ``estimate, ci_low, ci_high`` (first minus last level, 95 %; on the
            rank scale in ranks), ``t, df, p``, and ``p_fwer, q``, corrected over all candidates, for this effect and
            scale. NaN where a column could not be tested.
        """
        return self.tests.copy()

    def effects(self) -> pd.DataFrame:
        """Verdict on every effect of every candidate, of any order.

        Returns
        -------
        DataFrame
            ``column, effect, order, estimate, ci_low, ci_high, p, p_fwer`` (raw scale), ``significant`` (p_FWER ≤ α),
            ``survives`` (and p ≤ α with the same sign on log1p and ranks), ``vanishes_on`` (where it does not).
        """
        return self.verdicts.copy()

    def units(self) -> pd.DataFrame:
        """What every candidate is; two factors only.

        Returns
        -------
        DataFrame
            ``column, kind, reason``; the preferred level of each factor; ``turned`` (whether the column was looked at
            with its sign exchanged); ``interaction`` (estimate in the preferred cell, of the column as it is);
            ``significant, survives, removable, crossover`` of the interaction; ``p_crossover``;
            ``t_conjunction, p_conjunction, q_conjunction``; ``p_superadditive, p_little, p_ordered, p_subadditive,
            share_alone``. See `neurollm.factorial.units`.

        Raises
        ------
        InvalidInput
            The design has more than two factors.
        """
        return self._of_two_factors(self.unit_table, "units")

    def simple_effects(self) -> pd.DataFrame:
        """The effect of each factor at either level of the other (raw scale, uncorrected p); two factors only.

        Returns
        -------
        DataFrame
            ``column, factor, at, estimate, ci_low, ci_high, t, p``.

        Raises
        ------
        InvalidInput
            The design has more than two factors.
        """
        return self._of_two_factors(self.simple_table, "simple_effects")

    def cells(self) -> pd.DataFrame:
        """Cell means of the candidates over test items, with 95 % intervals.

        Returns
        -------
        DataFrame
            ``column``, one column per factor, ``mean, ci_low, ci_high, n_items, interval`` (what kind of interval,
            see `neurollm.factorial.intervals`).
        """
        return self.cell_table.copy()

    def items(self) -> pd.DataFrame:
        """Every test item's mean in each of its cells: ``column, item``, one column per factor, ``mean``."""
        return self.item_table.copy()

    def _of_two_factors(self, table: pd.DataFrame | None, name: str) -> pd.DataFrame:
        if table is None:
            raise InvalidInput(f"{name}: is defined for two factors; this study has {len(self.factors)}.")
        return table.copy()

    def kinds(self) -> dict[str, int]:
        """Number of candidates of each kind, the most frequent first; two factors only."""
        return self.units()["kind"].value_counts().to_dict()

    def verdict(self) -> str:
        """The result in a few plain words with numbers."""
        chosen = self.tests[(self.tests["scale"] == "raw") & self.tests["chosen"]]
        found = chosen.assign(found=chosen["p_fwer"] <= self.alpha).groupby("effect", sort=False)["found"]
        counts = ", ".join(f"{name} in {int(one.sum())} of {len(one)}" for name, one in found)
        least = min(self.n_perm_used.values())
        text = (
            f"Of {self.n_columns:,} columns, {len(self.candidates)} were chosen on {self.n_items_discovery} items and "
            f"tested on {self.n_items_test} others: significant at family-wise p ≤ {self.alpha:g} are {counts} "
            f"(of those chosen for the effect; p of each effect over all candidates, {least:,} of {self.n_perm:,} "
            "shufflings)."
        )
        crossed = self.verdicts[(self.verdicts["order"] > 1) & self.verdicts["significant"]]
        if len(crossed):
            text += f" {int(crossed['survives'].sum())} of {len(crossed)} interactions survive log1p and ranks."
        if self.unit_table is not None:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
            text += f" By kind: {kinds}."
        untested = int(
            self.tests.loc[self.tests["scale"] == "raw", "p"].isna().groupby(self.tests["column"]).any().sum()
        )
        return text + (f" {untested} candidates could not be tested in full." if untested else "")

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the tables as parquet and all else as ``factorial.json``; return the JSON's path."""
        folder = Path(folder)
        for name, file in _TABLES.items():
            table = getattr(self, name)
            if table is not None:
                with atomic_path(folder / file) as partial:
                    table.to_parquet(partial, index=False)
        plain = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _TABLES
        }
        digests = {
            name: sha256_file(folder / file) for name, file in _TABLES.items() if getattr(self, name) is not None
        }
        plain = json.loads(json.dumps({"tables": digests, **plain}))
        write_json(folder / FILE, {"format": FORMAT, "version": VERSION, "digest": sha256_json(plain), **plain})
        return folder / FILE

    @classmethod
    def load(cls, folder: str | os.PathLike) -> FactorialStudy:
        """Read a saved study.

        Parameters
        ----------
        folder : path-like
            Where it was saved.

        Raises
        ------
        InvalidInput
            There is no study.
        DataMismatch
            It is damaged or was changed, a table is of another study, or it was written by another version.
        """
        import pandas as pd

        path = Path(folder) / FILE
        plain = _read(path)
        try:
            if plain.pop("digest") != sha256_json(plain):
                raise ValueError(f"{FILE} was changed after it was written")
            tables = plain.pop("tables")
            for name, digest in tables.items():
                if sha256_file(path.with_name(_TABLES[name])) != digest:
                    raise ValueError(f"{_TABLES[name]} is not the table that was written with it")
            frames = {
                name: pd.read_parquet(path.with_name(file)) if name in tables else None
                for name, file in _TABLES.items()
            }
            plain["factors"] = {name: tuple(levels) for name, levels in plain["factors"].items()}
            plain["warnings"] = tuple(plain["warnings"])
            return cls(**frames, **plain)
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            raise DataMismatch(f"{path}: the files of this study are damaged ({error}); run it again.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file.") from None
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise InvalidInput(f"{path}: this is not a saved factorial study.")
    if plain.pop("version", None) != VERSION:
        raise DataMismatch(f"{path}: was written by another version of neurollm; run the study again.")
    return plain
