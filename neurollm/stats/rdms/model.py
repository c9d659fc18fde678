"""A model RDM taken in: which pairs it speaks of, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput


@dataclass(frozen=True)
class PairModel:
    """A model RDM.

    Attributes
    ----------
    values : ndarray, shape (n, n)
        0 where a pair is left out.
    pairs : ndarray of bool, shape (n, n)
        Pairs the model speaks of; symmetric, False on the diagonal.
    """

    values: np.ndarray
    pairs: np.ndarray

    @property
    def n_pairs(self) -> int:
        """Pairs i < j that the model speaks of."""
        return int(self.pairs.sum()) // 2

    @property
    def n_left_out(self) -> int:
        """Pairs i < j that it says nothing about."""
        n = len(self.pairs)
        return n * (n - 1) // 2 - self.n_pairs

    @property
    def is_full(self) -> bool:
        """Whether it speaks of all pairs."""
        return self.n_left_out == 0

    @property
    def mean(self) -> float:
        """Mean distance of the pairs it speaks of."""
        return float(self.values.sum() / self.pairs.sum())

    @property
    def is_constant(self) -> bool:
        """Whether all these distances are equal."""
        spoken = self.values[self.pairs]
        return bool(np.ptp(spoken) <= 1e-12 * np.abs(spoken).max())

    def refuse_constant(self, name: str = "") -> None:
        """Raise `InvalidInput` if all these distances are equal."""
        if self.is_constant:
            raise InvalidInput(
                f"RSA: the model {name + ' ' if name else ''}gives all its pairs the same distance, so nothing can be "
                "compared; it needs pairs that it calls alike and others that it calls unlike."
            )


def pair_model(D: np.ndarray, n: int | None = None) -> PairModel:
    """Check and take in a model RDM.

    Parameters
    ----------
    D : array-like, shape (n, n)
        Symmetric with a diagonal of 0; NaN leaves a pair out.
    n : int, optional
        Number of rows of the data.

    Returns
    -------
    PairModel

    Raises
    ------
    InvalidInput
        It is not square, symmetric and hollow, or speaks of fewer than two pairs.
    DataMismatch
        It has not as many rows as the data.

    Examples
    --------
    >>> pair_model([[0, 1, np.nan], [1, 0, 0], [np.nan, 0, 0]]).n_left_out
    1
    """
    D = np.array(D, dtype=float)
    if D.ndim != 2 or D.shape[0] != D.shape[1]:
        raise InvalidInput(f"a model RDM is a square table of trials × trials, found shape {D.shape}.")
    if n is not None and len(D) != n:
        raise DataMismatch(f"the model RDM has {len(D)} rows but the data have {n}.")
    if np.isinf(D).any():
        raise InvalidInput("a model RDM holds finite distances; leave pairs out with NaN, found an infinite one.")
    same = np.isclose(D, D.T, rtol=1e-9, atol=0, equal_nan=True)
    if not same.all():
        row, column = np.argwhere(~same)[0]
        raise InvalidInput(
            f"a model RDM is symmetric, but it says {D[row, column]:g} of rows {row} and {column} and "
            f"{D[column, row]:g} of rows {column} and {row}."
        )
    if np.nan_to_num(np.diag(D)).any():
        raise InvalidInput("a model RDM holds dissimilarities: its diagonal must be 0 (is this a similarity matrix?).")
    pairs = ~np.isnan(D)
    np.fill_diagonal(pairs, False)
    model = PairModel(np.where(pairs, D, 0.0), pairs)
    if model.n_pairs < 2:
        raise InvalidInput(f"a model RDM must speak of at least two pairs of trials, found {model.n_pairs}.")
    return model


DIGITS = 9  # to which distances in units of the largest are told apart when they are ranked


def without_rounding(distances: np.ndarray) -> np.ndarray:
    """Distances in units of the largest (of each column), with so few digits that .3 − .2 and .2 − .1 are tied.

    Otherwise the rounding of the last digit would decide about ties, differently for .1, .2, .3 and for 1, 2, 3.

    Examples
    --------
    >>> len(np.unique(without_rounding(np.array([0.3 - 0.2, 0.2 - 0.1, 0.2]))))
    2
    """
    largest = np.abs(distances).max(axis=0, initial=0)
    return np.round(distances / np.where(largest > 0, largest, 1), DIGITS)


def ranked(model: PairModel) -> PairModel:
    """Distances replaced by their ranks among the pairs that the model speaks of (ties share their mean rank)."""
    from scipy.stats import rankdata

    upper = np.triu(model.pairs, 1)
    values = np.zeros_like(model.values)
    values[upper] = rankdata(without_rounding(model.values[upper]))
    return replace(model, values=values + values.T)


def centred_kernel(values: np.ndarray) -> np.ndarray:
    """K_D = −½ HDH: the inner products that belong to squared distances.

    Parameters
    ----------
    values : ndarray, shape (n, n)

    Returns
    -------
    ndarray, shape (n, n)

    Examples
    --------
    >>> centred_kernel(np.array([[0.0, 4.0], [4.0, 0.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    rows = values.mean(axis=0)
    return -(values - rows - rows[:, None] + rows.mean()) / 2
