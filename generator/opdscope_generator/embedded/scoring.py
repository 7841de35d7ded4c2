"""Log-probabilities of given sequences, in chunks of bounded memory.

Shapes: P positions, W wanted token ids, K likeliest tokens, C positions of a chunk, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opdscope_generator.embedded.prefixes import Prefix, PrefixCache
from opdscope_generator.engine import ScoreJob, ScoreSequence, SequenceScores
from opdscope_generator.metrics import GeneratorMetrics

# Bounds the logits that are in memory at once.
_CHUNK_TOKENS = 128


class ScoreTask:
    """A job under way. `deliver` gets the scores, and None after the last."""

    def __init__(self, job: ScoreJob, deliver: Callable[[SequenceScores | None], None]) -> None:
        self.job = job
        self.deliver = deliver
        self.steps: Iterator[SequenceScores | None] | None = None


class Scores:
    """Runs tasks in turns, one chunk each. Lives on the engine's thread."""

    def __init__(self, prefixes: PrefixCache, metrics: GeneratorMetrics) -> None:
        self._prefixes = prefixes
        self._metrics = metrics
        self._tasks: deque[ScoreTask] = deque()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._tasks)

    def add(self, task: ScoreTask) -> None:
        """Take a task on."""
        task.steps = _steps(task.job, self._prefixes)
        self._tasks.append(task)

    def cancel(self, task: ScoreTask) -> None:
        """Forget a task. One that is finished or unknown is left alone."""
        if task in self._tasks:
            self._tasks.remove(task)

    def advance(self) -> None:
        """Compute one chunk of the task whose turn it is."""
        if not self._tasks:
            return
        task = self._tasks.popleft()
        assert task.steps is not None, "add() starts a task"
        for scores in task.steps:
            if scores is not None:
                self._metrics.scored_positions.inc(len(scores.wanted_log_probs_P_W))
                task.deliver(scores)
            self._tasks.append(task)
            return
        task.deliver(None)


def _steps(job: ScoreJob, prefixes: PrefixCache) -> Iterator[SequenceScores | None]:
    """Compute a chunk at a time; yield None between chunks and the scores at the end of a sequence."""
    for index, sequence in enumerate(job.sequences):
        scores = _empty(index, sequence, job.top_k)
        # Tokens before the first position may come from the cache; after the last position none is needed.
        last, reusable = max(sequence.positions), min(sequence.positions) - 1
        prefix = prefixes.start(sequence.token_ids[:last], reuse_at_most=reusable)
        while not prefix.complete:
            rows, log_probs_CV = _next_chunk(prefix, prefixes, sequence, job.temperature)
            _fill(scores, rows, log_probs_CV, sequence.wanted_token_ids)
            yield None
        prefixes.store(prefix)
        yield scores


def _empty(index: int, sequence: ScoreSequence, top_k: int) -> SequenceScores:
    positions, wanted = len(sequence.positions), len(sequence.wanted_token_ids)
    return SequenceScores(
        index,
        np.empty((positions, wanted), np.float32),
        np.empty((positions, top_k), np.int32),
        np.empty((positions, top_k), np.float32),
    )


def _next_chunk(
    prefix: Prefix, prefixes: PrefixCache, sequence: ScoreSequence, temperature: float
) -> tuple[NDArray[np.intp], Tensor]:
    """Compute the next tokens; return which of the positions they predict (C), and the log-probabilities (C, V)."""
    start = prefix.length
    count = min(_CHUNK_TOKENS, len(prefix.token_ids) - start)
    # Token p-1 predicts token p.
    predictors_P = np.asarray(sequence.positions) - 1
    rows = np.flatnonzero((predictors_P >= start) & (predictors_P < start + count))
    logits_CV = prefixes.extend(prefix, count, keep=(predictors_P[rows] - start).tolist())
    return rows, torch.log_softmax(logits_CV.double() / temperature, dim=-1)


def _fill(scores: SequenceScores, rows: NDArray[np.intp], log_probs_CV: Tensor, wanted: tuple[int, ...]) -> None:
    scores.wanted_log_probs_P_W[rows] = log_probs_CV[:, list(wanted)].cpu().numpy()
    top = torch.topk(log_probs_CV, scores.top_token_ids_P_K.shape[1])
    scores.top_token_ids_P_K[rows] = top.indices.cpu().numpy()
    scores.top_log_probs_P_K[rows] = top.values.cpu().numpy()
