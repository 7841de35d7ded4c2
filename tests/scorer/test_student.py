"""Distributions from the student's weights."""

import pytest
import tiny
import torch
from opdscope_scorer import student as student_module
from opdscope_scorer.student import Student

PROMPT = [3, 14, 15, 9, 2]
OUTPUT = [6, 5, 35, 8, 9, 7, 9]


@pytest.mark.parametrize("chunk", [256, 3, 1])
def test_logits_are_those_of_one_forward_pass(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and caches change nothing."""
    monkeypatch.setattr(student_module, "_CHUNK", chunk)
    loaded = tiny.tiny_loaded()
    with torch.inference_mode():
        full = loaded.model(torch.tensor([PROMPT + OUTPUT])).logits[0]
    student = Student(loaded)
    for positions in ([0], [2, 5], list(range(len(OUTPUT)))):
        expected = full[[len(PROMPT) - 1 + position for position in positions]]
        for _ in range(2):
            torch.testing.assert_close(student.logits(PROMPT, OUTPUT, positions), expected, rtol=0, atol=1e-12)


def test_prompt_of_one_token_works() -> None:
    """There is no prefix to keep then."""
    loaded = tiny.tiny_loaded()
    with torch.inference_mode():
        full = loaded.model(torch.tensor([[7, 3, 4]])).logits[0]
    torch.testing.assert_close(Student(loaded).logits([7], [3, 4], [0, 1]), full[:2], rtol=0, atol=1e-12)


def test_trace_gives_entropy_and_the_taken_tokens_log_probabilities() -> None:
    """At the temperature and truncation that sample."""
    student = Student(tiny.tiny_loaded())
    trace = student.trace(PROMPT, OUTPUT, temperature=0.7, top_p=1.0)
    log_p = (student.logits(PROMPT, OUTPUT, list(range(len(OUTPUT)))) / 0.7).log_softmax(-1)
    torch.testing.assert_close(trace.entropy_L, -(log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(trace.log_prob_L, log_p.gather(1, torch.tensor(OUTPUT)[:, None])[:, 0])


def test_nothing_asked_for_gives_nothing() -> None:
    """A rollout may have no nodes."""
    assert Student(tiny.tiny_loaded()).logits(PROMPT, OUTPUT, []).shape == (0, tiny.VOCABULARY_SIZE)
