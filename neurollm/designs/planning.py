"""From a contrast to a test: which rows enter, with which model, and what is exchanged.

Every test has two halves. *Inside* an item its cells are reduced to one score (a difference, a mean) or, for
factors of three or more levels, to one row per level without the item's mean. *Between* items these rows
follow a linear model: a constant, group means, covariates. What is exchanged follows from the two:

==========================================  ====================================  ===============
the contrast compares                       exchanged                             scheme
==========================================  ====================================  ===============
cells of one item, as a ± balanced score    the sign of each item's score         ``sign_flip``
cells of one item, otherwise                labels inside each item               ``within_item``
items (or their scores)                     whole items, inside blocks            ``whole_item``
==========================================  ====================================  ===============

A score that weighs m cells by +w and m cells by −w is symmetric under the null hypothesis, because exchanging
the two sides negates it; a score such as a − (b + c)/2 is not, for skewed activations, so its labels are
exchanged instead of its sign. For an interaction inside items the labels of every factor are exchanged
independently: additive effects of the factors do not enter the doubly centred cells at all.

The sources of the scheme: Winkler et al. 2014 (exchangeability blocks), Anderson & ter Braak 2003 (factorial designs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from neurollm.designs.base import Exchangeability, counted
from neurollm.errors import InvalidInput
from neurollm.stats import shufflings
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.partition import orthonormal, partition
from neurollm.stats.shufflings import Shuffling
from neurollm.validation import listed, several

MIN_COMPLETE_SHARE = 0.5  # of items: with fewer the design is mixed, not incomplete


@dataclass(frozen=True)
class ContrastPlan:
    """How one contrast is tested on an item × cell table.

    Attributes
    ----------
    used : ndarray of int
        Rows of the table that enter.
    reduce : csr_array, shape (n_rows, rows of the table)
        Turns the table into the rows that are tested.
    hypothesis : Hypothesis
    scale : float
        With one tested degree of freedom the estimate is ``scale · tested·y``; its standard error is ``scale`` times
        the residual standard deviation.
    scores : csr_array, shape (n_items, n_rows), or None
        One value per item whose mean is the estimate, where the rows are not one per item.
    group_codes, group_weights : ndarray or None
        Group of each row and weight of each group, where the model is nothing but group means.
    model_rank, n_columns : int
        Rank of the model, and its columns: fewer independent ones than columns is a redundancy, not an error.
    n_dropped : int
        Items left out because they miss a cell.
    exchangeability : Exchangeability
    is_difference : bool
        The estimate is a difference of means, so a standardised difference has a meaning.
    """

    used: np.ndarray
    reduce: sparse.csr_array
    hypothesis: Hypothesis
    scale: float
    scores: sparse.csr_array | None
    group_codes: np.ndarray | None
    group_weights: np.ndarray | None
    model_rank: int
    n_columns: int
    n_dropped: int
    exchangeability: Exchangeability
    is_difference: bool = True


@dataclass(frozen=True)
class Inside:
    """What happens inside an item.

    Attributes
    ----------
    weights : ndarray, shape (R, W)
        Rows of an item from its W cells.
    space : ndarray, shape (R, d)
        Orthonormal basis of the space in which these rows lie.
    contrast : ndarray, shape (q, d)
        What is tested there.
    shape : tuple of int
        Levels whose labels are exchanged inside the item; empty for a score.
    """

    weights: np.ndarray
    space: np.ndarray
    contrast: np.ndarray
    shape: tuple[int, ...] = ()

    @classmethod
    def score(cls, weights: np.ndarray) -> Inside:
        """One number per item."""
        return cls(np.atleast_2d(weights), np.ones((1, 1)), np.ones((1, 1)))


@dataclass(frozen=True)
class Between:
    """What happens between items.

    Attributes
    ----------
    groups : ndarray of int, shape (n_items,)
    contrast : ndarray, shape (q, number of groups)
    shuffled_along : bool
        The null hypothesis says that all conditions are alike, so all differences between them are exchanged;
        otherwise other differences are kept as nuisance.
    compares : bool
        The contrast compares groups; otherwise it is about their mean.
    """

    groups: np.ndarray
    contrast: np.ndarray
    shuffled_along: bool = False
    compares: bool = False

    @classmethod
    def none(cls, n_items: int, shuffled_along: bool = True) -> Between:
        """All items alike."""
        return cls(np.zeros(n_items, int), np.ones((1, 1)), shuffled_along)


@dataclass(frozen=True)
class Frame:
    """What the table brings to a test besides the contrast.

    Attributes
    ----------
    name : str
        Of the contrast, for messages.
    item : str
        What the units are called.
    rows : ndarray of int, shape (n_items, W)
        Rows of the table, item by item.
    covariates : ndarray, shape (rows of the table, c)
    blocks : ndarray of int, shape (n_items,), or None
    n_table : int
        Rows of the table.
    n_dropped : int
    """

    name: str
    item: str
    rows: np.ndarray
    covariates: np.ndarray
    blocks: np.ndarray | None
    n_table: int
    n_dropped: int = 0


def plan(frame: Frame, inside: Inside, between: Between, words: str) -> ContrastPlan:
    """Put the two halves together.

    Parameters
    ----------
    frame : Frame
    inside : Inside
    between : Between
    words : str
        What is compared, in the words of the design; the sentence begins with it.

    Returns
    -------
    ContrastPlan

    Raises
    ------
    InvalidInput
        Nothing is left to test with, or the contrast cannot be told apart from covariates or blocks.
    """
    n, size = len(frame.rows), len(inside.weights)
    if n < 2:
        raise InvalidInput(f"contrast '{frame.name}': {n} {frame.item} is left to test it; at least 2 are needed.")
    reduce = _reduce(frame, inside)
    covariates = reduce @ frame.covariates
    indicators = np.eye(between.contrast.shape[1])[between.groups]
    model = np.kron(indicators, inside.space)
    fixed, groups = _fixed(frame, inside, between)
    full = np.hstack([model, covariates, fixed])
    contrast = np.kron(between.contrast, inside.contrast)
    part = partition(full, np.hstack([contrast, np.zeros((len(contrast), full.shape[1] - model.shape[1]))]))
    if part is None:
        raise InvalidInput(
            f"contrast '{frame.name}' cannot be estimated: what it compares follows from "
            f"{'the covariates' if covariates.shape[1] else 'the blocks'}; leave them out or balance the stimuli."
        )
    df = n * inside.space.shape[1] - part.rank
    if df < 1:
        raise InvalidInput(
            f"contrast '{frame.name}': {n} {several(frame.item)} for a model of rank {part.rank} leave no degrees of "
            f"freedom; more values of '{frame.item}' are needed in every condition."
        )
    others = orthonormal(part.others, against=fixed)
    if between.shuffled_along:
        nuisance = orthonormal(covariates, against=np.hstack([fixed, part.tested]))
        others = orthonormal(others, against=nuisance)
    else:
        nuisance, others = others, others[:, :0]
    shuffling = _shuffling(frame, inside, between, covariates)
    hypothesis = Hypothesis(part.tested, others, nuisance, groups, df, shuffling)
    plain = size == 1 and not covariates.shape[1] and frame.blocks is None and between.compares
    means = plain and between.shuffled_along and hypothesis.rank == 1
    return ContrastPlan(
        np.sort(frame.rows.ravel()),
        reduce,
        hypothesis,
        part.scale,
        _scores(inside, n) if size > 1 and hypothesis.rank == 1 else None,
        between.groups if means else None,
        between.contrast[0] if means else None,
        part.rank,
        full.shape[1],
        frame.n_dropped,
        describe(shuffling, words, frame, nuisance.shape[1] > 0),
    )


def _reduce(frame: Frame, inside: Inside) -> sparse.csr_array:
    flat = frame.rows.ravel()
    chosen = sparse.csr_array((np.ones(flat.size), (np.arange(flat.size), flat)), shape=(flat.size, frame.n_table))
    return sparse.csr_array(sparse.kron(sparse.eye_array(len(frame.rows)), inside.weights, format="csr") @ chosen)


def _fixed(frame: Frame, inside: Inside, between: Between) -> tuple[np.ndarray, np.ndarray | None]:
    """What an exchange of whole items leaves unchanged: the mean of each row of an item, in each block."""
    n, size = len(frame.rows), len(inside.weights)
    if not between.compares:
        return np.zeros((n * size, 0)), None
    blocks = np.zeros(n, int) if frame.blocks is None else np.unique(frame.blocks, return_inverse=True)[1]
    indicators = np.eye(blocks.max() + 1)[blocks]
    fixed = orthonormal(np.kron(indicators, inside.space))
    return fixed, (blocks[:, None] * size + np.arange(size)).ravel()


def _shuffling(frame: Frame, inside: Inside, between: Between, covariates: np.ndarray) -> Shuffling:
    n, size = len(frame.rows), len(inside.weights)
    if between.compares:
        rows = np.hstack([between.groups[:, None], covariates.reshape(n, -1)])
        codes = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
        return shufflings.whole_item(codes, frame.blocks, rows_per_item=size)
    if inside.shape:
        return shufflings.within_item(n, inside.shape)
    return shufflings.sign_flip(n)


def _scores(inside: Inside, n: int) -> sparse.csr_array:
    """Contrast of each item's rows (one tested degree of freedom)."""
    return sparse.csr_array(sparse.kron(sparse.eye_array(n), inside.contrast @ inside.space.T, format="csr"))


