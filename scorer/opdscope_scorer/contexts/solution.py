"""The context `solution`."""

from opdscope_scorer.contexts.base import context
from opdscope_scorer.questions import Question


@context("solution")
def solution(question: Question) -> str:
    """Sees the full worked solution."""
    return question.solution or ""
