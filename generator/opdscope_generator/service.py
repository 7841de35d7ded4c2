"""The generator's gRPC service: moves messages between callers and the engine."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc import aio
from opdscope.v1 import generator_pb2 as pb
from opdscope.v1 import generator_pb2_grpc
from opdscope_serving.errors import Loading

from opdscope_generator import convert
from opdscope_generator.engine import Engine


class GeneratorService(generator_pb2_grpc.GeneratorServiceServicer):
    """Answers with `Loading` until it has an engine."""

    def __init__(self) -> None:
        """Start without an engine."""
        self._engine: Engine | None = None

    def use(self, engine: Engine) -> None:
        """Serve with this engine from now on."""
        self._engine = engine

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> pb.GetModelResponse:
        """Describe the model."""
        return convert.model_response(self._ready().info)

    async def Rollout(
        self,
        request: pb.RolloutRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.RolloutResponse]:
        """Stream completions as they finish. A caller who leaves closes the iterator, which frees the engine."""
        engine = self._ready()
        async with aclosing(engine.rollout(convert.rollout_job(request, engine.info))) as batches:
            async for batch in batches:
                for response in convert.rollout_responses(batch):
                    yield response

    async def Score(
        self,
        request: pb.ScoreRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.ScoreResponse]:
        """Stream the scores of the sequences in their order."""
        engine = self._ready()
        async with aclosing(engine.score(convert.score_job(request, engine.info))) as results:
            async for scores in results:
                yield convert.score_response(scores)

    def _ready(self) -> Engine:
        if self._engine is None:
            raise Loading("the model is still being loaded")
        return self._engine
