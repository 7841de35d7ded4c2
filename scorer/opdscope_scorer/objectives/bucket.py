"""Candidates and tail: a node reduced to pseudo-tokens, and what that loses.

Shapes: K candidates, S = K + 1 pseudo-tokens of which the last is the bucket of all other tokens.

An objective whose f depends on q/P gives the pseudo-tokens the direction of a small policy. It is that of the full
vocabulary, with the bucket's part shared as P_j/P_R, where q/P and V are uniform in the tail. Where they are not, let
E = max |f_j - f(q_R/P_R)| and D = max |V_j - V_R| over the tail: two functions here bound what is lost.
"""

import torch
from torch import Tensor


def bucketed(log_NV: Tensor, candidates_NK: Tensor) -> Tensor:
    """Log-probabilities [N, S] of the candidates and of all other tokens together."""
    tail_NV = log_NV.scatter(-1, candidates_NK, -torch.inf)
    return torch.cat((log_NV.gather(-1, candidates_NK), tail_NV.logsumexp(dim=-1, keepdim=True)), dim=-1)


def numerator(ideal_NS: Tensor, distill_NS: Tensor, tail_p_N: Tensor, tail_sum_sq_p_N: Tensor) -> Tensor:
    """⟨g,d⟩ over the full vocabulary: the bucket's product counts Σ_R P_j² / P_R² times."""
    share_N = torch.where(tail_p_N > 0, tail_sum_sq_p_N / tail_p_N**2, 0.0)
    products_NS = ideal_NS * distill_NS
    return products_NS[:, :-1].sum(dim=-1) + share_N * products_NS[:, -1]


def direction_error(p_NS: Tensor, f_error_N: Tensor) -> Tensor:
    """Bound of |d_k - its value over the full vocabulary| [N, S], the bucket's being the sum over its tokens.

    f̄ moves by ε = Σ_R P_j (f_j - f_R), |ε| <= P_R E: a candidate's d by P_k ε, the bucket's by (1 - P_R) ε.
    """
    shift_N1 = (p_NS[:, -1] * f_error_N).unsqueeze(-1)
    return torch.cat((p_NS[:, :-1] * shift_N1, (1 - p_NS[:, -1:]) * shift_N1), dim=-1)


def numerator_error(
    *,
    p_NS: Tensor,
    ideal_NS: Tensor,
    distill_NS: Tensor,
    tail_sum_sq_p_N: Tensor,
    f_error_N: Tensor,
    value_error_N: Tensor,
) -> Tensor:
    """Bound of |⟨g,d⟩ - its value over the full vocabulary| [N], V_R being the tail's P-weighted mean.

    With Q = Σ_R P_j² the difference is -ε (Σ_C P_k² (V_k-J) + Q (V_R-J)) + Σ_R P_j² (V_R-J) (f_j-f_R)
    + Σ_R P_j² (V_j-V_R) (f_R - f̄ + (f_j-f_R) - ε), each factor at its largest.
    """
    tail_p_N = p_NS[:, -1]
    shift_N = tail_p_N * f_error_N
    value_gap_N = torch.where(tail_p_N > 0, ideal_NS[:, -1] / tail_p_N, 0.0)
    pull_gap_N = torch.where(tail_p_N > 0, distill_NS[:, -1] / tail_p_N, 0.0)
    level_N = (p_NS * ideal_NS)[:, :-1].sum(dim=-1) + tail_sum_sq_p_N * value_gap_N
    within_N = value_gap_N.abs() * f_error_N + value_error_N * (pull_gap_N.abs() + f_error_N + shift_N)
    return shift_N * level_N.abs() + tail_sum_sq_p_N * within_N
