"""Alignment of a set of nodes.

The sums of a question's nodes are all that pooling needs: they add up, and can be stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Bools
    from opdscope_scorer.scoring import Alignments, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSums:
    """Sums over nodes of one teacher and objective. `a + b` are the sums over both sets of nodes."""

    numerator: float = 0.0
    numerator_variance: float = 0.0
    norm_sq: float = 0.0
    norm_sq_variance: float = 0.0
    covariance: float = 0.0
    distill_norm_sq: float = 0.0
    plug_in_numerator: float = 0.0
    plug_in_norm_sq: float = 0.0
    cosine: float = 0.0
    cosine_sq: float = 0.0
    teacher_advantage: float = 0.0
    nodes: int = 0
    advantages: int = 0
    """Nodes whose teacher advantage exists."""
    dropped_nodes: int = 0
    """Nodes whose plug-in cosine does not exist."""
    helps: int = 0
    hurts: int = 0
    neutral: int = 0
    undetermined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Pooled alignment; None: does not exist. See `PooledAlignment` in `scorer.proto`."""

    pooled: float | None
    pooled_low: float | None
    pooled_high: float | None
    pooled_plug_in: float | None
    scope: int
    """`IntervalScope`: 0 none, 1 these nodes, 2 questions."""
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


def pool_sums(alignments: Alignments, mask_N: Bools | None = None) -> PoolSums:
    """Sums over the nodes where the mask holds, or over all."""
    raise NotImplementedError


def pool(sums: Sequence[PoolSums], *, judgement: Judgement, seed: int) -> Pooled:
    """Pooled alignment of questions, given the sums of each. With 20 or more the interval is about questions like these."""
    raise NotImplementedError
