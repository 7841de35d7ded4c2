"""Allocation against closed forms, numeric optima, and its promises."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opdscope_scorer.allocation import (
    QuestionState,
    balance,
    distribute,
    node_targets,
    plan_round,
    round_size,
)
from opdscope_scorer.links import chain_links, no_links
from opdscope_scorer.nodes import Direction
from scipy.optimize import minimize
from simulation import World, forced, rollout, select, unobserved

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def state_of(truth: World, *, linked: bool = True) -> QuestionState:
    """A rollout without outcomes."""
    nodes, directions = unobserved(truth)
    links = chain_links([0] * len(nodes), success=1.0) if linked else no_links()
    return QuestionState(nodes=nodes, links=links, directions=directions)


@pytest.fixture(scope="module")
def truth() -> World:
    """A rollout of 30 nodes with four tokens."""
    return rollout(np.random.default_rng(0), 30, 4)


def test_one_direction_gets_neymans_allocation() -> None:
    """With one direction the weights are c² v: rollouts in proportion to |c| √v."""
    square_NKD = np.random.default_rng(1).gamma(1, 1, (5, 3, 1))

    worth_NK = np.sqrt(balance(square_NKD))

    ratio_NK = worth_NK / np.sqrt(square_NKD[:, :, 0])
    np.testing.assert_allclose(ratio_NK, ratio_NK[0, 0], rtol=1e-12)


def test_several_directions_are_served_as_well_as_can_be() -> None:
    """The largest of the relative variances is within 3 % of the least that a numeric search finds."""
    square_MD = np.random.default_rng(2).gamma(0.4, 1, (6, 3))
    least_D = np.sqrt(square_MD).sum(axis=0) ** 2

    def largest(log_n_M: Floats) -> float:
        n_M = np.exp(log_n_M) / np.exp(log_n_M).sum()
        return float(((square_MD / n_M[:, None]).sum(axis=0) / least_D).max())

    ours = np.sqrt(balance(square_MD[:, None, :])[:, 0])

    start = np.log(square_MD.sum(axis=1))
    best = minimize(largest, start, method="Nelder-Mead", options={"maxiter": 5000, "fatol": 1e-9}).fun
    assert largest(np.log(ours)) <= 1.03 * best


whole = st.lists(st.integers(0, 30), min_size=4, max_size=12)


@given(worth=whole, trials=whole, least=whole, budget=st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_budget_is_spent_and_never_exceeded(worth: list[int], trials: list[int], least: list[int], budget: int) -> None:
    """Whole numbers, none negative, all of the budget where anything is worth it, nothing for what is worth nothing."""
    size = min(map(len, (worth, trials, least)))
    worth_NK, trials_NK = np.array([worth[:size]], np.float64), np.array([trials[:size]])
    least_NK = np.where(worth_NK > 0, np.array([least[:size]], np.float64), 0.0)

    more_NK = distribute(worth_NK, worth_NK > 0, least_NK, trials_NK, budget)

    assert (more_NK >= 0).all()
    assert more_NK.sum() == (budget if worth_NK.any() else 0)
    assert not more_NK[worth_NK == 0].any()


def test_earlier_rollouts_count() -> None:
    """What has enough already gets nothing, and the others come to be in proportion with their worth."""
    worth_NK = np.array([[1.0, 2.0, 3.0]])

    more_NK = distribute(worth_NK, worth_NK > 0, np.zeros((1, 3)), np.array([[50, 4, 6]]), 40)

    assert more_NK.tolist() == [[0, 16, 24]]


def test_single_nodes_are_served_at_the_least_sum_of_unknowns() -> None:
    """Σ a/(a + n) is what a numeric search finds, and hopeless nodes get nothing."""
    rng = np.random.default_rng(3)
    alone_NKD = rng.gamma(1, 1, (4, 2, 1))
    directions = state_of(rollout(rng, 4, 2, pulls=[0.5])).directions
    unit = [_with_norm(directions[0], np.ones(4))]
    norm_sq_N = np.array([10.0, 3.0, 1.0, 1e-6])

    target_NK = node_targets(alone_NKD, unit, norm_sq_N, 300)

    a_N = np.sqrt(alone_NKD[:, :, 0]).sum(axis=1) ** 2 / (0.1 * norm_sq_N)
    n_N = target_NK.sum(axis=1)

    def unknown(log_n_N: Floats) -> float:
        n = np.exp(log_n_N) / np.exp(log_n_N).sum() * 300
        return float((a_N / (a_N + n)).sum())

    best = minimize(unknown, np.zeros(4), method="Nelder-Mead", options={"maxiter": 9000, "fatol": 1e-12}).fun
    assert n_N.sum() == pytest.approx(300)
    assert n_N[3] == 0
    assert (a_N / (a_N + n_N)).sum() <= best + 1e-4


def _with_norm(direction: Direction, norm_N: Floats) -> Direction:
    return replace(direction, norm_N=norm_N)


def test_linked_entries_and_what_cannot_matter_get_none(truth: World) -> None:
    """The token on the path gets no rollouts; improbable tokens of sure nodes get few or none; forks get most."""
    state = state_of(truth)

    count_NK = plan_round(state, 600)

    fork_N = np.arange(30) % 5 == 0
    assert count_NK.sum() == 600
    assert not count_NK[:, 0].any()
    assert count_NK[fork_N].sum() > 0.7 * 600
    assert (count_NK[~fork_N, 1:] == 0).any()


def test_known_entries_get_none(truth: World) -> None:
    """They have no variance."""
    state = state_of(truth)
    state.nodes.known_NK[5, 2] = True

    assert plan_round(state, 600)[5, 2] == 0


def test_without_links_every_entry_is_estimated_by_itself(truth: World) -> None:
    """Then the token on the path needs rollouts at forks."""
    count_NK = plan_round(state_of(truth, linked=False), 600)

    assert (count_NK[::5, 0] > 0).all()


def test_uncertain_links_are_not_relied_upon(truth: World) -> None:
    """Where much was skipped, the entry gets rollouts of its own."""
    state = state_of(truth)
    links = chain_links([0] * 30, success=1.0, skipped=[0.0] * 9 + [0.0, 0.3] + [0.0] * 19)

    count_NK = plan_round(QuestionState(nodes=state.nodes, links=links, directions=state.directions), 600)

    assert count_NK[10, 0] > 0
    assert not count_NK[:10, 0].any()


def test_plans_are_the_same_again_and_for_nodes_in_another_order(truth: World) -> None:
    """Allocation has no randomness, and only equals may be served in another order."""
    state = state_of(truth, linked=False)
    order = np.random.default_rng(4).permutation(30)
    nodes, directions = select(state.nodes, state.directions, order.tolist())

    count_NK = plan_round(state, 600)
    again_NK = plan_round(state, 600)
    other_NK = plan_round(QuestionState(nodes=nodes, links=no_links(), directions=directions), 600)

    np.testing.assert_array_equal(again_NK, count_NK)
    assert np.abs(other_NK - count_NK[order]).max() <= 1


def test_later_rounds_follow_the_outcomes(truth: World) -> None:
    """Entries whose outcomes turn out all alike get fewer rollouts than under ignorance."""
    state = state_of(truth, linked=False)
    first_NK = plan_round(state, 600)
    sure = QuestionState(
        nodes=forced(np.random.default_rng(5), _all_succeed_at(truth, node=5), state.nodes, first_NK),
        links=no_links(),
        directions=state.directions,
    )

    second_NK = plan_round(sure, 600)

    assert second_NK[5].sum() < 0.5 * first_NK[5].sum()
    assert second_NK.sum() == 600


def _all_succeed_at(truth: World, node: int) -> World:
    value_NV = truth.value_NV.copy()
    value_NV[node] = 1.0
    return World(truth.p_NV, value_NV, truth.d_NVD, truth.candidates)


def test_rounds_add_up_to_the_budget() -> None:
    """The last round takes what is left, and a round that is due has at least nothing."""
    spent = 0
    for number in range(3):
        spent += round_size(number, spent, 1001)

    assert spent == 1001
    assert round_size(0, 900, 1001) == 0
