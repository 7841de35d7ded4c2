"""Scores nodes: from outcomes and directions to alignments, intervals and statuses.

This is the joint between the mathematics and a diagnosis; evidence goes the same way.

Legend of shape suffixes: N nodes, K entries of a node.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from opdscope_scorer.estimator import (
    candidate_cosine,
    corrected_cosine,
    ideal_norm,
    inner_product,
    plug_in_cosine,
    teacher_advantage,
)
from opdscope_scorer.fit import fit
from opdscope_scorer.heterogeneity import heterogeneity_levels
from opdscope_scorer.intervals import alignment_intervals, statuses
from opdscope_scorer.links import no_links
from opdscope_scorer.nodes import masked_sum
from opdscope_scorer.rates import pooled_rates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.estimator import IdealNorm, InnerProduct
    from opdscope_scorer.fit import Fit
    from opdscope_scorer.intervals import Intervals
    from opdscope_scorer.nodes import Direction, Floats, Ints, Nodes
    from opdscope_scorer.prior import Prior
    from opdscope_scorer.rates import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How alignments are judged."""

    confidence: float = 0.95
    """Coverage that intervals aim at."""
    delta: float = 0.05
    """Alignments within ±delta are neutral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignments:
    """Columns for one teacher and objective, a value for every node; NaN: does not exist. See `alignment.proto`."""

    teacher: str
    objective: str
    plug_in_N: Floats
    alignment_N: Floats
    low_N: Floats
    high_N: Floats
    status_N: Ints
    teacher_advantage_N: Floats
    numerator_N: Floats
    numerator_se_N: Floats
    ideal_norm_sq_N: Floats
    distill_norm_N: Floats
    p_heterogeneity_N: Floats
    coverage_N: Floats
    teacher_coverage_N: Floats
    candidate_cosine_N: Floats
    support_N: Ints
    # What pooling needs beyond.
    plug_in_numerator_N: Floats
    plug_in_norm_sq_N: Floats
    norm_sq_variance_N: Floats
    covariance_N: Floats
    """Covariance of the estimates of inner product and squared norm."""


_COLUMNS = [one.name for one in fields(Alignments) if one.name.endswith("_N")]


def score_nodes(
    nodes: Nodes,
    directions: Sequence[Direction],
    *,
    judgement: Judgement,
    seed: int,
    prior: Prior | None = None,
) -> list[Alignments]:
    """Alignments of every direction at all nodes, each node by its own outcomes, in the order of the directions.

    Without a prior, one is fitted to these nodes. Deterministic; does not depend on the order of the nodes, and with a
    given prior not on which other nodes are scored at the same time.
    """
    if not len(nodes) or not directions:
        return [_nothing(direction) for direction in directions]
    return score_fit(fit(nodes, no_links(), prior), directions, judgement=judgement, seed=seed)


def score_fit(fitted: Fit, directions: Sequence[Direction], *, judgement: Judgement, seed: int) -> list[Alignments]:
    """Alignments of every direction at all nodes, each node by its own outcomes and those its links bring."""
    nodes, rates = fitted.nodes, pooled_rates(fitted)
    norm = ideal_norm(nodes, rates)
    inners = [inner_product(nodes, rates, direction) for direction in directions]
    intervals = alignment_intervals(
        fitted.counts,
        directions,
        [inner.tail for inner in inners],
        fitted.prior,
        confidence=judgement.confidence,
        seed=seed,
    )
    level_N = heterogeneity_levels(fitted.counts, seed=seed)
    return [
        _columns(
            nodes, rates, norm, inner, interval=interval, level_N=level_N, direction=direction, judgement=judgement
        )
        for inner, interval, direction in zip(inners, intervals, directions, strict=True)
    ]


def concat_alignments(parts: Sequence[Alignments], order_N: Ints | None = None) -> Alignments:
    """Alignments at all nodes of the parts, which agree on teacher and objective, in the order given."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    if order_N is not None:
        columns = {name: column_N[order_N] for name, column_N in columns.items()}
    return Alignments(teacher=parts[0].teacher, objective=parts[0].objective, **columns)


def _columns(
    nodes: Nodes,
    rates: Rates,
    norm: IdealNorm,
    inner: InnerProduct,
    *,
    interval: Intervals,
    level_N: Floats,
    direction: Direction,
    judgement: Judgement,
) -> Alignments:
    """Everything about one direction; nothing but the interval at nodes without any outcome."""
    tried_N = rates.tried_NK.any(axis=1)
    significant_N = level_N <= 1 - judgement.confidence
    cosine_N = corrected_cosine(norm, inner, direction)
    values = {
        "plug_in_N": plug_in_cosine(norm, inner, direction),
        # A ratio of noisy estimates can leave the interval that the same outcomes support.
        "alignment_N": np.where(significant_N, np.clip(cosine_N, interval.low_N, interval.high_N), np.nan),
        "teacher_advantage_N": teacher_advantage(nodes, rates, direction),
        "numerator_N": inner.unbiased_N,
        "numerator_se_N": np.sqrt(inner.variance_N),
        "ideal_norm_sq_N": norm.corrected_N,
        "candidate_cosine_N": candidate_cosine(nodes, rates, direction),
        "plug_in_numerator_N": inner.plug_in_N,
        "plug_in_norm_sq_N": norm.plug_in_N,
        "norm_sq_variance_N": norm.variance_N,
        "covariance_N": inner.covariance_N,
    }
    return Alignments(
        teacher=direction.teacher,
        objective=direction.objective,
        low_N=interval.low_N,
        high_N=interval.high_N,
        status_N=statuses(interval, significant_N=significant_N, delta=judgement.delta),
        distill_norm_N=direction.norm_N,
        p_heterogeneity_N=level_N,
        coverage_N=nodes.coverage_N,
        teacher_coverage_N=masked_sum(direction.teacher_mass_NK, nodes.token_NK >= 0),
        support_N=nodes.support_N,
        **{name: np.where(tried_N, value_N, np.nan) for name, value_N in values.items()},
    )


def _nothing(direction: Direction) -> Alignments:
    """Columns of no nodes."""
    integers = {"status_N", "support_N"}
    columns: dict[str, Any] = {name: np.zeros(0, np.int64 if name in integers else np.float64) for name in _COLUMNS}
    return Alignments(teacher=direction.teacher, objective=direction.objective, **columns)
