"""What a ladder found: squared errors of every model on every held-out document, and tables made of them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.stats.document_bootstrap import METHOD, DocumentBootstrap, Estimate

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "neurollm residual ladder", 1
STEPS = ("M0", "M1", "M2", "M3", "M4", "M5")
OVER = {"M1": "M0", "M2": "M1", "M3": "M2", "M4": "M3", "M5": "M2"}
"""What each step is compared with."""
TOLD = {
    "M0": "the dictionary",
    "M1": "+ bias",
    "M2": "+ decoder refit",
    "M3": "+ pairs of features",
    "M4": "+ MLP of pairs",
    "M5": "+ MLP of the code, over M2",
}
CONTROLS = ("shuffled", "gaussian", "frozen", "additive", "residual_sae")
FEWEST_DOCUMENTS = 10  # of fewer, an interval over documents is not worth having
RESULT, ARRAYS = "ladder.json", "ladder.npz"


@dataclass(frozen=True, eq=False)
class SeedErrors:
    """Squared errors of one seed.

    Attributes
    ----------
    seed : int
    documents : ndarray of int, shape (D,)
        Held out.
    totals : ndarray, shape (D,)
        Σ‖x − m‖² of each.
    squared : dict of ndarray, shape (D,)
        Σ‖e − ŷ‖² of each, by model.
    parameters : dict of int
        Weights of each model, beside the dictionary's.
    p : dict of float
        Permutation p of the learned steps, over M2; NaN of others.
    n_fit, n_test, n_tokens : int
        Tokens fitted in closed form, tokens held out, tokens that each learned step saw.
    """

    seed: int
    documents: np.ndarray = field(repr=False)
    totals: np.ndarray = field(repr=False)
    squared: Mapping[str, np.ndarray] = field(repr=False)
    parameters: Mapping[str, int]
    p: Mapping[str, float]
    n_fit: int
    n_test: int
    n_tokens: int


@dataclass(frozen=True, eq=False)
class LadderResult:
    """The ladder of a dictionary; made by `residual_ladder`.

    Attributes
    ----------
    seeds : tuple of SeedErrors
    cross_fitted : bool
        Whether each seed held out documents of its own.
    n_boot, random_state : int
    description : dict
        What it was made of.
    notes : tuple of str
        What was left out, and why.
    """

    seeds: tuple[SeedErrors, ...]
    cross_fitted: bool
    n_boot: int
    random_state: int
    description: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per seed and step.

        Returns
        -------
        DataFrame
            ``step``, ``seed``, ``r2_heldout``, ``over`` (the step it is compared with), ``delta_r2`` with
            ``ci_low``, ``ci_high`` (95 %, documents), ``null`` (ΔR² of the same step with shuffled codes),
            ``p_permutation`` (of M3 to M5, over M2), ``error_explained`` (share of M0's squared error),
            ``n_parameters``, ``n_tokens``, ``n_documents``.
        """
        import pandas as pd

        rows = []
        for one in self.seeds:
            for step in self._steps:
                over = OVER.get(step)
                gain = self._gain(one, step, over)
                rows.append(
                    {
                        "step": step,
                        "seed": one.seed,
                        "r2_heldout": 1 - one.squared[step].sum() / one.totals.sum(),
                        "over": over or "",
                        "delta_r2": gain.value,
                        "ci_low": gain.low,
                        "ci_high": gain.high,
                        "null": self._gain(one, *_control(step, "shuffled")).value,
                        "p_permutation": one.p[step],
                        "error_explained": 1 - one.squared[step].sum() / one.squared["M0"].sum(),
                        "n_parameters": one.parameters[step],
                        "n_tokens": 0 if step == "M0" else one.n_tokens if step in _LEARNED else one.n_fit,
                        "n_documents": len(one.documents),
                    }
                )
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row per step, and per control, over all seeds.

        Returns
        -------
        DataFrame
            ``step``, ``control`` (``""`` for the step itself), ``over``, ``r2_heldout`` and ``error_explained``
            (means over seeds), ``delta_r2`` with ``ci_low``, ``ci_high`` (documents and seeds, see `residual_ladder`),
            ``sd_seeds``, ``p`` (two-sided t of ΔR² = 0), ``n_parameters``, ``n_seeds``.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        import pandas as pd

        rows = []
        for name in self.seeds[0].squared:
            step, _, control = name.partition(" ")
            if name.startswith("residual"):
                step, control, over = "", name, "M0"
            else:
                over = _control(step, control)[1] if control else OVER.get(step)
            squared = [one.squared[name].sum() for one in self.seeds]
            base = [one.squared["M0"].sum() for one in self.seeds]
            totals = [one.totals.sum() for one in self.seeds]
            # Errors of the control gaussian are other errors: shares of theirs would compare two things.
            comparable = control != "gaussian"
            rows.append(
                {
                    "step": step,
                    "control": control,
                    "over": over or "",
                    "r2_heldout": np.mean(1 - np.divide(squared, totals)) if comparable else np.nan,
                    "error_explained": np.mean(1 - np.divide(squared, base)) if comparable else np.nan,
                    **self._pooled(name, over),
                    "n_parameters": self.seeds[0].parameters[name],
                    "n_seeds": len(self.seeds),
                }
            )
        return pd.DataFrame(rows)

    def verdict(self) -> str:
        """What pairs of features explain, in words."""
        table = self._summary.set_index(["step", "control"])
        if ("M3", "") not in table.index:
            last, share = self._steps[-1], table.loc[(self._steps[-1], ""), "error_explained"]
            return f"{TOLD[last]}: {share:.1%} of the error explained; no pairs were asked for."
        return self._headline(table) + self._beside(table)

    def _headline(self, table: pd.DataFrame) -> str:
        """Whether pairs explain anything, beyond curves of single features if that was asked."""
        pairs = table.loc[("M3", "")]
        share = pairs["delta_r2"] / max(1 - table.loc[("M0", ""), "r2_heldout"], 1e-300)
        seeds, what = f", {len(self.seeds)} seeds", "of the dictionary's error beyond the best ridge decoder"
        figures = f"(ΔR² {_figure(pairs)}{seeds})"
        if not np.isfinite(pairs["ci_low"]):
            return f"Too few documents for an interval: pairs of features and {share:.1%} {what} {figures}"
        if pairs["ci_high"] < 0:
            return f"Pairs of features predict held-out errors worse than the best ridge decoder alone {figures}"
        if pairs["ci_low"] <= 0:
            return f"No evidence that pairs of features explain any {what} {figures}: the interval contains 0"
        if ("M3", "additive") not in table.index:
            return (
                f"Pairs of features, or curves of single ones, explain {share:.1%} {what} {figures}, and the interval "
                "excludes 0; the control additive, which tells the two apart, was not run"
            )
        curved = table.loc[("M3", "additive")]
        if not curved["ci_low"] > 0:
            return (
                "No evidence that pairs of features explain any of the dictionary's error beyond curves of single "
                f"features (ΔR² {_figure(curved)}{seeds}: the interval contains 0 or less), though they explain "
                f"{share:.1%} {what} {figures}"
            )
        return (
            f"Pairs of features explain {share:.1%} {what} {figures}, and the interval excludes 0; beyond a decoder "
            f"with curves of single features too ({_figure(curved)})"
        )

    def _beside(self, table: pd.DataFrame) -> str:
        """What the controls and the MLP of the code explain."""
        words = {"shuffled": "shuffled codes", "gaussian": "a truth without pairs", "frozen": "random pairs"}
        known = {one: table.loc[("M3", one)] for one in words if ("M3", one) in table.index}
        told = [f"{words[one]} {row['delta_r2']:+.5f}" for one, row in known.items()]
        text = f"; {', '.join(told)}" if told else "; neither shuffled codes nor a truth without pairs were run"
        if any(row["ci_low"] > 0 for one, row in known.items() if one != "frozen"):
            text += ", of which one that should explain nothing has an interval above 0 too"
        if ("M5", "") in table.index:
            text += f". An MLP of the code with as many weights as M4: {table.loc[('M5', ''), 'delta_r2']:+.5f}"
        return text + "."

    @property
    def _steps(self) -> list[str]:
        return [step for step in STEPS if step in self.seeds[0].squared]

    def _gain(self, one: SeedErrors, name: str, over: str | None) -> Estimate:
        """ΔR² of a model of one seed, with the interval over documents."""
        if over is None or name not in one.squared or over not in one.squared:
            return Estimate(float("nan"))
        n_boot = self.n_boot if len(one.documents) >= FEWEST_DOCUMENTS else 0
        boot = DocumentBootstrap(len(one.documents), n_boot, self.random_state)
        return boot.estimate([one.squared[over] - one.squared[name]], [one.totals])

    def _pooled(self, name: str, over: str | None) -> dict[str, float]:
        """Mean ΔR² over seeds, its interval and p; see `neurollm.interactions.ladder`."""
        from scipy.stats import t as student

        gains = [self._gain(one, name, over) for one in self.seeds]
        values, J = np.array([gain.value for gain in gains]), len(gains)
        none = dict.fromkeys(("delta_r2", "ci_low", "ci_high", "sd_seeds", "p"), np.nan)
        if np.isnan(values).any():
            return none
        mean, spread = values.mean(), values.var(ddof=1)
        found = none | {"delta_r2": mean, "sd_seeds": np.sqrt(spread)}
        documents = np.unique(np.concatenate([one.documents for one in self.seeds]))
        if len(documents) < FEWEST_DOCUMENTS:
            return found
        if self.cross_fitted:
            se2 = sum(gain.se**2 for gain in gains) / J**2 + spread / (J - 1)
        else:  # documents of unequal length need more than the linearised standard error
            lowered = sum(one.squared[over] - one.squared[name] for one in self.seeds) / J
            boot = DocumentBootstrap(len(lowered), self.n_boot, self.random_state)
            shared = boot.estimate([lowered], [self.seeds[0].totals])
            width = (shared.high - shared.low) / 2 / student.ppf(0.975, np.inf) if shared.se > 0 else 0.0
            se2 = width**2 + spread / J
        df, se = min(J, len(documents)) - 1, np.sqrt(se2)
        if not se > 0:
            return found | ({"ci_low": 0.0, "ci_high": 0.0, "p": 1.0} if mean == 0 else {})
        half = student.ppf(0.975, df) * se
        p = max(float(2 * student.sf(abs(mean) / se, df)), np.finfo(float).tiny)
        return found | {"ci_low": mean - half, "ci_high": mean + half, "p": p}

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``ladder.json`` and ``ladder.npz``; return the JSON's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for one in self.seeds:
            arrays |= {f"{one.seed} documents": one.documents, f"{one.seed} totals": one.totals}
            arrays |= {f"{one.seed} squared {name}": squared for name, squared in one.squared.items()}
        with atomic_path(folder / ARRAYS) as partial, open(partial, "wb") as handle:
            np.savez_compressed(handle, **arrays)
        seeds = [
            {"seed": one.seed, "parameters": dict(one.parameters), "p": {k: v for k, v in one.p.items() if v == v}}
            | {name: getattr(one, name) for name in ("n_fit", "n_test", "n_tokens")}
            for one in self.seeds
        ]
        plain = {
            name: getattr(self, name) for name in ("cross_fitted", "n_boot", "random_state", "description", "notes")
        }
        intervals = f"{METHOD}; over seeds t with document and seed variance"
        record = {"format": FORMAT, "version": VERSION, "intervals": intervals, "seeds": seeds, **plain}
        write_json(folder / RESULT, record)
        return folder / RESULT

    @classmethod
    def load(cls, path: str | os.PathLike) -> LadderResult:
        """Read a saved ladder.

        Parameters
        ----------
        path : path-like
            The folder it was saved in, or the ``ladder.json`` there.

        Raises
        ------
        InvalidInput
            There is no such file, or it is no ladder.
        DataMismatch
            It is damaged, or was written by another version.
        """
        path = Path(path) / RESULT if Path(path).is_dir() else Path(path)
        record = read_record(path)
        if record is None or record.get("format") != FORMAT:
            raise InvalidInput(f"{path}: this is not a saved ladder")
        if record.get("version") != VERSION:
            raise DataMismatch(f"{path}: was written by another version of neurollm; run the ladder again")
        try:
            with np.load(path.with_name(ARRAYS), allow_pickle=False) as arrays:
                seeds = tuple(_seed(plain, arrays) for plain in record["seeds"])
            if not seeds:
                raise ValueError("no seed")
            names = ("cross_fitted", "n_boot", "random_state", "description")
            return cls(seeds=seeds, notes=tuple(record["notes"]), **{name: record[name] for name in names})
        except (AttributeError, KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise DataMismatch(f"{path}: the files of this ladder are damaged ({error}); run it again") from None


def _figure(row: pd.Series) -> str:
    return f"{row['delta_r2']:+.5f} [{row['ci_low']:+.5f}, {row['ci_high']:+.5f}]"


_LEARNED = ("M3", "M4", "M5")


def _control(step: str, control: str) -> tuple[str, str | None]:
    """A control of a step, and what it is compared with."""
    name, over = f"{step} {control}", OVER.get(step)
    if over is None or control == "frozen":
        return name, over
    if control == "additive":
        return name, "M2 additive" if step in _LEARNED else step
    if control == "gaussian":
        return name, f"{over} gaussian" if step in _LEARNED else None
    return name, f"{over} shuffled" if step == "M4" else over


def _seed(plain: dict[str, Any], arrays: Any) -> SeedErrors:
    seed = plain["seed"]
    documents, totals = arrays[f"{seed} documents"], arrays[f"{seed} totals"]
    squared = {name: arrays[f"{seed} squared {name}"] for name in plain["parameters"]}
    p = {name: plain["p"].get(name, float("nan")) for name in plain["parameters"]}
    counts = {name: plain[name] for name in ("n_fit", "n_test", "n_tokens")}
    if any(part.shape != documents.shape for part in (totals, *squared.values())):
        raise ValueError("its arrays do not fit together")
    return SeedErrors(seed, documents, totals, squared, plain["parameters"], p, **counts)


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file.

    Raises
    ------
    DataMismatch
        If it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise DataMismatch(f"{path}: cannot be read ({error}); delete it and run again") from None
    if not isinstance(record, dict):
        raise DataMismatch(f"{path}: is not what was written there; delete it and run again")
    return record
