"""How the client reaches a scorer: channel options, deadlines, retries, batches."""

import json
from collections.abc import Iterable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import Message

SCORER_SERVICE = "opdscope.v1.ScorerService"
MAX_MESSAGE_BYTES = 32 * 2**20
"""Largest message that is sent or received; the servers' default too."""
MAX_BATCH_BYTES = 2**20
"""Batches end at this size, well under the limit of any server."""

# Safe to repeat. AddQuestions is, too, but as a stream it is not retried blindly; DeleteRun is not.
_IDEMPOTENT = ("GetStudent", "ValidateRun", "CreateRun", "GetRun", "ListRuns", "CancelRun")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": SCORER_SERVICE, "method": method} for method in _IDEMPOTENT],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A connection that has gone silent fails within 40 s. The servers allow pings this often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A server that has just been started should be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)

_M = TypeVar("_M", bound=Message)


def open_channel(target: str) -> grpc.Channel:
    """An insecure channel to `HOST:PORT`. Nothing is sent before the first call."""
    return grpc.insecure_channel(target, options=_OPTIONS)


def batches(messages: Iterable[_M], max_bytes: int = MAX_BATCH_BYTES) -> Iterator[list[_M]]:
    """Group messages so that every group stays under `max_bytes`, if each message does."""
    batch: list[_M] = []
    size = 0
    for message in messages:
        message_size = message.ByteSize() + 8  # tag and length
        if batch and size + message_size > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message_size
    if batch:
        yield batch
