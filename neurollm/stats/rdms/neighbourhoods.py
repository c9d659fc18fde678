"""RSA of the neighbourhoods of features: a searchlight in the space of directions.

The RDM of a neighbourhood S is the sum of the RDMs of its features. With q_f the numerator of feature f
(`neurollm.stats.rdms.space`), A the 0/1 matrix of centres × features, g = Σ_{f∈S} x̃_f² (one value per row), and
G_S = X̃_S X̃_S' the Gram matrix,

    numerators   N = A q
    |d_S|²       n Σ_i g_i² + (Σ_i g_i)² + 2 |G_S|_F² − n² (Σ_i g_i)² / m     Pearson
                 |G_S|_F²                                                     whitened

|G_S|_F = |X̃_S'X̃_S|_F takes the smaller of the two products. Norms do not depend on the order of the model's rows:
under every arrangement only q is computed anew, once for all features however many neighbourhoods share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.errors import InvalidInput
from neurollm.stats.maxima import share, tied_down
from neurollm.stats.rdms.nulls import Alternative, Null, extremity, reaching
from neurollm.stats.rdms.space import Comparison, ModelForm, RDMSpace, checked
from neurollm.stats.shufflings import Draws

_ROWS, _COLUMNS = 1024, 8192  # directions compared with each other at a time: 64 MB
_PATTERNS = 1 << 21  # numbers of neighbourhoods' patterns held at a time
_NUMERATORS, _AT_ONCE = 1 << 23, 64  # numerators held at a time, and most arrangements
_FLAT = 1e-10  # a spread below this is rounding


def nearest_directions(directions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` other directions with the largest cosine, for every direction.

    Parameters
    ----------
    directions : ndarray, shape (V, d)
        Such as decoder rows. Cosines are computed in blocks: V × V numbers are never held.
    k : int
        At most V − 1 are found.

    Returns
    -------
    index : ndarray of int, shape (V, k)
        The nearest first; −1 for and instead of a direction of zeros.
    cosine : ndarray, shape (V, k)
        NaN there.

    Raises
    ------
    InvalidInput
        The directions are no table of finite numbers, or `k` is negative.

    Examples
    --------
    >>> index, cosine = nearest_directions(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]), k=1)
    >>> index.ravel().tolist(), cosine.ravel().round(3).tolist()
    ([1, 2, 1], [0.6, 0.8, 0.8])
    """
    directions = np.asarray(directions)
    if directions.ndim != 2 or directions.dtype.kind not in "fiu" or not np.isfinite(directions).all():
        raise InvalidInput("directions must be a table of finite numbers, one row per feature.")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise InvalidInput(f"k must be a whole number of neighbours, found {k!r}.")
    rows = directions if directions.dtype == np.float32 else directions.astype(float)
    norms = np.linalg.norm(rows, axis=1)
    used = np.flatnonzero(norms)
    unit = rows[used] / norms[used, None]
    k = min(int(k), max(len(rows) - 1, 0))
    index, cosine = np.full((len(rows), k), -1), np.full((len(rows), k), np.nan, dtype=unit.dtype)
    found = min(k, used.size - 1)
    for start in range(0, used.size if found > 0 else 0, _ROWS):
        here = slice(start, min(start + _ROWS, used.size))
        place, value = _nearest(unit, here, found)
        index[used[here], :found], cosine[used[here], :found] = used[place], value
    return index, cosine


