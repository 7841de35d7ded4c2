"""Distillation of logits at a temperature of its own, or after standardising them.

Both are given as raw gradients in z and brought to τ·∂/∂z. They need the logits: a policy that was truncated or taken
at another temperature no longer shows them.
"""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs, close_
from opdscope_scorer.objectives.registry import register

_T = Parameter("T", 2.0, "temperature of both softmaxes", low=1e-3, high=1e3)
# As in the authors' code, which divides by σ + ε.
_EPSILON = 1e-7


def _logits(x: ObjectiveInputs) -> tuple[Tensor, Tensor]:
    assert x.student_logits_NV is not None
    assert x.teacher_logits_NV is not None
    return x.student_logits_NV, x.teacher_logits_NV


def _softened(student_NV: Tensor, teacher_NV: Tensor, T: float) -> Tensor:
    """T (softmax(z_q/T) - softmax(z/T)), minus the gradient in z of T² KL between the two."""
    difference_NV = torch.softmax(teacher_NV / T, dim=-1).sub_(torch.softmax(student_NV / T, dim=-1))
    return close_(difference_NV.mul_(T), student_NV.argmax(dim=-1, keepdim=True))


@register(
    name="temperature_kd",
    family="temperature",
    formula="d = τT (softmax(z_q/T) - softmax(z/T))",
    loss="T² KL(softmax(z_q/T)‖softmax(z/T))",
    source="Hinton et al. 2015 (arXiv 1503.02531), sec. 2",
    parameters=(_T,),
    needs=(Need.FULL_VOCABULARY, Need.FULL_LOGITS),
)
def temperature_kd(x: ObjectiveInputs, *, T: float) -> Tensor:
    """At T = τ this is T² times forward KL."""
    return _softened(*_logits(x), T).mul_(x.temperature)


@register(
    name="logit_standardised_kd",
    family="temperature",
    formula="d = τ/σ (u - s Σus/n), u = T (softmax(s_q/T) - softmax(s/T)), s = (z - z̄)/σ",
    loss="T² KL(softmax(s_q/T)‖softmax(s/T)), each standardised over the vocabulary",
    source="Sun et al. 2024 (Logit Standardization, arXiv 2403.01427), code: sunshangquan/logit-standardization-KD",
    parameters=(
        _T,
        Parameter("sigma", "sample", "σ with n - 1 (torch.std) or n", choices=("sample", "population")),
    ),
    needs=(Need.FULL_VOCABULARY, Need.FULL_LOGITS),
)
def logit_standardised_kd(x: ObjectiveInputs, *, T: float, sigma: str) -> Tensor:
    """The chain rule through z̄ and σ; the divisor of s is σ + ε, and n is n - 1 for the sample σ."""
    student_NV, teacher_NV = _logits(x)
    correction = 1 if sigma == "sample" else 0
    s_NV, sigma_N1 = _standardised(student_NV, correction)
    u_NV = _softened(s_NV, _standardised(teacher_NV, correction)[0], T)
    slope_N1 = torch.linalg.vecdot(u_NV, s_NV).unsqueeze(-1) / (student_NV.shape[-1] - correction)
    along_NV = s_NV * (slope_N1 * ((sigma_N1 + _EPSILON) / sigma_N1))
    return u_NV.sub_(along_NV).mul_(x.temperature / (sigma_N1 + _EPSILON))


def _standardised(logits_NV: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    sigma_N1, mean_N1 = torch.std_mean(logits_NV, dim=-1, correction=correction, keepdim=True)
    return (logits_NV - mean_N1) / (sigma_N1 + _EPSILON), sigma_N1
