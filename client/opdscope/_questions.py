"""Questions with their references, and the JSONL files that hold them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from opdscope._errors import RunFileError
from opdscope._validation import sentences, shown


def _whole_number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, which is no text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
TextOrWholeNumber = Annotated[str, BeforeValidator(_whole_number_as_text), AfterValidator(_not_blank)]


class Question(BaseModel):
    """A question with its reference. Other keys than these are ignored: data sets have many."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: TextOrWholeNumber
    question: Text
    answer: TextOrWholeNumber
    """The right answer, as the verifier compares it."""
    solution: Text | None = None
    """A worked solution, for contexts that show one."""
    hint: Text | None = None
    """A hint, for contexts that show one."""


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a JSONL file of questions; blank lines are skipped.

    Raises:
        RunFileError: naming file, line and field of everything that is wrong.
    """
    questions: list[Question] = []
    findings: list[str] = []
    first_lines: dict[str, int] = {}
    for number, line in _lines(path):
        question, wrong = _parse(line)
        if question and (first := first_lines.setdefault(question.id, number)) != number:
            wrong = [f"id: {shown(question.id)} stands already in line {first}"]
        findings += [f"{path}: line {number}: {text}" for text in wrong]
        questions += [question] if question else []
    if findings:
        raise RunFileError("\n".join(findings))
    if not questions:
        raise RunFileError(f"{path}: has no questions; one JSON object a line with id, question and answer is expected")
    return tuple(questions)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"cannot read the questions {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"{path}: is not UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(line: str) -> tuple[Question | None, list[str]]:
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError as error:
        return None, [f"is not JSON: {error.msg} at column {error.colno}"]
    if not isinstance(data, dict):
        return None, [f"must be a JSON object, got {shown(data)}"]
    try:
        return Question.model_validate(data), []
    except ValidationError as error:
        return None, sentences(error, Question)
