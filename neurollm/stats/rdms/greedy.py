"""The region whose RDM fits a model best, feature by feature.

A region's RDM is the sum of its features' RDMs, so its score after taking in f is (`neurollm.stats.rdms.space`)

    r = (N + c_f) / (√(B + 2 b_f + Q_ff) |d_D|)

with N the sum of numerators, B the sum of Q over all pairs in the region, and b_f that of Q between f and the region.
One column of Q per step, two products of a vector with the data, keeps all three up to date: O(n V) per step, and Q is
never formed. Leaving out f: (N − c_f) / √(B − 2 b_f + Q_ff).

``forward``
    Take in the feature that gives the largest score, until there are enough.
``floating``
    After each step leave out features as long as that gives the best region found of its size (Pudil, Novovičová &
    Kittler 1994).
``swap``
    After each step exchange one member for another feature as long as that raises the score.

Ceiling. Of all regions of k features (all data matrices of rank k) the best possible whitened score is

    √(Σ_{i≤k} max(λ_i, 0)²) / |K|_F

with λ the eigenvalues of K, the largest first. A single feature cannot fit a model of several dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.stats.rdms.model import centred_kernel
from neurollm.stats.rdms.space import Comparison, MaskedSpace, ModelForm, RDMSpace, checked

Steps = Literal["forward", "floating", "swap"]
STEPS = ("forward", "floating", "swap")
_BETTER = 1e-9  # a score must rise by more than rounding


@dataclass(frozen=True, eq=False)
class GreedyPath:
    """Regions of growing size.

    Attributes
    ----------
    feature : ndarray of int, shape (k,)
        Columns of the last region, in the order in which they came to stay.
    score : ndarray, shape (k,)
        r of the best region found of 1 … k features, on the data that chose it.
    regions : tuple of tuple of int
        These regions.
    ceiling : ndarray, shape (k,)
        Best possible score of so many features; NaN where no bound is known (Pearson).
    moves : tuple of (str, int, float)
        Each step: add, drop or swap, the feature, and the score after it (a swap is told by the feature that came).
    n_candidates : int
        Features that vary.
    """

    feature: np.ndarray
    score: np.ndarray
    regions: tuple[tuple[int, ...], ...]
    ceiling: np.ndarray
    moves: tuple[tuple[str, int, float], ...]
    n_candidates: int

    @property
    def best_size(self) -> int:
        """Number of features with the largest score."""
        return int(np.argmax(self.score)) + 1


def greedy_selection(
    X: Any,
    D: np.ndarray,
    n_features: int,
    *,
    comparison: Comparison = "pearson",
    steps: Steps = "forward",
    standardise: bool = True,
) -> GreedyPath:
    """Choose features whose common RDM is most like a model RDM.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V)
    D : ndarray, shape (n, n)
        Model RDM: symmetric, zeros on the diagonal; NaN leaves a pair out (only with "pearson", and n times slower).
    n_features : int
    comparison : {"pearson", "whitened"}
        Correlation of squared-difference RDMs, or linear CKA.
    steps : {"forward", "floating", "swap"}
    standardise : bool, default=True
        Give every feature the sum of squares 1 first.

    Returns
    -------
    GreedyPath

    Raises
    ------
    InvalidInput
        The model is no RDM or leaves pairs out of a whitened comparison, or fewer features vary than are wanted.

    Examples
    --------
    >>> labels = np.repeat([0, 1, 2], 4)
    >>> X = np.random.default_rng(0).normal(size=(12, 50))
    >>> X[:, :3] = np.eye(3)[labels]  # three features, one for each label
    >>> path = greedy_selection(X, 1.0 - (labels[:, None] == labels), 3, comparison="whitened")
    >>> sorted(path.feature.tolist()), path.score.round(3).tolist(), path.ceiling.round(3).tolist()
    ([0, 1, 2], [0.707, 0.894, 1.0], [0.707, 1.0, 1.0])
    """
    if steps not in STEPS:
        raise InvalidInput(f"steps is {steps!r}; it must be 'forward', 'floating' or 'swap'.")
    model = checked(D, comparison, X.shape[0])
    if model.is_full or comparison == "whitened":
        shape = ModelForm.of(model, comparison)
        space: RDMSpace | MaskedSpace = RDMSpace(X, comparison, standardise)
        numerators = space.numerators(shape) / shape.norm
    else:
        space = MaskedSpace(X, model, standardise)
        numerators = space.numerators() / space.model_norm
    enough(space, n_features)
    ceiling = np.full(n_features, np.nan)
    if comparison == "whitened":
        ceiling = region_ceiling(np.linalg.eigvalsh(centred_kernel(model.values)), n_features)
    if steps == "forward":
        order, score = (found[0] for found in forward(space, numerators, n_features))
        moves = tuple(("add", int(f), float(s)) for f, s in zip(order, score, strict=True))
        regions = tuple(tuple(order[: size + 1].tolist()) for size in range(n_features))
    else:
        search = _Search(space, numerators[0])
        search.run(n_features, steps)
        regions, moves = tuple(search.best[size][1] for size in range(1, n_features + 1)), tuple(search.moves)
        order, score = np.array(regions[-1]), np.array([search.best[size][0] for size in range(1, n_features + 1)])
    return GreedyPath(order, score, regions, ceiling, moves, int(space.valid.sum()))


def region_ceiling(spectrum: np.ndarray, n_features: int) -> np.ndarray:
    """Best possible whitened score of 1 … k features.

    Parameters
    ----------
    spectrum : ndarray
        Eigenvalues of K.
    n_features : int

    Returns
    -------
    ndarray, shape (n_features,)

    Examples
    --------
    >>> region_ceiling(np.array([4.0, 3.0, 0.0]), 3).tolist()
    [0.8, 1.0, 1.0]
    """
    positive = np.sort(np.maximum(spectrum, 0))[::-1] ** 2
    reached = np.cumsum(positive)[np.minimum(np.arange(n_features), positive.size - 1)]
    return np.sqrt(reached / (np.asarray(spectrum) ** 2).sum())


def enough(space: RDMSpace | MaskedSpace, n_features: Any) -> None:
    """Refuse a number of features that cannot be chosen."""
    if isinstance(n_features, bool) or not isinstance(n_features, (int, np.integer)) or n_features < 1:
        raise InvalidInput(f"n_features must be a whole number of at least 1, found {n_features!r}.")
    if space.valid.sum() < n_features:
        raise InvalidInput(f"{int(space.valid.sum())} features vary, fewer than n_features = {n_features}.")


def forward(space: RDMSpace | MaskedSpace, numerators: np.ndarray, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Forward selection for several models at once.

    Parameters
    ----------
    space : RDMSpace or MaskedSpace
    numerators : ndarray, shape (P, V)
        Of every model, divided by its norm.
    n_features : int

    Returns
    -------
    order : ndarray of int, shape (P, n_features)
    score : ndarray, shape (P, n_features)
    """
    count = len(numerators)
    each = np.arange(count)
    order, score = np.empty((count, n_features), dtype=int), np.empty((count, n_features))
    numerator, squared = np.zeros(count), np.zeros(count)
    between = np.zeros_like(numerators)
    closed = np.tile(~space.valid, (count, 1))
    for step in range(n_features):
        squares = squared[:, None] + 2 * between + space.norms
        found = (numerator[:, None] + numerators) / np.sqrt(np.where(closed, 1.0, squares))
        found[closed] = -np.inf
        chosen = found.argmax(axis=1)
        order[:, step], score[:, step] = chosen, found[each, chosen]
        numerator += numerators[each, chosen]
        squared = squares[each, chosen]
        closed[each, chosen] = True
        if step + 1 < n_features:
            between += space.columns(chosen)
    return order, score


