"""Everything that determines a run's result, but its questions and models."""

from dataclasses import dataclass

from opdscope_scorer.contexts import Context
from opdscope_scorer.objectives import BoundObjective
from opdscope_scorer.prompts import PromptTemplate
from opdscope_scorer.questions import Question
from opdscope_scorer.scoring import Judgement
from opdscope_scorer.selection import CandidateSelection, NodeSelection
from opdscope_scorer.verifiers import Verifier


@dataclass(frozen=True)
class Sampling:
    """How the student samples."""

    temperature: float
    top_p: float
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Teacher:
    """The student under a context, and the name that results carry."""

    name: str
    context: Context


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run, valid and ready for use."""

    template: PromptTemplate
    teachers: tuple[Teacher, ...]
    objectives: tuple[BoundObjective, ...]
    verifier: Verifier
    sampling: Sampling
    max_new_tokens: int
    rollouts_per_question: int
    nodes: NodeSelection
    candidates: CandidateSelection
    rollouts_per_candidate: int
    seed: int
    judgement: Judgement
    loss_temperature: float
    """Temperature at which the loss takes student and teachers."""

    def student_prompt(self, question: Question) -> str:
        """Return what the student sees."""
        return self.template.render(question.question)

    def teacher_prompt(self, question: Question, teacher: Teacher) -> str:
        """Return what a teacher sees."""
        return self.template.render(question.question, teacher.context.build(question))
