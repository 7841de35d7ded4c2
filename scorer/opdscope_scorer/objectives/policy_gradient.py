"""Directions of reinforcement learning with the verifier's reward: the ideal, Dr. GRPO and GRPO.

They need values estimated from rollouts. If the same rollouts also estimate the ideal direction, the product of the two
is biased: use halves and `crossfit`.
"""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs, centred
from opdscope_scorer.objectives.registry import register

_GROUP = Parameter("group_size", 8, "G, completions of one prompt", low=2, high=1024)


@register(
    name="ideal",
    family="policy_gradient",
    formula="f = V",
    loss="-J = -Σ P V",
    source="arXiv 2605.10889; Sutton et al. 1999, policy gradient theorem",
    needs=(Need.VALUES,),
)
def ideal(x: ObjectiveInputs) -> Tensor:
    """Gives g = P (V - J)."""
    assert x.value_NV is not None
    return centred(x, x.value_NV)


@register(
    name="dr_grpo",
    family="policy_gradient",
    formula="f = (1 - 1/G) V",
    loss="-1/G Σ_i Σ_t (R_i - mean R) log P(y_t)",
    source="Liu et al. 2025 (Dr. GRPO, arXiv 2503.20783), sec. 3",
    parameters=(_GROUP,),
    needs=(Need.VALUES,),
    note="The factor comes from the group mean, which holds the completion itself.",
)
def dr_grpo(x: ObjectiveInputs, *, group_size: int) -> Tensor:
    """E[R_i - mean R | token] = (1 - 1/G)(V - p), p the prompt's success probability."""
    return ideal(x) * (1 - 1 / group_size)


@register(
    name="grpo",
    family="policy_gradient",
    formula="f = a₁ E[R/L | j] + a₀ E[(1-R)/L | j], a_R = E[(R - mean)/(std + ε) | R]",
    loss="-1/G Σ_i 1/L_i Σ_t (R_i - mean R)/(std R + ε) log P(y_t)",
    source="Shao et al. 2024 (GRPO, arXiv 2402.03300); std and ε as in TRL v1.9.0 trl/trainer/grpo_trainer.py",
    parameters=(_GROUP, Parameter("epsilon", 1e-4, "ε", low=0)),
    needs=(Need.LENGTHS,),
    note="Not the ideal direction: 1/L favours tokens that lead to short successes and long failures.",
)
def grpo(x: ObjectiveInputs, *, group_size: int, epsilon: float) -> Tensor:
    """The other G - 1 completions are independent of the token, so each reward has one expected advantage."""
    assert x.success_per_token_NV is not None
    assert x.failure_per_token_NV is not None
    assert x.prompt_success_N is not None
    failure_N1, success_N1 = group_advantages(x.prompt_success_N, group_size, epsilon).unsqueeze(-1)
    return centred(x, success_N1 * x.success_per_token_NV + failure_N1 * x.failure_per_token_NV)


def group_advantages(prompt_success_N: Tensor, group_size: int, epsilon: float) -> Tensor:
    """Expected normalised advantage [2, N] of a failure and of a success in a group of G.

    Shapes: S numbers of successes among the other G - 1, which are binomial.
    """
    others_S = torch.arange(group_size, dtype=torch.float64)
    probability_NS = _binomial(others_S, group_size - 1, prompt_success_N)
    advantages = []
    for reward in (0.0, 1.0):
        mean_S = (others_S + reward) / group_size
        std_S = (group_size / (group_size - 1) * mean_S * (1 - mean_S)).sqrt()
        advantage_S = torch.where(std_S > 0, (reward - mean_S) / (std_S + epsilon), 0.0)
        advantages.append(probability_NS @ advantage_S)
    return torch.stack(advantages)


def _binomial(successes_S: Tensor, trials: int, probability_N: Tensor) -> Tensor:
    """P(S successes) [N, S], also at probabilities of 0 and 1."""
    total = torch.tensor(trials, dtype=torch.float64)
    log_choose_S = torch.lgamma(total + 1) - torch.lgamma(successes_S + 1) - torch.lgamma(total - successes_S + 1)
    p_N1 = probability_N.unsqueeze(-1)
    return log_choose_S.exp() * p_N1**successes_S * (1 - p_N1) ** (total - successes_S)
