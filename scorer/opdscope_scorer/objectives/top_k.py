"""Divergences on the K likeliest tokens of the student, the teacher, both or either.

Shapes: M tokens of the support, or M + 1 with the tail bucket. A policy on the support is a small policy of its own, so
the objectives of the whole vocabulary apply to it, and only the result is spread over the V tokens.
"""

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs, close_
from opdscope_scorer.objectives.jsd import gkd_jsd
from opdscope_scorer.objectives.kl import FLOOR, forward_kl, forward_pull, reverse_kl, reverse_pull
from opdscope_scorer.objectives.registry import register
from opdscope_scorer.objectives.support import outside, renormalised, spread, support, truncated, with_tail

_FORMS = ("unnormalised", "renormalised", "tail_bucket", "stop_gradient")
_K = Parameter("k", 100, "tokens of each list", low=1)
_SOURCE = Parameter("source", "student", "whose", choices=("student", "teacher", "union", "intersection"))
_FORM = Parameter("form", "tail_bucket", "what becomes of the other tokens", choices=_FORMS)
_NORMALISED_FORM = Parameter("form", "tail_bucket", _FORM.meaning, choices=("renormalised", "tail_bucket"))


@register(
    name="top_k_reverse_kl",
    family="top_k",
    formula="f = 1[K] (log(q/P) - 1) unnormalised, 1[K] log(q/P) stop_gradient, log(q/P) of what is compared otherwise",
    loss="Σ_K P log(P/q); of P/P_K and q/q_K; of K and one bucket; Σ_K sg[P log(P/q)] log P",
    source="Fu et al. 2026 (Revisiting OPD, arXiv 2603.25562); trainers in the presets; d by differentiation",
    parameters=(_K, _FORM, _SOURCE, FLOOR),
    needs=(Need.FULL_VOCABULARY,),
    note="Unnormalised, a token of K gains relative to the others only if q > e·P.",
)
def top_k_reverse_kl(x: ObjectiveInputs, *, k: int, form: str, source: str, floor: float | None = None) -> Tensor:
    """Forms as in the table of the catalogue."""
    if form == "renormalised":
        return _on_support(x, k, source, reverse_kl(renormalised(x, k, source), floor=floor))
    if form == "tail_bucket":
        return _with_bucket(x, k, source, reverse_kl(with_tail(x, k, source), floor=floor))
    constant = -1.0 if form == "unnormalised" else 0.0
    return _unnormalised(x, k, source, reverse_pull(truncated(x, k, source), floor, constant=constant))


@register(
    name="top_k_forward_kl",
    family="top_k",
    formula="f = 1[K] q/P unnormalised and stop_gradient, q/P of what is compared otherwise",
    loss="Σ_K q log(q/P); of q/q_K and P/P_K; of K and one bucket",
    source="verl v0.9.0, verl/trainer/distillation/fsdp/losses.py compute_forward_kl_topk; trainers in the presets",
    parameters=(
        _K,
        _FORM,
        _SOURCE,
        FLOOR,
        Parameter("loss_low", None, "a node whose unnormalised loss is below it learns nothing"),
        Parameter("loss_high", None, "nor one whose loss is above it"),
    ),
    needs=(Need.FULL_VOCABULARY,),
    note="The teacher carries no gradient, so stopping it changes nothing. Unnormalised, the loss can be negative.",
)
def top_k_forward_kl(
    x: ObjectiveInputs,
    *,
    k: int,
    form: str,
    source: str,
    floor: float | None = None,
    loss_low: float | None = None,
    loss_high: float | None = None,
) -> Tensor:
    """Forms as in the table of the catalogue."""
    if form == "renormalised":
        return _on_support(x, k, source, forward_kl(renormalised(x, k, source), floor=floor))
    if form == "tail_bucket":
        return _with_bucket(x, k, source, forward_kl(with_tail(x, k, source), floor=floor))
    small = truncated(x, k, source)
    pull_NM = forward_pull(small, floor)
    if loss_low is not None or loss_high is not None:
        loss_N1 = _forward_loss(small, floor).unsqueeze(-1)
        pull_NM = torch.where(loss_N1 == loss_N1.clamp(loss_low, loss_high), pull_NM, 0.0)
    return _unnormalised(x, k, source, pull_NM)


@register(
    name="top_k_jsd",
    family="top_k",
    formula="as gkd_jsd, of what is compared",
    loss="β KL(q‖m) + (1-β) KL(P‖m) of P/P_K and q/q_K, or of K and one bucket",
    source="SDPO 0e6d510, verl/trainer/ppo/core_algos.py compute_self_distillation_loss",
    parameters=(
        _K,
        _NORMALISED_FORM,
        _SOURCE,
        Parameter("beta", 0.5, "weight of the teacher in m", low=0, high=1),
    ),
    needs=(Need.FULL_VOCABULARY,),
)
def top_k_jsd(x: ObjectiveInputs, *, k: int, form: str, source: str, beta: float) -> Tensor:
    """Forms as in the table of the catalogue."""
    if form == "renormalised":
        return _on_support(x, k, source, gkd_jsd(renormalised(x, k, source), beta=beta))
    return _with_bucket(x, k, source, gkd_jsd(with_tail(x, k, source), beta=beta))


def _forward_loss(small: ObjectiveInputs, floor: float | None) -> Tensor:
    """Σ_K q log(q/P) [N], of clamped log-probabilities where there is a floor."""
    log_p_NM, log_q_NM = small.log_p_NV, small.log_q_NV
    if floor is not None:
        kept_NM = log_p_NM > -torch.inf
        log_p_NM, log_q_NM = log_p_NM.clamp_min(floor), torch.where(kept_NM, log_q_NM.clamp_min(floor), -torch.inf)
    q_NM = log_q_NM.exp()
    return torch.where(q_NM > 0, q_NM * (log_q_NM - log_p_NM), 0.0).sum(dim=-1)


def _unnormalised(x: ObjectiveInputs, k: int, source: str, pull_NM: Tensor) -> Tensor:
    """Gives w - P Σ_K w, where w pulls on the log-probabilities of K only."""
    index_NM, _ = support(x, k, source)
    direction_NV = x.p_NV * -pull_NM.sum(dim=-1, keepdim=True)
    return close_(direction_NV.scatter_add_(-1, index_NM, pull_NM), x.likeliest_N1)


def _on_support(x: ObjectiveInputs, k: int, source: str, direction_NM: Tensor) -> Tensor:
    """Nothing moves outside of K. Where K is empty there is no direction."""
    direction_NV = spread(x, k, source, direction_NM)
    if not direction_NM.isfinite().all():
        direction_NV += 0.0 * direction_NM.sum(dim=-1, keepdim=True)
    return direction_NV


def _with_bucket(x: ObjectiveInputs, k: int, source: str, direction_NM: Tensor) -> Tensor:
    """The bucket's part d_R is shared by its tokens as P_j/P_R: it moves their common mass and nothing within."""
    outside_NV = outside(x, k, source)
    tail_N1 = with_tail(x, k, source).p_NV[:, -1:]
    bucket_N1 = direction_NM[:, -1:]
    share_N1 = torch.where((bucket_N1 == 0) & (tail_N1 == 0), 0.0, bucket_N1 / tail_N1)
    share_N1 = torch.where(share_N1.isfinite(), share_N1, torch.nan)
    return torch.where(outside_NV, x.p_NV, 0.0).mul_(share_N1).add_(spread(x, k, source, direction_NM[:, :-1]))
