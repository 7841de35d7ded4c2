"""ScorerService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

from grpc import aio
from opdscope.v1 import scorer_pb2, scorer_pb2_grpc
from opdscope_serving.errors import InvalidRequest, Loading, NotConfigured

from opdscope_scorer import convert
from opdscope_scorer.capabilities import capabilities
from opdscope_scorer.evidence_stream import EvidenceStream

if TYPE_CHECKING:  # importing them loads transformers, which scoring evidence does without
    from opdscope_scorer.runs import Runs
    from opdscope_scorer.student import Student

Context: TypeAlias = aio.ServicerContext[Any, Any]


class ScorerService(scorer_pb2_grpc.ScorerServiceServicer):
    """Answers what needs no student at once, and the rest when `use` has been called."""

    def __init__(self, *, configured: bool) -> None:
        """Serve; `configured` tells whether a student will come."""
        self._configured = configured
        self._student: Student | None = None
        self._loaded_runs: Runs | None = None

    def use(self, student: "Student", runs: "Runs") -> None:
        """Serve this student's runs from now on."""
        self._student, self._loaded_runs = student, runs

    async def GetStudent(
        self, request: scorer_pb2.GetStudentRequest, context: Context
    ) -> scorer_pb2.GetStudentResponse:
        """Describe the student."""
        loaded = self._ready()[0].loaded
        return scorer_pb2.GetStudentResponse(
            model_id=loaded.model_id,
            weights_version=loaded.weights_version,
            tokenizer_fingerprint=loaded.tokenizer_fingerprint,
            vocabulary_size=loaded.vocabulary_size,
            context_length=loaded.context_length,
            dtype=loaded.dtype,
        )

    async def ListCapabilities(
        self, request: scorer_pb2.ListCapabilitiesRequest, context: Context
    ) -> scorer_pb2.ListCapabilitiesResponse:
        """List what a run may name."""
        return capabilities()

    async def ValidateRun(
        self, request: scorer_pb2.ValidateRunRequest, context: Context
    ) -> scorer_pb2.ValidateRunResponse:
        """Check settings and questions."""
        settings = convert.run_settings(request.settings)
        questions = convert.questions(request.questions, settings)
        if self._loaded_runs is None:
            return scorer_pb2.ValidateRunResponse(checked_against_student=False)
        await self._loaded_runs.check_lengths(questions, settings)
        return scorer_pb2.ValidateRunResponse(checked_against_student=True)

    async def CreateRun(self, request: scorer_pb2.CreateRunRequest, context: Context) -> scorer_pb2.CreateRunResponse:
        """Create a run, or return the one that is there."""
        run = await self._runs().create(request.run_id, request.settings)
        return scorer_pb2.CreateRunResponse(run=convert.run_message(run))

    async def AddQuestions(
        self, request: AsyncIterator[scorer_pb2.AddQuestionsRequest], context: Context
    ) -> scorer_pb2.AddQuestionsResponse:
        """Add questions, message by message."""
        runs, run_id = self._runs(), None
        added = total = 0
        async for message in request:
            if run_id not in {None, message.run_id}:
                raise InvalidRequest.field("run_id", f"must be {run_id!r} in all messages, not {message.run_id!r}")
            run_id = message.run_id
            new, total = await runs.add_questions(run_id, message.questions, seal=message.seal)
            added += new
        if run_id is None:
            raise InvalidRequest.field("run_id", "the stream has no message")
        return scorer_pb2.AddQuestionsResponse(added=added, total=total)

    async def WatchRun(
        self, request: scorer_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[scorer_pb2.WatchRunResponse]:
        """Stream events."""
        async for event in self._runs().watch(request.run_id, request.after_sequence):
            yield event

    async def GetRun(self, request: scorer_pb2.GetRunRequest, context: Context) -> scorer_pb2.GetRunResponse:
        """Return a run."""
        return scorer_pb2.GetRunResponse(run=convert.run_message(await self._runs().get(request.run_id)))

    async def ListRuns(self, request: scorer_pb2.ListRunsRequest, context: Context) -> scorer_pb2.ListRunsResponse:
        """Return all runs."""
        return scorer_pb2.ListRunsResponse(runs=map(convert.run_message, await self._runs().list_runs()))

    async def CancelRun(self, request: scorer_pb2.CancelRunRequest, context: Context) -> scorer_pb2.CancelRunResponse:
        """Stop a run."""
        return scorer_pb2.CancelRunResponse(run=convert.run_message(await self._runs().cancel(request.run_id)))

    async def DeleteRun(self, request: scorer_pb2.DeleteRunRequest, context: Context) -> scorer_pb2.DeleteRunResponse:
        """Delete a run."""
        await self._runs().delete(request.run_id)
        return scorer_pb2.DeleteRunResponse()

    async def ScoreEvidence(
        self, request: AsyncIterator[scorer_pb2.ScoreEvidenceRequest], context: Context
    ) -> AsyncIterator[scorer_pb2.ScoreEvidenceResponse]:
        """Score evidence, set by set."""
        stream: EvidenceStream | None = None
        flushed = True
        async for message in request:
            if stream is None:
                stream = EvidenceStream(message.settings)
            elif message.HasField("settings"):
                raise InvalidRequest.field("settings", "must be in the first message only")
            stream.add(message.nodes)
            flushed = message.flush
            if message.flush:
                for response in await asyncio.to_thread(stream.flush):
                    yield response
        if stream and not flushed:
            for response in await asyncio.to_thread(stream.flush):
                yield response

    def _runs(self) -> "Runs":
        return self._ready()[1]

    def _ready(self) -> "tuple[Student, Runs]":
        if not self._configured:
            raise NotConfigured("this scorer was started without a student (--model); it only scores evidence")
        if self._student is None or self._loaded_runs is None:
            raise Loading("the student is still being loaded")
        return self._student, self._loaded_runs
