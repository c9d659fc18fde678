"""Is one RDM related to model RDMs? The conditions of the models change places.

The Mantel test with Pearson or other similarities (Mantel 1967; Kriegeskorte, Mur & Bandettini 2008): rows and columns
of every model are rearranged together, all models in the same way, and the RDM of the data stays. With `blocks`
conditions change places only inside their block. The largest of the models' statistics, each standardised by the mean
and the standard deviation of its own permutations, corrects for the number of models (Westfall & Young 1993).

With nuisance RDMs the model's residual given them is rearranged, taken apart from them again in every arrangement, and
correlated with the residual of the data. Residuals of the pairs of an RDM are not exchangeable exactly, so that this
partial Mantel test is approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.comparators import WHITENED, Comparison, check_comparison, compare_rdms
from neurollm.rsa.rows import check_whole
from neurollm.rsa.tables import check_same_conditions
from neurollm.rsa.toolbox import check_rdms, named_matrices, rdm_names, rsatoolbox_rdms, square
from neurollm.stats.maxima import StepDown, share, tied_down
from neurollm.stats.multiplicity import adjust
from neurollm.stats.rdms.pairs import pair_correlations, pair_vectors
from neurollm.stats.shufflings import Draws, Shuffling, whole_item
from neurollm.validation import listed, shown

if TYPE_CHECKING:
    import pandas as pd
    from rsatoolbox.rdm import RDMs

_ENUMERATE = 5040  # 7!
_NUMBERS = 1 << 21  # distances held at a time
_PARTIAL = ("pearson", "cosine", "spearman")


@dataclass(frozen=True)
class RelatednessTest:
    """Permutation test of one RDM against K models; made by `permute_conditions`.

    Attributes
    ----------
    models : tuple of str
    r : ndarray, shape (K,)
        Similarity with each model; partial with nuisance RDMs.
    z : ndarray, shape (K,)
        r less its mean over arrangements, in their standard deviations.
    p, p_fwer : ndarray, shape (K,)
        Of each model alone, and corrected for all. NaN where no arrangement changes r.
    p_bh : ndarray, shape (K,)
        Benjamini-Hochberg.
    n_conditions : int
    dropped : tuple of int
        Conditions without any distance (constant patterns under correlation distance), left out.
    n_perm : int
        Arrangements used.
    exhaustive : bool
        They are all there are.
    comparison, alternative : str
    nuisance : tuple of str
    """

    models: tuple[str, ...]
    r: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    p_bh: np.ndarray
    n_conditions: int
    dropped: tuple[int, ...]
    n_perm: int
    exhaustive: bool
    comparison: str
    alternative: str
    nuisance: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per model."""
        import pandas as pd

        names = ("r", "z", "p", "p_fwer", "p_bh")
        return pd.DataFrame({"model": list(self.models), **{name: getattr(self, name) for name in names}})

    def verdict(self, alpha: float = 0.05) -> str:
        """What was found, in plain sentences with numbers."""
        arranged = f"all {self.n_perm}" if self.exhaustive else f"{self.n_perm} random"
        partial = f", given {listed(self.nuisance)} (approximate)" if self.nuisance else ""
        out = f" {len(self.dropped)} conditions without distances were left out." if self.dropped else ""
        tested = np.isfinite(self.p)
        if not tested.any():
            return f"No model can be tested: none of {arranged} arrangements changes a similarity.{out}"
        best = int(np.nanargmin(np.where(tested, self.p_fwer, np.nan)))
        n_found = int((self.p_fwer[tested] <= alpha).sum())
        return (
            f"{n_found} of {tested.sum()} models are related to the RDM of {self.n_conditions} conditions at "
            f"{alpha:g}, corrected for the number of models{partial}; the strongest is {shown(self.models[best])} "
            f"({self.comparison} r = {self.r[best]:.3f}, p = {self.p[best]:.2g}, corrected {self.p_fwer[best]:.2g}; "
            f"{arranged} arrangements of the conditions).{out}"
        )


