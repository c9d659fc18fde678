"""One object for a question about means or coefficients, accepted as text, mapping, vector or matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurollm.errors import InvalidInput
from neurollm.validation import closest, listed, shortened, shown

_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Contrast:
    """One or more linear combinations of parameters: level means, cell means or coefficients.

    Attributes
    ----------
    name : str
    expression : str
        The question in the words of the parameters, e.g. ``"success - failure"``.
    parameters : tuple of str
        Levels of a factor, cells ``"formal:sad"`` of several, or columns of a formula's matrix.
    weights : tuple of tuple of float
        One row for a t contrast, several linearly independent ones for an F contrast; in the order of `parameters`.
    factors : tuple of str
        Factors whose main effect (one) or interaction (several) this is; empty for other contrasts.
    """

    name: str
    expression: str
    parameters: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    factors: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, spec: Any, parameters: Sequence[object], name: str | None = None, *, sums_to_zero: bool = True
    ) -> Contrast:
        """Read a contrast.

        Parameters
        ----------
        spec : str, mapping, sequence, matrix or Contrast
            ``"success - failure"``, ``"a - 0.5*b - 0.5*c"``, ``{"success": 1, "failure": -1}`` or weights
            in the order of `parameters`; ``"a = b, b = c"``, a list of texts, or a matrix with one row per
            combination gives an F contrast. A name that is a number, or that could be misread, is written in
            backticks or quotes: ``"`1` - `2`"``.
        parameters : sequence
            All levels, cells or columns. A vector is never padded.
        name : str, optional
            Default: the expression.
        sums_to_zero : bool, default=True
            Refuse weights that do not sum to zero: for parameters that are means, where anything else asks
            whether activation differs from zero.

        Returns
        -------
        Contrast

        Raises
        ------
        InvalidInput
            An unknown parameter, weights that do not sum to zero, rows that repeat each other, or text that is no
            linear combination.

        Examples
        --------
        >>> Contrast.parse("success - failure", ["failure", "success"]).weights
        ((-1.0, 1.0),)
        >>> Contrast.parse("a = b, b = c", ["a", "b", "c"]).rank
        2
        """
        parameters, factors = tuple(str(parameter) for parameter in parameters), ()
        if isinstance(spec, Contrast):
            name, factors = spec.name if name is None else name, spec.factors
            rows, expression = _reordered(spec, parameters), spec.expression
        elif isinstance(spec, str):
            rows, expression = _from_text(spec, parameters), spec.strip()
        elif isinstance(spec, Mapping):
            rows = _from_mapping(spec, parameters)[None]
            expression = _as_text(rows, parameters)
        elif isinstance(spec, Sequence) and spec and all(isinstance(part, str) for part in spec):
            rows, expression = np.vstack([_from_text(part, parameters) for part in spec]), ", ".join(spec)
        else:
            rows = _from_numbers(spec, parameters)
            expression = _as_text(rows, parameters)
        _check_rows(rows, expression, parameters, sums_to_zero)
        weights = tuple(tuple(float(weight) for weight in row) for row in rows)
        return cls(expression if name is None else name, expression, parameters, weights, factors)

    @property
    def matrix(self) -> np.ndarray:
        """The weights as an array, shape (q, number of parameters)."""
        return np.array(self.weights, float)

    @property
    def rank(self) -> int:
        """Tested degrees of freedom: 1 for a t contrast."""
        return len(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "expression": self.expression,
            "parameters": list(self.parameters),
            "weights": [list(row) for row in self.weights],
            "factors": list(self.factors),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Contrast:
        """Inverse of `to_dict`."""
        weights = tuple(tuple(float(weight) for weight in row) for row in value["weights"])
        return cls(value["name"], value["expression"], tuple(value["parameters"]), weights, tuple(value["factors"]))


def _check_rows(rows: np.ndarray, expression: str, parameters: tuple[str, ...], sums_to_zero: bool) -> None:
    where = f"contrast '{shortened(expression)}'"
    if not np.isfinite(rows).all():
        raise InvalidInput(f"{where}: every weight must be a finite number.")
    if not rows.any(axis=1).all():
        raise InvalidInput(f"{where}: all weights are zero, so nothing is compared.")
    sums = rows.sum(axis=1)
    if sums_to_zero and (np.abs(sums) > _SUM_TOLERANCE * np.abs(rows).max(axis=1)).any():
        raise InvalidInput(
            f"{where}: the weights of {listed(parameters)} sum to {sums[np.argmax(np.abs(sums))]:g}; "
            "they must sum to zero, because otherwise the question is whether activation differs from zero and "
            "not whether levels differ."
        )
    if np.linalg.matrix_rank(rows / np.linalg.norm(rows, axis=1, keepdims=True)) < len(rows):
        raise InvalidInput(f"{where}: one of its {len(rows)} rows follows from the others; leave it out.")


def _unknown(word: str, parameters: tuple[str, ...], where: str) -> InvalidInput:
    hint = closest(word, parameters) or "."
    return InvalidInput(f"contrast {where}: unknown name '{shortened(word)}'{hint} Known are {listed(parameters)}.")


def _reordered(contrast: Contrast, parameters: tuple[str, ...]) -> np.ndarray:
    """Weights of a contrast over another order of its parameters, or more of them."""
    rows = np.zeros((contrast.rank, len(parameters)))
    for index, parameter in enumerate(contrast.parameters):
        if parameter in parameters:
            rows[:, parameters.index(parameter)] = contrast.matrix[:, index]
        elif contrast.matrix[:, index].any():
            raise _unknown(parameter, parameters, f"'{shortened(contrast.name)}'")
    return rows


def _from_mapping(spec: Mapping, parameters: tuple[str, ...]) -> np.ndarray:
    given = {str(parameter): weight for parameter, weight in spec.items()}
    for parameter in given:
        if parameter not in parameters:
            raise _unknown(parameter, parameters, shown(dict(spec)))
    return _from_numbers([given.get(parameter, 0.0) for parameter in parameters], parameters)[0]


def _from_numbers(spec: Any, parameters: tuple[str, ...]) -> np.ndarray:
    try:
        rows = np.atleast_2d(np.asarray(spec, dtype=float))
    except (TypeError, ValueError):
        raise InvalidInput(f"contrast {shown(spec)}: the weights must be numbers.") from None
    if rows.ndim != 2 or rows.shape[1] != len(parameters):
        raise InvalidInput(
            f"contrast {shown(spec)}: expected one weight for each of the {len(parameters)} parameters "
            f"{listed(parameters)}."
        )
    return rows


def _as_text(rows: np.ndarray, parameters: tuple[str, ...]) -> str:
    """The expression of weights, positive names first; reads back to the same weights."""
    return ", ".join(_row_as_text(row, parameters) for row in rows)


def _row_as_text(weights: np.ndarray, parameters: tuple[str, ...]) -> str:
    terms = []
    for weight, parameter in sorted(zip(weights, parameters, strict=True), key=lambda term: term[0] < 0):
        if weight:
            size = "" if abs(weight) == 1 else f"{_number(abs(float(weight)))}*"
            sign = ("- " if weight < 0 else "+ ") if terms else ("-" if weight < 0 else "")
            plain = re.fullmatch(r"[^\W\d]\w*(?:[ :][^\W\d]\w*)*", parameter)
            quote = "" if plain else next((mark for mark in "`'\"" if mark not in parameter), "`")
            terms.append(f"{sign}{size}{quote}{parameter}{quote}")
    return " ".join(terms)


def _number(value: float) -> str:
    """The shortest text that reads back to the same number, without the exponent that formulaic cannot read."""
    return np.format_float_positional(value, trim="-")


def _from_text(text: str, parameters: tuple[str, ...]) -> np.ndarray:
    """Rows of an expression: parameters become plain names, formulaic does the algebra."""
    from formulaic.utils.constraints import LinearConstraints

    names = [f"level{index}_" for index in range(len(parameters))]
    algebra = _substitute(text, parameters, names)
    try:
        constraints = LinearConstraints.from_spec(algebra, variable_names=names)
        matrix = np.asarray(constraints.constraint_matrix, float)
        values = np.asarray(constraints.constraint_values, float)
        if not len(matrix):
            raise ValueError("empty")
    except Exception as error:  # formulaic raises many kinds for text it cannot read
        raise InvalidInput(
            f"contrast '{shortened(text)}': not a linear combination of {listed(parameters)}, such as "
            f"'{shortened(parameters[0])} - {shortened(parameters[-1])}'."
        ) from error
    if values.any():
        raise InvalidInput(
            f"contrast '{shortened(text)}': contains a number that multiplies no level; write a level whose name "
            "is a number in backticks."
        )
    return matrix


def _substitute(text: str, parameters: tuple[str, ...], names: list[str]) -> str:
    """Replace quoted and bare level names by `names`; refuse any other word."""
    replacement = dict(zip(parameters, names, strict=True))
    # Names that look like a number or begin with a sign or bracket could be misread: in quotes only.
    number = re.compile(r"[\d.]+(?:[eE][+-]?\d+)?")
    bare = [level for level in parameters if re.match(r"\w", level) and not number.fullmatch(level)]
    known = "|".join(re.escape(level) for level in sorted(bare, key=len, reverse=True))
    pattern = re.compile(
        r"`(?P<tick>[^`]*)`|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\""
        + (rf"|(?<!\w)(?P<bare>{known})(?!\w)" if bare else "")
        + r"|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)(?!\w)|(?P<word>[^\s+\-*/()=,`'\"]+)"
    )

    def replace(match: re.Match) -> str:
        kind, found = match.lastgroup, match.group(match.lastgroup)
        if kind == "number":
            return _number(float(found))
        if kind == "word" or found not in replacement:
            raise _unknown(found, parameters, f"'{shortened(text)}'")
        return replacement[found]

    return pattern.sub(replace, text)
