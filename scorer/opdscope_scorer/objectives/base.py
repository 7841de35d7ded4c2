"""What an objective is: an entry of the catalogue, and one with settled parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs

Value: TypeAlias = float | int | str | None


class InvalidObjectiveError(ValueError):
    """The caller asked for an objective that cannot be given, and the message says why."""


class UnknownObjectiveError(InvalidObjectiveError):
    """No objective has this name."""


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
        if isinstance(value, str | bool) or value is None or not math.isfinite(value):
            raise InvalidObjectiveError(f"{owner}: {self.name} is {value!r}, not a finite number")
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
