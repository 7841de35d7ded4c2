"""Alignment of a set of nodes.

The sums of a question's nodes are all that pooling needs: they add up, and can be stored.

Legend of shape suffixes: N nodes, Q questions, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from opdscope_scorer.intervals import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Bools, Floats
    from opdscope_scorer.scoring import Alignments, Judgement


_ENOUGH_QUESTIONS = 20
_RESAMPLES = 2000


class IntervalScope(IntEnum):
    """What an interval of a pooled value is about; numbered as in `scorer.proto`."""

    NONE = 0
    THESE_NODES = 1
    QUESTIONS = 2


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

    def __add__(self, other: PoolSums) -> PoolSums:
        return PoolSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(PoolSums)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Pooled alignment; None: does not exist. See `PooledAlignment` in `scorer.proto`."""

    pooled: float | None
    pooled_low: float | None
    pooled_high: float | None
    pooled_plug_in: float | None
    scope: IntervalScope
    """What the interval of `pooled` is about."""
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


def pool_sums(alignments: Alignments, chosen: Bools | slice | None = None) -> PoolSums:
    """Sums over the chosen nodes, or over all. Nodes without outcomes or direction count in no sum."""
    chosen_N = np.zeros(alignments.status_N.size, np.bool_)
    chosen_N[slice(None) if chosen is None else chosen] = True
    scored_N = chosen_N & np.isfinite(alignments.numerator_N) & np.isfinite(alignments.distill_norm_N)
    cosine_N = np.where(chosen_N, alignments.plug_in_N, np.nan)
    count = {status: int((alignments.status_N[chosen_N] == status).sum()) for status in Status}
    return PoolSums(
        numerator=_sum(alignments.numerator_N, scored_N),
        numerator_variance=_sum(alignments.numerator_se_N**2, scored_N),
        norm_sq=_sum(alignments.ideal_norm_sq_N, scored_N),
        norm_sq_variance=_sum(alignments.norm_sq_variance_N, scored_N),
        covariance=_sum(alignments.covariance_N, scored_N),
        distill_norm_sq=_sum(alignments.distill_norm_N**2, scored_N),
        plug_in_numerator=_sum(alignments.plug_in_numerator_N, scored_N),
        plug_in_norm_sq=_sum(alignments.plug_in_norm_sq_N, scored_N),
        cosine=float(np.nansum(cosine_N)),
        cosine_sq=float(np.nansum(cosine_N**2)),
        teacher_advantage=float(np.nansum(alignments.teacher_advantage_N[chosen_N])),
        nodes=int(chosen_N.sum()),
        advantages=int(np.isfinite(alignments.teacher_advantage_N[chosen_N]).sum()),
        dropped_nodes=int(np.isnan(alignments.plug_in_N[chosen_N]).sum()),
        helps=count[Status.HELPS],
        hurts=count[Status.HURTS],
        neutral=count[Status.NEUTRAL],
        undetermined=count[Status.UNDETERMINED],
    )


def pool(sums: Sequence[PoolSums], *, judgement: Judgement, seed: int) -> Pooled:
    """Pooled alignment of questions, given the sums of each.

    With 20 questions or more that have nodes, the interval is about questions like these, else about these nodes.
    """
    questions = [part for part in sums if part.nodes]
    total = sum(questions, PoolSums())
    pooled = _pooled(total, judgement.confidence)
    low, high, scope = None, None, IntervalScope.NONE
    if pooled is not None:
        resampled = len(questions) >= _ENOUGH_QUESTIONS
        scope = IntervalScope.QUESTIONS if resampled else IntervalScope.THESE_NODES
        low, high = (
            _question_interval(questions, judgement.confidence, seed)
            if resampled
            else _node_interval(total, pooled, judgement.confidence)
        )
    mean, mean_low, mean_high = _mean(total, judgement.confidence)
    return Pooled(
        pooled=pooled,
        pooled_low=low,
        pooled_high=high,
        pooled_plug_in=_cosine(total.plug_in_numerator, total.plug_in_norm_sq, total.distill_norm_sq),
        scope=scope,
        mean_plug_in=mean,
        mean_low=mean_low,
        mean_high=mean_high,
        nodes=total.nodes,
        dropped_nodes=total.dropped_nodes,
        helps=total.helps,
        hurts=total.hurts,
        neutral=total.neutral,
        undetermined=total.undetermined,
        mean_teacher_advantage=total.teacher_advantage / total.advantages if total.advantages else None,
    )


def _pooled(total: PoolSums, confidence: float) -> float | None:
    """Pooled alignment, unless the summed squared norm is no more than noise would make it."""
    noise = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(total.norm_sq_variance, 0.0))
    if total.norm_sq <= noise:
        return None
    return _cosine(total.numerator, total.norm_sq, total.distill_norm_sq)


# R = A / √(BD),  Var R = [Var A - R √(D/B) Cov(A, B) + R² D Var B / (4B)] / (BD): delta method
def _node_interval(total: PoolSums, pooled: float, confidence: float) -> tuple[float, float]:
    """Interval for these nodes: only the rollouts are random."""
    ratio = total.numerator / total.norm_sq
    variance = total.numerator_variance - ratio * total.covariance + ratio**2 * total.norm_sq_variance / 4
    scale = total.norm_sq * total.distill_norm_sq
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0) / scale)
    return max(pooled - half, -1.0), min(pooled + half, 1.0)


def _question_interval(questions: Sequence[PoolSums], confidence: float, seed: int) -> tuple[float, float]:
    """Interval for questions like these: percentiles of resampled questions, expanded after Hesterberg 2015.

    The expansion makes up for what percentiles of few questions are too narrow by.
    """
    terms_Q3 = np.array([(q.numerator, q.norm_sq, q.distill_norm_sq) for q in questions])
    count = len(questions)
    weights_BQ = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    numerator_B, norm_sq_B, distill_B = (weights_BQ @ terms_Q3).T
    usable_B = (norm_sq_B > 0) & (distill_B > 0)
    pooled_B = np.clip(numerator_B[usable_B] / np.sqrt(norm_sq_B[usable_B] * distill_B[usable_B]), -1.0, 1.0)
    outside = float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - confidence) / 2)))
    low, high = np.quantile(pooled_B, [outside, 1 - outside])
    return float(low), float(high)


def _mean(total: PoolSums, confidence: float) -> tuple[float | None, float | None, float | None]:
    """Mean of plug-in cosines with its interval, from their standard error over nodes."""
    count = total.nodes - total.dropped_nodes
    if not count:
        return None, None, None
    mean = total.cosine / count
    if count == 1:
        return mean, None, None
    variance = max(total.cosine_sq / count - mean**2, 0.0) / (count - 1)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * math.sqrt(variance)
    return mean, max(mean - half, -1.0), min(mean + half, 1.0)


def _cosine(numerator: float, norm_sq: float, distill_norm_sq: float) -> float | None:
    if norm_sq <= 0 or distill_norm_sq <= 0:
        return None
    return min(max(numerator / math.sqrt(norm_sq * distill_norm_sq), -1.0), 1.0)


def _sum(values_N: Floats, mask_N: Bools) -> float:
    return float(values_N[mask_N].sum())
