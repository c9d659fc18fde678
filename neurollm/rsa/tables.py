"""Data RDMs and model RDMs brought to the same conditions and pairs, for the functions that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.errors import DataMismatch, InvalidInput
from neurollm.rsa.toolbox import as_rdms, check_rdms, named_matrices, plain_values, rdm_names, rsatoolbox_rdms, square
from neurollm.validation import closest, shown

if TYPE_CHECKING:
    from rsatoolbox.rdm import RDMs


@dataclass(frozen=True)
class Tables:
    """Upper triangles over the same conditions; a pair that is missing somewhere is NaN everywhere.

    Attributes
    ----------
    data : ndarray, shape (n_rdms, m)
    models : dict of name to ndarray, shape (m,), or (C, m) for a weighted model
    rdm_groups : ndarray of int, shape (n_rdms,)
    condition_groups : ndarray of int, shape (n_conditions,)
    dropped : tuple of int
        Conditions of the input without any distance in some RDM.
    n_pairs, n_pairs_left_out : int
    """

    data: np.ndarray
    models: dict[str, np.ndarray]
    rdm_groups: np.ndarray
    condition_groups: np.ndarray
    dropped: tuple[int, ...]
    n_pairs: int
    n_pairs_left_out: int

    @property
    def n_conditions(self) -> int:
        return self.condition_groups.size

    @property
    def n_rdm_groups(self) -> int:
        return int(self.rdm_groups.max()) + 1

    @property
    def n_condition_groups(self) -> int:
        return int(self.condition_groups.max()) + 1

    @property
    def is_weighted(self) -> bool:
        """Whether some model has weights to fit."""
        return any(vectors.ndim == 2 for vectors in self.models.values())

    def rdms(self, vectors: np.ndarray | None = None) -> RDMs:
        """The data, or other vectors, with groups as the only descriptors; copied, as rsatoolbox writes into them."""
        groups = {} if vectors is not None else {"rdm_group": self.rdm_groups}
        vectors = (self.data if vectors is None else vectors).copy()
        return as_rdms(
            vectors, measure=None, descriptors={}, rdm=groups, pattern={"condition_group": self.condition_groups}
        )


def tables(
    data_rdms: RDMs,
    models: Any,
    condition_groups: str | Sequence[Any] | None = None,
    rdm_groups: str | Sequence[Any] | None = None,
) -> Tables:
    """Check data and models and drop what is not in all of them.

    Raises
    ------
    InvalidInput
        Something is not an RDM, a descriptor is unknown, or the RDMs hold only the last fold of ``poisson_cv``.
    DataMismatch
        The conditions are not the same, or too few remain.
    """
    check_rdms(data_rdms, "data_rdms")
    if data_rdms.dissimilarity_measure == "poisson_cv":
        raise InvalidInput(
            "the data RDMs are rsatoolbox's 'poisson_cv', of which calc_rdm returns the last fold alone; use "
            "calc_rdm_unbalanced and name its dissimilarity_measure otherwise, or region_rdms with 'crossvalidated'."
        )
    stacks = _models(models, data_rdms)
    data = square(data_rdms.dissimilarities)
    if np.isinf(data).any():
        raise DataMismatch("the data RDMs hold infinite numbers.")
    n = data.shape[1]
    for name, stack in stacks.items():
        if stack.shape[1] != n:
            raise DataMismatch(f"model {shown(name)} has {stack.shape[1]} conditions but the data RDMs have {n}.")
    every = np.concatenate([data, *stacks.values()])
    dropped = np.flatnonzero((np.isnan(every).sum(axis=2) == n - 1).any(axis=0))
    kept = np.setdiff1d(np.arange(n), dropped)
    if kept.size < 3:
        raise DataMismatch(f"{dropped.size} of {n} conditions have no distance in some RDM; at least 3 must remain.")
    upper = kept[:, None], kept
    pairs = np.triu_indices(kept.size, 1)
    missing = np.isnan(every[(slice(None), *upper)][(slice(None), *pairs)]).any(axis=0)
    if (~missing).sum() < 3:
        raise DataMismatch(f"only {(~missing).sum()} pairs are in all RDMs and models; at least 3 are needed.")

    def vectors(stack: np.ndarray) -> np.ndarray:
        found = stack[(slice(None), *upper)][(slice(None), *pairs)]
        found[:, missing] = np.nan
        return found

    found = {name: vectors(stack) if len(stack) > 1 else vectors(stack)[0] for name, stack in stacks.items()}
    return Tables(
        data=vectors(data),
        models=found,
        rdm_groups=_groups(rdm_groups, data_rdms.rdm_descriptors, len(data), "rdm_groups"),
        condition_groups=_groups(condition_groups, data_rdms.pattern_descriptors, n, "condition_groups", kept),
        dropped=tuple(map(int, dropped)),
        n_pairs=int((~missing).sum()),
        n_pairs_left_out=int(missing.sum()),
    )


def _models(models: Any, data_rdms: RDMs) -> dict[str, np.ndarray]:
    """Stacks (C, n, n) by name; C = 1 for a fixed model."""
    if isinstance(models, rsatoolbox_rdms()):
        check_same_conditions(data_rdms, models)
        return {
            name: stack[None] for name, stack in zip(rdm_names(models), square(models.dissimilarities), strict=True)
        }
    if not isinstance(models, Mapping):
        return {name: matrix[None] for name, matrix in named_matrices(models).items()}
    stacks = {}
    for name, value in models.items():
        value = np.asarray(value, float)
        parts = value if value.ndim == 3 else value[None]
        labels = [str(name)] if len(parts) == 1 else [f"{name} {part}" for part in range(len(parts))]
        stacks[str(name)] = np.array(list(named_matrices(dict(zip(labels, parts, strict=True))).values()))
    if not stacks:
        raise InvalidInput("there are no model RDMs.")
    return stacks


def check_same_conditions(first: RDMs, second: RDMs) -> None:
    """Refuse two sets of RDMs whose common pattern descriptors differ: their rows are other conditions.

    Raises
    ------
    DataMismatch
    """
    for name in first.pattern_descriptors.keys() & second.pattern_descriptors.keys() - {"index"}:
        one, other = (list(plain_values(rdms.pattern_descriptors[name])) for rdms in (first, second))
        if one != other:
            order = " in another order" if sorted(map(repr, one)) == sorted(map(repr, other)) else ""
            raise DataMismatch(
                f"the conditions of data and models differ: the pattern descriptor {shown(name)} holds "
                f"{'the same values' + order if order else 'other values'}; both must describe the same rows."
            )


def _groups(
    groups: Any, descriptors: Mapping[str, Any], n: int, argument: str, kept: np.ndarray | None = None
) -> np.ndarray:
    """Group numbers 0 … G − 1; every row by itself without groups."""
    import pandas as pd

    if groups is None:
        return np.arange(n if kept is None else kept.size)
    if isinstance(groups, str):
        if groups not in descriptors:
            raise InvalidInput(
                f"{argument}: the RDMs have no descriptor {shown(groups)}{closest(groups, descriptors)}."
            )
        groups = descriptors[groups]
    labels = [repr(value) for value in plain_values(list(groups))]
    if len(labels) != n:
        raise DataMismatch(f"{argument} has {len(labels)} labels; expected {n}.")
    labels = labels if kept is None else [labels[row] for row in kept]
    return pd.factorize(np.array(labels, object))[0]