def _nearest(unit: np.ndarray, here: slice, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest cosines of some directions with others, and with which."""
    places, values = [], []
    for left in range(0, len(unit), _COLUMNS):
        cosine = unit[here] @ unit[left : left + _COLUMNS].T
        own = np.arange(max(here.start, left), min(here.stop, left + cosine.shape[1]))
        cosine[own - here.start, own - left] = -np.inf
        some = np.argpartition(cosine, -min(k, cosine.shape[1]), axis=1)[:, -k:]
        places.append(some + left)
        values.append(np.take_along_axis(cosine, some, axis=1))
    place, value = np.hstack(places), np.hstack(values)
    order = np.lexsort((place, -value), axis=1)[:, :k]
    return np.take_along_axis(place, order, axis=1), np.take_along_axis(value, order, axis=1)


def neighbourhoods(directions: np.ndarray, k: int) -> sparse.csr_array:
    """Every direction with the `k` others nearest to it.

    Parameters
    ----------
    directions : ndarray, shape (V, d)
    k : int
        0: every direction alone.

    Returns
    -------
    csr_array of float, shape (V, V)
        1 for each member of the neighbourhood of the row's direction, itself included. Rows of directions of zeros
        are empty.

    Examples
    --------
    >>> neighbourhoods(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]), k=1).toarray().tolist()
    [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    nearest, _ = nearest_directions(directions, k)
    own = np.where(np.any(np.asarray(directions) != 0, axis=1), np.arange(len(nearest)), -1)
    members = np.hstack([own[:, None], nearest])
    rows, places = np.nonzero(members >= 0)
    return sparse.csr_array((np.ones(rows.size), (rows, members[rows, places])), shape=(len(own), len(own)))


class NeighbourhoodScores:
    """RSA of all neighbourhoods with one model, as it is and with its rows rearranged.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM of all pairs.
    members : scipy.sparse array, shape (C, V)
        A feature belongs to a centre wherever a value is stored that is not 0.
    comparison : {"pearson", "whitened"}
    standardise : bool, default=True
        Give every feature the sum of squares 1 first.

    Attributes
    ----------
    valid : ndarray of bool, shape (C,)
        Something in the neighbourhood varies.
    sizes : ndarray of int, shape (C,)
        Members that vary.

    Raises
    ------
    InvalidInput
        The model leaves pairs out or says the same of all, or the neighbourhoods are not of these features.

    Examples
    --------
    >>> late = np.arange(6) > 2
    >>> X = np.array([late, 2.0 * late, [0, 1, 2, 0, 1, 2]]).T
    >>> D = (late[:, None] != late).astype(float)
    >>> NeighbourhoodScores(X, D, sparse.csr_array([[1, 1, 0], [0, 0, 1]])).observed().round(3).tolist()
    [1.0, -0.218]
    """

    def __init__(
        self, X: Any, D: np.ndarray, members: Any, comparison: Comparison = "pearson", standardise: bool = True
    ) -> None:
        if not sparse.issparse(members) or members.shape[1] != X.shape[1]:
            found = members.shape if sparse.issparse(members) else type(members).__name__
            raise InvalidInput(f"neighbourhoods must be a sparse array with {X.shape[1]} columns, found {found}.")
        self.model = ModelForm.of(checked(D, comparison, X.shape[0]), comparison)
        self.space = RDMSpace(X, comparison, standardise)
        belongs = sparse.csr_array(members).astype(float)
        belongs.data = ((belongs.data != 0) & self.space.valid[belongs.indices]).astype(float)
        belongs.sum_duplicates()
        belongs.eliminate_zeros()
        belongs.data[:] = 1.0
        self.members, self.sizes = belongs, np.diff(belongs.indptr)
        self._traces = np.zeros((3, belongs.shape[0]))  # tr G, |G|², Σ G_ii²
        for centres, features in self._alike():
            self._traces[:, centres] = self._traced(features)
        total, gram, own = self._traces
        n = self.space.n
        squares = gram if comparison == "whitened" else n * own + 2 * gram + (1 - 2 * n / (n - 1)) * total**2
        self.valid = squares > 1e-14 * n * total**2
        self._norms = np.sqrt(np.where(self.valid, squares, np.nan)) * self.model.norm

    def observed(self) -> np.ndarray:
        """Scores with the model as it is, shape (C,); NaN where nothing varies."""
        return self(np.arange(self.space.n)[None])[0]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Scores with row i of the model replaced by row ``index[p, i]``, shape (P, C)."""
        numerators = np.ascontiguousarray(self.space.numerators(self.model, index).T)
        return (self.members @ numerators).T / self._norms

    def moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation of every score over all n! arrangements; None with fewer than four rows.

        Kazi-Aoual et al. (1995), for the product of G_S and the model's matrix W (both with row sums of 0).
        """
        n, W = self.space.n, self.model.matrix
        if n < 4:
            return None
        T, T2, S = self._traces
        t, t2, s = np.trace(W), np.sum(W**2), np.sum(np.diag(W) ** 2)
        first = 2 * ((n - 1) * T2 - T**2) * ((n - 1) * t2 - t**2) / ((n - 1) ** 2 * (n + 1) * (n - 2))
        kurtosis = n * (n + 1) * S - (n - 1) * (T**2 + 2 * T2)
        second = kurtosis * (n * (n + 1) * s - (n - 1) * (t**2 + 2 * t2))
        variance = first + second / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
        rounding = 1e-12 * np.maximum(T2 * t2, (T * t) ** 2 / (n - 1))
        sd = np.sqrt(np.where(variance > rounding, variance, 0.0))
        return T * t / (n - 1) / self._norms, sd / self._norms

    def _alike(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Centres with as many members each, and these members, a few centres at a time."""
        for size in np.unique(self.sizes[self.sizes > 0]):
            centres = np.flatnonzero(self.sizes == size)
            step = max(1, _PATTERNS // int(size * self.space.n))
            for start in range(0, centres.size, step):
                some = centres[start : start + step]
                yield some, self.members.indices[self.members.indptr[some][:, None] + np.arange(size)]

    def _traced(self, features: np.ndarray) -> tuple[np.ndarray, ...]:
        """tr G, |G|² and Σ G_ii² of some neighbourhoods of one size."""
        n, (count, size) = self.space.n, features.shape
        x = np.moveaxis(self.space.take(features.ravel()).reshape(n, count, size), 0, 1)
        gram = np.swapaxes(x, 1, 2) @ x if size < n else x @ np.swapaxes(x, 1, 2)
        own = np.einsum("cns,cns->cn", x, x)
        return own.sum(axis=1), np.einsum("cij,cij->c", gram, gram), np.einsum("cn,cn->c", own, own)


def neighbourhood_null(
    scores: NeighbourhoodScores,
    draws: Draws,
    *,
    observed: np.ndarray,
    alternative: Alternative = "two-sided",
    moments: tuple[np.ndarray, np.ndarray] | None = None,
    on_block: Callable[[int], None] = lambda amount: None,
) -> Null:
    """What `permutation_null` finds, a few arrangements of all neighbourhoods at a time.

    Neighbourhoods share features: taken in blocks, as `permutation_null` takes features, most numerators would be
    computed once for each block. The price is a second round where spreads are known only after the first.

    Parameters
    ----------
    scores : NeighbourhoodScores
    draws : Draws
        Without signs.
    observed : ndarray, shape (C,)
    alternative : {"two-sided", "greater", "less"}
    moments : (ndarray, ndarray), optional
        Exact mean and standard deviation over all arrangements; default: those of the arrangements used, with the
        observed one.
    on_block : callable
        Called with the number of arrangements done since the last call: twice for each, or once with `moments`.

    Returns
    -------
    Null
    """
    n_perm, n_scores = len(draws), observed.size
    step = int(np.clip(_NUMERATORS // max(scores.space.n_features, 1), 1, _AT_ONCE))
    batches = [draws.index[start : start + step] for start in range(0, n_perm, step)]
    mean, sd = _moments(scores, batches, observed, draws.exhaustive, on_block) if moments is None else moments
    sd = np.where(np.isfinite(observed) & (sd > _FLAT), sd, np.nan)
    z = (observed - mean) / sd
    bar = tied_down(extremity(z, alternative))
    reached, null_max = np.zeros(n_scores), np.full(n_perm, -np.inf)
    for number, index in enumerate(batches):
        extreme = extremity((scores(index) - mean) / sd, alternative)
        reached += np.count_nonzero(extreme >= bar, axis=0)
        null_max[number * step : number * step + len(index)] = np.fmax.reduce(extreme, axis=1, initial=-np.inf)
        on_block(len(index))
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


def _moments(
    scores: NeighbourhoodScores,
    batches: list[np.ndarray],
    observed: np.ndarray,
    exhaustive: bool,
    on_block: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the arrangements, with the observed one unless it is among them."""
    total, squares, done = np.zeros(observed.size), np.zeros(observed.size), 0
    for index in batches:
        shifted = scores(index) - observed  # the observed score itself is then 0
        total += shifted.sum(axis=0)
        squares += np.einsum("pc,pc->c", shifted, shifted)
        done += len(index)
        on_block(len(index))
    mean = total / (done + (not exhaustive))
    sd = np.sqrt(np.maximum(squares / (done + (not exhaustive)) - mean**2, 0))
    # What is left of numbers of this size by rounding is no spread.
    return observed + mean, np.where(sd > 1e-7 * np.sqrt(squares / done), sd, 0.0)
