"""A guard against reading a decoder upside down."""

from __future__ import annotations

from typing import Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.validation import shown


def check_direction(scores: Any, labels: Any, target: Any, n_rows: int | None = None) -> tuple[float, float]:
    """Make sure that rows with high scores are of the class that high scores are said to mean.

    The rows with the highest probability of one class are easily handed on as examples of the other. With labels for
    some of the rows that cannot happen unnoticed.

    Parameters
    ----------
    scores : array-like, shape (n,)
        Larger: said to be more of `target`.
    labels : array-like, shape (n,)
        The class of each row.
    target : object
        The class.
    n_rows : int, optional
        How many of the highest and of the lowest rows are compared; default: a fifth, at least 1. Rows that
        tie at the border count in part.

    Returns
    -------
    top, bottom : float
        Share of `target` among the highest and the lowest rows.

    Raises
    ------
    DataMismatch
        The share is not larger among the highest rows.
    InvalidInput
        The class does not occur, or scores and labels do not fit.

    Examples
    --------
    >>> check_direction([0.9, 0.8, 0.2, 0.1], ["good", "good", "bad", "bad"], "good", n_rows=2)
    (1.0, 0.0)
    >>> check_direction([0.9, 0.8, 0.2, 0.1], ["good", "good", "bad", "bad"], "bad", n_rows=2)
    Traceback (most recent call last):
    ...
    neurollm.errors.DataMismatch: check_direction: high scores are said to mean 'bad', but of the 2 highest rows 0% ...
    """
    try:
        scores, labels = np.asarray(scores, dtype=float), np.asarray(labels)
    except (TypeError, ValueError):
        raise InvalidInput("check_direction: scores must be numbers and labels a list, one of each per row.") from None
    if scores.ndim != 1 or scores.shape != labels.shape or not np.isfinite(scores).all():
        raise InvalidInput(
            f"check_direction: one finite score and one label per row are expected, found shapes {scores.shape} and "
            f"{labels.shape}."
        )
    is_target = labels == target
    if is_target.all() or not is_target.any():
        raise InvalidInput(
            f"check_direction: {shown(target)} is the label of {int(is_target.sum())} of {scores.size} rows; rows of "
            "this class and of others are needed."
        )
    n_rows = max(scores.size // 5, 1) if n_rows is None else n_rows
    whole = isinstance(n_rows, (int, np.integer)) and not isinstance(n_rows, bool)
    if not whole or not 1 <= n_rows <= scores.size // 2:
        raise InvalidInput(
            f"check_direction: n_rows must be 1 to {scores.size // 2} (half the rows), found {shown(n_rows)}."
        )
    top, bottom = _share(scores, is_target, n_rows), _share(-scores, is_target, n_rows)
    if not top > bottom:
        raise DataMismatch(
            f"check_direction: high scores are said to mean {shown(target)}, but of the {n_rows} highest rows "
            f"{top:.0%} are {shown(target)} and of the {n_rows} lowest {bottom:.0%}; the direction is reversed, or the "
            "scores say nothing about this class."
        )
    return top, bottom


def _share(scores: np.ndarray, is_target: np.ndarray, n_rows: int) -> float:
    """Share of the class among the `n_rows` highest rows; rows that tie at the border share the places left."""
    border = np.sort(scores)[-n_rows]
    above, level = scores > border, scores == border
    return float((is_target[above].sum() + (n_rows - above.sum()) * is_target[level].mean()) / n_rows)