class _Search:
    """A region that features join and leave."""

    def __init__(self, space: RDMSpace | MaskedSpace, numerators: np.ndarray) -> None:
        self.space, self.c = space, numerators
        self.members: list[int] = []
        self.numerator = self.squared = 0.0
        self.between = np.zeros(space.n_features)
        self.closed = ~space.valid
        self.best: dict[int, tuple[float, tuple[int, ...]]] = {}
        self.moves: list[tuple[str, int, float]] = []

    @property
    def score(self) -> float:
        """r of the region."""
        return self.numerator / np.sqrt(self.squared)

    def run(self, n_features: int, steps: Steps) -> None:
        """Grow to a size."""
        while len(self.members) < n_features:
            self._add(int(np.argmax(self._joining(self.numerator, self.squared, self.between))))
            self._told("add", self.members[-1])
            if steps == "floating":
                self._float()
            else:
                self._swap()

    def _joining(self, numerator: float, squared: float, between: np.ndarray) -> np.ndarray:
        """Score of a region with each other feature."""
        squares = np.where(self.closed, 1.0, squared + 2 * between + self.space.norms)
        return np.where(self.closed, -np.inf, (numerator + self.c) / np.sqrt(squares))

    def _without(self, feature: int | np.ndarray) -> tuple[Any, Any]:
        squares = self.squared - 2 * self.between[feature] + self.space.norms[feature]
        return self.numerator - self.c[feature], squares

    def _float(self) -> None:
        while len(self.members) > 2:
            numerator, squares = self._without(np.array(self.members))
            scores = numerator / np.sqrt(squares)
            place = int(np.argmax(scores))
            if scores[place] <= self.best[len(self.members) - 1][0] + _BETTER:
                return
            self._told("drop", self._drop(self.members[place]))

    def _swap(self) -> None:
        while len(self.members) > 1:
            found = []
            for member in self.members:
                numerator, squares = self._without(member)
                scores = self._joining(numerator, squares, self.between - self.space.columns(np.array([member]))[0])
                found.append((float(scores.max()), member, int(scores.argmax())))
            score, leaves, comes = max(found)
            if score <= self.score + _BETTER:
                return
            self._drop(leaves)
            self._add(comes)
            self._told("swap", comes)

    def _add(self, feature: int) -> None:
        self.squared += 2 * self.between[feature] + self.space.norms[feature]
        self._moved(feature, 1)
        self.members.append(feature)

    def _drop(self, feature: int) -> int:
        self.squared = self._without(feature)[1]
        self._moved(feature, -1)
        self.members.remove(feature)
        return feature

    def _moved(self, feature: int, sign: int) -> None:
        self.numerator += sign * self.c[feature]
        self.between += sign * self.space.columns(np.array([feature]))[0]
        self.closed[feature] = sign > 0

    def _told(self, move: str, feature: int) -> None:
        self.moves.append((move, feature, float(self.score)))
        size = len(self.members)
        if size not in self.best or self.score > self.best[size][0]:
            self.best[size] = float(self.score), tuple(self.members)
