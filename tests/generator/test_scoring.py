import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from opdscope_generator.embedded.engine import EmbeddedEngine
from opdscope_generator.engine import Fork, RolloutJob, Sampling, ScoreJob, ScoreSequence, SequenceScores
from tiny import VOCABULARY_SIZE, tiny_gpt2, tiny_loaded

StartEngine = Callable[..., EmbeddedEngine]

SEQUENCE = tuple(1 + (7 * i * i + 3 * i) % (VOCABULARY_SIZE - 1) for i in range(300))


async def _collect(engine: EmbeddedEngine, job: ScoreJob) -> list[SequenceScores]:
    return [scores async for scores in engine.score(job)]


def _direct(sequence: ScoreSequence, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = tiny_gpt2(n_positions=320)(torch.tensor([sequence.token_ids])).logits[0]
    return torch.log_softmax(logits / temperature, dim=-1)[[position - 1 for position in sequence.positions]]


def _assert_direct(job: ScoreJob, results: list[SequenceScores]) -> None:
    assert list(range(len(job.sequences))) == [scores.sequence_index for scores in results]
    for sequence, scores in zip(job.sequences, results, strict=True):
        expected = _direct(sequence, job.temperature)
        top = expected.topk(job.top_k)
        wanted = expected[:, list(sequence.wanted_token_ids)]
        np.testing.assert_allclose(wanted.numpy(), scores.wanted_log_probs_P_W, atol=1e-5)
        np.testing.assert_array_equal(top.indices.numpy(), scores.top_token_ids_P_K)
        np.testing.assert_allclose(top.values.numpy(), scores.top_log_probs_P_K, atol=1e-5)


@pytest.fixture
def engine(start_engine: StartEngine) -> EmbeddedEngine:
    """Return an engine whose context is longer than a chunk of the scoring."""
    return start_engine(tiny_loaded(tiny_gpt2(n_positions=320)))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_equal_the_direct_log_softmax(engine: EmbeddedEngine, temperature: float) -> None:
    """Positions in any order, repeated, at both ends and in different chunks; with and without wanted ids."""
    sequences = (
        ScoreSequence(SEQUENCE, (300, 1, 129, 128, 130, 1), (3, 4, 3)),
        ScoreSequence(SEQUENCE[:5], (5,), ()),
        ScoreSequence(SEQUENCE[:200], (150, 200), (9,)),
    )
    job = ScoreJob(sequences, top_k=4, temperature=temperature)
    _assert_direct(job, asyncio.run(_collect(engine, job)))


def test_scores_do_not_depend_on_what_was_computed_before(engine: EmbeddedEngine) -> None:
    """Sequences that share a beginning with rollouts and with each other get the same values."""
    rollouts = RolloutJob(SEQUENCE[:50], 50, 60, (Fork((1,), (1, 2)),), Sampling(1.0))
    sequences = tuple(ScoreSequence((*SEQUENCE[:60], last), (40, 61), (last, 2)) for last in (1, 2, 3))
    job = ScoreJob(sequences, top_k=VOCABULARY_SIZE, temperature=1.0)

    async def after_rollouts() -> list[SequenceScores]:
        async for _ in engine.rollout(rollouts):
            pass
        return await _collect(engine, job)

    _assert_direct(job, asyncio.run(after_rollouts()))


def test_scoring_and_rollouts_go_on_side_by_side(engine: EmbeddedEngine) -> None:
    """Both kinds of jobs finish while the other runs, and a caller who leaves does not disturb them."""
    rollouts = RolloutJob(SEQUENCE[:50], 50, 80, (Fork((1,), tuple(range(20))),), Sampling(1.0))
    job = ScoreJob(tuple(ScoreSequence(SEQUENCE[start:], (5, 60), (1,)) for start in range(20)), 0, 1.0)

    async def leave() -> None:
        scores = engine.score(job)
        await anext(scores)
        await scores.aclose()

    async def together() -> tuple[list[SequenceScores], int]:
        samples = asyncio.create_task(_count(engine, rollouts))
        results, _ = await asyncio.gather(_collect(engine, job), leave())
        return results, await samples

    results, samples = asyncio.run(together())
    _assert_direct(job, results)
    assert samples == 20


async def _count(engine: EmbeddedEngine, job: RolloutJob) -> int:
    return sum([len(batch.completions) async for batch in engine.rollout(job)])
