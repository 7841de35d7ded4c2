"""Keys and values of prefixes: computed once, shared by all rows that continue them, kept for later jobs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opdscope_generator.embedded.forward import Forward, Geometry, causal_mask, masked_attention


class Prefix:
    """Tokens and the keys and values of the first `length` of them, shape (2, L, G, tokens, D)."""

    def __init__(self, token_ids: Sequence[int], geometry: Geometry) -> None:
        self.token_ids = np.asarray(token_ids, dtype=np.int64)
        self.kv = geometry.zeros(tokens=len(self.token_ids))
        self.length = 0
        self.reused = 0
        """How many tokens were copied from another prefix."""
        self.users = 0
        """Jobs that hold it; it is not dropped as long as there are any."""

    @property
    def size(self) -> int:
        """Bytes of storage."""
        return self.kv.nbytes

    @property
    def complete(self) -> bool:
        """Whether all tokens are computed."""
        return self.length == len(self.token_ids)


class PrefixCache:
    """Least recently used prefixes within a budget of bytes. Prefixes that jobs hold count, but are not dropped."""

    def __init__(self, forward: Forward, budget: int) -> None:
        self._forward = forward
        self._budget = budget
        self._prefixes: list[Prefix] = []  # least recently used first

    @property
    def size(self) -> int:
        """Bytes of all prefixes."""
        return sum(prefix.size for prefix in self._prefixes)

    def find(self, token_ids: Sequence[int]) -> Prefix | None:
        """Return a complete prefix that begins with these tokens."""
        wanted = np.asarray(token_ids, dtype=np.int64)
        prefix, common = self._longest(wanted)
        return prefix if prefix is not None and common == len(wanted) else None

    def has_room(self, count: int) -> bool:
        """Whether a new prefix of so many tokens stays within the budget. Alone it has room whatever its size."""
        held = sum(prefix.size for prefix in self._prefixes if prefix.users)
        return not held or held + count * self._forward.geometry.bytes_per_token <= self._budget

    def start(self, token_ids: Sequence[int], *, reuse_at_most: int | None = None) -> Prefix:
        """Return a new prefix in which what a cached one shares with it is computed, at most `reuse_at_most` tokens."""
        new_size = len(token_ids) * self._forward.geometry.bytes_per_token
        source, common = self._longest(np.asarray(token_ids, dtype=np.int64))
        self._drop_down_to(self._budget - new_size, keep=source)
        prefix = Prefix(token_ids, self._forward.geometry)
        if source is not None:
            prefix.length = prefix.reused = common if reuse_at_most is None else min(common, reuse_at_most)
            prefix.kv[..., : prefix.length, :] = source.kv[..., : prefix.length, :]
        return prefix

    def extend(self, prefix: Prefix, count: int, keep: Sequence[int] = ()) -> Tensor:
        """Compute the next `count` tokens, and return the logits (len(keep), V) at the indices `keep` among them."""
        device = self._forward.geometry.device
        start, end = prefix.length, prefix.length + count
        token_ids = torch.from_numpy(prefix.token_ids[start:end]).to(device)[None]
        positions = torch.arange(start, end, device=device)[None]
        attention = _PrefixAttention(prefix.kv, start, end)
        kept = torch.tensor(list(keep), dtype=torch.long, device=device)
        logits = self._forward.logits(token_ids, positions, attention, kept)[0]
        prefix.length = end
        return logits

    def store(self, prefix: Prefix) -> None:
        """Keep a complete prefix. Those that it begins with are no longer needed for themselves."""
        self._prefixes = [
            old for old in self._prefixes if old.users or _common(old.token_ids, prefix.token_ids) < old.length
        ]
        self._prefixes.append(prefix)
        self._drop_down_to(self._budget, keep=None)

    def acquire(self, prefix: Prefix) -> None:
        """Hold a prefix, and make it the most recently used one."""
        prefix.users += 1
        self._prefixes = [old for old in self._prefixes if old is not prefix] + [prefix]

    def release(self, prefix: Prefix) -> None:
        """Hold a prefix no longer."""
        prefix.users -= 1
        self._drop_down_to(self._budget, keep=None)

    def _longest(self, token_ids: NDArray[np.int64]) -> tuple[Prefix | None, int]:
        common = [(_common(prefix.token_ids, token_ids), index) for index, prefix in enumerate(self._prefixes)]
        length, index = max(common, default=(0, 0))
        return (self._prefixes[index], length) if length else (None, 0)

    def _drop_down_to(self, budget: int, keep: Prefix | None) -> None:
        excess = self.size - budget
        for prefix in [old for old in self._prefixes if not old.users and old is not keep]:
            if excess <= 0:
                break
            self._prefixes.remove(prefix)
            excess -= prefix.size


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return how many tokens two sequences have in common from the start."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


class _PrefixAttention:
    """Attention of the tokens `start` to `end` of one sequence over all tokens before them."""

    def __init__(self, kv: Tensor, start: int, end: int) -> None:
        self._kv = kv
        self._new = slice(start, end)
        self._all = slice(0, end)
        self._mask_TS = causal_mask(end - start, end, kv.device)

    def attend(self, layer: int, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        keys_GSD, values_GSD = self._kv[:, layer]
        keys_GSD[:, self._new] = key_BGTD[0]
        values_GSD[:, self._new] = value_BGTD[0]
        keys, values = keys_GSD[None, :, self._all], values_GSD[None, :, self._all]
        return masked_attention(query_BHTD, keys, values, self._mask_TS, scale)
