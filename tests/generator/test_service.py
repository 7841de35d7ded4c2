import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opdscope.v1 import generator_pb2 as pb
from opdscope.v1 import generator_pb2_grpc
from opdscope_generator.application import GeneratorApplication
from opdscope_generator.engine import Fork, RolloutJob, Sampling
from opdscope_generator.settings import GeneratorSettings
from opdscope_serving.metrics import ServerMetrics
from opdscope_serving.server import start_grpc
from plain_rollouts import plain_rollouts
from tiny import VOCABULARY_SIZE, save_tiny, tiny_gpt2, tiny_tokenizer

FieldsRefused = Callable[[pb.RolloutRequest | pb.ScoreRequest], list[str]]

PREFIX = tuple(range(1, 11))
BASE = {"token_ids": [1, 2], "positions": [1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved model."""
    return save_tiny(tmp_path_factory.mktemp("model"))


class Served:
    """A server on a free port and a client's view of it."""

    def __init__(self, app: GeneratorApplication, metrics: ServerMetrics, channel: aio.Channel) -> None:
        self.app = app
        self.metrics = metrics
        self.stub: Any = generator_pb2_grpc.GeneratorServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def _served(folder: Path, *, load: bool = True, **changes: Any) -> AsyncIterator[Served]:
    settings = GeneratorSettings(model=str(folder), dtype="float64", **changes)
    metrics = ServerMetrics()
    app = GeneratorApplication(settings, metrics)
    server, _ = await start_grpc(app, settings, metrics)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        if load:
            await app.load()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(app, metrics, channel)
    finally:
        await server.stop(grace=None)
        await app.close()


def _request(**changes: Any) -> pb.RolloutRequest:
    request = pb.RolloutRequest(
        prefix_token_ids=PREFIX,
        prompt_length=8,
        end_position=30,
        forks=[pb.Fork(forced_token_ids=[5], seeds=[1, 2]), pb.Fork(seeds=[2**64 - 1])],
        sampling=pb.Sampling(temperature=0.8, top_p=0.9, stop_strings=["a"], stop_token_ids=[7]),
    )
    for name, value in changes.items():
        if isinstance(value, list):
            request.ClearField(name)
            getattr(request, name).extend(value)
        elif isinstance(value, dict):
            request.MergeFrom(pb.RolloutRequest(**{name: value}))
        else:
            setattr(request, name, value)
    return request


def _with(folder: Path, use: Callable[[Served], Awaitable[Any]], **changes: Any) -> Any:
    async def serve() -> Any:
        async with _served(folder, **changes) as served:
            return await use(served)

    return asyncio.run(serve())


def test_get_model_describes_what_was_loaded(folder: Path) -> None:
    """Every fact about model and engine is there."""
    model = _with(folder, lambda served: served.stub.GetModel(pb.GetModelRequest()), max_rows=5)
    assert str(folder) == model.model_id
    assert (VOCABULARY_SIZE, 96, "embedded", True, 5, "float64") == (
        model.vocabulary_size,
        model.context_length,
        model.engine,
        model.seeded,
        model.max_batch_size,
        model.dtype,
    )
    assert all((model.weights_version, model.tokenizer_fingerprint, model.engine_version))


def test_rollout_streams_the_samples_of_the_plain_loop(folder: Path) -> None:
    """Over the wire, too, samples are those of full recomputation; the second call finds its prefix cached."""
    job = RolloutJob(
        PREFIX,
        8,
        30,
        (Fork((5,), (1, 2)), Fork((), (2**64 - 1,))),
        Sampling(0.8, 0.9, ("a",), frozenset({7})),
    )
    expected, log_probs = plain_rollouts(tiny_gpt2(), tiny_tokenizer(), job)

    async def twice(served: Served) -> list[list[pb.RolloutResponse]]:
        return [[response async for response in served.stub.Rollout(_request())] for _ in range(2)]

    first, second = _with(folder, twice)
    for responses in (first, second):
        completions = [completion for response in responses for completion in response.completions]
        names = {(c.fork_index, c.sample_index): pb.FinishReason.Name(c.finish_reason) for c in completions}
        assert {key: f"FINISH_REASON_{reason.name}" for key, (_, reason) in expected.items()} == names
        for completion in completions:
            key = completion.fork_index, completion.sample_index
            assert expected[key][0] == tuple(completion.token_ids)
            assert log_probs[key] == pytest.approx(list(completion.log_probs_nats), abs=1e-5)
    counts = [(responses[0].computed_prefix_tokens, responses[0].cached_prefix_tokens) for responses in (first, second)]
    assert [(10, 0), (0, 10)] == counts


def test_score_returns_packed_rows(folder: Path) -> None:
    """Rows follow the positions asked for; ids and log-probabilities are those of the model."""
    sequences = [
        pb.ScoreSequence(token_ids=PREFIX, positions=[10, 2], token_ids_wanted=[3, 4, 5]),
        pb.ScoreSequence(token_ids=PREFIX[:4], positions=[1]),
    ]
    request = pb.ScoreRequest(sequences=sequences, top_k=2, temperature=0.5)

    async def collect(served: Served) -> list[pb.ScoreResponse]:
        return [response async for response in served.stub.Score(request)]

    first, second = _with(folder, collect)
    with torch.no_grad():
        log_probs = torch.log_softmax(tiny_gpt2()(torch.tensor([PREFIX])).logits[0] / 0.5, dim=-1)[[9, 1]]
    assert log_probs[:, 3:6].ravel().tolist() == pytest.approx(list(first.wanted_log_probs_nats), abs=1e-5)
    assert log_probs.topk(2).indices.ravel().tolist() == list(first.top_token_ids)
    sizes = [[len(r.wanted_log_probs_nats), len(r.top_token_ids), len(r.top_log_probs_nats)] for r in (first, second)]
    assert [[6, 4, 4], [0, 2, 2]] == sizes
    assert [0, 1] == [first.sequence_index, second.sequence_index]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prefix_token_ids": []}, "prefix_token_ids"),
        ({"prefix_token_ids": [1, -1, 2]}, "prefix_token_ids[1]"),
        ({"prefix_token_ids": [1, 2, VOCABULARY_SIZE]}, "prefix_token_ids[2]"),
        ({"prompt_length": 11}, "prompt_length"),
        ({"prompt_length": -1}, "prompt_length"),
        ({"end_position": 9}, "end_position"),
        ({"end_position": 97}, "end_position"),
        ({"forks": []}, "forks"),
        ({"forks": [pb.Fork(seeds=range(16385))]}, "forks"),
        ({"forks": [pb.Fork(seeds=[1])] * 4097}, "forks"),
        ({"forks": [pb.Fork(seeds=[1]), pb.Fork(forced_token_ids=[1])]}, "forks[1].seeds"),
        ({"forks": [pb.Fork(seeds=[1], forced_token_ids=[99])]}, "forks[0].forced_token_ids[0]"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"sampling": {"temperature": float("inf")}}, "sampling.temperature"),
        ({"sampling": {"top_p": 1.1}}, "sampling.top_p"),
        ({"sampling": {"top_p": float("nan")}}, "sampling.top_p"),
        ({"sampling": {"stop_strings": [""]}}, "sampling.stop_strings[1]"),
        ({"sampling": {"stop_strings": ["x"] * 20}}, "sampling.stop_strings"),
        ({"sampling": {"stop_token_ids": [-3]}}, "sampling.stop_token_ids[1]"),
    ],
)
def test_a_bad_rollout_request_names_its_field(
    refused_fields: Callable[[Any], list[str]], changes: Any, field: str
) -> None:
    """The status is INVALID_ARGUMENT, and the field violation is that of the field."""
    assert field in refused_fields(_request(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sequences": []}, "sequences"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": VOCABULARY_SIZE + 1}, "top_k"),
        ({"temperature": 0.0}, "temperature"),
        ({"sequences": [{"token_ids": [], "positions": [1]}]}, "sequences[0].token_ids"),
        ({"sequences": [{"token_ids": [1] * 97, "positions": [1]}]}, "sequences[0].token_ids"),
        ({"sequences": [{"token_ids": [77], "positions": [1]}]}, "sequences[0].token_ids[0]"),
        (
            {"sequences": [{"token_ids": [1], "positions": [1], "token_ids_wanted": [-1]}]},
            "sequences[0].token_ids_wanted[0]",
        ),
        ({"sequences": [{"token_ids": [1], "positions": []}]}, "sequences[0].positions"),
        ({"sequences": [{"token_ids": [1], "positions": [0]}]}, "sequences[0].positions"),
        ({"sequences": [{"token_ids": [1, 2], "positions": [2, 3]}]}, "sequences[0].positions"),
    ],
)
def test_a_bad_score_request_names_its_field(
    refused_fields: Callable[[Any], list[str]], changes: Any, field: str
) -> None:
    """The status is INVALID_ARGUMENT, and the field violation is that of the field."""
    request = {"sequences": [BASE], "top_k": 1, "temperature": 1.0} | changes
    assert field in refused_fields(pb.ScoreRequest(**request))


