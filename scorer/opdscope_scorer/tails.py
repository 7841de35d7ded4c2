"""What recorded rollouts of the tail add to the tail as one bucket.

One value V_R for all tokens of the tail R leaves errors: P_R Cov_R(V, d) in the inner product, and terms of the second
order in the squared norm. When it is recorded which token each rollout was forced to, both are estimated without bias.
Tokens j are sampled with P_j / P_R. Everything is taken relative to b, the mean success rate of the candidates: that
changes no expectation, because b does not depend on the tail's rollouts, and less noise is left.

Legend of shape suffixes: N nodes, K entries of a node, T recorded rollouts of tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.nodes import TAIL, masked_sum, row_sum

if TYPE_CHECKING:
    from opdscope_scorer.nodes import Bools, Direction, Floats, Nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class TailInner:
    """What recorded rollouts of tails add to inner products."""

    correction_N: Floats
    variance_N: Floats
    covariance_N: Floats
    """Estimate of Cov_R(V, d) itself."""
    covariance_variance_N: Floats


# P_R Cov_R(V, d) = P_R E[(y - b)(d_j - d_R)],  d_R = inner_R / P_R
# and the variance of one summand is about E[(y - b)²] Var_R(d)
def tail_inner(nodes: Nodes, direction: Direction, value_NK: Floats, variance_NK: Floats) -> TailInner:
    """Estimates the part of inner products that one value for the whole tail leaves out."""
    node_T = nodes.tail.node_T
    mass_N, count_N = nodes.tail_mass_N, _count(nodes)
    tail_NK = nodes.token_NK == TAIL
    base_N = _candidate_mean(nodes, value_NK)
    centre_N = masked_sum(direction.inner_NK, tail_NK) / _safe(mass_N)
    residual_T = (nodes.tail.success_T - base_N[node_T]) * (direction.tail_value_T - centre_N[node_T])
    spread_N = masked_sum(nodes.trials_NK * variance_NK + (value_NK - base_N[:, None]) ** 2, tail_NK)
    covariance_N = _sums(nodes, residual_T) / _safe(count_N)
    covariance_variance_N = np.where(count_N > 0, spread_N * direction.tail_variance_N / _safe(count_N), 0.0)
    return TailInner(
        correction_N=mass_N * covariance_N,
        variance_N=mass_N**2 * covariance_variance_N,
        covariance_N=covariance_N,
        covariance_variance_N=covariance_variance_N,
    )


# Σ_R P_j² (V_j - J)² - S_R (V_R - J)² = P_R² E[r r' (1{j = j'} - S_R/P_R² - p̃_j - p̃_j')]
# over pairs of rollouts, with r = y - b and p̃_j = P_j - S_R/P_R
def tail_norm_sq(nodes: Nodes, value_NK: Floats) -> Floats:
    """Estimates the part of squared norms that one value for the whole tail leaves out; 0 below two rollouts."""
    node_T = nodes.tail.node_T
    mass_N, count_N = nodes.tail_mass_N, _count(nodes)
    mean_prob_N = nodes.tail_sum_sq_N / _safe(mass_N)
    r_T = nodes.tail.success_T - _candidate_mean(nodes, value_NK)[node_T]
    excess_T = nodes.tail.prob_T - mean_prob_N[node_T]
    sum_N, squares_N = _sums(nodes, r_T), _sums(nodes, r_T**2)
    pairs_N = sum_N**2 - squares_N
    excess_N = _sums(nodes, r_T * excess_T) * sum_N - _sums(nodes, r_T**2 * excess_T)
    total_N = mass_N**2 * (_same_token_pairs(nodes, r_T) - 2 * excess_N) - nodes.tail_sum_sq_N * pairs_N
    return np.where(count_N > 1, total_N / np.maximum(count_N * (count_N - 1), 1), 0.0)


def _same_token_pairs(nodes: Nodes, r_T: Floats) -> Floats:
    """Sum of r r' over ordered pairs of different rollouts with the same token."""
    names = np.stack([nodes.tail.node_T, nodes.tail.token_T], axis=1)
    groups, group_T = np.unique(names, axis=0, return_inverse=True)
    group_T = group_T.reshape(-1)
    sums = np.bincount(group_T, r_T, len(groups)) ** 2 - np.bincount(group_T, r_T**2, len(groups))
    return np.bincount(groups[:, 0], sums, len(nodes)).astype(np.float64)


# b = Σ_C P_k V̂_k / P_C
def _candidate_mean(nodes: Nodes, value_NK: Floats) -> Floats:
    mass_NK = np.where(_tried_candidates(nodes), nodes.mass_NK, 0.0)
    mass_N = row_sum(mass_NK)
    return np.where(mass_N > 0, row_sum(mass_NK * value_NK) / _safe(mass_N), 0.5)


def _tried_candidates(nodes: Nodes) -> Bools:
    return (nodes.token_NK >= 0) & ((nodes.trials_NK > 0) | nodes.known_NK)


def _sums(nodes: Nodes, values_T: Floats) -> Floats:
    return np.bincount(nodes.tail.node_T, values_T, len(nodes)).astype(np.float64)


def _count(nodes: Nodes) -> Floats:
    return _sums(nodes, np.ones(nodes.tail.node_T.size))


def _safe(values_N: Floats) -> Floats:
    return np.where(values_N > 0, values_N, 1.0)
