"""Which rollouts a question needs, and their seeds.

A plan depends on complete earlier rounds only, never on timing, so it is the same after a restart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Values of `SampleKey.token` and `.position` that are no token and no position.
TAIL = -1
ROOT = -1


@dataclass(frozen=True, order=True)
class SampleKey:
    """Names one sample within a run's question."""

    rollout: int
    """Index of the student rollout that it belongs to."""
    position: int
    """Output position where a token is forced; `ROOT` for the student rollout itself."""
    token: int
    """Candidate that is forced; `TAIL` for one sampled from the tail, or where nothing is forced."""
    index: int
    """Number of the sample among those with the same candidate."""

    @property
    def is_root(self) -> bool:
        """Whether it is a student rollout."""
        return self.position == ROOT


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be generated."""

    key: SampleKey
    forced: tuple[int, ...]
    """Tokens to be forced after the prefix."""
    seed: int


@dataclass(frozen=True)
class PlannedNode:
    """A node, its candidates and its samples."""

    position: int
    candidates: tuple[int, ...]
    known: tuple[bool, ...]
    """Whether the candidate ends the output, so that its success needs no rollouts."""
    known_success: tuple[bool, ...]
    """Whether it then is a success."""
    samples: tuple[PlannedSample, ...]


def sample_seed(run_seed: int, question_id: str, key: SampleKey) -> int:
    """Return the seed of a sample, 64 bits: a hash of everything that names it."""
    name = f"{run_seed}\0{question_id}\0{key.rollout}\0{key.position}\0{key.token}\0{key.index}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def plan_roots(run_seed: int, question_id: str, count: int) -> list[PlannedSample]:
    """Return the student rollouts of a question."""
    keys = [SampleKey(rollout, ROOT, TAIL, 0) for rollout in range(count)]
    return [PlannedSample(key, (), sample_seed(run_seed, question_id, key)) for key in keys]


def plan_samples(
    run_seed: int,
    question_id: str,
    rollout: int,
    position: int,
    *,
    candidates: Sequence[int],
    log_p_V: Tensor,
    count: int,
) -> list[PlannedSample]:
    """Return `count` samples of every candidate, and as many of the tail if it has any mass.

    Args:
        run_seed: Seed of the run.
        question_id: The question.
        rollout: Index of the student rollout.
        position: Output position of the node.
        candidates: Tokens to be forced.
        log_p_V: The sampling policy at the node, [V].
        count: Number of samples of each.
    """
    planned = []
    for token in candidates:
        for index in range(count):
            key = SampleKey(rollout, position, token, index)
            planned.append(PlannedSample(key, (token,), sample_seed(run_seed, question_id, key)))
    keys = [SampleKey(rollout, position, TAIL, index) for index in range(count)]
    seeds = [sample_seed(run_seed, question_id, key) for key in keys]
    tail = _sample_tail(log_p_V, candidates, seeds)
    planned += [PlannedSample(key, (token,), seed) for key, token, seed in zip(keys, tail, seeds, strict=False)]
    return planned


def _sample_tail(log_p_V: Tensor, candidates: Sequence[int], seeds: Sequence[int]) -> list[int]:
    """Return one token for every seed, sampled from the policy without the candidates; none if they are everything."""
    tail_V = log_p_V.double().exp()
    tail_V[torch.tensor(candidates)] = 0.0
    cumulative_V = tail_V.cumsum(0).numpy()
    mass = float(cumulative_V[-1])
    if mass <= 0.0:
        return []
    # A stream of its own, since the engine draws the continuation from the seed itself.
    draws = [np.random.Generator(np.random.Philox(key=[seed, 1])).random() for seed in seeds]
    return [int(np.searchsorted(cumulative_V, draw * mass, side="right")) for draw in draws]
