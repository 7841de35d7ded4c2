"""Rollouts written as plainly as possible: one sample at a time, the whole sequence anew for every token."""

from collections.abc import Iterable

import numpy as np
import torch
from opdscope_generator.engine import Completion, FinishReason, RolloutBatch, RolloutJob, Sampling
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Samples = dict[tuple[int, int], tuple[tuple[int, ...], FinishReason]]


def plain_rollouts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, job: RolloutJob, eos_token_id: int = 0
) -> tuple[Samples, dict[tuple[int, int], list[float]]]:
    """Return tokens and finish reason, and log-probabilities, of every sample by fork and sample index."""
    samples, log_probs = {}, {}
    for fork_index, fork in enumerate(job.forks):
        for sample_index, seed in enumerate(fork.seeds):
            token_ids = [*job.prefix_token_ids, *fork.forced_token_ids]
            start = len(token_ids)
            uniforms = np.random.Generator(np.random.Philox(key=seed)).random(job.end_position + 1)
            scores = []
            while (reason := _ended(tokenizer, job, token_ids, eos_token_id)) is None:
                with torch.no_grad():
                    logits = model(torch.tensor([token_ids])).logits[0, -1]
                policy = plain_policy(logits.numpy(), job.sampling)
                token_ids.append(int(np.flatnonzero(np.cumsum(policy) > uniforms[len(token_ids)] * policy.sum())[0]))
                scores.append(float(np.log(policy[token_ids[-1]])))
            samples[fork_index, sample_index] = (tuple(token_ids[start:]), reason)
            log_probs[fork_index, sample_index] = scores
    return samples, log_probs


def plain_policy(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the sampling policy over the vocabulary."""
    scaled = logits.astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= sampling.top_p]] = 0
    return probs / probs.sum()


def by_index(completions: Iterable[Completion]) -> Samples:
    """Return completions in the form of `plain_rollouts`."""
    return {(c.fork_index, c.sample_index): (c.token_ids, c.finish_reason) for c in completions}


def all_completions(batches: Iterable[RolloutBatch]) -> list[Completion]:
    """Return the completions of all batches."""
    return [completion for batch in batches for completion in batch.completions]


def _ended(
    tokenizer: PreTrainedTokenizerFast, job: RolloutJob, token_ids: list[int], eos_token_id: int
) -> FinishReason | None:
    output = token_ids[job.prompt_length :]
    if any(token_id == eos_token_id or token_id in job.sampling.stop_token_ids for token_id in output):
        return FinishReason.STOP_TOKEN
    text = tokenizer.decode(output, skip_special_tokens=True)
    if any(stop in text for stop in job.sampling.stop_strings):
        return FinishReason.STOP_STRING
    return FinishReason.LENGTH if len(token_ids) >= job.end_position else None
