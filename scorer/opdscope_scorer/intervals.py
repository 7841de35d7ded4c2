"""Intervals of alignments and the status that follows.

Legend of shape suffixes: N nodes, K entries of a node, D directions, M draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.estimator import NO_DIRECTION, coefficients
from opdscope_scorer.nodes import TAIL, masked_sum
from opdscope_scorer.prior import draw_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.nodes import Bools, Direction, Floats, Ints, Nodes
    from opdscope_scorer.prior import Prior
    from opdscope_scorer.tails import TailInner

_DRAWS = 600
# Intervals are widened by this: exact cosines of ±1 must not fall out by rounding.
_ROUNDING = 1e-9
# Beyond this, noise may have kept the draws of an alignment of 1 from it.
_NEAR_END = 0.95
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
    c_NDK = np.stack([coefficients(nodes, direction) for direction in directions], axis=1)
    norm_ND = np.stack([direction.norm_N for direction in directions], axis=1)
    exists_ND = norm_ND > NO_DIRECTION
    unit_NDK = np.where(exists_ND[:, :, None], c_NDK / np.where(exists_ND, norm_ND, 1.0)[:, :, None], 0.0)
    tail_N4D = np.stack([_tail_terms(nodes, *pair) for pair in zip(directions, tails, strict=True)], axis=2)
    ends_N2D = np.empty((len(nodes), 2, len(directions)))
    for u, (value_MK, normal_M) in enumerate(draw_values(nodes, prior, seed=seed, draws=_DRAWS)):
        inner_DM = unit_NDK[u] @ value_MK.T
        if tail_N4D[u, 0].any():
            inner_DM += _tail_draws(tail_N4D[u], masked_sum(value_MK, nodes.token_NK[u] == TAIL), normal_M)
        mean_K = value_MK.mean(axis=0)
        draws = _Draws(
            inner_DM=inner_DM,
            norm_sq_M=_norm_sq(value_MK, nodes.mass_NK[u], nodes.sum_sq_NK[u]),
            mean_norm_sq=float(_norm_sq(mean_K[None], nodes.mass_NK[u], nodes.sum_sq_NK[u])[0]),
            noise_norm_sq_M=_norm_sq(value_MK - mean_K, nodes.mass_NK[u], nodes.sum_sq_NK[u]),
        )
        ends_N2D[u] = _interval(draws, confidence)
    ends_N2D[np.broadcast_to(~exists_ND[:, None, :], ends_N2D.shape)] = np.nan
    return [Intervals(low_N=ends_N2D[:, 0, i], high_N=ends_N2D[:, 1, i]) for i in range(len(directions))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """Posterior draws at one node."""

    inner_DM: Floats
    """⟨g, d⟩/‖d‖."""
    norm_sq_M: Floats
    """‖g‖²."""
    mean_norm_sq: float
    """‖g‖² of the mean of the draws."""
    noise_norm_sq_M: Floats
    """‖g‖² of the draws' deviations from their mean."""


def _interval(draws: _Draws, confidence: float) -> Floats:
    """Ends [2, D] of equal-tailed intervals, or of others that end in ±1 where the alignment may be that.

    Draws of a cosine never reach ±1, because noise leads away from there, and nor would any equal-tailed interval.
    """
    outside = (1 - confidence) / 2
    levels = [outside, 2 * outside, 1 - 2 * outside, 1 - outside]
    low_D, one_sided_low_D, one_sided_high_D, high_D = _quantiles(_cosines(draws), levels)
    up_D = (draws.inner_DM > 0).mean(axis=1)
    one_sided_2D = np.stack(
        [
            _toward_end(-low_D, -one_sided_low_D, sure_D=up_D >= 1 - outside) * -1,
            _toward_end(high_D, one_sided_high_D, sure_D=up_D <= outside),
        ]
    )
    ends_2D: Floats = np.where(_may_be_parallel(draws, confidence), one_sided_2D, [low_D, high_D])
    widened_2D: Floats = ends_2D + np.array([[-_ROUNDING], [_ROUNDING]])
    clipped_2D: Floats = np.clip(widened_2D, -1.0, 1.0)
    return clipped_2D


def _toward_end(high_D: Floats, one_sided_D: Floats, *, sure_D: Bools) -> Floats:
    """Upper ends where the alignment may be ±1: 1, unless it surely is −1 or the draws stay away from 1."""
    ends_D: Floats = np.where(sure_D, one_sided_D, np.where(high_D > _NEAR_END, 1.0, high_D))
    return ends_D


