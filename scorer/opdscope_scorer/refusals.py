"""What can be wrong with a node of evidence, in words for the caller."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opdscope_scorer.evidence import EvidenceNode, EvidenceTail, TeacherProbs

# Probabilities may be rounded, but not so much that a token is missing.
_SUM_TOLERANCE = 1e-3
_EXCESS_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A field of a node that is wrong, and what is accepted; fields are named as in `EvidenceNode`."""

    field: str
    description: str


def refusals_of(node: EvidenceNode) -> list[Refusal]:
    """Everything that is wrong with the node; what follows from something wrong is not mentioned."""
    return list(_shape(node)) or [*_candidates(node), *_tail(node)] or [*_student_total(node), *_teachers(node)]


def _shape(node: EvidenceNode) -> Iterator[Refusal]:
    count = len(node.candidate_token_ids)
    if node.position < 0:
        yield _refuse("position", f"must be at least 0, got {node.position}")
    if not count:
        yield _refuse("candidate_token_ids", "must name at least one candidate")
    for name in ("candidate_student_probs", "candidate_successes", "candidate_trials"):
        if len(getattr(node, name)) != count:
            yield _refuse(
                name, f"must have one value for each of the {count} candidates, got {len(getattr(node, name))}"
            )
    if len(node.candidate_known) not in {0, count}:
        yield _refuse("candidate_known", f"must be empty or have {count} values, got {len(node.candidate_known)}")
    if not node.teachers:
        yield _refuse("teachers", "must have at least one")
    for index, teacher in enumerate(node.teachers):
        if len(teacher.candidate_probs) != count:
            yield _refuse(
                f"teachers[{index}].candidate_probs",
                f"must have one value for each of the {count} candidates, got {len(teacher.candidate_probs)}",
            )


def _candidates(node: EvidenceNode) -> Iterator[Refusal]:
    for token, times in Counter(node.candidate_token_ids).items():
        if times > 1:
            yield _refuse("candidate_token_ids", f"must be all different, but {token} is there {times} times")
        if token < 0:
            yield _refuse("candidate_token_ids", f"must be at least 0, got {token}")
    yield from _probabilities("candidate_student_probs", node.candidate_student_probs)
    known = node.candidate_known or [False] * len(node.candidate_trials)
    for index, counts in enumerate(zip(node.candidate_successes, node.candidate_trials, known, strict=True)):
        yield from _counts("candidate_", f"[{index}]", *counts)


def _tail(node: EvidenceNode) -> Iterator[Refusal]:
    if node.tail is None:
        return
    yield from _probabilities("tail.student_prob", [node.tail.student_prob], indexed=False)
    yield from _counts("tail.", "", node.tail.successes, node.tail.trials, known=False)
    yield from _sum_sq(node.tail)


def _sum_sq(tail: EvidenceTail) -> Iterator[Refusal]:
    largest = tail.student_prob**2
    if tail.sum_sq_prob is None:
        return
    if not 0 <= tail.sum_sq_prob <= largest * (1 + _EXCESS_TOLERANCE) or (tail.sum_sq_prob == 0) != (largest == 0):
        yield _refuse(
            "tail.sum_sq_prob",
            f"must be above 0 and at most tail.student_prob squared, {largest:.6g}, got {tail.sum_sq_prob:.6g}",
        )


def _student_total(node: EvidenceNode) -> Iterator[Refusal]:
    candidates = math.fsum(node.candidate_student_probs)
    tail = node.tail.student_prob if node.tail else 0.0
    if candidates + tail > 1 + _SUM_TOLERANCE:
        yield _refuse("candidate_student_probs", f"must sum to 1 with the tail, but sum to {candidates + tail:.6g}")
    elif candidates + tail < 1 - _SUM_TOLERANCE and node.tail is None:
        yield _refuse(
            "tail", f"must be there unless its probability is 0, but candidates' probabilities sum to {candidates:.6g}"
        )
    elif candidates + tail < 1 - _SUM_TOLERANCE:
        yield _refuse(
            "tail.student_prob",
            f"must be what the candidates leave, {max(1 - candidates, 0):.6g}, got {tail:.6g}",
        )


def _teachers(node: EvidenceNode) -> Iterator[Refusal]:
    names = Counter(teacher.teacher for teacher in node.teachers)
    for index, teacher in enumerate(node.teachers):
        path = f"teachers[{index}]"
        if not teacher.teacher:
            yield _refuse(f"{path}.teacher", "must not be empty")
        elif names[teacher.teacher] > 1:
            yield _refuse(
                f"{path}.teacher", f"must be different from the others, but {teacher.teacher!r} is there twice"
            )
        wrong = [
            *_probabilities(f"{path}.candidate_probs", teacher.candidate_probs),
            *_probabilities(f"{path}.tail_prob", [teacher.tail_prob], indexed=False),
        ]
        yield from wrong or _teacher_total(path, teacher, has_tail=node.tail is not None)


def _teacher_total(path: str, teacher: TeacherProbs, *, has_tail: bool) -> Iterator[Refusal]:
    candidates = math.fsum(teacher.candidate_probs)
    total = candidates + teacher.tail_prob
    if total > 1 + _SUM_TOLERANCE:
        yield _refuse(f"{path}.candidate_probs", f"must sum to 1 with the tail, but sum to {total:.6g}")
    elif has_tail and total < 1 - _SUM_TOLERANCE:
        yield _refuse(
            f"{path}.tail_prob",
            f"must be what the candidates leave, {max(1 - candidates, 0):.6g}, got {teacher.tail_prob:.6g}",
        )


def _probabilities(name: str, values: Sequence[float], *, indexed: bool = True) -> Iterator[Refusal]:
    for index, value in enumerate(values):
        if not 0 <= value <= 1 + _EXCESS_TOLERANCE:
            yield _refuse(f"{name}[{index}]" if indexed else name, f"must be a probability from 0 to 1, got {value:g}")


def _counts(prefix: str, suffix: str, successes: int, trials: int, known: bool) -> Iterator[Refusal]:  # noqa: FBT001
    if trials < 0:
        yield _refuse(f"{prefix}trials{suffix}", f"must be at least 0, got {trials}")
    elif known and trials:
        yield _refuse(f"{prefix}trials{suffix}", f"must be 0 where the success is known, got {trials}")
    elif not 0 <= successes <= (1 if known else trials):
        most = "1 where the success is known" if known else f"the {trials} trials"
        yield _refuse(f"{prefix}successes{suffix}", f"must be from 0 to {most}, got {successes}")


def _refuse(name: str, description: str) -> Refusal:
    return Refusal(field=name, description=description)
