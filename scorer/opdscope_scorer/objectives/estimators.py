"""The k1, k2 and k3 estimators of KL(P‖q) at a sampled token, backpropagated as losses.

Their values are estimates of one number; their gradients are those of three different losses.
"""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred, projected
from opdscope_scorer.objectives.registry import register
from opdscope_scorer.objectives.sampled import sample_variance

_SOURCE = "Schulman 2020, joschu.net/blog/kl-approx.html"


def _k1_variance(x: ObjectiveInputs) -> Tensor:
    return sample_variance(x, -torch.ones_like(x.p_NV))


def _k2_variance(x: ObjectiveInputs) -> Tensor:
    return sample_variance(x, x.log_ratio_NV)


def _k3_variance(x: ObjectiveInputs, *, ratio_clip: float | None, loss_clip: float | None) -> Tensor:
    return sample_variance(x, _k3_pull(x, ratio_clip, loss_clip))


@register(
    name="k1",
    family="estimators",
    formula="f = -1, d = 0",
    loss="log(P(y)/q(y)), y ~ P",
    source=_SOURCE,
    variance=_k1_variance,
    note="No signal: E[∂ log P(y)] = 0, only noise. As a reward it is `sampled_opd`.",
)
def k1(x: ObjectiveInputs) -> Tensor:
    """The score function has expectation zero."""
    return torch.zeros_like(x.p_NV)


@register(
    name="k2",
    family="estimators",
    formula="f = log(q/P)",
    loss="½ log²(P(y)/q(y)), y ~ P",
    source=_SOURCE,
    variance=_k2_variance,
    note="Its expectation is reverse KL.",
)
def k2(x: ObjectiveInputs) -> Tensor:
    """E[log(P/q) ∂ log P] is the gradient of KL(P‖q)."""
    return centred(x, x.log_ratio_NV)


@register(
    name="k3",
    family="estimators",
    formula="f = q/P - 1",
    loss="q(y)/P(y) - 1 - log(q(y)/P(y)), y ~ P",
    source=_SOURCE,
    parameters=(
        Parameter("ratio_clip", None, "nothing pulls on tokens with |log(q/P)| above it", low=0),
        Parameter("loss_clip", None, "nor on those whose estimate is above it", low=0),
    ),
    variance=_k3_variance,
    note="Its expectation is forward KL, on the tokens that the student plays.",
)
def k3(x: ObjectiveInputs, *, ratio_clip: float | None = None, loss_clip: float | None = None) -> Tensor:
    """E[(1 - q/P) ∂ log P]: P f = q - P, where P > 0."""
    return projected(x, x.p_NV * _k3_pull(x, ratio_clip, loss_clip))


def _k3_pull(x: ObjectiveInputs, ratio_clip: float | None, loss_clip: float | None) -> Tensor:
    pull_NV = x.ratio_NV - 1
    if ratio_clip is not None:
        pull_NV = torch.where(x.log_ratio_NV.abs() <= ratio_clip, pull_NV, 0.0)
    if loss_clip is not None:
        log_NV = x.log_ratio_NV if ratio_clip is None else x.log_ratio_NV.clamp(-ratio_clip, ratio_clip)
        pull_NV = torch.where(log_NV.exp() - log_NV - 1 <= loss_clip, pull_NV, 0.0)
    return pull_NV
