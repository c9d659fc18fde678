"""The report of `neurollm.interactions.inspection`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import atomic_path, sha256_file, write_json
from neurollm.interactions.coupling import SAME

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "neurollm weight report", 1
FILE = "weights.json"
FEATURE_VECTORS = ("V rows", "W rows", "decoder rows")
STATISTICS = ("gini", "effective_rank", "l0", "l1", "l2", "max")
LOWER = ("effective_rank", "l0")  # of which the smallest value is the most selective
_FRAMES = ("table", "feature_table", "coupling", "modes", "spectra", "quantiles")
_NUMBERS = ("n_features", "rank", "n_random", "random_state", "fingerprint", "dictionary_fingerprint")
_NAMES = {"V": "embeddings", "W": "refit rows", "decoder": "decoder rows"}


@dataclass(frozen=True, eq=False)
class WeightReport:
    """Statistics of weights beside those of random models.

    Attributes
    ----------
    table : DataFrame
        One row per ``vectors`` and ``statistic``; see `to_frame`.
    feature_table : DataFrame
        See `features`.
    coupling : DataFrame
        Of `neurollm.interactions.coupling`; empty without a dictionary.
    modes : DataFrame
        Of `neurollm.interactions.bimodality`, for squared norms.
    spectra : DataFrame
        ``vectors``, ``component``, ``share`` of the total, ``null_mean``, ``null_min``, ``null_max``.
    quantiles : DataFrame
        The distribution over features of every statistic: ``vectors``, ``statistic``, ``quantile``, ``value``,
        ``null_mean``, ``null_min``, ``null_max``.
    n_features, rank, n_random, random_state : int
    fingerprint, dictionary_fingerprint : str
    """

    table: pd.DataFrame
    feature_table: pd.DataFrame
    coupling: pd.DataFrame
    modes: pd.DataFrame
    spectra: pd.DataFrame
    quantiles: pd.DataFrame
    n_features: int
    rank: int
    n_random: int
    random_state: int
    fingerprint: str
    dictionary_fingerprint: str

    def to_frame(self) -> pd.DataFrame:
        """One row per vectors and statistic.

        ``n`` vectors of ``length``, ``undefined`` of them left out; ``mean``, ``p5``, ``p95``, ``min``, ``max`` over
        vectors (a statistic of all vectors together has only ``mean``); ``null_…`` the means of the same over random
        models; ``z``, ``p``, ``p_fwer`` of the mean; ``z_min``, ``p_min``, ``z_max``, ``p_max`` of the extremes
        against the extremes of random models; ``expected`` of independent directions. NaN where the null keeps a
        statistic, for instance norms of the decoder.
        """
        return self.table.copy()

    def row(self, vectors: str, statistic: str) -> pd.Series:
        """One row of the table."""
        found = self.table[(self.table["vectors"] == vectors) & (self.table["statistic"] == statistic)]
        if found.empty:
            raise InvalidInput(f"this report has no statistic {statistic!r} of {vectors!r}")
        return found.iloc[0]

    def features(self) -> pd.DataFrame:
        """One row per feature: the statistics of its embedding, refit row and decoder row.

        ``V_gini`` … with ``V_gini_p_fwer`` …: the share of random models of which any feature is as extreme, which
        corrects for all features. Extreme is large, but small of effective rank and L0.
        """
        return self.feature_table.copy()

    def verdict(self, alpha: float = 0.05) -> str:
        """The result, a sentence on each point."""
        lines = [self._means(alpha)]
        lines += [self._selective(name, alpha) for name in _NAMES if f"{name}_gini" in self.feature_table]
        lines += [self._norms(alpha)] if len(self.coupling) else []
        return "\n".join([*lines, *self._two_kinds(alpha)])

    def _can_tell(self, alpha: float) -> bool:
        """Whether there are enough random models for any p to be as small as alpha."""
        return 1 / (self.n_random + 1) <= alpha

    def _means(self, alpha: float) -> str:
        tested = self.table[self.table["p_fwer"].notna()]
        found = tested[tested["p_fwer"] <= alpha]
        least = 1 / (self.n_random + 1)
        if not self._can_tell(alpha):
            return (
                f"Whether {len(tested)} statistics of weights differ from models with random weights cannot be told "
                f"with {self.n_random} of them (smallest p possible {least:.2g}, above {alpha:g}): increase n_random."
            )
        of = (
            f"{len(tested)} statistics of weights differ from {self.n_random} models with random weights (family-wise "
            f"p ≤ {alpha:g}, smallest p possible {least:.2g})"
        )
        if found.empty:
            return f"None of {of}."
        size = np.abs(found["z"].to_numpy())
        row = found.iloc[int(np.argmax(np.where(np.isfinite(size), size, -1.0)))]
        return (
            f"{len(found)} of {of}; the furthest is {row['statistic']} of {row['vectors']}, {row['mean']:.3g} beside "
            f"{row['null_mean']:.3g}; this says that training moved the weights, not what they compute."
        )

    def _selective(self, name: str, alpha: float) -> str:
        values, p = (self.feature_table[f"{name}_gini{end}"].to_numpy() for end in ("", "_p_fwer"))
        kind = _NAMES[name]
        if not np.isfinite(p).any():
            return f"The Gini coefficients of the {kind} cannot be tested."
        best = int(np.nanargmax(values))
        row = self.row(f"{name} rows", "gini")
        found = int(np.count_nonzero(p <= alpha))
        beside = (
            f"feature {best} has the largest Gini coefficient, {values[best]:.3f}; the largest of a random model is "
            f"{row['null_max']:.3f} on average, p = {p[best]:.2g}, corrected for features and not for kinds of vectors"
        )
        if not self._can_tell(alpha):
            return (
                f"Whether any of the {kind} is selective cannot be told with {self.n_random} random models: {beside}."
            )
        if not found:
            return f"No selective {kind}: {beside}."
        return f"{found:,} of {self.n_features:,} {kind} are more concentrated than random ones ({beside})."

    def _norms(self, alpha: float) -> str:
        rows = self.coupling[self.coupling["method"] == "pearson"].set_index("quantity")
        shares = rows[rows["coupled"]]
        shares = shares[shares["r"].notna()]
        if shares.empty:
            return "Norms: those of the decoder, or all others, do not vary, so that nothing correlates with them."
        told = ", ".join(
            f"{name} r = {row['r']:.2f} (random initialisation {row['init_mean']:.2f}, shuffled "
            f"{row['shuffled_mean']:.2f})"
            for name, row in shares.iterrows()
        )
        return (
            f"Norms: squared decoder norms and shares of norms are mathematically coupled: {told}; "
            f"{self._reproduced(shares, alpha)}."
        )

    def _reproduced(self, shares: pd.DataFrame, alpha: float) -> str:
        """How many correlations random models have too, how many they have not, and of how many it is unknown."""
        if not self._can_tell(alpha):
            return f"whether a model that learned nothing reproduces them cannot be told with {self.n_random} draws"
        differ = shares["p_init"] <= alpha
        inside = (shares["r"] >= shares["init_min"] - SAME) & (shares["r"] <= shares["init_max"] + SAME) & ~differ
        if inside.all():
            return "each is reproduced by a model that learned nothing"
        parts = []
        if inside.any():
            parts.append(f"reproduced by a model that learned nothing: {int(inside.sum())} of {len(shares)}")
        if differ.any():
            furthest = shares.loc[differ, "excess"].abs().max()
            parts.append(
                f"unlike those of models that learned nothing: {int(differ.sum())} of {len(shares)} (p ≤ "
                f"{shares.loc[differ, 'p_init'].max():.2g}, by up to {furthest:.3f})"
            )
        unknown = len(shares) - int(inside.sum()) - int(differ.sum())
        if unknown:
            parts.append(f"cannot be told with {self.n_random} draws: {unknown} of {len(shares)}")
        return "; ".join(parts)

    def _two_kinds(self, alpha: float) -> list[str]:
        lines = []
        for row in self.modes.itertuples():
            if not np.isfinite(row.dip):
                lines.append(f"Squared norms of {row.vectors} do not vary.")
                continue
            two = row.p_uniform <= alpha and (row.p_dip <= alpha or not self._can_tell(alpha))
            several = "more than one mode" if two else "no second mode"
            if two and not self._can_tell(alpha):
                several += f"; whether those of random initialisation do cannot be told with {self.n_random} draws"
            lines.append(
                f"Squared norms of {row.vectors} have {several}: dip "
                f"{row.dip:.3g} (p = {row.p_uniform:.2g} against unimodality, p = {row.p_dip:.2g} against random "
                f"initialisation), ΔBIC of two normal distributions {row.delta_bic:,.0f} (random initialisation "
                f"{row.delta_bic_null_mean:,.0f})."
            )
        return lines

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``weights.json`` and a parquet file of every table; return the path of the former."""
        folder = Path(folder)
        files = {}
        for name in _FRAMES:
            with atomic_path(folder / f"weights_{name}.parquet") as partial:
                getattr(self, name).to_parquet(partial, index=False)
            files[name] = sha256_file(folder / f"weights_{name}.parquet")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        write_json(folder / FILE, {"format": FORMAT, "version": VERSION, **numbers, "sha256": files})
        return folder / FILE

    @classmethod
    def load(cls, folder: str | os.PathLike) -> WeightReport:
        """Inverse of `save`.

        Raises
        ------
        InvalidInput
            If there is no report in the folder.
        DataMismatch
            If it is damaged or was written by another version.
        """
        import pandas as pd

        path = Path(folder) / FILE
        if not path.is_file():
            raise InvalidInput(f"{folder}: there is no report of weights here (no {FILE})")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if (plain["format"], plain["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its format is {plain['format']!r}, version {plain['version']!r}")
            frames = {}
            for name in _FRAMES:
                file = Path(folder) / f"weights_{name}.parquet"
                if sha256_file(file) != plain["sha256"][name]:
                    raise ValueError(f"{file.name} belongs to another report")
                frames[name] = pd.read_parquet(file)
            return cls(**frames, **{name: plain[name] for name in _NUMBERS})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataMismatch(f"{path}: cannot be read ({error}); inspect the weights again") from None
