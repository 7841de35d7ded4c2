"""The batch that decodes: rows that continue prefixes, one token a step each.

A prefix's keys and values are stored once and read once for all rows that share it; only what a row adds is its own.
Shapes: B rows, G key/value heads, R query heads for each of them, D width of a head, S columns of the rows' own tokens,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from opdscope_generator.embedded.attention import ForkAttention, SharedPrefix
from opdscope_generator.embedded.forward import Forward
from opdscope_generator.embedded.prefixes import Prefix
from opdscope_generator.embedded.row_storage import RowStorage
from opdscope_generator.embedded.sampling import sample


@dataclass(eq=False)
class Row:
    """One sample being drawn: it sees `prefix_length` tokens of `prefix`, then `pending` is fed, then it samples."""

    prefix: Prefix
    prefix_length: int
    pending: list[int]
    uniforms: NDArray[np.float64]
    """One number for every absolute position below the end."""
    temperature: float
    top_p: float
    fed: int = 0
    """Tokens of its own that have keys and values."""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Tokens of its own that it may need keys and values for; the last token is never fed."""
        return len(self.uniforms) - self.prefix_length - 1

    @property
    def position(self) -> int:
        """Absolute position of the token that is fed next."""
        return self.prefix_length + self.fed

    @property
    def next_token(self) -> int:
        """The token that is fed next."""
        return self.pending[self.fed] if self.fed < len(self.pending) else self.token_ids[-1]

    @property
    def samples_next(self) -> bool:
        """Whether the step that feeds the next token samples the one after it."""
        return self.fed + 1 >= len(self.pending)


class Batch:
    """Rows that are decoded together: at most `max_rows`, with at most `budget` bytes of their own keys and values."""

    def __init__(self, forward: Forward, *, max_rows: int, budget: int) -> None:
        self._forward = forward
        self._max_rows = max_rows
        self._max_cells = budget // forward.geometry.bytes_per_token
        self._storage = RowStorage(forward.geometry)
        self.rows: list[Row] = []
        self._prefixes: list[SharedPrefix] | None = None

    @property
    def largest_row(self) -> int:
        """Largest number of columns that a row may need."""
        return self._max_cells

    @property
    def size(self) -> int:
        """Bytes of the rows' own keys and values."""
        return self._storage.size

    def fits(self, columns: int) -> bool:
        """Whether a row that needs so many columns can be added."""
        widest = max([columns, *(row.columns for row in self.rows)])
        return len(self.rows) < self._max_rows and (len(self.rows) + 1) * widest <= self._max_cells

    def add(self, row: Row) -> None:
        """Add a row that fits."""
        self.rows.append(row)
        self._prefixes = None

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out. The last ones move into their places."""
        gone = set(map(id, rows))
        for index in reversed([index for index, row in enumerate(self.rows) if id(row) in gone]):
            last = self.rows.pop()
            if index < len(self.rows):
                self.rows[index] = last
                self._storage.move(len(self.rows), index, last.fed)
            self._prefixes = None
        if not self.rows:
            self._storage.clear()

    def step(self) -> list[Row]:
        """Feed one token of every row, and return the rows that sampled a token."""
        token_ids = self._tensor([row.next_token for row in self.rows], torch.long)
        positions = self._tensor([row.position for row in self.rows], torch.long)
        logits_BV = self._forward.logits(token_ids[:, None], positions[:, None], self._attention())[:, 0]
        sampling = [index for index, row in enumerate(self.rows) if row.samples_next]
        for row in self.rows:
            row.fed += 1
        rows = [self.rows[index] for index in sampling]
        if rows:
            self._sample(rows, logits_BV if len(rows) == len(self.rows) else logits_BV[sampling])
        return rows

    def _sample(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        tokens, log_probs = sample(
            logits_BV,
            self._tensor([row.temperature for row in rows], torch.float64),
            self._tensor([row.top_p for row in rows], torch.float64),
            self._tensor([row.uniforms[row.position] for row in rows], torch.float64),
        )
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            row.token_ids.append(token)
            row.log_probs.append(log_prob)

    def _attention(self) -> ForkAttention:
        fed = [row.fed for row in self.rows]
        widest = max(row.columns for row in self.rows)
        kv = self._storage.at_least(fed, columns=max(fed) + 1, most_columns=widest, most_cells=self._max_cells)
        if self._prefixes is None:
            self._prefixes = _shared_prefixes(self.rows, self._forward.geometry.device)
        return ForkAttention(kv, fed, self._prefixes)

    def _tensor(self, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._forward.geometry.device)


def _shared_prefixes(rows: Sequence[Row], device: torch.device) -> list[SharedPrefix]:
    """Group rows by the prefix that they see."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((id(row.prefix), row.prefix_length), []).append(index)
    return [
        SharedPrefix(rows[members[0]].prefix.kv[..., :length, :], _indices(members, device))
        for (_, length), members in groups.items()
        if length
    ]


def _indices(members: list[int], device: torch.device) -> slice | torch.Tensor:
    """Return an index of rows; neighbours are a slice, which needs no copy."""
    first, last = members[0], members[-1]
    if last - first + 1 == len(members):
        return slice(first, last + 1)
    return torch.tensor(members, dtype=torch.long, device=device)
