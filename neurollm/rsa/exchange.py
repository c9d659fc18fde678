"""What is exchanged when a model RDM is tested, and on which rows.

Under the null hypothesis the rows of the model are rearranged, the data stay (Mantel 1967; Kriegeskorte, Mur &
Bandettini 2008), but only as the design allows.

Models of conditions:

* conditions that vary within items: the labels of each factor are exchanged inside every item;
* conditions that vary between items: whole items change places, inside blocks;
* an effect across both: whole items.

Main effects need nothing else. An interaction is tested on rows from which the item's means over each of its factors
are taken (double centring), since otherwise a main effect alone would look like one: its rows would lie closer together
within cells than any rearrangement leaves them. Factors between items cannot be centred inside an item, and residuals
of their main effects are not exchangeable in distances (with sparse features, up to a third of null data sets came out
significant): an interaction of several factors between items is refused.

Models of anything else (words, length, a number): whole items change places with all their rows; if the model is the
same for all items, the rows of every item do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

import numpy as np
from scipy import sparse

from neurollm.designs import Design, ItemTable
from neurollm.designs.base import counted
from neurollm.designs.planning import MIN_COMPLETE_SHARE, centring, joined
from neurollm.designs.table import rows_by_item
from neurollm.errors import InvalidInput
from neurollm.rsa.models import ModelRDM
from neurollm.stats.rdms.forms import pair_classes
from neurollm.stats.shufflings import Shuffling, whole_item, within_item
from neurollm.validation import listed, several


@dataclass(frozen=True)
class Exchange:
    """How a model is tested.

    Attributes
    ----------
    rows : ndarray of int
        Rows of the item table that enter, items × conditions.
    weights : csr_array or None
        What is subtracted from them first, as a matrix over these rows; None: nothing.
    shuffling : Shuffling
        Of these rows.
    n_items, n_dropped : int
    sentence : str
    """

    rows: np.ndarray
    weights: sparse.csr_array | None
    shuffling: Shuffling
    n_items: int
    n_dropped: int
    sentence: str

    @property
    def is_free(self) -> bool:
        """Every row may take every place, so that closed forms over all permutations hold."""
        scheme = self.shuffling
        return scheme.kind == "whole_item" and scheme.rows_per_item == 1 and len(set(scheme.blocks)) == 1


def exchange(design: Design, table: ItemTable, model: ModelRDM) -> Exchange:
    """How a model is tested in a design.

    Parameters
    ----------
    design : Design
    table : ItemTable
    model : ModelRDM
        Over the rows of the table.

    Returns
    -------
    Exchange

    Raises
    ------
    InvalidInput
        Items have unlike sets of conditions, or the model mixes what varies within and between items.
    """
    if design.covariates:
        raise InvalidInput(
            f"RSA: the design holds {listed(design.covariates)} constant by regression, which distances do not allow; "
            f"leave covariates out of the design and give nuisance=('numeric:{design.covariates[0]}',) instead."
        )
    layout = _Layout.of(design, table)
    exchanged = _of_conditions if model.of_conditions and layout.factors else _of_anything
    return exchanged(design, table, layout, model)


def _of_conditions(design: Design, table: ItemTable, layout: _Layout, model: ModelRDM) -> Exchange:
    n, W = layout.rows.shape
    item, found = design.item or "trial", several(design.item or "trial")
    about = model.factors or layout.factors
    outside = [name for name in layout.between if name in about]
    inside = [name for name in layout.within if name in about]
    if not outside:
        weights = _centred_inside(layout, about) if model.factors[1:] else None
        words = f"Every {item} has all conditions of {joined(layout.within)}: the labels of {joined(inside)} are "
        words += f"exchanged inside each of the {n} {found}"
        return _told(layout, weights, within_item(n, layout.shape), words)
    if inside and not model.factors:
        raise InvalidInput(
            f"RSA: model '{model.name}': {joined(inside)} vary within {found} and {joined(outside)} between them, so "
            "no single exchange tests conditions as a whole; test the effects by name (models=('effects',))."
        )
    if model.factors and len(outside) > 1:
        raise InvalidInput(
            f"RSA: model '{model.name}': {joined(outside)} vary between {found}, and the interaction of several such "
            "factors has no valid exchange of distances; test it with FeatureGLM, and here the main effects by name."
        )
    blocks = _blocks(design, table, layout, [name for name in layout.between if name not in outside])
    shuffling = whole_item(_codes(layout, model), blocks, rows_per_item=W)
    weights = _centred_inside(layout, about) if model.factors[1:] else None
    words = f"The labels of {joined(outside)} are exchanged between the {n} {found} as wholes"
    words += _inside_blocks(shuffling)
    return _told(layout, weights, shuffling, words)


def _of_anything(design: Design, table: ItemTable, layout: _Layout, model: ModelRDM) -> Exchange:
    n, W = layout.rows.shape
    found = several(design.item or "trial")
    if W > 1 and _same_for_all_items(layout, model):
        return _told(layout, None, within_item(n, (W,)), f"Rows are exchanged inside each of the {n} {found}")
    shuffling = whole_item(_codes(layout, model), _blocks(design, table, layout, []), rows_per_item=W)
    words = f"The {n} {found} change places as wholes{_inside_blocks(shuffling)}"
    return _told(layout, None, shuffling, words)


def smallest_p_of_active(values: Any, how: Exchange) -> np.ndarray:
    """The least p that a feature can reach, from where it is active.

    Its score depends on the labels of its active rows alone, so every arrangement that leaves these labels where they
    are gives the observed score: p is at least the share of such arrangements. With k active rows, k_c of them among
    the n_c rows of label c, it is ``Π_c n_c!/(n_c − k_c)! / (n!/(n − k)!)`` where whole items are exchanged (over the
    blocks), and one over the arrangements of the items that are active anywhere where labels are exchanged inside them.

    Parameters
    ----------
    values : ndarray or scipy.sparse, shape (n, V)
    how : Exchange

    Returns
    -------
    ndarray, shape (V,)

    Examples
    --------
    >>> how = Exchange(np.arange(4), None, whole_item([0, 0, 1, 1]), 4, 0, "")
    >>> smallest_p_of_active(np.array([[1.0, 1], [0, 1], [0, 0], [0, 0]]), how).round(4).tolist()
    [0.5, 0.1667]
    """
    scheme = how.shuffling
    owner = sparse.csr_array(
        (np.ones(scheme.n_rows), (np.repeat(np.arange(scheme.n_items), scheme.rows_per_item), np.arange(scheme.n_rows)))
    )
    active = sparse.csc_array(owner @ (sparse.csc_array(values) != 0).astype(float)) > 0
    active = sparse.csc_array(active.astype(float))  # items × features
    if scheme.kind == "within_item":
        touched = np.asarray(active.sum(axis=0)).ravel()
        return np.exp(-touched * sum(math.lgamma(levels + 1) for levels in scheme.shape))
    blocks = np.unique(scheme.blocks, return_inverse=True)[1]
    labels = np.unique(np.stack([scheme.blocks, scheme.codes]), axis=1, return_inverse=True)[1].ravel()
    return np.exp(_log_ways(active, labels) - _log_ways(active, blocks))


def _log_ways(active: sparse.csc_array, groups: np.ndarray) -> np.ndarray:
    """Σ over groups of log n!/(n − k)!, for k active items among the n of a group."""
    from scipy.special import gammaln

    n_items, size = len(groups), np.bincount(groups)
    if size.max() == 1:
        return np.zeros(active.shape[1])
    member = sparse.csr_array((np.ones(n_items), (groups, np.arange(n_items))))
    count = sparse.csc_array(member @ active).tocoo()
    n = size[count.row]
    return np.bincount(count.col, gammaln(n + 1) - gammaln(n - count.data + 1), minlength=active.shape[1])


@dataclass(frozen=True)
class _Layout:
    """Items × conditions within items, and which factors these are (none with a formula)."""

    rows: np.ndarray
    within: tuple[str, ...]
    between: tuple[str, ...]
    shape: tuple[int, ...]
    codes: dict[str, np.ndarray]
    n_dropped: int

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.between, *self.within)

    @classmethod
    def of(cls, design: Design, table: ItemTable) -> _Layout:
        if not hasattr(design, "levels"):
            return cls._of_formula(design, table)
        levels = design.levels(table.obs)
        names = design.variables
        shape = tuple(len(levels[name]) for name in names)
        place = np.stack(np.unravel_index(table.cell_codes, shape))
        within = tuple(name for name, codes in zip(names, place, strict=True) if _varies(design, table, name, codes))
        between = tuple(name for name in names if name not in within)
        cells = np.arange(int(np.prod(shape))).reshape(shape)
        order = [names.index(name) for name in (*between, *within)]
        sizes = tuple(len(levels[name]) for name in within) or (1,)
        grid = cells.transpose(order).reshape(-1, int(np.prod(sizes)))
        at = rows_by_item(table, np.arange(cells.size))[:, grid]  # items × groups × conditions within
        group = (at >= 0).sum(axis=2).argmax(axis=1)
        rows = at[np.arange(len(at)), group]
        complete = (rows >= 0).all(axis=1)
        if complete.mean() < MIN_COMPLETE_SHARE:
            raise InvalidInput(
                f"RSA: {int(complete.sum())} of {complete.size} values of '{design.item or 'trial'}' have all the "
                f"conditions they need ({listed(within)}); items must have all conditions or one."
            )
        rows = rows[complete]
        codes = {name: place[names.index(name)][rows[:, 0]] for name in between}
        return cls(rows, within, between, sizes, codes, int((~complete).sum()))

    @classmethod
    def _of_formula(cls, design: Design, table: ItemTable) -> _Layout:
        sizes = np.bincount(table.item_codes, minlength=len(table.items))
        if np.ptp(sizes):
            raise InvalidInput(
                f"RSA: with a formula every value of '{design.item or 'trial'}' needs the same number of rows, found "
                f"{sizes.min()} to {sizes.max()}."
            )
        rows = np.argsort(table.item_codes, kind="stable").reshape(len(table.items), -1)
        return cls(rows, (), (), (int(sizes[0]),), {}, 0)


def _varies(design: Design, table: ItemTable, name: str, codes: np.ndarray) -> bool:
    pairs = np.unique(np.stack([table.item_codes, codes]), axis=1)
    several_levels = np.bincount(pairs[0], minlength=len(table.items)) > 1
    if several_levels.any() and several_levels.mean() < MIN_COMPLETE_SHARE:
        raise InvalidInput(
            f"RSA: '{name}' varies within {int(several_levels.sum())} of {several_levels.size} values of "
            f"'{design.item or 'trial'}' and is constant in the others; it must vary in all of them or in none."
        )
    return bool(several_levels.any())


def _told(layout: _Layout, weights: Any, shuffling: Shuffling, words: str) -> Exchange:
    if shuffling.n_possible < 2:
        raise InvalidInput(f"RSA: nothing can be exchanged ({words}: one arrangement).")
    sentence = f"{words} ({counted(shuffling.n_possible)} possible shufflings)."
    return Exchange(layout.rows.ravel(), weights, shuffling, len(layout.rows), layout.n_dropped, sentence)


def _inside_blocks(shuffling: Shuffling) -> str:
    blocks = len(set(shuffling.blocks))
    return f", inside each of {blocks} blocks" if blocks > 1 else ""


def _codes(layout: _Layout, model: ModelRDM) -> np.ndarray:
    """Items whose rows in the model are alike, so that exchanging them changes nothing."""
    rows = layout.rows.ravel()
    labels = pair_classes(np.nan_to_num(model.matrix[np.ix_(rows, rows)], nan=-1.0))
    if labels is None:
        return np.arange(len(layout.rows))
    return np.unique(labels.reshape(layout.rows.shape), axis=0, return_inverse=True)[1].ravel()


def _same_for_all_items(layout: _Layout, model: ModelRDM) -> bool:
    """Whether exchanging whole items leaves the model what it is."""
    n = len(layout.rows)
    blocks = np.nan_to_num(model.matrix, nan=-1.0)[layout.rows[:, None, :, None], layout.rows[None, :, None, :]]
    own, other = blocks[np.arange(n), np.arange(n)], blocks[~np.eye(n, dtype=bool)]
    return bool((own == own[0]).all() and (other == other[:1]).all())


def _blocks(design: Design, table: ItemTable, layout: _Layout, fixed: list[str]) -> np.ndarray | None:
    """Items are exchanged inside the design's blocks, and inside levels of factors that the model is not about."""
    parts = [layout.codes[name] for name in fixed]
    if design.blocks is not None:
        labels = table.obs[design.blocks].astype(str).to_numpy(str)[layout.rows[:, 0]]
        parts.append(np.unique(labels, return_inverse=True)[1])
    return np.unique(np.stack(parts), axis=1, return_inverse=True)[1].ravel() if parts else None


def _centred_inside(layout: _Layout, factors: tuple[str, ...]) -> sparse.csr_array:
    """Take the means over each of these factors out of every item's rows."""
    parts = [
        centring(size) if name in factors else np.eye(size)
        for name, size in zip(layout.within, layout.shape, strict=False)  # without factors within, one row of size 1
    ]
    inside = fold(np.kron, parts, np.ones((1, 1)))
    return sparse.csr_array(sparse.kron(sparse.eye_array(len(layout.rows)), inside, format="csr"))
