"""All rollout jobs of the engine in one batch: whose prefix is computed, who starts rows, what is finished."""

import time
from collections import deque
from collections.abc import Iterable
from typing import cast

from opdscope_generator.embedded.batch import Batch
from opdscope_generator.embedded.prefixes import Prefix, PrefixCache
from opdscope_generator.embedded.task import RolloutTask, Sample
from opdscope_generator.engine import Completion, PrefixUse
from opdscope_generator.metrics import GeneratorMetrics

# Rows that a job may start before it is the next one's turn: a small job does not wait for a large one, and the samples
# of one fork still run together.
_TURN_ROWS = 8
# Prefix tokens computed between two steps at most, so that rows under way go on.
_PREFIX_TOKENS_PER_STEP = 512


class Rollouts:
    """Runs tasks: first come first served until the prefix is there, then in turns. Lives on the engine's thread."""

    def __init__(self, batch: Batch, prefixes: PrefixCache, metrics: GeneratorMetrics) -> None:
        self._batch = batch
        self._prefixes = prefixes
        self._metrics = metrics
        self._arrived: deque[RolloutTask] = deque()
        self._partial: Prefix | None = None  # of the first of those that arrived
        self._open: deque[RolloutTask] = deque()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._arrived or self._open or self._batch.rows)

    def add(self, task: RolloutTask) -> None:
        """Take a task on."""
        self._count(task.plan())
        if task.has_more:
            self._arrived.append(task)
        else:
            task.flush()

    def cancel(self, task: RolloutTask) -> None:
        """Forget a task, and free its rows and its prefix. One that is finished or unknown is left alone."""
        if self._arrived and self._arrived[0] is task:
            self._partial = None
        for queue in (self._arrived, self._open):
            if task in queue:
                queue.remove(task)
        self._batch.remove([row for row in self._samples() if row.task is task])
        self._release(task)

    def advance(self) -> None:
        """Compute some of a prefix, start rows where there is room, and feed one token of every row."""
        budget = _PREFIX_TOKENS_PER_STEP
        while budget > 0 and self._arrived and (spent := self._prepare(self._arrived[0], budget)) is not None:
            budget -= spent
        self._start_rows()
        if self._batch.rows:
            self._step()
        self._metrics.rows.set(len(self._batch.rows))
        self._metrics.jobs_waiting.set(len(self._arrived) + len(self._open))
        self._metrics.kv_bytes.labels("rows").set(self._batch.size)
        self._metrics.kv_bytes.labels("prefixes").set(self._prefixes.size)

    def _prepare(self, task: RolloutTask, budget: int) -> int | None:
        """Compute up to `budget` tokens of a task's prefix, and return how many; None while there is no room for it."""
        tokens = task.job.prefix_token_ids
        if self._partial is None:
            if (found := self._prefixes.find(tokens)) is not None:
                self._admit(task, found, PrefixUse(computed_tokens=0, cached_tokens=len(tokens)))
                return 0
            if not self._prefixes.has_room(len(tokens)):
                return None
            self._partial = self._prefixes.start(tokens)
        prefix = self._partial
        count = min(budget, len(tokens) - prefix.length)
        self._prefixes.extend(prefix, count)
        if prefix.complete:
            self._partial = None
            self._prefixes.store(prefix)
            self._admit(task, prefix, PrefixUse(len(tokens) - prefix.reused, prefix.reused))
        return count

    def _admit(self, task: RolloutTask, prefix: Prefix, use: PrefixUse) -> None:
        self._prefixes.acquire(prefix)
        task.open(prefix, use)
        task.flush()
        self._open.append(self._arrived.popleft())
        self._metrics.prefix_tokens.labels("computed").inc(use.computed_tokens)
        self._metrics.prefix_tokens.labels("cached").inc(use.cached_tokens)

    def _start_rows(self) -> None:
        while self._open and self._batch.fits(self._open[0].columns):
            task = self._open[0]
            self._batch.add(task.start())
            task.started_in_turn += 1
            if not task.has_more:
                self._open.popleft()
            elif task.started_in_turn % _TURN_ROWS == 0:
                self._open.rotate(-1)

    def _step(self) -> None:
        started = time.perf_counter()
        sampled = cast("list[Sample]", self._batch.step())
        self._metrics.generated_tokens.inc(len(sampled))
        ended = [(sample, completion) for sample in sampled if (completion := sample.task.check(sample))]
        self._batch.remove([sample for sample, _ in ended])
        self._count(completion for _, completion in ended)
        for task in {sample.task for sample, _ in ended}:
            if task.finished:
                self._release(task)
            task.flush()
        self._metrics.step_seconds.observe(time.perf_counter() - started)

    def _samples(self) -> list[Sample]:
        return cast("list[Sample]", self._batch.rows)

    def _release(self, task: RolloutTask) -> None:
        if task.prefix is not None:
            self._prefixes.release(task.prefix)
            task.prefix = None

    def _count(self, completions: Iterable[Completion]) -> None:
        for completion in completions:
            self._metrics.completions.labels(completion.finish_reason.name.lower()).inc()
