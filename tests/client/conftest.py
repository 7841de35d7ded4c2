# ruff: noqa: D102 - the servicer takes whatever arrives
"""A scorer on loopback that sends the real messages a test chooses, and the messages of a small run."""

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opdscope.v1 import alignment_pb2, generator_pb2, scorer_pb2, scorer_pb2_grpc

NAN = float("nan")


def rich_status(code: grpc.StatusCode, reason: str, message: str, *details: Message) -> status_pb2.Status:
    """A status as the servers send it."""
    packed = []
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="opdscope"), *details):
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


class ScriptedScorer(scorer_pb2_grpc.ScorerServiceServicer):
    """Answers with what a test has put into it, and keeps what it was asked."""

    def __init__(self) -> None:
        self.refusal: status_pb2.Status | None = None
        self.before: Callable[[Any, grpc.ServicerContext], None] = lambda _request, _context: None
        self.known_runs = {"a"}
        self.runs: list[scorer_pb2.Run] = []
        self.watches: list[list[scorer_pb2.WatchRunResponse | status_pb2.Status | Callable[[], object]]] = []
        self.evidence: list[scorer_pb2.ScoreEvidenceResponse] = []
        self.requests: list[Any] = []
        self.deadlines: list[float | None] = []
        self.contexts: list[grpc.ServicerContext] = []

    def _take(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.contexts.append(context)
        self.before(request, context)
        if self.refusal is not None:
            context.abort_with_status(rpc_status.to_status(self.refusal))

    def GetStudent(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.GetStudentResponse:
        self._take(request, context)
        return scorer_pb2.GetStudentResponse(model_id="tiny", vocabulary_size=11, context_length=64, dtype="float64")

    def ValidateRun(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.ValidateRunResponse:
        self._take(request, context)
        return scorer_pb2.ValidateRunResponse(checked_against_student=True)

    def CreateRun(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.CreateRunResponse:
        self._take(request, context)
        run = self.runs.pop(0) if self.runs else scorer_pb2.Run(state=scorer_pb2.RUN_STATE_RUNNING)
        run.run_id = request.run_id
        return scorer_pb2.CreateRunResponse(run=run)

    def AddQuestions(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.AddQuestionsResponse:
        batches = list(request)
        self._take(batches, context)
        count = sum(len(batch.questions) for batch in batches)
        return scorer_pb2.AddQuestionsResponse(added=count, total=count)

    def WatchRun(self, request: Any, context: grpc.ServicerContext) -> Iterator[scorer_pb2.WatchRunResponse]:
        self._take(request, context)
        for step in self.watches.pop(0):
            if isinstance(step, status_pb2.Status):
                context.abort_with_status(rpc_status.to_status(step))
            elif callable(step):
                step()
            else:
                yield step

    def GetRun(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.GetRunResponse:
        self._take(request, context)
        if request.run_id not in self.known_runs:
            unknown = rich_status(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "no such run")
            context.abort_with_status(rpc_status.to_status(unknown))
        run = scorer_pb2.Run(run_id=request.run_id, state=scorer_pb2.RUN_STATE_DONE)
        return scorer_pb2.GetRunResponse(run=run)

    def ListRuns(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.ListRunsResponse:
        self._take(request, context)
        return scorer_pb2.ListRunsResponse(runs=[scorer_pb2.Run(run_id="a", state=scorer_pb2.RUN_STATE_FAILED)])

    def CancelRun(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.CancelRunResponse:
        self._take(request, context)
        run = scorer_pb2.Run(run_id=request.run_id, state=scorer_pb2.RUN_STATE_CANCELLED)
        return scorer_pb2.CancelRunResponse(run=run)

    def DeleteRun(self, request: Any, context: grpc.ServicerContext) -> scorer_pb2.DeleteRunResponse:
        self._take(request, context)
        return scorer_pb2.DeleteRunResponse()

    def ScoreEvidence(self, request: Any, context: grpc.ServicerContext) -> Iterator[scorer_pb2.ScoreEvidenceResponse]:
        self._take(list(request), context)
        yield from self.evidence


@pytest.fixture
def scorer() -> ScriptedScorer:
    """What the server at `target` answers with."""
    return ScriptedScorer()


@pytest.fixture
def target(scorer: ScriptedScorer) -> Iterator[str]:
    """Address of a real gRPC server that is ready."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    scorer_pb2_grpc.add_ScorerServiceServicer_to_server(scorer, server)
    state = health.HealthServicer()
    state.set("opdscope.v1.ScorerService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def alignments(teacher: str, objective: str, node_indices: list[int], **arrays: list[Any]) -> alignment_pb2.Alignments:
    """Packed alignments; what is not given does not exist."""
    count = len(node_indices)
    doubles = {
        field.name: [NAN] * count
        for field in alignment_pb2.Alignments.DESCRIPTOR.fields
        if field.type == field.TYPE_DOUBLE
    }
    enums = {
        "status": [alignment_pb2.ALIGNMENT_STATUS_UNDETERMINED] * count,
        "support": [alignment_pb2.SUPPORT_FULL_VOCABULARY] * count,
    }
    return alignment_pb2.Alignments(
        teacher=teacher, objective=objective, node_indices=node_indices, **{**doubles, **enums, **arrays}
    )


@pytest.fixture
def pack_alignments() -> Callable[..., alignment_pb2.Alignments]:
    """Builds packed alignments."""
    return alignments


@pytest.fixture
def make_status() -> Callable[..., status_pb2.Status]:
    """Builds statuses as the servers send them."""
    return rich_status


def _node() -> alignment_pb2.EvidenceNode:
    return alignment_pb2.EvidenceNode(
        question_id="q1",
        rollout_id="q1/0",
        position=1,
        taken_token_id=7,
        rollout_success=True,
        candidate_token_ids=[7, 8],
        candidate_student_probs=[0.7, 0.25],
        candidate_successes=[6, 1],
        candidate_trials=[8, 0],
        candidate_known=[False, True],
        tail=alignment_pb2.EvidenceTail(student_prob=0.05, successes=0, trials=8, sum_sq_prob=0.001),
        teachers=[alignment_pb2.TeacherProbs(teacher="answer", candidate_probs=[0.5, 0.4], tail_prob=0.1)],
    )


@pytest.fixture
def run_events() -> list[scorer_pb2.WatchRunResponse]:
    """Everything that a scorer says about a run of one rollout with one node."""
    helps = alignments(
        "answer",
        "reverse_kl",
        [0],
        plug_in=[0.4],
        alignment=[0.5],
        low=[0.2],
        high=[0.8],
        numerator=[0.1],
        numerator_se=[0.02],
        status=[alignment_pb2.ALIGNMENT_STATUS_HELPS],
    )
    rollout = scorer_pb2.RolloutFinished(
        question_id="q1",
        rollout_id="q1/0",
        token_ids=[5, 7, 9],
        token_texts=[" is", " 12", "\n"],
        text=" is 12",
        success=True,
        finish_reason=generator_pb2.FINISH_REASON_STOP_STRING,
    )
    scored = scorer_pb2.RolloutScored(
        question_id="q1",
        rollout_id="q1/0",
        nodes=[_node()],
        entropy_nats=[0.9],
        divergence_nats=[0.2],
        alignments=[helps, alignments("answer", "forward_kl", [0])],
        candidate_texts=[" 12", "."],
    )
    pooled = scorer_pb2.PooledAlignment(
        teacher="answer",
        objective="reverse_kl",
        correctness=scorer_pb2.CORRECTNESS_CORRECT,
        pooled=0.5,
        pooled_low=0.2,
        pooled_high=0.8,
        scope=scorer_pb2.INTERVAL_SCOPE_THESE_NODES,
        mean_plug_in=0.4,
        nodes=1,
        helps=1,
    )
    spent = scorer_pb2.Spent(rollouts=17, generated_tokens=90)
    return [
        scorer_pb2.WatchRunResponse(sequence=1, rollout=rollout),
        scorer_pb2.WatchRunResponse(progress=scorer_pb2.Progress(questions=1, activity="targeted rollouts")),
        scorer_pb2.WatchRunResponse(sequence=2, scored=scored),
        scorer_pb2.WatchRunResponse(
            sequence=3,
            question=scorer_pb2.QuestionFinished(question_id="q1", rollouts=1, successes=1, spent=spent),
        ),
        scorer_pb2.WatchRunResponse(
            sequence=4,
            finished=scorer_pb2.RunFinished(state=scorer_pb2.RUN_STATE_DONE, pooled=[pooled], spent=spent),
        ),
    ]


RUN_YAML = """\
student: {model: some/folder}
teachers:
  - {name: answer, context: answer}
objectives: [reverse_kl, forward_kl]
questions:
  - {id: q1, question: "How many?", answer: 12}
verifier: number
"""


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    """Path of a run file that is right."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN_YAML)
    return path
