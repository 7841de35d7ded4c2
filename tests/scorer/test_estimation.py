"""Estimates of a question with links, by simulation with fixed seeds and against those without links."""

from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray
from opdscope_scorer.allocation import SHARES, QuestionState, plan_round, round_size
from opdscope_scorer.estimation import Estimate, estimate
from opdscope_scorer.fit import fit, rollouts_worth
from opdscope_scorer.links import chain_links, no_links
from opdscope_scorer.pooling import PoolSums, pool, pool_sums
from opdscope_scorer.prior import fit_prior, posterior_moments
from opdscope_scorer.rates import pooled_rates, success_rates
from opdscope_scorer.scoring import Alignments, Judgement, score_nodes
from simulation import World, forced, rollout, unobserved

Floats = NDArray[np.float64]
JUDGEMENT = Judgement()
SIZE = 20


def play(truth: World, seed: int, budget: int) -> QuestionState:
    """Spends a budget in rounds."""
    random = np.random.default_rng(seed)
    nodes, directions = unobserved(truth)
    links = chain_links([0] * len(nodes), success=1.0)
    for number in range(len(SHARES)):
        state = QuestionState(nodes=nodes, links=links, directions=directions)
        more_NK = plan_round(state, round_size(number, int(nodes.trials_NK.sum()), budget))
        nodes = forced(random, truth, nodes, more_NK)
    return QuestionState(nodes=nodes, links=links, directions=directions)


def uniform(truth: World, seed: int, trials: int) -> QuestionState:
    """As many rollouts of every entry, without links."""
    nodes, directions = unobserved(truth)
    nodes = forced(np.random.default_rng(seed), truth, nodes, np.full(nodes.trials_NK.shape, trials))
    return QuestionState(nodes=nodes, links=no_links(), directions=directions)


@pytest.fixture(scope="module")
def truth() -> World:
    """A rollout of 20 nodes with four tokens; four nodes are forks."""
    return rollout(np.random.default_rng(1), SIZE, 4)


@pytest.fixture(scope="module")
def played(truth: World) -> list[Estimate]:
    """Estimates of 60 repetitions at 8 rollouts per candidate."""
    return [estimate(play(truth, seed, 8 * 4 * SIZE), judgement=JUDGEMENT, seed=seed) for seed in range(60)]


@pytest.fixture(scope="module")
def sums_BD(played: list[Estimate]) -> list[list[PoolSums]]:
    """Sums over all nodes, of every repetition and direction."""
    return [one.sums() for one in played]


def standard_score(errors: Floats) -> float:
    """Mean in units of its standard error."""
    return float(errors.mean() / (errors.std(ddof=1) / np.sqrt(errors.size)))


def test_sums_are_unbiased_and_know_their_errors(truth: World, sums_BD: list[list[PoolSums]]) -> None:
    """After adaptive rounds, means lie within 3 standard errors; stated variances are within 40 % of squared errors."""
    for d in range(2):
        numerator_B = np.array([sums_D[d].numerator for sums_D in sums_BD]) - truth.numerator_ND[:, d].sum()
        norm_sq_B = np.array([sums_D[d].norm_sq for sums_D in sums_BD]) - truth.norm_sq_N.sum()

        assert abs(standard_score(numerator_B)) < 3
        assert abs(standard_score(norm_sq_B)) < 3
        assert np.mean([sums_D[d].numerator_variance for sums_D in sums_BD]) == pytest.approx(
            (numerator_B**2).mean(), rel=0.4
        )
        assert np.mean([sums_D[d].norm_sq_variance for sums_D in sums_BD]) == pytest.approx(
            (norm_sq_B**2).mean(), rel=0.4
        )
        assert np.mean([sums_D[d].covariance for sums_D in sums_BD]) == pytest.approx(
            (numerator_B * norm_sq_B).mean(), abs=0.4 * np.sqrt((numerator_B**2).mean() * (norm_sq_B**2).mean())
        )


def test_pooled_intervals_cover(truth: World, sums_BD: list[list[PoolSums]]) -> None:
    """At least 88 % of 120 intervals hold the pooled alignment."""
    norm_D = np.sqrt((truth.d_NVD**2).sum(axis=(0, 1)) * truth.norm_sq_N.sum())
    expected_D = truth.numerator_ND.sum(axis=0) / norm_D

    pooled = [pool([sums_D[d]], judgement=JUDGEMENT, seed=0) for sums_D in sums_BD for d in range(2)]
    covered = [
        one.pooled_low <= expected_D[i % 2] <= one.pooled_high
        for i, one in enumerate(pooled)
        if one.pooled_low is not None and one.pooled_high is not None
    ]

    assert len(covered) >= 115
    assert np.mean(covered) >= 0.88


def test_node_intervals_cover(truth: World, played: list[Estimate]) -> None:
    """At least 93 % of all alignments of all nodes lie within their intervals."""
    covered = [
        (one.low_N - 1e-9 <= truth.cosine_ND[:, d]) & (truth.cosine_ND[:, d] <= one.high_N + 1e-9)
        for estimated in played
        for d, one in enumerate(estimated.alignments)
    ]

    assert np.mean(covered) >= 0.93


