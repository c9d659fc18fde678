"""Null distributions of a whole decoding pipeline (Ojala & Garriga 2010, JMLR 11:1833).

Test 1 exchanges labels. The trials of an item with one label are a *cell*. In items with several labels the labels of
their cells change places; the others exchange their labels as wholes. Cells move as wholes, because trials of one
cell (copies, wordings) are not independent observations.

Labels change places only between cells with the same number of trials. If a label came with more trials, exchanges
between unequal cells would even out the classes, and a decoder whose AUROC depends on the sizes of the classes would
be compared with runs that differ from it in more than the labels (with 1 and 15 trials in every item, noise reached
p ≤ .05 in 18 % of the data sets). Given the sizes, equal cells are exchangeable, so that p is exact; a cell that has
no equal keeps its label.

Test 2 exchanges each feature by itself, among items with the same labels, so that every feature keeps its relation with
the labels while the relations between features inside a class are lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.decoding.panels import Plan, cross_validate
from neurollm.decoding.scores import mean_area
from neurollm.decoding.trials import Trials
from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.stats.arrays import dense
from neurollm.stats.folds import Split
from neurollm.stats.shufflings import Shuffling, whole_item, within_item

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-12  # by which equal areas may differ
_FEWEST = 20  # arrangements with which p can be .05


def label_draws(codes: np.ndarray, items: np.ndarray, n_perm: int, random_state: int) -> tuple[np.ndarray, bool]:
    """Labels under the null hypothesis of test 1.

    Parameters
    ----------
    codes, items : ndarray of int, shape (n_trials,)
        Class and item of each trial.
    n_perm : int
    random_state : int

    Returns
    -------
    ndarray of int, shape (P, n_trials)
    exhaustive : bool
        These are all arrangements there are, the observed one included; else P = `n_perm`.

    Raises
    ------
    InvalidInput
        The numbers of trials differ between cells, and those that are equal allow fewer than 20 arrangements.

    Examples
    --------
    >>> draws, exhaustive = label_draws(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), 99, 0)
    >>> draws.tolist(), exhaustive
    ([[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0]], True)
    """
    cells, cell_of, sizes = np.unique(np.stack([items, codes], axis=1), axis=0, return_inverse=True, return_counts=True)
    cell_of, labels = cell_of.ravel(), cells[:, 1]
    groups, shufflings = _exchanges(cells[:, 0], labels, sizes)
    n_possible = math.prod(shuffling.n_possible for shuffling in shufflings)
    if n_possible < _FEWEST and _unequal(cells[:, 0], sizes):
        raise InvalidInput(
            f"permutation test: items and conditions have from {sizes.min()} to {sizes.max()} trials, labels can only "
            f"be exchanged between equal numbers of trials, and that allows {n_possible} arrangement"
            f"{'s' if n_possible > 1 else ''} of the {_FEWEST} that p = .05 needs; average the trials of each item "
            "and condition first, or give equal numbers of trials."
        )
    if n_possible <= n_perm:
        sources = [list(shuffling.draw(n_perm, random_state).index) for shuffling in shufflings]
        chosen = [np.stack(part) for part in zip(*product(*sources), strict=True)]
    else:
        chosen = [_drawn(part, n_perm, random_state, place) for place, part in enumerate(shufflings)]
    moved = np.tile(labels, (n_possible if n_possible <= n_perm else n_perm, 1))
    for rows, index in zip(groups, chosen, strict=True):
        moved[:, rows] = labels[rows][index]
    return moved[:, cell_of], n_possible <= n_perm


def _exchanges(items: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> tuple[list[np.ndarray], list[Shuffling]]:
    """Cells that exchange their labels, and how: within an item or, if it has a single cell, between items."""
    single = np.bincount(items)[items] == 1
    groups, shufflings = [], []
    if single.any():
        groups.append(np.flatnonzero(single))
        shufflings.append(whole_item(labels[single], blocks=sizes[single]))
    order = np.lexsort((sizes, items))
    order = order[~single[order]]
    _, alike, counts = np.unique(
        np.stack([items[order], sizes[order]]), axis=1, return_inverse=True, return_counts=True
    )
    own = counts[alike.ravel()]  # cells of a cell's item with as many trials
    for count in np.unique(own[own > 1]):
        groups.append(order[own == count])
        shufflings.append(within_item(int(np.sum(own == count) // count), (int(count),)))
    return groups, shufflings


def _unequal(items: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether numbers of trials keep labels from being exchanged, within an item or between items of a single cell."""
    first = np.unique(items, return_index=True)[1]
    single = np.bincount(items)[items] == 1
    return bool((sizes[first][items] != sizes).any() or np.unique(sizes[single]).size > 1)


def _drawn(shuffling: Shuffling, n_perm: int, random_state: int, place: int) -> np.ndarray:
    """`n_perm` random arrangements of one kind of items, independent of those of the other kinds."""
    rng = stream(random_state, "label_draws", place)
    draws = shuffling.draw(n_perm, int(rng.integers(2**31)))
    return draws.index[rng.integers(len(draws), size=n_perm)] if draws.exhaustive else draws.index


