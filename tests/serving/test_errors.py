"""Every domain error becomes one rich status."""

import grpc
import pytest
from google.rpc import error_details_pb2
from opdscope.v1 import errors_pb2
from opdscope_serving import errors
from opdscope_serving.errors import DomainError, FieldViolation, InvalidRequest, QueueFull, RunNotFound, to_status


def _public_errors() -> set[type[DomainError]]:
    found, waiting = set(), [DomainError]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found |= {child for child in children if not child.__name__.startswith("_")}
    return found


def test_the_table_is_total() -> None:
    """An error that is not in it could not be sent."""
    assert set(errors.ERROR_TABLE) == _public_errors()


def test_every_reason_is_used_once() -> None:
    """Clients tell errors apart by their reason."""
    used = [reason for _, reason in errors.ERROR_TABLE.values()]
    reasons = set(errors_pb2.ErrorReason.values())
    assert len(used) == len(set(used))
    assert reasons - set(used) == {errors_pb2.ERROR_REASON_UNSPECIFIED, errors_pb2.ERROR_REASON_INTERNAL}


def _details(error: DomainError) -> dict[str, object]:
    found = {}
    for box in to_status(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if box.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = message = kind()
                box.Unpack(message)
    return found


def test_invalid_requests_name_their_fields() -> None:
    """All of them, in one answer."""
    error = InvalidRequest([FieldViolation("a", "must be 1"), FieldViolation("b[2]", "must be 2")])
    status, details = to_status(error), _details(error)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "a: must be 1; b[2]: must be 2"
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("INVALID_REQUEST", "opdscope")
    violations = [(v.field, v.description) for v in details["BadRequest"].field_violations]
    assert violations == [("a", "must be 1"), ("b[2]", "must be 2")]


def test_errors_that_pass_say_when_to_come_back() -> None:
    """As RetryInfo; others have none."""
    details = _details(QueueFull("too much", retry_after_seconds=2.5))
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == pytest.approx(2.5)
    assert set(_details(RunNotFound("no run 'x'"))) == {"ErrorInfo"}


def test_faults_of_ours_tell_nothing_but_where_to_look() -> None:
    """The traceback is in the log."""
    status = errors.internal_status("abc")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "abc" in status.message
