"""The synchronous SDK against a real gRPC server."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import opdscope
import pytest
from google.rpc import error_details_pb2
from opdscope import Candidate, EvidenceNode, Question, RunFile, RunState, Tail
from opdscope.v1 import scorer_pb2, scorer_pb2_grpc

Scorer = Any  # ScriptedScorer of conftest.py, which tests cannot import
Events = list[scorer_pb2.WatchRunResponse]


def _sequences(events: Iterator[Any]) -> list[int]:
    return [event.sequence for event in events]


@pytest.fixture
def client(target: str) -> Iterator[opdscope.Client]:
    """A client of the scripted scorer."""
    with opdscope.Client(target, timeout=20.0, patience=10.0) as client:
        yield client


@pytest.fixture
def run_file(run_yaml: Path) -> RunFile:
    """A run of one question."""
    return RunFile.load(run_yaml)


def _node(position: int) -> EvidenceNode:
    candidate = Candidate(token_id=1, student_prob=0.9, successes=1, trials=2, teacher_probs={"t": 0.5})
    tail = Tail(student_prob=0.1, successes=0, trials=2, teacher_probs={"t": 0.5})
    return EvidenceNode(question_id="q", rollout_id="q/0", position=position, candidates=(candidate,), tail=tail)


def test_every_rpc_of_the_scorer_has_a_method() -> None:
    """The SDK leaves out no RPC of the descriptor."""
    service = scorer_pb2.DESCRIPTOR.services_by_name["ScorerService"]
    names = [re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower() for method in service.methods]
    assert [name for name in names if not callable(getattr(opdscope.Client, name, None))] == []


def test_every_call_has_a_deadline(
    client: opdscope.Client, scorer: Scorer, run_file: RunFile, run_events: Events
) -> None:
    """No call can hang for ever."""
    scorer.watches = [run_events]
    client.get_student()
    client.get_run("a")
    client.list_runs()
    client.cancel_run("a")
    client.delete_run("a")
    with client.diagnose(run_file) as events:
        assert _sequences(events) == [1, 0, 2, 3, 4]
    with client.score_evidence([_node(0)]) as results:
        assert list(results) == []
    assert len(scorer.deadlines) == 11
    assert [deadline for deadline in scorer.deadlines if deadline is None or not 0 < deadline < 3700] == []


def test_a_broken_stream_is_resumed_exactly_once(
    client: opdscope.Client, scorer: Scorer, run_events: Events, make_status: Callable[..., Any]
) -> None:
    """After a break the watch goes on behind the last event, and an event that comes twice is shown once."""
    draining = make_status(grpc.StatusCode.UNAVAILABLE, "DRAINING", "shutting down")
    first, progress, second, third, last = run_events
    scorer.watches = [[first, progress, second, draining], [draining], [second, third, last]]
    with client.watch_run("run") as events:
        assert _sequences(events) == [1, 0, 2, 3, 4]
    assert [request.after_sequence for request in scorer.requests] == [0, 2, 2]


def test_a_restarted_server_is_found_again(scorer: Scorer, run_events: Events) -> None:
    """The stream survives the end of the server's process: another one at the same address goes on."""
    serve = _serve(scorer)
    target = next(serve)
    scorer.watches = [[*run_events[:1], lambda: threading.Event().wait(60)], run_events[2:]]
    with opdscope.Client(target) as client, client.watch_run("run") as events:
        assert next(events).sequence == 1
        next(serve)
        assert _sequences(events) == [2, 3, 4]


