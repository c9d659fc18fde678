"""The estimator: every feature against several model RDMs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from neurollm.designs import CategoricalDesign, Design, ItemTable
from neurollm.designs.table import trials_digest
from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.rsa.exchange import Exchange, exchange, smallest_p_of_active
from neurollm.rsa.models import ModelRDM, Rows, model_rdms
from neurollm.rsa.result import RSAMap, RSAResult
from neurollm.rsa.rows import SCALES, check_whole, drawn, entering_rows, read_trials, repeated_rows
from neurollm.stats import adjust
from neurollm.stats.rdms.ceilings import ceiling
from neurollm.stats.rdms.crossvalidated import CrossvalidatedScores
from neurollm.stats.rdms.layers import attribution, layer_distances, layer_score
from neurollm.stats.rdms.model import pair_model
from neurollm.stats.rdms.nulls import FLAT, Null, permutation_null
from neurollm.stats.rdms.scores import feature_scores
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd

CROSSVALIDATED = "crossvalidated"
ALTERNATIVES = ("two-sided", "greater", "less")


class FeatureRSA(BaseEstimator):
    """Representational similarity analysis of all features at once.

    Every feature's distances between item × condition means are compared with model RDMs, without forming an RDM per
    feature; p values come from rearranging the models as the design allows.

    Parameters
    ----------
    design : Design, optional
        Default: a categorical design of the labels given to `fit`, in which every trial is an item of its own.
    models : sequence of str or ModelRDM, default=("categorical",)
        See `neurollm.rsa.models`.
    comparison : str, default="pearson"
        "pearson", "cosine", "whitened" (linear CKA), "whitened_pearson", "half_rank" (the model's distances are ranked,
        the feature's are not), "spearman", "rho_a" or "tau_a".
    distance : {"squared", "absolute", "crossvalidated"}
        Of a feature between two rows. Absolute distances are less at the mercy of a few large activations.
        Crossvalidated ones (crossnobis) multiply differences of different templates of the design: 0 on average where
        rows differ by their wording alone.
    nuisance : sequence of str or ModelRDM
        Models held constant (partial RSA; approximate, see `neurollm.stats.rdms.squared`).
    n_perm : int, default=1000
        Shufflings; if no more exist, all are used. 0: scores only.
    alternative : {"two-sided", "greater", "less"}
    random_state : int, default=0
    min_active : int, default=5
        Features active in fewer rows are not tested (label-blind). A feature active in one row has the same score under
        every arrangement of a balanced model.
    scale : {"raw", "log1p", "binary"}
        Transform of every trial before averaging; declare it before looking.
    fdr : {"bh", "by", "bky"}
    n_jobs : int, optional
        Threads over features; -1 for all cores. Results do not depend on it.
    verbose : int, default=0

    Attributes
    ----------
    result_ : RSAResult
    models_ : tuple of ModelRDM
        Over item × condition means.
    table_ : ItemTable
    design_ : Design
    feature_ : ndarray
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neurollm.designs import CategoricalDesign
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"outcome": ["success", "failure"] * 12, "item": np.repeat(np.arange(12), 2)})
    >>> X = rng.normal(size=(24, 50))
    >>> X[::2, 7] += 5
    >>> rsa = FeatureRSA(CategoricalDesign("outcome"), models=("categorical", "discriminative"), n_perm=500).fit(X, obs)
    >>> frame = rsa.to_frame()
    >>> frame.loc[frame["p_fwer"] <= 0.05, ["feature", "model"]].values.tolist()
    [[7, 'categorical'], [7, 'discriminative']]
    """

    def __init__(
        self,
        design: Design | None = None,
        models: Sequence[str | ModelRDM] = ("categorical",),
        comparison: str = "pearson",
        distance: str = "squared",
        nuisance: Sequence[str | ModelRDM] = (),
        n_perm: int = 1000,
        alternative: str = "two-sided",
        random_state: int = 0,
        min_active: int = 5,
        scale: str = "raw",
        fdr: str = "bh",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.design = design
        self.models = models
        self.comparison = comparison
        self.distance = distance
        self.nuisance = nuisance
        self.n_perm = n_perm
        self.alternative = alternative
        self.random_state = random_state
        self.min_active = min_active
        self.scale = scale
        self.fdr = fdr
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, features: Any = None) -> FeatureRSA:
        """Score and test all features.

        Parameters
        ----------
        X : array or AnnData, shape (n_trials, V)
            numpy, memory map, scipy.sparse, torch, or trials as AnnData (then the rest is read from it).
        y : DataFrame or sequence of labels
            Trial table, one row per row of X; without a design, the label of every trial.
        features : sequence, optional
            Feature ids; default 0 … V−1.

        Returns
        -------
        self

        Raises
        ------
        InvalidInput
            A parameter, model or column that does not exist or does not fit; nothing can be exchanged.
        DataMismatch
            Rows, ids or a model RDM do not go with the trials.
        """
        self._check_parameters()
        self.design_, y = _design_and_table(self.design, X, y)
        X, obs, self.feature_ = read_trials(X, y, features, "FeatureRSA")
        self.table_ = self.design_.table(obs, X, self.scale, self.n_jobs or 1)
        self.n_features_in_ = X.shape[1]
        rows = Rows.of(self.design_, obs, self.table_)
        self.models_ = tuple(model_rdms(_list(self.models), rows))
        nuisance = tuple(model_rdms(_list(self.nuisance), rows)) if _list(self.nuisance) else ()
        _refuse(self.models_, nuisance)
        exchanges = [exchange(self.design_, self.table_, model) for model in self.models_]
        maps, read = [], _EnteringRows(self.table_, self.n_jobs or 1)
        with Progress("RSA", len(self.models_) * X.shape[1] * max(self.n_perm, 1), "scores", self.verbose) as progress:
            for model, how in zip(self.models_, exchanges, strict=True):
                maps.append(self._map((model, how, nuisance), read, (X, obs), progress))
        self.result_ = RSAResult(
            maps=tuple(maps),
            feature=self.feature_,
            comparison=self.comparison,
            distance=self.distance,
            alternative=self.alternative,
            fdr=self.fdr,
            scale=self.scale,
            nuisance=tuple(model.name for model in nuisance),
            min_active=int(self.min_active),
            random_state=int(self.random_state),
            trials=trials_digest(obs, self.design_.item),
            item=self.design_.item,
        )
        return self

    def to_frame(self) -> pd.DataFrame:
        """One row per feature and model: ``feature, model, r, r_over_ceiling, z, p, p_fwer, q, n_active, valid``."""
        return self._fitted().to_frame()

    def attribution(self, model: str | None = None) -> pd.DataFrame:
        """How the score of the RDM of all features together divides into features, exactly.

        Parameters
        ----------
        model : str, optional
            Default: the first.

        Returns
        -------
        DataFrame
            ``feature, share``: `share` adds up to the layer's score (`RSAMap.layer_r`).

        Raises
        ------
        InvalidInput
            The comparison has no such division (ranks), or nuisance models were held constant.
        """
        import pandas as pd

        self._fitted()
        if _list(self.nuisance) or self.distance != "squared":
            what = "nuisance models are held constant" if _list(self.nuisance) else f"distance is {self.distance!r}"
            raise InvalidInput(
                f"attribution: a layer's score divides into features for squared distances without nuisance; {what}."
            )
        names = [one.name for one in self.models_]
        chosen = self.models_[0 if model is None else names.index(self.result_[model].model)]
        how = exchange(self.design_, self.table_, chosen)
        values, _ = entering_rows(self.table_, how, self.n_jobs or 1)
        matrix = chosen.matrix[np.ix_(how.rows, how.rows)]
        return pd.DataFrame({"feature": self.feature_, "share": attribution(values, matrix, self.comparison)})

    def _map(self, asked: tuple, read: _EnteringRows, data: tuple, progress: Progress) -> RSAMap:
        model, how, nuisance = asked
        values, n_active = read(how)
        inside = np.ix_(how.rows, how.rows)
        matrix = model.matrix[inside]
        others = [one.matrix[inside] for one in nuisance]
        if self.distance == CROSSVALIDATED:
            repeats = repeated_rows(self.design_, data, how, self.table_, self.scale)
            scores: Any = CrossvalidatedScores(repeats, matrix, self.comparison)
        else:
            scores = feature_scores(values, matrix, self.comparison, self.distance, others)
        r = scores.observed(self.n_jobs or 1)
        tested = np.flatnonzero(np.isfinite(r) & (n_active >= self.min_active))
        null = self._null(scores.take(tested), how, r[tested], progress, len(r))
        columns = {name: np.full(len(r), np.nan) for name in ("z", "p", "p_fwer", "q")}
        if null is not None:
            found = {"z": null.z, "p": null.p, "p_fwer": null.p_fwer, "q": adjust(null.p, self.fdr)}
            for name, array in found.items():
                columns[name][tested] = array
        valid = np.zeros(len(r), bool)
        valid[tested] = True if null is None else np.isfinite(null.z)
        crossvalidated = self.distance == CROSSVALIDATED  # with perfect repeats the distances are squared ones
        distance = "squared" if crossvalidated else self.distance
        highest = float("nan") if others else ceiling(matrix, self.comparison, distance)
        no_layer = bool(others) or crossvalidated
        smallest = float("nan") if null is None or not null.n_perm else null.smallest_p
        return RSAMap(
            model=model.name,
            description=model.description,
            r=r,
            r_over_ceiling=r / highest,
            **columns,
            n_active=n_active,
            valid=valid,
            ceiling=highest,
            layer_r=float("nan") if no_layer else layer_score(read.distances, matrix, self.comparison, self.distance),
            n_rows=len(how.rows),
            n_items=how.n_items,
            n_dropped=how.n_dropped,
            n_perm=0 if null is None else null.n_perm,
            exhaustive=bool(null is not None and null.exhaustive),
            smallest_p=smallest,
            smallest_p_active=np.maximum(
                0.0 if others else smallest_p_of_active(values, how), np.full(len(r), smallest)
            ),
            exchange=how.sentence,
            null_max=np.empty(0) if null is None else null.null_max,
        )

    def _null(self, scores: Any, how: Exchange, r: np.ndarray, progress: Progress, n_features: int) -> Null | None:
        """Permutation distribution of the tested features; without permutations z by closed form, or nothing."""
        moments = scores.moments() if how.is_free else None
        if not self.n_perm:
            progress.advance(n_features)
            if moments is None:
                return None
            mean, sd = moments
            blank = np.full(r.size, np.nan)
            return Null((r - mean) / np.where(sd > FLAT, sd, np.nan), blank, blank, np.empty(0), mean, sd, 0, False)
        draws = drawn(how.shuffling, self.n_perm, self.random_state, stacklevel=4)
        progress.skip(n_features * self.n_perm - r.size * len(draws))
        return permutation_null(
            scores,
            r.size,
            draws,
            observed=r,
            alternative=self.alternative,
            moments=moments,
            n_jobs=self.n_jobs or 1,
            on_block=progress.advance,
        )

    def _fitted(self) -> RSAResult:
        if not hasattr(self, "result_"):
            raise InvalidInput("FeatureRSA: call fit first.")
        return self.result_

    def _check_parameters(self) -> None:
        if self.alternative not in ALTERNATIVES:
            raise InvalidInput(f"FeatureRSA: alternative is {self.alternative!r}; it is one of {listed(ALTERNATIVES)}.")
        if self.scale not in SCALES:
            raise InvalidInput(f"FeatureRSA: scale is {self.scale!r}; it is one of {listed(SCALES)}.")
        for name in ("n_perm", "min_active", "random_state"):
            check_whole("FeatureRSA", name, getattr(self, name), 0)
        if self.distance == CROSSVALIDATED:
            if self.comparison not in ("cosine", "pearson", "whitened") or _list(self.nuisance):
                raise InvalidInput(
                    "FeatureRSA: crossvalidated distances are compared by 'cosine', 'pearson' or 'whitened', without "
                    f"nuisance models; found comparison {self.comparison!r} and nuisance {shown(self.nuisance)}."
                )
            return
        # Names of comparison and distance are checked before the data are read.
        feature_scores(np.zeros((3, 0)), np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]), self.comparison, self.distance)


class _EnteringRows:
    """The rows that enter a test, and the distances of all features together; read once for models that share them."""

    def __init__(self, table: ItemTable, n_jobs: int) -> None:
        self._table, self._n_jobs = table, n_jobs
        self._how: Exchange | None = None

    def __call__(self, how: Exchange) -> tuple[Any, np.ndarray]:
        last = self._how
        same = last is not None and last.weights is how.weights is None and np.array_equal(last.rows, how.rows)
        if not same:
            self._rows = entering_rows(self._table, how, self._n_jobs)
            self._distances: np.ndarray | None = None
        self._how = how
        return self._rows

    @property
    def distances(self) -> np.ndarray:
        """Squared, of the rows read last."""
        if self._distances is None:
            self._distances = layer_distances(self._rows[0])
        return self._distances


def _list(models: Any) -> Any:
    """No models, one, or several as a sequence."""
    return () if models is None else (models,) if isinstance(models, (str, ModelRDM)) else models


def _refuse(models: tuple[ModelRDM, ...], nuisance: tuple[ModelRDM, ...]) -> None:
    """Refuse models that say nothing, and models that are held constant at once."""
    for model in models:
        if model.name == "item":
            raise InvalidInput("RSA: no exchange tests the model 'item'; it can be held constant: nuisance=('item',).")
        pair_model(model.matrix).refuse_constant(shown(model.name))
    both = sorted({model.name for model in models} & {model.name for model in nuisance})
    if both:
        raise InvalidInput(f"FeatureRSA: {listed(both)} is a model and held constant at once.")


def _design_and_table(design: Design | None, X: Any, y: Any) -> tuple[Design, Any]:
    """The design and the trial table, which plain labels make up for."""
    import pandas as pd

    if design is not None:
        return design, y
    if y is None or hasattr(y, "columns") or hasattr(X, "obs"):
        raise InvalidInput("FeatureRSA: a trial table needs a design, which says what is compared.")
    reason = "labels were given without items"
    return CategoricalDesign("label", item=None, item_reason=reason), pd.DataFrame({"label": list(y)})
