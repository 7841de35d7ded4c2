"""Intervals of alignments and the status that follows.

Legend of shape suffixes: N nodes, K entries of a node, D directions, M draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.estimator import NO_DIRECTION, coefficients
from opdscope_scorer.nodes import TAIL, masked_sum
from opdscope_scorer.prior import draw_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Direction, Floats, Ints, Nodes
    from opdscope_scorer.prior import Prior
    from opdscope_scorer.tails import TailInner

_DRAWS = 1000
# Intervals are widened by this: exact cosines of ±1 must not fall out by rounding.
_ROUNDING = 1e-9
# Prior variance of the correlation of V and d within the tail.
_TAIL_CORRELATION_SQ = 0.1


class Status(IntEnum):
    """What a node's interval says; numbered as in `alignment.proto`."""

    HELPS = 1
    HURTS = 2
    NEUTRAL = 3
    UNDETERMINED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Ends of the intervals of one direction's alignments; NaN where it has none."""

    low_N: Floats
    high_N: Floats


def alignment_intervals(
    nodes: Nodes,
    directions: Sequence[Direction],
    tails: Sequence[TailInner],
    prior: Prior,
    *,
    confidence: float,
    seed: int,
) -> list[Intervals]:
    """Intervals of the alignments of every direction, from posterior draws of the success probabilities.

    `tails` says what recorded rollouts of the tails add to each direction.
    """
    c_NKD = np.stack([coefficients(nodes, direction) for direction in directions], axis=2)
    norm_ND = np.stack([direction.norm_N for direction in directions], axis=1)
    tail_N4D = np.stack([_tail_terms(nodes, *pair) for pair in zip(directions, tails, strict=True)], axis=2)
    ends_N2D = np.empty((len(nodes), 2, len(directions)))
    for u, (value_MK, normal_M) in enumerate(draw_values(nodes, prior, seed=seed, draws=_DRAWS)):
        inner_MD = value_MK @ c_NKD[u]
        if tail_N4D[u, 0].any():
            inner_MD += _tail_draws(tail_N4D[u], masked_sum(value_MK, nodes.token_NK[u] == TAIL), normal_M)
        norm_M = np.sqrt(_norm_sq(value_MK, nodes.mass_NK[u], nodes.sum_sq_NK[u]))
        ends_N2D[u] = interval_of_draws(_cosines(inner_MD, norm_M, norm_ND[u]), confidence)
    ends_N2D[np.broadcast_to(~(norm_ND > NO_DIRECTION)[:, None, :], ends_N2D.shape)] = np.nan
    return [Intervals(low_N=ends_N2D[:, 0, i], high_N=ends_N2D[:, 1, i]) for i in range(len(directions))]


def interval_of_draws(cosine_MD: Floats, confidence: float) -> Floats:
    """Lower and upper ends [2, D] that hold the share `confidence` of the draws, the same share outside at each end.

    A draw without a cosine counts on both sides.
    """
    outside = (1 - confidence) / 2
    low_D = np.quantile(np.nan_to_num(cosine_MD, nan=-1.0), outside, axis=0, method="lower")
    high_D = np.quantile(np.nan_to_num(cosine_MD, nan=1.0), 1 - outside, axis=0, method="higher")
    return np.stack([np.maximum(low_D - _ROUNDING, -1.0), np.minimum(high_D + _ROUNDING, 1.0)])


def statuses(intervals: Intervals, p_heterogeneity_N: Floats, *, confidence: float, delta: float) -> Ints:
    """Status of every node: undetermined unless its candidates differ significantly and its interval says something."""
    low_N, high_N = intervals.low_N, intervals.high_N
    distinct_N = p_heterogeneity_N <= 1 - confidence
    conditions = [~distinct_N, (low_N >= -delta) & (high_N <= delta), low_N > 0, high_N < 0]
    choices = [Status.UNDETERMINED, Status.NEUTRAL, Status.HELPS, Status.HURTS]
    return np.select(conditions, choices, Status.UNDETERMINED).astype(np.int64)


# Cov_R(V, d) given an estimate e of variance s² and a prior N(0, t²), t² = share · V_R (1 - V_R) Var_R(d)
def _tail_terms(nodes: Nodes, direction: Direction, tail: TailInner) -> Floats:
    """Whether the tail is recorded (its mass, or 0), e, s² and the prior's scale, [N, 4]."""
    recorded_N = np.where(tail.variance_N > 0, nodes.tail_mass_N, 0.0)
    scale_N = _TAIL_CORRELATION_SQ * direction.tail_variance_N
    return np.stack([recorded_N, tail.covariance_N, tail.covariance_variance_N, scale_N], axis=1)


def _tail_draws(tail_4D: Floats, value_M: Floats, normal_M: Floats) -> Floats:
    """Draws [M, D] of what the tail adds to the inner product beyond one value V_R for all of it."""
    mass_D, estimate_D, variance_D, scale_D = tail_4D
    prior_MD = np.maximum((value_M * (1 - value_M))[:, None] * scale_D, np.finfo(np.float64).tiny)
    share_MD = prior_MD / (prior_MD + variance_D)
    draws_MD: Floats = mass_D * (share_MD * estimate_D + np.sqrt(share_MD * variance_D) * normal_M[:, None])
    return draws_MD


# Σ w (V - J)²
def _norm_sq(value_MK: Floats, mass_K: Floats, sum_sq_K: Floats) -> Floats:
    norm_sq_M: Floats = (value_MK - (value_MK @ mass_K)[:, None]) ** 2 @ sum_sq_K
    return norm_sq_M


def _cosines(inner_MD: Floats, ideal_norm_M: Floats, distill_norm_D: Floats) -> Floats:
    below_MD = ideal_norm_M[:, None] * distill_norm_D
    cosine_MD = np.divide(inner_MD, below_MD, out=np.full(inner_MD.shape, np.nan), where=below_MD > 0)
    return np.clip(cosine_MD, -1.0, 1.0)
