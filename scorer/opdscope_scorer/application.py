"""The scorer as a server process: loads the student, works on runs, frees everything."""

import asyncio
import importlib
from typing import TYPE_CHECKING

from grpc import aio
from opdscope.v1 import scorer_pb2, scorer_pb2_grpc
from opdscope_serving.metrics import ServerMetrics

from opdscope_scorer.metrics import ScorerMetrics
from opdscope_scorer.model_thread import ModelThread
from opdscope_scorer.service import ScorerService
from opdscope_scorer.settings import ScorerSettings
from opdscope_scorer.store import Store

if TYPE_CHECKING:
    from opdscope_scorer.generators import GeneratorPool
    from opdscope_scorer.runs import Runs
    from opdscope_scorer.student import Student


class ScorerApplication:
    """Implements `opdscope_serving.server.Application`."""

    service_name = scorer_pb2.DESCRIPTOR.services_by_name["ScorerService"].full_name

    def __init__(self, settings: ScorerSettings, metrics: ServerMetrics) -> None:
        """Prepare; nothing is loaded yet."""
        self._settings = settings
        self._metrics = ScorerMetrics(metrics.registry)
        self._service = ScorerService(configured=settings.model is not None)
        self._model = ModelThread()
        self._store: Store | None = None
        self._pool: GeneratorPool | None = None
        self._runs: Runs | None = None

    @property
    def healthy(self) -> bool:
        """Generators that are down are waited for, so nothing but its own end makes a scorer useless."""
        return True

    def register(self, server: aio.Server) -> None:
        """Add the servicer to the server."""
        scorer_pb2_grpc.add_ScorerServiceServicer_to_server(self._service, server)

    async def load(self) -> None:
        """Load the student beside the event loop, and go on with the runs that are not done.

        Raises:
            StateError: The state directory cannot be used.
            ModelNotFoundError: There is no such model.
        """
        settings = self._settings
        if settings.model is None:
            return
        if settings.state_dir is None:
            raise ValueError("--state-dir is needed with --model: what a run has paid for is kept there")
        if not settings.generator_addresses:
            raise ValueError("--generators is needed with --model: somebody must generate rollouts")
        self._store = await asyncio.to_thread(Store, settings.state_dir)
        # Importing transformers takes seconds, in which the server already answers.
        await asyncio.to_thread(importlib.import_module, "opdscope_scorer.runs")
        from opdscope_scorer.generators import GeneratorPool  # noqa: PLC0415
        from opdscope_scorer.runs import Runs  # noqa: PLC0415

        student = await self._model.run(load_student, settings)
        self._pool = GeneratorPool(settings.generator_addresses, patience_seconds=settings.generator_patience_seconds)
        self._runs = Runs(
            self._store,
            student,
            self._pool,
            self._model,
            self._metrics,
            questions_at_once=settings.questions_at_once,
        )
        await self._runs.resume()
        self._service.use(student, self._runs)
        self._metrics.model_loaded.set(1)

    async def drain(self) -> None:
        """Stop to work on runs; what is finished is stored."""
        if self._runs:
            await self._runs.drain()

    async def close(self) -> None:
        """Free everything."""
        self._model.close()
        if self._pool:
            await self._pool.close()
        if self._store:
            await self._store.close()


def load_student(settings: ScorerSettings) -> "Student":
    """Load the student's weights.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    import torch  # noqa: PLC0415
    from opdscope_serving.models import load_model  # noqa: PLC0415

    from opdscope_scorer.student import Student  # noqa: PLC0415

    assert settings.model
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Student(
        load_model(settings.model, cache_dir=settings.cache_dir, dtype=settings.dtype, device=settings.device)
    )
