"""Collects everything that is wrong with a request, so that the caller is told all of it at once."""

from collections.abc import Callable
from typing import TypeVar

from opdscope_serving.errors import FieldViolation, InvalidRequest

T = TypeVar("T")


class Violations:
    """Fields that are wrong so far."""

    def __init__(self) -> None:
        """Start with nothing wrong."""
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Note that a field is wrong."""
        self._found.append(FieldViolation(field, description))

    def require(self, field: str, value: object, accepted: str, *, ok: bool) -> None:
        """Note that a field is wrong unless `ok`."""
        if not ok:
            self.add(field, f"must be {accepted}, not {value!r}")

    def attempt(self, field: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; note the message of its `ValueError` as what is wrong with the field."""
        try:
            return make()
        except ValueError as error:
            self.add(field, str(error))
            return None

    def raise_any(self) -> None:
        """Raise if anything is wrong.

        Raises:
            InvalidRequest: With all that was noted.
        """
        if self._found:
            raise InvalidRequest(self._found)