def test_errors_are_far_below_those_of_uniform_rollouts(truth: World, sums_BD: list[list[PoolSums]]) -> None:
    """At equal budget the squared error of the numerator is at least six times lower, for both directions."""
    plain = [estimate(uniform(truth, seed, 8), judgement=JUDGEMENT, seed=0).sums() for seed in range(30)]

    for d in range(2):
        expected = truth.numerator_ND[:, d].sum()
        pooled_error = np.mean([(sums_D[d].numerator - expected) ** 2 for sums_D in sums_BD])
        plain_error = np.mean([(sums_D[d].numerator - expected) ** 2 for sums_D in plain])
        assert plain_error > 6 * pooled_error


def test_without_links_nothing_changes(truth: World) -> None:
    """Rates, alignments and sums are those of nodes that know nothing of each other."""
    state = uniform(truth, 3, 5)
    found = estimate(state, judgement=JUDGEMENT, seed=1)
    rates = success_rates(state.nodes, posterior_moments(state.nodes, fit_prior(state.nodes)))

    for name in ("shifted_NK", "mass_NK", "sum_sq_NK", "unbiased_NK", "smooth_NK", "pair_NK", "untried_NK", "shift_N"):
        np.testing.assert_allclose(getattr(found.rates, name), getattr(rates, name), atol=1e-12)
    plain = score_nodes(state.nodes, state.directions, judgement=JUDGEMENT, seed=1)
    for one, other in zip(found.alignments, plain, strict=True):
        for name in (column.name for column in fields(Alignments) if column.name.endswith("_N")):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert found.sums() == [pool_sums(one) for one in found.alignments]


def test_sums_of_one_node_are_its_columns(played: list[Estimate]) -> None:
    """The covariance from the adjoint of both passes is that of the passes themselves, within 1 %.

    They differ in how later entries without rollouts count. Where all have some, `test_chain.py` finds them equal.
    """
    for node in (0, 7, 15):
        chosen_N = np.arange(SIZE) == node
        for sums, one in zip(played[0].sums(chosen_N), played[0].alignments, strict=True):
            assert sums.numerator_variance == pytest.approx(one.numerator_se_N[node] ** 2, rel=0.01, abs=1e-15)
            assert sums.covariance == pytest.approx(one.covariance_N[node], rel=0.01, abs=1e-15)
            assert sums.norm_sq_variance == pytest.approx(one.norm_sq_variance_N[node], rel=0.01, abs=1e-15)


def test_rounds_may_end_early(played: list[Estimate]) -> None:
    """Intervals are narrow enough for a wide limit and not for a tiny one."""
    assert played[0].narrow_enough(2.0, judgement=JUDGEMENT)
    assert not played[0].narrow_enough(1e-3, judgement=JUDGEMENT)


def test_homogeneous_nodes_are_rarely_called(truth: World) -> None:
    """Where no token matters at most 5 % of the nodes are called anything."""
    level = World(truth.p_NV, np.full(truth.value_NV.shape, 0.4), truth.d_NVD, truth.candidates)
    called = []
    for seed in range(12):
        state = play(level, seed, 8 * 4 * SIZE)
        open_end = QuestionState(
            nodes=state.nodes, links=chain_links([0] * SIZE, success=None), directions=state.directions
        )
        found = estimate(open_end, judgement=JUDGEMENT, seed=seed)
        called += [one.status_N != 4 for one in found.alignments]

    assert np.mean(called) <= 0.05


def test_variances_of_the_fit_are_not_those_of_raw_counts() -> None:
    """Entries off the path have a variance above 0, though with two rollouts each many outcomes are all alike."""
    truth = rollout(np.random.default_rng(2), 5, 3)
    nodes, _ = unobserved(truth)
    nodes = forced(np.random.default_rng(0), truth, nodes, np.full((5, 3), 2))

    smooth_NK = pooled_rates(fit(nodes, chain_links([0] * 5, success=1.0))).smooth_NK

    alike_NK = (nodes.successes_NK == 0) | (nodes.successes_NK == 2)
    assert alike_NK[:, 1:].any()
    assert (smooth_NK[:, 1:] > 0.01).all()


@pytest.mark.parametrize(("mean", "rollouts"), [(0.5, 40.0), (0.1, 200.0), (0.0, 50.0), (1.0, 1000.0)])
def test_messages_are_worth_the_rollouts_that_give_their_variance(mean: float, rollouts: float) -> None:
    """The variance of that many rollouts, smoothed by one success and one failure, leads back to their number."""
    smoothed = (rollouts * mean + 1) / (rollouts + 2)
    variance = smoothed * (1 - smoothed) / rollouts

    worth = rollouts_worth(np.array([mean]), np.array([variance]))

    assert worth[0] == pytest.approx(rollouts, rel=1e-3)
