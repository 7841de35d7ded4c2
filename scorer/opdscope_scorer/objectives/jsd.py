"""The generalised Jensen-Shannon divergence."""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred
from opdscope_scorer.objectives.kl import forward_kl, reverse_kl
from opdscope_scorer.objectives.registry import register


@register(
    name="gkd_jsd",
    family="jsd",
    formula="f = (1-β) log(m/P), m = βq + (1-β)P",
    loss="β KL(q‖m) + (1-β) KL(P‖m)",
    source="Agarwal et al. 2024 (GKD, arXiv 2306.13649), eq. 1",
    parameters=(Parameter("beta", 0.5, "weight of the teacher in m", low=0, high=1),),
    note="β = 0 means forward and β = 1 reverse KL, as trainers define them; the formula itself vanishes there.",
)
def gkd_jsd(x: ObjectiveInputs, *, beta: float) -> Tensor:
    """m/P = βq/P + 1 - β."""
    if beta == 0:
        return forward_kl(x)
    if beta == 1:
        return reverse_kl(x)
    return centred(x, torch.log(beta * x.ratio_NV + (1 - beta)).mul_(1 - beta))
