"""The run file: everything that determines a diagnosis, as YAML, validated before anything starts."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict, ValidationError, model_validator

from opdscope._errors import RunFileError
from opdscope._questions import Question, Text, read_questions
from opdscope._validation import sentences, shown
from opdscope._yaml import read_yaml, yaml_text

DEFAULT_TEMPLATE = "{% if privileged %}{{ privileged }}\n\n{% endif %}Question: {{ question }}\nAnswer:"


Count = Annotated[int, Strict(), Field(ge=1, lt=2**31)]
CountFromZero = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Student(_Section):
    """The student that `--local` starts servers with; a deployed scorer has its own."""

    model: Text
    """A Hugging Face folder, a GGUF file, or `package:NAME/FILE.gguf` inside an installed package."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"


class Teacher(_Section):
    """A distribution to be distilled from: the student itself under a context."""

    name: Text
    model: Literal["self"] = "self"
    context: Text


class Prompt(_Section):
    """Jinja template with `question` and `privileged`, which is empty for the student."""

    template: Text = DEFAULT_TEMPLATE


class Sampling(_Section):
    """How the student samples, and where its output ends."""

    temperature: Annotated[Number, Field(gt=0)] = 0.7
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 128
    """Largest number of output tokens, forced ones included."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_token_ids: tuple[CountFromZero, ...] = ()


class Nodes(_Section):
    """Which positions of a rollout become nodes."""

    selector: Text = "entropy"
    max_nodes: Count | None = None
    min_entropy_nats: Annotated[Number, Field(ge=0)] | None = None
    positions: tuple[CountFromZero, ...] = ()


class Candidates(_Section):
    """Which tokens are forced at a node, beside the one really taken."""

    student_top_k: CountFromZero = 3
    teacher_top_k: CountFromZero = 1
    min_student_prob: Annotated[Number, Field(ge=0, lt=1)] = 0.001
    """Teachers' tokens that the student would play more rarely than this stay in the tail."""


class Budget(_Section):
    """What may be spent."""

    rollouts_per_candidate: Count = 8


class Local(_Section):
    """What `--local` starts."""

    generators: Annotated[int, Strict(), Field(ge=1, le=64)] = 1


class RunFile(_Section):
    """A diagnosis. Paths in the file are relative to it; `output` is relative to the current directory.

    References to a file of questions and to a template file are read by `load`: a `RunFile` is complete in itself.
    """

    student: Student | None = None
    teachers: Annotated[tuple[Teacher, ...], Field(min_length=1)]
    objectives: Annotated[tuple[Text, ...], Field(min_length=1)] = ("reverse_kl", "forward_kl", "gkd_jsd(beta=0.5)")
    questions: Annotated[tuple[Question, ...], Field(min_length=1)]
    question_ids: tuple[Text, ...] | None = None
    """The questions to ask, in this order; absent: all."""
    prompt: Prompt = Prompt()
    verifier: Text
    sampling: Sampling = Sampling()
    rollouts_per_question: Count = 2
    nodes: Nodes = Nodes()
    candidates: Candidates = Candidates()
    budget: Budget = Budget()
    loss_temperature: Annotated[Number, Field(gt=0)] | None = None
    """Temperature of the distillation loss; absent: that of the sampling."""
    confidence: Annotated[Number, Field(gt=0, lt=1)] = 0.95
    delta: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    """Alignments within ±delta count as neutral."""
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**64)] = 0
    local: Local = Local()
    output: Text = "out/run"

    _questions_path: Path | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run file with the files it refers to.

        Raises:
            RunFileError: naming every field that is wrong, what stands there and what is accepted.
        """
        path = Path(path)
        data = read_yaml(path)
        questions_path = _inline_files(data, path)
        try:
            run = cls.model_validate(data)
        except ValidationError as error:
            raise RunFileError("\n".join(f"{path}: {line}" for line in sentences(error, cls))) from None
        run._questions_path = questions_path  # noqa: SLF001 - our own instance
        return run

    @property
    def selected_questions(self) -> tuple[Question, ...]:
        """The questions that are asked, in order."""
        if self.question_ids is None:
            return self.questions
        by_id = {question.id: question for question in self.questions}
        return tuple(by_id[question_id] for question_id in self.question_ids)

    @property
    def run_id(self) -> str:
        """An id made of everything that determines the result: equal runs have equal ids."""
        content = self.model_dump(mode="json", exclude={"local", "output", "question_ids", "questions"})
        content["questions"] = [question.model_dump(mode="json") for question in self.selected_questions]
        return "run-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def resolved_yaml(self, *, inline_questions: bool = True) -> str:
        """The run file with every default written out and templates inline.

        Questions are inline too, so that the text repeats the run wherever it is put. Without `inline_questions`, those
        that came from a file are referred to by its absolute path.
        """
        data = self.model_dump(mode="json")
        if inline_questions:
            data["question_ids"] = None
            data["questions"] = [question.model_dump(mode="json") for question in self.selected_questions]
        elif self._questions_path is not None:
            data["questions"] = str(self._questions_path.resolve())
        return yaml_text(data)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        _refuse_repeated("teachers: name", [teacher.name for teacher in self.teachers])
        _refuse_repeated("questions: id", [question.id for question in self.questions])
        _refuse_repeated("question_ids:", list(self.question_ids or ()))
        known = {question.id for question in self.questions}
        unknown = [question_id for question_id in self.question_ids or () if question_id not in known]
        if unknown:
            raise ValueError(f"question_ids: no question has the id {', '.join(map(shown, unknown))}")
        if self.question_ids == ():
            raise ValueError("question_ids: must not be empty; leave it out to ask all questions")
        return self


def _inline_files(data: dict[str, Any], path: Path) -> Path | None:
    """Put the content of files in the place of references to them; returns the path of the questions."""
    prompt = data.get("prompt")
    if isinstance(prompt, Mapping) and "template_file" in prompt:
        data["prompt"] = _with_template(prompt, path)
    if not isinstance(data.get("questions"), str):
        return None
    questions_path: Path = path.parent / data["questions"]
    data["questions"] = read_questions(questions_path)
    return questions_path


def _with_template(prompt: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if "template" in prompt:
        raise RunFileError(f"{path}: prompt: give either template or template_file")
    file = prompt["template_file"]
    if not isinstance(file, str):
        raise RunFileError(f"{path}: prompt.template_file: must be a path, got {shown(file)}")
    try:
        template = (path.parent / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RunFileError(f"{path}: prompt.template_file: cannot read {path.parent / file}: {reason}") from None
    return {**{key: value for key, value in prompt.items() if key != "template_file"}, "template": template}


def _refuse_repeated(field: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{field} {', '.join(map(shown, repeated))} stands more than once")
