"""The embedded engine: one thread owns the model and serves all jobs."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
import torch
import transformers
from opdscope_serving.errors import EngineDown, QueueFull
from opdscope_serving.models import LoadedModel

from opdscope_generator.embedded.batch import Batch
from opdscope_generator.embedded.forward import Forward
from opdscope_generator.embedded.prefixes import PrefixCache
from opdscope_generator.embedded.rollouts import Rollouts
from opdscope_generator.embedded.scoring import Scores, ScoreTask
from opdscope_generator.embedded.task import RolloutTask
from opdscope_generator.engine import ModelInfo, RolloutBatch, RolloutJob, ScoreJob, SequenceScores
from opdscope_generator.metrics import GeneratorMetrics

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True)
class EmbeddedLimits:
    """What the engine may use."""

    max_rows: int = 64
    """Samples that are decoded together."""
    kv_bytes: int = 1024 * 2**20
    """Keys and values that the samples add to their prefixes."""
    prefix_bytes: int = 512 * 2**20
    """Keys and values of prefixes."""
    max_jobs: int = 256
    """Jobs at once; more are refused."""
    threads: int = 0
    """Threads that torch computes with; 0 leaves it to torch."""


class EmbeddedEngine:
    """Implements `Engine` with a transformers model in this process."""

    def __init__(self, loaded: LoadedModel, limits: EmbeddedLimits, metrics: GeneratorMetrics) -> None:
        """Take the model over and start the thread.

        Raises:
            UnsupportedModelError: The model does not use plain attention.
        """
        self._loaded = loaded
        self._limits = limits
        self._metrics = metrics
        self._forward = Forward(loaded)
        prefixes = PrefixCache(self._forward, limits.prefix_bytes)
        batch = Batch(self._forward, max_rows=limits.max_rows, budget=limits.kv_bytes)
        self._rollouts = Rollouts(batch, prefixes, metrics)
        self._scores = Scores(prefixes, metrics)
        self._info = _describe(loaded, limits, batch)
        self._wake = threading.Condition()
        # All guarded by the condition.
        self._commands: list[Callable[[], None]] = []
        self._mailboxes: set[_Mailbox[RolloutBatch] | _Mailbox[SequenceScores]] = set()
        self._down: EngineDown | None = None
        metrics.healthy.set(1)
        self._thread = threading.Thread(target=self._work, name="embedded-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """Describe the model."""
        return self._info

    @property
    def healthy(self) -> bool:
        """Whether jobs are served."""
        return self._down is None

    @property
    def model_seconds(self) -> float:
        """Time spent in the model so far; the rest of the thread's time is sampling and keeping order."""
        return self._forward.seconds

    async def rollout(self, job: RolloutJob) -> AsyncGenerator[RolloutBatch]:
        """Yield the job's completions as they finish."""
        mailbox = _Mailbox[RolloutBatch]()
        task = RolloutTask(job, self._loaded.tokenizer, self._loaded.eos_token_ids, mailbox.put)
        with self._job(mailbox, lambda: self._rollouts.add(task), lambda: self._rollouts.cancel(task)):
            while (batch := await mailbox.get()) is not None:
                yield batch

    async def score(self, job: ScoreJob) -> AsyncGenerator[SequenceScores]:
        """Yield the scores of the job's sequences in their order."""
        mailbox = _Mailbox[SequenceScores]()
        task = ScoreTask(job, mailbox.put)
        with self._job(mailbox, lambda: self._scores.add(task), lambda: self._scores.cancel(task)):
            while (scores := await mailbox.get()) is not None:
                yield scores

    def close(self) -> None:
        """Stop the thread after its current step; jobs that are still there fail."""
        self._stop(EngineDown("the engine is closed"))
        self._thread.join()

    @contextmanager
    def _job(
        self,
        mailbox: "_Mailbox[RolloutBatch] | _Mailbox[SequenceScores]",
        add: Callable[[], None],
        cancel: Callable[[], None],
    ) -> Iterator[None]:
        with self._wake:
            if self._down is not None:
                raise EngineDown(str(self._down))
            if len(self._mailboxes) >= self._limits.max_jobs:
                raise QueueFull(f"{self._limits.max_jobs} jobs are running or waiting, the most this engine takes")
            self._mailboxes.add(mailbox)
            self._commands.append(add)
            self._wake.notify()
        try:
            yield
        finally:
            with self._wake:
                self._mailboxes.discard(mailbox)
                self._commands.append(cancel)
                self._wake.notify()

    @torch.inference_mode()
    def _work(self) -> None:
        """Serve jobs until the end. Whatever goes wrong here must reach those who wait."""
        try:
            if self._limits.threads:
                torch.set_num_threads(self._limits.threads)
            while self._down is None:
                for command in self._take_commands():
                    command()
                self._rollouts.advance()
                self._scores.advance()
        except Exception as error:
            log.exception("engine_failed")
            self._stop(EngineDown(f"the engine failed: {type(error).__name__}"))

    def _take_commands(self) -> list[Callable[[], None]]:
        """Return the commands that came in; sleep while there is nothing to do."""
        with self._wake:
            while not (self._commands or self._down or self._rollouts.busy or self._scores.busy):
                self._wake.wait()
            commands, self._commands = self._commands, []
            return commands

    def _stop(self, reason: EngineDown) -> None:
        with self._wake:
            self._down = self._down or reason
            for mailbox in self._mailboxes:
                mailbox.put(self._down)
            self._wake.notify()
        self._metrics.healthy.set(0)


class _Mailbox(Generic[T]):
    """Carries results from the engine's thread to a coroutine; None is the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | EngineDown | None] = asyncio.Queue()

    def put(self, item: T | EngineDown | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def get(self) -> T | None:
        item = await self._items.get()
        if isinstance(item, EngineDown):
            raise EngineDown(str(item))
        return item


def _describe(loaded: LoadedModel, limits: EmbeddedLimits, batch: Batch) -> ModelInfo:
    return ModelInfo(
        model_id=loaded.model_id,
        weights_version=loaded.weights_version,
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        vocabulary_size=loaded.vocabulary_size,
        context_length=loaded.context_length,
        engine="embedded",
        engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        seeded=True,
        max_top_k=0,
        max_batch_size=limits.max_rows,
        dtype=loaded.dtype,
        max_new_tokens=min(batch.largest_row, loaded.context_length),
    )
