"""What a contrast found: one frozen object that goes to a table, to disk and back."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, slug, write_json
from neurollm.stats.kernel import above_ties, r_to_t, t_to_r

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "neurollm.ContrastResult"
VERSION = 1


@dataclass(frozen=True, eq=False)
class ContrastResult:
    """A contrast of level means for V features.

    Arrays have one entry per feature, in the order of the data; a feature that was not tested has
    ``valid`` False and NaN in every inferential column.

    Attributes
    ----------
    name, expression : str
    levels, weights : tuple
        All levels of the factor and their weights.
    feature : ndarray
        Feature ids.
    effect, effect_ci_low, effect_ci_high : ndarray
        Contrast of level means in units of (transformed) activation, and its 95 % t interval.
    effect_size, effect_size_ci_low, effect_size_ci_high : ndarray
        Hedges' g and its 95 % noncentral-t interval; `effect_size_kind` says which g.
    stat, df : ndarray
        t statistic and its degrees of freedom. The p values do not use the t distribution.
    p_value, p_fwer : ndarray
        Permutation p, uncorrected and corrected over the tested features by the largest statistic.
    mean_positive, mean_negative, rate_positive, rate_negative, magnitude_positive, magnitude_negative : ndarray
        The two sides of the contrast: ``mean = rate × magnitude`` (see `neurollm.stats.Sides`).
    n_active_items : ndarray of int
        Items in which the feature is active at all.
    valid : ndarray of bool
    effect_size_kind : {"hedges_g_z", "hedges_g"}
    n_tests, n_items, n_items_dropped : int
    n_perm, n_possible : int
        Shufflings used and existing. ``exhaustive`` says that all were used.
    exhaustive : bool
    alternative : {"two-sided", "greater", "less"}
    random_state : int
    shuffling : str
        What was exchanged, in words. `shuffling_kind` is the scheme.
    shuffling_kind : str
    transform : str
    min_active_items : int
    not_tested : dict
        Number of features by reason: ``"not finite"``, ``"constant"``, ``"too few active items"``.
    warnings : tuple of str
    null_max : ndarray
        Largest statistic over features in every shuffling, in the direction of the alternative.
    """

    name: str
    expression: str
    levels: tuple[str, ...]
    weights: tuple[float, ...]
    feature: np.ndarray
    effect: np.ndarray
    effect_ci_low: np.ndarray
    effect_ci_high: np.ndarray
    effect_size: np.ndarray
    effect_size_ci_low: np.ndarray
    effect_size_ci_high: np.ndarray
    stat: np.ndarray
    df: np.ndarray
    p_value: np.ndarray
    p_fwer: np.ndarray
    mean_positive: np.ndarray
    mean_negative: np.ndarray
    rate_positive: np.ndarray
    rate_negative: np.ndarray
    magnitude_positive: np.ndarray
    magnitude_negative: np.ndarray
    n_active_items: np.ndarray
    valid: np.ndarray
    effect_size_kind: str
    n_tests: int
    n_items: int
    n_items_dropped: int
    n_perm: int
    n_possible: int
    exhaustive: bool
    alternative: str
    random_state: int
    shuffling: str
    shuffling_kind: str
    transform: str
    min_active_items: int
    not_tested: dict[str, int]
    warnings: tuple[str, ...]
    null_max: np.ndarray

    @property
    def n_features(self) -> int:
        """Number of features, tested or not."""
        return len(self.feature)

    def critical_value(self, alpha: float = 0.05) -> float:
        """The value that the statistic must exceed to be significant at family-wise level `alpha`.

        Compare it with ``|stat|`` for the two-sided alternative, ``stat`` for "greater" and
        ``-stat`` for "less". Infinite if `alpha` is below the smallest possible p; NaN if nothing was tested.
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha must lie between 0 and 1, found {alpha!r}.")
        if not self.n_tests:
            return float("nan")
        n = len(self.null_max)
        # Largest number of null maxima at or above a significant statistic.
        allowed = int(np.floor(alpha * n + 1e-9)) if self.exhaustive else int(np.floor(alpha * (n + 1) + 1e-9)) - 1
        if allowed < int(self.exhaustive):  # the observed arrangement alone is one of all
            return float("inf")
        df = self.df[self.valid][0]
        t = np.sort(self.null_max)[::-1][allowed]
        # What is tied with this value does not exceed it: the tolerance is the kernel's, on its scale.
        return float(r_to_t(above_ties(t_to_r(t, df)), df))

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.not_tested.items() if count)
        left_out = f" ({left_out})" if left_out else ""
        if not self.n_tests:
            return f"{self.name}: none of the {self.n_features:,} features could be tested{left_out}."
        with np.errstate(invalid="ignore"):
            found = int((self.p_fwer <= alpha).sum())
        untested = self.n_features - self.n_tests
        rest = f"; {untested:,} were not tested{left_out}" if untested else ""
        how = "all" if self.exhaustive else "random"
        return (
            f"{self.name}: {found:,} of {self.n_tests:,} tested features differ at family-wise p ≤ {alpha:g} "
            f"({self.alternative}, {self.n_perm:,} {how} shufflings of {self.n_items} items){rest}."
        )

    def strongest(self, n: int) -> np.ndarray:
        """Positions of the `n` most significant tested features, in the direction of the alternative.

        Returns
        -------
        ndarray of int
            Smallest corrected p first, then the largest statistic; fewer than `n` if fewer were tested.
        """
        size = {"two-sided": np.abs(self.stat), "greater": self.stat, "less": -self.stat}[self.alternative]
        tested = np.flatnonzero(self.valid)
        return tested[np.lexsort((self.feature[tested], -size[tested], self.p_fwer[tested]))[:n]]

    def to_frame(self, sort: bool = True) -> pd.DataFrame:
        """One row per feature: the strongest first and the untested last, or in the order of the data."""
        import pandas as pd

        frame = pd.DataFrame({name: getattr(self, name) for name in FEATURE_COLUMNS})
        if not sort:
            return frame
        order = np.concatenate([self.strongest(self.n_features), np.flatnonzero(~self.valid)])
        return frame.iloc[order].reset_index(drop=True)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``<slug>.parquet`` (features), ``.npz`` (null) and ``.json`` (all else); return the JSON's path."""
        base = Path(folder) / slug(self.name)
        with atomic_path(base.with_name(base.name + ".parquet")) as partial:
            self.to_frame(sort=False).to_parquet(partial, index=False)
        with atomic_path(base.with_name(base.name + ".npz")) as partial, open(partial, "wb") as handle:
            np.savez_compressed(handle, null_max=self.null_max)
        scalars = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        scalars = {key: value for key, value in scalars.items() if not isinstance(value, np.ndarray)}
        if self.n_possible.bit_length() > 10_000:  # too many digits for JSON readers
            scalars["n_possible"] = hex(self.n_possible)
        path = base.with_name(base.name + ".json")
        write_json(path, {"format": FORMAT, "version": VERSION, **scalars})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> ContrastResult:
        """Read a saved result.

        Parameters
        ----------
        path : path-like
            The ``.json`` file; the other two lie beside it.
        """
        import pandas as pd

        path = Path(path)
        try:
            scalars: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(f"{path}: there is no such file.") from None
        except (ValueError, OSError) as error:
            raise InvalidInput(f"{path}: cannot be read as JSON ({error}).") from None
        if not isinstance(scalars, dict) or scalars.pop("format", None) != FORMAT:
            raise InvalidInput(f"{path}: this is not a saved contrast result.")
        if scalars.pop("version", None) != VERSION:
            raise DataMismatch(f"{path}: was written by another version of neurollm; run the contrast again.")
        try:
            frame = pd.read_parquet(path.with_suffix(".parquet"))
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                null_max = arrays["null_max"]
            for key in ("levels", "weights", "warnings"):
                scalars[key] = tuple(scalars[key])
            if isinstance(scalars["n_possible"], str):
                scalars["n_possible"] = int(scalars["n_possible"], 16)
            columns = {name: frame[name].to_numpy() for name in FEATURE_COLUMNS}
            return cls(**scalars, **columns, null_max=null_max)
        except FileNotFoundError as error:
            raise DataMismatch(f"{error.filename}: is missing; it belongs to {path.name}.") from None
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataMismatch(
                f"{path}: the files of this result are damaged ({error}); run the contrast again."
            ) from None


FEATURE_COLUMNS = tuple(
    field.name
    for field in dataclasses.fields(ContrastResult)
    if field.type == "np.ndarray" and field.name != "null_max"
)
