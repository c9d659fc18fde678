"""Testing a region on contents that took no part in choosing it.

The region's score of a trial is ``mean_j sign_j · x_j / s_j`` over its features, with s_j the standard deviation of
feature j over all item × cell means of the test. Activations of features differ by orders of magnitude: a plain
mean would be the mean of the few largest. s_j uses neither labels nor the selection, and exchanging labels does not
change it, so the permutation test of the score stays exact. (Subtracting means would change no contrast.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.designs import Design
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.glm import ContrastResult, FeatureGLM
from neurollm.roi.disjoint import check_disjoint
from neurollm.roi.region import ROI
from neurollm.rsa.rows import read_trials
from neurollm.stats.arrays import by_columns, dense
from neurollm.stats.effects import small_sample_factor
from neurollm.stats.evidence import bayes_factor, equivalence
from neurollm.stats.transforms import TRANSFORMS
from neurollm.validation import listed, several

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ROITest:
    """What a test of a region found.

    Attributes
    ----------
    roi : ROI
    score : ContrastResult
        Of the region's score: one pseudo-feature, in mean standard deviations of its features.
    members : ContrastResult
        Of every feature of the region, corrected within the region: held-out effects with intervals.
    n_true : int
        Lower bound of the number of features that truly carry the contrast (confidence 95 %).
    bounds : (float, float) or None
        Smallest effects of interest, in g.
    p_equivalence : float or None
        Of two one-sided t tests that g lies inside `bounds`; only for declared regions.
    bayes_factor : float or None
        JZS BF₁₀ (Cauchy prior of scale 0.707); only for declared regions, and paired or two-group comparisons.
    """

    roi: ROI
    score: ContrastResult
    members: ContrastResult
    n_true: int
    bounds: tuple[float, float] | None = None
    p_equivalence: float | None = None
    bayes_factor: float | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row per feature, in the order of the region: sign and held-out effects."""
        frame = self.members.to_frame(sort=False)
        frame.insert(1, "sign", self.roi.signs)
        return frame

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        score = self.score
        p = score.p_fwer[0] if score.exchange.n_perm else score.p[0]
        size, low, high = score.effect_size[0], score.effect_size_low[0], score.effect_size_high[0]
        label = "partial η²" if score.is_f else "g"
        extra = ""
        if self.bayes_factor is not None:
            extra += f", BF10 = {self.bayes_factor:.3g}"
        if self.p_equivalence is not None:
            extra += f", equivalence within g = {self.bounds[0]:g} … {self.bounds[1]:g}: p = {self.p_equivalence:.3g}"
        return (
            f"{score.name} in ROI {self.roi.name} ({int(self.members.valid.sum())} of {len(self.roi.feature)} features "
            f"vary over {score.n_items} {'' if self.roi.is_declared else 'held-out '}{several(score.exchange.unit)}): "
            f"{'differs' if p <= alpha else 'no difference shown'}, {label} = {size:.2f} [{low:.2f}, {high:.2f}], "
            f"p = {p:.3g} ({score.alternative}){extra}; at least {self.n_true} of the features carry it."
        )


