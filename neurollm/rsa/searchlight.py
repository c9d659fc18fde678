"""A searchlight over directions: RSA of every feature together with those that point the same way.

The neighbourhood of a feature is itself and the `k` features whose decoder directions have the largest cosine with its
own. No trial is looked at to find it, so it selects nothing. Its RDM is the sum of its features' RDMs; maps of
neighbourhoods that overlap are smooth, and the family-wise p of the largest z needs no assumption about that.

A neighbourhood that follows the model may owe it to a single member: a map is about regions, not about their centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator

from neurollm.designs import Design
from neurollm.designs.table import trials_digest
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.progress import Progress
from neurollm.rsa.models import ModelRDM
from neurollm.rsa.rows import ModelRows, check_whole, drawn, read_trials
from neurollm.stats import adjust
from neurollm.stats.arrays import is_torch
from neurollm.stats.rdms.greedy import region_ceiling
from neurollm.stats.rdms.model import centred_kernel
from neurollm.stats.rdms.neighbourhoods import NeighbourhoodScores, neighbourhood_null, neighbourhoods
from neurollm.stats.rdms.nulls import Null
from neurollm.validation import several, shown

if TYPE_CHECKING:
    import pandas as pd

ALTERNATIVES = ("two-sided", "greater", "less")


@dataclass(frozen=True, eq=False)
class SearchlightMap:
    """RSA of every neighbourhood; NaN where there is none.

    Attributes
    ----------
    model, description : str
    feature : ndarray, shape (V,)
        Ids of the centres.
    r : ndarray, shape (V,)
        Positive: the neighbourhood's distances are larger where the model says so.
    z : ndarray, shape (V,)
        In standard deviations of the permutation distribution.
    p, p_fwer, q : ndarray, shape (V,)
        Of the neighbourhood, corrected for all by the largest z, and false discovery rate.
    n_members : ndarray of int, shape (V,)
        Features in the neighbourhood, its centre included.
    valid : ndarray of bool, shape (V,)
        Tested: the centre varies, is active in enough rows and has a direction.
    ceiling : float
        Best possible score of a region of the largest number of members; NaN for "pearson", where no bound is known.
    members : csr_array, shape (V, V)
        1 for each member of the row's neighbourhood.
    comparison, alternative, fdr, scale : str
    standardise : bool
    n_rows, n_items, n_dropped, min_active : int
    n_perm : int
    exhaustive : bool
    smallest_p : float
        The least p that these arrangements can give.
    exchange : str
        What was exchanged.
    null_max : ndarray, shape (n_perm,)
    trials : str
        Digest of the items and texts that were analysed.
    item : str or None
        Column of the item.
    random_state : int
    """

    model: str
    description: str
    feature: np.ndarray
    r: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    q: np.ndarray
    n_members: np.ndarray
    valid: np.ndarray
    ceiling: float
    members: sparse.csr_array
    comparison: str
    alternative: str
    fdr: str
    scale: str
    standardise: bool
    n_rows: int
    n_items: int
    n_dropped: int
    min_active: int
    n_perm: int
    exhaustive: bool
    smallest_p: float
    exchange: str
    null_max: np.ndarray
    trials: str
    item: str | None
    random_state: int

    def to_frame(self) -> pd.DataFrame:
        """One row per centre."""
        import pandas as pd

        names = ("feature", "r", "z", "p", "p_fwer", "q", "n_members", "valid")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        tested = int(self.valid.sum())
        unit = several(self.item or "trial")
        left = f"; {self.n_dropped:,} {unit} without all conditions were left out" if self.n_dropped else ""
        if not tested:
            why = f"{self._why_nothing()}{left}"
            return f"{self.model}: none of the {len(self.feature):,} neighbourhoods could be tested: {why}."
        size = {"two-sided": np.abs(self.r), "greater": self.r, "less": -self.r}[self.alternative]
        best = int(np.nanargmax(np.where(self.valid, size, np.nan)))
        bound = "" if np.isnan(self.ceiling) else f" of at most {self.ceiling:.3f}"
        top = f"largest around feature {self.feature[best]}, r = {self.r[best]:.3f}{bound}"
        members = f"up to {int(self.n_members.max())} features each"
        if not self.n_perm:
            return f"{self.model}: {tested:,} neighbourhoods of {members} scored without a test ({top}{left})."
        found = self.valid & (self.p_fwer <= alpha)
        covered = int((found.astype(float) @ self.members > 0).sum())
        n_against = int((self.r[found] < 0).sum())
        against = f" and {n_against:,} run against it" if n_against else ""
        return (
            f"{self.model}: {int(found.sum()) - n_against:,} of {tested:,} neighbourhoods ({members}) follow the model"
            f"{against} at family-wise p ≤ {alpha:g} ({covered:,} features are in one of them; {self.alternative}, "
            f"{self.comparison}, {self.n_perm:,} {'possible' if self.exhaustive else 'random'} shufflings of "
            f"{self.n_items} {unit}, smallest p possible {self.smallest_p:.2g}; {top}{left})."
        )

    def _why_nothing(self) -> str:
        if not len(self.feature):
            return "there are no features"
        if np.isfinite(self.r).any():
            return "no arrangement that was used changes a score"
        active = f" is active in at least {self.min_active} of {self.n_rows} rows," if self.min_active else ""
        return f"no feature varies,{active} and has a direction or neighbourhood"


class Searchlight(BaseEstimator):
    """Representational similarity analysis of neighbourhoods of decoder directions.

    Parameters
    ----------
    design : Design
    model : str or ModelRDM, default="categorical"
        Of all pairs; see `neurollm.rsa.models`.
    k : int, default=16
        Neighbours of every feature; 0 tests features alone.
    comparison : {"pearson", "whitened"}
        Correlation of squared-difference RDMs, or linear CKA.
    standardise : bool, default=True
        Give every feature the sum of squares 1 over the rows, so that the loudest does not stand for its neighbourhood.
    n_perm : int, default=1000
        Shufflings; if no more exist, all are used. 0: scores only.
    alternative : {"two-sided", "greater", "less"}
    random_state : int, default=0
    min_active : int, default=5
        Features active in fewer rows are neither centres nor neighbours (label-blind).
    scale : {"raw", "log1p", "binary"}
        Transform of every trial before averaging.
    fdr : {"bh", "by", "bky"}
    verbose : int, default=0

    Attributes
    ----------
    result_ : SearchlightMap

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"outcome": ["success", "failure"] * 12, "item": np.repeat(np.arange(12), 2)})
    >>> X, directions = rng.normal(size=(24, 60)), rng.normal(size=(60, 8))
    >>> directions[:6] += 9  # six features that point the same way
    >>> X[::2, :6] += 2
    >>> light = Searchlight(CategoricalDesign("outcome"), k=5, n_perm=300).fit(X, obs, directions)
    >>> frame = light.to_frame()
    >>> sorted(frame["r"].nlargest(6).index), bool(frame["p_fwer"][:6].max() <= 0.05)
    ([0, 1, 2, 3, 4, 5], True)
    """

    def __init__(
        self,
        design: Design,
        model: str | ModelRDM = "categorical",
        k: int = 16,
        comparison: str = "pearson",
        standardise: bool = True,
        n_perm: int = 1000,
        alternative: str = "two-sided",
        random_state: int = 0,
        min_active: int = 5,
        scale: str = "raw",
        fdr: str = "bh",
        verbose: int = 0,
    ) -> None:
        self.design = design
        self.model = model
        self.k = k
        self.comparison = comparison
        self.standardise = standardise
        self.n_perm = n_perm
        self.alternative = alternative
        self.random_state = random_state
        self.min_active = min_active
        self.scale = scale
        self.fdr = fdr
        self.verbose = verbose

    def fit(self, X: Any, obs: pd.DataFrame | None = None, directions: Any = None, features: Any = None) -> Searchlight:
        """Score and test all neighbourhoods.

        Parameters
        ----------
        X : array or AnnData, shape (n_trials, V)
            numpy, memory map, scipy.sparse, torch, or trials as AnnData.
        obs : DataFrame or None
            Trial table, one row per row of X; None with an AnnData.
        directions : ndarray or torch.Tensor, shape (V, d), or scipy.sparse array, shape (V, V)
            Decoder directions, or neighbourhoods of your own: features stored in a row are its members.
        features : sequence, optional
            Feature ids; default 0 … V−1.

        Returns
        -------
        self

        Raises
        ------
        InvalidInput
            A parameter or model that does not exist or leaves pairs out; nothing can be exchanged.
        DataMismatch
            Rows, ids or directions do not go with the trials.
        """
        self._check_parameters()
        X, obs, features = read_trials(X, obs, features, "Searchlight")
        directions = _read_directions(directions, X.shape[1])
        rows = ModelRows.of(self.design, self.model, X, obs, self.scale)
        tested = np.flatnonzero(rows.n_active >= self.min_active)
        members = self._members(directions, tested)
        scores = NeighbourhoodScores(rows.values[:, tested], rows.matrix, members, self.comparison, self.standardise)
        if not sparse.issparse(directions) and not scores.space.valid.all():
            # Features that do not vary are nobody's neighbours: look again among the others.
            tested = tested[scores.space.valid]
            members = self._members(directions, tested)
            values = rows.values[:, tested]
            scores = NeighbourhoodScores(values, rows.matrix, members, self.comparison, self.standardise)
        observed = np.where(scores.space.valid, scores.observed(), np.nan)
        self.result_ = self._result(rows, scores, (features, tested), observed, obs)
        self.n_features_in_ = X.shape[1]
        return self

    def to_frame(self) -> pd.DataFrame:
        """One row per centre: ``feature, r, z, p, p_fwer, q, n_members, valid``."""
        if not hasattr(self, "result_"):
            raise InvalidInput("Searchlight: call fit first.")
        return self.result_.to_frame()

    def _result(
        self,
        rows: ModelRows,
        scores: NeighbourhoodScores,
        place: tuple[np.ndarray, np.ndarray],
        observed: np.ndarray,
        obs: pd.DataFrame,
    ) -> SearchlightMap:
        features, tested = place
        null = self._null(rows, scores, observed)
        found = {"r": observed} | {name: np.full(observed.size, np.nan) for name in ("z", "p", "p_fwer", "q")}
        if null is not None:
            found |= {"z": null.z, "p": null.p, "p_fwer": null.p_fwer, "q": adjust(null.p, self.fdr)}
        wide = {name: np.full(len(features), np.nan) for name in found}
        for name, array in found.items():
            wide[name][tested] = array
        valid, sizes = np.zeros(len(features), bool), np.zeros(len(features), int)
        valid[tested] = np.isfinite(observed if null is None else null.z)
        sizes[tested] = np.where(np.isfinite(observed), scores.sizes, 0)
        ceiling = float("nan")
        if self.comparison == "whitened" and sizes.any():
            ceiling = float(region_ceiling(np.linalg.eigvalsh(centred_kernel(rows.matrix)), int(sizes.max()))[-1])
        return SearchlightMap(
            model=rows.model.name,
            description=rows.model.description,
            feature=features,
            **wide,
            n_members=sizes,
            valid=valid,
            ceiling=ceiling,
            members=_widened(scores.members, tested, len(features)),
            comparison=self.comparison,
            alternative=self.alternative,
            fdr=self.fdr,
            scale=self.scale,
            standardise=bool(self.standardise),
            n_rows=len(rows.matrix),
            n_items=rows.exchange.n_items,
            n_dropped=rows.exchange.n_dropped,
            min_active=int(self.min_active),
            n_perm=0 if null is None else null.n_perm,
            exhaustive=bool(null is not None and null.exhaustive),
            smallest_p=float("nan") if null is None else null.smallest_p,
            exchange=rows.exchange.sentence,
            null_max=np.empty(0) if null is None else null.null_max,
            trials=trials_digest(obs, self.design.item),
            item=self.design.item,
            random_state=int(self.random_state),
        )

    def _null(self, rows: ModelRows, scores: NeighbourhoodScores, observed: np.ndarray) -> Null | None:
        if not self.n_perm:
            return None
        draws = drawn(rows.exchange.shuffling, self.n_perm, self.random_state, stacklevel=4)
        moments = scores.moments() if rows.exchange.is_free else None
        with Progress(
            "searchlight", len(draws) * (2 if moments is None else 1), "shufflings", self.verbose
        ) as progress:
            return neighbourhood_null(
                scores,
                draws,
                observed=observed,
                alternative=self.alternative,
                moments=moments,
                on_block=progress.advance,
            )

    def _members(self, directions: Any, tested: np.ndarray) -> sparse.csr_array:
        if sparse.issparse(directions):
            return sparse.csr_array(directions)[tested][:, tested]
        return neighbourhoods(directions[tested], self.k)

    def _check_parameters(self) -> None:
        if self.alternative not in ALTERNATIVES:
            raise InvalidInput(
                f"Searchlight: alternative is {shown(self.alternative)}; it must be 'two-sided', 'greater' or 'less'."
            )
        for name in ("k", "n_perm", "min_active", "random_state"):
            check_whole("Searchlight", name, getattr(self, name), 0)


def _read_directions(directions: Any, count: int) -> Any:
    """Directions as ndarray, or neighbourhoods as they are, if they are of these features."""
    is_graph = sparse.issparse(directions)
    if is_torch(directions):
        directions = directions.detach().cpu()
        directions = (directions if directions.element_size() == 8 else directions.float()).numpy()
    elif not is_graph:
        try:
            directions = np.asarray(directions)
        except ValueError:
            raise InvalidInput("Searchlight: directions must be a table of numbers, one row per feature.") from None
    shape = directions.shape
    if len(shape) != 2 or shape[0] != count or (is_graph and shape[1] != count):
        wanted = f"({count}, {count})" if is_graph else f"({count}, d)"
        raise DataMismatch(f"Searchlight: directions have shape {tuple(shape)}; expected {wanted}.")
    return directions


def _widened(members: sparse.csr_array, tested: np.ndarray, count: int) -> sparse.csr_array:
    """Neighbourhoods among the tested features as rows and columns of all."""
    ends = members.tocoo()
    return sparse.csr_array((ends.data, (tested[ends.row], tested[ends.col])), shape=(count, count))
