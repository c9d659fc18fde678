"""Model RDMs by name: what a design, a column or the words predict for every pair of rows.

=========================  ==========================================================================================
name                       distance of two rows
=========================  ==========================================================================================
categorical                0 in the same condition, 1 in different ones
discriminative[:level]     0 for two of the target, 1 for target and other, others among themselves left out
coherence[:level]          0 for two of the target, 1 for two of another condition, different conditions left out
an effect of the design    squared distance of the effect's codes (a main effect or interaction of a factorial design,
                           a term of a formula); ``effects`` stands for all of them
categorical:column         0 for the same value of any column, 1 for different ones
numeric:column             absolute difference of a number
length                     absolute difference in words
lexical                    1 − shared words / all words of the two texts (Jaccard), without case and punctuation
item                       0 for the same item, 1 for different ones
=========================  ==========================================================================================

Whatever the model, p is about the hypothesis that the exchanged rows do not differ at all: with three conditions, a
discriminative model of one of them can be significant because the other two differ.

The target is that of a `DiscriminativeDesign`, else the first level. Rows are item × condition means: where a row
averages several trials, so does its distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neurollm.designs import Design, ItemTable
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.stats.rdms.labels import categorical_rdm, coherence_rdm, discriminative_rdm, numeric_rdm
from neurollm.stats.rdms.model import pair_model
from neurollm.validation import closest, listed, shown

if TYPE_CHECKING:
    import pandas as pd

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True, eq=False)
class ModelRDM:
    """What is predicted for every pair.

    Attributes
    ----------
    name : str
    matrix : ndarray, shape (n, n)
        Symmetric with a diagonal of 0; NaN leaves a pair out. Of trials when handed to `FeatureRSA`, of item ×
        condition means when it comes from there.
    description : str
        In words, for the report.
    factors : tuple of str
        Factors of the design that the model is about; empty: about conditions as a whole, or about something else.
    of_conditions : bool
        The model is about the conditions of the design, which decides what is exchanged (`neurollm.rsa.exchange`).
    """

    name: str
    matrix: np.ndarray
    description: str = ""
    factors: tuple[str, ...] = ()
    of_conditions: bool = False


@dataclass(frozen=True)
class Rows:
    """Trials and the item × condition means they go into.

    Attributes
    ----------
    design : Design
    obs : DataFrame
        Trials.
    table : ItemTable
    row : ndarray of int, shape (n_trials,)
        Row of the table that each trial goes into.
    """

    design: Design
    obs: pd.DataFrame
    table: ItemTable
    row: np.ndarray

    @classmethod
    def of(cls, design: Design, obs: pd.DataFrame, table: ItemTable) -> Rows:
        """Find the row of every trial."""
        _, cells = design.cells(obs)
        items = np.searchsorted(table.items, design.item_labels(obs))
        keys = table.item_codes * len(table.cells) + table.cell_codes
        return cls(design, obs, table, np.searchsorted(keys, items * len(table.cells) + cells))

    def averaged(self, trials: np.ndarray) -> np.ndarray:
        """Mean distance of the trials of two rows; NaN where one is; 0 on the diagonal."""
        n = self.table.n_rows
        if len(self.row) == n:
            out = np.empty_like(trials)
            out[np.ix_(self.row, self.row)] = trials
        else:
            count = np.zeros((n, len(self.row)))
            count[self.row, np.arange(len(self.row))] = 1
            n_pairs = np.outer(self.table.n_trials, self.table.n_trials)
            missing = np.isnan(trials)
            total = count @ np.where(missing, 0.0, trials) @ count.T
            # Rounding must not make equal distances differ: what is exchanged depends on which rows are alike.
            out = np.where(count @ missing @ count.T > 0, np.nan, total / n_pairs)
            largest = np.nanmax(np.abs(out), initial=0)
            out = np.round(out / largest, 12) * largest if largest > 0 else out
        np.fill_diagonal(out, 0.0)
        return out

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of a number of the trials of each row."""
        return np.bincount(self.row, values, minlength=self.table.n_rows) / self.table.n_trials


def model_rdms(names: Sequence[str | ModelRDM], rows: Rows) -> list[ModelRDM]:
    """Models over item × condition means.

    Parameters
    ----------
    names : sequence of str or ModelRDM
        See the module. A `ModelRDM` is over trials, in the order of the trial table.
    rows : Rows

    Returns
    -------
    list of ModelRDM

    Raises
    ------
    InvalidInput
        An unknown name, level or column, or the same name twice.
    DataMismatch
        A model RDM has not as many rows as there are trials.
    """
    if isinstance(names, (str, ModelRDM)):
        names = [names]
    if not isinstance(names, Sequence) or not all(isinstance(name, (str, ModelRDM)) for name in names):
        raise InvalidInput(f"RSA: models are given as a list of names or ModelRDM, found {shown(names)}.")
    found: list[ModelRDM] = []
    for name in names:
        if isinstance(name, ModelRDM):
            found.append(_given(name, rows))
        elif name == "effects":
            found += [_effect(effect, rows) for effect in rows.design.effects(rows.table.obs)]
        else:
            found.append(_named(str(name), rows))
    known = [model.name for model in found]
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice or not known:
        raise InvalidInput(
            f"RSA: the model {twice[0]!r} is given more than once." if twice else "RSA: no model is given."
        )
    return found


