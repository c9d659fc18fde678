"""One object for a question about level means, accepted as text, mapping or vector."""

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
    """Weights of level means that sum to zero.

    Attributes
    ----------
    name : str
    expression : str
        The question in the words of the levels, e.g. ``"success - failure"``.
    levels : tuple of str
    weights : tuple of float
        In the order of `levels`.
    """

    name: str
    expression: str
    levels: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, spec: Any, levels: Sequence[object], name: str | None = None) -> Contrast:
        """Read a contrast.

        Parameters
        ----------
        spec : str, mapping, sequence of numbers or Contrast
            ``"success - failure"``, ``"a - 0.5*b - 0.5*c"``, ``{"success": 1, "failure": -1}`` or weights
            in level order. A level whose name is a number, or that could be misread, is written in
            backticks or quotes: ``"`1` - `2`"``.
        levels : sequence
            All levels of the factor.
        name : str, optional
            Default: the expression.

        Returns
        -------
        Contrast

        Raises
        ------
        InvalidInput
            An unknown level, weights that do not sum to zero, or text that is no linear combination.

        Examples
        --------
        >>> Contrast.parse("success - failure", ["failure", "success"]).weights
        (-1.0, 1.0)
        """
        levels = tuple(str(level) for level in levels)
        if isinstance(spec, Contrast):
            spec, name = dict(zip(spec.levels, spec.weights, strict=True)), spec.name if name is None else name
        if isinstance(spec, str):
            weights, expression = _from_text(spec, levels), spec.strip()
        elif isinstance(spec, Mapping):
            weights = _from_mapping(spec, levels)
            expression = _as_text(weights, levels)
        else:
            weights = _from_vector(spec, levels)
            expression = _as_text(weights, levels)
        _check_weights(weights, expression, levels)
        return cls(expression if name is None else name, expression, levels, tuple(float(weight) for weight in weights))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        weights = dict(zip(self.levels, self.weights, strict=True))
        return {"name": self.name, "expression": self.expression, "weights": weights}


def _check_weights(weights: np.ndarray, expression: str, levels: tuple[str, ...]) -> None:
    if not np.isfinite(weights).all():
        raise InvalidInput(f"contrast '{shortened(expression)}': every weight must be a finite number.")
    if not weights.any():
        raise InvalidInput(f"contrast '{shortened(expression)}': all weights are zero, so nothing is compared.")
    if abs(weights.sum()) > _SUM_TOLERANCE * np.abs(weights).max():
        raise InvalidInput(
            f"contrast '{shortened(expression)}': the weights of the levels {listed(levels)} sum to {weights.sum():g}; "
            "they must sum to zero, because otherwise the question is whether activation differs from zero and "
            "not whether levels differ."
        )


def _unknown(word: str, levels: tuple[str, ...], where: str) -> InvalidInput:
    hint = closest(word, levels) or "."
    return InvalidInput(f"contrast {where}: unknown level '{shortened(word)}'{hint} The levels are {listed(levels)}.")


def _from_mapping(spec: Mapping, levels: tuple[str, ...]) -> np.ndarray:
    given = {str(level): weight for level, weight in spec.items()}
    for level in given:
        if level not in levels:
            raise _unknown(level, levels, shown(dict(spec)))
    return _from_vector([given.get(level, 0.0) for level in levels], levels)


def _from_vector(spec: Any, levels: tuple[str, ...]) -> np.ndarray:
    try:
        weights = np.asarray(spec, dtype=float)
    except (TypeError, ValueError):
        raise InvalidInput(f"contrast {shown(spec)}: the weights must be numbers.") from None
    if weights.shape != (len(levels),):
        raise InvalidInput(
            f"contrast {shown(spec)}: expected one weight for each of the {len(levels)} levels {listed(levels)}."
        )
    return weights


def _as_text(weights: np.ndarray, levels: tuple[str, ...]) -> str:
    """The expression of a weight vector, positive levels first; reads back to the same weights."""
    terms = []
    for weight, level in sorted(zip(weights, levels, strict=True), key=lambda term: term[0] < 0):
        if weight:
            size = "" if abs(weight) == 1 else f"{_number(abs(float(weight)))}*"
            sign = ("- " if weight < 0 else "+ ") if terms else ("-" if weight < 0 else "")
            plain = re.fullmatch(r"[^\W\d]\w*(?: [^\W\d]\w*)*", level)
            terms.append(f"{sign}{size}{level if plain else f'`{level}`'}")
    return " ".join(terms)


def _number(value: float) -> str:
    """The shortest text that reads back to the same number, without the exponent that formulaic cannot read."""
    return np.format_float_positional(value, trim="-")


def _from_text(text: str, levels: tuple[str, ...]) -> np.ndarray:
    """Weights of an expression: levels become plain names, formulaic does the algebra."""
    from formulaic.utils.constraints import LinearConstraints

    names = [f"level{index}_" for index in range(len(levels))]
    algebra = _substitute(text, levels, names)
    try:
        constraints = LinearConstraints.from_spec(algebra, variable_names=names)
        matrix = np.asarray(constraints.constraint_matrix, float)
        values = np.asarray(constraints.constraint_values, float)
        if not len(matrix):
            raise ValueError("empty")
    except Exception as error:  # formulaic raises many kinds for text it cannot read
        raise InvalidInput(
            f"contrast '{shortened(text)}': not a linear combination of the levels {listed(levels)}, such as "
            f"'{shortened(levels[0])} - {shortened(levels[-1])}'."
        ) from error
    if matrix.shape[0] != 1:
        raise InvalidInput(
            f"contrast '{shortened(text)}': expected one question, found {matrix.shape[0]}; give each its own name."
        )
    if values.any():
        raise InvalidInput(
            f"contrast '{shortened(text)}': contains a number that multiplies no level; write a level whose name "
            "is a number in backticks."
        )
    return matrix[0]


def _substitute(text: str, levels: tuple[str, ...], names: list[str]) -> str:
    """Replace quoted and bare level names by `names`; refuse any other word."""
    replacement = dict(zip(levels, names, strict=True))
    # Names that look like a number or begin with a sign or bracket could be misread: in quotes only.
    number = re.compile(r"[\d.]+(?:[eE][+-]?\d+)?")
    bare = [level for level in levels if re.match(r"\w", level) and not number.fullmatch(level)]
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
            raise _unknown(found, levels, f"'{shortened(text)}'")
        return replacement[found]

    return pattern.sub(replace, text)
