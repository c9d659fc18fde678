"""Designs written as a Wilkinson formula, for anything that is not a comparison of cells.

The formula's columns are a linear model of the item × cell means, where a cell is a combination of values of the
formula's variables that occurs. Contrasts are about its coefficients; the partition into tested part and nuisance
follows the contrast. If nothing that is tested varies inside an item, item means are tested and their residuals are
exchanged between whole items (Freedman & Lane 1983). If all of it does, every item's mean is removed, the estimate
is taken apart into one score per item, and signs are flipped. A constant is always part of the model.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from neurollm.designs.base import Design, Exchangeability
from neurollm.designs.cells import squared_distances
from neurollm.designs.contrast import Contrast
from neurollm.designs.planning import ContrastPlan, Frame, describe, in_words
from neurollm.designs.table import ItemTable
from neurollm.errors import InvalidInput
from neurollm.stats import shufflings
from neurollm.stats.hypothesis import Hypothesis
from neurollm.stats.partition import Partition, orthonormal, partition
from neurollm.validation import closest, listed, several, shortened

if TYPE_CHECKING:
    import pandas as pd

# A formula is Python to formulaic, and may come from a stranger's file: only these calls are let through.
FUNCTIONS = ("C", "center", "scale", "poly", "bs", "cs", "log", "log10", "log2", "exp", "exp10", "exp2")
_CODINGS = ("contr",)
_CONSTANT = 1e-13  # variation below this share of a column is rounding
_UNINFORMATIVE = 1e-12  # share of the tested column's variation that lies within an item
MOST_TERMS, HIGHEST_POWER = 200, 5
_NODES = (
    ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.Pow, ast.USub, ast.List, ast.Tuple, ast.Attribute,
)  # fmt: skip


@dataclass(frozen=True)
class FormulaDesign(Design):
    """A linear model given as a formula.

    Parameters
    ----------
    formula : str
        Right-hand side in Wilkinson notation, read by formulaic: ``"outcome * n_words + log(frequency)"``. Calls are
        limited to transforms (`FUNCTIONS`) and codings (``contr.sum`` …); names are columns of the trial table.
    item, item_reason, covariates, template, blocks
        See `Design`. Covariates are added to the formula.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"item": np.arange(20), "n_words": np.arange(20) % 7, "valence": np.arange(20)})
    >>> design = FormulaDesign("valence + n_words")
    >>> design.parameters(obs)
    ('Intercept', 'valence', 'n_words')
    >>> design.exchangeability(obs, "valence").kind
    'whole_item'
    """

    formula: str

    type: ClassVar[str] = "formula"

    def __post_init__(self) -> None:
        if not self.formula.strip() or "~" in self.formula:
            raise InvalidInput(
                f"design: formula {shortened(self.formula)!r} must be a right-hand side such as 'outcome + n_words'; "
                "every feature is a left-hand side in turn."
            )
        self._parsed()  # refuse what cannot be read, before any data
        super().__post_init__()

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns that the formula names, without the covariates."""
        terms = self._parsed()
        found = {str(factor) for term in terms for factor in term.factors if factor.eval_method.value == "lookup"}
        found |= {name for factor in _calculated(terms) for name in _names(factor)}
        return tuple(sorted(found - set(self.covariates)))

    def _parsed(self) -> Any:
        from formulaic import Formula

        powers = [int(power) for power in re.findall(r"(?:\*\*|\^)\s*(\d+)", self.formula)]
        names = len(re.findall(r"[^\W\d]\w*", self.formula))
        crossings = self.formula.replace("**", "").count("*")
        if max(powers, default=1) > HIGHEST_POWER or names ** max(powers, default=1) > 5000 or crossings > 8:
            raise InvalidInput(
                f"design: the formula {shortened(self.formula)!r} has too many interactions; write those that matter."
            )
        try:
            terms = Formula(self.formula)
        except Exception as error:  # formulaic raises many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InvalidInput(f"design: the formula {shortened(self.formula)!r} cannot be read ({reason}).") from None
        if not all(hasattr(term, "factors") for term in terms):
            raise InvalidInput(f"design: the formula {shortened(self.formula)!r} has parts; write one right-hand side.")
        if len(list(terms)) > MOST_TERMS:
            raise InvalidInput(
                f"design: the formula {shortened(self.formula)!r} has more than {MOST_TERMS} terms; write fewer."
            )
        for factor in _calculated(terms):
            _check_factor(factor, self.formula)
        return terms

    def cells(self, obs: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
        """The combinations of values of the formula's variables that occur."""
        variables = self.variables
        if not variables:
            return ("all",), np.zeros(len(obs), int)
        columns = [
            np.unique(self.column(obs, name).astype(str).to_numpy(str), return_inverse=True) for name in variables
        ]
        codes, index = np.unique(np.stack([code for _, code in columns]), axis=1, return_inverse=True)
        labels = [
            ", ".join(
                f"{name}={levels[code]}" for name, (levels, _), code in zip(variables, columns, cell, strict=True)
            )
            for cell in codes.T
        ]
        return tuple(labels), index.ravel()

    def design_matrix(self, obs: pd.DataFrame) -> pd.DataFrame:
        """The formula's columns, one row per trial (covariates last)."""
        return self._matrix(obs)[0]

    def _matrix(self, obs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
        import pandas as pd
        from formulaic import model_matrix

        for name in self.variables:
            self.column(obs, name)
        for name in self.covariates:
            self._numbers(obs, name)
        try:
            matrix = model_matrix(self._parsed(), obs.reset_index(drop=True), na_action="ignore")
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InvalidInput(
                f"design: the formula {shortened(self.formula)!r} does not fit the trial table ({reason})."
            ) from None
        spec = matrix.model_spec
        terms = {str(term): [matrix.columns[i] for i in indices] for term, indices in spec.term_indices.items()}
        frame = pd.DataFrame(np.asarray(matrix, float), columns=[str(c) for c in matrix.columns], index=obs.index)
        for name in self.covariates:
            frame[name] = obs[name].to_numpy(float)
        if not np.isfinite(frame.to_numpy()).all():
            raise InvalidInput(f"design: the formula {shortened(self.formula)!r} gives values that are not finite.")
        return frame, terms

    def parameters(self, obs: pd.DataFrame) -> tuple[str, ...]:
        """Names of the model's columns."""
        return tuple(self.design_matrix(obs).columns)

    def contrast(self, spec: Any, obs: pd.DataFrame, name: str | None = None) -> Contrast:
        """Read a contrast: the name of a term, or an expression over columns."""
        parameters = self.parameters(obs)
        if isinstance(spec, str) and spec.strip() not in parameters:
            effect = self.effects(obs).get(spec.strip())
            if effect is not None:
                return Contrast.parse(effect, parameters, name, sums_to_zero=False)
        return Contrast.parse(spec, parameters, name, sums_to_zero=False)

    def effects(self, obs: pd.DataFrame) -> dict[str, Contrast]:
        """One contrast per term: all its columns at once. Terms that others contain depend on the coding."""
        frame, terms = self._matrix(obs)
        parameters, found = tuple(frame.columns), {}
        for term, columns in terms.items():
            if term == "1":
                continue
            rows = [[float(column == wanted) for column in parameters] for wanted in map(str, columns)]
            found[term] = Contrast(term, ", ".join(map(str, columns)), parameters, tuple(map(tuple, rows)))
        if not found:
            raise InvalidInput(f"design: the formula {shortened(self.formula)!r} has nothing to test but the constant.")
        return found

    def plan(self, table: ItemTable, contrast: Contrast) -> ContrastPlan:
        """How a contrast of coefficients is tested on the item × cell table.

        Raises
        ------
        InvalidInput
            It is not estimable, or varies both within and between items.
        """
        model = self.design_matrix(table.obs).to_numpy(float)
        means = _item_means(table)
        centred = _centred(model)
        inside = np.abs(centred - (means @ centred)[table.item_codes]).max(axis=0)
        varies = inside > 1e-9 * np.abs(centred).max(axis=0)
        tested = contrast.matrix.any(axis=0)
        if varies[tested].all():
            return self._within(table, contrast, model)
        if varies[tested].any():
            mixed = [name for name, used in zip(contrast.parameters, tested, strict=True) if used]
            raise InvalidInput(
                f"contrast '{contrast.name}': of the columns {listed(mixed)} some vary within '{self.item or 'trial'}' "
                "and others between; test them one by one."
            )
        return self._between(table, contrast, means, means @ self._averaged(table, contrast, model, varies))

    def _averaged(self, table: ItemTable, contrast: Contrast, model: np.ndarray, varies: np.ndarray) -> np.ndarray:
        """The model for a test between items, without interactions of what is tested with what varies inside items.

        The tested column is then estimated at the average of what varies inside, whichever trials are missing.
        """
        terms = self._matrix(table.obs)[1]
        column_terms = {str(column): set(term.split(":")) for term, columns in terms.items() for column in columns}
        tested = [
            column_terms.get(name, {name})
            for name, row in zip(contrast.parameters, contrast.matrix.T, strict=True)
            if row.any()
        ]
        larger = np.array(
            [any(column_terms.get(name, {name}) > own for own in tested) for name in contrast.parameters], dtype=bool
        )
        return np.where(larger & varies, 0.0, model)

    def _between(self, table: ItemTable, contrast: Contrast, means: Any, model: np.ndarray) -> ContrastPlan:
        n = len(model)
        blocks = None
        if self.blocks is not None:
            first = np.unique(table.item_codes, return_index=True)[1]
            blocks = np.unique(table.obs[self.blocks].astype(str).to_numpy(str)[first], return_inverse=True)[1]
        codes = np.unique(np.round(model, 12), axis=0, return_inverse=True)[1].ravel()
        shuffling = shufflings.whole_item(codes, blocks)
        nothing = np.zeros((table.n_rows, 0))  # covariates are columns of the model here
        frame = Frame(contrast.name, self.item or "trial", np.arange(n)[:, None], nothing, blocks, table.n_rows)
        words = f"{several(frame.item)[0].upper()}{several(frame.item)[1:]} differ in {contrast.name}"
        told = describe(shuffling, words, frame, residuals=True)
        groups = np.zeros(n, int) if blocks is None else blocks
        return self._finish(contrast, frame, (sparse.csr_array(means), model), (groups, shuffling), told)

    def _within(self, table: ItemTable, contrast: Contrast, model: np.ndarray) -> ContrastPlan:
        """One score per item: its share of the estimate, from residuals of what is held constant.

        Rows of an item are not independent observations of the effect (items differ in it), so the items' scores
        are tested, as in a cluster-robust score test (Kline & Santos 2012), and their signs are flipped.
        """
        item = self.item or "trial"
        if contrast.rank > 1:
            raise InvalidInput(
                f"contrast '{contrast.name}': its {contrast.rank} columns vary within '{item}', where a formula tests "
                "one column at a time; test them one by one, or use a categorical or factorial design for F."
            )
        fixed = orthonormal(np.eye(len(table.items))[table.item_codes])
        part = self._partition(contrast, model, fixed)
        tested = part.tested[:, 0]
        shares = sparse.csr_array((tested, (table.item_codes, np.arange(table.n_rows))))
        informative = np.flatnonzero(np.bincount(table.item_codes, tested**2) > _UNINFORMATIVE)
        n = informative.size
        if n < 2:
            raise InvalidInput(f"contrast '{contrast.name}': it varies within {n} {item}; at least 2 are needed.")
        shares = n * part.scale * shares[informative]
        weights = shares.toarray() - (shares @ part.others) @ part.others.T
        # Rounding is no weight: a feature that is silent in an item has no score there, and no rank.
        reduce = sparse.csr_array(np.where(np.abs(weights) > _UNINFORMATIVE * np.abs(weights).max(), weights, 0))
        shuffling, none = shufflings.sign_flip(n), np.zeros((n, 0))
        hypothesis = Hypothesis(np.full((n, 1), n**-0.5), none, none, None, n - 1, shuffling)
        residuals = part.others.shape[1] > fixed.shape[1]
        text = (
            f"{contrast.name} varies inside {several(item)}: the sign of its share of the estimate is flipped in each "
            f"of the {n} {several(item)}"
        )
        told = in_words(shuffling, (n, item), text, residuals)
        used = np.flatnonzero(np.isin(table.item_codes, informative))
        dropped = len(table.items) - n
        return ContrastPlan(
            used,
            reduce,
            hypothesis,
            n**-0.5,
            None,
            None,
            None,
            part.rank,
            model.shape[1] + len(table.items),
            dropped,
            told,
        )

    def _partition(self, contrast: Contrast, model: np.ndarray, fixed: np.ndarray) -> Partition:
        padded = np.hstack([contrast.matrix, np.zeros((contrast.rank, fixed.shape[1]))])
        part = partition(np.hstack([_centred(model), fixed]), padded)  # what is fixed contains the constant
        if part is None:
            raise InvalidInput(
                f"contrast '{contrast.name}' cannot be estimated: the model {shortened(self.formula)!r} "
                f"({model.shape[1]} columns, rank {orthonormal(_centred(model)).shape[1] + 1} with the constant) does "
                "not determine it beside the constant of every block of exchange; drop redundant terms."
            )
        return part

    def _finish(
        self, contrast: Contrast, frame: Frame, data: tuple, exchange: tuple, told: Exchangeability
    ) -> ContrastPlan:
        (reduce, model), (groups, shuffling) = data, exchange
        fixed = orthonormal(np.eye(groups.max() + 1)[groups])
        part = self._partition(contrast, model, fixed)
        df = len(model) - part.rank
        if df < 1:
            raise InvalidInput(
                f"contrast '{contrast.name}': {len(model)} rows for a model of rank {part.rank} leave no degrees of "
                "freedom; more items are needed."
            )
        nuisance = orthonormal(part.others, against=fixed)
        hypothesis = Hypothesis(part.tested, nuisance[:, :0], nuisance, groups, df, shuffling)
        used = np.unique(reduce.indices)
        return ContrastPlan(
            used,
            reduce,
            hypothesis,
            part.scale,
            None,
            None,
            None,
            part.rank,
            model.shape[1] + fixed.shape[1],
            frame.n_dropped,
            told,
            is_difference=False,
        )

    def model_rdm(self, obs: pd.DataFrame, effect: str | None = None) -> np.ndarray:
        """Squared distances between the (standardised) columns of a term, the largest set to 1."""
        frame, effects = self.design_matrix(obs), self.effects(obs)
        if effect is not None and effect not in effects:
            raise InvalidInput(f"model_rdm: the design has no effect '{effect}'; it has {listed(effects)}.")
        chosen = effects[effect] if effect is not None else next(iter(effects.values()))
        columns = frame.to_numpy(float)[:, chosen.matrix.any(axis=0)]
        spread = columns.std(axis=0)
        return squared_distances((columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _centred(model: np.ndarray) -> np.ndarray:
    """Columns without their means: a large offset, as of dates, would drown what varies."""
    centred = model - model.mean(axis=0)
    centred[:, np.abs(centred).max(axis=0) <= _CONSTANT * np.abs(model).max(axis=0)] = 0
    return centred


def _item_means(table: ItemTable) -> sparse.csr_array:
    counts = np.bincount(table.item_codes, minlength=len(table.items))
    weights = 1 / counts[table.item_codes]
    return sparse.csr_array((weights, (table.item_codes, np.arange(table.n_rows))), shape=(counts.size, table.n_rows))


def _calculated(terms: Any) -> list[str]:
    """Factors of a formula that are Python expressions."""
    return sorted({str(factor) for term in terms for factor in term.factors if factor.eval_method.value == "python"})


def _names(factor: str) -> set[str]:
    """Columns in an expression: names that are neither called nor looked into."""
    tree = ast.parse(factor, mode="eval")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in names if id(node) not in called and id(node) not in inside}


def _check_factor(factor: str, formula: str) -> None:
    """Refuse anything but columns, numbers, arithmetic and the listed functions."""
    problem = None
    try:
        tree = ast.parse(factor, mode="eval")
    except SyntaxError:
        raise InvalidInput(
            f"design: the formula {shortened(formula)!r} cannot be read at {shortened(factor)!r}."
        ) from None
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            problem = type(node).__name__
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            exponent = node.right.value if isinstance(node.right, ast.Constant) else None
            small = isinstance(exponent, (int, float)) and abs(exponent) <= HIGHEST_POWER
            problem = problem if small else f"a power above {HIGHEST_POWER}"
        elif isinstance(node, ast.Attribute):
            plain = isinstance(node.value, ast.Name) and node.value.id in _CODINGS and not node.attr.startswith("_")
            problem = problem if plain else f".{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in FUNCTIONS:
            hint = closest(node.func.id, FUNCTIONS) or "."
            raise InvalidInput(
                f"design: the formula {shortened(formula)!r} calls '{node.func.id}'{hint} "
                f"Allowed are {listed(FUNCTIONS)}."
            )
    if problem:
        raise InvalidInput(
            f"design: {shortened(factor)!r} in the formula {shortened(formula)!r} is more than columns, numbers, "
            f"arithmetic and {listed(FUNCTIONS)} ({problem})."
        )
