"""Selectors × numbers of features on one representation: out-of-fold scores, feature sets and their stability.

The whole procedure is inside the training part of every fold of every repetition: columns without variance there are
left out, principal components are fitted (where components are asked for), the selector ranks the columns, the best
k are standardised, and a ridge classifier is trained whose penalty is chosen by leaving items out
(`neurollm.decoding.ridge`). The trials of an item are on one side of every split. Selectors see the values as they are,
so that those which depend on the scale of a feature do so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from neurollm.decoding.permutation import label_draws
from neurollm.decoding.ridge import ridge_scores
from neurollm.decoding.scores import balanced_accuracy as mean_recall
from neurollm.decoding.scores import fold_areas, jaccard
from neurollm.decoding.selectors import SELECTORS, select
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.random import stream
from neurollm.stats.folds import item_folds
from neurollm.stats.linear import NOISE
from neurollm.stats.paired_scores import item_kinds, n_units, resampled_items
from neurollm.validation import closest

if TYPE_CHECKING:
    import pandas as pd


ALL = "all"
"""The cell without selection: all columns."""
Cell = tuple[str, int]


@dataclass(frozen=True)
class GridPlan:
    """What is crossed, and how it is cross-validated.

    Attributes
    ----------
    selectors : tuple of str
        Names in `SELECTORS`; none: only the cell with all columns.
    sizes : tuple of int
        Numbers of features k, rising.
    n_folds, n_repeats : int
        Repetition r has folds of its own.
    random_state : int
    """

    selectors: tuple[str, ...]
    sizes: tuple[int, ...]
    n_folds: int = 5
    n_repeats: int = 5
    random_state: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.selectors if name not in SELECTORS]
        if unknown:
            raise InvalidInput(
                f"selectors: {unknown[0]!r} is unknown{closest(unknown[0], SELECTORS)}; use {', '.join(SELECTORS)}"
            )
        if list(self.sizes) != sorted(set(self.sizes)) or not all(size >= 1 for size in self.sizes):
            raise InvalidInput(f"sizes: expected rising numbers of features from 1, found {self.sizes}")
        if self.n_folds < 2 or self.n_repeats < 1:
            raise InvalidInput(
                f"at least 2 folds and 1 repetition are needed, found {self.n_folds} and {self.n_repeats}"
            )

    @property
    def cells(self) -> list[Cell]:
        """(selector, k) of every cell; the last is (`ALL`, 0)."""
        return [(selector, size) for selector in self.selectors for size in self.sizes] + [(ALL, 0)]

    def folds(self, labels: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Test fold of each trial in each repetition, shape (n_repeats, n); fewer folds if a level has fewer items.

        Raises
        ------
        InvalidInput
            A level has fewer than 2 items.
        """
        items = np.unique(items, return_inverse=True)[1]
        fewest = min(np.unique(items[labels == side]).size for side in (True, False))
        if fewest < 2:
            raise InvalidInput(f"every level needs at least 2 items to be cross-validated, found {fewest}")
        seeds = [int(stream(self.random_state, "grid_folds", r).integers(2**32)) for r in range(self.n_repeats)]
        return np.array([item_folds(labels, items, min(self.n_folds, fewest), seed) for seed in seeds])


@dataclass(frozen=True, eq=False)
class GridScores:
    """What came out for one representation.

    Attributes
    ----------
    plan : GridPlan
    folds : ndarray of int, shape (R, n)
        Test fold of each trial in each repetition.
    scores : ndarray, shape (R, n_cells, n)
        Out-of-fold decision values, NaN in cells that are left out.
    rankings : ndarray of int, shape (R, n_folds, n_selectors, largest k)
        The best columns of each training part, best first; −1 where there are no more.
    n_columns : ndarray of int, shape (R, n_folds)
        Columns that vary in the training part.
    left_out : dict
        cell → why it has no scores.
    """

    plan: GridPlan
    folds: np.ndarray
    scores: np.ndarray
    rankings: np.ndarray
    n_columns: np.ndarray
    left_out: dict[Cell, str]

    def selected(self) -> pd.DataFrame:
        """The feature sets: one row per repetition, fold, selector and rank, with the column."""
        import pandas as pd

        repeat, fold, selector, rank = np.indices(self.rankings.shape)
        frame = pd.DataFrame(
            {
                "repeat": repeat.ravel(),
                "fold": fold.ravel(),
                "selector": np.array(self.plan.selectors, dtype=object)[selector.ravel()],
                "rank": rank.ravel() + 1,
                "column": self.rankings.ravel(),
            }
        )
        return frame[frame["column"] >= 0].reset_index(drop=True)


