"""What an inference engine offers: rollouts of forks and scores of sequences, in types without protobuf."""

import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelInfo:
    """Describes a model and the engine that holds it."""

    model_id: str
    weights_version: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    context_length: int
    engine: str
    engine_version: str
    seeded: bool
    """Whether equal seeds give equal samples."""
    max_top_k: int
    """Largest `top_k` of a `ScoreJob`."""
    max_batch_size: int
    dtype: str
    max_new_tokens: int
    """Largest number of tokens after the prefix that the engine has memory for."""


class FinishReason(enum.Enum):
    """Why a completion ended; of several reasons at one token the first of these counts."""

    STOP_TOKEN = enum.auto()
    STOP_STRING = enum.auto()
    LENGTH = enum.auto()


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled and where a completion ends."""

    temperature: float
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Fork:
    """A continuation to be forced, with one sample for every seed (64 bits, unsigned)."""

    forced_token_ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RolloutJob:
    """Continues one prefix after each of many forks. The output starts at `prompt_length`."""

    prefix_token_ids: tuple[int, ...]
    prompt_length: int
    end_position: int
    forks: tuple[Fork, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Completion:
    """One finished sample: what was sampled after prefix and forced tokens."""

    fork_index: int
    sample_index: int
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Nats, under the sampling policy with temperature and truncation applied."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class PrefixUse:
    """How much of a job's prefix had to be computed."""

    computed_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class RolloutBatch:
    """Completions that are ready. The first batch of a job says how its prefix was come by."""

    completions: tuple[Completion, ...]
    prefix_use: PrefixUse | None = None


@dataclass(frozen=True)
class ScoreSequence:
    """A sequence and the positions p, 1 <= p <= its length, at which the distribution of token p is wanted."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    wanted_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ScoreJob:
    """Asks for log-probabilities of sequences, normalised over the full vocabulary."""

    sequences: tuple[ScoreSequence, ...]
    top_k: int
    temperature: float


@dataclass(frozen=True)
class SequenceScores:
    """Log-probabilities (nats) of one sequence; P positions in the order asked, W wanted ids, K likeliest tokens."""

    sequence_index: int
    wanted_log_probs_P_W: NDArray[np.float32]
    top_token_ids_P_K: NDArray[np.int32]
    top_log_probs_P_K: NDArray[np.float32]


class Engine(Protocol):
    """One model behind an inference engine. Its methods are called on an event loop and never block it.

    Closing a returned iterator, or leaving it by cancellation, frees what the job holds in the engine. Iterators raise
    `EngineDown` when the engine fails and `QueueFull` when too many jobs wait.
    """

    @property
    def info(self) -> ModelInfo:
        """Describe the model."""

    @property
    def healthy(self) -> bool:
        """Whether jobs are served; false for good once the engine has failed."""

    def rollout(self, job: RolloutJob) -> AsyncGenerator[RolloutBatch]:
        """Yield every sample of the job exactly once, in no order."""

    def score(self, job: ScoreJob) -> AsyncGenerator[SequenceScores]:
        """Yield the scores of the job's sequences in their order."""

    def close(self) -> None:
        """Stop working; jobs that are still there fail with `EngineDown`."""
