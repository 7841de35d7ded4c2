import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from opdscope_generator.embedded.engine import EmbeddedEngine
from opdscope_generator.engine import FinishReason, Fork, PrefixUse, RolloutBatch, RolloutJob, Sampling
from plain_rollouts import all_completions, by_index, plain_rollouts
from tiny import EOS_ID, VOCABULARY_SIZE, tiny_gpt2, tiny_loaded, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

Run = Callable[[EmbeddedEngine, RolloutJob], list[RolloutBatch]]
StartEngine = Callable[..., EmbeddedEngine]

FORKS = (Fork((5,), (1, 2, 3)), Fork((), (1, 2, 2**64 - 1)), Fork((7, 8, 9), (4, 5)))


def _encode(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer()(text)["input_ids"])


def _job(prompt: str = "what is 3+4? ", output: str = "it is", **changes: Any) -> RolloutJob:
    prefix = _encode(prompt + output)
    sampling = Sampling(**{"temperature": 0.9} | changes.pop("sampling", {}))
    defaults = {"end_position": len(prefix) + 25, "forks": FORKS, "sampling": sampling}
    return RolloutJob(prefix, len(prompt), **(defaults | changes))


def _assert_plain(job: RolloutJob, batches: list[RolloutBatch]) -> None:
    samples, log_probs = plain_rollouts(tiny_gpt2(), tiny_tokenizer(), job)
    completions = all_completions(batches)
    assert samples == by_index(completions)
    for completion in completions:
        expected = log_probs[completion.fork_index, completion.sample_index]
        assert expected == pytest.approx(completion.log_probs, abs=1e-9)


@pytest.mark.parametrize("max_rows", [1, 3, 64])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_forked_decoding_equals_full_recomputation(
    start_engine: StartEngine, run: Run, max_rows: int, top_p: float
) -> None:
    """Tokens, finish reasons and log-probabilities are those of the plain loop, whatever the size of the batch."""
    job = _job(sampling={"top_p": top_p})
    _assert_plain(job, run(start_engine(max_rows=max_rows), job))


