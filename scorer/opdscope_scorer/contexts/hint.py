"""The context `hint`."""

from opdscope_scorer.contexts.base import context
from opdscope_scorer.questions import Question


@context("hint")
def hint(question: Question) -> str:
    """Sees a hint."""
    return question.hint or ""
