"""The one place where transport errors become exceptions."""

from collections.abc import Callable
from typing import Any

import grpc
import opdscope
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from opdscope._errors import BY_REASON
from opdscope.v1 import errors_pb2

Scorer = Any  # ScriptedScorer of conftest.py, which tests cannot import

REASONS = [
    (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", opdscope.InvalidRequestError),
    (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", opdscope.RunNotFoundError),
    (grpc.StatusCode.ALREADY_EXISTS, "RUN_EXISTS", opdscope.RunExistsError),
    (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", opdscope.NotConfiguredError),
    (grpc.StatusCode.FAILED_PRECONDITION, "VOCABULARY_MISMATCH", opdscope.VocabularyMismatchError),
    (grpc.StatusCode.FAILED_PRECONDITION, "WEIGHTS_CHANGED", opdscope.WeightsChangedError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", opdscope.QueueFullError),
    (grpc.StatusCode.UNAVAILABLE, "DRAINING", opdscope.UnavailableError),
    (grpc.StatusCode.UNAVAILABLE, "ENGINE_DOWN", opdscope.UnavailableError),
    (grpc.StatusCode.UNAVAILABLE, "LOADING", opdscope.UnavailableError),
    (grpc.StatusCode.INTERNAL, "INTERNAL", opdscope.ServerError),
]


def _refused(target: str) -> opdscope.OpdscopeError:
    with opdscope.Client(target) as client, pytest.raises(opdscope.OpdscopeError) as caught:
        client.delete_run("run")
    return caught.value


def test_the_table_is_total() -> None:
    """Every reason of the protocol has an exception, and no other has."""
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 - no mapping
    assert names - {"UNSPECIFIED"} == set(BY_REASON) == {reason for _, reason, _ in REASONS}


@pytest.mark.parametrize(("code", "reason", "kind"), REASONS)
def test_a_reason_becomes_its_exception(
    target: str,
    scorer: Scorer,
    make_status: Callable[..., Any],
    code: grpc.StatusCode,
    reason: str,
    kind: type[Exception],
) -> None:
    """The exception follows the reason, and its text is the server's."""
    scorer.refusal = make_status(code, reason, "what went wrong")
    error = _refused(target)
    assert type(error) is kind
    assert str(error) == "what went wrong"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_field_violations_are_kept(target: str, scorer: Scorer, make_status: Callable[..., Any]) -> None:
    """Every violation is there by field, and on a line of its own in the text."""
    pairs = [("settings.objectives[0]", "unknown"), ("verifier", "unknown"), ("verifier", "too long")]
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        for field, description in pairs
    ]
    bad = error_details_pb2.BadRequest(field_violations=violations)
    scorer.refusal = make_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "wrong", bad)
    error = _refused(target)
    assert isinstance(error, opdscope.InvalidRequestError)
    assert error.violations == {"settings.objectives[0]": "unknown", "verifier": "unknown; too long"}
    assert str(error) == "objectives[0]: unknown\nverifier: unknown; too long"


def test_the_time_to_come_back_is_kept(target: str, scorer: Scorer, make_status: Callable[..., Any]) -> None:
    """RetryInfo arrives in seconds."""
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    scorer.refusal = make_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry)
    error = _refused(target)
    assert isinstance(error, opdscope.QueueFullError)
    assert error.retry_after_seconds == 1.5


def test_a_server_of_another_kind_is_said_so(target: str, scorer: Scorer) -> None:
    """A call that the server does not know is not a Python traceback."""
    scorer.before = lambda _request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
    assert "is it a scorer of this version" in str(_refused(target))


def test_a_status_without_details_still_has_its_text(target: str, scorer: Scorer) -> None:
    """Proxies and gRPC itself send plain codes."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    scorer.before = lambda _request, context: context.abort(code, "message larger than max")
    error = _refused(target)
    assert type(error) is opdscope.ServerError
    assert str(error).endswith("RESOURCE_EXHAUSTED: message larger than max")


def test_a_reason_of_another_domain_is_not_ours(target: str, scorer: Scorer, make_status: Callable[..., Any]) -> None:
    """Only the domain `opdscope` speaks of runs."""
    status = make_status(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "other")
    info = error_details_pb2.ErrorInfo(reason="RUN_NOT_FOUND", domain="elsewhere")
    status.details[0].Pack(info)
    scorer.refusal = status
    assert type(_refused(target)) is opdscope.ServerError
