"""Files of a run. They get their names when the run has ended; until then they end in `.partial`.

`rollouts.jsonl` and `evidence.jsonl` grow as events come, so what came survives a crash.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from opdscope._evidence import node_line
from opdscope._findings import Findings
from opdscope._parquet import AlignmentTable
from opdscope._runfile import RunFile
from opdscope._types import RolloutFinished, RolloutScored, RunEvent, RunFinished, Student

RUN, ROLLOUTS, EVIDENCE = "run.yaml", "rollouts.jsonl", "evidence.jsonl"
ALIGNMENTS, SUMMARY = "alignments.parquet", "summary.json"


class RunWriter:
    """Writes the events of one run into a directory. A context manager: `finish` gives the files their names."""

    def __init__(self, directory: Path, run_file: RunFile, *, run_id: str, student: Student) -> None:
        self.directory = directory
        self.findings = Findings()
        self._run_file = run_file
        self._run_id = run_id
        self._student = student
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._files as files:
            self._rollouts = files.enter_context(self._open(ROLLOUTS))
            self._evidence = files.enter_context(self._open(EVIDENCE))
            teachers = [teacher.name for teacher in self._run_file.teachers]
            self._alignments = files.enter_context(AlignmentTable(_partial(self.directory / ALIGNMENTS), teachers))
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, event: RunEvent) -> None:
        """Write what an event brings."""
        rollout = self.findings.add(event)
        if isinstance(event, RolloutFinished):
            self._rollouts.write(_rollout_line(event) + "\n")
        elif isinstance(event, RolloutScored):
            self._evidence.writelines(node_line(node) + "\n" for node in event.nodes)
            self._alignments.add(event, rollout)

    def finish(self, finished: RunFinished) -> None:
        """Write the rest and give all files their names, the summary last: where it stands, the others are whole."""
        self._files.close()
        write_atomically(self.directory / RUN, self._run_file.resolved_yaml())
        for name in (ROLLOUTS, EVIDENCE, ALIGNMENTS):
            _partial(self.directory / name).replace(self.directory / name)
        write_atomically(
            self.directory / SUMMARY, json.dumps(self._summary(finished), indent=2, allow_nan=False) + "\n"
        )

    def _open(self, name: str) -> IO[str]:
        # Line buffered: a crash loses no event.
        return _partial(self.directory / name).open("w", encoding="utf-8", buffering=1)

    def _summary(self, finished: RunFinished) -> dict[str, Any]:
        findings = self.findings
        return {
            "opdscope_version": version("opdscope"),
            "run_id": self._run_id,
            "state": finished.state,
            "error": finished.error or None,
            "student": dataclasses.asdict(self._student),
            "questions": findings.questions,
            "rollouts": findings.rollouts,
            "successes": findings.successes,
            "nodes": findings.nodes,
            "spent": dataclasses.asdict(finished.spent),
            "policy_mismatch_mean_nats": finished.policy_mismatch_mean_nats,
            "policy_mismatch_max_nats": finished.policy_mismatch_max_nats,
            "pooled": [dataclasses.asdict(pooled) for pooled in finished.pooled],
        }


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when the block ends well; else it stays as `.partial`."""
    with _partial(path).open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _rollout_line(event: RolloutFinished) -> str:
    data = dataclasses.asdict(event)
    del data["sequence"]
    return json.dumps(data, ensure_ascii=False, allow_nan=False)