def _serve(scorer: Scorer) -> Iterator[str]:
    port = 0
    for _ in range(2):
        server = grpc.server(futures.ThreadPoolExecutor(), options=[("grpc.so_reuseport", 0)])
        scorer_pb2_grpc.add_ScorerServiceServicer_to_server(scorer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_a_missing_event_is_an_error(client: opdscope.Client, scorer: Scorer, run_events: Events) -> None:
    """A gap in the sequence numbers is never passed over."""
    scorer.watches = [[run_events[0], run_events[3]]]
    with client.watch_run("run") as events, pytest.raises(opdscope.ServerError, match=r"event 3 .* after event 1"):
        list(events)


def test_a_refused_watch_is_not_repeated(
    client: opdscope.Client, scorer: Scorer, make_status: Callable[..., Any]
) -> None:
    """Only a broken transport is a reason to resume."""
    scorer.refusal = make_status(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "no run has the id `run`")
    with client.watch_run("run") as events, pytest.raises(opdscope.RunNotFoundError, match="no run has the id"):
        next(events)
    assert len(scorer.requests) == 1


def test_a_lost_scorer_is_given_up(target: str, scorer: Scorer, make_status: Callable[..., Any]) -> None:
    """When patience ends the last reason is raised."""
    scorer.watches = [[make_status(grpc.StatusCode.UNAVAILABLE, "ENGINE_DOWN", "no generator answers")]] * 50
    with (
        opdscope.Client(target, patience=0.2) as client,
        client.watch_run("run") as events,
        pytest.raises(opdscope.UnavailableError, match="no generator answers"),
    ):
        next(events)


def test_leaving_the_block_cancels_the_stream(client: opdscope.Client, scorer: Scorer, run_events: Events) -> None:
    """The server is told at once that nobody listens any more."""
    cancelled = threading.Event()
    scorer.watches = [
        [lambda: scorer.contexts[0].add_callback(cancelled.set), run_events[0], lambda: cancelled.wait(40)]
    ]
    with client.watch_run("run") as events:
        next(events)
    assert cancelled.wait(20)
    assert list(events) == []


def test_diagnose_sends_everything_and_seals(
    client: opdscope.Client, scorer: Scorer, run_file: RunFile, run_events: Events
) -> None:
    """The run is validated, created under the id of its content, filled and sealed before it is watched."""
    scorer.watches = [run_events]
    with client.diagnose(run_file) as events:
        kinds = [type(event).__name__ for event in events]
    assert kinds == ["RolloutFinished", "Progress", "RolloutScored", "QuestionFinished", "RunFinished"]
    _, validate, create, questions, watch = scorer.requests
    assert validate.settings == create.settings
    assert create.run_id == watch.run_id == run_file.run_id
    assert [question.answer for batch in questions for question in batch.questions] == ["12"]
    assert [batch.seal for batch in questions] == [False, True]


def test_a_finished_run_is_shown_again(
    client: opdscope.Client, scorer: Scorer, run_file: RunFile, run_events: Events
) -> None:
    """Joining a run that is done checks and adds no questions: its scorer may be busy with it."""
    scorer.known_runs = {run_file.run_id}
    scorer.runs = [scorer_pb2.Run(state=scorer_pb2.RUN_STATE_DONE)]
    scorer.watches = [run_events]
    with client.diagnose(run_file) as events:
        assert _sequences(events) == [1, 0, 2, 3, 4]
    assert [type(request).__name__ for request in scorer.requests][1:] == ["CreateRunRequest", "WatchRunRequest"]


def test_a_cancelled_run_is_started_again_only_if_asked(
    client: opdscope.Client, scorer: Scorer, run_file: RunFile, run_events: Events
) -> None:
    """`restart` deletes what was cancelled; without it the run is shown as it ended."""
    scorer.known_runs = {run_file.run_id}
    scorer.runs = [scorer_pb2.Run(state=scorer_pb2.RUN_STATE_CANCELLED)]
    scorer.watches = [run_events]
    with client.diagnose(run_file, restart=True):
        pass
    names = [type(request).__name__ for request in scorer.requests]
    assert names[1:] == ["CreateRunRequest", "DeleteRunRequest", "CreateRunRequest", "list"]


def test_many_questions_go_in_bounded_batches(client: opdscope.Client, scorer: Scorer, run_file: RunFile) -> None:
    """No message comes near the servers' limits, however many questions there are."""
    questions = tuple(Question(id=str(number), question="x" * 100_000, answer="1") for number in range(40))
    added = client.add_questions("run", questions, seal=True)
    client.validate_run(run_file.model_copy(update={"questions": questions}))
    assert added.total == 40
    sizes = [message.ByteSize() for message in [*scorer.requests[0], *scorer.requests[1:]]]
    assert max(sizes) < 1.1 * 2**20
    assert sum(len(request.questions) for request in scorer.requests[1:]) == 40


def test_a_violation_names_the_question_of_the_run_file(
    client: opdscope.Client, scorer: Scorer, run_file: RunFile, make_status: Callable[..., Any]
) -> None:
    """Batches do not show in the numbers of questions."""
    violation = error_details_pb2.BadRequest.FieldViolation(field="questions[2].question", description="is too long")
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    questions = tuple(Question(id=str(number), question="x" * 300_000, answer="1") for number in range(6))

    def refuse_the_second(request: scorer_pb2.ValidateRunRequest, _context: grpc.ServicerContext) -> None:
        if request.questions[0].id != "0":
            scorer.refusal = make_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "wrong", bad)

    scorer.before = refuse_the_second
    with pytest.raises(opdscope.InvalidRequestError) as caught:
        client.validate_run(run_file.model_copy(update={"questions": questions}))
    assert caught.value.violations == {"questions[5].question": "is too long"}


