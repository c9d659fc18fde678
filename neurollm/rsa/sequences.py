"""RSA without a window: distances between token sequences of different length (`neurollm.stats.rdms.sequences`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.designs import Design
from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.rsa.exchange import exchange
from neurollm.rsa.models import ModelRDM, Rows
from neurollm.rsa.rows import check_whole, one_model
from neurollm.rsa.windows import token_table
from neurollm.stats.rdms.nulls import extremity, permutation_null
from neurollm.stats.rdms.pairs import rdm_scores
from neurollm.stats.rdms.sequences import sequence_distances
from neurollm.validation import listed

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

IGNORES = {
    "dtw": "pauses, speed and shifts in time",
    "energy": "the order and number of tokens",
    "transport": "the order and number of tokens, and which values of features go together",
    "profile": "the number of tokens, and which features or signs carry the course",
}


@dataclass(frozen=True, eq=False)
class SequenceRDM:
    """Distances between trials as sequences of tokens.

    Attributes
    ----------
    rdms : ndarray, shape (K, n, n)
        Of the region, or one for each feature; NaN where a distance is not defined.
    feature : ndarray, shape (K,)
        ``["region"]``, or feature ids.
    obs : DataFrame, n rows
        The trials, with ``n_tokens``.
    distance : {"dtw", "energy", "transport", "profile"}
    """

    rdms: np.ndarray
    feature: np.ndarray
    obs: pd.DataFrame
    distance: str

    def test(
        self,
        design: Design,
        model: str | ModelRDM = "categorical",
        *,
        comparison: str = "pearson",
        n_perm: int = 1000,
        alternative: str = "two-sided",
        random_state: int = 0,
    ) -> SequenceResult:
        """Compare with a model, over item × condition means of the distances.

        Parameters
        ----------
        design : Design
        model : str or ModelRDM
            See `neurollm.rsa.models`.
        comparison : {"pearson", "cosine", "whitened"}
        n_perm : int
        alternative : {"two-sided", "greater", "less"}
        random_state : int

        Returns
        -------
        SequenceResult

        Raises
        ------
        InvalidInput
            A name is unknown, nothing can be exchanged, or the model is an interaction, which needs rows from which
            main effects can be taken: distances alone do not have them.
        """
        _check_test(comparison, alternative, n_perm)
        table = design.table(self.obs)
        rows = Rows.of(design, self.obs, table)
        chosen = one_model(model, rows)
        how = exchange(design, table, chosen)
        if how.weights is not None:
            raise InvalidInput(
                f"sequence RSA: model '{chosen.name}' is an interaction, whose main effects cannot be taken from "
                "distances; test it on features with TimeResolvedRSA."
            )
        inside = np.ix_(how.rows, how.rows)
        rdms = np.stack([rows.averaged(rdm)[inside] for rdm in self.rdms])
        D = chosen.matrix[inside]
        r = rdm_scores(rdms, D, comparison)
        null = permutation_null(
            lambda index, columns: rdm_scores(rdms[columns], D, comparison, index),
            len(rdms),
            how.shuffling.draw(n_perm, random_state),
            observed=r,
            alternative=alternative,
        )
        return SequenceResult(
            feature=self.feature,
            r=r,
            z=null.z,
            p=null.p,
            p_fwer=null.p_fwer,
            null_max=null.null_max,
            model=chosen.name,
            distance=self.distance,
            comparison=comparison,
            alternative=alternative,
            n_trials=int(table.n_trials[how.rows].sum()),
            n_items=how.n_items,
            n_dropped=how.n_dropped,
            n_perm=null.n_perm,
            exhaustive=null.exhaustive,
            exchange=how.sentence,
        )


@dataclass(frozen=True, eq=False)
class SequenceResult:
    """What a window-free RSA found; NaN where an RDM is not tested.

    Attributes
    ----------
    feature, r, z, p, p_fwer : ndarray, shape (K,)
        `p_fwer` is corrected for all RDMs by the largest z.
    null_max : ndarray, shape (n_perm,)
    model, distance, comparison, alternative : str
    n_trials, n_items, n_dropped, n_perm : int
    exhaustive : bool
    exchange : str
    """

    feature: np.ndarray
    r: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    null_max: np.ndarray
    model: str
    distance: str
    comparison: str
    alternative: str
    n_trials: int
    n_items: int
    n_dropped: int
    n_perm: int
    exhaustive: bool
    exchange: str

    def to_frame(self) -> pd.DataFrame:
        """``feature, r, z, p, p_fwer``: one row per RDM."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name) for name in ("feature", "r", "z", "p", "p_fwer")})

    def verdict(self, alpha: float = 0.05) -> str:
        """The result in one sentence."""
        tested = np.flatnonzero(np.isfinite(self.z))
        if not tested.size:
            return f"{self.model}: none of the {self.r.size:,} RDMs could be tested."
        best = tested[np.argmax(extremity(self.z[tested], self.alternative))]
        name = "the region" if str(self.feature[best]) == "region" else f"feature {self.feature[best]}"
        dropped = f"; {self.n_dropped} items were dropped" if self.n_dropped else ""
        found = self.r[self.p_fwer <= alpha]
        against = f" and {int((found < 0).sum()):,} run against it" if (found < 0).any() else ""
        return (
            f"{self.model}: {int((found >= 0).sum()):,} of {tested.size:,} tested RDMs follow the model{against} at "
            f"family-wise p ≤ {alpha:g} ({self.alternative}, {self.n_perm:,} {'all' if self.exhaustive else 'random'} "
            f"shufflings of {self.n_items} items, {self.n_trials:,} trials); strongest: {name}, "
            f"r = {self.r[best]:.3f}, p = {self.p_fwer[best]:.2g}. "
            f"The distance ({self.distance}) ignores {IGNORES[self.distance]}{dropped}."
        )


