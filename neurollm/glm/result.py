"""What a contrast found: one frozen object that goes to a table, to disk and back."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Contrast, Exchangeability
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, slug, write_json
from neurollm.stats.kernel import r_to_f, r_to_t, t_to_r
from neurollm.stats.maxima import above_ties
from neurollm.validation import listed

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "neurollm.ContrastResult"
VERSION = 3
OUTPUT_TYPES = ("z_score", "stat", "p_value", "effect_size", "effect_variance", "effect_size_std", "df")
_SIZE_NAMES = {"hedges_g": "g", "hedges_g_z": "g", "partial_eta2": "eta2", "partial_r": "r"}


@dataclass(frozen=True)
class Exchange(Exchangeability):
    """What was exchanged, in words and numbers.

    Attributes
    ----------
    kind, unit, n_units, n_possible, sentence, residuals
        See `Exchangeability`.
    n_perm : int
        Shufflings used. ``exhaustive`` says that these are all there are, the observed one included.
    exhaustive : bool
    random_state : int
    """

    n_perm: int = 0
    exhaustive: bool = False
    random_state: int = 0


@dataclass(frozen=True, eq=False)
class ContrastResult:
    """A contrast for V features.

    Arrays have one entry per feature, in the order of the data; a feature that was not tested has
    ``valid`` False and NaN in every inferential column.

    Attributes
    ----------
    contrast : Contrast
    feature : ndarray
        Feature ids.
    effect, effect_low, effect_high : ndarray
        The contrast in units of (transformed) activation, and its 95 % t interval. For an F contrast: the root mean
        square of what it explains, without an interval.
    se : ndarray
        Standard error that belongs to `stat`; NaN for an F contrast.
    effect_size, effect_size_low, effect_size_high : ndarray
        Hedges' g or (coefficients of a formula) partial r with a 95 % noncentral-t interval, or partial η² with a 95 %
        noncentral-F interval; `effect_size_kind` says which.
    stat, df : ndarray
        The statistic named by `stat_kind`, and its (residual) degrees of freedom.
    p : ndarray
        Uncorrected, from exact moments of the permutation distribution; `p_method` says how.
    q : ndarray
        `p` adjusted for the false discovery rate by the method `fdr`.
    p_fwer, p_step_down : ndarray
        Permutation p, corrected over the tested features by the largest statistic: in one step, and stepping down.
    conditions : tuple of str
        The levels or cells in the contrast; ``("all",)`` if there are more than 40.
    mean, rate, magnitude : ndarray, shape (number of conditions, V)
        Of each condition, over items: ``mean = rate × magnitude`` (see `neurollm.stats.Conditions`).
    n_active_items : ndarray of int
        Items in which the feature is active at all.
    valid : ndarray of bool
    stat_kind : {"t", "F", "welch", "hc3"}
    effect_size_kind : {"hedges_g", "hedges_g_z", "partial_r", "partial_eta2"}
    df_permuted : int
        Degrees of freedom by which the permuted statistic and ρ belong together (residual, as of the pooled t).
    unit : float
        Turns a t statistic into a standardised difference, ``g = J · t · unit``; NaN for r and η².
    p_method, fdr : str
    tail : {"permutation", "gpd"}
        What the corrected p come from: counts alone, or a generalised Pareto distribution where they are small.
    n_tests, n_items, n_items_dropped : int
    exchange : Exchange
        What was exchanged, how many shufflings exist and how many were used, and the seed.
    alternative : {"two-sided", "greater", "less"}
    transform : str
    trials : str
        Digest of the items and texts of the trials, by which a table is recognised.
    min_active_items : int
    not_tested : dict
        Number of features by reason: ``"not finite"``, ``"constant"``, ``"too few active items"``,
        ``"cannot be significant"``.
    warnings : tuple of str
    null_max : ndarray
        Largest statistic over features in every shuffling, in the direction of the alternative.
    """

    contrast: Contrast
    feature: np.ndarray
    effect: np.ndarray
    effect_low: np.ndarray
    effect_high: np.ndarray
    se: np.ndarray
    effect_size: np.ndarray
    effect_size_low: np.ndarray
    effect_size_high: np.ndarray
    stat: np.ndarray
    df: np.ndarray
    p: np.ndarray
    q: np.ndarray
    p_fwer: np.ndarray
    p_step_down: np.ndarray
    conditions: tuple[str, ...]
    mean: np.ndarray
    rate: np.ndarray
    magnitude: np.ndarray
    n_active_items: np.ndarray
    valid: np.ndarray
    stat_kind: str
    effect_size_kind: str
    df_permuted: int
    unit: float
    p_method: str
    fdr: str
    tail: str
    n_tests: int
    n_items: int
    n_items_dropped: int
    exchange: Exchange
    alternative: str
    transform: str
    trials: str
    min_active_items: int
    not_tested: dict[str, int]
    warnings: tuple[str, ...]
    null_max: np.ndarray

    @property
    def name(self) -> str:
        """Name of the contrast."""
        return self.contrast.name

    @property
    def n_features(self) -> int:
        """Number of features, tested or not."""
        return len(self.feature)

    @property
    def is_f(self) -> bool:
        """Whether this is an F contrast (several degrees of freedom, no direction)."""
        return self.contrast.rank > 1

    def sides(self) -> Sides:
        """Means, rates and magnitudes of the two sides of a t contrast.

        Raises
        ------
        InvalidInput
            For an F contrast, which has no sides.
        """
        if self.is_f:
            raise InvalidInput(f"contrast '{self.name}' has {self.contrast.rank} degrees of freedom, so no two sides.")
        weight = dict(zip(self.contrast.parameters, self.contrast.weights[0], strict=True))
        weights = np.array([weight.get(condition, 0.0) for condition in self.conditions])
        parts = [np.clip(sign * weights, 0, None) for sign in (1, -1)]
        parts = [part / part.sum() if part.any() else part * np.nan for part in parts]
        means, rates = ([part @ values for part in parts] for values in (self.mean, self.rate))
        with np.errstate(invalid="ignore", divide="ignore"):
            magnitudes = [np.where(r > 0, m / np.where(r > 0, r, 1), np.nan) for m, r in zip(means, rates, strict=True)]
        return Sides(*means, *rates, *magnitudes)

    def critical_value(self, alpha: float = 0.05) -> float:
        """The value that the statistic must exceed to be significant at family-wise level `alpha`.

        Compare it with ``|stat|`` for the two-sided alternative, ``stat`` for "greater" and F contrasts, and
        ``-stat`` for "less". Infinite if `alpha` is below the smallest possible p; NaN if nothing was permuted.
        It comes from the shufflings themselves; a tail fitted to them does not enter.
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha must lie between 0 and 1, found {alpha!r}.")
        n, exchange = len(self.null_max), self.exchange
        if not self.n_tests or not n:
            return float("nan")
        # Largest number of null maxima at or above a significant statistic.
        allowed = int(np.floor(alpha * (n + (not exchange.exhaustive)) + 1e-9)) - (not exchange.exhaustive)
        if allowed < int(exchange.exhaustive):  # the observed arrangement alone is one of all
            return float("inf")
        value = np.sort(self.null_max)[::-1][allowed]
        # What is tied with this value does not exceed it: the tolerance is the kernel's, on its scale.
        q = self.contrast.rank if self.stat_kind == "F" else 1
        r = above_ties(t_to_r(np.sqrt(value * q) if self.stat_kind == "F" else value, self.df_permuted))
        return float(r_to_f(r, self.df_permuted, q) if self.stat_kind == "F" else r_to_t(r, self.df_permuted))

    def output(self, output_type: str = "all") -> np.ndarray | dict[str, np.ndarray]:
        """The result under nilearn's names and with nilearn's values.

        Parameters
        ----------
        output_type : {"z_score", "stat", "p_value", "effect_size", "effect_variance", "effect_size_std", "df", "all"}
            ``p_value`` is nilearn's: one-sided, from the t or F distribution, and ``z_score`` belongs to it;
            prefer `p`, `q` and `p_fwer`. ``effect_size`` is `effect`, ``effect_size_std`` is `effect_size`.

        Returns
        -------
        ndarray of shape (V,), or a dict of them for "all"
        """
        if output_type == "all":
            return {name: self.output(name) for name in OUTPUT_TYPES}
        if output_type not in OUTPUT_TYPES:
            raise InvalidInput(f"output_type is {output_type!r}; it must be one of {listed((*OUTPUT_TYPES, 'all'))}.")
        from neurollm.stats.parametric import f_to_z, t_to_z

        if output_type in ("z_score", "p_value"):
            z, p = f_to_z(self.stat, self.contrast.rank, self.df) if self.is_f else t_to_z(self.stat, self.df)
            return z if output_type == "z_score" else p
        return {
            "stat": self.stat,
            "effect_size": self.effect,
            "effect_variance": self.se**2,
            "effect_size_std": self.effect_size,
            "df": self.df,
        }[output_type]

    def true_discoveries(self, sets: Mapping[str, Any], alpha: float = 0.05) -> pd.DataFrame:
        """How many features of named sets truly carry the contrast: lower bounds that hold for all sets at once.

        Parameters
        ----------
        sets : mapping from str to sequence of feature ids
            May be chosen after seeing the result.
        alpha : float, default=0.05
            The bounds of all sets hold together with probability 1 − alpha (all-resolutions inference with Simes'
            inequality on the two-sided `p`).

        Returns
        -------
        DataFrame
            One row per set: ``n_features, n_tested, n_true, proportion``.
        """
        import pandas as pd

        from neurollm.stats.multiplicity import true_discoveries

        where = {feature: position for position, feature in enumerate(self.feature.tolist())}
        chosen: dict[str, np.ndarray] = {}
        for name, ids in sets.items():
            unknown = [feature for feature in np.asarray(ids).tolist() if feature not in where]
            if unknown:
                raise InvalidInput(f"true_discoveries: set '{name}' names {listed(unknown)}, which is no feature.")
            chosen[name] = np.array([where[feature] for feature in np.asarray(ids).tolist()], dtype=int)
        bounds = true_discoveries(self.p, chosen, alpha)
        rows = [
            {
                "set": name,
                "n_features": len(chosen[name]),
                "n_tested": bound.n_tested,
                "n_true": bound.n_discoveries,
                "proportion": bound.proportion,
            }
            for name, bound in bounds.items()
        ]
        return pd.DataFrame(rows, columns=["set", "n_features", "n_tested", "n_true", "proportion"]).set_index("set")

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.not_tested.items() if count)
        left_out = f" ({left_out})" if left_out else ""
        if not self.n_tests:
            return f"{self.name}: none of the {self.n_features:,} features could be tested{left_out}."
        untested = self.n_features - self.n_tests
        rest = f"; {untested:,} were not tested{left_out}" if untested else ""
        if not self.exchange.n_perm:
            found = int((self.q <= alpha).sum())
            return (
                f"{self.name}: {found:,} of {self.n_tests:,} tested features differ at q ≤ {alpha:g} "
                f"({self.fdr.upper()}, {self.alternative}, no permutations){rest}."
            )
        found = int((self.p_fwer <= alpha).sum())
        how = "all" if self.exchange.exhaustive else "random"
        return (
            f"{self.name}: {found:,} of {self.n_tests:,} tested features differ at family-wise p ≤ {alpha:g} "
            f"({self.alternative}, {self.exchange.n_perm:,} {how} shufflings of {self.n_items} items){rest}."
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
        p = self.p_fwer if self.exchange.n_perm else self.p
        return tested[np.lexsort((self.feature[tested], -size[tested], p[tested]))[:n]]

    def to_frame(self, sort: bool = True) -> pd.DataFrame:
        """One row per feature: the strongest first and the untested last, or in the order of the data."""
        import pandas as pd

        size = _SIZE_NAMES[self.effect_size_kind]
        columns: dict[str, np.ndarray] = {}
        for name in _ARRAYS:
            values = getattr(self, name)
            if name in _BY_CONDITION:
                columns |= {f"{name}[{cell}]": row for cell, row in zip(self.conditions, values, strict=True)}
            else:
                columns[name.replace("effect_size", size)] = values
        frame = pd.DataFrame(columns)
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
        exchange = dataclasses.asdict(self.exchange)
        if self.exchange.n_possible.bit_length() > 10_000:  # too many digits for JSON readers
            exchange["n_possible"] = hex(self.exchange.n_possible)
        scalars |= {"contrast": self.contrast.to_dict(), "exchange": exchange}
        scalars["unit"] = None if np.isnan(self.unit) else self.unit
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
        path = Path(path)
        scalars = _read_scalars(path)
        try:
            return cls(**_restored(scalars, path))
        except FileNotFoundError as error:
            raise DataMismatch(f"{error.filename}: is missing; it belongs to {path.name}.") from None
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataMismatch(
                f"{path}: the files of this result are damaged ({error}); run the contrast again."
            ) from None


@dataclass(frozen=True)
class Sides:
    """Means, activation rates and magnitudes of the two sides of a contrast, for V features.

    Several conditions on one side enter with their weights, normalised to sum to one.
    """

    mean_positive: np.ndarray
    mean_negative: np.ndarray
    rate_positive: np.ndarray
    rate_negative: np.ndarray
    magnitude_positive: np.ndarray
    magnitude_negative: np.ndarray


def _read_scalars(path: Path) -> dict[str, Any]:
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
    return scalars


def _restored(scalars: dict[str, Any], path: Path) -> dict[str, Any]:
    """The constructor's arguments from the three files."""
    import pandas as pd

    frame = pd.read_parquet(path.with_suffix(".parquet"))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        null_max = arrays["null_max"]
    exchange = dict(scalars["exchange"])
    if isinstance(exchange["n_possible"], str):
        exchange["n_possible"] = int(exchange["n_possible"], 16)
    conditions, size = tuple(scalars["conditions"]), _SIZE_NAMES[scalars["effect_size_kind"]]
    arrays = {
        name: np.stack([frame[f"{name}[{cell}]"].to_numpy() for cell in conditions])
        if name in _BY_CONDITION
        else frame[name.replace("effect_size", size)].to_numpy()
        for name in _ARRAYS
    }
    changed = {
        "contrast": Contrast.from_dict(scalars["contrast"]),
        "exchange": Exchange(**exchange),
        "conditions": conditions,
        "warnings": tuple(scalars["warnings"]),
        "unit": float("nan") if scalars["unit"] is None else scalars["unit"],
        "null_max": null_max,
    }
    return {**scalars, **arrays, **changed}


_BY_CONDITION = ("mean", "rate", "magnitude")
_ARRAYS = tuple(
    field.name
    for field in dataclasses.fields(ContrastResult)
    if field.type == "np.ndarray" and field.name != "null_max"
)
