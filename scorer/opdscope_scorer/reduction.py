"""From distributions over the full vocabulary to the reduced form of nodes and directions.

Legend of shape suffixes: N nodes, V tokens of the vocabulary, K entries of a node, T recorded rollouts of tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from opdscope_scorer.nodes import PADDING, TAIL, Direction, Nodes, Support, TailRollouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from opdscope_scorer.nodes import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What was observed at one node: parallel arrays, one value for each candidate, and the rollouts of the tail."""

    tokens: Sequence[int]
    """The candidates, all different."""
    successes: Sequence[int]
    trials: Sequence[int]
    known: Sequence[bool]
    """Whether the candidate's success needs no rollouts: then it is `successes`, and `trials` is 0."""
    tail_tokens: Sequence[int] = ()
    """Token of every rollout that was forced to start with one sampled from the student's own tail."""
    tail_successes: Sequence[bool] = ()
    """Whether it was a success."""


def reduce_nodes(log_p_NV: Tensor, outcomes: Sequence[Outcomes], keys: Sequence[str]) -> Nodes:
    """Reduces the sampling policy to candidates and a tail.

    The tail is an entry unless the candidates are the whole vocabulary; its mass may be 0.
    """
    p_NV = log_p_NV.double().exp()
    token_NK = _entries(outcomes, p_NV.shape[1])
    return Nodes(
        keys=tuple(keys),
        token_NK=token_NK,
        mass_NK=_sum_entries(p_NV, token_NK),
        sum_sq_NK=_sum_entries(p_NV.square(), token_NK),
        successes_NK=_fill(token_NK, [(*o.successes, sum(o.tail_successes)) for o in outcomes]),
        trials_NK=_fill(token_NK, [(*o.trials, len(o.tail_tokens)) for o in outcomes]),
        known_NK=_fill(token_NK, [(*o.known, 0) for o in outcomes]).astype(np.bool_),
        support_N=np.full(len(outcomes), Support.FULL_VOCABULARY, np.int64),
        tail=_tail_rollouts(p_NV, outcomes),
    )


# inner_k = Σ_{j∈k} P_j d_j with the sampling policy P, whatever policy the loss has
def reduce_direction(
    nodes: Nodes, log_p_NV: Tensor, d_NV: Tensor, log_q_NV: Tensor, *, teacher: str, objective: str
) -> Direction:
    """Reduces a direction to the entries that `reduce_nodes` made of the same sampling policy `log_p_NV`."""
    p_NV = log_p_NV.double().exp()
    d_NV = d_NV.double()
    return Direction(
        teacher=teacher,
        objective=objective,
        inner_NK=_sum_entries(p_NV * d_NV, nodes.token_NK),
        total_NK=_sum_entries(d_NV, nodes.token_NK),
        norm_N=_numpy(d_NV.norm(dim=-1)),
        teacher_mass_NK=_sum_entries(log_q_NV.double().exp(), nodes.token_NK),
        tail_variance_N=_tail_variance(p_NV, d_NV, nodes.token_NK),
        tail_value_T=_numpy(d_NV[torch.from_numpy(nodes.tail.node_T), torch.from_numpy(nodes.tail.token_T)]),
    )


# Var_R(d) = Σ_R P_j (d_j - d_R)² / P_R,  d_R = Σ_R P_j d_j / P_R
def _tail_variance(p_NV: Tensor, d_NV: Tensor, token_NK: Ints) -> Floats:
    weight_NV = _without_candidates(p_NV, token_NK)
    weight_NV = weight_NV / weight_NV.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    mean_N1 = (weight_NV * d_NV).sum(dim=-1, keepdim=True)
    variance_N = (weight_NV * (d_NV - mean_N1).square()).sum(dim=-1)
    return np.where((token_NK == TAIL).any(axis=1), _numpy(variance_N), 0.0)


def _entries(outcomes: Sequence[Outcomes], vocabulary: int) -> Ints:
    """Tokens of all entries: candidates, the tail, padding."""
    rows = [[*o.tokens, TAIL] if len(o.tokens) < vocabulary else list(o.tokens) for o in outcomes]
    width = max(map(len, rows), default=0)
    padded = [row + [PADDING] * (width - len(row)) for row in rows]
    return np.array(padded, np.int64).reshape(len(rows), width)


def _fill(token_NK: Ints, rows: Sequence[Sequence[int]]) -> Ints:
    """Values of candidates and tail, 0 at padding."""
    filled_NK = np.zeros(token_NK.shape, np.int64)
    for filled_K, token_K, row in zip(filled_NK, token_NK, rows, strict=True):
        size = int((token_K != PADDING).sum())
        filled_K[:size] = row[:size]
    return filled_NK


def _sum_entries(values_NV: Tensor, token_NK: Ints) -> Floats:
    """Sum over every entry's tokens."""
    token = torch.from_numpy(token_NK)
    picked_NK = torch.where(token >= 0, values_NV.gather(1, token.clamp_min(0)), 0.0)
    rest_N1 = _without_candidates(values_NV, token_NK).sum(dim=-1, keepdim=True)
    return _numpy(torch.where(token == TAIL, rest_N1, picked_NK))


def _without_candidates(values_NV: Tensor, token_NK: Ints) -> Tensor:
    """The values with 0 at every candidate."""
    node, column = np.nonzero(token_NK >= 0)
    rest_NV = values_NV.clone()
    rest_NV[torch.from_numpy(node), torch.from_numpy(token_NK[node, column])] = 0.0
    return rest_NV


def _tail_rollouts(p_NV: Tensor, outcomes: Sequence[Outcomes]) -> TailRollouts:
    node_T = np.repeat(np.arange(len(outcomes)), [len(o.tail_tokens) for o in outcomes])
    token_T = np.array([token for o in outcomes for token in o.tail_tokens], np.int64)
    success_T: Bools = np.array([success for o in outcomes for success in o.tail_successes], np.bool_)
    prob_T = _numpy(p_NV[torch.from_numpy(node_T), torch.from_numpy(token_T)])
    return TailRollouts(node_T=node_T, token_T=token_T, prob_T=prob_T, success_T=success_T)


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.numpy()
    return array
