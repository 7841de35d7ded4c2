"""Things that are known by name, each registered by the small file that defines it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """Nothing is registered under this name; the message lists what is."""


@dataclass
class Registry(Generic[T]):
    """Named things of one kind."""

    kind: str
    """What they are, in messages."""
    _entries: dict[str, T] = field(default_factory=dict)

    def add(self, name: str, entry: T) -> None:
        """Register an entry under a name that is still free."""
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry of this name.

        Raises:
            UnknownNameError: There is none.
        """
        if name not in self._entries:
            raise UnknownNameError(f"unknown {self.kind} {name!r}; known: {', '.join(self)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
