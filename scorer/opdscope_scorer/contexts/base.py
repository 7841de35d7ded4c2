"""What a context is."""

from collections.abc import Callable
from dataclasses import dataclass

from opdscope_scorer.questions import Question
from opdscope_scorer.registry import Registry


@dataclass(frozen=True)
class Context:
    """A way to privilege a teacher."""

    name: str
    description: str
    needs: tuple[str, ...]
    """Fields of the question that must not be empty."""
    build: Callable[[Question], str]
    """Returns the privileged text, as the prompt template gets it."""

    def missing(self, question: Question) -> list[str]:
        """Return the fields that it needs and the question lacks."""
        return [name for name in self.needs if not getattr(question, name)]


CONTEXTS: Registry[Context] = Registry("context")


def context(*needs: str) -> Callable[[Callable[[Question], str]], Callable[[Question], str]]:
    """Register the decorated function, under its own name, as a context that needs these fields of a question."""

    def register(build: Callable[[Question], str]) -> Callable[[Question], str]:
        name = build.__name__
        CONTEXTS.add(name, Context(name, (build.__doc__ or "").strip(), needs, build))
        return build

    return register
