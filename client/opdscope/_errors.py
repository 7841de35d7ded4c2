"""Every error that the SDK raises, and the one place where transport errors become them.

OpdscopeError
├── RunFileError            a run file or its questions are wrong (local)
├── EvidenceError           evidence is wrong (local)
├── LocalServiceError       a server on this machine did not start or ended
├── InvalidRequestError     the scorer refuses the request, `violations` says why
├── RunNotFoundError        no run has this id
├── RunExistsError          a run with this id and other settings exists
├── NotConfiguredError      the scorer was started without what the call needs
├── VocabularyMismatchError two models that must share a vocabulary do not
├── WeightsChangedError     the model's weights changed under a run
├── QueueFullError          too much work is waiting, `retry_after_seconds` says when to come back
├── UnavailableError        no scorer answers, or it drains, loads, or has lost its engine
└── ServerError             a fault of the server, or an answer that makes no sense
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "opdscope"


class OpdscopeError(Exception):
    """Base of all errors of this package; its text is written for people."""


class RunFileError(OpdscopeError):
    """A run file or its questions are wrong."""


class EvidenceError(OpdscopeError):
    """Evidence cannot be read."""


class LocalServiceError(OpdscopeError):
    """A server on this machine did not start, or ended by itself."""


class InvalidRequestError(OpdscopeError):
    """The scorer refuses the request; `violations` maps a field to what is wrong with it."""

    def __init__(self, message: str, violations: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.violations: dict[str, str] = dict(violations or {})

    def __str__(self) -> str:
        lines = [_sentence(field.removeprefix("settings."), text) for field, text in self.violations.items()]
        return "\n".join(lines) or super().__str__()


class RunNotFoundError(OpdscopeError):
    """No run has this id."""


class RunExistsError(OpdscopeError):
    """A run with this id and other settings exists."""


class NotConfiguredError(OpdscopeError):
    """The scorer was started without what the call needs, for example a student."""


class VocabularyMismatchError(OpdscopeError):
    """Two models that must share a vocabulary do not."""


class WeightsChangedError(OpdscopeError):
    """The model's weights changed under a run."""


class _RetryableError(OpdscopeError):
    """Carries when to come back, `None` if the server did not say."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFullError(_RetryableError):
    """Too much work is waiting; `retry_after_seconds` says when to come back."""


class UnavailableError(_RetryableError):
    """No scorer answers, or it is shutting down, still loading, or without its engine."""


class ServerError(OpdscopeError):
    """A fault of the server, or an answer that makes no sense."""


BY_REASON: Mapping[str, type[OpdscopeError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "RUN_NOT_FOUND": RunNotFoundError,
    "RUN_EXISTS": RunExistsError,
    "NOT_CONFIGURED": NotConfiguredError,
    "VOCABULARY_MISMATCH": VocabularyMismatchError,
    "WEIGHTS_CHANGED": WeightsChangedError,
    "QUEUE_FULL": QueueFullError,
    "DRAINING": UnavailableError,
    "ENGINE_DOWN": UnavailableError,
    "LOADING": UnavailableError,
    "INTERNAL": ServerError,
}
"""`ErrorInfo.reason` to exception; total over `opdscope.v1.ErrorReason`."""


def from_rpc_error(error: grpc.RpcError, target: str) -> OpdscopeError:
    """The exception that stands for a failed call to `target`."""
    status = _rich_status(error)
    reason = _reason(status)
    kind = BY_REASON.get(reason or "")
    if status is None or kind is None:
        return _from_code(error, target)
    if issubclass(kind, InvalidRequestError):
        return kind(status.message, _violations(status))
    if issubclass(kind, _RetryableError):
        return kind(status.message, _retry_after_seconds(status))
    return kind(status.message)


def _sentence(field: str, text: str) -> str:
    return f"{field}: {text}" if field else text


def is_broken_transport(error: grpc.RpcError) -> bool:
    """Whether a stream ended for a reason that says nothing about the run, so that it may be resumed."""
    reason = _reason(_rich_status(error))
    if reason is not None:
        return BY_REASON.get(reason) is UnavailableError
    return _code(error) in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,  # how a reset of the HTTP/2 stream arrives
        grpc.StatusCode.UNKNOWN,  # how a vanished connection may arrive
        grpc.StatusCode.CANCELLED,  # by the server or a proxy: our own cancellation never gets here
    }


def _from_code(error: grpc.RpcError, target: str) -> OpdscopeError:
    details = _details(error)
    match _code(error):
        case grpc.StatusCode.UNAVAILABLE:
            reason = re.sub(r"^UNKNOWN: (ipv[46]:\S+: )?", "", details.rpartition("last error: ")[2])
            return UnavailableError(f"no scorer answers at {target}: {reason}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(f"the scorer at {target} did not answer in time")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"the server at {target} does not know this call; is it a scorer of this version?")
        case code:
            return ServerError(f"the scorer at {target} failed with {code.name}: {details}")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code or grpc.StatusCode.UNKNOWN


def _details(error: grpc.RpcError) -> str:
    return (error.details() if isinstance(error, grpc.Call) else None) or "no details"


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    if not isinstance(error, grpc.Call):
        return None
    try:
        return rpc_status.from_call(error)
    except ValueError:  # the details contradict the code: something in between has changed it
        return None


_Detail = TypeVar("_Detail", bound=Message)


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def _reason(status: status_pb2.Status | None) -> str | None:
    info = _detail(status, error_details_pb2.ErrorInfo) if status else None
    return info.reason if info and info.domain == DOMAIN else None


def _violations(status: status_pb2.Status) -> dict[str, str]:
    bad = _detail(status, error_details_pb2.BadRequest)
    violations: dict[str, str] = {}
    for violation in bad.field_violations if bad else ():
        earlier = violations.get(violation.field)
        violations[violation.field] = f"{earlier}; {violation.description}" if earlier else violation.description
    return violations


def _retry_after_seconds(status: status_pb2.Status) -> float | None:
    info = _detail(status, error_details_pb2.RetryInfo)
    return info.retry_delay.ToTimedelta().total_seconds() if info else None
