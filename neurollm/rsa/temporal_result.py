"""What a time-resolved RSA found: scores over positions and features, tested together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.maxima import above_ties, tied_down
from neurollm.stats.rdms.nulls import extremity
from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd

FEWEST_ROWS = 4


@dataclass(frozen=True)
class Peak:
    """Where the model is followed most.

    Attributes
    ----------
    position, feature : position and feature id (or ``"region"``)
    r, z, p, p_fwer : float
    n_tied : int
        Other pairs of position and feature with the same z; which of them is named then means nothing.
    """

    position: Any
    feature: Any
    r: float
    z: float
    p: float
    p_fwer: float
    n_tied: int


@dataclass(frozen=True, eq=False)
class TimeResolvedResult:
    """Scores of every feature at every position; NaN where a feature is not tested.

    Attributes
    ----------
    positions : ndarray, shape (T,)
        Tokens from the event; one text, as ``"0:4"``, for a whole window.
    feature : ndarray, shape (V,)
        Ids; ``["region"]`` for a region.
    r, z, p, p_fwer : ndarray, shape (T, V)
        Score, score in standard deviations of its permutation distribution, p, and p corrected for all positions and
        features together by the largest z.
    mean, sd : ndarray, shape (T, V)
        Of the permutation distribution of r.
    n_trials, n_rows : ndarray of int, shape (T,)
        Trials and item × condition means that exist at the position.
    null_max : ndarray, shape (n_perm,)
        Largest z over all positions and features in every arrangement, in the direction of the alternative.
    model, comparison, distance, alternative, align : str
    n_items, n_dropped, n_dropped_trials : int
        Items that enter; those without all conditions; stimuli without the event or any token in the span.
    min_active, n_perm, random_state : int
    exhaustive : bool
    exchange : str
        What was exchanged.
    """

    positions: np.ndarray
    feature: np.ndarray
    r: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    n_trials: np.ndarray
    n_rows: np.ndarray
    null_max: np.ndarray
    model: str
    comparison: str
    distance: str
    alternative: str
    align: str
    n_items: int
    n_dropped: int
    n_dropped_trials: int
    min_active: int
    n_perm: int
    random_state: int
    exhaustive: bool
    exchange: str

    def to_frame(self) -> pd.DataFrame:
        """``position, feature, r, z, p, p_fwer, n_trials``: one row per position and feature."""
        import pandas as pd

        T, V = self.r.shape
        columns = {name: getattr(self, name).ravel() for name in ("r", "z", "p", "p_fwer")}
        return pd.DataFrame(
            {
                "position": np.repeat(self.positions, V),
                "feature": np.tile(self.feature, T),
                **columns,
                "n_trials": np.repeat(self.n_trials, V),
            }
        )

    @property
    def n_tested(self) -> int:
        """Pairs of position and feature that were tested."""
        return int(np.isfinite(self.z).sum())

    @property
    def peak(self) -> Peak | None:
        """The pair of position and feature with the largest z in the direction of the alternative; None without any."""
        if not self.n_tested:
            return None
        size = np.where(np.isfinite(self.z), extremity(self.z, self.alternative), -np.inf)
        best = np.unravel_index(np.argmax(size), size.shape)
        numbers = (float(getattr(self, name)[best]) for name in ("r", "z", "p", "p_fwer"))
        n_tied = int((size >= tied_down(size[best])).sum()) - 1
        return Peak(self.positions[best[0]], self.feature[best[1]], *numbers, n_tied)

    def course(self, feature: Any) -> pd.DataFrame:
        """One feature over positions: the rows of `to_frame`, with the null distribution's ``mean`` and ``sd``."""
        import pandas as pd

        found = np.flatnonzero(self.feature == feature)
        if not found.size:
            raise InvalidInput(f"time-resolved RSA: {shown(feature)} is no feature of this result.")
        names = ("r", "z", "p", "p_fwer", "mean", "sd")
        columns = {name: getattr(self, name)[:, found[0]] for name in names}
        return pd.DataFrame({"position": self.positions, **columns, "n_trials": self.n_trials})

    def critical_value(self, alpha: float = 0.05) -> float:
        """What z must reach (|z| if two-sided, −z for "less") to be significant over all positions and features.

        Infinite if there are too few arrangements for `alpha`; NaN if nothing was tested.
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha must lie between 0 and 1, found {alpha!r}.")
        n = self.null_max.size
        if not n:
            return float("nan")
        allowed = int(np.floor(alpha * (n + (not self.exhaustive)) + 1e-9)) - (not self.exhaustive)
        if allowed < int(self.exhaustive):  # the observed arrangement alone is one of all
            return float("inf")
        return float(above_ties(np.sort(self.null_max)[::-1][allowed]))

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        T, V = self.r.shape
        peak = self.peak
        dropped = self.n_dropped or self.n_dropped_trials
        left = f"; {self.n_dropped:,} items and {self.n_dropped_trials:,} trials were dropped" if dropped else ""
        if peak is None:
            return (
                f"{self.model}: nothing could be tested at {T} positions × {V:,} features: {self._why_nothing()}{left}."
            )
        found = self.r[self.p_fwer <= alpha]
        against = f" and {int((found < 0).sum()):,} run against it" if (found < 0).any() else ""
        what = "the region" if V == 1 and self.feature[0] == "region" else f"feature {peak.feature}"
        where = f"position{'s' if isinstance(peak.position, str) else ''} {peak.position} from the {self.align}"
        tied = f", tied with {peak.n_tied:,} others" if peak.n_tied else ""
        how = "all" if self.exhaustive else "random"
        low, high = int(self.n_trials.min()), int(self.n_trials.max())
        trials = f"{low:,} trials" if low == high else f"{low:,} to {high:,} trials at a position"
        return (
            f"{self.model}: {int((found >= 0).sum()):,} of {self.n_tested:,} tested pairs of position and feature "
            f"follow the model{against} at family-wise p ≤ {alpha:g} ({self.alternative}, {self.n_perm:,} {how} "
            f"shufflings of {self.n_items} items, {trials}); strongest: {what} at {where}, r = {peak.r:.3f}, "
            f"z = {peak.z:.2f}, p = {peak.p_fwer:.2g}{tied}{left}."
        )

    def _why_nothing(self) -> str:
        if not self.r.size:
            return "there are no features"
        if np.isfinite(self.r).any():
            rare = f"features that vary are active in fewer than {self.min_active} rows, or "
            return f"{rare if self.min_active else ''}no arrangement that was used changes a score"
        if self.n_rows.max() < FEWEST_ROWS:
            return f"no position has {FEWEST_ROWS} rows"
        return "no feature varies, or the model says the same of all rows of a position"
