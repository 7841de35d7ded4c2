"""Streams from the scorer as iterators that are context managers: leaving the block always cancels the call."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from opdscope import _convert
from opdscope._channel import MAX_BATCH_BYTES
from opdscope._errors import ServerError, from_rpc_error, is_broken_transport
from opdscope._types import Alignment, EvidenceNode, EvidenceRefusal, RunEvent
from opdscope.v1 import scorer_pb2

_T = TypeVar("_T")

EvidenceResult = Alignment | EvidenceRefusal

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class _Stream(Iterator[_T], Generic[_T]):
    """Holds one server stream at a time and cancels it in the end."""

    def __init__(self) -> None:
        self._call: Any = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call, so that the server stops to send. Idempotent; iteration ends."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()


class EventStream(_Stream[RunEvent]):
    """The events of a run, each kept event exactly once and in order.

    A stream that breaks is resumed after the last event. It is given up when nothing has come for `patience_seconds`.
    """

    def __init__(
        self,
        watch: Callable[[scorer_pb2.WatchRunRequest], Any],
        *,
        run_id: str,
        after_sequence: int,
        target: str,
        patience_seconds: float,
    ) -> None:
        super().__init__()
        self.run_id = run_id
        self.last_sequence = after_sequence
        """Number of the last event that was returned; progress has none."""
        self._watch = watch
        self._target = target
        self._patience_seconds = patience_seconds
        self._silent_since: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def __next__(self) -> RunEvent:
        while not self._closed:
            try:
                event = _convert.run_event(self._next_message())
            except grpc.RpcError as error:
                self._call = None
                self._wait_before_resuming(error)
                continue
            if event is not None and self._is_new(event.sequence):
                return event
        raise StopIteration

    def _next_message(self) -> scorer_pb2.WatchRunResponse:
        if self._call is None:
            request = scorer_pb2.WatchRunRequest(run_id=self.run_id, after_sequence=self.last_sequence)
            self._call = self._watch(request)
        message: scorer_pb2.WatchRunResponse = next(self._call)
        self._silent_since, self._pause_seconds = None, _FIRST_PAUSE_SECONDS
        return message

    def _wait_before_resuming(self, error: grpc.RpcError) -> None:
        """Sleep, longer each time.

        Raises:
            OpdscopeError: if the run is the reason, or patience has ended.
        """
        self._silent_since = self._silent_since or time.monotonic()
        waited = time.monotonic() - self._silent_since
        if not is_broken_transport(error) or waited > self._patience_seconds:
            raise from_rpc_error(error, self._target) from error
        time.sleep(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _is_new(self, sequence: int) -> bool:
        if sequence == 0:
            return True
        if sequence > self.last_sequence + 1:
            raise ServerError(f"event {sequence} of run {self.run_id} came after event {self.last_sequence}")
        is_new = sequence > self.last_sequence
        self.last_sequence = max(self.last_sequence, sequence)
        return is_new


class EvidenceStream(_Stream[EvidenceResult]):
    """Alignments and refusals of the caller's nodes, in the order of the nodes.

    Nodes are sent while results are read, in sets of `set_size`: what is unknown about a node is filled in from its
    set.
    """

    def __init__(
        self,
        score: Callable[[Iterator[scorer_pb2.ScoreEvidenceRequest]], Any],
        *,
        nodes: Iterable[EvidenceNode],
        settings: scorer_pb2.EvidenceSettings,
        set_size: int,
        target: str,
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._settings = settings
        self._set_size = set_size
        self._target = target
        self._keys: dict[int, _convert.NodeKey] = {}
        self._nodes_error: Exception | None = None
        self._ready: deque[EvidenceResult] = deque()
        self._waiting: list[EvidenceResult] = []
        self._call = score(self._requests())

    def __next__(self) -> EvidenceResult:
        while not self._ready:
            if self._closed:
                raise StopIteration
            self._read()
        return self._ready.popleft()

    def _read(self) -> None:
        try:
            response: scorer_pb2.ScoreEvidenceResponse = next(self._call)
        except StopIteration:
            if self._waiting:
                self._release()
                return
            raise self._nodes_error or StopIteration from None
        except grpc.RpcError as error:
            self.close()
            raise from_rpc_error(error, self._target) from error
        results = self._results(response)
        if self._waiting and results and self._set_of(results[0]) != self._set_of(self._waiting[0]):
            self._release()
        self._waiting += results

    def _results(self, response: scorer_pb2.ScoreEvidenceResponse) -> list[EvidenceResult]:
        results: list[EvidenceResult] = [_convert.refusal(refusal) for refusal in response.refusals]
        for packed in response.alignments:
            results += _convert.alignments(packed, self._keys)
        return results

    def _set_of(self, result: EvidenceResult) -> int:
        return result.node_index // self._set_size

    def _release(self) -> None:
        """A set is complete: the sort is stable, so teachers and objectives stay in the scorer's order."""
        self._ready.extend(sorted(self._waiting, key=lambda result: result.node_index))
        for node_index in {result.node_index for result in self._waiting}:
            self._keys.pop(node_index, None)
        self._waiting = []

    def _requests(self) -> Iterator[scorer_pb2.ScoreEvidenceRequest]:
        """Bounded batches, a flush after every set."""
        yield scorer_pb2.ScoreEvidenceRequest(settings=self._settings)
        request, size = scorer_pb2.ScoreEvidenceRequest(), 0
        for index, node in enumerate(self._sound_nodes()):
            self._keys[index] = _convert.node_key(node)
            message = _convert.evidence_message(node)
            request.nodes.append(message)
            size += message.ByteSize()
            request.flush = (index + 1) % self._set_size == 0
            if request.flush or size > MAX_BATCH_BYTES:
                yield request
                request, size = scorer_pb2.ScoreEvidenceRequest(), 0
        if request.nodes:
            yield request

    def _sound_nodes(self) -> Iterator[EvidenceNode]:
        """The nodes, up to an error, which the reader gets after the results: gRPC's own thread would swallow it."""
        try:
            yield from self._nodes
        except Exception as error:  # noqa: BLE001 - whatever the caller's nodes raise
            self._nodes_error = error
