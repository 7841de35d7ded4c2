"""What remains of a question when it is done: everything the run's summary needs."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from opdscope.v1 import scorer_pb2

from opdscope_scorer.pooling import Pooled, PoolSums, pool
from opdscope_scorer.scoring import Judgement

_CORRECTNESS = {
    scorer_pb2.CORRECTNESS_ALL: (True, False),
    scorer_pb2.CORRECTNESS_CORRECT: (True,),
    scorer_pb2.CORRECTNESS_INCORRECT: (False,),
}


@dataclass(frozen=True)
class Mismatch:
    """Differences between generators and scorer in the log-probability of sampled tokens, in nats."""

    tokens: int = 0
    absolute_sum: float = 0.0
    largest: float = 0.0

    def __add__(self, other: "Mismatch") -> "Mismatch":
        return Mismatch(
            self.tokens + other.tokens, self.absolute_sum + other.absolute_sum, max(self.largest, other.largest)
        )


@dataclass(frozen=True)
class Sums:
    """Sums over the nodes of a question's correct, or incorrect, rollouts, for one teacher and objective."""

    teacher: str
    objective: str
    correct: bool
    sums: PoolSums


@dataclass(frozen=True)
class QuestionResult:
    """Result of a question."""

    sums: tuple[Sums, ...]
    mismatch: Mismatch

    def to_json(self) -> str:
        """Return it as JSON; numbers keep all their digits."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "QuestionResult":
        """Return what `to_json` wrote."""
        data = json.loads(text)
        sums = (Sums(**{**entry, "sums": PoolSums(**entry["sums"])}) for entry in data["sums"])
        return cls(tuple(sums), Mismatch(**data["mismatch"]))


def summarize(
    results: Sequence[QuestionResult], *, judgement: Judgement, seed: int
) -> list[scorer_pb2.PooledAlignment]:
    """Return pooled alignments by teacher, objective and correctness."""
    questions: dict[tuple[str, str], list[list[Sums]]] = defaultdict(list)
    for result in results:
        of_question: dict[tuple[str, str], list[Sums]] = defaultdict(list)
        for sums in result.sums:
            of_question[sums.teacher, sums.objective].append(sums)
        for key, entries in of_question.items():
            questions[key].append(entries)
    return [
        _pooled_message(teacher, objective, correctness, pool(parts, judgement=judgement, seed=seed))
        for (teacher, objective), entries in questions.items()
        for correctness, included in _CORRECTNESS.items()
        if (parts := _included(entries, included))
    ]


def _included(questions: Sequence[Sequence[Sums]], included: tuple[bool, ...]) -> list[PoolSums]:
    """Return the sums of every question over its rollouts of the included kinds, if it has any."""
    parts = [[sums.sums for sums in entries if sums.correct in included] for entries in questions]
    return [sum(of_question[1:], of_question[0]) for of_question in parts if of_question]


def _pooled_message(
    teacher: str, objective: str, correctness: "scorer_pb2.Correctness", pooled: Pooled
) -> scorer_pb2.PooledAlignment:
    return scorer_pb2.PooledAlignment(teacher=teacher, objective=objective, correctness=correctness, **asdict(pooled))