def test_runs_are_typed(client: opdscope.Client) -> None:
    """States arrive as enums and can be compared as text."""
    (run,) = client.list_runs()
    assert run.state is RunState.FAILED
    assert client.get_run("a").state == "done"
    assert client.cancel_run("a").state is RunState.CANCELLED
    assert client.get_student().vocabulary_size == 11


def test_a_nan_arrives_as_none(client: opdscope.Client, scorer: Scorer, run_events: Events) -> None:
    """What does not exist is None in the SDK, and texts find their candidates."""
    scorer.watches = [run_events]
    with client.watch_run("run") as events:
        scored = next(event for event in events if isinstance(event, opdscope.RolloutScored))
    helps, missing = scored.alignments
    assert (helps.alignment, helps.status, helps.teacher_advantage) == (0.5, "helps", None)
    assert (missing.plug_in, missing.low, missing.status) == (None, None, "undetermined")
    assert [candidate.text for candidate in scored.nodes[0].candidates] == [" 12", "."]
    assert [candidate.known for candidate in scored.nodes[0].candidates] == [False, True]
    assert scored.divergence_nats == ((0.2,),)


def test_evidence_comes_back_in_the_order_of_its_nodes(
    client: opdscope.Client, scorer: Scorer, pack_alignments: Callable[..., Any]
) -> None:
    """Results of several objectives and sets are merged node by node."""
    scorer.evidence = [
        scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", "a", [0, 1])]),
        scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", "b", [1, 0])]),
        scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", objective, [2]) for objective in "ab"]),
        scorer_pb2.ScoreEvidenceResponse(refusals=[scorer_pb2.EvidenceRefusal(node_index=3, field="f")]),
    ]
    with client.score_evidence(map(_node, range(4)), objectives=["a", "b"], set_size=2) as results:
        got = [(result.node_index, getattr(result, "objective", None)) for result in results]
    assert got == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, None)]
    settings, *batches = scorer.requests[0]
    assert list(settings.settings.objectives) == ["a", "b"]
    assert [(len(batch.nodes), batch.flush) for batch in batches] == [(2, True), (2, True)]


def test_evidence_goes_in_bounded_batches(client: opdscope.Client, scorer: Scorer) -> None:
    """A set may be larger than a message."""
    candidate = _node(0).candidates[0]
    wide = replace(_node(0), candidates=tuple(replace(candidate, token_id=token_id) for token_id in range(30_000)))
    with client.score_evidence([wide] * 4) as results:
        assert list(results) == []
    batches = scorer.requests[0]
    assert sum(len(batch.nodes) for batch in batches) == 4
    assert max(batch.ByteSize() for batch in batches) < 2.5 * 2**20


def test_an_error_of_the_callers_nodes_comes_after_the_results(
    client: opdscope.Client, scorer: Scorer, pack_alignments: Callable[..., Any]
) -> None:
    """Nodes before the error are scored, then the caller's own exception is raised."""

    def nodes() -> Iterator[EvidenceNode]:
        yield _node(5)
        raise ValueError("the file ends here")

    scorer.evidence = [scorer_pb2.ScoreEvidenceResponse(alignments=[pack_alignments("t", "a", [0])])]
    with client.score_evidence(nodes()) as results:
        assert next(results).position == 5  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="the file ends here"):
            next(results)


def test_ready_means_that_the_service_serves(client: opdscope.Client) -> None:
    """A server that serves is ready at once."""
    client.wait_ready(timeout=20)


def test_nobody_there_is_unavailable() -> None:
    """The message names the address and says what the system said."""
    with opdscope.Client("127.0.0.1:1") as client:
        with pytest.raises(opdscope.UnavailableError, match=r"no scorer answers at 127\.0\.0\.1:1: .*refused"):
            client.get_student()
        with pytest.raises(opdscope.UnavailableError):
            client.wait_ready(timeout=0.1)
