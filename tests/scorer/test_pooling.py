from dataclasses import replace

import numpy as np
import pytest
from opdscope_scorer.estimator import ideal_norm, inner_product
from opdscope_scorer.pooling import IntervalScope, PoolSums, pool, pool_sums
from opdscope_scorer.prior import fit_prior, posterior_moments
from opdscope_scorer.rates import success_rates
from opdscope_scorer.scoring import Alignments, Judgement, score_nodes
from simulation import Floats, World, observe, values, world

JUDGEMENT = Judgement()


def simulated_sums(random: np.random.Generator, truth: World, trials: int) -> list[PoolSums]:
    """Simulates outcomes and sums what pooling needs, without intervals of the nodes."""
    nodes, directions = observe(random, truth, trials, trials)
    rates = success_rates(nodes, posterior_moments(nodes, fit_prior(nodes)))
    norm, inners = ideal_norm(nodes, rates), [inner_product(nodes, rates, one) for one in directions]
    return [
        PoolSums(
            nodes=len(nodes),
            numerator=inner.unbiased_N.sum(),
            numerator_variance=inner.variance_N.sum(),
            norm_sq=norm.corrected_N.sum(),
            norm_sq_variance=norm.variance_N.sum(),
            covariance=inner.covariance_N.sum(),
            distill_norm_sq=(direction.norm_N**2).sum(),
            plug_in_numerator=inner.plug_in_N.sum(),
            plug_in_norm_sq=norm.plug_in_N.sum(),
        )
        for inner, direction in zip(inners, directions, strict=True)
    ]


def true_pooled(truth: World) -> Floats:
    """Pooled alignment with each direction."""
    norm_sq_D = truth.norm_sq_N.sum() * (truth.d_NVD**2).sum(axis=(0, 1))
    pooled_D: Floats = truth.numerator_ND.sum(axis=0) / np.sqrt(norm_sq_D)
    return pooled_D


@pytest.fixture(scope="module")
def alignments() -> list[Alignments]:
    """120 nodes of all kinds."""
    random = np.random.default_rng(0)
    truth = world(random, values(random, np.arange(120) % 4, 6), 4)
    nodes, directions = observe(random, truth, 16, 16)
    return score_nodes(nodes, directions, judgement=JUDGEMENT, seed=0)


@pytest.mark.parametrize("trials", [4, 16])
def test_interval_for_these_nodes_covers(trials: int) -> None:
    """Over 30 sets of outcomes of 150 nodes, and an independent, a good and a perfect teacher: at least 88 % cover."""
    random = np.random.default_rng(trials)
    truth = world(random, values(random, np.arange(150) % 4, 6), 6, pulls=[0.0, 0.5, -0.2])
    truth = replace(truth, d_NVD=np.concatenate([truth.d_NVD, truth.ideal_NV[:, :, None]], axis=2))
    expected_D = true_pooled(truth)

    results = [
        [pool([one], judgement=JUDGEMENT, seed=0) for one in simulated_sums(random, truth, trials)] for _ in range(30)
    ]

    covered = [
        one.pooled_low <= expected + 1e-9 and expected - 1e-9 <= one.pooled_high
        for result in results
        for one, expected in zip(result, expected_D, strict=True)
        if one.pooled_low is not None and one.pooled_high is not None
    ]
    assert len(covered) > 90
    assert np.mean(covered) >= 0.88
    assert all(one.scope == IntervalScope.THESE_NODES for result in results for one in result if one.pooled is not None)


def test_corrected_pooled_alignment_is_not_pulled_toward_zero() -> None:
    """With a perfect teacher and few rollouts the corrected value is near 1 and the plug-in one is not."""
    random = np.random.default_rng(3)
    truth = world(random, values(random, np.arange(600) % 4, 6), 6, pulls=[1.0], noise=0.0)

    pooled = pool(simulated_sums(random, truth, 4)[:1], judgement=JUDGEMENT, seed=0)

    assert pooled.pooled is not None
    assert pooled.pooled_plug_in is not None
    assert pooled.pooled == pytest.approx(1, abs=0.08)
    assert pooled.pooled_plug_in < 0.9