def permute_conditions(
    data_rdm: RDMs | np.ndarray,
    models: Any,
    comparison: Comparison = "pearson",
    *,
    nuisance: Mapping[str, np.ndarray] | None = None,
    blocks: Sequence[Any] | None = None,
    shuffling: Shuffling | None = None,
    n_perm: int = 5000,
    alternative: Literal["greater", "less", "two-sided"] = "greater",
    random_state: int = 0,
) -> RelatednessTest:
    """Test one RDM against model RDMs by permutation of the conditions.

    Parameters
    ----------
    data_rdm : rsatoolbox.rdm.RDMs with one RDM, or ndarray, shape (n, n)
    models : rsatoolbox.rdm.RDMs, mapping of name to ndarray of shape (n, n), or list of ModelRDM
        Pairs a model says nothing about are NaN (``pearson`` and ``cosine`` only).
    comparison : str
        See `neurollm.rsa.comparators`.
    nuisance : mapping of name to ndarray, shape (n, n), optional
        RDMs whose part is taken out of data and models (``pearson``, ``spearman``, ``cosine``).
    blocks : sequence of n labels, optional
        Conditions change places only inside a block: the item whose levels the conditions are, or a session.
    shuffling : Shuffling, optional
        Any other scheme of `neurollm.stats.shufflings` without signs, instead of `blocks`.
    n_perm : int, default=5000
        All arrangements are used if there are at most so many, or at most 5040 (all orders of seven conditions).
    alternative : {"greater", "less", "two-sided"}
    random_state : int, default=0

    Returns
    -------
    RelatednessTest

    Raises
    ------
    InvalidInput
        An argument is not one of those above, or single pairs are missing where the comparison needs all.
    DataMismatch
        Data and models differ in their conditions.

    Examples
    --------
    >>> x = np.array([0.0, 1, 2, 4, 8, 16])
    >>> D = np.abs(x[:, None] - x)
    >>> result = permute_conditions(D, {"size": D, "log": np.abs(np.log1p(x)[:, None] - np.log1p(x))})
    >>> result.p.round(4).tolist(), result.n_perm, result.exhaustive
    ([0.0014, 0.0014], 720, True)
    """
    data, named, others = _matrices(data_rdm, models, nuisance)
    dropped = np.flatnonzero(np.isnan(data).sum(axis=1) == len(data) - 1)
    if dropped.size and shuffling is not None:
        raise InvalidInput(
            f"{dropped.size} conditions have no distances, so the rows of shuffling do not fit; drop them first."
        )
    kept = np.setdiff1d(np.arange(len(data)), dropped)
    if kept.size < 4:
        raise DataMismatch(f"only {kept.size} conditions have distances; a permutation test needs at least 4.")
    check_comparison(comparison)
    if alternative not in ("greater", "less", "two-sided"):
        raise InvalidInput(f"alternative is {shown(alternative)}; expected 'greater', 'less' or 'two-sided'.")
    take = np.ix_(kept, kept)
    draws = _draws(shuffling, blocks, kept, len(data), n_perm, random_state)
    data, others = data[take], [matrix[take] for matrix in others.values()]
    null, observed = [], []
    for name, matrix in named.items():
        similarity = _similarity(data, matrix[take], comparison, others, name)
        observed.append(float(similarity(np.arange(kept.size)[None])[0]))
        null.append(_over(draws, similarity, kept.size))
    z, p, p_fwer = _p_values(np.array(observed), np.array(null), draws.exhaustive, alternative)
    return RelatednessTest(
        models=tuple(named),
        r=np.array(observed),
        z=z,
        p=p,
        p_fwer=p_fwer,
        p_bh=adjust(p, "bh"),
        n_conditions=kept.size,
        dropped=tuple(map(int, dropped)),
        n_perm=len(draws),
        exhaustive=draws.exhaustive,
        comparison=comparison,
        alternative=alternative,
        nuisance=tuple(nuisance or ()),
    )


