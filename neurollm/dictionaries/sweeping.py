"""Sweeps: dictionaries of many widths, trainings and seeds in one pass over the data, and their scaling law.

Every number of tokens is a training of its own, with its own schedule, and not a point on the
way of a longer one. The loss of the law is the fraction of variance unexplained (FVU) on
held-out data.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurollm.dictionaries.held_out import check_held_out, measure
from neurollm.dictionaries.scaling import ScalingLaw, check_widths, fit_scaling_law
from neurollm.dictionaries.training import Plan, train_dictionaries
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from neurollm.activations import ActivationStore
    from neurollm.dictionaries.metrics import DictionaryMetrics
    from neurollm.dictionaries.training import Training

TABLE_FILE, LAW_FILE = "sweep.csv", "sweep.json"
WORDS = ("name", "architecture")
COLUMNS = (*WORDS, "n_features", "k", "n_tokens", "random_state", "held_out_tokens", "ev", "fvu")
NOT_IN_TABLE = ("ce_note", "n_predicted", "n_documents")  # nothing here: there is no model and no interval


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The dictionaries of a sweep: every width with every number of tokens and every seed.

    Parameters
    ----------
    widths : sequence of int
        Numbers of features; at least four different ones.
    tokens : sequence of int, default=(5_000_000,)
    seeds : sequence of int, default=(0, 1)
    k : int or float, default=32
        A whole number: so many active features, whatever the width. A number below 1: that share
        of the features, at least one.
    architecture : str, default="topk"
    training : Training, optional
        Options of all of them.
    """

    widths: Sequence[int]
    tokens: Sequence[int] = (5_000_000,)
    seeds: Sequence[int] = (0, 1)
    k: int | float = 32
    architecture: str = "topk"
    training: Training | None = None

    def __post_init__(self) -> None:
        for name in ("widths", "tokens", "seeds"):
            values = list(getattr(self, name))
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated or not values:
                found = f"{repeated[0]} is given more than once" if repeated else "there is none"
                raise InvalidInput(f"sweep: {name}: {found}")
        check_widths(self.widths)
        if isinstance(self.k, float) and not 0 < self.k < 1:
            raise InvalidInput(f"sweep: k is {self.k}; use a whole number, or a share of the features between 0 and 1")

    def plans(self, out: str | os.PathLike) -> list[Plan]:
        """One plan per dictionary, each with a folder of its own in `out`."""
        return [
            Plan(
                architecture=self.architecture,
                n_features=width,
                k=max(1, round(self.k * width)) if isinstance(self.k, float) else self.k,
                n_tokens=n_tokens,
                random_state=seed,
                training=self.training,
                out=Path(out) / f"features-{width}-tokens-{n_tokens}-seed-{seed}",
            )
            for n_tokens, width, seed in itertools.product(self.tokens, self.widths, self.seeds)
        ]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The dictionaries of a sweep, measured.

    Attributes
    ----------
    table : DataFrame
        One row per dictionary: ``name`` (its folder), ``architecture``, ``n_features``, ``k``, ``n_tokens``,
        ``random_state``, ``held_out_tokens``, and the metrics.
    """

    table: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per dictionary, with all its metrics."""
        return self.table.copy()

    @functools.cached_property
    def law(self) -> ScalingLaw:
        """The scaling law of FVU."""
        return fit_scaling_law(self.table["n_features"], self.table["fvu"], self.table["n_tokens"])

    @property
    def doubt(self) -> str:
        """Why the law may be none: more features did not help, at some number of tokens; else empty."""
        means = self.table.groupby(["n_tokens", "n_features"])["fvu"].mean()
        for n_tokens in self.table["n_tokens"].unique():
            by_width = means[n_tokens].sort_index()
            if by_width.idxmin() != by_width.index[-1]:
                return (
                    f"After {n_tokens:,} tokens the FVU is smallest with {by_width.idxmin():,} features, not with "
                    f"{by_width.index[-1]:,}: the widest dictionaries saw too few tokens, and the law does not hold "
                    "for them."
                )
        return ""

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``sweep.csv`` (the table) and ``sweep.json`` (the law) into a folder."""
        with atomic_path(Path(folder) / TABLE_FILE) as partial:
            self.table.to_csv(partial, index=False)
        write_json(Path(folder) / LAW_FILE, {"loss": "fvu", "law": self.law.to_dict()})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> SweepResult:
        """Read a sweep; the law is fitted again.

        Raises
        ------
        InvalidInput
            If the folder holds no sweep.
        DataMismatch
            If its files are damaged.
        """
        import pandas as pd

        file = Path(folder) / TABLE_FILE
        if not file.is_file():
            raise InvalidInput(f"{folder} holds no sweep: there is no {TABLE_FILE}")
        try:
            table = pd.read_csv(file, float_precision="round_trip")
            json.loads((Path(folder) / LAW_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataMismatch(f"{folder}: the sweep is damaged ({error}); run the sweep again") from None
        for name in COLUMNS:
            if name not in table or (name not in WORDS and not pd.api.types.is_numeric_dtype(table[name])):
                raise DataMismatch(f"{file}: column {name!r} is missing or damaged; run the sweep again")
        return cls(table)


def sweep_dictionaries(
    store: ActivationStore,
    held_out: ActivationStore,
    widths: Sequence[int],
    *,
    out: str | os.PathLike,
    verbose: int = 1,
    **grid: Any,
) -> SweepResult:
    """Train and measure the dictionaries of a grid.

    All are trained in one pass over the data. The call resumes where it was stopped, and
    does nothing when it is finished; more widths or seeds can be added later.

    Parameters
    ----------
    store, held_out : ActivationStore
        Of the same model and site, with different texts.
    widths : sequence of int
    out : path-like
        Folder: a dictionary per folder in it, ``sweep.csv`` and ``sweep.json``.
    verbose : int, default=1
    **grid
        ``tokens``, ``seeds``, ``k``, ``architecture``, ``training``: see `Grid`.

    Returns
    -------
    SweepResult

    Raises
    ------
    InvalidInput
        If there are fewer than four widths, or a value is out of range.
    DataMismatch
        If the stores do not belong together, or `out` holds another training.
    """
    import pandas as pd

    plans = Grid(widths=widths, **grid).plans(out)
    check_held_out(store, held_out)
    dictionaries = train_dictionaries(store, plans, verbose=verbose)
    rows = []
    with Progress("measure", len(plans), "dictionaries", verbose) as progress:
        for plan, dictionary in zip(plans, dictionaries, strict=True):
            metrics = measure(dictionary, plan.out, held_out)
            rows.append(_row(plan, metrics))
            progress.advance(1, f"{plan.out.name}: FVU {metrics.fvu:.4f}")
    result = SweepResult(pd.DataFrame(rows))
    result.save(out)
    return result


def _row(plan: Plan, metrics: DictionaryMetrics) -> dict[str, Any]:
    figures = {name: value for name, value in metrics.to_dict().items() if value is not None}
    return {
        "name": plan.out.name,
        "architecture": plan.architecture,
        "n_features": plan.n_features,
        "k": plan.k,
        "n_tokens": plan.n_tokens,
        "random_state": plan.random_state,
        "held_out_tokens": figures.pop("n_tokens"),
        **{name: value for name, value in figures.items() if name not in NOT_IN_TABLE},
    }