def features_drawn(X: Any, codes: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Trials under the null hypothesis of test 2.

    Each feature moves by itself from item to item, among items with the same numbers of trials of each class; their
    trials of a class keep their order.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n_trials, V)
    codes, items : ndarray of int, shape (n_trials,)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (n_trials, V)
    """
    out = dense(X)
    for places in interchangeable(codes, items):
        source = rng.permuted(np.repeat(np.arange(len(places))[:, None], out.shape[1], axis=1), axis=0)
        before = out[places]  # items × trials × V
        out[places] = np.take_along_axis(before, source[:, None, :], axis=0)
    return out


def interchangeable(codes: np.ndarray, items: np.ndarray) -> list[np.ndarray]:
    """Rows of the items with the same labels, (n_items, trials of an item) for each kind of item."""
    order = np.lexsort((codes, items))
    rows = np.split(order, np.flatnonzero(np.diff(items[order])) + 1)
    kinds: dict[tuple, list[np.ndarray]] = {}
    for own in rows:
        kinds.setdefault(tuple(codes[own].tolist()), []).append(own)
    return [np.stack(members) for _, members in sorted(kinds.items())]


def score_once(
    X: Any, codes: np.ndarray, items: np.ndarray, splits: Sequence[Split], n_classes: int, plan: Plan
) -> float:
    """AUROC of the whole pipeline; NaN if no fold holds both sides of a problem."""
    from sklearn import config_context

    with config_context(assume_finite=True, skip_parameter_validation=True):
        decisions, _ = cross_validate(X, codes, items, splits, n_classes, plan)
    rows, folds = tested_rows(splits)
    return mean_area(decisions, codes[rows], folds, n_classes)


def tested_rows(splits: Sequence[Split]) -> tuple[np.ndarray, np.ndarray]:
    """Trial and fold of every row of the test parts."""
    folds = np.repeat(np.arange(len(splits)), [test.size for _, test in splits])
    return np.concatenate([test for _, test in splits]), folds


def null_scores(run: Callable[[Any], float], arguments: Sequence, n_jobs: int | None, verbose: int) -> np.ndarray:
    """``run(argument)`` for every argument, in processes if asked for, each with one thread for products."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    found: list[float] = []
    workers = n_jobs or 1
    step = 1 if workers == 1 else max(len(arguments) // 10, 1)
    with (
        Progress("permutations", len(arguments), "runs", verbose) as progress,
        threadpool_limits(1, "blas"),
        Parallel(workers) as pool,
    ):
        for start in range(0, len(arguments), step):
            block = arguments[start : start + step]
            found += map(run, block) if workers == 1 else pool(delayed(run)(argument) for argument in block)
            progress.advance(len(block))
    return np.array(found)


@dataclass(frozen=True, eq=False)
class DependenceTest:
    """Whether a decoder uses dependence between features (Ojala & Garriga 2010, test 2).

    Attributes
    ----------
    score : float
        AUROC on unseen items.
    null_scores : ndarray, shape (n_perm,)
        AUROCs with each feature exchanged by itself inside classes.
    p_value : float
        ``(b + 1) / (n_perm + 1)``.
    """

    score: float
    null_scores: np.ndarray
    p_value: float

    @classmethod
    def of(
        cls, trials: Trials, plan: Plan, splits: Sequence[Split], n_perm: int, n_jobs: int | None, verbose: int
    ) -> DependenceTest:
        """Run the pipeline on the trials, and on `n_perm` exchanges of their features."""
        if n_perm < 1:
            raise InvalidInput(f"dependence_test: n_perm must be at least 1, found {n_perm}.")
        if max(len(places) for places in interchangeable(trials.codes, trials.items)) < 2:
            raise InvalidInput(
                "dependence_test: no two items have the same numbers of trials of each class, so no feature can be "
                "exchanged between items."
            )
        observed = _exchanged(trials, plan, splits, None)
        null = null_scores(partial(_exchanged, trials, plan, splits), range(n_perm), n_jobs, verbose)
        return cls(observed, null, p_value(observed, null, exhaustive=False))

    def to_frame(self) -> pd.DataFrame:
        """One row: score, mean and deviation of the null scores, p_value and n_perm."""
        import pandas as pd

        null = self.null_scores
        return pd.DataFrame(
            {
                "score": [self.score],
                "null_mean": [null.mean()],
                "null_sd": [null.std()],
                "p_value": [self.p_value],
                "n_perm": [null.size],
            }
        )

    def verdict(self) -> str:
        """What was found, in one sentence with its numbers."""
        found = (
            "the decoder uses how features depend on each other inside classes"
            if self.p_value <= 0.05
            else "nothing shows that the decoder uses more than the features one by one"
        )
        return (
            f"AUROC {self.score:.2f}, and {self.null_scores.mean():.2f} on average in {self.null_scores.size} runs in "
            f"which every feature was exchanged by itself inside the classes (p = {self.p_value:.2g}): {found}."
        )


def _exchanged(trials: Trials, plan: Plan, splits: Sequence[Split], draw: int | None) -> float:
    """AUROC of the pipeline; with a number, of exchanged features."""
    X = trials.X
    if draw is not None:
        X = features_drawn(X, trials.codes, trials.items, stream(plan.random_state, "feature_draws", draw))
    return score_once(X, trials.codes, trials.items, splits, trials.classes.size, plan)


def p_value(observed: float, null: np.ndarray, exhaustive: bool) -> float:
    """``(b + 1) / (P + 1)``, b of P arrangements reaching what was observed; ``b / P`` if they are all there are.

    An arrangement without an AUROC counts as one that reaches it.

    Examples
    --------
    >>> p_value(0.8, np.array([0.5, 0.9, 0.4]), exhaustive=False)
    0.5
    """
    reached = int((~(null < observed - ROUNDING)).sum())
    return reached / null.size if exhaustive else (reached + 1) / (null.size + 1)
