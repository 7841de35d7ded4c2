"""Metrics of the scorer. Labels are bounded: never a run, question or rollout."""

from collections.abc import Sequence

import numpy as np
from opdscope.v1 import alignment_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge

from opdscope_scorer.scoring import Alignments


class ScorerMetrics:
    """What a scorer counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything."""
        self.runs_active = Gauge("opdscope_scorer_runs_active", "Runs being worked on.", registry=registry)
        self.runs_finished = Counter("opdscope_scorer_runs_finished", "Runs that ended.", ["state"], registry=registry)
        self.questions = Counter("opdscope_scorer_questions", "Questions that were finished.", registry=registry)
        self.rollouts = Counter(
            "opdscope_scorer_rollouts",
            "Rollouts that were verified and stored.",
            ["kind", "success"],
            registry=registry,
        )
        self.generated_tokens = Counter(
            "opdscope_scorer_generated_tokens", "Tokens that generators sampled for stored rollouts.", registry=registry
        )
        self.nodes = Counter(
            "opdscope_scorer_alignments", "Alignments of nodes by status.", ["status"], registry=registry
        )
        self.model_loaded = Gauge("opdscope_scorer_model_loaded", "Whether the student is loaded.", registry=registry)

    def sample(self, *, root: bool, success: bool, tokens: int) -> None:
        """Count a stored rollout."""
        self.rollouts.labels("student" if root else "targeted", "yes" if success else "no").inc()
        self.generated_tokens.inc(tokens)

    def question(self, alignments: Sequence[Alignments]) -> None:
        """Count a finished question and its alignments."""
        self.questions.inc()
        for columns in alignments:
            for status, count in zip(*np.unique(columns.status_N, return_counts=True), strict=True):
                name = alignment_pb2.AlignmentStatus.Name(int(status)).removeprefix("ALIGNMENT_STATUS_").lower()
                self.nodes.labels(name).inc(int(count))
