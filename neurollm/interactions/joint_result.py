"""What `joint_comparison` finds: errors by seed, model and document, and the differences to the joint model.

With Σ over tokens of held-out documents and m their mean,

    FVU = Σ‖x − x̂‖² / Σ‖x − m‖²,   EV = 1 − FVU,
    CE recovered = (CE_mean − CE_x̂) / (CE_mean − CE_clean)

A difference is joint − baseline, so above zero the joint model is better. It has two intervals: over seeds,
Student's t of the differences paired by seed, the documents as they are; over documents, the bootstrap of
`neurollm.stats.document_bootstrap`, paired by document, of the mean over seeds. One says whether another
training would agree, the other whether other texts would; a gain counts when both are above zero.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.stats import adjust
from neurollm.stats.document_bootstrap import METHOD, DocumentBootstrap
from neurollm.stats.effects import t_interval

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "neurollm-joint-comparison", 1
CONFIG_FILE, ARRAYS_FILE = "joint_comparison.json", "joint_comparison.npz"
FEWEST_DOCUMENTS = 10  # of fewer, no interval over documents can be trusted
JOINT = "joint"
NAMES = {
    "same_width": "the SAE alone of the same width",
    "equal_parameters": "the SAE alone with as many parameters",
    "shuffled": "the joint model with shuffled interactions",
    "sequential": "the SAE with interactions learned after it",
}


@dataclass(frozen=True, eq=False)
class JointLosses:
    """Cross-entropies in nats, summed over the predicted tokens of each of D documents.

    Attributes
    ----------
    n_predicted : ndarray of int, shape (D,)
    clean, ablated : ndarray of float64, shape (D,)
        Of the model as it is, and with the mean of the activations at the site.
    ce : ndarray of float64, shape (S, M, D)
        With the reconstruction of each seed and model at the site.
    """

    n_predicted: np.ndarray
    clean: np.ndarray
    ablated: np.ndarray
    ce: np.ndarray


@dataclass(frozen=True, eq=False)
class JointComparison:
    """A joint model and its baselines: M models, S seeds, D held-out documents.

    Attributes
    ----------
    models : tuple of str
        The first is ``"joint"``.
    seeds : tuple of int
    sizes : dict of str to dict
        Of each model: ``n_features``, ``rank`` (0: no interactions), ``n_parameters``, ``n_tokens``.
    k : int
        Active features on a token, of all models.
    site, model : str
    n_boot, random_state : int
    documents, n_rows : ndarray of int, shape (D,)
        Number of each document, and of its tokens.
    variation : ndarray of float64, shape (D,)
        Σ‖x − m‖².
    error, active : ndarray of float64, shape (S, M, D)
        Σ‖x − x̂‖², and how many features were active.
    losses : JointLosses or None
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    sizes: dict[str, dict[str, int]]
    k: int
    site: str
    model: str
    n_boot: int
    random_state: int
    documents: np.ndarray = field(repr=False)
    n_rows: np.ndarray = field(repr=False)
    variation: np.ndarray = field(repr=False)
    error: np.ndarray = field(repr=False)
    active: np.ndarray = field(repr=False)
    losses: JointLosses | None = field(repr=False, default=None)

    def to_frame(self) -> pd.DataFrame:
        """One row per seed and model.

        Columns: ``seed``, ``model``, ``n_features``, ``k``, ``rank``, ``n_parameters``, ``n_tokens``, ``ev``,
        ``fvu``, ``l0``, ``ce``, ``ce_recovered`` (NaN without a language model), ``n_documents``.
        """
        import pandas as pd

        fvu = self.error.sum(2) / self.variation.sum()
        l0 = self.active.sum(2) / self.n_rows.sum()
        nothing = np.full_like(fvu, np.nan)
        ce, recovered = (nothing, nothing) if self.losses is None else _ce_figures(self.losses)
        rows = []
        for s, seed in enumerate(self.seeds):
            for m, name in enumerate(self.models):
                figures = {"ev": 1 - fvu[s, m], "fvu": fvu[s, m], "l0": l0[s, m]}
                figures |= {"ce": ce[s, m], "ce_recovered": recovered[s, m]}
                sizes = {"k": self.k, **self.sizes[name]}
                rows.append({"seed": seed, "model": name, **sizes, **figures, "n_documents": len(self.documents)})
        return pd.DataFrame(rows)

    def differences(self) -> pd.DataFrame:
        """One row per measure (``ev`` and, with a language model, ``ce_recovered``) and baseline.

        Columns: ``measure``, ``baseline``, ``joint``, ``value`` (means over seeds), ``difference`` (joint −
        baseline); ``seed_low``, ``seed_high``, its 95 % interval over seeds (NaN of one seed);
        ``document_low``, ``document_high``, over documents; ``p`` of no difference over documents and ``p_holm``
        over the baselines of a measure; ``n_seeds``, ``n_documents``, ``n_boot``, ``method``.
        """
        import pandas as pd

        frame, rows = self.to_frame(), []
        for measure in ("ev",) if self.losses is None else ("ev", "ce_recovered"):
            wide = frame.pivot(index="seed", columns="model", values=measure)
            family = [self._difference(measure, name, wide) for name in self.models if name != JOINT]
            adjusted = adjust(np.array([row["p"] for row in family]), "holm").tolist()
            rows += [{**row, "p_holm": p} for row, p in zip(family, adjusted, strict=True)]
        counts = {"n_seeds": len(self.seeds), "n_boot": self.n_boot, "method": METHOD}
        return pd.DataFrame(rows).assign(**counts)

    def _difference(self, measure: str, baseline: str, wide: pd.DataFrame) -> dict[str, Any]:
        """A baseline's row; `wide` has a row for each seed and a column for each model."""
        by_seed = (wide[JOINT] - wide[baseline]).to_numpy()
        low = high = float("nan")
        if len(by_seed) > 1:
            se = by_seed.std(ddof=1) / np.sqrt(len(by_seed))
            low, high = (float(one) for one in t_interval(by_seed.mean(), se, len(by_seed) - 1))
        if measure == "ev":
            sums, below = self.error.mean(0), self.variation
        else:
            sums, below = self.losses.ce.mean(0), self.losses.ablated - self.losses.clean
        a, b = (sums[self.models.index(name)] for name in (JOINT, baseline))
        found = DocumentBootstrap(len(below), self.n_boot, self.random_state).estimate([b - a], [below])
        return {
            "measure": measure,
            "baseline": baseline,
            "joint": float(wide[JOINT].mean()),
            "value": float(wide[baseline].mean()),
            "difference": found.value,
            "seed_low": low,
            "seed_high": high,
            "document_low": found.low,
            "document_high": found.high,
            "p": found.p,
            "n_documents": len(below),
        }

    def verdict(self) -> str:
        """What was found, in one sentence with numbers."""
        rows = self.differences()
        own = self.sizes[JOINT]
        parts = []
        for row in rows[rows["measure"] == "ev"].itertuples():
            size = self.sizes[row.baseline]
            seeds = (
                "one seed" if np.isnan(row.seed_low) else f"seeds {_points(row.seed_low)} to {_points(row.seed_high)}"
            )
            parts.append(
                f"{_points(row.difference)} points against {NAMES.get(row.baseline, row.baseline)} "
                f"({size['n_features']:,} features, {size['n_parameters']:,} parameters; {seeds}, documents "
                f"{_points(row.document_low)} to {_points(row.document_high)})"
            )
        recovered = rows[(rows["measure"] == "ce_recovered") & (rows["baseline"] == "equal_parameters")]
        ce = "".join(
            f"; of the cross-entropy it recovers {_points(row.difference)} points against the SAE with as many "
            f"parameters (documents {_points(row.document_low)} to {_points(row.document_high)})"
            for row in recovered.itertuples()
        )
        return (
            f"TopK SAE and interactions of rank {own['rank']} trained together ({own['n_features']:,} features, k "
            f"{self.k}, {own['n_parameters']:,} parameters, {own['n_tokens']:,} tokens, {len(self.seeds)} seeds) "
            f"explain {100 * rows['joint'].iloc[0]:.2f} % of the variance of {len(self.documents)} held-out documents: "
            f"{', '.join(parts)}{ce}; 95 % intervals: {self._judged(rows)}."
        )

    def _judged(self, rows: pd.DataFrame) -> str:
        """What the intervals of EV say together."""
        ev = rows[rows["measure"] == "ev"].set_index("baseline")
        if len(self.seeds) < 2:
            return "with one seed a gain cannot be told from the luck of a training"
        ev = ev.drop("sequential", errors="ignore")  # it has interactions too
        better = (ev["seed_low"] > 0) & (ev["document_low"] > 0)
        worse = (ev["seed_high"] < 0) & (ev["document_high"] < 0)
        if better.all():
            return "interactions explain more than equal parameters without them do, and need the pairing"
        if worse.get("equal_parameters", False):
            return "the same parameters spent on more features explain more than interactions do"
        if better.get("same_width", False) and not better.get("equal_parameters", False):
            return "the gain at equal width is not beyond what the parameters would have brought as more features"
        return "no gain by interactions beyond all baselines"

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``joint_comparison.npz`` (sums of documents) and ``joint_comparison.json``; return the JSON's path."""
        folder = Path(folder)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.losses is not None:
            arrays |= {f"losses.{name}": getattr(self.losses, name) for name in _LOSSES}
        with atomic_path(folder / ARRAYS_FILE) as partial, open(partial, "wb") as handle:
            np.savez_compressed(handle, **arrays)
        plain = {name: getattr(self, name) for name in _SCALARS}
        write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, **plain})
        return folder / CONFIG_FILE

    @classmethod
    def load(cls, folder: str | os.PathLike) -> JointComparison:
        """Read a saved comparison.

        Raises
        ------
        InvalidInput
            There is none in the folder.
        DataMismatch
            It is damaged, or was written by another version.
        """
        path = Path(folder) / CONFIG_FILE
        if not path.is_file():
            raise InvalidInput(f"{folder}: there is no comparison of joint models here (no {CONFIG_FILE})")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if (plain.pop("format"), plain.pop("version")) != (FORMAT, VERSION):
                raise ValueError("another kind or version")
            with np.load(path.with_name(ARRAYS_FILE), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in _ARRAYS}
                some = "losses.ce" in stored
                losses = JointLosses(**{name: stored[f"losses.{name}"] for name in _LOSSES}) if some else None
            plain |= {name: tuple(plain[name]) for name in ("models", "seeds")}
            found = cls(**plain, **arrays, losses=losses)
            s, m, d = len(found.seeds), len(found.models), len(found.documents)
            shapes = [(d,), (d,), (d,), (s, m, d), (s, m, d)]
            if [array.shape for array in arrays.values()] != shapes or set(found.sizes) != set(found.models):
                raise ValueError("its parts do not fit together")
        except (KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataMismatch(f"{path}: the files of this comparison are damaged ({error}); compare again") from None
        return found


_ARRAYS = ("documents", "n_rows", "variation", "error", "active")
_SCALARS = ("models", "seeds", "sizes", "k", "site", "model", "n_boot", "random_state")
_LOSSES = ("n_predicted", "clean", "ablated", "ce")


def _ce_figures(losses: JointLosses) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy per token, and its recovered share; each (S, M)."""
    clean, ablated, ce = losses.clean.sum(), losses.ablated.sum(), losses.ce.sum(2)
    span = ablated - clean
    return ce / losses.n_predicted.sum(), (ablated - ce) / span if span else np.full_like(ce, np.nan)


def _points(value: float) -> str:
    """A share in points of a hundred, with its sign."""
    return "undefined" if np.isnan(value) else f"{100 * value:+.2f}"
