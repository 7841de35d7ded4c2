"""Intervals, statuses and the heterogeneity test, by simulation with fixed seeds.

Bars: coverage of nominal 95 % over all nodes at least 93 %, in every stratum at least 88 % (each has 150 nodes × 2
directions), among called nodes at least 88 % from 16 rollouts on; at most 5 % of homogeneous nodes called.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from opdscope_scorer.heterogeneity import heterogeneity_levels
from opdscope_scorer.intervals import Intervals, Status, statuses
from opdscope_scorer.nodes import Nodes
from opdscope_scorer.scoring import Alignments, Judgement, score_nodes
from scipy.stats import hypergeom
from simulation import STRATA, World, observe, values, world

JUDGEMENT = Judgement()
NODES = 600
TRIALS = [4, 16, 64]


@dataclass(frozen=True)
class Simulation:
    """Scored nodes with known truth."""

    trials: int
    truth: World
    stratum_N: NDArray[np.int64]
    scored: list[Alignments]

    def covered(self) -> Iterator[NDArray[np.bool_]]:
        """Whether the interval holds the true alignment, for each direction."""
        for i, scored in enumerate(self.scored):
            cosine_N = self.truth.cosine_ND[:, i]
            yield (scored.low_N <= cosine_N) & (cosine_N <= scored.high_N)

    def called(self) -> Iterator[NDArray[np.bool_]]:
        """Whether the node is called anything but undetermined, for each direction."""
        for scored in self.scored:
            yield scored.status_N != Status.UNDETERMINED


@pytest.fixture(scope="module", params=TRIALS)
def simulation(request: pytest.FixtureRequest) -> Simulation:
    """Four strata in equal parts; nodes of 4 candidates and a tail of 4 tokens; an independent and a good teacher."""
    random = np.random.default_rng(request.param)
    stratum_N = np.arange(NODES) % len(STRATA)
    truth = world(random, values(random, stratum_N, 8), 4)
    nodes, directions = observe(random, truth, request.param, request.param)
    return Simulation(request.param, truth, stratum_N, score_nodes(nodes, directions, judgement=JUDGEMENT, seed=1))


def test_intervals_cover_the_true_alignment(simulation: Simulation) -> None:
    """Nominal 95 % intervals cover at least 93 % of all alignments."""
    assert np.mean(list(simulation.covered())) >= 0.93


def test_intervals_cover_in_every_stratum(simulation: Simulation) -> None:
    """No kind of node pays for the coverage of the others."""
    covered_DN = np.array(list(simulation.covered()))

    for index in range(len(STRATA)):
        assert covered_DN[:, simulation.stratum_N == index].mean() >= 0.88


def test_called_nodes_are_covered_and_their_signs_are_right(simulation: Simulation) -> None:
    """What is said of a node is true: intervals of called nodes cover, and at most 5 % of signs are wrong."""
    covered_DN, called_DN = np.array(list(simulation.covered())), np.array(list(simulation.called()))
    sign_DN = np.array([np.where(scored.status_N == Status.HELPS, 1, -1) for scored in simulation.scored])
    wrong_DN = sign_DN * simulation.truth.cosine_ND.T < 0

    assert called_DN.sum() >= 10
    assert simulation.trials < 16 or covered_DN[called_DN].mean() >= 0.88
    assert wrong_DN[called_DN].mean() <= 0.05


def test_homogeneous_nodes_are_rarely_called() -> None:
    """Where the token does not matter, at most 5 % of nodes are called anything but undetermined."""
    random = np.random.default_rng(4)
    truth = world(random, np.repeat(random.beta(0.8, 0.8, (400, 1)), 8, axis=1), 4)
    nodes, directions = observe(random, truth, 16, 16)

    for scored in score_nodes(nodes, directions, judgement=JUDGEMENT, seed=1):
        assert (scored.status_N != Status.UNDETERMINED).mean() <= 0.05


def test_perfect_teacher_is_not_refused_where_nodes_are_called() -> None:
    """Where candidates differ significantly, intervals reach the alignment of a teacher that is exactly right."""
    random = np.random.default_rng(5)
    truth = world(random, values(random, np.full(200, 2), 5), 5, pulls=[1.0, -1.0], noise=0.0)
    nodes, directions = observe(random, truth, 16, 0)

    good, bad = score_nodes(nodes, directions, judgement=JUDGEMENT, seed=1)

    called_N = good.status_N != Status.UNDETERMINED
    assert called_N.sum() > 50
    assert (good.high_N[called_N] == 1).mean() >= 0.93
    assert (bad.low_N[called_N] == -1).mean() >= 0.93


def test_statuses_follow_from_the_interval() -> None:
    """Neutral within ±δ, helps above 0, hurts below 0, and undetermined for all else and without significance."""
    low_N = np.array([0.1, -0.9, -0.04, 0.01, -0.2, 0.01, 0.1, np.nan])
    high_N = np.array([0.9, -0.1, 0.04, 0.04, 0.3, 0.06, 0.9, np.nan])
    significant_N = np.array([True, True, True, True, True, True, False, True])

    status_N = statuses(Intervals(low_N=low_N, high_N=high_N), significant_N=significant_N, delta=0.05)

    assert [Status(status).name for status in status_N] == [
        "HELPS",
        "HURTS",
        "NEUTRAL",
        "NEUTRAL",
        "UNDETERMINED",
        "HELPS",
        "UNDETERMINED",
        "UNDETERMINED",
    ]


def two_entries(successes: list[int], trials: list[int], known: list[bool] | None = None) -> Nodes:
    """One node with these counts."""
    random = np.random.default_rng(0)
    nodes, _ = observe(random, world(random, np.full((1, len(trials)), 0.5), len(trials)), 1, 0)
    return replace(
        nodes,
        successes_NK=np.array([successes]),
        trials_NK=np.array([trials]),
        known_NK=np.array([known or [False] * len(trials)]),
    )


@pytest.mark.parametrize(("successes", "trials"), [([9, 2], [12, 12]), ([5, 0], [5, 9]), ([3, 10], [16, 20])])
def test_heterogeneity_of_two_entries_is_that_of_the_exact_test(successes: list[int], trials: list[int]) -> None:
    """The level agrees with summing the hypergeometric distribution over tables with as large a χ²."""
    level = heterogeneity_levels(two_entries(successes, trials), seed=0)[0]

    table = [successes, [n - s for n, s in zip(trials, successes, strict=True)]]
    assert level == pytest.approx(chi_square_level(table), abs=0.02)


def chi_square_level(table: list[list[int]]) -> float:
    """Exact level of Pearson's χ² in a table of two columns."""
    (s1, s2), (f1, f2) = table
    n1, n2, total = s1 + f1, s2 + f2, s1 + s2

    def statistic(x: int) -> float:
        return x**2 / n1 + (total - x) ** 2 / n2

    support = range(max(0, total - n2), min(n1, total) + 1)
    return float(
        sum(hypergeom.pmf(x, n1 + n2, n1, total) for x in support if statistic(x) >= statistic(s1) * (1 - 1e-9))
    )


@pytest.mark.parametrize(
    ("successes", "trials", "known", "level"),
    [
        ([0, 0], [9, 9], None, 1),
        ([9, 9], [9, 9], None, 1),
        ([0, 0], [0, 0], None, 1),
        ([5, 0], [9, 0], None, 1),
        ([1, 9], [0, 9], [True, False], 1),
        ([1, 8], [0, 9], [True, False], 0),
        ([0, 1], [0, 0], [True, True], 0),
        ([1, 1], [0, 0], [True, True], 1),
    ],
)
def test_heterogeneity_at_its_limits(
    successes: list[int], trials: list[int], known: list[bool] | None, level: float
) -> None:
    """Without variation the level is 1; one outcome against a known value refuses that all are equal."""
    assert heterogeneity_levels(two_entries(successes, trials, known), seed=0)[0] == level
