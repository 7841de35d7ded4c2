"""A line of evidence: which fields it has and of which types.

The scorer checks what they say: probabilities that add up, successes that are no more than the trials.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opdscope._types import Candidate, EvidenceNode, Tail

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]


UNUSED = {"lengths", "returns", "skipped_off_path_prob", "student_logits", "teacher_logits"}
"""Optional fields of the format that are accepted, but that no objective here needs."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Outcomes(_Section):
    student_prob: Number
    successes: Count
    trials: Count
    teacher_probs: dict[Text, Number] = {}
    lengths: list[Count] | None = None
    returns: Any = None


class _Candidate(_Outcomes):
    token_id: Count
    known: bool = False
    text: str | None = None

    def candidate(self) -> Candidate:
        """The candidate."""
        return Candidate(
            token_id=self.token_id,
            student_prob=self.student_prob,
            successes=self.successes,
            trials=self.trials,
            teacher_probs=self.teacher_probs,
            known=self.known,
            text=self.text,
        )


class _Tail(_Outcomes):
    sum_sq_prob: Number | None = None

    def tail(self) -> Tail:
        """The tail."""
        return Tail(
            student_prob=self.student_prob,
            successes=self.successes,
            trials=self.trials,
            teacher_probs=self.teacher_probs,
            sum_sq_prob=self.sum_sq_prob,
        )


class NodeLine(_Section):
    """One node; probabilities are those of the sampling policy, over the full vocabulary."""

    question_id: Text
    rollout_id: Text
    position: Count
    candidates: Annotated[list[_Candidate], Field(min_length=1)]
    tail: _Tail | None = None
    taken_token_id: Count | None = None
    rollout_success: bool | None = None
    skipped_off_path_prob: Number | None = None
    student_logits: Any = None
    teacher_logits: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        teachers = self.candidates[0].teacher_probs.keys()
        if any(candidate.teacher_probs.keys() != teachers for candidate in self.candidates):
            raise ValueError("candidates: all must have the same teachers in teacher_probs")
        if self.tail and self.tail.teacher_probs.keys() != teachers:
            raise ValueError("tail.teacher_probs: must have the teachers of the candidates")
        return self

    def unused_fields(self) -> set[str]:
        """Optional fields that are there, but that no objective needs."""
        sections = [self, *self.candidates, *([self.tail] if self.tail else [])]
        return UNUSED & {field for section in sections for field in section.model_fields_set}

    def node(self) -> EvidenceNode:
        """The node."""
        return EvidenceNode(
            question_id=self.question_id,
            rollout_id=self.rollout_id,
            position=self.position,
            candidates=tuple(candidate.candidate() for candidate in self.candidates),
            tail=self.tail.tail() if self.tail else None,
            taken_token_id=self.taken_token_id,
            rollout_success=self.rollout_success,
        )
