"""The part of a linear model that a contrast tests, and the part it does not.

With a design matrix M (n × p, of any rank) and a contrast C (q × p) the tested part is
``A = M (MᵀM)⁺ Cᵀ`` and the rest of the model is what of M is orthogonal to A (the partition that
Winkler et al. 2014, appendix A, attribute to Beckmann et al. 2001 and to Ridgway). Then ``Cβ̂ = Aᵀy``
exactly, whatever the correlation between columns and however many columns the contrast touches. The
matrix is never perturbed: a contrast that M does not determine is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TOLERANCE = 1e-9  # singular values and residuals below this share of the largest are rounding


@dataclass(frozen=True)
class Partition:
    """A contrast within a model.

    Attributes
    ----------
    tested : ndarray, shape (n, q)
        Orthonormal basis of the tested part; with q = 1 along the direction of the contrast.
    others : ndarray, shape (n, rank − q)
        Orthonormal basis of the rest of the model.
    scale : float
        ``√(c (MᵀM)⁺ cᵀ)``: with q = 1 the estimate is ``scale · tested·y``. NaN with q > 1.
    rank : int
        Rank of the model.
    """

    tested: np.ndarray
    others: np.ndarray
    scale: float
    rank: int


def orthonormal(columns: np.ndarray, against: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal basis of the columns, after removing the span of the orthonormal `against`.

    Parameters
    ----------
    columns : ndarray, shape (n, p)
        Judged column by column, so that units do not matter.
    against : ndarray, shape (n, k), optional

    Returns
    -------
    ndarray, shape (n, rank)
    """
    columns = np.asarray(columns, float)
    size = np.linalg.norm(columns, axis=0)
    columns = columns[:, size > 0] / size[size > 0]
    if against is not None and against.shape[1]:
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            columns = columns - against @ (against.T @ columns)
    if not columns.shape[1]:
        return np.zeros((len(columns), 0))
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > _TOLERANCE]


def is_estimable(model: np.ndarray, contrast: np.ndarray) -> bool:
    """Whether the model determines every row of the contrast.

    Examples
    --------
    >>> one_hot = np.array([[1.0, 1, 0], [1, 1, 0], [1, 0, 1]])
    >>> is_estimable(one_hot, np.array([[0, 1, -1.0]])), is_estimable(one_hot, np.array([[0, 1, 0.0]]))
    (True, False)
    """
    scaled, contrast = _scaled(model, contrast)
    back = contrast @ np.linalg.pinv(scaled, rcond=_TOLERANCE) @ scaled
    return bool(np.abs(back - contrast).max() <= 1e-7 * np.abs(contrast).max())


def partition(model: np.ndarray, contrast: np.ndarray) -> Partition | None:
    """Split a model into what a contrast tests and the rest.

    Parameters
    ----------
    model : ndarray, shape (n, p)
    contrast : ndarray, shape (q, p)
        Rows that repeat others are dropped.

    Returns
    -------
    Partition or None
        None if the contrast is not estimable.
    """
    contrast = np.atleast_2d(np.asarray(contrast, float))
    model = np.asarray(model, float)
    if not is_estimable(model, contrast):
        return None
    scaled, rows = _scaled(model, contrast)
    image = np.linalg.pinv(scaled, rcond=_TOLERANCE).T @ rows.T
    if len(contrast) == 1:
        scale = float(np.linalg.norm(image))
        tested = image / scale
    else:
        scale, tested = float("nan"), orthonormal(image)
    others = orthonormal(scaled, against=tested)
    return Partition(tested, others, scale, tested.shape[1] + others.shape[1])


def _scaled(model: np.ndarray, contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of unit size, and the contrast of the coefficients that go with them."""
    size = np.linalg.norm(model, axis=0)
    size = np.where(size > 0, size, 1.0)
    return model / size, np.atleast_2d(contrast) / size
