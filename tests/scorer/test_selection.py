"""Choice of nodes and candidates."""

import pytest
import torch
from opdscope_scorer.selection import CandidateSelection, NodeSelection, select_candidates, select_nodes

ENTROPY = torch.tensor([0.5, 0.0, 1.5, 0.2, 1.5])


@pytest.mark.parametrize(
    ("selection", "positions"),
    [
        (NodeSelection("all"), [0, 1, 2, 3, 4]),
        (NodeSelection("all", max_nodes=2), [0, 1]),
        (NodeSelection("entropy", min_entropy_nats=0.3), [0, 2, 4]),
        (NodeSelection("entropy", max_nodes=1), [2]),
        (NodeSelection("entropy", max_nodes=3), [0, 2, 4]),
        (NodeSelection("explicit", positions=(9, 3, 1, 3)), [1, 3]),
    ],
)
def test_selectors_choose_positions(selection: NodeSelection, positions: list[int]) -> None:
    """In ascending order, the first of equal ones."""
    assert select_nodes(selection, ENTROPY) == positions


def _log(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_candidates_are_those_of_student_and_teachers_and_the_taken_one() -> None:
    """Each once, likeliest first."""
    p = _log([0.5, 0.3, 0.1, 0.06, 0.04])
    q = _log([0.1, 0.1, 0.1, 0.6, 0.1])
    assert select_candidates(CandidateSelection(2, 1), p, [q], [4]) == [[0, 1, 3, 4]]


def test_teachers_tokens_that_the_student_hardly_plays_stay_in_the_tail() -> None:
    """Rollouts on them could not move the result."""
    p = _log([0.5, 0.3, 0.1, 0.06, 0.04])
    q = _log([0.1, 0.1, 0.1, 0.6, 0.1])
    assert select_candidates(CandidateSelection(1, 1, min_student_prob=0.1), p, [q], [0]) == [[0]]


def test_tokens_that_the_policy_excludes_are_no_candidates() -> None:
    """Truncation can leave fewer tokens than asked for."""
    p = _log([0.7, 0.3, 0.0, 0.0])
    assert select_candidates(CandidateSelection(4, 0), p, [], [1]) == [[0, 1]]
