"""Start, health, drain: the life of a server process."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from opdscope_serving.interceptor import ServingInterceptor
from opdscope_serving.logs import configure_logging
from opdscope_serving.metrics import MetricsPage, ServerMetrics
from opdscope_serving.settings import ServerSettings

log = structlog.get_logger()

# Clients may ping this often, also without a call; our own clients do so every 20 seconds.
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


# How soon health tells that an engine has died.
_HEALTH_SECONDS = 1.0


class Health:
    """Health of the process and its service, as the standard health service tells it.

    The empty name says that the process lives; the service's own name says that it takes work.
    """

    def __init__(self, service: str) -> None:
        """Start with a living process whose service takes no work yet."""
        self.servicer = health.aio.HealthServicer()
        self._service = service

    async def start(self) -> None:
        """Tell that the process lives."""
        await self.servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(ready=False)

    async def set_ready(self, *, ready: bool) -> None:
        """Tell whether the service takes work."""
        status = health_pb2.HealthCheckResponse
        await self.servicer.set(self._service, status.SERVING if ready else status.NOT_SERVING)

    async def drain(self) -> None:
        """Tell that nothing takes work any more, for good."""
        await self.servicer.enter_graceful_shutdown()


class Application(Protocol):
    """A service and what it needs, from the view of its process."""

    service_name: str
    """Full name of the gRPC service."""

    @property
    def healthy(self) -> bool:
        """Whether it can still do its work, once it has loaded."""

    def register(self, server: aio.Server) -> None:
        """Add the servicer to the server."""

    async def load(self) -> None:
        """Make ready for work. Runs while the server already answers; health is set when it returns."""

    async def drain(self) -> None:
        """Take no new work and bring work under way to a place where it can stop."""

    async def close(self) -> None:
        """Free everything."""


def run_server(prog: str, settings: ServerSettings, build: Callable[[ServerMetrics], Awaitable[Application]]) -> int:
    """Run a server process until it is told to stop, and return its exit code.

    Prints one line on stdout when it listens: `PROG listening on HOST:PORT`.
    """
    configure_logging(level=settings.log_level, json=settings.log_json)
    return asyncio.run(_run(prog, settings, build))


async def _run(prog: str, settings: ServerSettings, build: Callable[[ServerMetrics], Awaitable[Application]]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = ServerMetrics()
    async with contextlib.AsyncExitStack() as stack:
        page = None
        host = settings.listen.rpartition(":")[0]
        if settings.metrics_port >= 0:
            try:
                page = MetricsPage(metrics.registry, host=host.strip("[]"), port=settings.metrics_port)
            except OSError as error:
                return _fail(prog, f"cannot serve metrics on {host}:{settings.metrics_port}: {error.strerror or error}")
            stack.callback(page.close)
        app = await build(metrics)
        stack.push_async_callback(app.close)
        server, health_state = await start_grpc(app, settings, metrics)
        try:
            port = server.add_insecure_port(settings.listen)
        except RuntimeError:
            return _fail(prog, f"cannot listen on {settings.listen}: the port is in use or the address is not ours")
        await server.start()
        sys.stdout.write(f"{prog} listening on {host}:{port}\n")
        sys.stdout.flush()
        log.info("listening", address=f"{host}:{port}", metrics_port=page.port if page else None)
        failed = await _serve(prog, app, health_state, stop)
        await _drain(app, server, health_state, settings.grace_seconds)
        return 1 if failed else 0


async def start_grpc(app: Application, settings: ServerSettings, metrics: ServerMetrics) -> tuple[aio.Server, Health]:
    """Return a server with the application, health and reflection, which has no port yet."""
    size = settings.max_message_mb * 2**20
    options = [
        *_KEEPALIVE,
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        # Two servers on one port would each get a share of the calls.
        ("grpc.so_reuseport", 0),
    ]
    server = aio.server(interceptors=[ServingInterceptor(metrics)], options=options)
    app.register(server)
    health_state = Health(app.service_name)
    await health_state.start()
    health_pb2_grpc.add_HealthServicer_to_server(health_state.servicer, server)
    if settings.reflection:
        names = (app.service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server, health_state


async def _serve(prog: str, app: Application, health_state: Health, stop: asyncio.Event) -> bool:
    """Load, then wait for the signal. Return whether loading failed."""
    loading = asyncio.create_task(_load(app, health_state))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (error := loading.exception()):
        stopping.cancel()
        if not isinstance(error, ValueError):
            log.error("loading_failed", exc_info=error)
        _fail(prog, f"cannot start: {error}")
        return True
    loading.cancel()
    while not stop.is_set():
        await health_state.set_ready(ready=loading.done() and app.healthy)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=_HEALTH_SECONDS)
    return False


async def _load(app: Application, health_state: Health) -> None:
    await app.load()
    await health_state.set_ready(ready=True)
    log.info("ready")


async def _drain(app: Application, server: aio.Server, health_state: Health, grace_seconds: float) -> None:
    log.info("draining", grace_seconds=grace_seconds)
    await health_state.drain()
    await _within(grace_seconds, app.drain())
    await server.stop(grace=grace_seconds)
    log.info("stopped")


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.wait_for(work, timeout=seconds)
    except TimeoutError:
        log.warning("drain_timed_out", seconds=seconds)


def _fail(prog: str, message: str) -> int:
    sys.stderr.write(f"{prog}: {message}\n")
    return 1
