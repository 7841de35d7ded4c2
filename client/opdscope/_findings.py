"""What a finished run amounts to: gathered from its events, bounded in memory."""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from opdscope._types import (
    Alignment,
    EvidenceNode,
    QuestionFinished,
    RolloutFinished,
    RolloutScored,
    RunEvent,
    RunFinished,
    Status,
)

_KEPT = 64


@dataclass(frozen=True, slots=True)
class TellingToken:
    """A node that says much, with the alignment that says it and the rollout it stands in."""

    alignment: Alignment
    node: EvidenceNode
    rollout: RolloutFinished

    @property
    def determined(self) -> bool:
        """Whether the interval leaves no doubt about the sign."""
        return self.alignment.status in {Status.HELPS, Status.HURTS}

    @property
    def strength(self) -> float:
        """Distance of the interval from 0 if determined, else how many standard errors the numerator is from 0."""
        row = self.alignment
        if self.determined:
            return max(row.low or 0.0, -(row.high or 0.0))
        if row.numerator is None or not row.numerator_se:
            return -math.inf
        return abs(row.numerator) / row.numerator_se


class Findings:
    """Feed it every event of a run."""

    def __init__(self) -> None:
        self.questions = 0
        self.rollouts = 0
        self.successes = 0
        self.nodes = 0
        self.finished: RunFinished | None = None
        self._unscored: dict[str, RolloutFinished] = {}
        self._determined: list[TellingToken] = []
        self._undetermined: list[TellingToken] = []

    def add(self, event: RunEvent) -> RolloutFinished | None:
        """Take notice of an event; returns the rollout that a `RolloutScored` is about, if its text is known."""
        match event:
            case RolloutFinished():
                self.rollouts += 1
                self.successes += event.success
                self._unscored[event.rollout_id] = event
            case RolloutScored():
                return self._add_scored(event)
            case QuestionFinished():
                self.questions += 1
            case RunFinished():
                self.finished = event
        return None

    def telling_tokens(self, count: int = 3) -> list[TellingToken]:
        """The strongest tokens, determined ones first, each position once and different questions preferred."""
        ranked = [*_by_question(self._determined), *_by_question(self._undetermined)]
        return _first_of_each(ranked, _position)[:count]

    def _add_scored(self, event: RolloutScored) -> RolloutFinished | None:
        self.nodes += len(event.nodes)
        rollout = self._unscored.pop(event.rollout_id, None)
        if rollout is None:
            return None
        tokens = [TellingToken(row, event.nodes[row.node_index], rollout) for row in event.alignments]
        self._determined = _strongest(self._determined + [token for token in tokens if token.determined])
        self._undetermined = _strongest(
            self._undetermined + [token for token in tokens if token.alignment.status is Status.UNDETERMINED]
        )
        return rollout


def _strongest(tokens: Iterable[TellingToken]) -> list[TellingToken]:
    ranked = sorted(tokens, key=lambda token: token.strength, reverse=True)
    return _first_of_each(ranked, _position)[:_KEPT]


def _by_question(ranked: list[TellingToken]) -> list[TellingToken]:
    """The strongest of every question, then all."""
    return _first_of_each(ranked, lambda token: token.alignment.question_id) + ranked


def _position(token: TellingToken) -> Hashable:
    return token.alignment.rollout_id, token.alignment.position


def _first_of_each(tokens: Iterable[TellingToken], key: Callable[[TellingToken], Hashable]) -> list[TellingToken]:
    firsts: dict[Hashable, TellingToken] = {}
    for token in tokens:
        firsts.setdefault(key(token), token)
    return list(firsts.values())
