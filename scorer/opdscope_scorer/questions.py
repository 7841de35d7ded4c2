"""Questions with their references."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question, the answer that a verifier compares with, and what contexts may show."""

    id: str
    question: str
    answer: str
    solution: str | None = None
    hint: str | None = None