def _matrices(
    data_rdm: Any, models: Any, nuisance: Any
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The RDM, the models and the nuisance RDMs, all of one size."""
    RDMs = rsatoolbox_rdms()
    if isinstance(data_rdm, np.ndarray):
        data = named_matrices({"data": data_rdm})["data"]
    else:
        check_rdms(data_rdm, "data_rdm")
        if data_rdm.n_rdm != 1:
            raise InvalidInput(f"data_rdm holds {data_rdm.n_rdm} RDMs; this test takes one (compare_models: several).")
        data = square(data_rdm.dissimilarities)[0]
    if isinstance(models, RDMs):
        if isinstance(data_rdm, RDMs):
            check_same_conditions(data_rdm, models)
        named = dict(zip(rdm_names(models), square(models.dissimilarities), strict=True))
    else:
        named = named_matrices(models)
    others = {} if nuisance is None else named_matrices(nuisance)
    for name, matrix in [*named.items(), *others.items()]:
        if len(matrix) != len(data):
            raise DataMismatch(f"RDM {shown(name)} has {len(matrix)} conditions; that of the data has {len(data)}.")
    return data, named, others


def _draws(shuffling: Shuffling | None, blocks: Any, kept: np.ndarray, n: int, n_perm: int, random_state: int) -> Draws:
    """The arrangements of the conditions that are left."""
    import pandas as pd

    check_whole("permute_conditions", "random_state", random_state, 0)
    if isinstance(n_perm, bool) or not isinstance(n_perm, (int, np.integer)):
        raise InvalidInput(f"n_perm must be a whole number, found {shown(n_perm)}.")
    if n_perm < 20:
        raise InvalidInput(f"n_perm is {n_perm}; a permutation test needs at least 20, better 5000.")
    if shuffling is None:
        labels = np.zeros(n, int)
        if blocks is not None:
            if len(blocks) != n:
                raise DataMismatch(f"blocks has {len(blocks)} labels but there are {n} conditions.")
            labels = pd.factorize(np.array([repr(label) for label in blocks], object))[0]
        shuffling = whole_item(np.arange(kept.size), blocks=labels[kept])
    elif blocks is not None:
        raise InvalidInput("give blocks or shuffling, not both.")
    if shuffling.kind == "sign_flip" or shuffling.n_rows != kept.size:
        raise InvalidInput(
            f"shuffling is {shuffling.kind} of {shuffling.n_rows} rows; expected places of {kept.size} conditions."
        )
    return shuffling.draw(_ENUMERATE if shuffling.n_possible <= _ENUMERATE else n_perm, random_state)


def _over(draws: Draws, similarity: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    step = max(1, _NUMBERS // n**2)
    return np.concatenate([similarity(draws.index[start : start + step]) for start in range(0, len(draws), step)])


def _similarity(
    data: np.ndarray, model: np.ndarray, comparison: Comparison, nuisance: list[np.ndarray], name: str
) -> Callable[[np.ndarray], np.ndarray]:
    """The similarity of the data with the model whose rows are replaced, as a function of arrangements (P, n)."""
    y = pair_vectors(data)
    complete = not (np.isnan(y).any() or np.isnan(pair_vectors(model)).any())
    if not complete and (comparison not in ("pearson", "cosine") or nuisance):
        raise InvalidInput(
            f"model {shown(name)}: pairs are left out, and those of a model move with its conditions; with left-out "
            "pairs use comparison 'pearson' or 'cosine' without nuisance RDMs."
        )
    if nuisance:
        return _partial(y, model, comparison, nuisance)
    if comparison in ("pearson", "cosine"):
        return lambda index: pair_correlations(pair_vectors(model, index), y[:, None], comparison)[:, 0]
    if comparison == "spearman":
        ranked, y_ranks = _ranked(model), _ranks(y)[:, None]
        return lambda index: pair_correlations(pair_vectors(ranked, index), y_ranks)[:, 0]
    if comparison in WHITENED or comparison == "rho_a":
        kernel = _embedding(model, comparison)
        flat = _embedding(data, comparison).ravel()
        return lambda index: kernel[index[:, :, None], index[:, None, :]].reshape(len(index), -1) @ flat
    return lambda index: compare_rdms(pair_vectors(model, index), y, comparison)[:, 0]


def _embedding(matrix: np.ndarray, comparison: Comparison) -> np.ndarray:
    """A matrix whose inner products are similarities; it commutes with rearranging the conditions."""
    if comparison == "rho_a":
        ranks, m = _ranks(pair_vectors(matrix)), len(matrix) * (len(matrix) - 1) // 2
        return square((ranks - ranks.mean()) * np.sqrt(6 / (m**3 - m)))[0]
    mean = pair_vectors(matrix).mean() if comparison == "whitened_pearson" else 0.0
    kernel = matrix - mean * (1 - np.eye(len(matrix)))
    kernel = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    length = np.linalg.norm(kernel)
    return kernel / length if length > 1e-12 * np.linalg.norm(matrix) else np.full_like(kernel, np.nan)


def _partial(
    y: np.ndarray, model: np.ndarray, comparison: Comparison, nuisance: list[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    if comparison not in _PARTIAL:
        raise InvalidInput(f"nuisance RDMs are for the comparisons {listed(_PARTIAL)}, not {shown(comparison)}.")
    columns = [pair_vectors(matrix) for matrix in nuisance]
    if comparison == "spearman":
        y, model, columns = _ranks(y), _ranked(model), [_ranks(column) for column in columns]
    if np.isnan(columns).any():
        raise InvalidInput("a nuisance RDM leaves pairs out; it must hold all of them.")
    if comparison != "cosine":
        columns = [np.ones_like(y), *columns]
    basis = np.linalg.svd(np.array(columns).T / np.linalg.norm(columns, axis=1), full_matrices=False)
    basis = basis[0][:, basis[1] > 1e-10]

    def residual(rows: np.ndarray) -> np.ndarray:
        left = rows - (rows @ basis) @ basis.T
        size = np.linalg.norm(left, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(size > 1e-9 * np.linalg.norm(rows, axis=1, keepdims=True), left / size, np.nan)

    target = residual(y[None])[0]
    left = square(residual(pair_vectors(model)[None]))[0]
    return lambda index: residual(pair_vectors(left, index)) @ target


def _p_values(
    observed: np.ndarray, null: np.ndarray, exhaustive: bool, alternative: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, p and family-wise p of models; null (K, P)."""
    mean, sd = null.mean(axis=1), null.std(axis=1)
    sd = np.where(sd > 1e-9 * (1 + np.abs(mean)), sd, np.nan)
    z, null = (observed - mean) / sd, (null - mean[:, None]) / sd[:, None]
    tested = np.flatnonzero(np.isfinite(z) & np.isfinite(null).all(axis=1))
    p, p_fwer = np.full((2, observed.size), np.nan)
    if tested.size == 0:
        return z, p, p_fwer
    turn = {"greater": lambda values: values, "less": np.negative, "two-sided": np.abs}[alternative]
    extreme, null = turn(z[tested]), turn(null[tested])
    reached = (null >= tied_down(extreme)[:, None]).sum(axis=1)
    p[tested] = share(reached, null.shape[1], exhaustive)
    steps = StepDown(extreme)
    rest = null[steps.below].max(axis=0) if steps.below.size else np.full(null.shape[1], -np.inf)
    steps.add(null[steps.top].T, rest)
    p_fwer[tested] = steps.p_values(exhaustive)[0]
    return z, p, p_fwer


def _ranks(vector: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(vector)


def _ranked(matrix: np.ndarray) -> np.ndarray:
    return square(_ranks(pair_vectors(matrix)))[0]
