"""Files of a finished run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import opdscope
import pyarrow.parquet as pq
import pytest
from opdscope import RunFile
from opdscope._evidence import EvidenceFile
from opdscope._parquet import COLUMNS
from opdscope._results import RunWriter, replacing
from opdscope.v1 import scorer_pb2

Scorer = Any  # ScriptedScorer of conftest.py, which tests cannot import
Events = list[scorer_pb2.WatchRunResponse]


@pytest.fixture
def events(target: str, scorer: Scorer, run_events: Events) -> list[opdscope.RunEvent]:
    """What the SDK makes of a run."""
    scorer.watches = [run_events]
    with opdscope.Client(target) as client, client.watch_run("run") as stream:
        return list(stream)


def _writer(directory: Path, run_yaml: Path) -> RunWriter:
    student = opdscope.Student(
        model_id="tiny", weights_version="1", tokenizer_fingerprint="f", vocabulary_size=9, context_length=9, dtype="d"
    )
    return RunWriter(directory, RunFile.load(run_yaml), run_id="run-1", student=student)


@pytest.fixture
def out(tmp_path: Path, run_yaml: Path, events: list[opdscope.RunEvent]) -> Path:
    """The directory of a finished run."""
    directory = tmp_path / "deep" / "out"
    with _writer(directory, run_yaml) as writer:
        for event in events:
            writer.add(event)
        finished = events[-1]
        assert isinstance(finished, opdscope.RunFinished)
        writer.finish(finished)
    return directory


def test_a_finished_run_has_these_files(out: Path) -> None:
    """And no half ones."""
    names = ["alignments.parquet", "evidence.jsonl", "rollouts.jsonl", "run.yaml", "summary.json"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_alignments_have_the_documented_columns(out: Path) -> None:
    """One row for every node, teacher and objective, with text and depth of the token; null for what does not exist."""
    table = pq.read_table(out / "alignments.parquet")
    assert table.column_names == list(COLUMNS)
    assert all(field.metadata[b"description"] for field in table.schema)
    helps, missing = table.to_pylist()
    assert (helps["alignment"], helps["status"], helps["token_text"], helps["taken_token_id"]) == (
        0.5,
        "helps",
        " 12",
        7,
    )
    assert (helps["entropy_nats"], helps["divergence_nats"], helps["depth"]) == (0.9, 0.2, 1 / 3)
    assert (missing["plug_in"], missing["status"], missing["rollout_success"]) == (None, "undetermined", True)


def test_the_nodes_can_be_read_as_evidence(out: Path) -> None:
    """`opdscope score` takes what `opdscope diagnose` writes."""
    file = EvidenceFile(out / "evidence.jsonl")
    (node,) = file
    assert file.bad_lines == []
    assert [candidate.text for candidate in node.candidates] == [" 12", "."]
    assert node.tail is not None
    assert node.tail.sum_sq_prob == 0.001


def test_rollouts_are_kept_with_their_tokens(out: Path) -> None:
    """One JSON object a line."""
    (line,) = (out / "rollouts.jsonl").read_text().splitlines()
    data = json.loads(line)
    assert (data["rollout_id"], data["success"], data["finish_reason"]) == ("q1/0", True, "stop_string")
    assert "".join(data["token_texts"]) == " is 12\n"


def test_the_summary_says_what_it_is_about(out: Path) -> None:
    """Run, student, cost and pooled alignments."""
    data = json.loads((out / "summary.json").read_text())
    assert (data["run_id"], data["state"], data["student"]["model_id"]) == ("run-1", "done", "tiny")
    assert (data["rollouts"], data["successes"], data["nodes"], data["spent"]["rollouts"]) == (1, 1, 1, 17)
    assert data["pooled"][0]["scope"] == "these_nodes"
    assert data["policy_mismatch_mean_nats"] is None


def test_the_run_can_be_repeated_from_its_own_file(out: Path, run_yaml: Path) -> None:
    """`run.yaml` is the same run."""
    assert RunFile.load(out / "run.yaml").run_id == RunFile.load(run_yaml).run_id


def test_a_crash_keeps_what_came(tmp_path: Path, run_yaml: Path, events: list[opdscope.RunEvent]) -> None:
    """Events are on disk as they come, under names that say that the run is not finished."""
    out = tmp_path / "out"
    writer = _writer(out, run_yaml)
    with writer:
        for event in events[:3]:
            writer.add(event)
        assert (out / "rollouts.jsonl.partial").read_text().count("\n") == 1
        assert (out / "evidence.jsonl.partial").read_text().count("\n") == 1
    assert sorted(path.suffix for path in out.iterdir()) == [".partial"] * 3


def test_an_earlier_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """A file is replaced at once or not at all."""
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with contextlib.suppress(ValueError), replacing(path) as file:
        file.write("half")
        raise ValueError
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