def describe(shuffling: Shuffling, words: str, frame: Frame, residuals: bool) -> Exchangeability:
    """The exchange in one sentence."""
    n, item = len(frame.rows), frame.item
    blocks = "" if frame.blocks is None else f", inside each of {len(np.unique(frame.blocks))} blocks"
    text = {
        "sign_flip": f"the sign of the difference is flipped in each of the {n} {several(item)}",
        "within_item": f"these labels are exchanged inside each of the {n} {several(item)}",
        "whole_item": f"the labels are exchanged between the {n} {several(item)} as wholes{blocks}",
    }
    return in_words(shuffling, (n, item), f"{words}: {text[shuffling.kind]}", residuals)


def in_words(shuffling: Shuffling, units: tuple[int, str], text: str, residuals: bool) -> Exchangeability:
    """An exchange with its sentence completed: whether residuals are exchanged, and how many shufflings exist."""
    n, item = units
    kept = ", on the residuals of what is held constant (Freedman-Lane)" if residuals else ""
    sentence = f"{text}{kept} ({counted(shuffling.n_possible)} possible shufflings)."
    return Exchangeability(shuffling.kind, item, n, shuffling.n_possible, sentence, residuals)


def is_balanced(weights: Sequence[float]) -> bool:
    """Whether exchanging cells can negate the weights: the positive ones equal the negative ones in size."""
    weights = np.asarray(weights, float)
    positive, negative = np.sort(weights[weights > 0]), np.sort(-weights[weights < 0])
    return positive.size == negative.size and bool(np.allclose(positive, negative))


def centring(size: int) -> np.ndarray:
    """The matrix that removes the mean."""
    return np.eye(size) - 1 / size


def differences(size: int) -> np.ndarray:
    """Orthonormal columns that span the differences between `size` levels."""
    return linalg.helmert(size).T


def joined(names: Sequence[str]) -> str:
    """Names in a sentence."""
    names = [str(name) for name in names]
    if len(names) > 6:
        return f"the levels {listed(names)}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
