"""`opdscope score` from file to file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NODE = {
    "question_id": "q1",
    "rollout_id": "q1/0",
    "position": 7,
    "taken_token_id": 42,
    "rollout_success": True,
    "candidates": [
        {"token_id": 42, "student_prob": 0.7, "successes": 9, "trials": 16, "teacher_probs": {"answer": 0.8}},
        {"token_id": 43, "student_prob": 0.28, "successes": 2, "trials": 16, "teacher_probs": {"answer": 0.19}},
    ],
    "tail": {"student_prob": 0.02, "successes": 1, "trials": 8, "teacher_probs": {"answer": 0.01}},
}
FIELDS = [
    "question_id", "rollout_id", "position", "teacher", "objective", "plug_in", "alignment", "low", "high", "status",
    "teacher_advantage", "numerator", "numerator_se", "ideal_norm_sq", "distill_norm", "p_heterogeneity", "coverage",
]  # fmt: skip


def _score(tmp_path: Path, lines: list[str], *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    source, target = tmp_path / "evidence.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "opdscope", "score", str(source), "--local", "--out", str(target), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    rows = [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []
    return result, rows


def test_alignments_come_out_field_by_field(tmp_path: Path) -> None:
    """Checked against the formulas, on the vocabulary of candidates and tail."""
    result, rows = _score(tmp_path, [json.dumps(NODE)], "--objectives", "reverse_kl,gkd_jsd(beta=0.3)")
    assert result.returncode == 0, result.stderr
    assert [row["objective"] for row in rows] == ["reverse_kl", "gkd_jsd(beta=0.3)"]
    assert all(list(row)[: len(FIELDS)] == FIELDS for row in rows)
    assert {row["support"] for row in rows} == {"bucketed"}
    row = rows[0]
    p, v, q = (0.7, 0.28, 0.02), (9 / 16, 2 / 16, 1 / 8), (0.8, 0.19, 0.01)
    mean = sum(a * b for a, b in zip(p, v, strict=True))
    g = [a * (b - mean) for a, b in zip(p, v, strict=True)]
    assert row["teacher_advantage"] == pytest.approx(sum((b - a) * c for a, b, c in zip(p, q, v, strict=True)))
    assert row["coverage"] == pytest.approx(0.98)
    assert row["plug_in"] is not None
    assert row["low"] <= row["plug_in"] <= row["high"]
    assert row["ideal_norm_sq"] < sum(x * x for x in g)
    assert row["numerator"] > 0
    assert row["status"] in {"helps", "hurts", "neutral", "undetermined"}


def test_default_is_every_objective_that_the_evidence_can_give(tmp_path: Path) -> None:
    """And none that needs more."""
    result, rows = _score(tmp_path, [json.dumps(NODE)])
    assert result.returncode == 0, result.stderr
    names = {row["objective"].partition("(")[0] for row in rows}
    assert {"reverse_kl", "forward_kl", "gkd_jsd"} <= names
    assert not {"minillm", "grpo", "temperature_kd"} & names


def test_malformed_lines_are_named_and_the_others_are_scored(tmp_path: Path) -> None:
    """Line number and field of each; exit code 1."""
    wrong = [
        json.dumps(NODE | {"position": "seven"}),
        json.dumps(NODE | {"tail": NODE["tail"] | {"successes": 99}}),
        "{",
        json.dumps({k: v for k, v in NODE.items() if k != "candidates"}),
    ]
    lines = [json.dumps(NODE), *wrong, json.dumps(NODE | {"position": 8})]
    result, rows = _score(tmp_path, lines, "--objectives", "reverse_kl")
    assert result.returncode == 1
    assert [row["position"] for row in rows] == [7, 8]
    for line, field in ((2, "position"), (3, "tail"), (4, ""), (5, "candidates")):
        assert any(f"line {line}: {field}" in text for text in result.stderr.splitlines()), result.stderr


def test_objectives_that_need_more_are_refused_by_name(tmp_path: Path) -> None:
    """With what they need."""
    result, rows = _score(tmp_path, [json.dumps(NODE)], "--objectives", "temperature_kd(T=2)")
    assert result.returncode == 1
    assert "full_logits" in result.stderr
    assert rows == []


def test_no_value_is_nan(tmp_path: Path) -> None:
    """A node without outcomes has nulls."""
    bare = [candidate | {"successes": 0, "trials": 0} for candidate in NODE["candidates"]]
    node = NODE | {"candidates": bare, "tail": NODE["tail"] | {"successes": 0, "trials": 0}}
    result, rows = _score(tmp_path, [json.dumps(node)], "--objectives", "reverse_kl")
    assert result.returncode == 0, result.stderr
    assert "NaN" not in (tmp_path / "out.jsonl").read_text()
    assert (rows[0]["alignment"], rows[0]["status"]) == (None, "undetermined")
