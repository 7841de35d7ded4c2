"""The synchronous SDK: one client is one channel to one scorer."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opdscope import _convert
from opdscope._channel import SCORER_SERVICE, batches, open_channel
from opdscope._errors import (
    InvalidRequestError,
    OpdscopeError,
    RunNotFoundError,
    ServerError,
    UnavailableError,
    from_rpc_error,
)
from opdscope._questions import Question
from opdscope._runfile import RunFile
from opdscope._streams import EventStream, EvidenceStream
from opdscope._types import Capabilities, EvidenceNode, QuestionsAdded, Run, RunState, Student
from opdscope.v1 import scorer_pb2, scorer_pb2_grpc

_POLL_SECONDS = 0.2
_HEALTH_SECONDS = 5.0
EVIDENCE_SET_SIZE = 4096
"""Nodes of evidence that are scored as one set."""


class Client:
    """Calls a scorer. Use it as a context manager, or `close` it.

    Args:
        target: `HOST:PORT` of the scorer.
        timeout: Deadline of a unary call, in seconds.
        stream_timeout: Deadline of a stream, in seconds; a watched run goes on after it.
        patience: How long a broken stream of events is tried to be resumed, in seconds.

    Every method raises an `OpdscopeError`: `UnavailableError` if no scorer answers, others as they say.
    """

    def __init__(
        self, target: str, *, timeout: float = 60.0, stream_timeout: float = 3600.0, patience: float = 60.0
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._stream_timeout = stream_timeout
        self._patience = patience
        self._channel = open_channel(target)
        self._stub = scorer_pb2_grpc.ScorerServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls that are under way end."""
        self._channel.close()

    def get_student(self) -> Student:
        """The model that the scorer diagnoses.

        Raises:
            NotConfiguredError: if the scorer has none.
        """
        return _convert.student(self._call(self._stub.GetStudent, scorer_pb2.GetStudentRequest()))

    def list_capabilities(self) -> Capabilities:
        """What a run may name: objectives, contexts, verifiers, node selectors. Needs no student."""
        return _convert.capabilities(self._call(self._stub.ListCapabilities, scorer_pb2.ListCapabilitiesRequest()))

    def validate_run(self, run_file: RunFile) -> bool:
        """Check settings and questions without starting anything; returns whether a student was there to check against.

        Raises:
            InvalidRequestError: naming every field that is wrong.
        """
        settings = _convert.run_settings(run_file)
        checked, first = True, 0
        for batch in batches(map(_convert.question_message, run_file.selected_questions)):
            request = scorer_pb2.ValidateRunRequest(settings=settings, questions=batch)
            try:
                checked = checked and self._call(self._stub.ValidateRun, request).checked_against_student
            except InvalidRequestError as error:
                raise _renumbered(error, first) from error
            first += len(batch)
        return checked

    def create_run(self, run_id: str, run_file: RunFile) -> Run:
        """Create a run, or return the one with this id and these settings.

        Raises:
            RunExistsError: if the run that has this id has other settings.
        """
        request = scorer_pb2.CreateRunRequest(run_id=run_id, settings=_convert.run_settings(run_file))
        return _convert.run(self._call(self._stub.CreateRun, request).run)

    def add_questions(self, run_id: str, questions: Iterable[Question], *, seal: bool = False) -> QuestionsAdded:
        """Add questions to a run, which starts to work on them at once. Idempotent by question id.

        Args:
            run_id: Run to be extended.
            questions: Sent in batches.
            seal: No more will follow: the run is done when all its questions are.
        """
        requests = self._question_batches(run_id, questions, seal=seal)
        response = self._call(self._stub.AddQuestions, requests, timeout=self._stream_timeout)
        return QuestionsAdded(added=response.added, total=response.total)

    def watch_run(self, run_id: str, *, after_sequence: int = 0) -> EventStream:
        """The events of a run after `after_sequence`, until the run ends. Use it as a context manager."""
        watch = partial(self._stub.WatchRun, timeout=self._stream_timeout)
        return EventStream(
            watch, run_id=run_id, after_sequence=after_sequence, target=self.target, patience_seconds=self._patience
        )

    def get_run(self, run_id: str) -> Run:
        """The state of a run."""
        return _convert.run(self._call(self._stub.GetRun, scorer_pb2.GetRunRequest(run_id=run_id)).run)

    def list_runs(self) -> tuple[Run, ...]:
        """All runs, newest first."""
        return tuple(_convert.run(run) for run in self._call(self._stub.ListRuns, scorer_pb2.ListRunsRequest()).runs)

    def cancel_run(self, run_id: str) -> Run:
        """Stop a run for good; what it has found stays. Idempotent."""
        return _convert.run(self._call(self._stub.CancelRun, scorer_pb2.CancelRunRequest(run_id=run_id)).run)

    def delete_run(self, run_id: str) -> None:
        """Delete a run that is not running, with all it has found."""
        self._call(self._stub.DeleteRun, scorer_pb2.DeleteRunRequest(run_id=run_id))

    def score_evidence(
        self,
        nodes: Iterable[EvidenceNode],
        *,
        objectives: Iterable[str] = (),
        confidence: float | None = None,
        delta: float | None = None,
        set_size: int = EVIDENCE_SET_SIZE,
    ) -> EvidenceStream:
        """Alignments from the caller's own outcomes. Use it as a context manager.

        Args:
            nodes: Read on another thread while results are read here.
            objectives: None: every objective that needs no more than the evidence has.
            confidence: Coverage that intervals aim at, in (0, 1); default of the scorer.
            delta: Alignments within ±delta count as neutral; default of the scorer.
            set_size: Nodes that are scored as one set.
        """
        return EvidenceStream(
            partial(self._stub.ScoreEvidence, timeout=self._stream_timeout),
            nodes=nodes,
            settings=_convert.evidence_settings(objectives, confidence, delta),
            set_size=set_size,
            target=self.target,
        )

    def diagnose(self, run_file: RunFile, *, run_id: str | None = None, restart: bool = False) -> EventStream:
        """Validate a run, create it, add its questions and watch it. Use it as a context manager.

        A run that is there already is joined: all its events come, what is missing is computed.

        Args:
            run_file: What to diagnose.
            run_id: Default: `run_file.run_id`, which is made of the content.
            restart: Delete a run of this id that failed or was cancelled, and start again.
        """
        run_id = run_id or run_file.run_id
        if not self._exists(run_id):
            self.validate_run(run_file)  # so that no run is left behind when a question is wrong
        run = self.create_run(run_id, run_file)
        if restart and run.state in {RunState.FAILED, RunState.CANCELLED}:
            self.delete_run(run_id)
            run = self.create_run(run_id, run_file)
        if run.state is RunState.RUNNING:
            self.add_questions(run_id, run_file.selected_questions, seal=True)
        return self.watch_run(run_id)

    def _exists(self, run_id: str) -> bool:
        try:
            self.get_run(run_id)
        except RunNotFoundError:
            return False
        return True

    def wait_ready(self, timeout: float) -> None:
        """Return as soon as the scorer is ready.

        Raises:
            UnavailableError: if it is not after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while (reason := self._not_ready()) is not None:
            if time.monotonic() > end:
                raise reason
            time.sleep(_POLL_SECONDS)

    def _not_ready(self) -> OpdscopeError | None:
        request = health_pb2.HealthCheckRequest(service=SCORER_SERVICE)
        try:
            response = self._health.Check(request, timeout=min(_HEALTH_SECONDS, self._timeout))
        except grpc.RpcError as error:
            reason = from_rpc_error(error, self.target)
            if not isinstance(reason, UnavailableError):
                raise ServerError(f"the server at {self.target} is no scorer: {reason}") from error
            return reason
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return None
        return UnavailableError(f"the scorer at {self.target} is not ready: it is loading or shutting down")

    def _call(self, method: Callable[..., Any], request: object, timeout: float | None = None) -> Any:  # noqa: ANN401 - stubs are untyped
        try:
            return method(request, timeout=timeout or self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error

    @staticmethod
    def _question_batches(
        run_id: str, questions: Iterable[Question], *, seal: bool
    ) -> Iterator[scorer_pb2.AddQuestionsRequest]:
        for batch in batches(map(_convert.question_message, questions)):
            yield scorer_pb2.AddQuestionsRequest(run_id=run_id, questions=batch)
        yield scorer_pb2.AddQuestionsRequest(run_id=run_id, seal=seal)


def _renumbered(error: InvalidRequestError, first: int) -> InvalidRequestError:
    """Violations of a batch of questions, numbered as in the run file."""
    violations = {
        re.sub(r"\bquestions\[(\d+)\]", lambda match: f"questions[{int(match[1]) + first}]", field): description
        for field, description in error.violations.items()
    }
    return InvalidRequestError(error.args[0], violations)
