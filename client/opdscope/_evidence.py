"""Evidence and alignments as JSON lines."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opdscope._errors import EvidenceError
from opdscope._evidence_schema import NodeLine
from opdscope._types import Alignment, Candidate, EvidenceNode, EvidenceRefusal, Tail
from opdscope._validation import sentences

OUTPUT_FIELDS = (
    "question_id", "rollout_id", "position", "teacher", "objective", "plug_in", "alignment", "low", "high", "status",
    "teacher_advantage", "numerator", "numerator_se", "ideal_norm_sq", "distill_norm", "p_heterogeneity", "coverage",
    "support",
)  # fmt: skip
"""Fields of an output line, in order."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was refused; `problem` names the field and what is wrong."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


class EvidenceFile:
    """Reads nodes and keeps what is wrong with the others, so that good lines are scored all the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines: list[BadLine] = []
        self.unused_fields: set[str] = set()
        """Optional fields that stand in the file, but that no objective uses yet."""
        self._line_of_node: list[int] = []

    def __iter__(self) -> Iterator[EvidenceNode]:
        """The nodes of the good lines; blank lines are skipped.

        Raises:
            EvidenceError: if the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield from self._nodes_of(number, line)
        except OSError as error:
            raise EvidenceError(f"cannot read the evidence {self.path}: {error.strerror}") from error

    def check_readable(self) -> None:
        """Fail at once, and not after a server has been started.

        Raises:
            EvidenceError: if the file cannot be read.
        """
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise EvidenceError(f"cannot read the evidence {self.path}: {error.strerror}") from error

    @property
    def node_count(self) -> int:
        """Number of nodes that were read so far."""
        return len(self._line_of_node)

    def refuse(self, refusal: EvidenceRefusal) -> None:
        """Note that the scorer has refused a node."""
        problem = f"{_json_field(refusal.field)}: {refusal.description}"
        self.bad_lines.append(BadLine(self._line_of_node[refusal.node_index], problem))

    def _nodes_of(self, number: int, line: bytes) -> Iterator[EvidenceNode]:
        if not line.strip():
            return
        try:
            parsed = NodeLine.model_validate_json(line)
        except ValidationError as error:
            self.bad_lines.append(BadLine(number, "; ".join(sentences(error, NodeLine))))
        else:
            self._line_of_node.append(number)
            self.unused_fields |= parsed.unused_fields()
            yield parsed.node()


def node_line(node: EvidenceNode) -> str:
    """A node as a line of evidence, without the newline; `known`, `text` and `sum_sq_prob` only where there is one."""
    data: dict[str, Any] = {
        "question_id": node.question_id,
        "rollout_id": node.rollout_id,
        "position": node.position,
        "taken_token_id": node.taken_token_id,
        "rollout_success": node.rollout_success,
        "candidates": [_candidate_data(candidate) for candidate in node.candidates],
    }
    if node.tail:
        data["tail"] = _outcomes_data(node.tail)
        if node.tail.sum_sq_prob is not None:
            data["tail"]["sum_sq_prob"] = node.tail.sum_sq_prob
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    data = {"token_id": candidate.token_id, **_outcomes_data(candidate)}
    if candidate.known:
        data["known"] = True
    if candidate.text is not None:
        data["text"] = candidate.text
    return data


def _outcomes_data(outcomes: Candidate | Tail) -> dict[str, Any]:
    return {
        "student_prob": outcomes.student_prob,
        "successes": outcomes.successes,
        "trials": outcomes.trials,
        "teacher_probs": dict(outcomes.teacher_probs),
    }


def alignment_line(row: Alignment) -> str:
    """An output line, without the newline; what does not exist is null."""
    return json.dumps({field: getattr(row, field) for field in OUTPUT_FIELDS}, ensure_ascii=False, allow_nan=False)


def split_objectives(text: str) -> tuple[str, ...]:
    """`a,b(beta=0.3,x=1)` as `("a", "b(beta=0.3,x=1)")`.

    Raises:
        ValueError: if parentheses do not match or a name is empty.
    """
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth != 0:
        raise ValueError(f"parentheses do not match in {text!r}")
    names = tuple(part.strip() for part in parts)
    if not all(names):
        raise ValueError(f"an objective is empty in {text!r}")
    return names


_SCORER_FIELDS: Mapping[str, str] = {
    "candidate_token_ids": "candidates{}.token_id",
    "candidate_student_probs": "candidates{}.student_prob",
    "candidate_successes": "candidates{}.successes",
    "candidate_trials": "candidates{}.trials",
    "candidate_known": "candidates{}.known",
    "candidate_probs": "candidates{}.teacher_probs",
    "tail_prob": "tail.teacher_probs",
    "teachers": "candidates{}.teacher_probs",
}


def _json_field(field: str) -> str:
    """`candidate_trials[2]` of the wire as `candidates[2].trials` of the file."""
    match = re.fullmatch(r"(?:teachers\[\d+\]\.)?(\w+)(\[\d+\])?", field)
    if match and (name := _SCORER_FIELDS.get(match[1])):
        return name.format(match[2] or "")
    return field
