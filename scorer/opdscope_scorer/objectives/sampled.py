"""Policy gradients whose reward is the teacher's log-ratio of the sampled token."""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred
from opdscope_scorer.objectives.registry import register

_LOSS = "- sg[A] log P(y), y ~ P, A = "
_CLIP = Parameter("clip", None, "log(q/P) is clamped to ±clip", low=0)


def sample_variance(x: ObjectiveInputs, coefficient_NV: Tensor) -> Tensor:
    """Total variance [N] of c(y) (e_y - P), y ~ P: Σ P c² ‖e_y - P‖² - ‖d‖², ‖e_y - P‖² = 1 - 2P_y + Σ P².

    For the likeliest token the last is (1-P_y)² + Σ_(k≠y) P_k², with 1 - P_y as the sum of the others.
    """
    others_NV = x.p_NV.scatter(-1, x.likeliest_N1, 0.0)
    rest_N1 = others_NV.sum(dim=-1, keepdim=True) ** 2 + (others_NV**2).sum(dim=-1, keepdim=True)
    distance_NV = (1 - 2 * x.p_NV + (x.p_NV**2).sum(dim=-1, keepdim=True)).scatter(-1, x.likeliest_N1, rest_N1)
    second_moment_N = (x.p_NV * coefficient_NV**2 * distance_NV).sum(dim=-1)
    return (second_moment_N - (centred(x, coefficient_NV) ** 2).sum(dim=-1)).clamp_min(0.0)


def advantage(x: ObjectiveInputs, clip: float | None) -> Tensor:
    """log(q/P) of each token, as it would be sampled."""
    return x.log_ratio_NV if clip is None else x.log_ratio_NV.clamp(-clip, clip)


def _opd_variance(x: ObjectiveInputs, *, clip: float | None) -> Tensor:
    return sample_variance(x, advantage(x, clip))


def _vopd_variance(x: ObjectiveInputs, *, clip: float | None) -> Tensor:
    a_NV = advantage(x, clip)
    return sample_variance(x, a_NV - torch.linalg.vecdot(x.p_NV, a_NV).unsqueeze(-1))


@register(
    name="sampled_opd",
    family="sampled",
    formula="f = log(q/P)",
    loss=_LOSS + "log(q(y)/P(y))",
    source="Thinking Machines Lab 2025, thinkingmachines.ai/blog/on-policy-distillation",
    parameters=(_CLIP,),
    variance=_opd_variance,
    note="Its expectation is reverse KL; a clip keeps it finite where the teacher excludes a token.",
)
def sampled_opd(x: ObjectiveInputs, *, clip: float | None = None) -> Tensor:
    """The expected direction over the sampled token."""
    return centred(x, advantage(x, clip))


@register(
    name="vopd",
    family="sampled",
    formula="f = log(q/P)",
    loss=_LOSS + "log(q(y)/P(y)) + KL(P‖q)",
    source="Oh et al. 2026 (vOPD, arXiv 2605.07865)",
    parameters=(_CLIP,),
    variance=_vopd_variance,
    note="The baseline -KL(P‖q) changes the variance and not the expectation, which is reverse KL.",
)
def vopd(x: ObjectiveInputs, *, clip: float | None = None) -> Tensor:
    """The expected direction: a baseline that does not depend on the token drops out."""
    return centred(x, advantage(x, clip))
