"""Prompts: what student and teachers see."""

from dataclasses import dataclass

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = ("question", "privileged")

# `keep_trailing_newline`: a template is taken to the letter. A YAML block or a file that ends in a newline would
# otherwise lose it, and with it what the model sees last.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


class TemplateError(ValueError):
    """A prompt template cannot be used."""


@dataclass(frozen=True)
class PromptTemplate:
    """A Jinja template with the variables `question` and `privileged`."""

    source: str

    def __post_init__(self) -> None:
        """Check that it parses and names only what there is."""
        if unknown := sorted(self._names() - set(VARIABLES)):
            raise TemplateError(f"names {', '.join(unknown)}; known are {' and '.join(VARIABLES)}")
        if "question" not in self._names():
            raise TemplateError("does not contain {{ question }}")

    @property
    def shows_privileged(self) -> bool:
        """Whether a teacher would see its context."""
        return "privileged" in self._names()

    def render(self, question: str, privileged: str = "") -> str:
        """Return the prompt; `privileged` is empty for the student."""
        try:
            return _ENVIRONMENT.from_string(self.source).render(question=question, privileged=privileged)
        except jinja2.TemplateError as error:
            raise TemplateError(str(error)) from error

    def _names(self) -> set[str]:
        try:
            return meta.find_undeclared_variables(_ENVIRONMENT.parse(self.source))
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}") from error
