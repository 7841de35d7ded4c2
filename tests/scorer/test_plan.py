"""Plans and seeds."""

import torch
from opdscope_scorer.plan import ROOT, TAIL, SampleKey, plan_roots, plan_samples, sample_seed


def _policy(*probs: float) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def _plan(count: int = 64, **changes: object) -> list:
    arguments = {"candidates": [0, 1], "log_p_V": _policy(0.5, 0.3, 0.15, 0.05, 0.0), "count": count} | changes
    return plan_samples(7, "q", 0, 3, **arguments)


def test_every_part_of_a_samples_name_changes_its_seed() -> None:
    """No two samples share their random numbers."""
    key = SampleKey(0, 3, 5, 1)
    seeds = {
        sample_seed(1, "q", key),
        sample_seed(2, "q", key),
        sample_seed(1, "p", key),
        *(sample_seed(1, "q", other) for other in (SampleKey(1, 3, 5, 1), SampleKey(0, 4, 5, 1))),
        *(sample_seed(1, "q", other) for other in (SampleKey(0, 3, 6, 1), SampleKey(0, 3, 5, 2))),
    }
    assert len(seeds) == 7


def test_seeds_never_change_between_versions() -> None:
    """A stored run goes on with the seeds that it began with."""
    assert sample_seed(7, "q", SampleKey(0, ROOT, TAIL, 0)) == 1563466278567113305


def test_candidates_get_their_count_and_the_tail_as_many() -> None:
    """Candidates are forced as they are; the tail's tokens are none of them, and none that the policy excludes."""
    planned = _plan()
    forced = {token: [s.forced[0] for s in planned if s.key.token == token] for token in (0, 1, TAIL)}
    assert forced[0] == [0] * 64
    assert forced[1] == [1] * 64
    assert len(forced[TAIL]) == 64
    assert set(forced[TAIL]) == {2, 3}


def test_tail_tokens_follow_the_policy() -> None:
    """Tokens 2 and 3 share the tail as 3 to 1."""
    tail = [s.forced[0] for s in _plan(count=4000) if s.key.token == TAIL]
    share = tail.count(2) / len(tail)
    # Four standard errors of a share of 3/4 among 4,000.
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5


def test_more_samples_keep_those_that_are_there() -> None:
    """A larger plan contains the smaller one, so nothing that was paid for is lost."""
    assert set(_plan(count=3)) < set(_plan(count=5))


def test_no_tail_is_planned_where_the_candidates_are_everything() -> None:
    """A tail without mass has no tokens to sample."""
    assert all(s.key.token != TAIL for s in _plan(candidates=[0, 1, 2, 3]))


def test_student_rollouts_force_nothing() -> None:
    """They start at the root, each with its own seed."""
    roots = plan_roots(7, "q", 3)
    assert [(s.key.rollout, s.key.is_root, s.forced) for s in roots] == [(n, True, ()) for n in range(3)]
    assert len({s.seed for s in roots}) == 3
