"""One call for the score of every feature against one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.rdms.explicit import RANKS, ExplicitScores
from neurollm.stats.rdms.squared import COMPARISONS as SQUARED
from neurollm.stats.rdms.squared import SquaredScores
from neurollm.validation import closest, listed

COMPARISONS = (*SQUARED, *RANKS)
DISTANCES = ("squared", "absolute")
_ABSOLUTE = ("pearson", "cosine", *RANKS)


def feature_scores(
    X: Any,
    D: np.ndarray,
    comparison: str = "pearson",
    distance: str = "squared",
    nuisance: Sequence[np.ndarray] = (),
) -> SquaredScores | ExplicitScores:
    """The scores of all features against one model, ready to be rearranged.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM; NaN leaves a pair out.
    comparison : {"pearson", "cosine", "whitened", "whitened_pearson", "half_rank", "spearman", "rho_a", "tau_a"}
    distance : {"squared", "absolute"}
        Of a feature between two trials. Rank comparisons are the same for both.
    nuisance : sequence of ndarray, shape (n, n)
        Model RDMs that are held constant.

    Returns
    -------
    SquaredScores or ExplicitScores
        With ``observed()``, ``moments()`` and a call that `permutation_null` takes.

    Raises
    ------
    InvalidInput
        An unknown comparison or distance, or two that do not go together.
    """
    if comparison not in COMPARISONS:
        hint = closest(str(comparison), COMPARISONS) or "."
        raise InvalidInput(f"RSA: there is no comparison {comparison!r}{hint} It is one of {listed(COMPARISONS)}.")
    if distance not in DISTANCES:
        raise InvalidInput(f"RSA: distance is {distance!r}; it must be 'squared' or 'absolute'.")
    if distance == "absolute" and comparison not in _ABSOLUTE:
        raise InvalidInput(
            f"RSA: the comparison {comparison!r} is defined for squared distances; with absolute ones use one of "
            f"{listed(_ABSOLUTE)}."
        )
    if comparison in RANKS or distance == "absolute":
        if nuisance:
            raise InvalidInput(
                "partial RSA: nuisance models are held constant for squared distances and the comparisons 'pearson' "
                f"and 'half_rank', found distance {distance!r} and comparison {comparison!r}."
            )
        return ExplicitScores(X, D, comparison)
    return SquaredScores(X, D, comparison, nuisance)


def rsa_scores(
    X: Any, D: np.ndarray, comparison: str = "pearson", distance: str = "squared", n_jobs: int = 1
) -> np.ndarray:
    """Score of every feature against one model.

    Parameters
    ----------
    X : ndarray, memory map, scipy.sparse or torch.Tensor, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM; NaN leaves a pair out.
    comparison, distance
        See `feature_scores`.
    n_jobs : int, default=1
        Threads over features; -1 for all cores.

    Returns
    -------
    ndarray, shape (V,)
        Positive where distances are larger for the pairs that the model calls more unlike; NaN for constant and
        non-finite features.

    Examples
    --------
    >>> from neurollm.stats.rdms import categorical_rdm
    >>> X = np.array([[0.0, 1.0, 4.0], [0.0, 2.0, 4.0], [1.0, 1.0, 4.0], [1.0, 2.0, 4.0]])
    >>> rsa_scores(X, categorical_rdm(["a", "a", "b", "b"])).round(12).tolist()
    [1.0, -0.5, nan]
    """
    return feature_scores(X, D, comparison, distance).observed(n_jobs)
