"""What an objective sees of a node, and the arithmetic that turns f into d.

Shapes: N nodes, V tokens of the vocabulary (or candidates and one tail bucket).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Self, TypeVar, cast

import torch
from torch import Tensor

Shared = TypeVar("Shared")

# A policy below this probability does not play the token: its mass is 0 in float64 sums, and its ratios may overflow.
SMALLEST_LOG_PROB = -690.0


class Need(StrEnum):
    """What an objective needs beyond the two policies at a node."""

    FULL_VOCABULARY = "full_vocabulary"
    FULL_LOGITS = "full_logits"
    VALUES = "values"
    LENGTHS = "lengths"
    TEACHER_RETURNS = "teacher_returns"


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectiveInputs:
    """Nodes as objectives see them. Callers may give any floating dtype; objectives are called with float64.

    Attributes:
        log_p_NV: Log-probabilities of the policy whose loss is taken; -inf where it never plays the token.
        log_q_NV: The teacher's, likewise.
        temperature: τ, the temperature at which the loss takes `log_p_NV`. Directions are τ·∂/∂z.
        bucketed: The last tokens are not tokens but buckets of many, so ranks and logits mean nothing.
        student_logits_NV: Raw logits of the student, before any temperature.
        teacher_logits_NV: Raw logits of the teacher.
        value_NV: V, the probability of success after each token.
        success_per_token_NV: E[success / length | token], length being that of the whole completion.
        failure_per_token_NV: E[(1 - success) / length | token].
        prompt_success_N: Probability of success from the prompt, which is the baseline of group-relative advantages.
        return_NV: E[teacher return after the token | token], see `minillm`.
    """

    log_p_NV: Tensor
    log_q_NV: Tensor
    temperature: float = 1.0
    bucketed: bool = False
    student_logits_NV: Tensor | None = None
    teacher_logits_NV: Tensor | None = None
    value_NV: Tensor | None = None
    success_per_token_NV: Tensor | None = None
    failure_per_token_NV: Tensor | None = None
    prompt_success_N: Tensor | None = None
    return_NV: Tensor | None = None
    _shared: dict[str, object] = field(default_factory=dict, init=False, repr=False)

    def rows(self, rows: slice) -> Self:
        """Some of the nodes, in float64. Policies of a lower precision are normalised again."""
        chunk = {name: tensor[rows] for name, tensor in self._tensors().items()}
        for name in ("log_p_NV", "log_q_NV"):
            if chunk[name].dtype != torch.float64:
                chunk[name] = torch.log_softmax(chunk[name].double(), dim=-1)
        return replace(self, **{name: tensor.double() for name, tensor in chunk.items()})  # type: ignore[arg-type]

    def in_float64(self) -> Self:
        """All nodes in float64."""
        if all(tensor.dtype == torch.float64 for tensor in self._tensors().values()):
            return self
        return self.rows(slice(None))

    def shared(self, key: str, compute: Callable[[], Shared]) -> Shared:
        """What several objectives need of these nodes is computed once."""
        if key not in self._shared:
            self._shared[key] = compute()
        return cast("Shared", self._shared[key])

    @property
    def offers(self) -> frozenset[Need]:
        """The needs that these inputs satisfy."""
        given = {
            Need.FULL_VOCABULARY: not self.bucketed,
            Need.FULL_LOGITS: self.student_logits_NV is not None and self.teacher_logits_NV is not None,
            Need.VALUES: self.value_NV is not None,
            Need.LENGTHS: self.success_per_token_NV is not None
            and self.failure_per_token_NV is not None
            and self.prompt_success_N is not None,
            Need.TEACHER_RETURNS: self.return_NV is not None,
        }
        return frozenset(need for need, satisfied in given.items() if satisfied)

    @cached_property
    def played_NV(self) -> Tensor:
        """Tokens that the policy can play at all; the others contribute exactly 0 to every sum over P.

        NaN counts as played, so that it is not lost.
        """
        return (self.log_p_NV <= SMALLEST_LOG_PROB).logical_not_()

    @cached_property
    def p_NV(self) -> Tensor:
        """P."""
        return torch.where(self.played_NV, self.log_p_NV, -math.inf).exp()

    @cached_property
    def q_NV(self) -> Tensor:
        """The teacher's probabilities q."""
        return self.log_q_NV.exp()

    @cached_property
    def log_ratio_NV(self) -> Tensor:
        """log(q/P): -inf where the teacher excludes the token, 0 where the student never plays it."""
        return torch.where(self.played_NV, self.log_q_NV - self.log_p_NV, 0.0)

    @cached_property
    def ratio_NV(self) -> Tensor:
        """q/P, 1 where the student never plays the token."""
        return self.log_ratio_NV.exp()

    @cached_property
    def likeliest_N1(self) -> Tensor:
        """The likeliest token of the student."""
        return self.log_p_NV.argmax(dim=-1, keepdim=True)

    def _tensors(self) -> dict[str, Tensor]:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def centred(x: ObjectiveInputs, f_NV: Tensor) -> Tensor:
    """Gives d = P (f - Σ P f).

    f is measured from its value at the likeliest token, which changes nothing on paper. In floating point it keeps a
    policy with P ≈ 1 exact: that token's f - f̄ is then a sum of small terms and not a difference of large ones.
    A node where f̄ is infinite (the teacher excludes what the student plays) has no direction: its row is NaN.
    """
    relative_NV = f_NV - f_NV.gather(-1, x.likeliest_N1)
    mean_N1 = torch.linalg.vecdot(x.p_NV, relative_NV).unsqueeze(-1)
    mean_N1 = torch.where(mean_N1.isfinite(), mean_N1, math.nan)
    return relative_NV.sub_(mean_N1).mul_(x.p_NV)


def projected(x: ObjectiveInputs, weight_NV: Tensor) -> Tensor:
    """Gives d = w - P Σ w, the same where w = P f is known and f = w/P is not, as for tokens with P = 0.

    The likeliest token gets what the others leave, which is exact where P ≈ 1. A row that is not finite is NaN.
    """
    total_N1 = weight_NV.sum(dim=-1, keepdim=True)
    total_N1 = torch.where(total_N1.isfinite(), total_N1, math.nan)
    return close_(torch.addcmul(weight_NV, x.p_NV, total_N1, value=-1), x.likeliest_N1)


def close_(direction_NV: Tensor, likeliest_N1: Tensor) -> Tensor:
    """Replaces, in place, the likeliest token's entry by minus the sum of all others; NaN takes its whole row."""
    others_N1 = direction_NV.scatter_(-1, likeliest_N1, 0.0).sum(dim=-1, keepdim=True)
    direction_NV.scatter_(-1, likeliest_N1, -others_N1)
    lost_N1 = others_N1.isfinite().logical_not_()
    return direction_NV.masked_fill_(lost_N1, math.nan) if lost_N1.any() else direction_NV
