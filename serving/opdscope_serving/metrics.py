"""Prometheus metrics in a registry of our own, and the page that serves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_LATENCY_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)


class ServerMetrics:
    """Metrics that both servers have. Labels are bounded: methods and codes only."""

    def __init__(self) -> None:
        """Create the registry and register what every process has."""
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._handled = Counter("opdscope_rpcs", "Finished RPCs.", ["method", "code"], registry=self.registry)
        self._seconds = Histogram(
            "opdscope_rpc_seconds", "Duration of RPCs.", ["method"], buckets=_LATENCY_BUCKETS, registry=self.registry
        )
        self._in_flight = Gauge("opdscope_rpcs_in_flight", "RPCs under way.", ["method"], registry=self.registry)

    @contextmanager
    def rpc(self, method: str) -> Iterator[None]:
        """Time an RPC and count it as under way."""
        with self._in_flight.labels(method).track_inprogress(), self._seconds.labels(method).time():
            yield

    def finished(self, method: str, code: str) -> None:
        """Count a finished RPC."""
        self._handled.labels(method, code).inc()


class MetricsPage:
    """Serves a registry at `/metrics` from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        """Start to serve; port 0 takes a free one."""
        self._server: WSGIServer
        self._thread: Thread
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop to serve."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
