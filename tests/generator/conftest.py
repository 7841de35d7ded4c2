"""Engines for tests."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from opdscope_generator.embedded.engine import EmbeddedEngine, EmbeddedLimits
from opdscope_generator.engine import RolloutBatch, RolloutJob
from opdscope_generator.metrics import GeneratorMetrics
from opdscope_serving.models import LoadedModel
from prometheus_client import CollectorRegistry
from tiny import tiny_loaded

StartEngine = Callable[..., EmbeddedEngine]


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return the registry of the engines' metrics."""
    return CollectorRegistry()


@pytest.fixture
def start_engine(registry: CollectorRegistry) -> Iterator[StartEngine]:
    """Return a function that starts an engine, which is closed after the test."""
    engines = []

    def start(loaded: LoadedModel | None = None, **limits: int) -> EmbeddedEngine:
        metrics = GeneratorMetrics(registry)
        engines.append(EmbeddedEngine(loaded or tiny_loaded(), EmbeddedLimits(**limits), metrics))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def run() -> Callable[[EmbeddedEngine, RolloutJob], list[RolloutBatch]]:
    """Return a function that runs one job to its end."""

    async def collect(engine: EmbeddedEngine, job: RolloutJob) -> list[RolloutBatch]:
        return [batch async for batch in engine.rollout(job)]

    return lambda engine, job: asyncio.run(collect(engine, job))