def grid_scores(
    X: Any,
    labels: np.ndarray,
    items: np.ndarray,
    plan: GridPlan,
    *,
    components: bool = False,
    n_jobs: int = 1,
    report: Callable[[int], None] | None = None,
) -> GridScores:
    """Run all selectors and numbers of features on one representation.

    Parameters
    ----------
    X : ndarray or scipy.sparse, shape (n, V); or a list with one such matrix for each repetition
        A list is for representations that are drawn at random: every repetition has its own draw.
    labels : ndarray of bool, shape (n,)
        True: the concept.
    items : ndarray, shape (n,)
        Unit of cross-validation.
    plan : GridPlan
    components : bool, default=False
        Use principal components of the training trials in place of the columns, as many as have variance.
    n_jobs : int, default=1
        Processes; -1: one per core. Results do not depend on it.
    report : callable, optional
        Called with 1 after every fold.

    Returns
    -------
    GridScores

    Raises
    ------
    DataMismatch
        The numbers of rows differ.
    InvalidInput
        A level has fewer than 2 items.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels, items = np.arange(40) % 2 == 0, np.arange(40) // 2
    >>> X = rng.standard_normal((40, 6)) + 3 * labels[:, None] * (np.arange(6) == 4)
    >>> found = grid_scores(X, labels, items, GridPlan(("auroc",), (1,), n_repeats=1))
    >>> found.rankings[0, :, 0, 0].tolist()
    [4, 4, 4, 4, 4]
    """
    import joblib

    labels, items = np.asarray(labels, bool), np.asarray(items)
    matrices = [_dense(matrix) for matrix in (X if isinstance(X, list) else [X])]
    if len(matrices) not in (1, plan.n_repeats) or any(len(matrix) != labels.size for matrix in matrices):
        raise DataMismatch(
            f"method grid: {len(matrices)} matrices of {', '.join(str(len(matrix)) for matrix in matrices)} rows for "
            f"{plan.n_repeats} repetitions and {labels.size} labels; expected one matrix, or one per repetition"
        )
    folds = plan.folds(labels, items)
    tasks = [(r, fold) for r in range(plan.n_repeats) for fold in range(int(folds.max()) + 1)]
    # Processes: liblinear, which follows the L1 path, has one random state for all threads of a process.
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator")
    done = []
    for part in parallel(
        joblib.delayed(_fold)(matrices[r % len(matrices)], labels, items, folds[r] == fold, plan, components, (r, fold))
        for r, fold in tasks
    ):
        done.append(part)
        if report is not None:
            report(1)
    return _assemble(plan, folds, tasks, done)


@dataclass(frozen=True, eq=False)
class _Fold:
    """Of one fold: scores (n_cells, m), rankings (S, K), columns that vary, and columns each selector could rank."""

    scores: np.ndarray
    rankings: np.ndarray
    n_columns: int
    n_ranked: np.ndarray


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)


def _fold(
    X: np.ndarray,
    labels: np.ndarray,
    items: np.ndarray,
    test: np.ndarray,
    plan: GridPlan,
    components: bool,
    task: tuple[int, int],
) -> _Fold:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # for small products; and their number would change the rounding
        return _score_fold(X, labels, items, test, plan, components, task)


