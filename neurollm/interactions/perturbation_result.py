"""What `perturbation_test` finds: losses by document, their table, the differences between conditions."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, write_json
from neurollm.stats import adjust
from neurollm.stats.document_bootstrap import METHOD, DocumentBootstrap

if TYPE_CHECKING:
    import pandas as pd

RESULT = "perturbation.json"
FORMAT, VERSION = "neurollm-perturbation", 1


@dataclass(frozen=True, eq=False)
class PerturbationResult:
    """Losses with C reconstructions spliced in, and with N kinds of noise as long as their errors, in D documents.

    Attributes
    ----------
    conditions, noises : tuple of str
    documents : ndarray of int, shape (D,)
        Numbers of the documents that hold a predicted token.
    n_predicted : ndarray of int, shape (D,)
        Predicted tokens of each.
    clean : ndarray of float64, shape (D,)
        Cross-entropy of the model as it is, in nats, summed over the document's tokens.
    ablated : ndarray of float64, shape (2, D)
        Cross-entropy with the mean, and with zero, at the site.
    ce, kl : ndarray of float64, shape (C, 1 + N, D)
        Cross-entropy and KL(clean ‖ replaced): of the reconstruction, then of each noise, mean over draws.
    error_length : ndarray of float64, shape (C,)
        Mean length of a token's error.
    n_draws, n_boot, random_state : int
    site, model : str
    """

    conditions: tuple[str, ...]
    noises: tuple[str, ...]
    documents: np.ndarray = field(repr=False)
    n_predicted: np.ndarray = field(repr=False)
    clean: np.ndarray = field(repr=False)
    ablated: np.ndarray = field(repr=False)
    ce: np.ndarray = field(repr=False)
    kl: np.ndarray = field(repr=False)
    error_length: np.ndarray = field(repr=False)
    n_draws: int
    n_boot: int
    random_state: int
    site: str
    model: str

    @functools.cached_property
    def _bootstrap(self) -> DocumentBootstrap:
        return DocumentBootstrap(len(self.n_predicted), self.n_boot, self.random_state)

    def to_frame(self) -> pd.DataFrame:
        """One row per condition and noise.

        Columns: ``condition``, ``noise``; ``kl``, ``ce``, ``delta_ce``, ``recovered_mean``, ``recovered_zero`` of the
        condition; ``kl_noise``, ``ce_noise`` of its noise; ``ratio`` of the two KL, with ``p`` that it is 1; each with
        ``_low`` and ``_high``, its 95 % interval; ``error_length``, ``n_documents``, ``n_tokens``, ``n_draws``,
        ``n_boot``, ``method``.
        """
        import pandas as pd

        return pd.DataFrame(self._rows)

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        n, boot = self.n_predicted.astype(float), self._bootstrap
        rows = []
        for c, condition in enumerate(self.conditions):
            own = boot.named("kl", self.kl[c, 0], n, log=True) | boot.named("ce", self.ce[c, 0], n)
            own |= boot.named("delta_ce", self.ce[c, 0] - self.clean, n)
            for name, ablated in zip(("mean", "zero"), self.ablated, strict=True):
                own |= boot.named(f"recovered_{name}", ablated - self.ce[c, 0], ablated - self.clean)
            for place, noise in enumerate(self.noises, start=1):
                beside = boot.named("kl_noise", self.kl[c, place], n, log=True)
                beside |= boot.named("ce_noise", self.ce[c, place], n)
                ratio = boot.named("ratio", self.kl[c, 0], self.kl[c, place], log=True)
                p = boot.estimate([self.kl[c, 0]], [self.kl[c, place]], log=True).p
                rows.append({"condition": condition, "noise": noise, **own, **beside, **ratio, "p": p})
                rows[-1] |= {"error_length": float(self.error_length[c]), **self._counts}
        return rows

    @property
    def _counts(self) -> dict[str, Any]:
        return {
            "n_documents": len(self.n_predicted),
            "n_tokens": int(self.n_predicted.sum()),
            "n_draws": self.n_draws,
            "n_boot": self.n_boot,
            "method": METHOD,
        }

    def differences(self) -> pd.DataFrame:
        """One row per pair of conditions and quantity (``kl``, ``ce``, and ``log_ratio`` for each noise).

        Columns: ``condition_a``, ``condition_b``, ``quantity``, ``noise``, ``value_a``, ``value_b``, ``difference``
        (a − b, paired by document) with ``low`` and ``high``, its 95 % interval, two-sided ``p``, ``p_holm`` over the
        pairs of the same quantity and noise, ``n_documents``, ``n_tokens``, ``n_draws``, ``n_boot``, ``method``.
        """
        import pandas as pd

        n = self.n_predicted.astype(float)
        quantities = [("kl", "", self.kl[:, 0], None), ("ce", "", self.ce[:, 0], None)]
        quantities += [
            ("log_ratio", noise, self.kl[:, 0], self.kl[:, place]) for place, noise in enumerate(self.noises, start=1)
        ]
        rows: list[dict[str, Any]] = []
        for quantity, noise, top, below in quantities:
            family = []
            for a, b in _pairs(len(self.conditions)):
                if below is None:
                    found = self._bootstrap.estimate([top[a] - top[b]], [n])
                    values = [_divide(top[one].sum(), n.sum()) for one in (a, b)]
                    figures = [*values, found.value, found.low, found.high]
                else:
                    found = self._bootstrap.estimate([top[a], top[b]], [below[a], below[b]], signs=(1, -1), log=True)
                    values = [_divide(top[one].sum(), below[one].sum()) for one in (a, b)]
                    with np.errstate(divide="ignore", invalid="ignore"):
                        figures = np.log([*values, found.value, found.low, found.high]).tolist()
                names = {"condition_a": self.conditions[a], "condition_b": self.conditions[b], "quantity": quantity}
                columns = ("value_a", "value_b", "difference", "low", "high")
                family.append({**names, "noise": noise, **dict(zip(columns, figures, strict=True)), "p": found.p})
            adjusted = adjust(np.array([row["p"] for row in family]), "holm").tolist()
            rows += [{**row, "p_holm": p, **self._counts} for row, p in zip(family, adjusted, strict=True)]
        return pd.DataFrame(rows)

    def verdict(self) -> str:
        """What was found, in plain sentences with numbers."""
        frame, pairs = self.to_frame(), self.differences()
        parts = []
        for condition in self.conditions:
            own = frame[frame["condition"] == condition]
            ratios = [
                f"{_number(value)} times{_interval(low, high)} that of {noise}"
                for value, low, high, noise in own[["ratio", "ratio_low", "ratio_high", "noise"]].values.tolist()
            ]
            first = own.iloc[0]
            parts.append(
                f"{condition!r}: KL {_number(first.kl)} nats, {_number(100 * first.recovered_mean)} % of the loss "
                f"recovered against the mean; its KL is {', '.join(ratios)} noise of the same length {_judged(own)}"
            )
        text = (
            f"Perturbations at {self.site} of {self.model}, {len(self.n_predicted)} documents, "
            f"{int(self.n_predicted.sum()):,} tokens (95 % intervals over documents). {'; '.join(parts)}."
        )
        ratios = pairs[(pairs["quantity"] == "log_ratio") & pairs["p"].notna()] if len(pairs) else pairs
        if not len(ratios):
            return text
        found = int((ratios["p_holm"] <= 0.05).sum())
        return (
            f"{text} The ratio differs between conditions in {found} of {len(ratios)} comparisons (Holm p ≤ .05 for "
            f"each noise, {METHOD}, {self.n_boot:,} draws)."
        )

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``perturbation.npz`` (sums of documents) and ``perturbation.json``; return the JSON's path."""
        path = Path(folder) / RESULT
        with atomic_path(path.with_suffix(".npz")) as partial, open(partial, "wb") as handle:
            np.savez_compressed(handle, **{name: getattr(self, name) for name in _ARRAYS})
        plain = {name: getattr(self, name) for name in _SCALARS}
        write_json(path, {"format": FORMAT, "version": VERSION, **plain})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> PerturbationResult:
        """Read a saved result.

        Parameters
        ----------
        path : path-like
            The folder it was saved in, or the ``perturbation.json`` there.

        Raises
        ------
        InvalidInput
            There is no such file, or it is no result of `perturbation_test`.
        DataMismatch
            It is damaged, or was written by another version.
        """
        path = Path(path) / RESULT if Path(path).is_dir() else Path(path)
        plain = _read(path)
        try:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in _ARRAYS}
            plain |= {name: tuple(plain[name]) for name in ("conditions", "noises")}
            result = cls(**plain, **arrays)
            c, rows, d = len(result.conditions), 1 + len(result.noises), len(result.documents)
            shapes = [(d,), (d,), (d,), (2, d), (c, rows, d), (c, rows, d), (c,)]
            if [array.shape for array in arrays.values()] != shapes:
                raise ValueError("its arrays do not fit together")
        except FileNotFoundError as error:
            raise DataMismatch(f"{error.filename}: is missing; it belongs to {path.name}.") from None
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataMismatch(f"{path}: the files of this result are damaged ({error}); run the test again.") from None
        return result


_ARRAYS = tuple(one.name for one in fields(PerturbationResult) if one.type == "np.ndarray")
_SCALARS = tuple(one.name for one in fields(PerturbationResult) if one.type != "np.ndarray")


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file.") from None
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise InvalidInput(f"{path}: this is not a saved result of perturbation_test.")
    if plain.pop("version", None) != VERSION:
        raise DataMismatch(f"{path}: was written by another version of neurollm; run the test again.")
    return plain


def _pairs(n: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(n) for b in range(a + 1, n)]


def _divide(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3g}"


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({_number(low)} to {_number(high)})"


def _judged(rows: pd.DataFrame) -> str:
    """What the intervals of a condition's ratios say, noise by noise."""
    if rows["p"].isna().all():
        return "(not tested)"
    worse, milder, untested = rows["ratio_low"] > 1, rows["ratio_high"] < 1, rows["p"].isna()
    said = {
        "worse than": worse,
        "milder than": milder,
        "not told apart from": ~(worse | milder | untested),
        "not tested against": untested,
    }
    parts = [f"{words} {' and '.join(rows.loc[which, 'noise'])} noise" for words, which in said.items() if which.any()]
    return f"({'; '.join(parts)})"