@pytest.fixture(scope="module")
def refused_fields(folder: Path) -> Any:
    """Return a function that sends a bad request and returns the fields that the server names."""
    loop = asyncio.new_event_loop()
    context = _served(folder)
    served = loop.run_until_complete(context.__aenter__())

    async def send(request: pb.RolloutRequest | pb.ScoreRequest) -> list[str]:
        method = served.stub.Rollout if isinstance(request, pb.RolloutRequest) else served.stub.Score
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in method(request):
                pass
        assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
        status = rpc_status.from_call(caught.value)
        bad = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad) for detail in status.details)
        return [violation.field for violation in bad.field_violations]

    yield lambda request: loop.run_until_complete(send(request))
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


def test_calls_before_the_model_is_loaded_are_told_so(folder: Path) -> None:
    """They are UNAVAILABLE, and may be tried again."""

    async def call(served: Served) -> grpc.StatusCode:
        with pytest.raises(aio.AioRpcError) as caught:
            await served.stub.GetModel(pb.GetModelRequest())
        return caught.value.code()

    assert grpc.StatusCode.UNAVAILABLE == _with(folder, call, load=False)


def test_a_cancelled_call_frees_the_engine(folder: Path) -> None:
    """After a client has gone, its rows and its place in the queue are free, and health has answered all along."""
    large = _request(end_position=96, forks=[pb.Fork(forced_token_ids=[5], seeds=range(5000))])

    async def leave(served: Served) -> tuple[int, float | None]:
        call = served.stub.Rollout(large)
        await call.read()
        call.cancel()
        answer = await served.health.Check(health_pb2.HealthCheckRequest())
        while served.metrics.registry.get_sample_value("opdscope_generator_rows_running"):  # noqa: ASYNC110 - a metric
            await asyncio.sleep(0.01)
        [response async for response in served.stub.Rollout(_request())]
        return answer.status, served.metrics.registry.get_sample_value("opdscope_generator_jobs_waiting")

    expected = (health_pb2.HealthCheckResponse.SERVING, 0)
    assert expected == _with(folder, leave, max_waiting_jobs=1)
