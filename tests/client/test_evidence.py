"""Evidence lines: what is read, what is refused and how, what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opdscope import Alignment, EvidenceError, EvidenceNode, EvidenceRefusal, Status, Support
from opdscope._evidence import OUTPUT_FIELDS, EvidenceFile, alignment_line, node_line, split_objectives

NODE: dict[str, Any] = {
    "question_id": "q1",
    "rollout_id": "q1/0",
    "position": 7,
    "taken_token_id": 42,
    "rollout_success": True,
    "candidates": [
        {"token_id": 42, "student_prob": 0.7, "successes": 9, "trials": 16, "teacher_probs": {"answer": 0.8}},
        {"token_id": 43, "student_prob": 0.28, "successes": 3, "trials": 16, "teacher_probs": {"answer": 0.19}},
    ],
    "tail": {"student_prob": 0.02, "successes": 1, "trials": 8, "teacher_probs": {"answer": 0.01}},
}


def _changed(change: Callable[[dict[str, Any]], object]) -> str:
    node = json.loads(json.dumps(NODE))
    change(node)
    return json.dumps(node)


def _read(tmp_path: Path, *lines: str) -> tuple[list[EvidenceNode], EvidenceFile]:
    path = tmp_path / "evidence.jsonl"
    path.write_text("\n".join(lines))
    file = EvidenceFile(path)
    return list(file), file


def test_a_node_is_read_whole(tmp_path: Path) -> None:
    """Nothing of the example in the format's definition is lost on the way in and out."""
    (node,), file = _read(tmp_path, json.dumps(NODE))
    assert file.bad_lines == []
    assert json.loads(node_line(node)) == NODE


def test_optional_fields_are_accepted(tmp_path: Path) -> None:
    """Those that no objective needs yet are named, not dropped in silence."""

    def add_all(node: dict[str, Any]) -> None:
        node["tail"]["sum_sq_prob"] = 0.0002
        node["candidates"][0] |= {"lengths": [3, 4], "returns": {"answer": [0.1, 0.2]}, "text": " so"}
        node["candidates"][1] |= {"known": True, "successes": 1, "trials": 0}
        node["skipped_off_path_prob"] = 0.01
        node["student_logits"] = "logits.safetensors"

    (node,), file = _read(tmp_path, _changed(add_all))
    assert file.bad_lines == []
    assert node.tail is not None
    assert node.tail.sum_sq_prob == 0.0002
    assert (node.candidates[0].text, node.candidates[1].known) == (" so", True)
    assert file.unused_fields == {"lengths", "returns", "skipped_off_path_prob", "student_logits"}


def test_what_may_be_absent_may_be_null(tmp_path: Path) -> None:
    """A node without tail, taken token and outcome of its rollout is a node."""
    (node,), _ = _read(tmp_path, _changed(lambda node: node.update(tail=None, taken_token_id=None)))
    assert (node.tail, node.taken_token_id) == (None, None)


REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda node: node.pop("rollout_id"), "rollout_id: is missing"),
    (lambda node: node.pop("candidates"), "candidates: is missing"),
    (lambda node: node.update(candidates=[]), "candidates: must have at least one entry"),
    (lambda node: node.update(positon=7), "positon: is not known; did you mean position?"),
    (lambda node: node["tail"].update(token=7), "tail.token: is not known; known are student_prob"),
    (lambda node: node["candidates"][1].update(prob=1), "candidates[1].prob: is not known"),
    (lambda node: node["candidates"][1].pop("trials"), "candidates[1].trials: is missing"),
    (lambda node: node["candidates"][0].update(trials=-1), "candidates[0].trials: must be greater than or equal to 0"),
    (lambda node: node["candidates"][0].update(trials=16.0), "candidates[0].trials: must be a whole number, got 16.0"),
    (lambda node: node["candidates"][0].update(token_id=2**31), "candidates[0].token_id: must be less than 2147483648"),
    (lambda node: node["candidates"][0].update(student_prob="0.7"), "candidates[0].student_prob: must be a number"),
    (lambda node: node["candidates"][1].update(teacher_probs={}), "candidates: all must have the same teachers"),
    (lambda node: node["tail"].update(teacher_probs={"a": 0.1}), "tail.teacher_probs: must have the teachers"),
    (lambda node: node["tail"].update(student_prob=float("nan")), "tail.student_prob: must be a finite number"),
    (lambda node: node.update(rollout_success=1), "rollout_success: must be true or false, got 1"),
    (lambda node: node.update(question_id=""), "question_id: must not be empty"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_wrong_line_is_named_and_the_others_are_read(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Line number and field stand in the message; lines before and after are not lost."""
    good = json.dumps(NODE)
    nodes, file = _read(tmp_path, good, "", _changed(change), good)
    assert len(nodes) == 2
    (bad,) = file.bad_lines
    assert str(bad).startswith("line 3: ")
    assert message in str(bad)


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"question_id": "\\ud800"}', "\ufffd"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, line: str) -> None:
    """Any text at all gives a message and no crash."""
    nodes, file = _read(tmp_path, line)
    assert nodes == []
    assert len(file.bad_lines) == 1


def test_a_refusal_of_the_scorer_is_said_in_terms_of_the_file(tmp_path: Path) -> None:
    """The scorer counts nodes and knows arrays; people count lines and know the fields of the format."""
    _, file = _read(tmp_path, "{", json.dumps(NODE), "", json.dumps(NODE))
    file.refuse(EvidenceRefusal(node_index=1, field="candidate_trials[1]", description="are too many"))
    file.refuse(EvidenceRefusal(node_index=0, field="tail", description="is missing"))
    file.refuse(EvidenceRefusal(node_index=0, field="teachers[1].candidate_probs[2]", description="is wrong"))
    assert [str(bad) for bad in file.bad_lines[1:]] == [
        "line 4: candidates[1].trials: are too many",
        "line 2: tail: is missing",
        "line 2: candidates[2].teacher_probs: is wrong",
    ]


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    """The check is there before any server is started."""
    with pytest.raises(EvidenceError, match=r"cannot read the evidence .*none\.jsonl: No such file"):
        EvidenceFile(tmp_path / "none.jsonl").check_readable()


def test_an_output_line_has_the_fields_of_the_format_in_order() -> None:
    """What does not exist is null."""
    row = Alignment(
        node_index=0, question_id="q", rollout_id="q/0", position=1, teacher="t", objective="reverse_kl",
        plug_in=0.5, alignment=None, low=None, high=None, status=Status.UNDETERMINED, teacher_advantage=None,
        numerator=0.1, numerator_se=None, ideal_norm_sq=-0.1, distill_norm=0.2, p_heterogeneity=0.5, coverage=0.9,
        teacher_coverage=0.9, candidate_cosine=0.4, support=Support.BUCKETED,
    )  # fmt: skip
    data = json.loads(alignment_line(row))
    assert tuple(data) == OUTPUT_FIELDS
    assert (data["alignment"], data["status"], data["support"]) == (None, "undetermined", "bucketed")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ("a",)),
        ("a, b", ("a", "b")),
        ("a,b(beta=0.3)", ("a", "b(beta=0.3)")),
        ("b(x=1,y=(2,3)),a", ("b(x=1,y=(2,3))", "a")),
    ],
)
def test_objectives_are_split_outside_of_parentheses(text: str, names: tuple[str, ...]) -> None:
    """Commas between parameters stay."""
    assert split_objectives(text) == names


@pytest.mark.parametrize("text", ["", "a,", ",a", "a(b", "a)b(", "a),(b"])
def test_objectives_that_make_no_sense_are_refused(text: str) -> None:
    """Empty names and parentheses that do not match."""
    with pytest.raises(ValueError, match=r"do not match|is empty"):
        split_objectives(text)
