"""The generator as a server process: loads the model, serves it, frees it."""

import asyncio

from grpc import aio
from opdscope.v1 import generator_pb2, generator_pb2_grpc
from opdscope_serving.metrics import ServerMetrics

from opdscope_generator.engine import Engine
from opdscope_generator.metrics import GeneratorMetrics
from opdscope_generator.service import GeneratorService
from opdscope_generator.settings import GeneratorSettings

_MIB = 2**20


class GeneratorApplication:
    """Implements `opdscope_serving.server.Application`."""

    service_name = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name

    def __init__(self, settings: GeneratorSettings, metrics: ServerMetrics) -> None:
        """Prepare; nothing is loaded yet."""
        self._settings = settings
        self._metrics = GeneratorMetrics(metrics.registry)
        self._service = GeneratorService()
        self._engine: Engine | None = None

    @property
    def healthy(self) -> bool:
        """Whether the engine serves."""
        return self._engine is not None and self._engine.healthy

    def register(self, server: aio.Server) -> None:
        """Add the servicer to the server."""
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server(self._service, server)

    async def load(self) -> None:
        """Load the model beside the event loop, so that health answers meanwhile."""
        self._engine = await asyncio.to_thread(build_engine, self._settings, self._metrics)
        self._service.use(self._engine)

    async def drain(self) -> None:
        """Calls under way go on; the server takes no new ones."""

    async def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)


def build_engine(settings: GeneratorSettings, metrics: GeneratorMetrics) -> Engine:
    """Load the model and start its engine.

    Raises:
        ModelNotFoundError: There is no such model.
        UnsupportedModelError: The engine cannot run it.
    """
    # Importing torch takes seconds, in which the server already answers health checks.
    from opdscope_serving.models import load_model  # noqa: PLC0415

    from opdscope_generator.embedded.engine import EmbeddedEngine, EmbeddedLimits  # noqa: PLC0415

    loaded = load_model(settings.model, cache_dir=settings.cache_dir, dtype=settings.dtype, device=settings.device)
    limits = EmbeddedLimits(
        max_rows=settings.max_rows,
        kv_bytes=settings.kv_memory_mb * _MIB,
        prefix_bytes=settings.prefix_memory_mb * _MIB,
        max_jobs=settings.max_waiting_jobs,
        threads=settings.threads,
    )
    return EmbeddedEngine(loaded, limits, metrics)
