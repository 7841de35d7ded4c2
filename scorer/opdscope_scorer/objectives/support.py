"""The tokens that a top-K objective sees, and the small policies on them.

Shapes: M tokens of the support, of which some may be dropped: their log-probabilities are -inf.
"""

import torch
from torch import Tensor

from opdscope_scorer.objectives.inputs import ObjectiveInputs


def support(x: ObjectiveInputs, k: int, source: str) -> tuple[Tensor, Tensor]:
    """Token ids [N, M], and which of them belong to the support: no token does twice."""
    return x.shared(f"support {k} {source}", lambda: _support(x, min(k, x.log_p_NV.shape[-1]), source))


def outside(x: ObjectiveInputs, k: int, source: str) -> Tensor:
    """Which tokens [N, V] are not in the support."""
    return x.shared(f"outside {k} {source}", lambda: ~_marked(x, *support(x, k, source)))


def truncated(x: ObjectiveInputs, k: int, source: str) -> ObjectiveInputs:
    """Both policies on the support, as they are: they do not sum to 1."""
    return x.shared(f"truncated {k} {source}", lambda: _small(*_gathered(x, k, source)))


def renormalised(x: ObjectiveInputs, k: int, source: str) -> ObjectiveInputs:
    """P/P_K and q/q_K."""
    return x.shared(
        f"renormalised {k} {source}",
        lambda: _small(*(one_NM.log_softmax(dim=-1) for one_NM in _gathered(x, k, source))),
    )


def with_tail(x: ObjectiveInputs, k: int, source: str) -> ObjectiveInputs:
    """The support and one bucket of all other tokens, whose mass is summed and not taken as 1 - P_K."""
    return x.shared(f"with tail {k} {source}", lambda: _small(*_with_tail(x, k, source)))


def spread(x: ObjectiveInputs, k: int, source: str, value_NM: Tensor) -> Tensor:
    """Values of the support on the whole vocabulary, 0 elsewhere."""
    index_NM, kept_NM = support(x, k, source)
    return torch.zeros_like(x.p_NV).scatter_add_(-1, index_NM, torch.where(kept_NM, value_NM, 0.0))


def _support(x: ObjectiveInputs, k: int, source: str) -> tuple[Tensor, Tensor]:
    if source in ("student", "teacher"):
        index_NM = _top(x, k, source)
        return index_NM, torch.ones_like(index_NM, dtype=torch.bool)
    student_NK, teacher_NK = _top(x, k, "student"), _top(x, k, "teacher")
    both_NK = _marked(x, student_NK, torch.ones_like(student_NK, dtype=torch.bool)).gather(-1, teacher_NK)
    if source == "intersection":
        return teacher_NK, both_NK
    return torch.cat((student_NK, teacher_NK), dim=-1), torch.cat((torch.ones_like(both_NK), ~both_NK), dim=-1)


def _top(x: ObjectiveInputs, k: int, whose: str) -> Tensor:
    log_NV = x.log_p_NV if whose == "student" else x.log_q_NV
    return x.shared(f"top {k} {whose}", lambda: log_NV.topk(k, dim=-1, sorted=False).indices)


def _marked(x: ObjectiveInputs, index_NM: Tensor, kept_NM: Tensor) -> Tensor:
    return torch.zeros_like(x.p_NV, dtype=torch.bool).scatter_reduce_(-1, index_NM, kept_NM, "amax")


def _gathered(x: ObjectiveInputs, k: int, source: str) -> tuple[Tensor, Tensor]:
    index_NM, kept_NM = support(x, k, source)
    log_p_NM, log_q_NM = (
        torch.where(kept_NM, log_NV.gather(-1, index_NM), -torch.inf) for log_NV in (x.log_p_NV, x.log_q_NV)
    )
    return log_p_NM, log_q_NM


def _with_tail(x: ObjectiveInputs, k: int, source: str) -> tuple[Tensor, Tensor]:
    weight_NV = outside(x, k, source).double()
    log_p, log_q = (
        torch.cat((log_NM, torch.linalg.vecdot(mass_NV, weight_NV).unsqueeze(-1).log()), dim=-1)
        for log_NM, mass_NV in zip(_gathered(x, k, source), (x.p_NV, x.q_NV), strict=True)
    )
    return log_p, log_q


def _small(log_p_NM: Tensor, log_q_NM: Tensor) -> ObjectiveInputs:
    return ObjectiveInputs(log_p_NV=log_p_NM, log_q_NV=log_q_NM, bucketed=True)
