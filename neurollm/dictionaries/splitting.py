"""Features of a small dictionary that are several features in a larger one.

A parent p of the small dictionary splits if the larger one has two or more children c with

    cos(W_dec,p, W_dec,c) ≥ τ     and     |c ∩ p| / |c| ≥ .8  (precision of c)

that together cover it, |∪c ∩ p| / |p| ≥ .8, where p and c also stand for the sets of tokens on
which the features are active. One of the children may cover the parent alone, which then lives
on beside a smaller copy: `best_single` tells, and `n_divided` counts the parents of which this is not so.

In the null, every feature with a large enough cosine is replaced by a random one of the larger
dictionary that is active about as often, and precision and coverage decide as before: how many
parents would seem to split by frequency alone?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from neurollm.dictionaries.base import Dictionary
from neurollm.dictionaries.cosines import unit_directions
from neurollm.dictionaries.rows import Rows, check_alike, encode_rows
from neurollm.errors import InvalidInput
from neurollm.progress import Progress
from neurollm.random import stream

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 1024
NEIGHBOURS = 20  # a random child is one of so many that are active most nearly as often


@dataclass(frozen=True, eq=False)
class FeatureSplitting:
    """Which parents split, and how many would by chance.

    Attributes
    ----------
    table : DataFrame
        One row per parent with two or more children: ``parent``, ``children`` (tuple), ``n_children``,
        ``coverage`` (of the union), ``best_single`` (coverage of the best child), ``precision`` and
        ``cosine`` (means over children), ``n_active`` (tokens of the parent), ``splits``.
    n_parents : int
        Parents active on at least `min_active` tokens.
    n_split : int
    null : ndarray of int, shape (n_null,)
        Number of parents that split with random children.
    p : float
        (b + 1) / (n_null + 1), b = number of null counts that are not below `n_split`.
    settings : dict
    """

    table: pd.DataFrame
    n_parents: int
    n_split: int
    null: np.ndarray
    p: float
    settings: dict[str, Any]

    @property
    def share(self) -> float:
        """Share of parents that split."""
        return self.n_split / self.n_parents

    @property
    def n_divided(self) -> int:
        """Parents that split and that no child covers alone."""
        return int((self.table["splits"] & (self.table["best_single"] < self.settings["coverage"])).sum())

    def to_frame(self) -> pd.DataFrame:
        """The table of parents."""
        return self.table.copy()


def feature_splitting(
    small: Dictionary,
    large: Dictionary,
    x: Rows,
    *,
    cosine: float = 0.5,
    coverage: float = 0.8,
    precision: float = 0.8,
    min_active: int = 10,
    n_null: int = 199,
    random_state: int = 0,
    verbose: int = 0,
) -> FeatureSplitting:
    """Find the features of a small dictionary that are split up in a larger one.

    Parameters
    ----------
    small, large : Dictionary
        Of the same site.
    x : ActivationStore, Tensor or ndarray (n, d_in)
    cosine : float, default=0.5
        τ, the least cosine of the decoder directions of parent and child.
    coverage, precision : float, default=0.8
    min_active : int, default=10
        Features, parents and children alike, that are active on fewer tokens are left out: the
        precision of a feature that is active once is 0 or 1.
    n_null : int, default=199
    random_state : int, default=0
    verbose : int, default=0

    Returns
    -------
    FeatureSplitting

    Raises
    ------
    InvalidInput
        If no feature is active often enough, or the larger dictionary is not larger.
    DataMismatch
        If the dictionaries are not of the same site, width and model.

    Examples
    --------
    >>> from neurollm.dictionaries import RandomDirections
    >>> from neurollm.models import Site
    >>> x = np.random.default_rng(0).standard_normal((300, 8))
    >>> found = feature_splitting(RandomDirections(Site(3), 8, 10, k=2), RandomDirections(Site(3), 8, 40, k=2), x)
    >>> found.n_split, found.p
    (0, 1.0)
    """
    check_alike("feature_splitting", small, large, ("the smaller dictionary", "the larger"))
    if n_null < 0:
        raise InvalidInput(f"feature_splitting: n_null must be 0 or more, found {n_null}")
    if large.n_features <= small.n_features:
        raise InvalidInput(
            f"feature_splitting: the second dictionary must be the larger one; they have {small.n_features:,} and "
            f"{large.n_features:,} features"
        )
    firing = _Firing.measure(small, large, x, min_active, verbose)
    candidates = _candidates(unit_directions(small).cpu(), unit_directions(large).cpu(), firing, cosine)
    rule = (coverage, precision)
    found = _judge(candidates, firing, rule)
    null = np.zeros(n_null, dtype=np.int64)
    neighbours = _Neighbours(firing.large_active, min_active)
    with Progress("splitting", n_null, "draws", verbose) as progress:
        for draw in range(n_null):
            rng = stream(random_state, "splitting", draw)
            null[draw] = sum(row["splits"] for row in _judge(neighbours.replace(candidates, rng), firing, rule))
            progress.advance(1)
    n_split = sum(row["splits"] for row in found)
    return FeatureSplitting(
        table=_table(found),
        n_parents=int(np.sum(firing.small_active >= min_active)),
        n_split=n_split,
        null=null,
        p=float((np.sum(null >= n_split) + 1) / (n_null + 1)),
        settings={
            "cosine": cosine,
            "coverage": coverage,
            "precision": precision,
            "min_active": min_active,
            "n_tokens": firing.n_tokens,
            "random_state": random_state,
        },
    )


@dataclass(frozen=True, eq=False)
class _Firing:
    """Tokens on which features are active: sets by feature, their sizes, and sizes of intersections."""

    n_tokens: int
    small: sp.csc_matrix
    large: sp.csc_matrix
    small_active: np.ndarray
    large_active: np.ndarray
    both: sp.csr_matrix
    min_active: int

    @classmethod
    def measure(cls, small: Dictionary, large: Dictionary, x: Rows, min_active: int, verbose: int) -> _Firing:
        sets = []
        for dictionary in (small, large):
            features = encode_rows(dictionary, x, verbose=verbose)
            active = sp.csc_matrix((features > 0).astype(np.int32))
            active.sort_indices()
            sets.append(active)
        sizes = [np.diff(active.indptr) for active in sets]
        for name, size in zip(("smaller", "larger"), sizes, strict=True):
            if not (size >= min_active).any():
                raise InvalidInput(
                    f"feature_splitting: no feature of the {name} dictionary is active on {min_active} or more of the "
                    f"{sets[0].shape[0]:,} tokens"
                )
        return cls(sets[0].shape[0], *sets, *sizes, (sets[0].T @ sets[1]).tocsr(), min_active)

    def tokens(self, feature: int) -> np.ndarray:
        """Tokens of a feature of the larger dictionary."""
        return self.large.indices[self.large.indptr[feature] : self.large.indptr[feature + 1]]

    def tokens_of_parent(self, feature: int) -> np.ndarray:
        """Tokens of a feature of the smaller dictionary."""
        return self.small.indices[self.small.indptr[feature] : self.small.indptr[feature + 1]]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Parents and possible children with their cosines, in order of the parents."""

    parents: np.ndarray
    children: np.ndarray
    cosine: np.ndarray


