"""Model RDMs from labels and numbers: n × n, symmetric, 0 on the diagonal, NaN for pairs the model says nothing about.

==============  ===========  ============  ===========
model           same target  target–other  other–other
==============  ===========  ============  ===========
categorical     0            1             0 (same label) or 1
discriminative  0            1             left out
coherence       0            left out      1 (same label)
==============  ===========  ============  ===========

Coherence asks whether trials of the target resemble each other more than trials of another label do; it says nothing
about the distance between them, which is what the other two are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed


def categorical_rdm(labels: Sequence[Any]) -> np.ndarray:
    """0 for two rows with the same label, 1 for two with different labels.

    Parameters
    ----------
    labels : sequence, length n

    Returns
    -------
    ndarray, shape (n, n)

    Examples
    --------
    >>> categorical_rdm(["a", "a", "b"]).tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    labels = np.asarray(labels)
    return (labels[:, None] != labels).astype(float)


def discriminative_rdm(labels: Sequence[Any], target: Any) -> np.ndarray:
    """0 for two targets, 1 for a target and another label, NaN for two others.

    Parameters
    ----------
    labels : sequence, length n
    target : label

    Returns
    -------
    ndarray, shape (n, n)

    Examples
    --------
    >>> discriminative_rdm(["a", "a", "b"], "b")[0].tolist()
    [0.0, nan, 1.0]
    """
    is_target = _is_target(labels, target)
    rdm = np.where(is_target[:, None] & is_target, 0.0, np.where(is_target[:, None] | is_target, 1.0, np.nan))
    np.fill_diagonal(rdm, 0.0)
    return rdm


def coherence_rdm(labels: Sequence[Any], target: Any) -> np.ndarray:
    """0 for two targets, 1 for two rows with the same other label, NaN for rows with different labels.

    Parameters
    ----------
    labels : sequence, length n
    target : label

    Returns
    -------
    ndarray, shape (n, n)

    Examples
    --------
    >>> coherence_rdm(["a", "a", "b", "b"], "b")[[0, 0, 2], [1, 2, 3]].tolist()
    [1.0, nan, 0.0]
    """
    is_target, labels = _is_target(labels, target), np.asarray(labels)
    same = labels[:, None] == labels
    rdm = np.where(same, np.where(is_target, 0.0, 1.0), np.nan)
    np.fill_diagonal(rdm, 0.0)
    return rdm


def numeric_rdm(values: Sequence[float], squared: bool = False) -> np.ndarray:
    """|a − b| of a number of every row, or its square.

    Parameters
    ----------
    values : sequence of float, length n
    squared : bool, default=False
        The squared distance makes the whitened comparison of a feature the square of its correlation with `values`.

    Returns
    -------
    ndarray, shape (n, n)

    Examples
    --------
    >>> numeric_rdm([1, 3, 3]).tolist()
    [[0.0, 2.0, 2.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise InvalidInput("a model RDM of numbers needs finite numbers in every row.")
    distance = np.abs(values[:, None] - values)
    return distance**2 if squared else distance


def _is_target(labels: Sequence[Any], target: Any) -> np.ndarray:
    labels = np.asarray(labels)
    found = labels == target
    if not np.any(found):
        known = [str(label) for label in np.unique(labels)]
        hint = closest(str(target), known) or "."
        raise InvalidInput(f"the target {str(target)!r} is none of the labels{hint} They are {listed(known)}.")
    return found
