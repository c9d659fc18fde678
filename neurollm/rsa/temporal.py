"""Time-resolved RSA: when, counted in tokens from an event, do features or a region follow a model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from neurollm.designs import Design
from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.rsa.aligned import AlignedRows, aligned_rows
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import SCALES, check_whole
from neurollm.rsa.temporal_result import FEWEST_ROWS, TimeResolvedResult
from neurollm.rsa.windows import Windows
from neurollm.stats.arrays import dense
from neurollm.stats.rdms import DISTANCES, feature_scores
from neurollm.stats.rdms.model import pair_model
from neurollm.stats.rdms.nulls import permutation_null
from neurollm.stats.rdms.pairs import rdm_scores
from neurollm.stats.rdms.windows import COMPARISONS, pair_distances, patterns, window_scores
from neurollm.stats.rdms.windows import DISTANCES as PATTERN_DISTANCES
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PER = ("position", "window")
ALTERNATIVES = ("two-sided", "greater", "less")

Score = Callable[[np.ndarray, slice], np.ndarray]


class TimeResolvedRSA(BaseEstimator):
    """RSA at every position of trials that are lined up at an event, corrected for all positions and features together.

    Every arrangement of the model is scored at all positions, so their dependence is kept in the distribution of the
    largest z. Positions that a trial does not have are missing, never zeros (`Windows`), and items are exchanged only
    with items that exist at the same positions.

    Parameters
    ----------
    design : Design
    model : str or ModelRDM, default="categorical"
        See `neurollm.rsa.models`.
    align : {"start", "end", "target"}
    span : (int, int), default=(0, 4)
        First and last position, in tokens from the event.
    per : {"position", "window"}
        Every position by itself, or the pattern over all of them as one (then only items that have every position).
    region : sequence of feature ids or ROI, optional
        One RDM of these features together instead of one for each feature. A region that was selected is refused on
        the items and texts of its selection.
    comparison : str, default="pearson"
        For features per position as in `FeatureRSA`; for windows and regions "pearson", "cosine" or "whitened".
    distance : {"squared", "absolute", "correlation"}
        "absolute" for features per position; "correlation" over the positions of a window or the features of a region.
    n_perm : int, default=1000
    alternative : {"two-sided", "greater", "less"}
    random_state : int, default=0
    min_active : int, default=5
        Features active in fewer rows of a position (of every position of a window) are not tested there (label-blind).
    scale : {"raw", "log1p", "binary"}
        Transform of every token before averaging.
    n_jobs : int, optional
    verbose : int, default=0

    Attributes
    ----------
    result_ : TimeResolvedResult
    windows_ : Windows

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from neurollm.designs import CategoricalDesign
    >>> rng = np.random.default_rng(0)
    >>> trials = [(f"s{i}", f"i{i // 2}", "ab"[i % 2], token) for i in range(24) for token in range(4 + i // 8)]
    >>> obs = pd.DataFrame(trials, columns=["stimulus_id", "item", "outcome", "position"])
    >>> X = rng.normal(size=(len(obs), 3))
    >>> X[(obs["position"] == 2) & (obs["outcome"] == "a"), 1] += 4
    >>> rsa = TimeResolvedRSA(CategoricalDesign("outcome"), span=(0, 3), n_perm=200)
    >>> peak = rsa.fit(AnnData(X, obs=obs.set_index(obs.index.astype(str)))).result_.peak
    >>> int(peak.position), int(peak.feature), peak.p_fwer < 0.05
    (2, 1, True)
    """

    def __init__(
        self,
        design: Design,
        model: str | ModelRDM = "categorical",
        align: str = "start",
        span: tuple[int, int] = (0, 4),
        per: str = "position",
        region: Sequence[Any] | None = None,
        comparison: str = "pearson",
        distance: str = "squared",
        n_perm: int = 1000,
        alternative: str = "two-sided",
        random_state: int = 0,
        min_active: int = 5,
        scale: str = "raw",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.design = design
        self.model = model
        self.align = align
        self.span = span
        self.per = per
        self.region = region
        self.comparison = comparison
        self.distance = distance
        self.n_perm = n_perm
        self.alternative = alternative
        self.random_state = random_state
        self.min_active = min_active
        self.scale = scale
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(
        self, trials: AnnData | Windows, y: Any = None, anchors: Mapping[str, int] | None = None
    ) -> TimeResolvedRSA:
        """Score and test every position.

        Parameters
        ----------
        trials : AnnData or Windows
            Trials with one row per token (``FeatureMasker(pool="none")``), or windows made of them.
        y : None
        anchors : mapping from stimulus_id to int, optional
            Token position of every target, for ``align="target"`` (see `target_anchors`); ids are compared as text.

        Returns
        -------
        self

        Raises
        ------
        InvalidInput
            A parameter, model or column that does not exist or does not fit; nothing can be exchanged.
        DataMismatch
            The region was selected on items or texts of these trials.
        """
        self._check_parameters()
        windows = self._windows(trials, anchors)
        whole = self.per == "window"
        rows = aligned_rows(self.design, windows, self.model, whole)
        columns = [np.arange(len(windows.positions))] if whole else np.arange(len(windows.positions))[:, None]
        parts = [_Part.of(self, windows, rows, np.asarray(group)) for group in columns]
        self.windows_ = windows
        self.result_ = self._result(windows, rows, parts)
        return self

    def _windows(self, trials: AnnData | Windows, anchors: Mapping[str, int] | None) -> Windows:
        """The windows, of the region's features if there is one."""
        if isinstance(trials, Windows):
            windows = trials
        elif hasattr(trials, "obs") and hasattr(trials, "var"):
            if isinstance(anchors, Mapping):
                anchors = {str(stimulus): position for stimulus, position in anchors.items()}
            windows = Windows.from_trials(trials, self.align, self.span, anchors)
        else:
            raise InvalidInput(
                "TimeResolvedRSA: trials must be an AnnData with one row per token, from FeatureMasker(pool='none'), "
                f"or Windows made of it; found {type(trials).__name__}."
            )
        if self.region is None:
            return windows
        if hasattr(self.region, "check_disjoint"):  # an ROI, which knows the contents it was selected on
            self.region.check_disjoint(windows.obs, self.design.item)
        return windows.take(getattr(self.region, "feature", self.region))

    def to_frame(self) -> pd.DataFrame:
        """The table of `result_`."""
        if not hasattr(self, "result_"):
            raise InvalidInput("TimeResolvedRSA: call fit first.")
        return self.result_.to_frame()

    def _result(self, windows: Windows, rows: AlignedRows, parts: list[_Part]) -> TimeResolvedResult:
        draws = rows.shuffling.draw(self.n_perm, self.random_state)
        starts = np.cumsum([0, *(part.tested.size for part in parts)])
        total = int(starts[-1])

        def score(index: np.ndarray, columns: slice) -> np.ndarray:
            found = [np.empty((len(index), 0))]
            for start, part in zip(starts, parts, strict=False):
                first, last = (int(np.clip(end - start, 0, part.tested.size)) for end in (columns.start, columns.stop))
                if last > first:
                    found.append(part.score(part.local[index[:, part.rows]], slice(first, last)))
            return np.concatenate(found, axis=1)

        observed = np.concatenate([part.r[part.tested] for part in parts])
        with Progress("time-resolved RSA", total * len(draws), "scores", self.verbose) as progress:
            null = permutation_null(
                score,
                total,
                draws,
                observed=observed,
                alternative=self.alternative,
                n_jobs=self.n_jobs or 1,
                on_block=progress.advance,
            )
        grids = {}
        for name in ("z", "p", "p_fwer", "mean", "sd"):
            grids[name] = np.full((len(parts), parts[0].r.size), np.nan)
            for number, part in enumerate(parts):
                grids[name][number, part.tested] = getattr(null, name)[starts[number] : starts[number + 1]]
        whole = np.array([f"{windows.positions[0]}:{windows.positions[-1]}"])
        return TimeResolvedResult(
            positions=whole if self.per == "window" else windows.positions,
            feature=windows.feature if self.region is None else np.array(["region"]),
            r=np.stack([part.r for part in parts]),
            **grids,
            n_trials=np.array([rows.n_trials(part.rows) for part in parts]),
            n_rows=np.array([part.rows.size for part in parts]),
            null_max=null.null_max,
            model=rows.model.name,
            comparison=self.comparison,
            distance=self.distance,
            alternative=self.alternative,
            align=windows.align,
            n_items=rows.n_items,
            n_dropped=rows.n_dropped,
            n_dropped_trials=len(windows.dropped),
            min_active=int(self.min_active),
            n_perm=null.n_perm,
            random_state=int(self.random_state),
            exhaustive=null.exhaustive,
            exchange=rows.sentence,
        )

    def _check_parameters(self) -> None:
        by_feature = self.per == "position" and self.region is None
        known = {"per": PER, "alternative": ALTERNATIVES, "scale": SCALES}
        if not by_feature:
            known |= {"comparison": COMPARISONS, "distance": PATTERN_DISTANCES}
        elif self.distance == "correlation":
            raise InvalidInput(
                "TimeResolvedRSA: there is no correlation over a single position of a single feature; use "
                "distance='squared', per='window' or a region."
            )
        else:
            known |= {"distance": DISTANCES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise InvalidInput(
                    f"TimeResolvedRSA: {name} is {shown(getattr(self, name))}; here it is one of {listed(values)}."
                )
        for name, least in (("n_perm", 1), ("min_active", 0), ("random_state", 0)):
            check_whole("TimeResolvedRSA", name, getattr(self, name), least)


class _Part:
    """One position (or window): its rows, observed scores, and the scores of what is tested under rearrangements.

    Attributes
    ----------
    rows : ndarray of int
        Rows that exist here; `local` is their own numbering.
    r : ndarray, shape (V,)
    tested : ndarray of int
    score : callable
        See `permutation_null`; in the local numbering.
    """

    def __init__(self, rows: np.ndarray, n: int, r: np.ndarray, tested: np.ndarray, score: Score) -> None:
        self.rows, self.r, self.tested, self.score = rows, r, tested, score
        self.local = np.full(n, -1)
        self.local[rows] = np.arange(rows.size)

    @classmethod
    def of(cls, rsa: TimeResolvedRSA, windows: Windows, rows: AlignedRows, columns: np.ndarray) -> _Part:
        n = len(rows.present)
        here = np.flatnonzero(rows.present[:, columns].all(axis=1))
        size = windows.feature.size if rsa.region is None else 1
        D = rows.model.matrix[np.ix_(here, here)]
        if here.size < FEWEST_ROWS or not _varies(D):
            return cls(here, n, np.full(size, np.nan), np.empty(0, int), lambda index, which: np.empty((len(index), 0)))
        values, active = zip(*[rows.values(windows, int(column), here, rsa.scale) for column in columns], strict=True)
        active = np.max(active, axis=0)
        if rsa.region is not None:
            rdm = _region_rdm(values, rsa.distance)[None]
            r = rdm_scores(rdm, D, rsa.comparison)
            tested = np.flatnonzero(np.isfinite(r))
            return cls(here, n, r, tested, lambda index, which: rdm_scores(rdm, D, rsa.comparison, index))
        if rsa.per == "window":
            names = {"comparison": rsa.comparison, "distance": rsa.distance}
            r = window_scores(values, D, **names)
            tested = np.flatnonzero(np.isfinite(r) & (active >= rsa.min_active))
            kept = [part[:, tested] for part in values]
            return cls(
                here, n, r, tested, lambda index, at: window_scores([x[:, at] for x in kept], D, index=index, **names)
            )
        r = feature_scores(values[0], D, rsa.comparison, rsa.distance).observed()
        tested = np.flatnonzero(np.isfinite(r) & (active >= rsa.min_active))
        return cls(here, n, r, tested, feature_scores(values[0][:, tested], D, rsa.comparison, rsa.distance))


def _varies(D: np.ndarray) -> bool:
    """Whether a model says different things of the pairs that are here."""
    upper = D[np.triu_indices(len(D), 1)]
    return np.isfinite(upper).sum() > 2 and not pair_model(D).is_constant


def _region_rdm(values: Sequence[Any], distance: str) -> np.ndarray:
    """Distances of rows over all features of a region (and positions of a window), shape (n, n)."""
    Z = np.concatenate([dense(part).T for part in values])[:, :, None]
    Z, w, defined, finite = patterns(Z, np.ones(len(Z)), distance)
    first, second = np.triu_indices(Z.shape[1], 1)
    rdm = np.zeros((Z.shape[1],) * 2)
    rdm[first, second] = rdm[second, first] = np.where(finite, pair_distances(Z, w, defined)[:, 0], np.nan)
    return rdm
