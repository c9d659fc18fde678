"""Which features come back when a dictionary is trained again.

Features of two dictionaries are matched one to one so that the sum of the cosines of their
decoder directions is largest (Hungarian method). A feature is *shared* if the cosine with its
partner is above a threshold, .7 by default. Cosines keep their sign: a feature and its
opposite are two different things. MMCS, the mean over features of the largest cosine with any
feature of the other dictionary (Sharkey et al. 2022), is not one to one and grows with the
number of features.

Both are to be compared with what random unit vectors of the same number and dimension give:
simulated, and for MMCS also expected exactly (`neurollm.dictionaries.cosines`) and
asymptotically, sqrt(2 ln F / d). Random vectors are an easy null: activations do not fill
their space evenly, and two dictionaries of the same activations share that.

With `encoder`, features are matched by their encoder directions as well; a feature agrees if
both matchings give it the same partner, with both cosines above the threshold (Paulo &
Belrose 2025, https://arxiv.org/abs/2501.16615). With `activations`, they are matched by the
correlation of what they do on the same tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.cosines import expected_largest, unit_directions
from neurollm.dictionaries.matching import Matching, best_matching
from neurollm.dictionaries.rows import Rows, check_alike, encode_rows
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.progress import Progress
from neurollm.random import stream

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class SeedStability:
    """Features that two dictionaries have in common, for every pair of dictionaries.

    Attributes
    ----------
    threshold : float
    pairs : DataFrame
        One row per pair of dictionaries: ``a``, ``b``, ``n_a``, ``n_b`` (features compared), ``d``,
        ``mean_cosine`` and ``shared`` (of the matched pairs: mean cosine, share above the threshold),
        ``gap`` (the mean cosine of the best matching is at most so much larger), ``mmcs_a``
        (a's features in b), ``mmcs_b``. Their nulls: ``null_cosine``, ``null_shared``, ``null_mmcs_a``,
        ``null_mmcs_b`` with ``…_se``, the Monte Carlo standard error; ``null_mmcs_a_expected`` exact,
        ``null_mmcs_a_asymptotic`` sqrt(2 ln n_b / d), and the same of b.
        With encoders ``encoder_cosine``, ``agreement``; with activations ``correlation`` and
        ``correlated`` (mean of the best matching by correlation, share above the threshold), and
        ``same_partner`` (share of those with the same partner by decoder and by correlation).
    features : DataFrame
        One row per matched pair of features: ``a``, ``b``, ``feature`` (in a), ``partner`` (in b), ``cosine``;
        with encoders ``encoder_cosine`` and ``agrees``; with activations ``correlation`` of the two, NaN
        where one of them does not vary.
    null_cosines : ndarray
        Matched cosines of one simulation for the first pair.
    """

    threshold: float
    pairs: pd.DataFrame
    features: pd.DataFrame
    null_cosines: np.ndarray

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of dictionaries, with its null."""
        return self.pairs.copy()

    @property
    def shared(self) -> pd.DataFrame:
        """The rows of `features` with a cosine above the threshold."""
        return self.features[self.features["cosine"] > self.threshold].reset_index(drop=True)


def seed_stability(
    dictionaries: Mapping[str, Dictionary] | Sequence[Dictionary],
    *,
    threshold: float = 0.7,
    densities: Mapping[str, np.ndarray] | Sequence[np.ndarray] | None = None,
    activations: Rows | None = None,
    encoder: bool = False,
    n_null: int = 5,
    random_state: int = 0,
    verbose: int = 0,
) -> SeedStability:
    """Match the features of every two dictionaries.

    Parameters
    ----------
    dictionaries : mapping or sequence of Dictionary
        Two or more of the same site; those of a sequence are called ``"0"``, ``"1"`` …
    threshold : float, default=0.7
    densities : mapping or sequence of ndarray (n_features,), optional
        Of each dictionary; features with density 0 are left out.
    activations : ActivationStore, Tensor or ndarray (n, d_in), optional
        To match features by the correlation of their activations, too.
    encoder : bool, default=False
        Match by encoder directions, too.
    n_null : int, default=5
        Simulations of random unit vectors; at least 2. Each takes as long as a pair of dictionaries.
    random_state : int, default=0
    verbose : int, default=0

    Returns
    -------
    SeedStability

    Raises
    ------
    InvalidInput
        If there are fewer than two dictionaries, one has no directions or no feature is left.
    DataMismatch
        If they are of different sites, widths or models.

    Examples
    --------
    >>> from neurollm.dictionaries import RandomDirections
    >>> from neurollm.models import Site
    >>> runs = [RandomDirections(Site(3), 16, 50, seed) for seed in (0, 0, 1)]
    >>> seed_stability(runs).pairs["shared"].round(1).tolist()
    [1.0, 0.0, 0.0]
    """
    import pandas as pd

    named = _named(dictionaries)
    if n_null < 2:
        raise InvalidInput(f"seed_stability: n_null must be at least 2, found {n_null!r}")
    sides = _sides(named, densities)
    activity = {} if activations is None else {n: _Activity(side, activations, verbose) for n, side in sides.items()}
    rows, tables, nulls = [], [], {}
    pairs = list(itertools.combinations(sides.values(), 2))
    with Progress("stability", len(pairs), "pairs", verbose) as progress:
        for a, b in pairs:
            sizes = (len(a.decoder), len(b.decoder), a.decoder.shape[1])
            if sizes not in nulls:
                nulls[sizes] = _Null.simulate(*sizes, threshold, n_null, random_state)
            row, table = _compare(a, b, threshold, encoder)
            row |= nulls[sizes].figures
            if activity:
                more, table["correlation"] = _correlate(activity[a.name], activity[b.name], table, threshold)
                row |= more
            rows.append(row)
            tables.append(table)
            progress.advance(1, f"{a.name} and {b.name}: {row['shared']:.0%} shared")
    first = next(iter(nulls.values()))
    return SeedStability(threshold, pd.DataFrame(rows), pd.concat(tables, ignore_index=True), first.cosines)


@dataclass(frozen=True, eq=False)
class _Side:
    """The features of one dictionary that are compared: their numbers and unit directions."""

    name: str
    dictionary: Dictionary
    features: np.ndarray
    decoder: np.ndarray

    def encoder(self) -> np.ndarray:
        return unit_directions(self.dictionary, encoder=True).cpu().numpy()[self.features]


def _named(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {str(place): value for place, value in enumerate(values)}


def _sides(dictionaries: dict[str, Dictionary], densities: Any) -> dict[str, _Side]:
    if len(dictionaries) < 2:
        raise InvalidInput(f"seed_stability: expected two or more dictionaries, found {len(dictionaries)}")
    first_name, first = next(iter(dictionaries.items()))
    densities = None if densities is None else _named(densities)
    if densities is not None and set(densities) != set(dictionaries):
        raise InvalidInput("seed_stability: densities are given of every dictionary, under the same names, or of none")
    sides = {}
    for name, dictionary in dictionaries.items():
        check_alike("seed_stability", first, dictionary, (f"{first_name!r}", f"{name!r}"))
        used = unit_directions(dictionary).any(1).cpu().numpy()
        if densities is not None:
            density = np.asarray(densities[name])
            if density.shape != used.shape:
                raise DataMismatch(
                    f"seed_stability: density of {name!r} has shape {density.shape}, expected {used.shape}"
                )
            used &= density > 0
        if not used.any():
            raise InvalidInput(f"seed_stability: no feature of dictionary {name!r} is alive")
        features = np.flatnonzero(used)
        sides[name] = _Side(name, dictionary, features, unit_directions(dictionary).cpu().numpy()[features])
    return sides


def _cosines(a: np.ndarray, which: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[which] @ b.T


def _compare(a: _Side, b: _Side, threshold: float, encoder: bool) -> tuple[dict[str, Any], pd.DataFrame]:
    """Matching by directions: a row about the pair of dictionaries, and the table of its features."""
    import pandas as pd

    found = best_matching(a.decoder, b.decoder, _cosines)
    row = {
        "a": a.name,
        "b": b.name,
        "n_a": len(a.features),
        "n_b": len(b.features),
        "d": a.decoder.shape[1],
        **_figures(found, threshold),
        "gap": found.gap,
    }
    columns = {"feature": a.features[found.rows], "partner": b.features[found.columns], "cosine": found.similarity}
    table = pd.DataFrame({"a": a.name, "b": b.name, **columns})
    if encoder:
        other = best_matching(one := a.encoder(), two := b.encoder(), _cosines)
        row["encoder_cosine"] = float(other.similarity.mean())
        partner = np.full(len(a.features), -1)
        partner[other.rows] = other.columns
        table["encoder_cosine"] = np.einsum("nd,nd->n", one[found.rows], two[found.columns])
        agrees = (partner[found.rows] == found.columns) & (table["cosine"] > threshold)
        table["agrees"] = agrees & (table["encoder_cosine"] > threshold)
        row["agreement"] = float(table["agrees"].mean())
    return row, table


def _figures(found: Matching, threshold: float) -> dict[str, float]:
    return {
        "mean_cosine": float(found.similarity.mean()),
        "shared": float(np.mean(found.similarity > threshold)),
        "mmcs_a": float(found.largest_of_rows.mean()),
        "mmcs_b": float(found.largest_of_columns.mean()),
    }


@dataclass(frozen=True, eq=False)
class _Null:
    """What random unit vectors give."""

    figures: dict[str, float]
    cosines: np.ndarray

    @classmethod
    def simulate(cls, n_a: int, n_b: int, d: int, threshold: float, n_null: int, random_state: int) -> _Null:
        draws, cosines = [], np.zeros(0)
        for draw in range(n_null):
            rng = stream(random_state, "stability_null", draw)
            sides = [rng.standard_normal((n, d), dtype=np.float32) for n in (n_a, n_b)]
            unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in sides]
            found = best_matching(*unit, _cosines)
            draws.append(_figures(found, threshold))
            cosines = found.similarity if draw == 0 else cosines
        figures: dict[str, float] = {}
        for name in draws[0]:
            values = np.array([draw[name] for draw in draws])
            key = f"null_{name.removeprefix('mean_')}"
            figures |= {key: float(values.mean()), f"{key}_se": float(values.std(ddof=1) / np.sqrt(n_null))}
        for side, n in (("a", n_b), ("b", n_a)):
            figures[f"null_mmcs_{side}_expected"] = expected_largest(n, d)
            figures[f"null_mmcs_{side}_asymptotic"] = float(np.sqrt(2 * np.log(n) / d))
        return cls(figures, cosines)


class _Activity:
    """What the features of one dictionary do on some tokens; those that do not vary are left out."""

    def __init__(self, side: _Side, activations: Rows, verbose: int) -> None:
        values = encode_rows(side.dictionary, activations, verbose=verbose)[:, side.features].astype(np.float64)
        self.n = values.shape[0]
        mean = np.asarray(values.mean(0)).ravel()
        square = np.asarray(values.multiply(values).mean(0)).ravel()
        varies = np.flatnonzero(square - mean**2 > 1e-12 * square)
        if not len(varies):
            raise InvalidInput(f"seed_stability: no feature of dictionary {side.name!r} varies on these activations")
        self.mean, self.sd = mean[varies], np.sqrt(square - mean**2)[varies]
        self.by_token = values[:, varies]
        self.by_feature = self.by_token.T.tocsr()
        self.place = np.full(side.dictionary.n_features, -1)
        self.place[side.features[varies]] = np.arange(len(varies))

    def __len__(self) -> int:
        return len(self.mean)


def _correlations(a: _Activity, which: np.ndarray, b: _Activity) -> np.ndarray:
    products = (a.by_feature[which] @ b.by_token).toarray() / a.n
    return (products - np.outer(a.mean[which], b.mean)) / np.outer(a.sd[which], b.sd)


def _correlate(
    a: _Activity, b: _Activity, table: pd.DataFrame, threshold: float
) -> tuple[dict[str, float], np.ndarray]:
    """Matching by correlation, and the correlation of those that are matched by direction."""
    found = best_matching(a, b, _correlations)
    partner = np.full(len(a), -1)
    partner[found.rows] = found.columns
    one, two = a.place[table["feature"]], b.place[table["partner"]]
    both = np.flatnonzero((one >= 0) & (two >= 0))
    one, two = one[both], two[both]
    products = np.asarray(a.by_feature[one].multiply(b.by_feature[two]).sum(1)).ravel() / a.n
    correlation = np.full(len(table), np.nan)
    correlation[both] = (products - a.mean[one] * b.mean[two]) / (a.sd[one] * b.sd[two])
    row = {
        "correlation": float(found.similarity.mean()),
        "correlated": float(np.mean(found.similarity > threshold)),
        "same_partner": float(np.mean(partner[one] == two)) if len(both) else float("nan"),
    }
    return row, correlation
