"""Client of the generators: any number of replicas that serve the student."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc import aio
from opdscope.v1 import generator_pb2, generator_pb2_grpc
from opdscope_serving.errors import EngineDown, VocabularyMismatch, WeightsChanged
from opdscope_serving.models import LoadedModel

from opdscope_scorer.convert import sampling_message
from opdscope_scorer.plan import PlannedSample
from opdscope_scorer.run_settings import Sampling

log = structlog.get_logger()

_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 32 * 2**20),
    ("grpc.max_send_message_length", 32 * 2**20),
    # A replica that was down is tried again soon.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
# What another replica, or the same one later, may do better.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CALL_SECONDS = 3600.0
_MODEL_SECONDS = 10.0
_PAUSE_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Prefix:
    """What the samples of one request share, and where they end."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    """Output tokens that are already there."""
    end_position: int
    sampling: Sampling


@dataclass(frozen=True)
class FinishedSample:
    """A sample as it came from a generator."""

    planned: PlannedSample
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: int


class GeneratorPool:
    """Sends rollouts to replicas; all requests of one prompt to the same one while it answers."""

    def __init__(self, addresses: Sequence[str], *, patience_seconds: float) -> None:
        """Connect to replicas at HOST:PORT; give up on a request after so long without any that answers."""
        self._channels = {address: aio.insecure_channel(address, options=_OPTIONS) for address in addresses}
        self._stubs = {
            address: generator_pb2_grpc.GeneratorServiceStub(channel) for address, channel in self._channels.items()
        }
        self._patience_seconds = patience_seconds
        self._checked: set[str] = set()

    async def close(self) -> None:
        """Close all connections, and with them all calls."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def rollout(
        self, student: LoadedModel, prefix: Prefix, samples: Sequence[PlannedSample], affinity: str
    ) -> AsyncIterator[list[FinishedSample]]:
        """Yield the samples as they finish. What a replica leaves undone is asked for again, from the next one.

        Args:
            student: The student, with which every replica must agree.
            prefix: What the samples share.
            samples: What to generate.
            affinity: Requests with equal values go to the same replica while it answers.

        Raises:
            EngineDown: No replica has answered for the pool's patience.
            VocabularyMismatch: A replica serves a model with another tokenizer.
            WeightsChanged: A replica serves other weights than the student's.
        """
        missing = {sample.key: sample for sample in samples}
        last_answer, attempt = time.monotonic(), 0
        while missing:
            for address in self._preferred(affinity):
                try:
                    await self._check(address, student)
                    async for batch in self._call(address, prefix, list(missing.values())):
                        for sample in batch:
                            del missing[sample.planned.key]
                        last_answer, attempt = time.monotonic(), 0
                        yield batch
                    if missing:
                        raise EngineDown(f"generator {address} ended a call with {len(missing)} samples missing")
                except aio.AioRpcError as error:
                    if error.code() not in _PASSING:
                        raise EngineDown(f"generator {address}: {error.code().name}: {error.details()}") from error
                    self._checked.discard(address)
                    log.warning("generator_call_failed", address=address, code=error.code().name, left=len(missing))
                    continue
                break
            else:
                waited = time.monotonic() - last_answer
                if waited > self._patience_seconds:
                    addresses = ", ".join(self._channels)
                    raise EngineDown(f"no generator has answered for {waited:.0f} s; tried {addresses}")
                await asyncio.sleep(_PAUSE_SECONDS[min(attempt, len(_PAUSE_SECONDS) - 1)])
                attempt += 1

    def _preferred(self, affinity: str) -> list[str]:
        """Return all addresses, best first, by rendezvous hashing: a replica that goes moves only its own requests."""

        def weight(address: str) -> bytes:
            return hashlib.blake2b(f"{address}\0{affinity}".encode(), digest_size=8).digest()

        return sorted(self._channels, key=weight, reverse=True)

    async def _check(self, address: str, student: LoadedModel) -> None:
        """Make sure, once after every interruption, that a replica serves the student."""
        if address in self._checked:
            return
        model = await self._stubs[address].GetModel(generator_pb2.GetModelRequest(), timeout=_MODEL_SECONDS)
        if model.tokenizer_fingerprint != student.tokenizer_fingerprint:
            raise VocabularyMismatch(
                f"generator {address} serves {model.model_id}, whose tokenizer ({model.tokenizer_fingerprint}) is not "
                f"that of the student {student.model_id} ({student.tokenizer_fingerprint})"
            )
        if model.weights_version != student.weights_version:
            raise WeightsChanged(
                f"generator {address} serves weights {model.weights_version} of {model.model_id}; the scorer holds "
                f"{student.weights_version} of {student.model_id}"
            )
        self._checked.add(address)

    async def _call(
        self, address: str, prefix: Prefix, samples: Sequence[PlannedSample]
    ) -> AsyncIterator[list[FinishedSample]]:
        forks, names = _forks(samples)
        request = generator_pb2.RolloutRequest(
            prefix_token_ids=(*prefix.prompt, *prefix.output),
            prompt_length=len(prefix.prompt),
            end_position=prefix.end_position,
            forks=forks,
            sampling=sampling_message(prefix.sampling),
        )
        call = self._stubs[address].Rollout(request, timeout=_CALL_SECONDS)
        try:
            async for response in call:
                yield [
                    FinishedSample(
                        planned=names[c.fork_index][c.sample_index],
                        token_ids=tuple(c.token_ids),
                        log_probs=tuple(c.log_probs_nats),
                        finish_reason=c.finish_reason,
                    )
                    for c in response.completions
                ]
        finally:
            call.cancel()


def _forks(samples: Sequence[PlannedSample]) -> tuple[list[generator_pb2.Fork], list[list[PlannedSample]]]:
    """Group samples by forced tokens; return the forks, and for each the samples in the order of its seeds."""
    groups: dict[tuple[int, ...], list[PlannedSample]] = {}
    for sample in samples:
        groups.setdefault(sample.forced, []).append(sample)
    forks = [
        generator_pb2.Fork(forced_token_ids=forced, seeds=[sample.seed for sample in group])
        for forced, group in groups.items()
    ]
    return forks, list(groups.values())