def test_pooled_alignment_is_absent_where_tokens_do_not_matter() -> None:
    """Where all values of every node are equal, at most a few of 40 sets have a pooled alignment."""
    random = np.random.default_rng(6)
    truth = world(random, np.repeat(random.beta(1, 1, (60, 1)), 5, axis=1), 5)

    present = sum(
        pool(simulated_sums(random, truth, 8)[:1], judgement=JUDGEMENT, seed=0).pooled is not None for _ in range(40)
    )

    assert present <= 4


def test_interval_for_questions_covers_the_mean_of_many() -> None:
    """Resampling 24 questions covers the pooled alignment of the questions they come from: at least 83 % of 60."""
    random = np.random.default_rng(8)
    questions = 24

    def sums() -> list[PoolSums]:
        pull = random.normal(0.3, 0.3, questions)
        ideal = random.gamma(2, 1, questions)
        return [
            PoolSums(nodes=1, numerator=p * i, norm_sq=i, distill_norm_sq=i, norm_sq_variance=1e-6)
            for p, i in zip(pull, ideal, strict=True)
        ]

    results = [pool(sums(), judgement=JUDGEMENT, seed=n) for n in range(60)]

    covered = [one.pooled_low <= 0.3 <= one.pooled_high for one in results if one.pooled_low and one.pooled_high]
    assert all(one.scope == IntervalScope.QUESTIONS for one in results)
    assert np.mean(covered) >= 0.83


def test_sums_of_parts_add_up(alignments: list[Alignments]) -> None:
    """Pooling the parts of a set, chosen by mask or slice, is pooling the set."""
    first_N = np.arange(120) < 50
    whole = pool([pool_sums(alignments[0])], judgement=JUDGEMENT, seed=0)

    parts = [pool_sums(alignments[0], first_N), pool_sums(alignments[0], slice(50, 120))]

    together = pool(parts, judgement=JUDGEMENT, seed=0)
    assert together.pooled == pytest.approx(whole.pooled, rel=1e-12)
    assert together.mean_plug_in == pytest.approx(whole.mean_plug_in, rel=1e-12)
    assert (together.nodes, together.helps, together.undetermined) == (whole.nodes, whole.helps, whole.undetermined)


def test_mean_of_cosines_and_counts_are_those_of_the_columns(alignments: list[Alignments]) -> None:
    """The paper's figure, with what it leaves out, and counts by status that add up to the nodes."""
    plug_in_N = alignments[1].plug_in_N

    pooled = pool([pool_sums(alignments[1])], judgement=JUDGEMENT, seed=0)

    assert pooled.mean_plug_in == pytest.approx(np.nanmean(plug_in_N), rel=1e-12)
    assert pooled.dropped_nodes == np.isnan(plug_in_N).sum()
    assert pooled.helps + pooled.hurts + pooled.neutral + pooled.undetermined == pooled.nodes == 120
    assert pooled.mean_low is not None
    assert pooled.mean_high is not None
    half = 1.98 * np.nanstd(plug_in_N, ddof=1) / np.sqrt(np.isfinite(plug_in_N).sum())
    assert (pooled.mean_high - pooled.mean_low) / 2 == pytest.approx(half, rel=0.01)
    assert pooled.mean_teacher_advantage == pytest.approx(np.nanmean(alignments[1].teacher_advantage_N), rel=1e-12)


def test_nothing_to_pool_gives_nothing() -> None:
    """No questions, no nodes: no values, and no division by zero."""
    for sums in ([], [PoolSums()]):
        pooled = pool(sums, judgement=JUDGEMENT, seed=0)
        assert (pooled.pooled, pooled.mean_plug_in, pooled.mean_teacher_advantage, pooled.nodes) == (None,) * 3 + (0,)
        assert pooled.scope == IntervalScope.NONE


def test_resampling_is_deterministic() -> None:
    """The same seed gives the same interval, another seed another one."""
    random = np.random.default_rng(1)
    sums = [
        PoolSums(nodes=1, numerator=x, norm_sq=2.0, distill_norm_sq=2.0, norm_sq_variance=1e-6)
        for x in random.normal(0.5, 0.5, 30)
    ]

    one, same, other = (pool(sums, judgement=JUDGEMENT, seed=seed) for seed in (1, 1, 2))

    assert one == same
    assert one.pooled_low != other.pooled_low
