"""Domain errors of the servers, and the one table that maps them to gRPC.

Servicers raise these; the interceptor sends them as `google.rpc.Status` with one `ErrorInfo`
(reason from `opdscope.v1.ErrorReason`, domain `opdscope`) and, where they apply, field violations and a retry delay.

    DomainError
    ├── InvalidRequest        INVALID_ARGUMENT
    ├── RunNotFound           NOT_FOUND
    ├── RunExists             ALREADY_EXISTS
    ├── NotConfigured         FAILED_PRECONDITION
    ├── VocabularyMismatch    FAILED_PRECONDITION
    ├── WeightsChanged        FAILED_PRECONDITION
    ├── QueueFull             RESOURCE_EXHAUSTED, with RetryInfo
    ├── Draining              UNAVAILABLE
    ├── EngineDown            UNAVAILABLE
    └── Loading               UNAVAILABLE, with RetryInfo
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from opdscope.v1 import errors_pb2

DOMAIN = "opdscope"

Reason = errors_pb2.ErrorReason


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is wrong: which, and what is accepted."""

    field: str
    description: str


class DomainError(Exception):
    """An error that the caller is told about."""

    retry_after_seconds: float | None = None


class InvalidRequest(DomainError):
    """The request breaks rules."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        """Name every field that is wrong; there must be at least one."""
        assert violations, "an invalid request must say what is wrong"
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations))

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidRequest":
        """Name a single field that is wrong."""
        return cls([FieldViolation(field, description)])


class RunNotFound(DomainError):
    """No run has this id."""


class RunExists(DomainError):
    """A run with this id and other settings exists."""


class NotConfigured(DomainError):
    """The server was started without what the call needs."""


class VocabularyMismatch(DomainError):
    """Two models that must share a vocabulary do not."""


class WeightsChanged(DomainError):
    """A model's weights changed under a run."""


class _TryLater(DomainError):
    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(_TryLater):
    """Too much work is waiting."""


class Loading(_TryLater):
    """The model is still being loaded."""


class Draining(DomainError):
    """The server is shutting down."""


class EngineDown(DomainError):
    """The inference engine or a generator does not answer."""


ERROR_TABLE: dict[type[DomainError], tuple[grpc.StatusCode, errors_pb2.ErrorReason]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_REQUEST),
    RunNotFound: (grpc.StatusCode.NOT_FOUND, Reason.ERROR_REASON_RUN_NOT_FOUND),
    RunExists: (grpc.StatusCode.ALREADY_EXISTS, Reason.ERROR_REASON_RUN_EXISTS),
    NotConfigured: (grpc.StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_NOT_CONFIGURED),
    VocabularyMismatch: (grpc.StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_VOCABULARY_MISMATCH),
    WeightsChanged: (grpc.StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_WEIGHTS_CHANGED),
    QueueFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_QUEUE_FULL),
    Draining: (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DRAINING),
    EngineDown: (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_ENGINE_DOWN),
    Loading: (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_LOADING),
}


def to_status(error: DomainError) -> status_pb2.Status:
    """Return the rich status of a domain error."""
    code, reason = ERROR_TABLE[type(error)]
    details: list[Message] = [_error_info(reason)]
    if isinstance(error, InvalidRequest):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code, str(error), details)


def internal_status(request_id: str) -> status_pb2.Status:
    """Return the status of a fault of ours: fixed text, since the traceback belongs into the log."""
    text = f"internal error; the server's log has the details under request_id {request_id}"
    return _status(grpc.StatusCode.INTERNAL, text, [_error_info(Reason.ERROR_REASON_INTERNAL)])


def _error_info(reason: errors_pb2.ErrorReason) -> error_details_pb2.ErrorInfo:
    name = errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    return error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN)


def _status(code: grpc.StatusCode, message: str, details: Sequence[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)