def sequence_rdm(
    trials: AnnData,
    features: Sequence[Any] | None = None,
    distance: str = "dtw",
    *,
    each: bool = False,
    band: int | None = None,
    verbose: int = 0,
) -> SequenceRDM:
    """Distances between trials as sequences of tokens, whatever their length.

    Parameters
    ----------
    trials : AnnData
        From a `FeatureMasker` with ``pool="none"``: one row per token, with the columns stimulus_id and position.
    features : sequence of feature ids, optional
        The region; default: all features.
    distance : {"dtw", "energy", "transport", "profile"}
        What each compares and ignores is in `neurollm.stats.rdms.sequences`.
    each : bool, default=False
        One RDM for every feature instead of one for the region. For features chosen without looking at conditions: n
        trials of L tokens cost n²L²/2 cells per feature with ``dtw`` (100 trials of 20 tokens: about .2 s).
    band : int, optional
        See `sequence_distances`.
    verbose : int, default=0

    Returns
    -------
    SequenceRDM

    Raises
    ------
    InvalidInput
        Trials are pooled, a feature or distance does not exist, or ``each`` comes without a choice of features.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> obs = pd.DataFrame({"stimulus_id": list("aaabbbb"), "position": [0, 1, 2, 0, 1, 2, 3]})
    >>> trials = AnnData(np.array([[0.0], [5], [0], [0], [0], [5], [0]]), obs=obs.set_axis(list("1234567")))
    >>> sequence_rdm(trials).rdms[0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    if each and features is None:
        raise InvalidInput("sequence_rdm: one RDM per feature needs a choice of features.")
    ids = trials.var["feature"].to_numpy() if "feature" in trials.var else np.arange(trials.n_vars)
    wanted = ids if features is None else np.atleast_1d(np.asarray(features))
    where = {feature: column for column, feature in enumerate(ids.tolist())}
    unknown = [feature for feature in wanted.tolist() if feature not in where]
    if unknown or not wanted.size:
        raise InvalidInput(
            f"sequence_rdm: {listed(unknown)} is no feature." if unknown else "sequence_rdm: no feature."
        )
    obs, stimuli, stimulus, position = token_table(trials.obs)
    order = np.lexsort((position, stimulus))
    columns = [where[feature] for feature in wanted.tolist()]
    X = trials.X.tocsc()[:, columns].toarray() if sparse.issparse(trials.X) else np.asarray(trials.X)[:, columns]
    lengths = np.bincount(stimulus, minlength=len(stimuli))
    sequences = np.split(np.asarray(X, float)[order], np.cumsum(lengths)[:-1])
    groups = [[column] for column in range(wanted.size)] if each else [slice(None)]
    rdms = []
    with Progress(distance, len(groups), "RDMs", verbose) as progress:
        for group in groups:
            rdms.append(sequence_distances([one[:, group] for one in sequences], distance, band=band))
            progress.advance(1)
    name = wanted if each else np.array(["region"])
    return SequenceRDM(np.stack(rdms), name, obs.assign(n_tokens=lengths), distance)


def _check_test(comparison: str, alternative: str, n_perm: int) -> None:
    for name, value, known in [
        ("comparison", comparison, ("pearson", "cosine", "whitened")),
        ("alternative", alternative, ("two-sided", "greater", "less")),
    ]:
        if value not in known:
            raise InvalidInput(f"sequence RSA: {name} is {value!r}; it is one of {listed(known)}.")
    check_whole("sequence RSA", "n_perm", n_perm, 1)
