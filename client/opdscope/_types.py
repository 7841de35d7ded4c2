"""What the SDK returns: frozen dataclasses, where `None` says that a value does not exist.

Probabilities are those of the policy that the rollouts sample from, over the full vocabulary. Entropies and divergences
are in nats. Alignments are cosines between -1 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """What the interval of an alignment says."""

    HELPS = "helps"
    HURTS = "hurts"
    NEUTRAL = "neutral"
    UNDETERMINED = "undetermined"


class Support(StrEnum):
    """Over which tokens inner products and norms were taken."""

    FULL_VOCABULARY = "full_vocabulary"
    BUCKETED = "bucketed"
    CANDIDATES = "candidates"


class Correctness(StrEnum):
    """Which rollouts a pooled figure is about."""

    ALL = "all"
    CORRECT = "correct"
    INCORRECT = "incorrect"


class IntervalScope(StrEnum):
    """What a pooled interval is about: exactly these nodes, or questions like these."""

    UNSPECIFIED = "unspecified"
    THESE_NODES = "these_nodes"
    QUESTIONS = "questions"


class RunState(StrEnum):
    """State of a run on a scorer."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FinishReason(StrEnum):
    """Why a rollout ended."""

    STOP_TOKEN = "stop_token"  # noqa: S105 - no password
    STOP_STRING = "stop_string"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """The model that a scorer diagnoses."""

    model_id: str
    weights_version: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    context_length: int
    """Largest number of tokens of prompt and output together."""
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedInfo:
    """A context, verifier or node selector."""

    name: str
    description: str
    needs: tuple[str, ...]
    """Fields of a question that it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveParameter:
    """A parameter of an objective."""

    name: str
    default: str
    """As it is written; empty if it is off by default."""
    meaning: str
    accepted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveInfo:
    """An objective of the catalogue."""

    name: str
    family: str
    formula: str
    loss: str
    source: str
    needs: tuple[str, ...]
    """What it needs beyond the policies of student and teacher."""
    parameters: tuple[ObjectiveParameter, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a run may name."""

    objectives: tuple[ObjectiveInfo, ...]
    contexts: tuple[NamedInfo, ...]
    verifiers: tuple[NamedInfo, ...]
    node_selectors: tuple[NamedInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What something has cost: finished rollouts, targeted ones included, and the tokens sampled for them."""

    rollouts: int
    generated_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the scorer knows it."""

    run_id: str
    state: RunState
    settings: Mapping[str, object] = field(repr=False)
    """The settings as the scorer holds them, with the field names of `opdscope.v1.RunSettings`."""
    questions: int
    questions_done: int
    last_sequence: int
    created_unix_seconds: float
    spent: Spent
    error: str
    """What went wrong; empty unless the run failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsAdded:
    """How many of the questions sent were new, and how many the run has now."""

    added: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A token that was forced at a node, with what came of it."""

    token_id: int
    student_prob: float
    successes: int
    trials: int
    teacher_probs: Mapping[str, float]
    known: bool = False
    """Whether its success is known without rollouts, because it ends the output; then `successes` is 0 or 1."""
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """All tokens that are not candidates, as one."""

    student_prob: float
    successes: int
    trials: int
    teacher_probs: Mapping[str, float]
    sum_sq_prob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceNode:
    """A prompt and the prefix of one rollout, with the outcomes that were observed there."""

    question_id: str
    rollout_id: str
    position: int
    """Number of output tokens before the node."""
    candidates: tuple[Candidate, ...]
    tail: Tail | None = None
    taken_token_id: int | None = None
    rollout_success: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """How one objective under one teacher points at one node."""

    node_index: int
    """Index into the nodes beside it, or number of the node in its stream of evidence."""
    question_id: str
    rollout_id: str
    position: int
    teacher: str
    objective: str
    plug_in: float | None
    """Cosine with the raw success rates put in; pulled toward 0 by their noise."""
    alignment: float | None
    """Cosine corrected for that noise."""
    low: float | None
    high: float | None
    status: Status
    teacher_advantage: float | None
    numerator: float | None
    numerator_se: float | None
    ideal_norm_sq: float | None
    distill_norm: float | None
    p_heterogeneity: float | None
    coverage: float | None
    """Student's probability of the candidates together."""
    teacher_coverage: float | None
    candidate_cosine: float | None
    support: Support


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRefusal:
    """A node of the caller's evidence that could not be scored."""

    node_index: int
    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFinished:
    """A student rollout was generated and verified."""

    sequence: int
    question_id: str
    rollout_id: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    """Text of every output token; joined they are the output."""
    text: str
    success: bool
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutScored:
    """The tokens of a rollout were scored; positions without a node were skipped."""

    sequence: int
    question_id: str
    rollout_id: str
    nodes: tuple[EvidenceNode, ...]
    entropy_nats: tuple[float | None, ...]
    """Student's entropy at every node."""
    divergence_nats: tuple[tuple[float | None, ...], ...]
    """KL(q || P) at every node, a row for every teacher in the order of the run."""
    alignments: tuple[Alignment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionFinished:
    """All rollouts of a question were scored."""

    sequence: int
    question_id: str
    rollouts: int
    successes: int
    spent: Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledAlignment:
    """Alignment of a set of nodes, and how the nodes in it are judged."""

    teacher: str
    objective: str
    correctness: Correctness
    pooled: float | None
    pooled_low: float | None
    pooled_high: float | None
    pooled_plug_in: float | None
    scope: IntervalScope
    mean_plug_in: float | None
    mean_low: float | None
    mean_high: float | None
    nodes: int
    dropped_nodes: int
    helps: int
    hurts: int
    neutral: int
    undetermined: int
    mean_teacher_advantage: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run ended; the last event."""

    sequence: int
    state: RunState
    error: str
    pooled: tuple[PooledAlignment, ...]
    spent: Spent
    policy_mismatch_mean_nats: float | None
    policy_mismatch_max_nats: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the run is. Not kept by the scorer, so `sequence` is always 0."""

    questions: int
    questions_done: int
    rollouts_planned: int
    rollouts_done: int
    generated_tokens: int
    activity: str
    sequence: int = 0


RunEvent = RolloutFinished | RolloutScored | QuestionFinished | RunFinished | Progress
