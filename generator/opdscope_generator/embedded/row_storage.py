"""Storage for the keys and values that rows add to their prefixes."""

from collections.abc import Sequence

from torch import Tensor

from opdscope_generator.embedded.forward import Geometry

_ROW_STEP = 8
_FIRST_COLUMNS = 32


class RowStorage:
    """One tensor (2, L, rows, G, columns, D) that grows with the rows and their tokens."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._kv = geometry.zeros(0, tokens=0)

    @property
    def size(self) -> int:
        """Bytes of storage."""
        return self._kv.nbytes

    def at_least(self, fed: Sequence[int], *, columns: int, most_columns: int, most_cells: int) -> Tensor:
        """Return storage for `len(fed)` rows with that many tokens each and room up to `columns`.

        Where it must grow it grows further than that, so that it grows seldom, but to no more than `most_columns`
        columns and, beyond what is asked for, to no more than `most_cells` rows times columns.
        """
        rows = len(fed)
        if rows > self._kv.shape[2] or columns > self._kv.shape[4]:
            wide = min(max(_FIRST_COLUMNS, columns if columns <= self._kv.shape[4] else 2 * columns), most_columns)
            spare = min(-(-rows // _ROW_STEP) * _ROW_STEP, most_cells // wide)
            self._grow(max(rows, spare), wide, fed)
        return self._kv

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one row to another."""
        if target < self._kv.shape[2] and source < self._kv.shape[2]:
            self._kv[:, :, target, :, :tokens] = self._kv[:, :, source, :, :tokens]

    def clear(self) -> None:
        """Free the storage."""
        self._kv = self._geometry.zeros(0, tokens=0)

    def _grow(self, rows: int, columns: int, fed: Sequence[int]) -> None:
        old, self._kv = self._kv, self._geometry.zeros(rows, tokens=columns)
        kept_rows, kept_columns = min(len(fed), old.shape[2]), min(max(fed), old.shape[4])
        self._kv[:, :, :kept_rows, :, :kept_columns] = old[:, :, :kept_rows, :, :kept_columns]
