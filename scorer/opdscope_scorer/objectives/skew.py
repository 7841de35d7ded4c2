"""Skewed divergences: a little of the first distribution is mixed into the second."""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred, projected
from opdscope_scorer.objectives.kl import forward_kl, reverse_kl
from opdscope_scorer.objectives.registry import register

_SOURCE = "Ko et al. 2024 (DistiLLM, arXiv 2402.03898), sec. 3.1"
_ALPHA = Parameter("alpha", 0.1, "weight of the first distribution in m", low=0, high=1)


@register(
    name="skew_reverse_kl",
    family="skew",
    formula="f = log(m/P) + αP/m, m = αP + (1-α)q",
    loss="KL(P‖m)",
    source=_SOURCE,
    parameters=(_ALPHA,),
    note="α = 0 is reverse KL; α = 1 gives no signal.",
)
def skew_reverse_kl(x: ObjectiveInputs, *, alpha: float) -> Tensor:
    """m/P = α + (1-α) q/P."""
    if alpha == 0:
        return reverse_kl(x)
    mixed_NV = alpha + (1 - alpha) * x.ratio_NV
    return centred(x, mixed_NV.log() + alpha / mixed_NV)


@register(
    name="skew_forward_kl",
    family="skew",
    formula="f = (1-α) q/m, m = αq + (1-α)P",
    loss="KL(q‖m)",
    source=_SOURCE,
    parameters=(_ALPHA,),
    note="α = 0 is forward KL; α = 1 gives no signal. α is the teacher's weight here: gkd_jsd's β, not 1-β.",
)
def skew_forward_kl(x: ObjectiveInputs, *, alpha: float) -> Tensor:
    """P f = (1-α) q / (α q/P + 1-α), bounded by P (1-α)/α."""
    if alpha == 0:
        return forward_kl(x)
    weight_NV = (1 - alpha) * x.q_NV / (alpha * x.ratio_NV + (1 - alpha))
    return projected(x, torch.where(x.played_NV, weight_NV, 0.0))
