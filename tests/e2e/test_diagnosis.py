"""A diagnosis through real servers with the tiny model in float64."""

import dataclasses
from pathlib import Path

import pytest
import services
import tiny
import torch
from opdscope import Client, InvalidRequestError, RolloutFinished, RolloutScored, RunFile, RunState
from opdscope_scorer.verifiers import VERIFIERS


def _events(client: Client, run_file: RunFile, run_id: str) -> list:
    """All stored events of a run, in order; the one that ended it last."""
    with client.diagnose(run_file, run_id=run_id) as events:
        return [event for event in events if getattr(event, "sequence", 0)]


def _scored(events: list) -> dict[str, RolloutScored]:
    return {event.rollout_id: event for event in events if isinstance(event, RolloutScored)}


@pytest.fixture(scope="session")
def events(client: Client, run_file: RunFile) -> list:
    """The events of one run."""
    return _events(client, run_file, "first")


def test_events_are_numbered_without_gaps_and_end_with_the_run(events: list) -> None:
    """Rollouts, their tokens, their questions, then the summary."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].state is RunState.DONE
    names = [type(event).__name__ for event in events]
    assert names.count("RolloutFinished") == 6
    assert names.count("RolloutScored") == 6
    assert names.count("QuestionFinished") == 3


def test_every_candidate_was_forced_as_often_as_asked(events: list) -> None:
    """Unless its success is known without rollouts."""
    candidates = [c for event in _scored(events).values() for node in event.nodes for c in node.candidates]
    assert {c.trials for c in candidates if not c.known} == {6}
    assert {c.trials for c in candidates if c.known} <= {0}
    assert all(0 <= c.successes <= max(c.trials, 1) for c in candidates)


def test_probabilities_are_a_distribution(events: list) -> None:
    """Candidates and tail together are everything, for student and teachers."""
    for event in _scored(events).values():
        for node in event.nodes:
            student = sum(c.student_prob for c in node.candidates) + node.tail.student_prob
            assert student == pytest.approx(1.0, abs=1e-9)
            for teacher in ("none", "answer"):
                q = sum(c.teacher_probs[teacher] for c in node.candidates) + node.tail.teacher_probs[teacher]
                assert q == pytest.approx(1.0, abs=1e-9)


def test_the_student_itself_teaches_nothing(events: list) -> None:
    """With the same prompt teacher and student agree: the direction is 0 and the cosine does not exist."""
    rows = [row for event in _scored(events).values() for row in event.alignments if row.teacher == "none"]
    assert rows
    assert all(row.plug_in is None and row.distill_norm == pytest.approx(0, abs=1e-12) for row in rows)


def test_the_policies_of_both_servers_agree(events: list) -> None:
    """The same weights in float64, through a cache and without one."""
    assert events[-1].policy_mismatch_max_nats < 1e-5  # probabilities travel as float32


def test_a_finished_run_is_shown_again_without_work(client: Client, run_file: RunFile, events: list) -> None:
    """The same events, number by number."""
    before = client.get_run("first").spent
    assert _events(client, run_file, "first") == events
    assert client.get_run("first").spent == before


def test_watching_goes_on_after_any_event(client: Client, events: list) -> None:
    """A client that was cut off misses nothing and sees nothing twice."""
    for after in (0, 1, len(events) // 2, len(events) - 1, len(events)):
        with client.watch_run("first", after_sequence=after) as rest:
            assert [event for event in rest if getattr(event, "sequence", 0)] == events[after:]


def test_results_depend_on_the_seed_and_on_nothing_else(client: Client, run_file: RunFile, events: list) -> None:
    """Another run with the same settings gives the same numbers, to the last bit."""
    again = _events(client, run_file, "again")
    assert _scored(again) == {k: dataclasses.replace(v, sequence=_scored(again)[k].sequence)
                              for k, v in _scored(events).items()}  # fmt: skip
    assert again[-1].pooled == events[-1].pooled
    other = _events(client, run_file.model_copy(update={"seed": 12}), "other")
    assert other[-1].pooled != events[-1].pooled


def test_kill_and_restart_ends_in_the_same_numbers(
    tiny_model: Path, generator: services.Server, run_file: RunFile, events: list, tmp_path: Path
) -> None:
    """What was finished is kept, and the rest is as if nothing had happened."""
    with services.scorer(tiny_model, generator.address, tmp_path) as server, services.ready_client(server) as client:
        with client.diagnose(run_file, run_id="first") as stream:
            for event in stream:
                if isinstance(event, RolloutFinished):
                    break
        server.kill()
    with services.scorer(tiny_model, generator.address, tmp_path) as server, services.ready_client(server) as client:
        again = _events(client, run_file, "first")
    assert again[-1].pooled == events[-1].pooled
    assert again[-1].spent == events[-1].spent
    assert [event.sequence for event in again] == list(range(1, len(again) + 1))


def test_a_generator_that_dies_is_waited_for(tiny_model: Path, run_file: RunFile, events: list, tmp_path: Path) -> None:
    """Its replacement at the same address does what is missing."""
    with services.generator(tiny_model) as first:
        address = first.address
        with services.scorer(tiny_model, address, tmp_path) as server, services.ready_client(server) as client:
            with client.diagnose(run_file, run_id="first") as stream:
                seen = next(event for event in stream if isinstance(event, RolloutFinished))
                first.kill()
            with services.generator(tiny_model, listen=address):
                again = _events(client, run_file, "first")
    assert seen.sequence == 1
    assert again[-1].pooled == events[-1].pooled


def test_success_rates_are_those_of_the_model(client: Client, run_file: RunFile) -> None:
    """Against exact enumeration: two output tokens, the first forced, the second summed over."""
    settings = {
        "sampling": run_file.sampling.model_copy(update={"max_new_tokens": 2}),
        "budget": run_file.budget.model_copy(update={"rollouts_per_candidate": 400}),
        "nodes": run_file.nodes.model_copy(update={"selector": "explicit", "positions": (0,)}),
        "question_ids": ("b",),
        "rollouts_per_question": 1,
    }
    (scored,) = _scored(_events(client, run_file.model_copy(update=settings), "exact")).values()
    (node,) = scored.nodes
    tried = [candidate for candidate in node.candidates if candidate.trials]
    assert tried
    for candidate in tried:
        value = _exact_value("and 2? =", candidate.token_id, temperature=0.9)
        error = 4.5 * (value * (1 - value) / candidate.trials) ** 0.5 + 1e-12
        assert abs(candidate.successes / candidate.trials - value) <= error


def _exact_value(prompt: str, token: int, *, temperature: float) -> float:
    loaded = tiny.tiny_loaded()
    ids = [*loaded.tokenizer(prompt)["input_ids"], token]
    with torch.inference_mode():
        probs = (loaded.model(torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1)
    check = VERIFIERS.get("number").check
    texts = [loaded.tokenizer.decode([token, last], skip_special_tokens=True) for last in range(len(probs))]
    return sum(float(p) for p, text in zip(probs, texts, strict=True) if check(text, "2"))


def test_cancelled_runs_stop_and_keep_what_they_found(client: Client, run_file: RunFile) -> None:
    """Cancelling twice is no error; then the run can be deleted, before it cannot."""
    long = run_file.model_copy(update={"budget": run_file.budget.model_copy(update={"rollouts_per_candidate": 2000})})
    with client.diagnose(long, run_id="long") as stream:
        next(event for event in stream if isinstance(event, RolloutFinished))
        with pytest.raises(InvalidRequestError, match="cancel it first"):
            client.delete_run("long")
        assert client.cancel_run("long").state is RunState.CANCELLED
        rest = [event for event in stream if getattr(event, "sequence", 0)]
    assert rest[-1].state is RunState.CANCELLED
    spent = client.cancel_run("long").spent
    assert spent.rollouts > 0
    client.delete_run("long")
    assert "long" not in {run.run_id for run in client.list_runs()}
