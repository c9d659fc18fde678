"""Conditions tested over items and over templates, both drawn at random from many: F₁, F₂, min F′ and quasi-F.

One value per condition × item × template cell of a balanced design with k conditions, I items and T templates. The
mean squares of condition (A), items (S), templates and what is left are squared norms of averages, for all features
at once.

* Items in every condition: A (k − 1), A×S ((k − 1)(I − 1)), A×T ((k − 1)(T − 1)), A×S×T, their product's degrees.
* Items nested in conditions, I in each: A (k − 1), S in A (k(I − 1)), A×T ((k − 1)(T − 1)), S×T in A
  (k(I − 1)(T − 1)).

With these four mean squares (condition, items, templates, residual), Clark (1973):

    F₁ = MS_A / MS_S                                    by items: templates fixed
    F₂ = MS_A / MS_T                                    by templates: items fixed
    min F′ = F₁F₂ / (F₁ + F₂) = MS_A / (MS_S + MS_T),   df₂ = (F₁ + F₂)² / (F₁²/df_T + F₂²/df_S)
    F′ = (MS_A + MS_res) / (MS_S + MS_T),               both degrees of freedom by Satterthwaite

min F′ is the lower bound of F′, and conservative where items or templates do not vary. F₁ alone speaks about new
items with these templates only, F₂ about new templates with these items only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from neurollm.errors import InvalidInput
from neurollm.stats.arrays import by_columns, dense

_VALUES = 2**18  # per block of columns: rows × columns
_CONSTANT = 1e-24  # sums of squares below this share of the total are rounding, not variation


@dataclass(frozen=True)
class CrossedAnova:
    """Tests of a condition over random items and templates, for V features.

    NaN where a feature is constant or holds a NaN.

    Attributes
    ----------
    f_items, f_templates, min_f, quasi_f : ndarray, shape (V,)
        F₁, F₂, min F′ and F′.
    p_items, p_templates, p_min_f, p_quasi_f : ndarray, shape (V,)
    df_condition, df_items, df_templates, df_residual : int
        F₁ has (df_condition, df_items) degrees of freedom, F₂ (df_condition, df_templates).
    df_min_f, df_quasi_f, df_quasi_f_condition : ndarray, shape (V,)
        Of the denominators of min F′ and F′, and of the numerator of F′.
    mean_squares : ndarray, shape (4, V)
        Condition, items, templates, residual.
    nested : bool
        Whether items are nested in conditions.
    """

    f_items: np.ndarray
    f_templates: np.ndarray
    min_f: np.ndarray
    quasi_f: np.ndarray
    p_items: np.ndarray
    p_templates: np.ndarray
    p_min_f: np.ndarray
    p_quasi_f: np.ndarray
    df_condition: int
    df_items: int
    df_templates: int
    df_residual: int
    df_min_f: np.ndarray
    df_quasi_f: np.ndarray
    df_quasi_f_condition: np.ndarray
    mean_squares: np.ndarray
    nested: bool


def crossed_anova(Y: Any, condition: np.ndarray, item: np.ndarray, template: np.ndarray) -> CrossedAnova:
    """Analyse conditions over random items and random templates.

    Parameters
    ----------
    Y : array of any supported kind, shape (n_cells, V)
        One row per condition × item × template.
    condition, item, template : ndarray, shape (n_cells,)
        Labels of each row. Items occur either in every condition or each in one.

    Returns
    -------
    CrossedAnova

    Raises
    ------
    InvalidInput
        A label is missing, the design is unbalanced, or it has fewer than two conditions, items (per condition) or
        templates.

    Examples
    --------
    >>> condition, item, template = (x.ravel() for x in np.indices((2, 6, 4)))
    >>> Y = np.random.default_rng(0).normal(size=(48, 3)) + condition[:, None]
    >>> result = crossed_anova(Y, condition, item, template)
    >>> result.min_f.shape, result.df_items, result.df_templates
    ((3,), 5, 3)
    """
    order, (k, n_items, n_templates), nested = _balanced(Y.shape[0], condition, item, template)
    df = [k - 1, (k - 1) * (n_items - 1), (k - 1) * (n_templates - 1), (k - 1) * (n_items - 1) * (n_templates - 1)]
    if nested:
        df[1], df[3] = k * (n_items - 1), k * (n_items - 1) * (n_templates - 1)
    Y, squares = by_columns(Y), np.empty((4, Y.shape[1]))
    size = max(1, _VALUES // len(order))
    for start in range(0, Y.shape[1], size):
        columns = slice(start, min(start + size, Y.shape[1]))
        cells = dense(Y[:, columns])[order].reshape(k, n_items, n_templates, -1)
        squares[:, columns] = _sums_of_squares(cells, nested)
    return _tests(squares / np.array(df, float)[:, None], df, nested)


def _balanced(
    n_rows: int, condition: np.ndarray, item: np.ndarray, template: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int], bool]:
    """Rows in the order condition, item, template, the shape of the design, and whether items are nested."""
    labels = [np.asarray(x) for x in (condition, item, template)]
    if any(x.shape != (n_rows,) for x in labels):
        raise InvalidInput(f"condition, item and template must each hold one label per row, {n_rows}.")
    conditions, items, templates = (np.unique(x, return_inverse=True)[1] for x in labels)
    k, n_items, n_templates = (int(x.max(initial=-1)) + 1 for x in (conditions, items, templates))
    per_item = np.zeros((n_items, k), bool)
    per_item[items, conditions] = True
    nested = bool((per_item.sum(axis=1) == 1).all()) and k > 1
    if nested:
        n_items //= k
    needed = k * n_items * n_templates
    cells = np.unique(np.stack([conditions, items, templates]), axis=1).shape[1]
    equal = not nested or (per_item.sum(axis=0) == n_items).all()
    if not (equal and cells == needed == n_rows):
        raise InvalidInput(
            f"the design is unbalanced: {n_rows} rows in {cells} different cells, where {needed} are needed, one of "
            f"each of {k} conditions × {n_items} items × {n_templates} templates (items in every condition, or each in "
            "one condition and equally many per condition); average repeated trials, and leave out incomplete items."
        )
    if min(k, n_items, n_templates) < 2:
        raise InvalidInput(
            f"needs at least two conditions, items and templates, found {k}, {n_items} and {n_templates}; with one "
            "template test by items alone."
        )
    return np.lexsort((templates, items, conditions)), (k, n_items, n_templates), nested


def _sums_of_squares(cells: np.ndarray, nested: bool) -> np.ndarray:
    """Of condition, items, templates and residual: squared norms of centred averages; cells (k, I, T, columns)."""
    _, n_items, n_templates, _ = cells.shape
    total = np.square(cells).sum(axis=(0, 1, 2))
    cells = cells - cells.mean(axis=(0, 1, 2))
    condition = cells.mean(axis=(1, 2))
    cells = cells - condition[:, None, None]
    by_item, by_template = cells.mean(axis=2), cells.mean(axis=1)
    cells = cells - by_item[:, :, None] - by_template[:, None]
    by_template = by_template - by_template.mean(axis=0)
    if not nested:
        by_item = by_item - by_item.mean(axis=0)
        cells = cells - cells.mean(axis=0)
    squares = np.stack(
        [
            n_items * n_templates * np.square(condition).sum(axis=0),
            n_templates * np.square(by_item).sum(axis=(0, 1)),
            n_items * np.square(by_template).sum(axis=(0, 1)),
            np.square(cells).sum(axis=(0, 1, 2)),
        ]
    )
    return np.where(squares <= _CONSTANT * total, 0, squares)


def _tests(mean_squares: np.ndarray, df: list[int], nested: bool) -> CrossedAnova:
    condition, items, templates, residual = mean_squares
    both = items + templates
    with np.errstate(divide="ignore", invalid="ignore"):
        f_items, f_templates = condition / items, condition / templates
        min_f, quasi_f = condition / both, (condition + residual) / both
        df_both = both**2 / (items**2 / df[1] + templates**2 / df[2])
        df_upper = (condition + residual) ** 2 / (condition**2 / df[0] + residual**2 / df[3])
    p = [
        special.fdtrc(upper, lower, f)
        for upper, lower, f in (
            (df[0], df[1], f_items),
            (df[0], df[2], f_templates),
            (df[0], df_both, min_f),
            (df_upper, df_both, quasi_f),
        )
    ]
    return CrossedAnova(f_items, f_templates, min_f, quasi_f, *p, *df, df_both, df_both, df_upper, mean_squares, nested)
