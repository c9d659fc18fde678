"""Reading YAML into pydantic models, with every failure told in one sentence.

The design files and the pipeline files share these three doors: `read_yaml` (text to
mapping), `validate` (mapping to model) and `explain` (pydantic's error to a sentence).
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neurollm.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import ValidationError

Model = TypeVar("Model")


def closest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known word, or ``""``.

    Examples
    --------
    >>> closest("sucess", ["success", "failure"])
    "; did you mean 'success'?"
    """
    folded = {str(name).casefold(): str(name) for name in known}
    match = difflib.get_close_matches(str(word).casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean '{folded[match[0]]}'?" if match else ""


def listed(names: Iterable[object]) -> str:
    """Quote names for a sentence: ``'a', 'b', 'c'``."""
    return ", ".join(f"'{name}'" for name in names)


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
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loader that refuses a key given twice (YAML would keep the last one silently)."""

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                if key_node.value in seen and key_node.value != "<<":
                    raise InvalidInput(
                        f"{path}: line {key_node.start_mark.line + 1} gives the field '{key_node.value}' a second time."
                    )
                seen.add(key_node.value if isinstance(key_node.value, str) else id(key_node))
            return super().construct_mapping(node, deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as a UTF-8 text file ({error}).") from None
    try:
        value = yaml.load(text, Loader=Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InvalidInput(f"{path}: {line}not valid YAML ({getattr(error, 'problem', None) or error}).") from None
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise InvalidInput(f"{path}: expected fields such as 'name: value' at the top level, found {found}.")
    return value


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
    problems = error.errors(include_url=False)
    # A misspelt key usually causes a "missing" error too: tell the cause, not the consequence.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    if first["type"] == "extra_forbidden":
        problems = [problem for problem in problems if problem["type"] != "missing"]
    more = len(problems) - 1
    tail = f" ({more} more problem{'s' if more > 1 else ''} in this file.)" if more else ""
    return f"{where}: {_sentence(first, model)}{tail}"


def _sentence(problem: dict[str, Any], model: Any) -> str:
    kind, context, found = problem["type"], problem.get("ctx", {}), problem["input"]
    path, parent = _walk(problem["loc"], model)
    field = f"field '{'.'.join(path)}'" if path else "the top level"
    if kind == "extra_forbidden":
        known = sorted(getattr(parent, "model_fields", {}))
        allowed = f" The fields here are {listed(known)}." if known else ""
        hint = closest(path[-1], known) or "."
        return f"unknown {field}{hint}{allowed}"
    if kind == "missing":
        return f"{field} is missing."
    if kind == "union_tag_not_found":
        return f"{field} needs '{context['discriminator'].strip(chr(39))}', which says what kind it is."
    if kind == "union_tag_invalid":
        name = ".".join([*path, context["discriminator"].strip("'")])
        return f"field '{name}' is '{context['tag']}'; it must be one of {context['expected_tags']}."
    if kind in ("literal_error", "enum"):
        return f"{field} is {found!r}; it must be {context['expected']}."
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {str(context.get('error', problem['msg'])).rstrip('.')}."
    message = problem["msg"].removeprefix("Input ").rstrip(".")
    return f"{field} is {_short(found)}; it {message}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(location: tuple, model: Any) -> tuple[list[str], Any]:
    """Follow an error's location through the model: the field names as written in the file, and the last parent.

    Pydantic puts the tag of a discriminated union in the location; no such field stands in the file, so it is left out.
    """
    names: list[str] = []
    parent, here = None, [model]
    for step in location:
        candidates = [option for annotation in here for option in _options(annotation)]
        models = [option for option in candidates if hasattr(option, "model_fields")]
        tagged = [option for option in models if _has_tag(option, step)]
        if tagged and not any(step in option.model_fields for option in models):
            here = tagged
            continue
        parent = models[0] if models else None
        names.append(str(step))
        field = next((option.model_fields[step] for option in models if step in option.model_fields), None)
        if field is not None:
            here = [field.annotation]
        else:
            here = [typing.get_args(option)[-1] for option in candidates if typing.get_args(option)]
    return names, parent


def _options(annotation: Any) -> list[Any]:
    """Take Annotated and Union apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation]


def _has_tag(model: Any, tag: Any) -> bool:
    return any(
        typing.get_origin(field.annotation) is typing.Literal and tag in typing.get_args(field.annotation)
        for field in model.model_fields.values()
    )
