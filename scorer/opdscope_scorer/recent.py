"""A cache of recent tensors, bounded by their memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Keeps what was used last, up to a number of bytes; a single value may exceed it."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        """Hold values whose sizes, in bytes, sum up to at most `max_bytes`."""
        self._max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], V]) -> V:
        """Return the value of this key, computed if it is not there."""
        if key not in self._values:
            self._values[key] = value = compute()
            self._bytes += self._size(value)
            while self._bytes > self._max_bytes and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._size(oldest)
        self._values.move_to_end(key)
        return self._values[key]
