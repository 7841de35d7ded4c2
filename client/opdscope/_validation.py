"""Turns pydantic's findings into short sentences: field, what is accepted, what stood there."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_SHOWN_CHARACTERS = 60


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Every finding as (field, message); the field is empty if the whole input is meant."""
    for finding in error.errors(include_url=False, include_context=False):
        location = finding["loc"]
        yield path(location), _message(finding["type"], finding["msg"], finding["input"], model, location)


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every finding as `field: message`."""
    return [f"{field}: {message}" if field else message for field, message in problems(error, model)]


def path(location: tuple[int | str, ...]) -> str:
    """`("teachers", 0, "name")` as `teachers[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _message(kind: str, message: str, found: object, model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"is not known; known are {', '.join(_known_fields(model, location[:-1]))}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    sentence = message.replace("Input should", "must").replace("must have a valid", "must be a")
    return f"{sentence}, got {shown(found)}"


def shown(value: object) -> str:
    """The value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _known_fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - an annotation may be anything
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for argument in get_args(annotation) if (inner := _inner_model(argument))), None)
