"""What an objective is, what it sees, and what it gives.

Shapes: N nodes, V tokens of the vocabulary (or candidates and one tail bucket).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

Value: TypeAlias = float | int | str | None
Shared = TypeVar("Shared")

# A policy below this probability does not play the token: its mass is 0 in float64 sums, and its ratios may overflow.
SMALLEST_LOG_PROB = -690.0


class InvalidObjectiveError(ValueError):
    """The caller asked for an objective that cannot be given, and the message says why."""


class UnknownObjectiveError(InvalidObjectiveError):
    """No objective has this name."""


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
    """Replaces, in place, the likeliest token's entry by minus the sum of all others."""
    direction_NV.scatter_(-1, likeliest_N1, 0.0)
    return direction_NV.scatter_(-1, likeliest_N1, -direction_NV.sum(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Parameter:
    """One argument of an objective.

    Attributes:
        name: As it is written in an expression.
        default: Its type is the parameter's: int, float, or str for one of `choices`. None is an option left off.
        meaning: A phrase for the catalogue.
        low: Smallest value allowed.
        high: Largest value allowed.
        choices: The words allowed.
    """

    name: str
    default: Value
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def checked(self, value: Value, owner: str) -> Value:
        """The value in this parameter's type."""
        if self.choices:
            if value in self.choices:
                return value
            raise InvalidObjectiveError(f"{owner}: {self.name} is {value!r}, not one of {', '.join(self.choices)}")
        if value is None and self.default is None:
            return value
        if isinstance(value, str | bool) or value is None:
            raise InvalidObjectiveError(f"{owner}: {self.name} is {value!r}, not a number")
        if not self.low <= value <= self.high:
            raise InvalidObjectiveError(f"{owner}: {self.name}={value:g} is not within {self.low:g} and {self.high:g}")
        if not isinstance(self.default, int):
            return float(value)
        if value != int(value):
            raise InvalidObjectiveError(f"{owner}: {self.name}={value:g} is not a whole number")
        return int(value)


@dataclass(frozen=True)
class Objective:
    """One entry of the catalogue.

    Attributes:
        name: As it is written in an expression.
        family: The section of the catalogue.
        formula: f, or d where no f exists.
        loss: What trainers minimise.
        source: The paper and equation, or the code, that defines it.
        function: Gives d [N, V] from float64 inputs and the parameters.
        parameters: In the order in which they are written.
        needs: What it needs beyond P and q.
        variance: Total variance of d estimated from one sampled token [N], where trainers sample.
        note: The convention that changes its direction, or what people get wrong.
    """

    name: str
    family: str
    formula: str
    loss: str
    source: str
    function: Callable[..., Tensor]
    parameters: tuple[Parameter, ...] = ()
    needs: frozenset[Need] = frozenset()
    variance: Callable[..., Tensor] | None = None
    note: str = ""

    def bind(self, arguments: Mapping[str, Value] | None = None) -> "BoundObjective":
        """This objective with its parameters settled.

        Raises:
            InvalidObjectiveError: An argument is unknown or out of range.
        """
        given = dict(arguments or {})
        values = tuple((p.name, p.checked(given.pop(p.name, p.default), self.name)) for p in self.parameters)
        if given:
            known = ", ".join(p.name for p in self.parameters) or "none"
            raise InvalidObjectiveError(f"{self.name} has no parameter {', '.join(sorted(given))}; known: {known}")
        return BoundObjective((Term(1.0, self, values),))


@dataclass(frozen=True)
class Term:
    """An objective with its arguments, and its weight in a mixture."""

    weight: float
    objective: Objective
    arguments: tuple[tuple[str, Value], ...]

    @property
    def call(self) -> str:
        """The objective as it is written, every parameter that is on included."""
        written = ", ".join(f"{name}={_written(value)}" for name, value in self.arguments if value is not None)
        return f"{self.objective.name}({written})" if written else self.objective.name

    def direction(self, inputs: ObjectiveInputs) -> Tensor:
        """The objective's own direction, without the weight."""
        return self.objective.function(inputs, **dict(self.arguments))


@dataclass(frozen=True)
class BoundObjective:
    """A weighted sum of objectives with settled parameters; mostly of one, with weight 1."""

    terms: tuple[Term, ...]

    @property
    def canonical(self) -> str:
        """One name for one direction: parameters written out, terms in the order of their names."""
        return "".join(_signed(term, first=term is self.terms[0]) for term in self.terms)

    @property
    def needs(self) -> frozenset[Need]:
        """What the terms need together."""
        return frozenset().union(*(term.objective.needs for term in self.terms))

    def require(self, offered: frozenset[Need]) -> None:
        """Refuses, by name, an objective whose needs are not all offered.

        Raises:
            InvalidObjectiveError: Something it needs is missing.
        """
        if missing := sorted(self.needs - offered):
            raise InvalidObjectiveError(f"{self.canonical} needs {', '.join(missing)}, which these nodes do not have")

    def direction(self, inputs: ObjectiveInputs) -> Tensor:
        """Descent direction d [N, V] of the loss, τ·∂/∂z, float64. A row is finite, or NaN where none exists."""
        self.require(inputs.offers)
        inputs = inputs.in_float64()
        first, *others = self.terms
        total_NV = first.direction(inputs)
        if first.weight != 1:
            total_NV = total_NV * first.weight
        for term in others:
            total_NV = torch.add(total_NV, term.direction(inputs), alpha=term.weight)
        return total_NV

    def variance(self, inputs: ObjectiveInputs) -> Tensor | None:
        """Total variance [N] of d from one sampled token, or None where the loss sums over the vocabulary."""
        first, *others = self.terms
        if others or first.objective.variance is None:
            return None
        self.require(inputs.offers)
        return first.weight**2 * first.objective.variance(inputs.in_float64(), **dict(first.arguments))


def _signed(term: Term, *, first: bool) -> str:
    minus = term.weight < 0
    sign = ("-" if minus else "") if first else (" - " if minus else " + ")
    return sign + (term.call if abs(term.weight) == 1 else f"{_written(abs(term.weight))}*{term.call}")


def _written(value: Value) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
