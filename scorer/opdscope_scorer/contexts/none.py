"""The context `none`."""

from opdscope_scorer.contexts.base import context
from opdscope_scorer.questions import Question


@context()
def none(question: Question) -> str:  # noqa: ARG001 - every context gets the question
    """Sees the question only: the student itself."""
    return ""
