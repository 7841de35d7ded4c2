"""The one interceptor of both servers: request ids, metrics, and errors as rich statuses."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from grpc import aio
from grpc_status import rpc_status

from opdscope_serving.errors import DomainError, internal_status, to_status
from opdscope_serving.metrics import ServerMetrics

REQUEST_ID_KEY = "x-request-id"

log = structlog.get_logger()


class ServingInterceptor(aio.ServerInterceptor):
    """Wraps every handler of our own services; health and reflection pass through."""

    def __init__(self, metrics: ServerMetrics) -> None:
        """Count into these metrics."""
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - gRPC's handlers have no public type
        """Return the wrapped handler."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/opdscope."):
            return handler
        call = _Call(handler_call_details, self._metrics)
        make = getattr(grpc, f"{_shape(handler)}_rpc_method_handler")
        wrap = call.stream if handler.response_streaming else call.unary
        return make(wrap(_behaviour(handler)), handler.request_deserializer, handler.response_serializer)


def _shape(handler: Any) -> str:  # noqa: ANN401
    sides = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if streaming else "unary" for streaming in sides)


def _behaviour(handler: Any) -> Callable[..., Any]:  # noqa: ANN401
    behaviour: Callable[..., Any] = getattr(handler, _shape(handler))
    return behaviour


class _Call:
    """What is known of the calls of one method with one set of metadata."""

    def __init__(self, details: grpc.HandlerCallDetails, metrics: ServerMetrics) -> None:
        self._method = details.method.removeprefix("/")
        metadata = dict(details.invocation_metadata or ())
        self._request_id = str(metadata.get(REQUEST_ID_KEY) or uuid.uuid4().hex)[:64]
        self._metrics = metrics

    def unary(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
            with self._metrics.rpc(self._method):
                return await self._guard(behaviour(request, context), context)

        return handle

    def stream(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: ANN401
            with self._metrics.rpc(self._method):
                responses = behaviour(request, context)
                try:
                    while (response := await self._guard(anext(responses, None), context, last=False)) is not None:
                        yield response
                    self._finished("OK")
                finally:
                    # A client that leaves ends the handler here, so that what it holds is freed at once.
                    await responses.aclose()  # type: ignore[attr-defined]

        return handle

    async def _guard(self, work: Awaitable[Any], context: aio.ServicerContext[Any, Any], *, last: bool = True) -> Any:  # noqa: ANN401
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        started = time.monotonic()
        try:
            result = await work
        except asyncio.CancelledError:
            self._finished("CANCELLED")
            raise
        except DomainError as error:
            await self._abort(context, error, started)
        except aio.AbortError:
            self._finished(getattr(context.code(), "name", "UNKNOWN"))
            raise
        except Exception:
            log.exception("rpc_crashed", method=self._method)
            self._finished("INTERNAL")
            await context.abort_with_status(rpc_status.to_status(internal_status(self._request_id)))
        if last:
            self._finished("OK")
        return result

    async def _abort(self, context: aio.ServicerContext[Any, Any], error: DomainError, started: float) -> NoReturn:
        status = rpc_status.to_status(to_status(error))
        seconds = round(time.monotonic() - started, 4)
        log.info("rpc_refused", method=self._method, code=status.code.name, message=str(error), seconds=seconds)
        self._finished(status.code.name)
        await context.abort_with_status(status)
        raise AssertionError("abort_with_status raises")

    def _finished(self, code: str) -> None:
        self._metrics.finished(self._method, code)