def _score_fold(
    X: np.ndarray,
    labels: np.ndarray,
    items: np.ndarray,
    test: np.ndarray,
    plan: GridPlan,
    components: bool,
    task: tuple[int, int],
) -> _Fold:
    train = ~test
    columns = np.flatnonzero(_varying(X[train]))
    values, unseen = X[np.ix_(train, columns)], X[np.ix_(test, columns)]
    if components:
        values, unseen = _components(values, unseen)
        columns = np.arange(values.shape[1])
    center, scale = values.mean(axis=0), values.std(axis=0)
    Z, Z_test = (values - center) / scale, (unseen - center) / scale
    most = plan.sizes[-1] if plan.sizes else 0
    scores = np.full((len(plan.cells), int(test.sum())), np.nan)
    rankings = np.full((len(plan.selectors), most), -1)
    n_ranked = np.zeros(len(plan.selectors), int)
    y, units = labels[train], items[train]
    # One draw per fold, the same for all selectors.
    seed = int(stream(plan.random_state, "grid_selectors", task[0] * 10_000 + task[1]).integers(2**31))
    for s, name in enumerate(plan.selectors):
        ranking = select(SELECTORS[name], values, y, most, seed)
        rankings[s, : len(ranking)], n_ranked[s] = columns[ranking], len(ranking)
        for i, size in enumerate(plan.sizes):
            if size < len(columns) and size <= len(ranking):
                best = ranking[:size]
                scores[s * len(plan.sizes) + i] = ridge_scores(Z[:, best], y, units, Z_test[:, best])
    scores[-1] = ridge_scores(Z, y, units, Z_test)
    return _Fold(scores, rankings, len(columns), n_ranked)


def _varying(values: np.ndarray) -> np.ndarray:
    """Finite columns that are not constant up to rounding."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values).all(axis=0) & (values.std(axis=0) > NOISE * np.abs(values).max(axis=0, initial=0))


def _components(values: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components that have variance in the training trials, in order; the largest loading is positive."""
    center = values.mean(axis=0)
    _, sizes, directions = np.linalg.svd(values - center, full_matrices=False)
    directions = directions[sizes > 1e-6 * sizes.max(initial=0)]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions = directions * np.sign(largest)
    return (values - center) @ directions.T, (unseen - center) @ directions.T


def _assemble(plan: GridPlan, folds: np.ndarray, tasks: list[tuple[int, int]], done: list[_Fold]) -> GridScores:
    n_folds = int(folds.max()) + 1
    scores = np.full((plan.n_repeats, len(plan.cells), folds.shape[1]), np.nan)
    for (r, fold), part in zip(tasks, done, strict=True):
        scores[r][:, folds[r] == fold] = part.scores
    n_columns = np.array([part.n_columns for part in done]).reshape(plan.n_repeats, n_folds)
    n_ranked = np.min([part.n_ranked for part in done], axis=0)
    left_out = {}
    for place, (selector, size) in enumerate(plan.cells[:-1]):
        rated = int(n_ranked[plan.selectors.index(selector)])
        if size >= n_columns.min():
            left_out[selector, size] = f"{n_columns.min()} columns vary in training, and k has to be smaller"
        elif size > rated:
            left_out[selector, size] = f"{selector} is defined for {rated} columns only"
        if (selector, size) in left_out:
            scores[:, place] = np.nan
    shape = plan.n_repeats, n_folds, len(plan.selectors), plan.sizes[-1] if plan.sizes else 0
    rankings = np.array([part.rankings for part in done]).reshape(shape)
    return GridScores(plan, folds, scores, rankings, n_columns, left_out)


def shuffle_labels(labels: np.ndarray, items: np.ndarray, random_state: int, index: int) -> np.ndarray:
    """Labels permuted by item, for the whole procedure to be run on: see `neurollm.decoding.permutation.label_draws`.

    Parameters
    ----------
    labels : ndarray of bool, shape (n,)
    items : ndarray, shape (n,)
    random_state, index : int
        Shuffling number `index` of this seed; where there are fewer arrangements they come again.

    Returns
    -------
    ndarray of bool, shape (n,)

    Raises
    ------
    InvalidInput
        The numbers of trials differ so much between the levels that labels cannot be exchanged.

    Examples
    --------
    >>> shuffle_labels(np.array([True, False, True, False]), np.array([0, 0, 1, 1]), random_state=0, index=1).tolist()
    [True, False, False, True]
    """
    codes = np.unique(items, return_inverse=True)[1]
    draws, _ = label_draws(labels.astype(int), codes, index + 1, random_state)
    return draws[index % len(draws)] == 1


