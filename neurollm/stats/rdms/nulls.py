"""From scores under rearranged labels to p values of all features at once.

The model's rows are rearranged and the data stay. With r_π the score of a feature under arrangement π,

    z = (r − E r_π) / sd(r_π),

because the spread of r_π differs between features by up to an order of magnitude (it depends on their kurtosis and on
the model), and a maximum over features of unequal spread would be decided by the widest. E and sd are closed forms
where these are exact (`neurollm.stats.rdms.squared`), else those of the arrangements used and the observed one
together, which are the same whichever of these is called the observed one, so the test stays exact.

p counts arrangements whose z reaches the feature's own, p_FWER those whose largest z over all features does
(Westfall & Young 1993; in a single step). Both are (b + 1) / (B + 1) for B random arrangements and b / B for all of
them (Phipson & Smyth 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurollm.stats.maxima import share, tied_down
from neurollm.stats.shufflings import Draws
from neurollm.stats.threads import workers

Alternative = Literal["two-sided", "greater", "less"]
Score = Callable[[np.ndarray, slice], np.ndarray]

ELEMENTS = 1 << 21  # scores of a block of features under all arrangements
_BLOCK = 16, 1024  # fewest and most features at a time
FLAT = 1e-10  # a spread below this is rounding: every arrangement gives the same score
_AT_ONCE = 256  # arrangements per call of the score


@dataclass(frozen=True)
class Null:
    """What permutations say of V scores; NaN where a score is not defined or cannot vary.

    Attributes
    ----------
    z : ndarray, shape (V,)
        Score in standard deviations of its permutation distribution.
    p, p_fwer : ndarray, shape (V,)
        Of the feature itself, and corrected for all V by the largest z.
    null_max : ndarray, shape (n_perm,)
        Largest z in the direction of the alternative over features, in each arrangement.
    mean, sd : ndarray, shape (V,)
        Of the permutation distribution of the score.
    n_perm : int
    exhaustive : bool
        All arrangements, the observed one included.
    """

    z: np.ndarray
    p: np.ndarray
    p_fwer: np.ndarray
    null_max: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    n_perm: int
    exhaustive: bool

    @property
    def smallest_p(self) -> float:
        """The least p that this number of arrangements can give."""
        return float(share(np.array(int(self.exhaustive)), self.n_perm, self.exhaustive))


def permutation_null(
    score: Score,
    n_features: int,
    draws: Draws,
    *,
    observed: np.ndarray,
    alternative: Alternative = "two-sided",
    moments: tuple[np.ndarray, np.ndarray] | None = None,
    n_jobs: int = 1,
    on_block: Callable[[int], None] = lambda amount: None,
) -> Null:
    """Test all scores by rearranging the rows of a model.

    Parameters
    ----------
    score : callable
        ``score(index, columns)`` gives the scores of the features in the slice `columns` when row i of the model is
        replaced by its row ``index[p, i]``, shape (P, b).
    n_features : int
    draws : Draws
        Without signs: only places are exchanged.
    observed : ndarray, shape (n_features,)
        NaN leaves a feature out.
    alternative : {"two-sided", "greater", "less"}
    moments : (ndarray, ndarray), optional
        Exact mean and standard deviation of every score over all arrangements; default: those of the ones used.
    n_jobs : int, default=1
        Threads over blocks of features; -1 for all cores.
    on_block : callable
        Called with the number of scores computed since the last call.

    Returns
    -------
    Null

    Examples
    --------
    >>> import numpy as np
    >>> from neurollm.stats.shufflings import whole_item
    >>> x, y = np.arange(6.0), np.arange(6) > 2
    >>> score = lambda index, columns: (y[index] @ x)[:, None]
    >>> null = permutation_null(score, 1, whole_item(y).draw(100, 0), observed=np.array([y @ x]))
    >>> null.n_perm, null.p.tolist()  # both orders of three and three are as extreme
    (20, [0.1])
    """
    n_perm = len(draws)
    width = int(np.clip(ELEMENTS // max(n_perm, 1), *_BLOCK))
    blocks = [slice(start, min(start + width, n_features)) for start in range(0, n_features, width)]

    def work(columns: slice) -> tuple[np.ndarray, ...]:
        r = np.concatenate(
            [score(draws.index[start : start + _AT_ONCE], columns) for start in range(0, n_perm, _AT_ONCE)]
        )
        own = observed[columns]
        mean, sd = _moments(r, own, draws.exhaustive) if moments is None else (part[columns] for part in moments)
        varies = np.isfinite(own) & (sd > FLAT)
        sd = np.where(varies, sd, np.nan)
        z = (own - mean) / sd
        r -= mean
        r /= sd
        reached, largest = _directed(r, z, alternative)
        return z, mean, sd, reached, largest

    parts, null_max = [], np.full(n_perm, -np.inf)
    with workers(n_jobs) as run:
        for columns, (*arrays, largest) in zip(blocks, run(work, blocks), strict=True):
            parts.append(arrays)
            np.maximum(null_max, largest, out=null_max)
            on_block((columns.stop - columns.start) * n_perm)
    z, mean, sd, reached = (np.concatenate([part[i] for part in parts] or [np.empty(0)]) for i in range(4))
    blank = np.where(np.isfinite(z), 0.0, np.nan)
    return Null(
        z=z,
        p=share(reached, n_perm, draws.exhaustive) + blank,
        p_fwer=share(reaching(null_max, extremity(z, alternative)), n_perm, draws.exhaustive) + blank,
        null_max=null_max if np.isfinite(z).any() else np.empty(0),
        mean=mean,
        sd=sd,
        n_perm=n_perm,
        exhaustive=draws.exhaustive,
    )


def extremity(z: np.ndarray, alternative: Alternative) -> np.ndarray:
    """What is larger the more a score speaks for the alternative."""
    return np.abs(z) if alternative == "two-sided" else z if alternative == "greater" else -z


def reaching(null_max: np.ndarray, statistic: np.ndarray) -> np.ndarray:
    """How many null maxima reach each statistic, ties included."""
    ordered = np.sort(null_max)
    return ordered.size - np.searchsorted(ordered, tied_down(statistic), "left")


def _moments(r: np.ndarray, own: np.ndarray, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the arrangements, with the observed one unless it is among them."""
    shifted = r - own  # the observed score itself is then 0
    count = len(r) + (not exhaustive)
    mean = shifted.sum(axis=0) / count
    with np.errstate(invalid="ignore"):
        sd = np.sqrt(np.maximum((shifted**2).sum(axis=0) / count - mean**2, 0))
    # What is left of numbers of this size by rounding is no spread.
    return own + mean, np.where(sd > 1e-7 * np.sqrt((shifted**2).mean(axis=0) + mean**2), sd, 0.0)


def _directed(z_null: np.ndarray, z: np.ndarray, alternative: Alternative) -> tuple[np.ndarray, np.ndarray]:
    """Arrangements that reach each feature, and the largest of all features in each arrangement."""
    if alternative == "two-sided":
        np.abs(z_null, out=z_null)
    elif alternative == "less":
        np.negative(z_null, out=z_null)
    reached = np.count_nonzero(z_null >= tied_down(extremity(z, alternative)), axis=0)
    return reached, np.fmax.reduce(z_null, axis=1, initial=-np.inf)
