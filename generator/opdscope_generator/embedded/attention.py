"""Attention of many rows, one new token each, over prefixes that they share and over tokens of their own.

Shapes: B rows, n rows of a group, G key/value heads, R query heads for each, D width of a head, P tokens of a prefix,
S columns of the rows' own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of a prefix, shape (2, L, G, P, D), and the rows that see it."""

    kv: Tensor
    rows: slice | Tensor

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.kv.shape[3]


class ForkAttention:
    """Softmax over scores of the prefix and of the row's own tokens together.

    One matrix product serves all rows and query heads that share a prefix's keys, so these are read once a step.
    """

    def __init__(self, kv: Tensor, fed: Sequence[int], prefixes: Sequence[SharedPrefix]) -> None:
        """Prepare a step.

        Args:
            kv: The rows' own keys and values, shape (2, L, at least B, G, at least S, D).
            fed: How many tokens of its own each of the B rows has there before this step.
            prefixes: The shared prefixes.
        """
        self._kv = kv
        self._fed_B = torch.tensor(fed, device=kv.device)
        self._prefixes = prefixes
        self._rows = torch.arange(len(fed), device=kv.device)
        self._columns = max(fed) + 1
        self._longest = max((prefix.length for prefix in prefixes), default=0)
        self._unseen_BS = torch.arange(self._columns, device=kv.device) > self._fed_B[:, None]
        self._scores: Tensor | None = None

    def attend(self, layer: int, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        """Keep the new tokens' keys and values, and return the attention's output, shape (B, 1, H, D)."""
        keys, values = self._kv[:, layer]
        keys[self._rows, :, self._fed_B] = key_BGTD[:, :, 0]
        values[self._rows, :, self._fed_B] = value_BGTD[:, :, 0]
        count, heads, _, width = query_BHTD.shape
        query_BGRD = (query_BHTD * scale).view(count, keys.shape[1], -1, width)
        weights = self._weights(layer, query_BGRD, keys[:count, :, : self._columns])
        output_BGRD: Tensor = weights[..., self._longest :] @ values[:count, :, : self._columns]
        for prefix in self._prefixes:
            part = _by_head(weights[prefix.rows][..., : prefix.length]) @ prefix.kv[1, layer]
            _add(output_BGRD, prefix.rows, _by_row(part, output_BGRD.shape[2]))
        return output_BGRD.reshape(count, 1, heads, width)

    def _weights(self, layer: int, query_BGRD: Tensor, keys_BGSD: Tensor) -> Tensor:
        """Return softmax weights (B, G, R, longest prefix + S)."""
        scores = self._score_buffer(query_BGRD)
        own = query_BGRD @ keys_BGSD.transpose(-1, -2)
        scores[..., self._longest :] = own.masked_fill_(self._unseen_BS[:, None, None], -torch.inf)
        for prefix in self._prefixes:
            part = _by_head(query_BGRD[prefix.rows]) @ prefix.kv[0, layer].transpose(-1, -2)
            scores[prefix.rows, :, :, : prefix.length] = _by_row(part, query_BGRD.shape[2])
        exact = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=exact).to(scores.dtype)

    def _score_buffer(self, query_BGRD: Tensor) -> Tensor:
        """Return space for scores; what no layer writes, behind shorter prefixes, stays at minus infinity."""
        if self._scores is None:
            shape = (*query_BGRD.shape[:3], self._longest + self._columns)
            self._scores = query_BGRD.new_full(shape, -torch.inf)
        return self._scores


def _by_head(rows_nGRX: Tensor) -> Tensor:
    """Return (G, n*R, X): all queries that meet the same keys together."""
    return rows_nGRX.transpose(0, 1).flatten(1, 2)


def _by_row(heads_GQX: Tensor, repeats: int) -> Tensor:
    """Undo `_by_head`: return (n, G, R, X)."""
    return heads_GQX.reshape(len(heads_GQX), -1, repeats, heads_GQX.shape[-1]).transpose(0, 1)


def _add(target_BGRD: Tensor, rows: slice | Tensor, part_nGRD: Tensor) -> None:
    if isinstance(rows, slice):
        target_BGRD[rows] += part_nGRD
    else:
        target_BGRD.index_add_(0, rows, part_nGRD)