def stability(rankings: np.ndarray, size: int, n_columns: np.ndarray, *, across: bool) -> tuple[float, float]:
    """Mean Jaccard index of the feature sets of all pairs of training parts, and what independent sets would have.

    Parameters
    ----------
    rankings : ndarray of int, shape (R, n_folds, K)
    size : int
        k: the first `size` columns of each ranking.
    n_columns : ndarray of int, shape (R, n_folds)
        Columns there were to choose from.
    across : bool
        Pairs of different repetitions count too; not so where every repetition has columns of its own.

    Returns
    -------
    jaccard, chance : float
        As from `neurollm.decoding.scores.jaccard`; NaN if there is no pair.

    Notes
    -----
    Training parts share most of their trials: a selector that follows the noise of its trials lies above chance as
    well.

    Examples
    --------
    >>> stability(np.array([[[0, 1], [1, 2]]]), 2, np.array([[4, 4]]), across=True)
    (0.333..., 0.388...)
    """
    R, F, _ = rankings.shape
    chosen = rankings[:, :, :size]
    if (chosen < 0).any():
        return float("nan"), float("nan")
    groups = [chosen.reshape(R * F, size)] if across else list(chosen)
    found = [jaccard(list(panels), round(float(n_columns.mean()))) for panels in groups]  # of equally many pairs
    observed, chance = np.mean(found, axis=0)
    return float(observed), float(chance)


def balanced_accuracy(
    scores: np.ndarray, labels: np.ndarray, items: np.ndarray, folds: np.ndarray, *, n_boot: int, random_state: int
) -> np.ndarray:
    """Balanced accuracy at threshold 0 with its bootstrap interval over items; repetitions are averaged.

    The interval is made as that of AUROC, see `neurollm.stats.paired_scores`.

    Parameters
    ----------
    scores : ndarray, shape (M, R, n)
        Of M methods.
    labels, items, folds : ndarray, shape (n,), (n,), (R, n)
    n_boot, random_state : int

    Returns
    -------
    ndarray, shape (3, M)
        Estimate, lower and upper end of the 95 % interval; NaN for methods without scores.
    """
    from scipy.stats import t as student

    codes = np.unique(items, return_inverse=True)[1]
    kinds, n_folds = item_kinds(labels, codes), np.unique(folds[0]).size
    units = n_units(kinds)
    weights = resampled_items(kinds, n_boot, stream(random_state, "grid_balanced_accuracy"))
    correct = ((scores > 0) == labels).mean(axis=1)  # a mean over repetitions first: recall is linear in it
    owners = np.eye(kinds.size)[codes]
    recalls = [
        correct[:, here] @ owners[here] @ weights.T / (weights @ owners[here].sum(axis=0)) for here in (labels, ~labels)
    ]
    variance = np.var(np.mean(recalls, axis=0), axis=1, ddof=1) * units / (units - 1) * (1 + n_folds / (n_folds - 1))
    half = student.ppf(0.975, units - 1) * np.sqrt(variance + (0.5 / (units + 2)) ** 2)
    values = np.array([mean_recall(one, labels.astype(int), 2) for one in correct])
    found = np.array([values, np.clip(values - half, 0, 1), np.clip(values + half, 0, 1)])
    found[:, ~np.isfinite(scores).all(axis=(1, 2))] = np.nan
    return found


def areas(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """AUROC over pairs of trials in the same fold, of each row of scores (M, n): shape (M,), NaN without scores."""
    return np.array([np.nan if np.isnan(one).any() else fold_areas(one, labels, folds)[0] for one in scores])


def cell_name(cell: Sequence) -> str:
    """Name of a cell's column in the saved scores: ``auroc_8``, or ``all``."""
    return ALL if cell[0] == ALL else f"{cell[0]}_{cell[1]}"
