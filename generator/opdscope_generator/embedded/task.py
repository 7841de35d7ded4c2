"""One rollout job under way: which samples are still to start, and when a sample is finished."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from opdscope_serving.text import StopWatcher
from transformers import PreTrainedTokenizerBase

from opdscope_generator.embedded.batch import Row
from opdscope_generator.embedded.prefixes import Prefix
from opdscope_generator.embedded.sampling import uniforms
from opdscope_generator.engine import Completion, FinishReason, Fork, PrefixUse, RolloutBatch, RolloutJob


@dataclass(eq=False, kw_only=True)
class Sample(Row):
    """A row and the sample that it draws."""

    task: "RolloutTask"
    fork_index: int
    sample_index: int
    window: list[int]
    """End of the output, in which stop strings are looked for."""

    def completion(self, reason: FinishReason) -> Completion:
        """Return the finished sample."""
        return Completion(self.fork_index, self.sample_index, tuple(self.token_ids), tuple(self.log_probs), reason)


class RolloutTask:
    """A job under way. `deliver` gets batches of completions, and None after the last."""

    def __init__(
        self,
        job: RolloutJob,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: frozenset[int],
        deliver: Callable[[RolloutBatch | None], None],
    ) -> None:
        self.job = job
        self.prefix: Prefix | None = None
        self.started_in_turn = 0
        self._deliver = deliver
        self._watcher = StopWatcher(tokenizer, job.sampling.stop_strings)
        self._stop_token_ids = job.sampling.stop_token_ids | eos_token_ids
        self._use: PrefixUse | None = PrefixUse(computed_tokens=0, cached_tokens=0)
        self._ready: list[Completion] = []
        self._to_start: deque[tuple[int, int]] = deque()
        self._unfinished = sum(len(fork.seeds) for fork in job.forks)

    @property
    def has_more(self) -> bool:
        """Whether samples are still to start."""
        return bool(self._to_start)

    @property
    def finished(self) -> bool:
        """Whether all samples are finished."""
        return self._unfinished == 0

    @property
    def columns(self) -> int:
        """Columns that the next sample may need."""
        return self.job.end_position - self._prefix_length(self._to_start[0][0]) - 1

    def plan(self) -> list[Completion]:
        """List the samples to start, and return those that the forced tokens end already."""
        for fork_index, fork in enumerate(self.job.forks):
            reason = self._ends_at_once(fork)
            for sample_index in range(len(fork.seeds)):
                if reason is None:
                    self._to_start.append((fork_index, sample_index))
                else:
                    self._finish(Completion(fork_index, sample_index, (), (), reason))
        return list(self._ready)

    def open(self, prefix: Prefix, use: PrefixUse) -> None:
        """Give the task its prefix."""
        self.prefix, self._use = prefix, use

    def start(self) -> Sample:
        """Return the next sample."""
        assert self.prefix is not None, "a task starts samples once its prefix is computed"
        fork_index, sample_index = self._to_start.popleft()
        fork = self.job.forks[fork_index]
        return Sample(
            prefix=self.prefix,
            prefix_length=self._prefix_length(fork_index),
            # Logits are not kept with a prefix: without forced tokens its last token is fed once more.
            pending=list(fork.forced_token_ids or self.job.prefix_token_ids[-1:]),
            uniforms=uniforms(fork.seeds[sample_index], self.job.end_position),
            temperature=self.job.sampling.temperature,
            top_p=self.job.sampling.top_p,
            task=self,
            fork_index=fork_index,
            sample_index=sample_index,
            window=self._watcher.window(self._output(fork)),
        )

    def check(self, sample: Sample) -> Completion | None:
        """Return the completion if the token that was sampled last ends it."""
        token_id = sample.token_ids[-1]
        reason = None
        if token_id in self._stop_token_ids:
            reason = FinishReason.STOP_TOKEN
        elif self._watcher.push(sample.window, token_id):
            reason = FinishReason.STOP_STRING
        elif sample.position + 1 >= self.job.end_position:
            reason = FinishReason.LENGTH
        return None if reason is None else self._finish(sample.completion(reason))

    def flush(self) -> None:
        """Deliver what is ready."""
        if self._ready:
            self._deliver(RolloutBatch(tuple(self._ready), self._use))
            self._ready, self._use = [], None
        if self.finished:
            self._deliver(None)

    def _finish(self, completion: Completion) -> Completion:
        self._ready.append(completion)
        self._unfinished -= 1
        return completion

    def _prefix_length(self, fork_index: int) -> int:
        length = len(self.job.prefix_token_ids)
        return length if self.job.forks[fork_index].forced_token_ids else length - 1

    def _output(self, fork: Fork) -> tuple[int, ...]:
        return self.job.prefix_token_ids[self.job.prompt_length :] + fork.forced_token_ids

    def _ends_at_once(self, fork: Fork) -> FinishReason | None:
        output = self._output(fork)
        if not self._stop_token_ids.isdisjoint(output):
            return FinishReason.STOP_TOKEN
        if self._watcher.stopped(output):
            return FinishReason.STOP_STRING
        length = len(self.job.prefix_token_ids) + len(fork.forced_token_ids)
        return FinishReason.LENGTH if length >= self.job.end_position else None
