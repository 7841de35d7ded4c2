"""The context `answer`."""

from opdscope_scorer.contexts.base import context
from opdscope_scorer.questions import Question


@context("answer")
def answer(question: Question) -> str:
    """Sees the right answer."""
    return f"The correct answer is {question.answer}."
