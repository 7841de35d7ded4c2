"""Objectives as people write them: `gkd_jsd(beta=0.3)`, `0.5*reverse_kl + 0.5*forward_kl`.

list   = sum {"," sum}
sum    = ["-"] term {("+" | "-") term}
term   = [number "*"] name ["(" [argument {"," argument}] ")"]
argument = name "=" (["-"] number | name)

A name is that of an objective or of a preset.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from opdscope_scorer.objectives.base import BoundObjective, InvalidObjectiveError, Term, Value
from opdscope_scorer.objectives.presets import PRESETS
from opdscope_scorer.objectives.registry import get

# Expressions come from the network.
MAX_CHARACTERS = 2000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<symbol>[-+*(),=]))"
)


def parse_objective(text: str) -> BoundObjective:
    """One objective or a weighted sum of several.

    Raises:
        UnknownObjectiveError: A name is not in the catalogue.
        InvalidObjectiveError: It cannot be read, or an argument is not allowed.
    """
    reader = _Reader.of(text)
    objective = _sum(reader)
    reader.end()
    return objective


def parse_objectives(text: str | Iterable[str]) -> list[BoundObjective]:
    """Several, separated by commas or given one by one; those that mean the same are kept once."""
    if isinstance(text, str):
        reader = _Reader.of(text)
        objectives = [_sum(reader)]
        while reader.accept(","):
            objectives.append(_sum(reader))
        reader.end()
    else:
        objectives = [parse_objective(one) for one in text]
    return list({objective.canonical: objective for objective in objectives}.values())


@dataclass
class _Reader:
    """The tokens of an expression, and how far they are read."""

    text: str
    tokens: list[tuple[str, str]]
    position: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        if len(text) > MAX_CHARACTERS:
            raise InvalidObjectiveError(
                f"an expression of {len(text)} characters is too long; at most {MAX_CHARACTERS}"
            )
        tokens, start, stripped = [], 0, text.rstrip()
        while start < len(stripped):
            match = _TOKEN.match(stripped, start)
            if match is None:
                raise InvalidObjectiveError(f"cannot read {text!r} from {stripped[start:].strip()!r} on")
            tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            start = match.end()
        return cls(text, tokens)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "the end")

    def take(self, kind: str, expected: str) -> str:
        found, token = self.peek()
        if found != kind:
            raise InvalidObjectiveError(f"cannot read {self.text!r}: expected {expected}, found {token!r}")
        self.position += 1
        return token

    def accept(self, symbol: str) -> bool:
        accepted = self.peek() == ("symbol", symbol)
        self.position += accepted
        return accepted

    def expect(self, symbol: str) -> None:
        if not self.accept(symbol):
            raise InvalidObjectiveError(f"cannot read {self.text!r}: expected {symbol!r}, found {self.peek()[1]!r}")

    def end(self) -> None:
        if self.position < len(self.tokens):
            raise InvalidObjectiveError(f"cannot read {self.text!r} from {self.peek()[1]!r} on")


def _sum(reader: _Reader) -> BoundObjective:
    terms = _term(reader, sign=-1.0 if reader.accept("-") else 1.0)
    while (plus := reader.accept("+")) or reader.accept("-"):
        terms += _term(reader, sign=1.0 if plus else -1.0)
    return _merged(terms, reader.text)


def _merged(terms: list[Term], text: str) -> BoundObjective:
    """Terms in the order of their names, equal ones added."""
    by_call: dict[str, Term] = {}
    for term in terms:
        earlier = by_call.get(term.call)
        by_call[term.call] = replace(term, weight=term.weight + earlier.weight) if earlier else term
    kept = tuple(term for _, term in sorted(by_call.items()) if term.weight != 0)
    if not all(math.isfinite(term.weight) for term in kept):
        raise InvalidObjectiveError(f"a weight in {text!r} is too large")
    if not kept:
        raise InvalidObjectiveError(f"nothing is left of {text!r}: its weights are zero")
    return BoundObjective(kept)


def _term(reader: _Reader, *, sign: float) -> list[Term]:
    weight = sign
    if reader.peek()[0] == "number":
        weight *= float(reader.take("number", "a weight"))
        reader.expect("*")
    bound = _call(reader)
    return [replace(term, weight=weight * term.weight) for term in bound.terms]


def _call(reader: _Reader) -> BoundObjective:
    name = reader.take("name", "the name of an objective")
    arguments: dict[str, Value] = {}
    if reader.accept("(") and not reader.accept(")"):
        _argument(reader, arguments)
        while reader.accept(","):
            _argument(reader, arguments)
        reader.expect(")")
    if name not in PRESETS:
        return get(name).bind(arguments)
    if arguments:
        raise InvalidObjectiveError(f"the preset {name} takes no arguments; it is {PRESETS[name].expression}")
    return parse_objective(PRESETS[name].expression)


def _argument(reader: _Reader, arguments: dict[str, Value]) -> None:
    name = reader.take("name", "the name of a parameter")
    if name in arguments:
        raise InvalidObjectiveError(f"{reader.text!r} gives {name} twice")
    reader.expect("=")
    sign = -1 if reader.accept("-") else 1
    kind, token = reader.peek()
    if kind == "number":
        arguments[name] = sign * float(reader.take("number", "a number"))
    elif sign == 1:
        arguments[name] = reader.take("name", "a number or a word")
    else:
        raise InvalidObjectiveError(f"cannot read {reader.text!r}: expected a number, found {token!r}")
