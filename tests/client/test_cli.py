"""The commands: exit codes, messages, output."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.rpc import error_details_pb2
from opdscope.cli import main
from opdscope.v1 import scorer_pb2

Scorer = Any  # ScriptedScorer of conftest.py, which tests cannot import
Events = list[scorer_pb2.WatchRunResponse]

EVIDENCE = {
    "question_id": "q1",
    "rollout_id": "q1/0",
    "position": 7,
    "candidates": [{"token_id": 42, "student_prob": 1, "successes": 9, "trials": 16, "teacher_probs": {"t": 1}}],
}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A file with one node."""
    path = tmp_path / "evidence.jsonl"
    path.write_text(json.dumps(EVIDENCE) + "\n")
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["diagnose", "--help"], ["score", "--help"]])
def test_help_has_examples(arguments: list[str]) -> None:
    """Every command shows how it is used."""
    result = _run(*arguments)
    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout


def test_the_version_is_printed() -> None:
    """One line for people and machines."""
    assert _run("--version").stdout == "opdscope 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose", "run.yaml"], "Give either --local or --scorer HOST:PORT."),
        (["diagnose", "run.yaml", "--local", "--scorer", "a:1"], "Give either --local or --scorer HOST:PORT."),
        (["diagnose", "run.yaml", "--scorer", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["diagnose", "run.yaml", "--scorer", "a:99999"], "is not HOST:PORT"),
        (["diagnose"], "Missing argument 'RUN.yaml'"),
        (["score", "e.jsonl", "--local"], "Missing option '--out'"),
        (["score", "e.jsonl", "--local", "--out", "a", "--objectives", "a(b"], "parentheses do not match"),
        (["score", "e.jsonl", "--local", "--out", "a", "--delta", "1"], "1.0 is not in the range"),
        (["score", "e.jsonl", "--local", "--out", "a", "--confidence", "0"], "0.0 is not in the range"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], message: str) -> None:
    """The message says what is accepted."""
    result = _run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose", "none.yaml", "--local"], "cannot read the run file none.yaml: No such file or directory"),
        (["diagnose", "none.yaml", "--print-config"], "cannot read the run file none.yaml"),
        (["score", "none.jsonl", "--local", "--out", "a"], "cannot read the evidence none.jsonl: No such file"),
    ],
)
def test_a_missing_input_ends_with_1(arguments: list[str], message: str) -> None:
    """Before anything is started."""
    result = _run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_resolved_run_file_is_printed(run_yaml: Path) -> None:
    """Without any scorer."""
    result = _run("diagnose", run_yaml, "--print-config")
    assert result.exit_code == 0
    assert "rollouts_per_candidate: 8" in result.stdout


def test_a_run_without_student_cannot_be_local(run_yaml: Path) -> None:
    """It is said what is missing."""
    run_yaml.write_text(run_yaml.read_text().replace("student: {model: some/folder}\n", ""))
    result = _run("diagnose", run_yaml, "--local", "--out", run_yaml.parent / "out")
    assert result.exit_code == 1
    assert "names no student" in result.stderr


def test_a_diagnosis_shows_a_table_and_writes_files(
    target: str, scorer: Scorer, run_yaml: Path, run_events: Events
) -> None:
    """The table is on stdout, what is being done on stderr."""
    scorer.watches = [run_events]
    out = run_yaml.parent / "out"
    result = _run("diagnose", run_yaml, "--scorer", target, "--out", out)
    assert result.exit_code == 0, result.output
    assert "reverse_kl under answer" in result.stdout
    assert " is[ 12]\\n" in result.stdout
    assert f"Files are in {out}" in result.stdout
    assert "targeted rollouts" in result.stderr
    assert (out / "summary.json").exists()


def test_a_run_that_failed_ends_with_1(target: str, scorer: Scorer, run_yaml: Path, run_events: Events) -> None:
    """With the scorer's reason, and no file that looks finished."""
    failed = scorer_pb2.RunFinished(state=scorer_pb2.RUN_STATE_FAILED, error="the generators are gone")
    scorer.watches = [[*run_events[:3], scorer_pb2.WatchRunResponse(sequence=3, finished=failed)]]
    out = run_yaml.parent / "out"
    result = _run("diagnose", run_yaml, "--scorer", target, "--out", out, "--run-id", "mine")
    assert result.exit_code == 1
    assert "run mine was not finished but is failed: the generators are gone" in result.stderr
    assert not (out / "summary.json").exists()