# ‖g‖² - ⟨g, d⟩²/‖d‖², the squared distance from the line of d, against that of the noise
def _may_be_parallel(draws: _Draws, confidence: float) -> Bools:
    """Whether the ideal direction is no farther from the line of d than its noise alone would be, [D]."""
    mean_D = draws.inner_DM.mean(axis=1)
    noise_DM = draws.noise_norm_sq_M - (draws.inner_DM - mean_D[:, None]) ** 2
    rank = math.ceil((noise_DM.shape[1] - 1) * confidence)
    largest_D = np.partition(noise_DM, rank, axis=1)[:, rank]
    near_D: Bools = draws.mean_norm_sq - mean_D**2 <= largest_D + _ROUNDING * draws.mean_norm_sq
    return near_D


def _quantiles(values_DM: Floats, levels: Sequence[float]) -> list[Floats]:
    """Order statistics at the levels, those below the middle rounded down and the others up."""
    last = values_DM.shape[1] - 1
    ranks = [math.floor(last * level) if level < 0.5 else math.ceil(last * level) for level in levels]
    ordered_DM = np.sort(values_DM, axis=1)
    return [ordered_DM[:, rank] for rank in ranks]


def statuses(intervals: Intervals, *, significant_N: Bools, delta: float) -> Ints:
    """Status of every node: undetermined unless its candidates differ significantly and its interval says something."""
    low_N, high_N = intervals.low_N, intervals.high_N
    conditions = [~significant_N, (low_N >= -delta) & (high_N <= delta), low_N > 0, high_N < 0]
    choices = [Status.UNDETERMINED, Status.NEUTRAL, Status.HELPS, Status.HURTS]
    return np.select(conditions, choices, Status.UNDETERMINED).astype(np.int64)


# Cov_R(V, d) given an estimate e of variance s² and a prior N(0, t²), t² = share · V_R (1 - V_R) Var_R(d)
def _tail_terms(nodes: Nodes, direction: Direction, tail: TailInner) -> Floats:
    """The tail's mass (0 if it is not recorded), and e, s² and the prior's scale of d/‖d‖, [N, 4]."""
    norm_N = np.where(direction.norm_N > NO_DIRECTION, direction.norm_N, np.inf)
    recorded_N = np.where(tail.variance_N > 0, nodes.tail_mass_N, 0.0)
    scale_N = _TAIL_CORRELATION_SQ * direction.tail_variance_N / norm_N**2
    estimate_N, variance_N = tail.covariance_N / norm_N, tail.covariance_variance_N / norm_N**2
    terms_N4: Floats = np.nan_to_num(np.stack([recorded_N, estimate_N, variance_N, scale_N], axis=1))
    return terms_N4


def _tail_draws(tail_4D: Floats, value_M: Floats, normal_M: Floats) -> Floats:
    """Draws [D, M] of what the tail adds to ⟨g, d⟩/‖d‖ beyond one value V_R for all of it."""
    mass_D1, estimate_D1, variance_D1, scale_D1 = tail_4D[:, :, None]
    prior_DM = np.maximum(value_M * (1 - value_M) * scale_D1, np.finfo(np.float64).tiny)
    share_DM = prior_DM / (prior_DM + variance_D1)
    draws_DM: Floats = mass_D1 * (share_DM * estimate_D1 + np.sqrt(share_DM * variance_D1) * normal_M)
    return draws_DM


# Σ w (V - J)²
def _norm_sq(value_MK: Floats, mass_K: Floats, sum_sq_K: Floats) -> Floats:
    norm_sq_M: Floats = (value_MK - (value_MK @ mass_K)[:, None]) ** 2 @ sum_sq_K
    return norm_sq_M


def _cosines(draws: _Draws) -> Floats:
    """Cosines [D, M]. A draw whose ideal direction is 0 has none: it counts as ±1 in turn."""
    norm_M = np.sqrt(draws.norm_sq_M)
    ends_M = np.where(np.arange(norm_M.size) % 2, 1.0, -1.0)
    cosine_DM: Floats = np.where(norm_M > 0, draws.inner_DM / np.where(norm_M > 0, norm_M, 1.0), ends_M)
    return np.clip(cosine_DM, -1.0, 1.0)
