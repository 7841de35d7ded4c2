"""Turns pydantic's findings into short sentences: field, what is accepted, what stood there."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_SHOWN_CHARACTERS = 60
_ACCEPTED = {
    "string_type": "must be text (in quotes)",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number (without quotes)",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of settings",
    "model_attributes_type": "must be a mapping of settings",
    "too_short": "must have at least one entry",
    "string_too_short": "must not be empty",
}

Location = tuple[int | str, ...]


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Every finding as (field, message); the field is empty if the whole input is meant."""
    findings = error.errors(include_url=False, include_context=False)
    locations = [finding["loc"] for finding in findings]
    for finding in findings:
        location = finding["loc"]
        if finding["type"] == "too_short" and any(_is_inside(other, location) for other in locations):
            continue  # it has entries, but they are wrong
        yield path(location), _message(finding["type"], finding["msg"], finding["input"], model, location)


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every finding as `field: message`."""
    return [f"{field}: {message}" if field else message for field, message in problems(error, model)]


def path(location: Location) -> str:
    """`("teachers", 0, "name")` as `teachers[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """The value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _message(kind: str, message: str, found: object, model: type[BaseModel], location: Location) -> str:
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown(str(location[-1]), _known_fields(model, location[:-1]))
        case "value_error":
            return message.removeprefix("Value error, ")
        case "json_invalid":
            return f"is not JSON: {message.removeprefix('Invalid JSON: ')}"
    accepted = _ACCEPTED.get(kind) or message.replace("Input should", "must")
    return f"{accepted}, got {shown(found)}"


def _unknown(field: str, known: list[str]) -> str:
    close = difflib.get_close_matches(field, known, n=1)
    return f"is not known; did you mean {close[0]}?" if close else f"is not known; known are {', '.join(known)}"


def _is_inside(location: Location, outer: Location) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _known_fields(model: type[BaseModel], location: Location) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - an annotation may be anything
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for argument in get_args(annotation) if (inner := _inner_model(argument))), None)