def _candidates(small: Any, large: Any, firing: _Firing, cosine: float) -> _Pairs:
    """Pairs with a large enough cosine, of features that are active often enough."""
    parents, children, values = [], [], []
    frequent = firing.large_active >= firing.min_active
    for start in range(0, len(small), BLOCK):
        block = (small[start : start + BLOCK] @ large.T).numpy()
        near = (block >= cosine) & frequent & (firing.small_active[start : start + BLOCK] >= firing.min_active)[:, None]
        rows, columns = np.nonzero(near)
        parents.append(rows + start)
        children.append(columns)
        values.append(block[rows, columns])
    return _Pairs(np.concatenate(parents), np.concatenate(children), np.concatenate(values))


def _judge(pairs: _Pairs, firing: _Firing, rule: tuple[float, float]) -> list[dict[str, Any]]:
    """A row for each parent with two or more precise children."""
    coverage, precision = rule
    both = np.asarray(firing.both[pairs.parents, pairs.children]).ravel()
    precise = both / firing.large_active[pairs.children] >= precision
    parents, starts = np.unique(pairs.parents[precise], return_index=True)
    groups = np.split(np.flatnonzero(precise), starts[1:]) if len(parents) else []
    rows = []
    for parent, places in zip(parents.tolist(), groups, strict=True):
        children, first = np.unique(pairs.children[places], return_index=True)
        if len(children) < 2:
            continue
        shared = both[places[first]]
        union = np.unique(np.concatenate([firing.tokens(child) for child in children]))
        covered = np.isin(union, firing.tokens_of_parent(parent), assume_unique=True).sum()
        n_active = int(firing.small_active[parent])
        rows.append(
            {
                "parent": parent,
                "children": tuple(children.tolist()),
                "n_children": len(children),
                "coverage": float(covered / n_active),
                "best_single": float(shared.max() / n_active),
                "precision": float(np.mean(shared / firing.large_active[children])),
                "cosine": float(pairs.cosine[places[first]].mean()),
                "n_active": n_active,
                "splits": bool(covered / n_active >= coverage),
            }
        )
    return rows


class _Neighbours:
    """Random features that are active about as often as given ones."""

    def __init__(self, active: np.ndarray, min_active: int) -> None:
        self.order = np.argsort(active, kind="stable")
        self.order = self.order[active[self.order] >= min_active]
        self.rank = np.zeros(len(active), dtype=np.int64)
        self.rank[self.order] = np.arange(len(self.order))

    def replace(self, pairs: _Pairs, rng: np.random.Generator) -> _Pairs:
        """Each child replaced by one of its neighbours in frequency, never by itself."""
        n = len(self.order)
        width = min(NEIGHBOURS, n - 1)
        rank = self.rank[pairs.children]
        low = np.clip(rank - width // 2, 0, n - 1 - width)
        drawn = low + rng.integers(width, size=len(rank)) if width else rank
        drawn = np.where((drawn >= rank) & (width > 0), drawn + 1, drawn)
        return _Pairs(pairs.parents, self.order[drawn], pairs.cosine)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    columns = [
        "parent",
        "children",
        "n_children",
        "coverage",
        "best_single",
        "precision",
        "cosine",
        "n_active",
        "splits",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["splits", "n_active"], ascending=False, kind="stable").reset_index(drop=True)
