"""Reading YAML into pydantic models, with every failure told in one sentence.

The design files and the pipeline files share these three doors: `read_yaml` (text to
mapping), `validate` (mapping to model) and `explain` (pydantic's error to a sentence).
"""

from __future__ import annotations

import datetime
import difflib
import os
import reprlib
import types
import typing
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neurollm.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import ValidationError

Model = TypeVar("Model")

_LONGEST = 60  # characters of any value in a sentence
_MOST = 12  # names in a sentence
_UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError)
_YAML_KINDS = {"timestamp": "a date", "int": "a whole number", "float": "a number", "bool": "true or false"}
_NAMED_FIELDS = "fields such as 'name: value'"
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of reasonable size",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": _NAMED_FIELDS,
    "mapping_type": _NAMED_FIELDS,
    "model_type": _NAMED_FIELDS,
    "model_attributes_type": _NAMED_FIELDS,
    "dataclass_type": _NAMED_FIELDS,
}


def several(name: str) -> str:
    """The plural of a unit, which is the name of a column: ``items``, ``trials``; a name in s stays as it is."""
    return name if name.endswith("s") else f"{name}s"


def one_line(text: object) -> str:
    """Write control characters, line ends and halves of surrogate pairs as escapes.

    Examples
    --------
    >>> print(one_line("two" + chr(10) + "lines"))
    two\\nlines
    """
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def shortened(text: object, longest: int = _LONGEST) -> str:
    """One line of at most `longest` characters of a text, for a sentence."""
    text = str(text)
    line = one_line(text[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def shown(value: Any) -> str:
    """A value as it may stand in a sentence: one short line, however large the value is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date):
        return str(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]!r}..."
    sizes = reprlib.Repr()
    sizes.maxlevel, sizes.maxstring, sizes.maxother, sizes.maxlong = 4, _LONGEST, _LONGEST, _LONGEST
    try:
        text = sizes.repr(value)
    except ValueError:  # a number with more digits than Python writes
        return "a very large number"
    return shortened(text)


def closest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known word, or ``""``.

    Examples
    --------
    >>> closest("sucess", ["success", "failure"])
    "; did you mean 'success'?"
    """
    folded = {str(name).strip().casefold(): str(name) for name in known}
    match = difflib.get_close_matches(str(word)[:200].strip().casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean '{shortened(folded[match[0]])}'?" if match else ""


def listed(names: Iterable[object]) -> str:
    """Quote names for a sentence: ``'a', 'b', 'c'``; at most twelve of them, the others are counted."""
    names = list(names)
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(f"'{shortened(name)}'" for name in names[:_MOST]) + more


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict

    Raises
    ------
    InvalidInput
        The file is absent, is not YAML, repeats a key or is not a mapping.
    """
    where = one_line(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{where}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: cannot be read as a UTF-8 text file ({error}).") from None
    except OSError as error:
        raise InvalidInput(f"{where}: cannot be read as a UTF-8 text file ({error.strerror or error}).") from None
    except ValueError:
        raise InvalidInput(f"{where}: a path cannot contain a NUL character.") from None
    value = _parse(text, where)
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise InvalidInput(f"{where}: expected {_NAMED_FIELDS} at the top level, found {found}.")
    return value


def _parse(text: str, where: str) -> Any:
    """YAML text to plain data; every failure is an InvalidInput."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader(where))  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InvalidInput(f"{where}: {line}not valid YAML ({shortened(problem, 200)}).") from None
    except InvalidInput:
        raise
    except RecursionError:
        raise InvalidInput(f"{where}: the YAML is nested too deeply.") from None
    except _UNREADABLE as error:
        raise InvalidInput(f"{where}: not valid YAML ({shortened(error, 200)}).") from None


def _loader(where: str) -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loader that refuses a key given twice (YAML would keep the last one silently) and names bad lines."""

        def construct_object(self, node, deep=False):
            try:
                return super().construct_object(node, deep)
            except (InvalidInput, yaml.YAMLError):
                raise
            except _UNREADABLE:
                tag = node.tag.rpartition(":")[2]
                raise InvalidInput(
                    f"{where}: line {node.start_mark.line + 1}: {shown(node.value)} cannot be read as "
                    f"{_YAML_KINDS.get(tag, shortened(tag))}; put it in quotes if it is text."
                ) from None

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    found = "a list" if isinstance(key_node, yaml.SequenceNode) else "a mapping"
                    raise InvalidInput(f"{where}: line {line}: the name of a field must be text, found {found}.")
                if key_node.value in seen and key_node.value != "<<":
                    name = shortened(key_node.value)
                    raise InvalidInput(f"{where}: line {line} gives the field '{name}' a second time.")
                seen.add(key_node.value)
            return super().construct_mapping(node, deep)

    return Loader


def validate(model: type[Model] | Any, value: Any, where: str | os.PathLike) -> Model:
    """Build a pydantic model (or an annotated union of models) from plain data.

    Parameters
    ----------
    model : type
        A pydantic model class, or any annotation that ``pydantic.TypeAdapter`` accepts.
    value : object
        What was read from the file.
    where : str or path-like
        Name of the file, the start of the sentence in case of an error.

    Returns
    -------
    model instance

    Raises
    ------
    InvalidInput
        With the sentence of `explain`.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        raise InvalidInput(explain(error, where, model)) from None


def explain(error: ValidationError, where: str | os.PathLike, model: Any = None) -> str:
    """Translate pydantic's error to one sentence that names the file, the field and what would be right.

    Parameters
    ----------
    error : pydantic.ValidationError
    where : str or path-like
        The file (or "argument …") in which the field stands.
    model : type, optional
        The model that was validated; with it a misspelt field is answered with the closest one.

    Returns
    -------
    str
        About the first misspelt field if there is one, else the first problem; further ones are counted.
    """
    problems = _merged(error.errors(include_url=False), model)
    # A misspelt key usually causes a "missing" error too: tell the cause, not the consequence.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    if first["type"] == "extra_forbidden":
        problems = [problem for problem in problems if problem["type"] != "missing"]
    more = len(problems) - 1
    tail = f" ({more} more problem{'s' if more > 1 else ''} in this file.)" if more else ""
    return f"{one_line(where)}: {_sentence(first, model)}{tail}"


def _merged(problems: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """One problem per value that fits no member of a union, where pydantic reports one per member."""
    unions: dict[tuple, list[dict[str, Any]]] = {}
    for problem in problems:
        union = _walk(problem["loc"], model).union
        unions.setdefault(problem["loc"] if union is None else ("union", *union), []).append(problem)
    merged = []
    for key, members in unions.items():
        # The member whose type fits has more to say than that the type does not fit.
        inside = [problem for problem in members if problem["type"] not in _EXPECTED or len(problem["loc"]) > len(key)]
        if len(members) == 1 or inside:
            merged += inside or members
        else:
            expected = list(dict.fromkeys(_EXPECTED[problem["type"]] for problem in members))
            words = " or ".join([", ".join(expected[:-1]), expected[-1]]) if len(expected) > 1 else expected[0]
            merged.append({**members[0], "type": "union", "ctx": {"expected": words}})
    return merged


def _sentence(problem: dict[str, Any], model: Any) -> str:
    kind, context, found = problem["type"], problem.get("ctx", {}), problem["input"]
    place = _walk(problem["loc"], model)
    path = [shortened(name) for name in place.names]
    if place.key or kind == "invalid_key":
        inside = f" in field '{'.'.join(path[:-1])}'" if path[:-1] else ""
        return f"the name {shown(found)}{inside} is not text; put it in quotes."
    field = f"field '{'.'.join(path)}'" if path else "the top level"
    if kind == "extra_forbidden":
        known = sorted(getattr(place.parent, "model_fields", {}))
        allowed = f" The fields here are {', '.join(map(repr, known))}." if known else ""
        hint = closest(path[-1], known) or "."
        return f"unknown {field}{hint}{allowed}"
    if kind == "missing":
        return f"{field} is missing."
    if kind == "union_tag_not_found":
        return f"{field} needs '{context['discriminator'].strip(chr(39))}', which says what kind it is."
    if kind == "union_tag_invalid":
        name = ".".join([*path, context["discriminator"].strip("'")])
        return f"field '{name}' is '{shortened(context['tag'])}'; it must be one of {context['expected_tags']}."
    if kind in ("value_error", "assertion_error"):
        message = str(context.get("error", problem["msg"]))
        if isinstance(found, str):
            message = message.replace(repr(found), shown(found))
        return f"{field}: {one_line(message).rstrip('.')}."
    state = "is empty" if found is None or found in ("", [], {}) else f"is {shown(found)}"
    if kind in ("literal_error", "enum"):
        return f"{field} {state}; it must be {context['expected']}."
    return f"{field} {state}; {_wanted(problem, place)}."


def _wanted(problem: dict[str, Any], place: _Place) -> str:
    """What would be right, as the end of a sentence."""
    kind, context, found = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind == "string_too_short":
        least = context["min_length"]
        return "expected text" if not found else f"expected at least {least} characters"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"expected {bound} {'entry' if bound.endswith(' 1') else 'entries'}"
    if kind == "string_type" and found is not None and not isinstance(found, list | dict):
        return "expected text (put it in quotes)"
    if kind in _EXPECTED or kind == "union":
        fields = next((list(option.model_fields) for option in place.here if hasattr(option, "model_fields")), [])
        if _EXPECTED.get(kind) == _NAMED_FIELDS and fields:
            return f"expected fields such as {listed(fields[:3])}"
        return f"expected {context['expected'] if kind == 'union' else _EXPECTED[kind]}"
    message = one_line(problem["msg"]).rstrip(".")
    if message.startswith("Input "):
        return f"it {message.removeprefix('Input ')}"
    return message[:1].lower() + message[1:]


@dataclass(frozen=True)
class _Place:
    """Where an error's location leads: names as written in the file, and the types found there."""

    names: list[str]
    parent: Any
    here: list[Any]
    key: bool
    union: tuple | None


def _walk(location: tuple, model: Any) -> _Place:
    """Follow an error's location through the model.

    Pydantic puts the tag of a discriminated union, the member of any other union and a mark for keys into the
    location; none of them stands in the file, so they are left out.
    """
    names: list[str] = []
    parent, here, key, union = None, [model], False, None
    for index, step in enumerate(location):
        candidates = [option for annotation in here for option in _options(annotation)]
        models = [option for option in candidates if hasattr(option, "model_fields")]
        tagged = [option for option in models if _has_tag(option, step)]
        if tagged and not any(step in option.model_fields for option in models):
            here = tagged
            continue
        if step == "[key]" and index == len(location) - 1 and index:
            key = True
            continue
        if len(candidates) > 1:
            here = [option for option in candidates if _label(option) == step] or candidates[:1]
            union = location[:index]
            continue
        parent = models[0] if models else None
        names.append(str(step))
        field = next((option.model_fields[step] for option in models if step in option.model_fields), None)
        if field is not None:
            here = [field.annotation]
        else:
            here = [typing.get_args(option)[-1] for option in candidates if typing.get_args(option)]
    return _Place(names, parent, [option for annotation in here for option in _options(annotation)], key, union)


def _label(option: Any) -> str:
    """Pydantic's name of a member of a union."""
    return str(option).replace("typing.", "").replace(" ", "") if typing.get_args(option) else option.__name__


def _options(annotation: Any) -> list[Any]:
    """Take Annotated and Union apart; None is left out."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [] if annotation is type(None) else [annotation]


def _has_tag(model: Any, tag: Any) -> bool:
    return any(
        typing.get_origin(field.annotation) is typing.Literal and tag in typing.get_args(field.annotation)
        for field in model.model_fields.values()
    )