def test_roi(
    roi: ROI,
    X: Any,
    obs: pd.DataFrame | None,
    design: Design,
    contrast: Any,
    *,
    features: Any = None,
    bounds: tuple[float, float] | None = None,
    **options: Any,
) -> ROITest:
    """Test a region and its features on trials that share no item and no text with its selection.

    Parameters
    ----------
    roi : ROI
    X : array or AnnData, shape (n_trials, V)
        All features, or at least those of the region.
    obs : DataFrame
        Trial table with a column ``text`` (not needed for a declared region); None with an AnnData.
    design : Design
    contrast : str, mapping, sequence or Contrast
        May be another one than that of the selection.
    features : sequence, optional
        Ids of the columns of X; default 0 … V−1.
    bounds : (float, float), optional
        For declared regions: smallest effects of interest in g, such as ``(-0.3, 0.3)``, for a test of equivalence.
    **options
        Of `FeatureGLM`: ``alternative``, ``n_perm``, ``random_state`` …

    Returns
    -------
    ROITest

    Raises
    ------
    DataMismatch
        See `check_disjoint`, which is always called; or X lacks a feature of the region.
    InvalidInput
        `bounds` for a region that was selected, or nothing in the region varies.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> obs = pd.DataFrame({"outcome": ["won", "lost"] * 12, "item": np.repeat(np.arange(12), 2)})
    >>> X = np.random.default_rng(0).normal(size=(24, 30)) + np.outer(obs["outcome"] == "won", np.arange(30) < 3)
    >>> roi = ROI.declared("success", [0, 1, 2], "features labelled 'success'")
    >>> found = test_roi(roi, X, obs, CategoricalDesign("outcome"), "won - lost")
    >>> bool(found.score.p_fwer[0] < 0.05), found.bayes_factor > 3
    (True, True)
    """
    X, obs, features = read_trials(X, obs, features, "test_roi")
    check_disjoint(roi, obs, design.item)
    if bounds is not None and not roi.is_declared:
        raise InvalidInput(
            f"ROI '{roi.name}' was selected from data; equivalence bounds are for a region declared beforehand."
        )
    columns = by_columns(X)[:, _positions(roi, features)]
    glm = FeatureGLM(design, **options).fit(columns, obs, features=np.array(roi.feature))
    members = glm.compute_contrast(contrast)
    score = _score_result(roi, glm, members, (columns, obs), options)
    # Bounds over the region's own features: nothing outside was looked at.
    n_true = int(members.true_discoveries({roi.name: roi.feature})["n_true"].iloc[0])
    p, bf = _evidence(score, bounds) if roi.is_declared else (None, None)
    return ROITest(roi, score, members, n_true, bounds, p, bf)


test_roi.__test__ = False  # not a test of pytest


def score_of(values: np.ndarray, spread: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The region's score of every row: mean of signed values in units of their spread."""
    return values @ (signs / spread) / len(spread)


def spread_of(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each column over the item × cell means, without labels."""
    with np.errstate(invalid="ignore"):
        return values.std(axis=0)


def _score_result(roi: ROI, glm: FeatureGLM, members: ContrastResult, data: tuple, options: dict) -> ContrastResult:
    """The contrast of the region's score."""
    valid, (columns, obs) = members.valid, data
    if not valid.any():
        raise InvalidInput(f"ROI '{roi.name}': none of its {len(valid)} features varies in these trials.")
    values = dense(columns)[:, valid]
    transform = TRANSFORMS[glm.scale]
    spread = spread_of(dense(glm.table_.values)[:, valid])
    score = score_of(values if transform is None else transform(values), spread, np.array(roi.signs)[valid])
    options = {**options, "scale": "rank" if glm.scale == "rank" else "raw", "min_active_items": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the features' contrast has said the same about the same trials
        fitted = FeatureGLM(glm.design, **options).fit(score[:, None], obs, features=[roi.name])
        return fitted.compute_contrast(members.contrast)


def _positions(roi: ROI, features: np.ndarray) -> np.ndarray:
    where = {feature: position for position, feature in enumerate(features.tolist())}
    missing = [feature for feature in roi.feature if feature not in where]
    if missing:
        raise DataMismatch(
            f"ROI '{roi.name}': {len(missing)} of its {len(roi.feature)} features are not among the {len(where)} of "
            f"these trials ({listed(missing[:3])}); use trials of the dictionary from which it comes."
        )
    return np.array([where[feature] for feature in roi.feature])


def _evidence(score: ContrastResult, bounds: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """p of equivalence and Bayes factor, where the test is a paired or two-group t test; else None."""
    n, unit, df = score.n_items, score.unit, float(score.df[0])
    paired = score.exchange.kind == "sign_flip" and df == n - 1
    groups = score.effect_size_kind == "hedges_g" and np.count_nonzero(score.contrast.matrix) == 2
    if groups and score.stat_kind != "t":
        df = n - 2.0  # of the pooled t test, to which g belongs whatever statistic is shown
    if score.is_f or not (paired or (groups and df == n - 2)):
        if bounds is not None:
            raise InvalidInput(
                f"contrast '{score.name}': equivalence is tested for paired and two-group comparisons without "
                "covariates."
            )
        return None, None
    t = score.effect_size / (small_sample_factor(df) * unit)
    # Two groups: unit² = n/(n1 n2), so n1 = n/2 + √(n²/4 − n/unit²).
    n1 = n if paired else round(n / 2 + np.sqrt(max(n * n / 4 - n / unit**2, 0)))
    factor = bayes_factor(t, n1, None if paired else n - n1)
    return None if bounds is None else float(equivalence(t, df, unit, bounds)[0]), float(factor[0])