def test_violations_stand_on_lines_of_their_own(
    target: str, scorer: Scorer, run_yaml: Path, make_status: Callable[..., Any]
) -> None:
    """The scorer's refusal of settings is shown in full."""
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="settings.verifier", description="unknown verifier `numbr`; known: exact, number"
    )
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    scorer.refusal = make_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "wrong", bad)
    result = _run("diagnose", run_yaml, "--scorer", target, "--out", run_yaml.parent / "out")
    assert result.exit_code == 1
    assert "Error: verifier: unknown verifier `numbr`; known: exact, number\n" in result.stderr


def test_an_output_that_cannot_be_written_is_said_so(target: str, evidence: Path) -> None:
    """No traceback for a wrong path."""
    result = _run("score", evidence, "--scorer", target, "--out", evidence.parent / "none" / "a.jsonl")
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


def test_scored_evidence_is_written(
    target: str, scorer: Scorer, evidence: Path, pack_alignments: Callable[..., Any]
) -> None:
    """One line for every node, teacher and objective."""
    scorer.evidence = [scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", "reverse_kl", [0])])]
    out = evidence.parent / "out.jsonl"
    result = _run("score", evidence, "--scorer", target, "--out", out, "--objectives", "reverse_kl", "--delta", "0.1")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["objective"] for line in out.read_text().splitlines()] == ["reverse_kl"]
    settings = scorer.requests[0][0].settings
    assert (list(settings.objectives), settings.judgement.delta) == (["reverse_kl"], 0.1)
    assert not settings.judgement.HasField("confidence")


def test_bad_lines_are_named_and_good_ones_scored(
    target: str, scorer: Scorer, evidence: Path, pack_alignments: Callable[..., Any]
) -> None:
    """Refused by the client or by the scorer, by line and field; the exit code is 1."""
    good = json.dumps(EVIDENCE)
    evidence.write_text(f"{good}\n{{}}\n{good}\n")
    refusal = scorer_pb2.EvidenceRefusal(node_index=1, field="candidate_student_probs[0]", description="is wrong")
    scorer.evidence = [
        scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", "a", [0])], refusals=[refusal])
    ]
    out = evidence.parent / "out.jsonl"
    result = _run("score", evidence, "--scorer", target, "--out", out)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("line 2: question_id: is missing; rollout_id: is missing")
    assert lines[1] == "line 3: candidates[0].student_prob: is wrong"
    assert "2 lines" in lines[2]
    assert len(out.read_text().splitlines()) == 1


def test_evidence_without_nodes_ends_with_1(target: str, evidence: Path) -> None:
    """An empty file is a mistake."""
    evidence.write_text("\n")
    result = _run("score", evidence, "--scorer", target, "--out", evidence.parent / "out.jsonl")
    assert result.exit_code == 1
    assert "has no nodes" in result.stderr


# A shell that runs tests in the background lets them ignore Ctrl-C, and their children too.
COMMAND = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from opdscope.cli import main
main()
"""


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


@pytest.mark.parametrize("command", ["diagnose", "score"])
def test_a_scorer_that_is_not_there_ends_with_1(run_yaml: Path, evidence: Path, command: str) -> None:
    """As a process: a clear message, no traceback."""
    subject = run_yaml if command == "diagnose" else evidence
    arguments = _command(command, subject, "--scorer", "127.0.0.1:1", "--out", run_yaml.parent / "out.x")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Error: no scorer answers at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_says_how_to_go_on(target: str, scorer: Scorer, run_yaml: Path, run_events: Events) -> None:
    """The run goes on at the scorer; the exit code is that of an interrupted command."""
    over = threading.Event()
    scorer.watches = [[run_events[0], lambda: over.wait(60)]]
    out = run_yaml.parent / "out"
    process = subprocess.Popen(
        _command("diagnose", run_yaml, "--scorer", target, "--out", out, "--run-id", "mine"),
        stderr=subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
    )
    try:
        while not any(path.read_text() for path in out.glob("rollouts.*")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        over.set()
    assert process.returncode == 130
    assert f"Run mine goes on at {target}" in stderr
    assert "Traceback" not in stderr
