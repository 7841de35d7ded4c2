"""The student's weights, and the distributions that come out of them.

Legend of shape suffixes: S tokens of a sequence, L output positions, N positions asked for, V tokens of the vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opdscope_serving.models import LoadedModel
from torch import Tensor
from transformers import Cache, DynamicCache

from opdscope_scorer.policy import entropy_nats, sampling_log_probs
from opdscope_scorer.recent import Recent

# Positions of a sequence that are computed together: bounds the memory that logits take.
_CHUNK = 256
# Rollouts of one question share prompts, and a rollout is planned before it is scored.
_PROMPT_CACHE_BYTES = 2**30
_LOGITS_CACHE_BYTES = 2**29


@dataclass(frozen=True)
class PolicyTrace:
    """The sampling policy along a rollout."""

    entropy_L: Tensor
    """Entropy at every output position, in nats."""
    log_prob_L: Tensor
    """Log-probability of every output token."""


class Student:
    """Computes next-token distributions. Not for concurrent use: callers keep it on one thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Use these weights, and later no others."""
        self.loaded = loaded
        self._prompts: Recent[Cache] = Recent(_PROMPT_CACHE_BYTES, _cache_bytes)
        self._logits: Recent[Tensor] = Recent(_LOGITS_CACHE_BYTES, lambda logits_NV: logits_NV.nbytes)

    def trace(self, prompt: Sequence[int], output: Sequence[int], *, temperature: float, top_p: float) -> PolicyTrace:
        """Return the policy's entropy and the taken tokens' log-probabilities at every output position."""
        entropies, log_probs = [], []
        taken = torch.tensor(output)
        for wanted, logits_NV in self._forward(prompt, output, range(len(output))):
            log_p_NV = sampling_log_probs(logits_NV, temperature=temperature, top_p=top_p)
            entropies.append(entropy_nats(log_p_NV))
            log_probs.append(log_p_NV.gather(1, taken[wanted, None])[:, 0])
        return PolicyTrace(entropy_L=_cat(entropies), log_prob_L=_cat(log_probs))

    def logits(self, prompt: Sequence[int], output: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return the logits [N, V] that choose the output tokens at the given ascending positions."""

        def compute() -> Tensor:
            chunks = [logits_NV for _, logits_NV in self._forward(prompt, output, positions)]
            return torch.cat(chunks) if chunks else torch.zeros(0, self.loaded.vocabulary_size)

        return self._logits.get((tuple(prompt), tuple(output), tuple(positions)), compute)

    def _forward(
        self, prompt: Sequence[int], output: Sequence[int], positions: Sequence[int]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield positions and their logits, chunk by chunk."""
        if not positions:
            return
        # The logits that choose output token p stand at the token before it; the prompt's last token chooses the first.
        ids = [prompt[-1], *output[: max(positions)]]
        cache = copy.deepcopy(self._prompts.get(tuple(prompt), lambda: self._prefill(prompt[:-1])))
        for first in range(0, len(ids), _CHUNK):
            chunk = ids[first : first + _CHUNK]
            wanted = [p for p in positions if first <= p < first + len(chunk)]
            logits_NV = self._step(chunk, cache, keep=[p - first for p in wanted])
            if wanted:
                yield wanted, logits_NV

    def _prefill(self, ids: Sequence[int]) -> Cache:
        """Return the keys and values of a prompt."""
        cache = DynamicCache(config=self.loaded.model.config)
        for first in range(0, len(ids), _CHUNK):
            self._step(ids[first : first + _CHUNK], cache, keep=[])
        return cache

    def _step(self, ids: Sequence[int], cache: Cache, keep: Sequence[int]) -> Tensor:
        """Append tokens to a cache and return their logits [N, V] where they are kept."""
        device = self.loaded.model.device
        # With nothing to keep the head still computes one row, which costs next to nothing.
        rows = torch.tensor(keep or [len(ids) - 1], device=device)
        with torch.inference_mode():
            result = self.loaded.model(
                torch.tensor([ids], device=device), past_key_values=cache, use_cache=True, logits_to_keep=rows
            )
        logits_NV: Tensor = result.logits[0].cpu()
        return logits_NV


def _cache_bytes(cache: Cache) -> int:
    layers: Any = cache.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.is_initialized)


def _cat(chunks: list[Tensor]) -> Tensor:
    return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.float64)