def _given(model: ModelRDM, rows: Rows) -> ModelRDM:
    if not isinstance(model.name, str) or not model.name.strip():
        raise InvalidInput(f"RSA: the name of a model RDM must be text, found {shown(model.name)}.")
    matrix = np.asarray(model.matrix, float)
    if matrix.shape != (len(rows.obs), len(rows.obs)):
        raise DataMismatch(
            f"model RDM {model.name!r} has shape {matrix.shape}; it must have one row and column for each of the "
            f"{len(rows.obs)} trials."
        )
    try:
        pair_model(matrix)
    except InvalidInput as error:
        raise InvalidInput(f"model RDM {shown(model.name)}: {error}") from None
    return ModelRDM(
        model.name, rows.averaged(matrix), model.description or "given as a table", model.factors, model.of_conditions
    )


def _named(name: str, rows: Rows) -> ModelRDM:
    effects = rows.design.effects(rows.table.obs)
    if name in effects:
        return _effect(name, rows)
    kind, _, rest = name.partition(":")
    if kind in ("discriminative", "coherence"):
        return _about_target(name, kind, rest, rows)
    if kind in ("categorical", "numeric") and rest:
        return _of_column(name, kind, rest, rows)
    if not rest and kind in _PLAIN:
        make, description = _PLAIN[kind]
        return ModelRDM(name, make(rows), description, of_conditions=name == "categorical")
    known = [*_PLAIN, "discriminative", "coherence", "numeric:column", "categorical:column", *effects]
    hint = closest(name, known) or "."
    raise InvalidInput(f"RSA: there is no model {name!r}{hint} It is one of {listed(known)}, or an own ModelRDM.")


def _effect(name: str, rows: Rows) -> ModelRDM:
    obs = rows.table.obs
    effect = rows.design.effects(obs)[name]
    matrix = rows.design.model_rdm(obs, name)
    return ModelRDM(name, matrix, f"codes of the effect {effect.expression}", tuple(effect.factors), True)


def _about_target(name: str, kind: str, level: str, rows: Rows) -> ModelRDM:
    cells = rows.table.cells
    labels = np.array(cells)[rows.table.cell_codes]
    target = level or getattr(rows.design, "target", cells[0])
    if target not in cells:
        hint = closest(target, cells) or "."
        raise InvalidInput(f"RSA: model {name!r}: {target!r} is no condition{hint} They are {listed(cells)}.")
    make = discriminative_rdm if kind == "discriminative" else coherence_rdm
    told = {
        "discriminative": f"{target} alike, {target} and others unlike, others among themselves left out",
        "coherence": f"{target} alike, other conditions less so within themselves, different conditions left out",
    }
    return ModelRDM(name, make(labels, target), told[kind], of_conditions=True)


def _of_column(name: str, kind: str, column: str, rows: Rows) -> ModelRDM:
    values = rows.design.column(rows.obs, column)
    if kind == "categorical":
        labels = values.astype(str).to_numpy(str)
        return ModelRDM(name, rows.averaged(categorical_rdm(labels)), f"same or different {column}")
    try:
        numbers = rows.mean(values.to_numpy(float))
    except (TypeError, ValueError):
        raise InvalidInput(
            f"RSA: model {name!r}: the column {column!r} does not hold numbers, found {values.iloc[0]!r}; "
            f"use 'categorical:{column}'."
        ) from None
    return ModelRDM(name, numeric_rdm(numbers), f"difference in {column}")


def _words(rows: Rows) -> list[list[str]]:
    texts = rows.design.column(rows.obs, "text")
    return [_WORD.findall(str(text).casefold()) for text in texts]


def _length(rows: Rows) -> np.ndarray:
    return numeric_rdm(rows.mean(np.array([len(words) for words in _words(rows)], float)))


def _lexical(rows: Rows) -> np.ndarray:
    sets = [frozenset(words) for words in _words(rows)]
    vocabulary = {word: number for number, word in enumerate(sorted(set().union(*sets)))}
    has = np.zeros((len(sets), max(len(vocabulary), 1)))
    for row, words in enumerate(sets):
        has[row, [vocabulary[word] for word in words]] = 1
    shared = has @ has.T
    size = has.sum(axis=1)
    union = size[:, None] + size - shared
    return rows.averaged(1 - np.divide(shared, union, out=np.ones_like(shared), where=union > 0))


def _conditions(rows: Rows) -> np.ndarray:
    return categorical_rdm(rows.table.cell_codes)


def _items(rows: Rows) -> np.ndarray:
    return categorical_rdm(rows.table.item_codes)


_PLAIN: dict[str, tuple[Callable[[Rows], np.ndarray], str]] = {
    "categorical": (_conditions, "same or different condition"),
    "length": (_length, "difference in number of words"),
    "lexical": (_lexical, "share of words that two texts do not have in common"),
    "item": (_items, "same or different item"),
}
