"""The two Kullback-Leibler divergences over the whole vocabulary, and their clamped forms."""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred, close_, projected
from opdscope_scorer.objectives.registry import register

FLOOR = Parameter("floor", None, "log-probabilities of both are raised to this value before the loss", high=0)


def reverse_pull(x: ObjectiveInputs, floor: float | None, *, constant: float = -1.0) -> Tensor:
    """Gives P (log(q/P) - 1), minus the derivative of Σ P log(P/q) in log P.

    A floor c makes it Σ P' log(P'/q') with log P' = max(log P, c): nothing pulls on a token below c.
    """
    if floor is None:
        return x.p_NV * (x.log_ratio_NV + constant)
    live_NV = x.log_p_NV >= floor
    return torch.where(live_NV, x.p_NV * (x.log_q_NV.clamp_min(floor) - x.log_p_NV + constant), 0.0)


def forward_pull(x: ObjectiveInputs, floor: float | None) -> Tensor:
    """Gives q, minus the derivative of Σ q log(q/P) in log P; with a floor as above."""
    if floor is None:
        return x.q_NV
    return torch.where(x.log_p_NV >= floor, x.log_q_NV.clamp_min(floor).exp(), 0.0)


@register(
    name="reverse_kl",
    family="kl",
    formula="f = log(q/P)",
    loss="KL(P‖q) = Σ P log(P/q)",
    source="Gu et al. 2024 (MiniLLM, arXiv 2306.08543), eq. 1",
    parameters=(FLOOR,),
    note="No direction exists where the teacher excludes a token that the student plays, unless there is a floor.",
)
def reverse_kl(x: ObjectiveInputs, *, floor: float | None = None) -> Tensor:
    """Gives P (log(q/P) + KL(P‖q))."""
    return centred(x, x.log_ratio_NV) if floor is None else projected(x, reverse_pull(x, floor))


@register(
    name="forward_kl",
    family="kl",
    formula="f = q/P, d = q - P",
    loss="KL(q‖P) = Σ q log(q/P)",
    source="Hinton et al. 2015 (arXiv 1503.02531), sec. 2, at temperature 1",
    parameters=(FLOOR,),
    note="d = q where P = 0, by continuity.",
)
def forward_kl(x: ObjectiveInputs, *, floor: float | None = None) -> Tensor:
    """Gives q - P, which unlike P·q/P exists at P = 0."""
    if floor is None:
        return close_(x.q_NV - x.p_NV, x.likeliest_N1)
    return projected(x, forward_pull(x, floor))
