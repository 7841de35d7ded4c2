"""The run file: what is refused and how, and what a resolved one says."""

import json
from pathlib import Path

import pytest
import yaml
from opdscope import RunFile, RunFileError

BASE = {
    "teachers": [{"name": "answer", "context": "answer"}],
    "questions": [{"id": "q1", "question": "How many?", "answer": 12}],
    "verifier": "number",
}


def _load(tmp_path: Path, **changes: object) -> RunFile:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return RunFile.load(path)


REFUSED = [
    ({"teachers": []}, "teachers: must have at least one entry, got []"),
    ({"teachers": [{"name": "a"}]}, "teachers[0].context: is missing"),
    ({"teachers": [{"name": "a", "contxt": "b", "context": "c"}]}, "teachers[0].contxt: is not known; did you mean"),
    ({"teachers": [{"name": "a", "context": "b", "model": "other"}]}, "teachers[0].model: must be 'self', got 'other'"),
    ({"teachers": BASE["teachers"] * 2}, "teachers: name 'answer' stands more than once"),  # type: ignore[operator]
    ({"objectives": "reverse_kl"}, "objectives: must be a list, got 'reverse_kl'"),
    ({"objectives": []}, "objectives: must have at least one entry"),
    ({"questions": []}, "questions: must have at least one entry"),
    ({"questions": [{"id": "a", "question": "b"}]}, "questions[0].answer: is missing"),
    ({"questions": [{"id": "a", "question": "b", "answer": True}]}, "questions[0].answer: must be text"),
    ({"questions": [{"id": "a", "question": " ", "answer": "1"}]}, "questions[0].question: must not be empty"),
    ({"questions": BASE["questions"] * 2}, "questions: id 'q1' stands more than once"),  # type: ignore[operator]
    ({"question_ids": ["q2"]}, "question_ids: no question has the id 'q2'"),
    ({"question_ids": []}, "question_ids: must not be empty"),
    ({"prompt": {"template": ""}}, "prompt.template: must not be empty"),
    ({"prompt": {"template": "a", "template_file": "b"}}, "prompt: give either template or template_file"),
    ({"prompt": {"template_file": "missing.txt"}}, "prompt.template_file: cannot read"),
    ({"sampling": {"temperature": 0}}, "sampling.temperature: must be greater than 0, got 0"),
    ({"sampling": {"temperature": "0.7"}}, "sampling.temperature: must be a number (without quotes), got '0.7'"),
    ({"sampling": {"top_p": 1.5}}, "sampling.top_p: must be less than or equal to 1, got 1.5"),
    ({"sampling": {"top_p": float("nan")}}, "sampling.top_p: must be a finite number, got nan"),
    ({"sampling": {"max_new_tokens": 4.5}}, "sampling.max_new_tokens: must be a whole number, got 4.5"),
    ({"sampling": {"max_new_tokens": True}}, "sampling.max_new_tokens: must be a whole number, got True"),
    ({"sampling": {"stop": "\n"}}, "sampling.stop: must be a list"),
    ({"sampling": {"stop": [""]}}, "sampling.stop[0]: must not be empty"),
    ({"nodes": {"positions": [-1]}}, "nodes.positions[0]: must be greater than or equal to 0, got -1"),
    ({"budget": {"rollouts_per_candidate": 0}}, "budget.rollouts_per_candidate: must be greater than or equal to 1"),
    ({"confidence": 1}, "confidence: must be less than 1, got 1"),
    ({"delta": -0.1}, "delta: must be greater than or equal to 0, got -0.1"),
    ({"seed": -1}, "seed: must be greater than or equal to 0, got -1"),
    ({"student": {"model": "m", "dtype": "float31"}}, "student.dtype: must be 'float32', 'bfloat16'"),
    ({"local": {"generators": 0}}, "local.generators: must be greater than or equal to 1"),
    ({"budgt": 3}, "budgt: is not known; did you mean budget?"),
    ({"zzz": 3}, "zzz: is not known; known are student, teachers"),
    ({"verifier": None}, "verifier: must be text (in quotes), got None"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """The error holds file, field, what is accepted and what stands there, and no link."""
    with pytest.raises(RunFileError) as caught:
        _load(tmp_path, **changes)
    assert f"{tmp_path / 'run.yaml'}: {message}" in str(caught.value)
    assert "http" not in str(caught.value)


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    """One line for every finding."""
    with pytest.raises(RunFileError) as caught:
        _load(tmp_path, seed=-1, delta=2, nonsense=1)
    assert len(str(caught.value).splitlines()) == 3


TEXTS = [
    ("", "must be a mapping of settings, got None"),
    ("- a", "must be a mapping of settings, got ['a']"),
    ("a: [1", "line 1: "),
    ("seed: 1\nseed: 2", "line 2: the key 'seed' stands twice"),
    ("a: \x00", "special characters are not allowed"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error says where it stops to make sense."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RunFileError) as caught:
        RunFile.load(path)
    assert message in str(caught.value)


def test_a_missing_run_file_is_said_so(tmp_path: Path) -> None:
    """The path stands in the message."""
    with pytest.raises(RunFileError, match=r"cannot read the run file .*nowhere\.yaml: No such file"):
        RunFile.load(tmp_path / "nowhere.yaml")


def test_a_run_file_that_is_no_text_is_said_so(tmp_path: Path) -> None:
    """Binary files are no crash."""
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFileError, match="is not UTF-8 text"):
        RunFile.load(tmp_path / "run.yaml")


GOOD = '{"id": "a", "question": "b", "answer": "c"}'
QUESTION_FILES = [
    ("", "has no questions"),
    ("\n\n", "has no questions"),
    ('{"id": "a", "question": "b"}', "line 1: answer: is missing"),
    (f'{GOOD}\n{{"id": "d", "question": "e", "answer": ""}}', "line 2: answer: must not be empty"),
    (f'{GOOD}\n{{"id": "d", "question": "e", "answer": null}}', "line 2: answer: must be text"),
    (f"{GOOD}\n\n{GOOD}", "line 3: id: 'a' stands already in line 1"),
    (f"{GOOD}\n{{", "line 2: is not JSON: "),
    ('{"id": "a", "question": "\\ud800", "answer": "c"}', "line 1: question: holds half of a surrogate pair"),
    ("[1]", "line 1: must be a JSON object, got [1]"),
]


@pytest.mark.parametrize(("text", "message"), QUESTION_FILES)
def test_a_wrong_question_is_named_by_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    """File, line and field stand in the message."""
    (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(RunFileError) as caught:
        _load(tmp_path, questions="questions.jsonl")
    assert f"{tmp_path / 'questions.jsonl'}: {message}" in str(caught.value)


def test_a_missing_question_file_is_said_so(tmp_path: Path) -> None:
    """The path is relative to the run file."""
    with pytest.raises(RunFileError, match=rf"cannot read the questions {tmp_path}/none\.jsonl: No such file"):
        _load(tmp_path, questions="none.jsonl")


def test_data_sets_may_have_more_keys_and_whole_numbers(tmp_path: Path) -> None:
    """Extra keys are ignored, whole numbers become text."""
    line = {"id": 7, "question": "b", "answer": 12, "level": "hard", "solution": None}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    (question,) = _load(tmp_path, questions="questions.jsonl").questions
    assert (question.id, question.answer, question.solution) == ("7", "12", None)


def _with_files(tmp_path: Path) -> RunFile:
    lines = [json.dumps({"id": f"q{number}", "question": "b", "answer": "c"}) for number in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "prompt.txt").write_text("Line\n{{ question }}")
    return _load(
        tmp_path, questions="questions.jsonl", question_ids=["q2", "q0"], prompt={"template_file": "prompt.txt"}
    )


def test_questions_are_chosen_and_ordered_by_id(tmp_path: Path) -> None:
    """`question_ids` is subset and order."""
    assert [question.id for question in _with_files(tmp_path).selected_questions] == ["q2", "q0"]


@pytest.mark.parametrize("inline", [True, False])
def test_a_resolved_run_file_is_the_same_run_elsewhere(tmp_path: Path, inline: bool) -> None:  # noqa: FBT001 - a parameter
    """Every default is written out, and the text means the same wherever it is put."""
    run = _with_files(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.yaml").write_text(run.resolved_yaml(inline_questions=inline))
    again = RunFile.load(elsewhere / "run.yaml")
    assert again.run_id == run.run_id
    assert again.selected_questions == run.selected_questions
    assert yaml.safe_load(run.resolved_yaml()).keys() == RunFile.model_fields.keys()


def test_the_run_id_follows_what_determines_the_result(tmp_path: Path) -> None:
    """Equal content, equal id; where results go and how many processes compute them does not matter."""
    run_id = _load(tmp_path).run_id
    assert _load(tmp_path, output="elsewhere", local={"generators": 3}).run_id == run_id
    changes: list[dict[str, object]] = [
        {"seed": 1},
        {"delta": 0.1},
        {"student": {"model": "other"}},
        {"questions": [{"id": "q1", "question": "How many?", "answer": 13}]},
    ]
    assert len({run_id, *(_load(tmp_path, **change).run_id for change in changes)}) == 5


def test_the_run_id_is_one_that_the_scorer_accepts(tmp_path: Path) -> None:
    """Letters, digits and `-`, at most 64."""
    run_id = _load(tmp_path).run_id
    assert run_id.replace("-", "").isalnum()
    assert len(run_id) <= 64