def test_llama_with_grouped_heads_decodes_like_full_recomputation(start_engine: StartEngine, run: Run) -> None:
    """Rotary positions and query heads that share key heads are handled."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.4,
        eos_token_id=EOS_ID,
    )
    plain = LlamaForCausalLM(config).double().eval()
    forked = LlamaForCausalLM(config).double().eval()
    forked.load_state_dict(plain.state_dict())
    job = _job()
    expected, _ = plain_rollouts(plain, tiny_tokenizer(), job)
    assert expected == by_index(all_completions(run(start_engine(tiny_loaded(forked)), job)))


def test_a_cached_prefix_changes_nothing(start_engine: StartEngine, run: Run) -> None:
    """Jobs on an equal, a shorter, a longer and a partly equal prefix reuse what is there, and sample the same."""
    engine = start_engine()
    first = _job(output="it is 7 because")
    jobs = [first, first, _job(output="it is"), _job(output="it is 7 because of"), _job(output="it is 8")]
    uses = []
    for job in jobs:
        batches = run(engine, job)
        _assert_plain(job, batches)
        uses.append(batches[0].prefix_use)
    lengths = [len(job.prefix_token_ids) for job in jobs]
    expected = [(lengths[0], 0), (0, lengths[0]), (0, lengths[2]), (3, lengths[0]), (1, lengths[4] - 1)]
    assert [PrefixUse(*use) for use in expected] == uses


def test_stop_string_ends_at_the_token_that_completes_it(start_engine: StartEngine, run: Run) -> None:
    """A stop string of several tokens ends every sample where its text first contains it."""
    engine = start_engine()
    free = by_index(all_completions(run(engine, _job())))
    text = tiny_tokenizer().decode(max(free.values(), key=lambda sample: len(sample[0]))[0], skip_special_tokens=True)
    job = _job(sampling={"stop_strings": (text[4:6], text[1:4])})
    batches = run(engine, job)
    _assert_plain(job, batches)
    assert FinishReason.STOP_STRING in {completion.finish_reason for completion in all_completions(batches)}


def test_stop_string_may_begin_in_the_prefix(start_engine: StartEngine, run: Run) -> None:
    """Prefix and forced tokens count as output: a forced token can complete a stop string, and so can a sampled one."""
    engine = start_engine()
    first = by_index(all_completions(run(engine, _job(forks=(Fork((), (1,)),)))))[0, 0][0][0]
    letter = tiny_tokenizer().decode([first])
    job = _job(forks=(Fork(_encode("x"), (1, 2)), Fork((), (1,))), sampling={"stop_strings": ("sx", f"is{letter}")})
    samples = by_index(all_completions(run(engine, job)))
    ended = ((), FinishReason.STOP_STRING)
    assert {(0, 0): ended, (0, 1): ended, (1, 0): ((first,), FinishReason.STOP_STRING)} == samples


def test_stop_string_in_the_prompt_does_not_count(start_engine: StartEngine, run: Run) -> None:
    """Only output is searched, and what a prompt and the output spell together is not output."""
    job = _job(prompt="stop her", output="e", sampling={"stop_strings": ("stop", "here")})
    batches = run(start_engine(), job)
    _assert_plain(job, batches)
    assert all(completion.token_ids for completion in all_completions(batches))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_end_position_is_absolute(start_engine: StartEngine, run: Run, extra: int) -> None:
    """Every fork ends at the same position; forced tokens that reach it leave nothing to sample."""
    job = _job(forks=(*FORKS, Fork(_encode("ab"), (9,))))
    job = _job(forks=job.forks, end_position=len(job.prefix_token_ids) + extra)
    batches = run(start_engine(), job)
    _assert_plain(job, batches)
    lengths = {c.fork_index: len(c.token_ids) for c in all_completions(batches) if c.finish_reason.name == "LENGTH"}
    assert {0: max(0, extra - 1), 2: 0, 3: max(0, extra - 2)}.items() <= lengths.items()


@pytest.mark.parametrize("stop", [EOS_ID, 21])
def test_a_forced_stop_token_ends_at_once(start_engine: StartEngine, run: Run, stop: int) -> None:
    """The model's own end of text and the caller's stop tokens end a fork that forces them."""
    job = _job(forks=(Fork((5, stop), (1, 2)),), sampling={"stop_token_ids": frozenset({21})})
    ended = ((), FinishReason.STOP_TOKEN)
    assert {(0, 0): ended, (0, 1): ended} == by_index(all_completions(run(start_engine(), job)))


def test_a_stop_token_is_the_last_token(start_engine: StartEngine, run: Run) -> None:
    """Sampled stop tokens are part of the completion."""
    stops = frozenset(range(38, VOCABULARY_SIZE))
    job = _job(sampling={"stop_token_ids": stops})
    batches = run(start_engine(), job)
    _assert_plain(job, batches)
    last = {c.token_ids[-1] for c in all_completions(batches) if c.finish_reason is FinishReason.STOP_TOKEN}
    assert last & stops
    assert last <= stops | {EOS_ID}


def test_equal_seeds_give_equal_samples(start_engine: StartEngine, run: Run) -> None:
    """The seed and the position decide, not the sample's index; other seeds give other samples."""
    job = _job(forks=(Fork((5,), (11, 12, 11, 13)),))
    samples = by_index(all_completions(run(start_engine(), job)))
    assert samples[0, 0] == samples[0, 2]
    assert len({samples[0, index] for index in range(4)}) == 3


def test_log_probs_are_those_of_the_truncated_policy(start_engine: StartEngine, run: Run) -> None:
    """A nucleus of one token leaves certainty."""
    completions = all_completions(run(start_engine(), _job(sampling={"top_p": 1e-6})))
    assert {0.0} == {round(log_prob, 12) for completion in completions for log_prob in completion.log_probs}
    assert all(math.isfinite(log_prob) for completion in completions for log_prob in completion.log_probs)
