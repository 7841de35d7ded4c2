import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing

import pytest
from opdscope_generator.embedded.engine import EmbeddedEngine
from opdscope_generator.engine import Completion, Fork, RolloutJob, Sampling
from opdscope_serving.errors import EngineDown, QueueFull
from plain_rollouts import by_index
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from tiny import VOCABULARY_SIZE

StartEngine = Callable[..., EmbeddedEngine]


def _random_job(rng: random.Random, *, shared: tuple[int, ...]) -> RolloutJob:
    def tokens(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCABULARY_SIZE) for _ in range(rng.randint(0, most)))

    prefix = shared[: rng.randint(1, len(shared))] + tokens(20)
    forks = tuple(
        Fork(tokens(3), tuple(rng.randrange(2**64) for _ in range(rng.randint(1, 4)))) for _ in range(rng.randint(1, 4))
    )
    return RolloutJob(
        prefix_token_ids=prefix,
        prompt_length=rng.randint(0, len(prefix)),
        end_position=len(prefix) + rng.randint(0, 20),
        forks=forks,
        sampling=Sampling(
            temperature=rng.choice([0.6, 1.0]),
            top_p=rng.choice([0.8, 1.0]),
            stop_strings=rng.choice([(), ("a",), ("7", "+ ")]),
        ),
    )


async def _collect(engine: EmbeddedEngine, job: RolloutJob) -> list[Completion]:
    return [completion async for batch in engine.rollout(job) for completion in batch.completions]


async def _leave_after(engine: EmbeddedEngine, job: RolloutJob, batches: int) -> None:
    async with aclosing(engine.rollout(job)) as results:
        for _ in range(batches):
            await anext(results, None)


def _idle(registry: CollectorRegistry) -> dict[str, float | None]:
    names = ("rows_running", "jobs_waiting")
    values = {name: registry.get_sample_value(f"opdscope_generator_{name}") for name in names}
    values["row_bytes"] = registry.get_sample_value("opdscope_generator_kv_bytes", {"holder": "rows"})
    return values


def test_jobs_together_with_cancellations_sample_what_each_samples_alone(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    """200 jobs of random sizes, a third of which are cancelled on the way: the others are complete and unchanged.

    Afterwards neither rows nor memory are held. There is room for about a dozen prefixes, so prefixes that cancelled
    jobs kept would hang the rest.
    """
    rng = random.Random(5)  # noqa: S311 - a seeded test
    shared = tuple(rng.randrange(1, VOCABULARY_SIZE) for _ in range(30))
    jobs = [_random_job(rng, shared=shared) for _ in range(200)]
    leave = {index: rng.randint(0, 3) for index in rng.sample(range(200), 66)}
    engine = start_engine(max_rows=16, prefix_bytes=200_000)

    async def together() -> list[list[Completion] | None]:
        work = [
            _leave_after(engine, job, leave[index]) if index in leave else _collect(engine, job)
            for index, job in enumerate(jobs)
        ]
        return await asyncio.gather(*work)

    async def alone() -> list[list[Completion]]:
        return [await _collect(engine, job) for index, job in enumerate(jobs) if index not in leave]

    mixed = [by_index(result) for result in asyncio.run(together()) if result is not None]
    assert [by_index(result) for result in asyncio.run(alone())] == mixed
    assert [sum(len(fork.seeds) for fork in jobs[i].forks) for i in range(200) if i not in leave] == list(
        map(len, mixed)
    )
    engine.close()
    assert _idle(registry) == {"rows_running": 0, "jobs_waiting": 0, "row_bytes": 0}


def test_a_small_job_does_not_wait_for_a_large_one(start_engine: StartEngine) -> None:
    """Calls take turns: one sample is done long before four hundred that came first."""
    engine = start_engine(max_rows=4)
    large = RolloutJob((1, 2, 3), 3, 40, (Fork((4,), tuple(range(400))),), Sampling(1.0))
    small = RolloutJob((5, 6), 2, 40, (Fork((4,), (1,)),), Sampling(1.0))

    async def race() -> tuple[int, int]:
        first = asyncio.create_task(_collect(engine, large))
        await asyncio.sleep(0)
        completions = await _collect(engine, small)
        return len(completions), first.done()

    assert asyncio.run(race()) == (1, False)


def test_rows_stay_within_their_memory(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    """A budget for fewer rows than there are samples delays samples; it is never exceeded, and nothing is lost."""
    budget = 3 * 30 * 2 * 2 * 16 * 8  # three rows of 30 tokens; 2 layers, keys and values, 16 numbers of 8 bytes
    engine = start_engine(kv_bytes=budget)
    job = RolloutJob((1, 2, 3), 3, 34, (Fork((4,), tuple(range(10))),), Sampling(1.0))

    async def watch() -> tuple[int, float]:
        completions, most = 0, 0.0
        async for batch in engine.rollout(job):
            completions += len(batch.completions)
            most = max(most, _idle(registry)["row_bytes"] or 0.0)
        return completions, most

    completions, most = asyncio.run(watch())
    assert completions == 10
    assert 0 < most <= budget


def test_more_jobs_than_allowed_are_refused(start_engine: StartEngine) -> None:
    """The queue is bounded, and a place is free again once a job has gone."""
    engine = start_engine(max_jobs=1)
    job = RolloutJob((1, 2, 3), 3, 90, (Fork((4,), tuple(range(50))),), Sampling(1.0))

    async def crowd() -> int:
        async with aclosing(engine.rollout(job)) as first:
            await anext(first)
            with pytest.raises(QueueFull):
                await _collect(engine, job)
        return len(await _collect(engine, job))

    assert asyncio.run(crowd()) == 50


def test_a_failure_in_the_model_reaches_every_caller(start_engine: StartEngine) -> None:
    """The job that breaks the model, the jobs beside it and all later ones fail; none hangs."""
    engine = start_engine()
    good = RolloutJob((1, 2, 3), 3, 90, (Fork((4,), tuple(range(50))),), Sampling(1.0))
    bad = RolloutJob((1, VOCABULARY_SIZE + 5), 2, 90, (Fork((), (1,)),), Sampling(1.0))

    async def all_fail() -> list[type]:
        results = await asyncio.gather(_collect(engine, good), _collect(engine, bad), return_exceptions=True)
        later = await asyncio.gather(_collect(engine, good), return_exceptions=True)
        return [type(result) for result in results + later]

    assert engine.healthy
    with capture_logs() as logs:
        assert [EngineDown] * 3 == asyncio.run(all_fail())
    assert [entry["event"] for entry in logs] == ["engine_failed"]
    assert not engine.healthy


def test_closing_ends_jobs_under_way(start_engine: StartEngine) -> None:
    """A caller of a closed engine is told, not left waiting."""
    engine = start_engine()
    job = RolloutJob((1, 2, 3), 3, 90, (Fork((4,), tuple(range(400))),), Sampling(1.0))

    async def close_under_way() -> None:
        async with aclosing(engine.rollout(job)) as results:
            await anext(results)
            await asyncio.to_thread(engine.close)
            async for _ in results:
                pass

    with pytest.raises(EngineDown):
        asyncio.run(close_under_way())
