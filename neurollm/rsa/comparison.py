"""The result of comparing model RDMs with data RDMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neurollm.validation import shown

if TYPE_CHECKING:
    import pandas as pd

POPULATIONS = {
    "conditions": "new stimuli, with these same RDMs",
    "rdms": "new seeds, models or dictionaries, with these same stimuli",
    "both": "new stimuli and new seeds, models or dictionaries",
    "none": "new seeds, models or dictionaries, with these same stimuli",
}

_NEVER_ZERO = ("cosine", "whitened")  # distances are not negative, and neither is linear CKA


@dataclass(frozen=True)
class ModelComparison:
    """How well K models explain the data RDMs; made by `compare_models`.

    Attributes
    ----------
    models : tuple of str
    r : ndarray, shape (K,)
        Mean over the data RDMs of their similarity with the model; for weighted models, and all models compared with
        them, the mean crossvalidated similarity over bootstrap samples.
    ci_low, ci_high : ndarray, shape (K,)
        Confidence interval of level 1 − alpha.
    p_zero : ndarray, shape (K,)
        r is not above 0 (one-sided). Says little for ``cosine`` and ``whitened``: unrelated RDMs have a positive r.
    p_noise_ceiling : ndarray, shape (K,)
        r is at the lower bound of the noise ceiling (two-sided); NaN without one.
    p_zero_adjusted, p_noise_ceiling_adjusted : ndarray, shape (K,)
        Corrected over models.
    pairwise : DataFrame
        One row per pair of models: first, second, difference, ci_low, ci_high, p (two-sided), p_adjusted.
    noise_ceiling : (float, float) or None
        Lower bound (each RDM with the mean of the others) and upper bound (with the mean of all). None from one RDM,
        and for weighted models with ``conditions``, whose folds leave no RDM out.
    per_rdm : ndarray, shape (n_rdms, K), or None
        Similarity of each data RDM; None with weighted models.
    dof : int
        Degrees of freedom of the t distribution.
    n_rdms, n_conditions, n_pairs : int
        What was compared.
    dropped : tuple of int
        Conditions without any distance in some RDM (constant patterns under correlation distance), left out of all.
    n_pairs_left_out : int
        Further pairs that are NaN in some data RDM or model, left out of all.
    n_boot, n_failed : int
        Bootstrap samples drawn, and those with too few different conditions to be evaluated.
    comparison, resample, test, correction : str
    alpha : float
    random_state : int
    """

    models: tuple[str, ...]
    r: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    p_zero: np.ndarray
    p_zero_adjusted: np.ndarray
    p_noise_ceiling: np.ndarray
    p_noise_ceiling_adjusted: np.ndarray
    pairwise: pd.DataFrame
    noise_ceiling: tuple[float, float] | None
    per_rdm: np.ndarray | None
    dof: int
    n_rdms: int
    n_conditions: int
    n_pairs: int
    dropped: tuple[int, ...]
    n_pairs_left_out: int
    n_boot: int
    n_failed: int
    comparison: str
    resample: str
    test: str
    correction: str
    alpha: float
    random_state: int

    def to_frame(self) -> pd.DataFrame:
        """One row per model, best first."""
        import pandas as pd

        names = ("r", "ci_low", "ci_high", "p_zero", "p_zero_adjusted", "p_noise_ceiling", "p_noise_ceiling_adjusted")
        frame = pd.DataFrame({"model": list(self.models), **{name: getattr(self, name) for name in names}})
        lower, upper = self.noise_ceiling or (np.nan, np.nan)
        frame = frame.assign(noise_ceiling_low=lower, noise_ceiling_high=upper)
        return frame.sort_values("r", ascending=False, kind="stable", ignore_index=True)

    def verdict(self) -> str:
        """What was found, in a few plain sentences with numbers."""
        best = int(np.nanargmax(self.r)) if np.isfinite(self.r).any() else 0
        found = f"model {shown(self.models[best])} {self.comparison} r = {self.r[best]:.3f}"
        data = f"{self.n_rdms} data RDM{'s' * (self.n_rdms > 1)} of {self.n_conditions} conditions"
        out = ""
        if self.dropped or self.n_pairs_left_out:
            out = f" Left out of all RDMs: {len(self.dropped)} conditions and {self.n_pairs_left_out} further pairs."
        if np.isnan(self.p_zero[best]):
            why = "its variance cannot be estimated from these samples, so it cannot be tested"
            if self.resample == "none":
                why = "without resampling, one RDM allows no conclusion beyond itself, and has no noise ceiling"
            return f"On {data} the best is {found}; {why}.{out}"
        interval = f"[{self.ci_low[best]:.3f}, {self.ci_high[best]:.3f}]"
        above = "is" if self.p_zero_adjusted[best] <= self.alpha else "is not shown to be"
        sentence = f"On {data}, for {POPULATIONS[self.resample]}: the best {found} {interval} {above} above 0 "
        if len(self.models) == 1:
            sentence += f"(p = {self.p_zero[best]:.2g}). "
        else:
            differ = int((self.pairwise["p_adjusted"] <= self.alpha).sum())
            sentence += f"(p = {self.p_zero_adjusted[best]:.2g}, {self.correction} over {len(self.models)} models). "
            sentence += f"Pairs of models that differ at {self.alpha:g}: {differ} of {len(self.pairwise)}. "
        if self.comparison in _NEVER_ZERO:
            sentence += f"Unrelated RDMs have a {self.comparison} r above 0 too, so compare it with other models. "
        if self.noise_ceiling is None:
            why = "one RDM has none" if self.n_rdms == 1 else "folds over conditions alone leave no RDM out"
            return sentence + f"No noise ceiling: {why}.{out}"
        lower, upper = self.noise_ceiling
        p = self.p_noise_ceiling_adjusted[best]
        place = "differs from" if p <= self.alpha else "is not shown to differ from"
        return sentence + f"It {place} the noise ceiling's lower bound ({lower:.3f} to {upper:.3f}, p = {p:.2g}).{out}"
