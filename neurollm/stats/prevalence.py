"""In how many units of a population is there information: lower bounds from permutations within each unit.

Units are models, training seeds, templates, concepts. A t-test of their scores against chance can only reject that
no unit carries information (decoding scores of a unit cannot be truly below chance), so that one good unit may decide
it. Prevalence inference (Allefeld, Görgen & Haynes 2016, NeuroImage 141:378) tests that at most a share γ of the
population does.

``minimum``: the smallest score m over the N units. A unit with information reaches m with probability at most 1, one
without with the probability π_k that its permutations have, so that

    p(γ) = Π_k (γ + (1 − γ) π_k),    π_k = share of the permutations of unit k (the neutral one included) that reach m,

and p(0) = Π π_k is the p value of the global null over *all* (P + 1)^N second-level permutations: they choose one
permutation of each unit, and the smallest reaches m exactly if every one does. Nothing is drawn for it. Allefeld et
al. write (γ + (1 − γ) p(0)^(1/N))^N, which is the same for units with equal π and else smaller (by Mahler's
inequality), too small where the units' null distributions differ.

``count``: the number K of units whose own permutation p is at most α. A unit with information is counted with
probability at most 1, one without with at most α₁ = ⌊α(P + 1)⌋/(P + 1), so that p(γ) = P(Bin(N, γ + (1 − γ)α₁) ≥ K)
(Donhauser, Florin & Baillet 2018, PLoS Comput Biol 14:e1005990), whose bound is that of Clopper & Pearson, less α₁. The
smallest score of many uninformed units is low, so that the minimum shows little where a good part of the units carries
none, however many there are; the count comes close to the true share. The minimum is stronger with few units that
all carry information weakly. Choose before looking.

The bound is the largest γ with p(γ) ≤ α (0 if there is none: nothing is claimed). Over many features,
p_*(γ) = p_* + (1 − p_*) p(γ), with p_* the family-wise p of the global null from the largest statistic over features
in each second-level permutation (drawn; one permutation of a unit is the same for all features).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.stats.maxima import tied_down

if TYPE_CHECKING:
    import pandas as pd

Statistic = Literal["minimum", "count"]
_STEPS = 60  # halvings of the interval that holds a bound


@dataclass(frozen=True, eq=False)
class Prevalence:
    """What `prevalence_inference` found; arrays of shape (V,), or numbers where one score per unit was given.

    Attributes
    ----------
    statistic : {"minimum", "count"}
    observed : float or ndarray
        Smallest score over units, or the number of units that are significant alone. NaN (as all that follows) where a
        score is not finite.
    p_global : float or ndarray
        Of the null hypothesis that no unit carries information.
    p_majority : float or ndarray
        That at most half of the population does.
    bound : float or ndarray
        The largest share that is rejected at level α: more than this share carries information. 0 if none is.
    p_global_fwer, p_majority_fwer, bound_fwer : float or ndarray
        The same, family-wise over features; equal to the above for a single one.
    largest_bound : float
        What the bound of one feature would be if every unit were above all of its permutations.
    n_units, n_perm : int
        N, and permutations of each unit without the neutral one.
    alpha : float
    """

    statistic: Statistic
    observed: Any
    p_global: Any
    p_majority: Any
    bound: Any
    p_global_fwer: Any
    p_majority_fwer: Any
    bound_fwer: Any
    largest_bound: float
    n_units: int
    n_perm: int
    alpha: float

    def to_frame(self) -> pd.DataFrame:
        """One row per feature."""
        import pandas as pd

        names = ("observed", "p_global", "p_majority", "bound", "p_global_fwer", "p_majority_fwer", "bound_fwer")
        columns = {name: np.atleast_1d(getattr(self, name)) for name in names}
        return pd.DataFrame({"feature": np.arange(columns["bound"].size), **columns})

    def verdict(self) -> str:
        """One sentence with the strongest claim that holds."""
        bounds, level = np.atleast_1d(self.bound_fwer), f"{100 * (1 - self.alpha):g} % confidence"
        if np.isnan(bounds).all():
            return "No feature has a finite score in every unit, so nothing can be said about prevalence."
        best = int(np.nanargmax(bounds))
        p = np.atleast_1d(self.p_global_fwer)[best]
        who = f"{self.n_units} units" if bounds.size == 1 else f"{self.n_units} units and {bounds.size} features"
        if bounds[best] == 0:
            lowest = np.nanmin(np.atleast_1d(self.p_global_fwer))
            return (
                f"The scores of {who} do not exclude that no unit carries information (smallest p = {lowest:.3g}; "
                f"the largest share that could have been shown is {self.largest_bound:.0%})."
            )
        where = "" if bounds.size == 1 else f" for feature {best} (family-wise)"
        more = "" if bounds[best] >= 0.5 else ", so a majority is not shown"
        return (
            f"More than {bounds[best]:.0%} of the population carries information{where} ({level}, {who}, "
            f"global null p = {p:.3g}){more}."
        )


def prevalence_inference(
    scores: Any,
    null_scores: Any,
    *,
    statistic: Statistic = "minimum",
    n_perm2: int = 10_000,
    alpha: float = 0.05,
    random_state: int = 0,
) -> Prevalence:
    """Lower bound of the share of a population of units that carries information.

    Parameters
    ----------
    scores : array-like, shape (N,) or (N, V)
        Score of each unit (and feature), larger is better.
    null_scores : array-like, shape (N, P) or (N, P, V)
        Scores of the same units with permuted labels, WITHOUT the neutral permutation (it is added). Permutation i of
        a unit is the same for all features.
    statistic : {"minimum", "count"}, default="minimum"
        See the module's introduction.
    n_perm2 : int, default=10_000
        Second-level permutations, for the family-wise results of several features; all if there are at most so many.
    alpha : float, default=0.05
    random_state : int, default=0

    Returns
    -------
    Prevalence

    Raises
    ------
    InvalidInput
        Fewer than 2 units, too few permutations for one unit to be significant (``count``), a wrong option.
    DataMismatch
        The shapes do not fit together.

    Examples
    --------
    >>> null = np.linspace(0.3, 0.7, 99)
    >>> found = prevalence_inference([0.8, 0.75, 0.9, 0.72], [null] * 4)
    >>> round(found.p_global, 10), round(found.bound, 2)
    (1e-08, 0.47)
    """
    scores, values = _checked(scores, null_scores, statistic, n_perm2, alpha)
    single, values = values.ndim == 2, values[..., None] if values.ndim == 2 else values
    n_units, n_arrangements, n_features = values.shape
    valid = np.isfinite(values).all(axis=(0, 1))
    values = values[..., valid]
    if statistic == "count":
        values = _significant(values, alpha)
        level = np.floor(alpha * n_arrangements + 1e-9) / n_arrangements
        observed = values[:, 0].sum(axis=0)
        tails, best = _Binomial(observed, n_units, level), _Binomial(np.array([n_units]), n_units, level)
    else:
        observed = values[:, 0].min(axis=0)
        tails = _Product(np.mean(values >= tied_down(observed), axis=1))
        best = _Product(np.full((n_units, 1), 1 / n_arrangements))
    found = [observed, tails(0.0), tails(0.5), tails.bound(alpha)]
    if n_features > 1:
        p = _family_wise(values, observed, statistic, n_perm2, random_state)
        # What the family-wise p leaves of α; nothing once it is above.
        left = np.divide(alpha - p, 1 - p, out=np.full(p.size, -1.0), where=p < 1)
        found += [p, p + (1 - p) * found[2], tails.bound(left)]
    else:
        found += found[1:]
    parts = (_spread(part, valid, single) for part in found)
    return Prevalence(statistic, *parts, float(best.bound(alpha)[0]), n_units, n_arrangements - 1, alpha)


class _Product:
    """p(γ) of the minimum, from the tails π (N, V)."""

    def __init__(self, tails: np.ndarray) -> None:
        self.tails = tails

    def __call__(self, share: float | np.ndarray) -> np.ndarray:
        return np.prod(share + (1 - share) * self.tails, axis=0)

    def bound(self, alpha: float | np.ndarray) -> np.ndarray:
        """Largest share with p at most `alpha`, by bisection from below; 0 where there is none."""
        low, high = np.zeros(self.tails.shape[1]), np.ones(self.tails.shape[1])
        for _ in range(_STEPS):
            middle = (low + high) / 2
            rejected = self(middle) <= alpha
            low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
        return low


class _Binomial:
    """p(γ) of the count K (V,) of N units, each significant with probability `level` if it has no information."""

    def __init__(self, counts: np.ndarray, n_units: int, level: float) -> None:
        self.counts, self.n_units, self.level = counts, n_units, level

    def __call__(self, share: float) -> np.ndarray:
        from scipy.stats import binom

        return binom.sf(self.counts - 1, self.n_units, share + (1 - share) * self.level)

    def bound(self, alpha: float | np.ndarray) -> np.ndarray:
        """Largest share with p at most `alpha`; 0 where there is none."""
        from scipy.stats import beta

        counted = beta.ppf(np.clip(alpha, 0, 1), np.maximum(self.counts, 1), self.n_units - self.counts + 1)
        return np.where(self.counts > 0, np.maximum((counted - self.level) / (1 - self.level), 0), 0.0)


def _significant(values: np.ndarray, alpha: float) -> np.ndarray:
    """Which arrangements of a unit would be significant if they were the observed one, (N, P + 1, V)."""
    n = values.shape[1]
    most = int(np.floor(alpha * n + 1e-9))  # arrangements that may reach a significant one, itself included
    limit = -np.sort(-values, axis=1)[:, most : most + 1]  # the first that is one too many
    return (tied_down(values) > limit).astype(float)


def _family_wise(
    values: np.ndarray, observed: np.ndarray, statistic: Statistic, n_perm2: int, random_state: int
) -> np.ndarray:
    """p of the global null from the largest statistic over features."""
    n_units, n_arrangements, _ = values.shape
    exhaustive = n_units * np.log(n_arrangements) <= np.log(n_perm2) + 1e-12
    if exhaustive:
        chosen = np.array(np.unravel_index(np.arange(n_arrangements**n_units), (n_arrangements,) * n_units)).T
    else:
        chosen = stream(random_state, "prevalence").integers(0, n_arrangements, (n_perm2, n_units))
    reduce = np.sum if statistic == "count" else np.min
    units = np.arange(n_units)
    largest = np.array([reduce(values[units, row], axis=0).max(initial=-np.inf) for row in chosen])
    reached = np.sum(largest[:, None] >= tied_down(observed), axis=0)
    return reached / len(chosen) if exhaustive else (reached + 1) / (len(chosen) + 1)


def _spread(part: np.ndarray, valid: np.ndarray, single: bool) -> Any:
    full = np.full(valid.size, np.nan)
    full[valid] = part
    return float(full[0]) if single else full


def _checked(scores: Any, null_scores: Any, statistic: str, n_perm2: int, alpha: float) -> tuple[np.ndarray, ...]:
    """The scores, and all arrangements with the neutral one first."""
    scores, null = np.asarray(scores, float), np.asarray(null_scores, float)
    if statistic not in ("minimum", "count"):
        raise InvalidInput(f"statistic {statistic!r} is unknown; expected 'minimum' or 'count'.")
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha is {alpha}; expected a number between 0 and 1.")
    if n_perm2 < 1:
        raise InvalidInput(f"n_perm2 is {n_perm2}; expected at least 1.")
    if scores.ndim not in (1, 2) or null.ndim != scores.ndim + 1 or null.shape[:1] + null.shape[2:] != scores.shape:
        raise DataMismatch(
            f"scores of shape {scores.shape} and null scores of shape {null.shape} do not fit together; expected "
            "(units,) and (units, permutations), or both with features as the last axis."
        )
    if len(scores) < 2:
        raise InvalidInput(f"prevalence is a share of many units; at least 2 are needed, found {len(scores)}.")
    if null.shape[1] < 1 or (statistic == "count" and alpha * (null.shape[1] + 1) < 1):
        raise InvalidInput(
            f"{null.shape[1]} permutations of each unit are too few for p ≤ {alpha}; "
            f"at least {int(np.ceil(1 / alpha)) - 1} are needed."
        )
    return scores, np.concatenate([scores[:, None], null], axis=1)
